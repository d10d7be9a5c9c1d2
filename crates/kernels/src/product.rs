//! Matrix products of any two stored operands: the engine under `matmul`, `head` and `attention`.
//!
//! The `gemm` crate multiplies `f32` near a core's peak but knows no bf16, so bf16 operands are
//! widened to `f32` panels in the workspace first. A panel element is used for hundreds of
//! multiplications, so widening costs a few percent. The output is cut into tiles by shape; a tile
//! is one single-threaded product, tiles run in parallel: bits cannot depend on threads.

use std::cell::RefCell;

use gemm::Parallelism;
use lowtide_device::{Dst, Src};
use rayon::prelude::*;

use crate::number::{self, Number};

/// A row-major `f32` matrix, or its transpose, by strides.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    /// From the first element to the end of what may be read.
    pub data: &'a [f32],
    /// Distance of rows.
    pub rs: usize,
    /// Distance of columns.
    pub cs: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `stride` numbers, one after the other.
    pub(crate) fn rows(data: &'a [f32], stride: usize) -> Self {
        Self {
            data,
            rs: stride,
            cs: 1,
        }
    }

    /// The transpose of the same memory: strides change places, nothing is copied.
    pub(crate) fn t(self) -> Self {
        Self {
            data: self.data,
            rs: self.cs,
            cs: self.rs,
        }
    }

    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.rs + (cols - 1) * self.cs < self.data.len()
    }
}

/// `c = a·b`, or `c += a·b` when `add`; `c` is (m, n) with rows `stride` apart, `a` is (m, k), `b`
/// is (k, n). On the calling thread.
pub(crate) fn gemm(
    c: &mut [f32],
    stride: usize,
    (m, n, k): (usize, usize, usize),
    a: Matrix<'_>,
    b: Matrix<'_>,
    add: bool,
) {
    assert!(
        a.holds(m, k) && b.holds(k, n),
        "operands of a product ({m}, {n}, {k})"
    );
    assert!(
        m == 0 || n == 0 || (m - 1) * stride + n <= c.len(),
        "result of a product ({m}, {n})"
    );
    // SAFETY: every element of the three matrices lies inside its slice (asserted above), and `c`
    // is borrowed mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            stride as isize,
            add,
            a.data.as_ptr(),
            a.cs as isize,
            a.rs as isize,
            b.data.as_ptr(),
            b.cs as isize,
            b.rs as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// One operand of [`product`]: a matrix in memory, row-major with no gaps.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    /// Bytes of the whole matrix; numbers of type E.
    pub view: Src<'a>,
    /// Numbers of a row in memory.
    pub stride: usize,
    /// Whether a row in memory runs over the inner dimension (`x` and `w` of `x·wᵀ`) or over an
    /// output dimension (both operands of `dyᵀ·x`).
    pub along_inner: bool,
}

/// Longest inner run of one widened panel.
const INNER: usize = 2048;
/// Numbers of one widened panel: 8 MiB.
const PANEL: usize = 1 << 21;
/// Largest tile of the output.
const TILE: usize = 256;

/// How a product is cut, by its shape alone.
#[derive(Clone, Copy, Debug)]
struct Cuts {
    /// Inner numbers of the whole product.
    k: usize,
    /// Widened at once: rows of a, columns of b, inner numbers.
    block: (usize, usize, usize),
    tile: (usize, usize),
}

impl Cuts {
    /// `widened`: operands pass through panels, so blocks are bounded.
    fn new(m: usize, n: usize, k: usize, widened: bool) -> Self {
        let block = if widened {
            let inner = k.div_ceil(k.div_ceil(INNER).max(1)).max(1);
            let outer = PANEL / inner / TILE * TILE;
            (m.min(outer), n.min(outer), inner)
        } else {
            (m, n, k.max(1))
        };
        let tile = tile(block.0, block.1);
        Self { k, block, tile }
    }

    fn inner_blocks(&self) -> usize {
        self.k.div_ceil(self.block.2).max(1)
    }

