//! LayerNorm in plain `f64`.

/// What forward computes.
#[derive(Clone, Debug)]
pub struct Forward {
    /// (rows, C).
    pub y: Vec<f64>,
    /// (rows).
    pub mean: Vec<f64>,
    /// (rows).
    pub rstd: Vec<f64>,
}

/// `(x - mean)·rstd·w + b` for rows of `w.len()` numbers.
#[must_use]
pub fn forward(x: &[f64], w: &[f64], b: &[f64], eps: f64) -> Forward {
    let mut out = Forward {
        y: Vec::new(),
        mean: Vec::new(),
        rstd: Vec::new(),
    };
    let c = w.len();
    for x in x.chunks_exact(c) {
        let mean = x.iter().sum::<f64>() / c as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c as f64;
        let rstd = 1.0 / (variance + eps).sqrt();
        out.mean.push(mean);
        out.rstd.push(rstd);
        out.y
            .extend((0..c).map(|i| (x[i] - mean) * rstd * w[i] + b[i]));
    }
    out
}

/// Gradients of the inputs of [`forward`].
#[derive(Clone, Debug)]
pub struct Gradients {
    /// (rows, C).
    pub dx: Vec<f64>,
    /// (C).
    pub dw: Vec<f64>,
    /// (C).
    pub db: Vec<f64>,
}

/// From the gradient of `y` and what forward saved.
#[must_use]
pub fn backward(dy: &[f64], x: &[f64], mean: &[f64], rstd: &[f64], w: &[f64]) -> Gradients {
    let c = w.len();
    let mut g = Gradients {
        dx: Vec::new(),
        dw: vec![0.0; c],
        db: vec![0.0; c],
    };
    for row in 0..mean.len() {
        let dy = &dy[row * c..][..c];
        let hat: Vec<f64> = x[row * c..][..c]
            .iter()
            .map(|x| (x - mean[row]) * rstd[row])
            .collect();
        let mean_g = (0..c).map(|i| dy[i] * w[i]).sum::<f64>() / c as f64;
        let mean_g_hat = (0..c).map(|i| dy[i] * w[i] * hat[i]).sum::<f64>() / c as f64;
        for i in 0..c {
            g.dx.push(rstd[row] * (dy[i] * w[i] - mean_g - hat[i] * mean_g_hat));
            g.dw[i] += dy[i] * hat[i];
            g.db[i] += dy[i];
        }
    }
    g
}
