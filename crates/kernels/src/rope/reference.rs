//! Rotary positions in plain `f64`.

use super::Heads;

/// The norm's weights and epsilon.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// (D).
    pub wq: &'a [f64],
    /// (D).
    pub wk: &'a [f64],
    /// Added to the mean square.
    pub eps: f64,
}

/// The fused projection after norm and rotation; `inv_freq` has D/2 entries.
#[must_use]
pub fn forward(
    x: &[f64],
    positions: &[i32],
    inv_freq: &[f64],
    attention_factor: f64,
    norm: Option<Norm<'_>>,
    heads: Heads,
) -> Vec<f64> {
    let (d, half) = (heads.head_dim, heads.head_dim / 2);
    let mut y = x.to_vec();
    for (y, position) in y.chunks_exact_mut(heads.width()).zip(positions) {
        for (head, y) in y.chunks_exact_mut(d).enumerate().take(heads.rotated()) {
            if let Some(norm) = norm {
                let w = if head < heads.heads { norm.wq } else { norm.wk };
                y.copy_from_slice(&crate::rmsnorm::reference::forward(y, w, norm.eps).y);
            }
            for i in 0..half {
                let (sin, cos) = (f64::from(*position) * inv_freq[i]).sin_cos();
                let (a, b) = (y[i], y[i + half]);
                y[i] = attention_factor * (a * cos - b * sin);
                y[i + half] = attention_factor * (b * cos + a * sin);
            }
        }
    }
    y
}

/// Gradients of the inputs of [`forward`].
#[derive(Clone, Debug)]
pub struct Gradients {
    /// (rows, (H+2KV)·D).
    pub dx: Vec<f64>,
    /// (D); empty without a norm.
    pub dwq: Vec<f64>,
    /// (D); empty without a norm.
    pub dwk: Vec<f64>,
}

/// From the gradient of the result and the input of [`forward`].
#[must_use]
pub fn backward(
    dy: &[f64],
    x: &[f64],
    positions: &[i32],
    inv_freq: &[f64],
    attention_factor: f64,
    norm: Option<Norm<'_>>,
    heads: Heads,
) -> Gradients {
    let (d, half, width) = (heads.head_dim, heads.head_dim / 2, heads.width());
    let weights = if norm.is_some() { d } else { 0 };
    let mut g = Gradients {
        dx: dy.to_vec(),
        dwq: vec![0.0; weights],
        dwk: vec![0.0; weights],
    };
    for (row, position) in positions.iter().enumerate() {
        for head in 0..heads.rotated() {
            let at = row * width + head * d;
            let dx = &mut g.dx[at..at + d];
            for i in 0..half {
                let (sin, cos) = (f64::from(*position) * inv_freq[i]).sin_cos();
                let (a, b) = (dx[i], dx[i + half]);
                dx[i] = attention_factor * (a * cos + b * sin);
                dx[i + half] = attention_factor * (b * cos - a * sin);
            }
            let Some(norm) = norm else { continue };
            let query = head < heads.heads;
            let w = if query { norm.wq } else { norm.wk };
            let x = &x[at..at + d];
            let rstd = crate::rmsnorm::reference::forward(x, w, norm.eps).rstd;
            let back = crate::rmsnorm::reference::backward(dx, x, &rstd, w);
            dx.copy_from_slice(&back.dx);
            let dw = if query { &mut g.dwq } else { &mut g.dwk };
            dw.iter_mut()
                .zip(back.dw)
                .for_each(|(total, dw)| *total += dw);
        }
    }
    g
}
