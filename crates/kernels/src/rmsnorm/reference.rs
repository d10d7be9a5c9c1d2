//! RMSNorm in plain `f64`.

/// What forward computes.
#[derive(Clone, Debug)]
pub struct Forward {
    /// (rows, C).
    pub y: Vec<f64>,
    /// (rows).
    pub rstd: Vec<f64>,
}

/// `x·rstd·w` for rows of `w.len()` numbers.
#[must_use]
pub fn forward(x: &[f64], w: &[f64], eps: f64) -> Forward {
    let mut out = Forward {
        y: Vec::new(),
        rstd: Vec::new(),
    };
    for x in x.chunks_exact(w.len()) {
        let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let rstd = 1.0 / (mean_square + eps).sqrt();
        out.rstd.push(rstd);
        out.y.extend(x.iter().zip(w).map(|(x, w)| x * rstd * w));
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
}

/// From the gradient of `y` and what forward saved.
#[must_use]
pub fn backward(dy: &[f64], x: &[f64], rstd: &[f64], w: &[f64]) -> Gradients {
    let c = w.len();
    let mut g = Gradients {
        dx: Vec::new(),
        dw: vec![0.0; c],
    };
    for ((dy, x), rstd) in dy.chunks_exact(c).zip(x.chunks_exact(c)).zip(rstd) {
        let mean = (0..c).map(|i| dy[i] * w[i] * x[i] * rstd).sum::<f64>() / c as f64;
        for i in 0..c {
            g.dx.push(rstd * (dy[i] * w[i] - x[i] * rstd * mean));
            g.dw[i] += dy[i] * x[i] * rstd;
        }
    }
    g
}
