//! Adafactor on either device (Shazeer and Stern 2018, arXiv 1804.04235, algorithm 4): the second moment of a
//! matrix as one number a row and one a column, and updates whose root mean square is bounded.
//!
//! With bf16 weights and gradients it moves **14 bytes a parameter**: weight 2 read + 2 written, remainder 2 + 2,
//! gradient 2 read three times (for the sums, for the update's size, for the update). State is a number a row
//! and one a column.
//!
//! # The formula
//!
//! That of `transformers.optimization.Adafactor` with `relative_step` and `scale_parameter` false and without
//! `beta1`, with decay as here everywhere (before the step, of the old weight). By the rules of [`crate::update`],
//! of a matrix with gradient `g · grad_scale`, R rows and C columns, where Σ is a sum in the order below:
//!
//! ```text
//! s = g · g + eps                                      each f32, rounded twice
//! a = f32(f64(Σ s over row i) / C)                     row_i = fma(w, a - row_i, row_i)
//! a = f32(f64(Σ s over column j) / R)                  col_j = fma(w, a - col_j, col_j)
//! r_i = f32(sqrt(mean / row_i)),  mean = Σ row / R     in f64
//! c_j = f32(sqrt(1 / col_j))                           in f64
//! u = g · (r_i · c_j)
//! size = sqrt(Σ u² / (R · C)) / clip_threshold         in f64
//! p = fma(f32(-lr / max(1, size)), u, p · keep)        p · 1 without decay
//! ```
//!
//! `w` is `step` to the power of `decay_rate`, which is negative: 1 at the first step, so that the first moment
//! is the first square. Of a vector `row_i = fma(w, s - row_i, row_i)` has an entry for each number, and
//! `u = g · f32(sqrt(1 / row_i))`. A size that is no number makes all weights of the tensor none: nothing hides.
//!
//! # Order of sums
//!
//! Sums have an order by the tensor's shape alone ([`Factoring`]), the same on host and device, so neither
//! threads nor places nor pieces show:
//!
//! - of a row: tiles of 128 columns are folded by halves in f32 (a column that is not there counts as 0), tiles
//!   add up in f64, in rising order;
//! - of a column: bands of 64 rows add up in f32, in rising order; bands in f64, in 8 lanes (band modulo 8),
//!   which are folded by halves;
//! - of u²: each column of a tile adds up over a band in f32, in rising order, the tile is folded by halves; the
//!   tile's sums, band by band, add up in f64 in 1024 lanes, folded by halves in groups of 32, then the groups;
//!   the sum of all rows likewise;
//! - of a vector's u²: runs of 1024 numbers are 8 rows of a tile.
//!
//! An update needs its tensors whole: a segment is one of the file's tensors, which is smaller than a parameter
//! where several are fused in one. A piece has whole parameters, so no sum leaves a piece.

mod cpu;
mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use lowtide_device::{Dst, Queue, Src};
use lowtide_workload::{Dtype, Factoring, Param};

use crate::number::{expect, size};
use crate::update::elementwise::Path;
use crate::update::{How, Hyper, Segment, Types, Views, applied};

/// The factors of the formula, the same for every tensor of a step, on every device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Constants {
    /// `grad_scale`.
    pub grad_scale: f32,
    /// Added to squares.
    pub eps: f32,
    /// What a new square weighs.
    pub weight: f32,
    /// 1 - lr · weight decay.
    pub keep: f32,
    /// Learning rate, in f64: clipping of the update divides it before it is rounded to f32.
    pub rate: f64,
    /// Least root mean square that is made smaller.
    pub threshold: f64,
}

impl Constants {
    /// The factors of a step, computed in f64 and rounded to f32 once.
    ///
    /// # Panics
    /// When the step is 0.
    pub(crate) fn of(h: &Hyper) -> Self {
        assert!(h.step > 0, "steps count from 1");
        // A library of the platform would have a `pow` of its own.
        let weight = libm::pow(h.step as f64, f64::from(h.decay_rate));
        Self {
            grad_scale: h.grad_scale,
            eps: h.eps,
            weight: weight as f32,
            keep: (1.0 - f64::from(h.lr) * f64::from(h.weight_decay)) as f32,
            rate: f64::from(h.lr),
            threshold: f64::from(h.clip_threshold),
        }
    }
}

