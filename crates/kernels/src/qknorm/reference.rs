//! Norms of all queries and of all keys, in plain `f64`.

use super::Norm;
use crate::rmsnorm::reference as rms;

/// The parts of a row that are normed, each with its weight, and its values.
fn cut(row: &[f64], d: Norm) -> [&[f64]; 3] {
    let [queries, keys] = d.widths();
    [
        &row[..queries],
        &row[queries..queries + keys],
        &row[queries + keys..],
    ]
}

/// The projection with queries and keys normed.
#[must_use]
pub fn forward(x: &[f64], wq: &[f64], wk: &[f64], d: Norm) -> Vec<f64> {
    let mut y = Vec::new();
    for row in x.chunks_exact(d.heads.width()) {
        let [q, k, v] = cut(row, d);
        y.extend(rms::forward(q, wq, f64::from(d.eps)).y);
        y.extend(rms::forward(k, wk, f64::from(d.eps)).y);
        y.extend(v);
    }
    y
}

/// Gradients of what [`forward`] reads.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// Of the projection.
    pub dx: Vec<f64>,
    /// Of the queries' weight.
    pub dwq: Vec<f64>,
    /// Of the keys' weight.
    pub dwk: Vec<f64>,
}

/// From the gradient of the result.
#[must_use]
pub fn backward(dy: &[f64], x: &[f64], wq: &[f64], wk: &[f64], d: Norm) -> Gradients {
    let mut g = Gradients {
        dx: Vec::new(),
        dwq: vec![0.0; wq.len()],
        dwk: vec![0.0; wk.len()],
    };
    let width = d.heads.width();
    for (dy, x) in dy.chunks_exact(width).zip(x.chunks_exact(width)) {
        let ([dq, dk, dv], [q, k, _]) = (cut(dy, d), cut(x, d));
        for (dy, x, w, dw) in [(dq, q, wq, &mut g.dwq), (dk, k, wk, &mut g.dwk)] {
            let rstd = rms::forward(x, w, f64::from(d.eps)).rstd;
            let part = rms::backward(dy, x, &rstd, w);
            g.dx.extend(part.dx);
            dw.iter_mut().zip(part.dw).for_each(|(a, b)| *a += b);
        }
        g.dx.extend(dv);
    }
    g
}
