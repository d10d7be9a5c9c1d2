//! Linear layers in plain `f64`.

use super::Dims;

/// `x·wᵀ + bias + residual`; missing operands are empty.
#[must_use]
pub fn forward(x: &[f64], w: &[f64], bias: &[f64], residual: &[f64], d: Dims) -> Vec<f64> {
    let mut y = vec![0.0; d.rows * d.cols];
    for i in 0..d.rows {
        for j in 0..d.cols {
            let mut sum = bias.get(j).copied().unwrap_or(0.0);
            sum += residual.get(i * d.cols + j).copied().unwrap_or(0.0);
            for p in 0..d.inner {
                sum += x[i * d.inner + p] * w[j * d.inner + p];
            }
            y[i * d.cols + j] = sum;
        }
    }
    y
}

/// Gradients of the inputs of [`forward`].
#[derive(Clone, Debug)]
pub struct Gradients {
    /// (m, k).
    pub dx: Vec<f64>,
    /// (n, k).
    pub dw: Vec<f64>,
}

/// `dy·w` and `dyᵀ·x`.
#[must_use]
pub fn backward(dy: &[f64], x: &[f64], w: &[f64], d: Dims) -> Gradients {
    let mut g = Gradients {
        dx: vec![0.0; d.rows * d.inner],
        dw: vec![0.0; d.cols * d.inner],
    };
    for i in 0..d.rows {
        for j in 0..d.cols {
            let dy = dy[i * d.cols + j];
            for p in 0..d.inner {
                g.dx[i * d.inner + p] += dy * w[j * d.inner + p];
                g.dw[j * d.inner + p] += dy * x[i * d.inner + p];
            }
        }
    }
    g
}

/// The column sums of `dy`, rows of `cols` numbers: the gradient of a bias.
#[must_use]
pub fn backward_bias(dy: &[f64], cols: usize) -> Vec<f64> {
    let mut sums = vec![0.0; cols];
    for row in dy.chunks_exact(cols) {
        sums.iter_mut().zip(row).for_each(|(sum, dy)| *sum += dy);
    }
    sums
}