    /// Numbers of the panel of a, of the panel of b, and of partial products.
    fn panels(&self) -> [usize; 3] {
        let (bm, bn, bk) = self.block;
        let slots = bm.div_ceil(self.tile.0) * bn.div_ceil(self.tile.1);
        let partial = if self.inner_blocks() > 1 {
            slots * self.tile.0 * self.tile.1
        } else {
            0
        };
        [bm * bk, bn * bk, partial]
    }
}

/// Large tiles multiply faster, sixteen or more of them keep threads busy.
fn tile(m: usize, n: usize) -> (usize, usize) {
    let (mut tm, mut tn) = (TILE, TILE);
    while m.div_ceil(tm) * n.div_ceil(tn) < 16 && tm.max(tn) > 64 {
        if tm >= tn {
            tm /= 2;
        } else {
            tn /= 2;
        }
    }
    (tm.min(m.max(1)), tn.min(n.max(1)))
}

/// Bytes of scratch that [`product`] needs for an (m, n) result over `k` when it has to widen.
pub(crate) fn workspace(m: usize, n: usize, k: usize) -> usize {
    Cuts::new(m, n, k, true)
        .panels()
        .iter()
        .map(|n| n.next_multiple_of(64) * 4)
        .sum()
}

/// Bytes of scratch that [`product`] needs at most for results and inner runs of up to these sizes: how many rows there
/// are is not known yet.
pub(crate) fn workspace_at_most(m: usize, n: usize, k: usize) -> usize {
    let panel = |outer: usize| PANEL.min(outer * k.min(INNER));
    // Several inner blocks have more than INNER / 2 numbers each, so that outer ones are shorter than INNER.
    let edge = |outer: usize| outer.min(INNER).next_multiple_of(TILE);
    let partial = if k > INNER { edge(m) * edge(n) } else { 0 };
    let each = [panel(m), panel(n), partial];
    each.iter().map(|n| n.next_multiple_of(64) * 4).sum()
}

thread_local! {
    /// A tile of the result, at most 256 KiB.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends `len` numbers of this thread's scratch memory (garbage on entry).
pub(crate) fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        work(&mut scratch[..len])
    })
}

/// A finished tile of the result: rows and columns from `(i, j)`, `stride` between its rows.
pub(crate) struct Tile<'a> {
    /// First row of the result that it holds.
    pub i: usize,
    /// First column of the result that it holds.
    pub j: usize,
    /// How many columns it holds, and numbers between its rows.
    pub cols: usize,
    /// Row-major, `cols` a row.
    pub data: &'a [f32],
}

