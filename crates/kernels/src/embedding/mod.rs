//! Token (and position) embedding: rows of a table by index, and the gradient of the table.
//!
//! Bound: bytes over memory rate; the gradient of a large table is mostly the zeros and sums of
//! the table itself.

mod cpu;
pub mod reference;

use lowtide_device::{Make, Queue, View};
use lowtide_workload::Dtype;

use crate::number::{expect, expect_workspace, size, with_dtype};

/// Bytes of scratch of [`backward`]: the rows sorted by token.
#[must_use]
pub fn workspace(rows: usize, vocab: usize, make: Make) -> usize {
    let _ = make;
    (rows + vocab + 1) * size_of::<u32>()
}

/// `y = w[token]`, plus `wpe[position]` where `positions` is given: (wpe, position of each row).
///
/// `y` is E (rows, C), `tokens` and the positions are i32 (rows), `w` is E (V, C), `wpe` is E
/// (P, C). The sum is rounded once. Panics at a token or position outside its table.
pub fn forward(
    q: &Queue,
    y: View<'_>,
    tokens: View<'_>,
    w: View<'_>,
    positions: Option<(View<'_>, View<'_>)>,
    rows: usize,
    c: usize,
    vocab: usize,
    dtype: Dtype,
) {
    let e = size(dtype);
    expect("y", y, rows * c, e);
    expect("tokens", tokens, rows, size_of::<i32>());
    expect("w", w, vocab * c, e);
    if let Some((_, positions)) = positions {
        expect("positions", positions, rows, size_of::<i32>());
    }
    q.run(|| with_dtype!(dtype, cpu::forward(y, tokens, w, positions, rows, c)));
}

/// `dw[v] (+)= Σ dy` over the rows whose token is v, in the order of rows; `accumulate = false`
/// makes the rest of `dw` zero.
///
/// `dw` is f32 (V, C), `dy` is E (rows, C), `tokens` is i32 (rows). The gradient of a position
/// table is the same with positions for tokens. Panics at a token outside the table.
pub fn backward(
    q: &Queue,
    dw: View<'_>,
    dy: View<'_>,
    tokens: View<'_>,
    rows: usize,
    c: usize,
    vocab: usize,
    accumulate: bool,
    dtype: Dtype,
    ws: View<'_>,
) {
    expect("dw", dw, vocab * c, size_of::<f32>());
    expect("dy", dy, rows * c, size(dtype));
    expect("tokens", tokens, rows, size_of::<i32>());
    expect_workspace(ws, workspace(rows, vocab, q.make()));
    q.run(|| {
        with_dtype!(
            dtype,
            cpu::backward(dw, dy, tokens, (rows, c, vocab), accumulate, ws)
        )
    });
}

#[cfg(test)]
mod tests;