/// A tensor inside a piece.
#[derive(Clone, Copy, Debug)]
struct Tensor {
    /// Its first number in the piece, and how many it has.
    first: usize,
    numbers: usize,
    shape: Factoring,
    /// Its first entries in the arrays of rows and columns.
    row: usize,
    column: usize,
    decay: bool,
}

impl Tensor {
    fn rows(&self) -> usize {
        self.shape.rows as usize
    }

    fn cols(&self) -> usize {
        self.shape.cols as usize
    }

    fn is_vector(&self) -> bool {
        self.shape.cols == 1
    }
}

/// The arrays of a piece.
struct Arrays<'a> {
    weight: Dst<'a>,
    remainder: Option<Dst<'a>>,
    rows: Dst<'a>,
    columns: Dst<'a>,
    gradient: Src<'a>,
    scratch: Dst<'a>,
    gradient_type: Dtype,
    precision: Dtype,
}

/// The tensors of a piece and its arrays.
///
/// # Panics
/// When segments are no tensors, overlap or end outside the piece, or an operand is too short.
fn cut<'a>(
    types: Types,
    elements: u64,
    views: Views<'a>,
    segments: &[Segment],
) -> (Vec<Tensor>, Arrays<'a>) {
    let (mut tensors, mut params) = (Vec::new(), Vec::new());
    let (mut end, mut row, mut column) = (0, 0, 0);
    for s in segments.iter().filter(|s| s.elements > 0) {
        let (rows, cols) = (s.elements / s.cols, s.cols);
        assert!(
            rows * cols == s.elements && s.offset >= end,
            "segment {s:?} after one that ends at {end}"
        );
        end = s.offset + s.elements;
        let tensor = Tensor {
            first: s.offset,
            numbers: s.elements,
            shape: Factoring {
                rows: rows as u64,
                cols: cols as u64,
            },
            row,
            column,
            decay: s.decay,
        };
        tensors.extend(s.updated.then_some(tensor));
        row += rows;
        column += if cols == 1 { 0 } else { cols };
        params.push(Param {
            elements: s.elements as u64,
            cols: cols as u64,
            ..Param::sample(0)
        });
    }
    let Types {
        optimizer,
        precision,
        gradient,
    } = types;
    assert!(end as u64 <= elements, "segments to {end} of {elements}");
    let whole = |dtype: Dtype| elements as usize * size(dtype);
    let mut rest = Some(views.state);
    let arrays = optimizer.layout(precision, elements, &params);
    let mut arrays = arrays.into_iter().map(|a| {
        let (array, behind) = rest.take().expect("put back").split_at(a.bytes as usize);
        rest = Some(behind);
        array
    });
    let mut array = || arrays.next().expect("the table's arrays");
    let arrays = Arrays {
        weight: views.weight.part(0, whole(precision)),
        remainder: (precision == Dtype::Bf16).then(&mut array),
        rows: array(),
        columns: array(),
        gradient: views.gradient.part(0, whole(gradient)),
        scratch: views.scratch.expect("scratch of a shaped optimizer"),
        gradient_type: gradient,
        precision,
    };
    let scratch = optimizer.scratch_bytes(&params) as usize;
    assert!(
        arrays.scratch.bytes() >= scratch,
        "scratch of {} bytes, need {scratch}",
        arrays.scratch.bytes()
    );
    (tensors, arrays)
}

/// A step over the tensors of a piece; each segment is one, whole.
///
/// # Panics
/// As [`crate::update::step`]; when a segment has no whole rows, or scratch is missing or too short.
pub(crate) fn step(
    q: &Queue,
    (types, elements): (Types, u64),
    views: Views<'_>,
    segments: &[Segment],
    c: Constants,
    how: How<'_>,
) {
    let (tensors, arrays) = cut(types, elements, views, segments);
    match (how, q.cuda()) {
        (How::Clipped(clip, parts), Some(q)) => {
            expect("clip", clip, 3, size_of::<f64>());
            cuda::step(q, &tensors, arrays, c, clip, parts);
        }
        (How::Clipped(clip, parts), None) => {
            if let Some(grad_scale) = applied(clip, parts) {
                let c = Constants { grad_scale, ..c };
                cpu::step(Path::best(), q, &tensors, arrays, c);
            }
        }
        (How::Path(path), _) => cpu::step(path, q, &tensors, arrays, c),
    }
}