/// Calls `finish` once for every tile of `a·b`, an (m, n) matrix, `k` inner numbers, on this
/// queue's threads.
pub(crate) fn product<E: Number>(
    a: Operand<'_>,
    b: Operand<'_>,
    (m, n, k): (usize, usize, usize),
    ws: Dst<'_>,
    finish: impl Fn(Tile<'_>) + Sync,
) {
    let widened = size_of::<E>() != size_of::<f32>();
    let cuts = Cuts::new(m, n, k, widened);
    if !widened {
        let block = Block {
            i: 0..m,
            j: 0..n,
            p: 0..k,
        };
        let (x, y) = (a.view.read::<f32>(), b.view.read::<f32>());
        tiles(
            &cuts,
            &block,
            matrix(a, x, a.stride),
            matrix(b, y, b.stride).t(),
            None,
            &finish,
        );
        return;
    }
    let [a_len, b_len, partial_len] = cuts.panels();
    let bytes = |len: usize| len.next_multiple_of(64) * 4;
    let (a_panel, rest) = ws.split_at(bytes(a_len));
    let (b_panel, rest) = rest.split_at(bytes(b_len));
    let mut a_panel = a_panel.part(0, a_len * 4);
    let mut b_panel = b_panel.part(0, b_len * 4);
    let partial = rest.part(0, partial_len * 4);
    let (bm, bn, bk) = cuts.block;
    for i in (0..m).step_by(bm) {
        for j in (0..n).step_by(bn) {
            for p in (0..k.max(1)).step_by(bk) {
                let block = Block {
                    i: i..m.min(i + bm),
                    j: j..n.min(j + bn),
                    p: p..k.min(p + bk),
                };
                if j == 0 || cuts.inner_blocks() > 1 {
                    widen_panel::<E>(a_panel.again(), a, block.i.clone(), block.p.clone());
                }
                widen_panel::<E>(b_panel.again(), b, block.j.clone(), block.p.clone());
                let (x, y) = (a_panel.src().read::<f32>(), b_panel.src().read::<f32>());
                let inner = block.p.len();
                let x = matrix(a, x, if a.along_inner { inner } else { block.i.len() });
                let y = matrix(b, y, if b.along_inner { inner } else { block.j.len() });
                let partial = (cuts.inner_blocks() > 1).then_some(&partial);
                tiles(&cuts, &block, x, y.t(), partial, &finish);
            }
        }
    }
}

/// What is multiplied at once: rows, columns and inner numbers of the whole product.
struct Block {
    i: std::ops::Range<usize>,
    j: std::ops::Range<usize>,
    p: std::ops::Range<usize>,
}

/// The operand as (output, inner).
fn matrix<'a>(operand: Operand<'_>, data: &'a [f32], stride: usize) -> Matrix<'a> {
    let rows = Matrix::rows(data, stride);
    if operand.along_inner { rows } else { rows.t() }
}

/// Widens `outer × inner` of an operand to `panel`, rows in memory order and without gaps.
fn widen_panel<E: Number>(
    panel: Dst<'_>,
    from: Operand<'_>,
    outer: std::ops::Range<usize>,
    inner: std::ops::Range<usize>,
) {
    let (rows, cols) = if from.along_inner {
        (outer, inner)
    } else {
        (inner, outer)
    };
    crate::rows::each(rows.len(), cols.len(), |first, end| {
        for row in first..end {
            let at = (rows.start + row) * from.stride + cols.start;
            let source = number::read::<E>(from.view, at, cols.len());
            // SAFETY: each row of the panel is one thread's.
            let to = unsafe { number::write(&panel, row * cols.len(), cols.len()) };
            number::widen(to, source);
        }
    });
}

/// All tiles of one block. With `partial`, a tile's sum lies there until its last inner block.
fn tiles(
    cuts: &Cuts,
    block: &Block,
    a: Matrix<'_>,
    b: Matrix<'_>,
    partial: Option<&Dst<'_>>,
    finish: &(impl Fn(Tile<'_>) + Sync),
) {
    let (tm, tn) = cuts.tile;
    let across = block.j.len().div_ceil(tn);
    let last = block.p.end == cuts.k;
    (0..block.i.len().div_ceil(tm) * across)
        .into_par_iter()
        .for_each(|t| {
            let (i, j) = (t / across * tm, t % across * tn);
            let (rows, cols) = (tm.min(block.i.len() - i), tn.min(block.j.len() - j));
            let a = Matrix {
                data: &a.data[(i * a.rs).min(a.data.len())..],
                ..a
            };
            let b = Matrix {
                data: &b.data[(j * b.cs).min(b.data.len())..],
                ..b
            };
            let shape = (rows, cols, block.p.len());
            let done = |data: &[f32]| {
                finish(Tile {
                    i: block.i.start + i,
                    j: block.j.start + j,
                    cols,
                    data,
                });
            };
            match partial {
                None => with_scratch(rows * cols, |data| {
                    gemm(data, cols, shape, a, b, false);
                    done(data);
                }),
                Some(partial) => {
                    // SAFETY: each tile has a slot of its own.
                    let data = unsafe { number::write(partial, t * tm * tn, rows * cols) };
                    gemm(data, cols, shape, a, b, block.p.start > 0);
                    if last {
                        done(data);
                    }
                }
            }
        });
}
