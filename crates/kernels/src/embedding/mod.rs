//! Token (and position) embedding: rows of a table by index, and the gradient of the table.
//!
//! Bound: bytes over memory rate; the gradient of a large table is mostly the zeros and sums of
//! the table itself.

mod cpu;
mod cuda;
pub mod reference;

use lowtide_device::{Dst, Make, Queue, Src};
use lowtide_workload::Dtype;

use crate::number::{expect, expect_workspace, size, with_dtype};

/// Bytes of scratch of [`backward`]: the rows sorted by token, and where each token's are.
#[must_use]
pub fn workspace(rows: usize, vocab: usize, make: Make) -> usize {
    match make {
        Make::Cpu => (rows + vocab + 1) * size_of::<u32>(),
        Make::Cuda => cuda::workspace(rows, vocab),
    }
}

/// `y = w[token]`, plus `wpe[position]` where `positions` is given: (wpe, position of each row).
///
/// `y` is E (rows, C), `tokens` and the positions are i32 (rows), `w` is E (V, C), `wpe` is E
/// (P, C). The sum is rounded once. A token or position outside its table panics; on a CUDA
/// queue it makes its row of `y` NaN. Finished, or in the stream of a CUDA queue, when the call
/// returns.
pub fn forward(
    q: &Queue,
    y: Dst<'_>,
    tokens: Src<'_>,
    w: Src<'_>,
    positions: Option<(Src<'_>, Src<'_>)>,
    rows: usize,
    c: usize,
    vocab: usize,
    dtype: Dtype,
) {
    let e = size(dtype);
    expect("y", &y, rows * c, e);
    expect("tokens", tokens, rows, size_of::<i32>());
    expect("w", w, vocab * c, e);
    if let Some((_, positions)) = positions {
        expect("positions", positions, rows, size_of::<i32>());
    }
    if let Some(q) = q.cuda() {
        return cuda::forward(q, y, tokens, w, positions, (rows, c, vocab), dtype);
    }
    q.run(|| with_dtype!(dtype, cpu::forward(y, tokens, w, positions, rows, c)));
}

/// `dw[v] (+)= Σ dy` over the rows whose token is v, in the order of rows; `accumulate = false`
/// makes the rest of `dw` zero.
///
/// `dw` is f32 (V, C), `dy` is E (rows, C), `tokens` is i32 (rows). The gradient of a position
/// table is the same with positions for tokens. A token outside the table panics; on a CUDA queue
/// its row counts nowhere. There, a token's rows are summed first and added to `dw` once, and those
/// of a token with more than 32 rows are summed in sixteen runs, which are then added in order.
/// Finished, or in the stream of a CUDA queue, when the call returns.
pub fn backward(
    q: &Queue,
    dw: Dst<'_>,
    dy: Src<'_>,
    tokens: Src<'_>,
    rows: usize,
    c: usize,
    vocab: usize,
    accumulate: bool,
    dtype: Dtype,
    ws: Dst<'_>,
) {
    expect("dw", &dw, vocab * c, size_of::<f32>());
    expect("dy", dy, rows * c, size(dtype));
    expect("tokens", tokens, rows, size_of::<i32>());
    expect_workspace(&ws, workspace(rows, vocab, q.make()));
    if let Some(q) = q.cuda() {
        return cuda::backward(q, dw, dy, tokens, (rows, c, vocab), accumulate, dtype, ws);
    }
    q.run(|| {
        with_dtype!(
            dtype,
            cpu::backward(dw, dy, tokens, (rows, c, vocab), accumulate, ws)
        )
    });
}

#[cfg(test)]
mod tests;
