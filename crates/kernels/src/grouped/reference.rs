//! Grouped products in plain `f64`.

use super::Dims;

/// The expert of each row.
fn experts(offsets: &[i32]) -> Vec<usize> {
    let rows = *offsets.last().expect("one offset more than experts");
    let of = |row: i32| offsets.iter().filter(|&&first| first <= row).count() - 1;
    (0..rows).map(of).collect()
}

/// `x·wₑᵀ`, row by row.
#[must_use]
pub fn forward(x: &[f64], w: &[f64], offsets: &[i32], d: Dims) -> Vec<f64> {
    let (n, k) = (d.cols, d.inner);
    let mut y = vec![0.0; d.routes.sorted() * n];
    for (row, e) in experts(offsets).into_iter().enumerate() {
        for j in 0..n {
            for p in 0..k {
                y[row * n + j] += x[row * k + p] * w[(e * n + j) * k + p];
            }
        }
    }
    y
}

/// Gradients of `x` and `w`.
#[must_use]
pub fn backward(
    dy: &[f64],
    x: &[f64],
    w: &[f64],
    offsets: &[i32],
    d: Dims,
) -> (Vec<f64>, Vec<f64>) {
    let (n, k) = (d.cols, d.inner);
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
    for (row, e) in experts(offsets).into_iter().enumerate() {
        for j in 0..n {
            let dy = dy[row * n + j];
            for p in 0..k {
                dx[row * k + p] += dy * w[(e * n + j) * k + p];
                dw[(e * n + j) * k + p] += dy * x[row * k + p];
            }
        }
    }
    (dx, dw)
}
