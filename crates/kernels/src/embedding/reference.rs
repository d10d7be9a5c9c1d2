//! The embedding in plain `f64`.

/// `w[token] + wpe[position]`; without positions both `wpe` and `positions` are empty.
#[must_use]
pub fn forward(tokens: &[i32], w: &[f64], wpe: &[f64], positions: &[i32], c: usize) -> Vec<f64> {
    let mut y = Vec::new();
    for (row, token) in tokens.iter().enumerate() {
        for i in 0..c {
            let position = positions.get(row).map_or(0.0, |p| wpe[*p as usize * c + i]);
            y.push(w[*token as usize * c + i] + position);
        }
    }
    y
}

/// The gradient of a table of `vocab` rows.
#[must_use]
pub fn backward(dy: &[f64], tokens: &[i32], c: usize, vocab: usize) -> Vec<f64> {
    let mut dw = vec![0.0; vocab * c];
    for (dy, token) in dy.chunks_exact(c).zip(tokens) {
        for (dw, dy) in dw[*token as usize * c..][..c].iter_mut().zip(dy) {
            *dw += dy;
        }
    }
    dw
}
