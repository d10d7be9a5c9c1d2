//! Adafactor on a CUDA device: six launches a matrix, one a vector, in the order of the stream.
//!
//! Bound: 14 bytes a number over the memory's rate. The factor of clipping and the parts of the norm are read
//! once, by the first launch, which leaves what they say in the scratch.

use lowtide_device::cuda::{self, Launch, Source};
use lowtide_device::{Dst, Src};
use lowtide_workload::{Dtype, Factoring};

use super::{Arrays, Constants, Tensor};
use crate::cuda::define;
use crate::number::size;
use crate::update::cuda::HEADERS;

static SOURCE: Source = Source {
    name: "adafactor.cu",
    text: include_str!("adafactor.cu"),
    headers: HEADERS,
};

/// Threads of a block, as in the source.
const THREADS: u32 = 256;
/// Warps of a block, as in the source.
const WARPS: usize = 8;
/// Threads of a kernel that is one block, as in the source.
const ALONE: u32 = 1024;

/// The kernels for a piece's types.
#[derive(Clone, Copy)]
struct Kernels<'a> {
    q: &'a cuda::Queue,
    precision: Dtype,
    gradient: Dtype,
}

impl<'a> Kernels<'a> {
    fn get(self, name: &'static str) -> Launch<'a> {
        self.q.kernel(&SOURCE, define(self.precision), name)
    }

    /// Of the names for gradients in bf16 and in f32.
    fn by_gradient(self, [bf16, f32]: [&'static str; 2]) -> Launch<'a> {
        match self.gradient {
            Dtype::Bf16 => self.get(bf16),
            Dtype::F32 => self.get(f32),
        }
    }
}

/// What a tensor has of its piece's arrays and of the scratch.
struct Own<'a> {
    weight: Dst<'a>,
    remainder: Option<Dst<'a>>,
    row: Dst<'a>,
    column: Dst<'a>,
    grad: Src<'a>,
    words: Dst<'a>,
    by_band: Dst<'a>,
    by_tile: Dst<'a>,
    r: Dst<'a>,
    c: Dst<'a>,
}

/// The step; in the stream when the call returns. `clip` (three f64) has the factor of clipping and may stop the
/// step; so may a number in `parts` that is not finite.
pub(super) fn step(
    q: &cuda::Queue,
    tensors: &[Tensor],
    mut a: Arrays<'_>,
    c: Constants,
    clip: Src<'_>,
    parts: Option<Src<'_>>,
) {
    let kernels = Kernels {
        q,
        precision: a.precision,
        gradient: a.gradient_type,
    };
    let words = size_of::<[u32; 3]>();
    launch(
        kernels
            .get("start")
            .grid(1, 1, 1)
            .block(THREADS)
            .arg(&a.scratch.lend(0, words))
            .arg(clip)
            .arg(parts)
            .arg(parts.map_or(0, |p| p.bytes() / size_of::<f64>())),
    );
    for t in tensors {
        let own = Own::of(t, &mut a);
        let keep = if t.decay { c.keep } else { 1.0 };
        match t.is_vector() {
            true => vector(kernels, t, &own, &c, keep),
            false => matrix(kernels, t, &own, &c, keep),
        }
    }
}

impl<'a> Own<'a> {
    fn of(t: &Tensor, a: &'a mut Arrays<'_>) -> Self {
        let of = |dtype: Dtype| (t.first * size(dtype), t.numbers * size(dtype));
        let (at, bytes) = of(a.gradient_type);
        let grad = a.gradient.part(at, bytes);
        let (at, bytes) = of(a.precision);
        let columns = if t.is_vector() { 0 } else { t.cols() };
        let (words, rest) = a.scratch.again().split_at(Factoring::WORDS as usize);
        let mut rest = Some(rest);
        let [_, sizes @ ..] = t.shape.parts();
        let [by_band, by_tile, r, c] = sizes.map(|bytes| {
            let (part, behind) = rest.take().expect("put back").split_at(bytes as usize);
            rest = Some(behind);
            part
        });
        let remainder = a.remainder.as_mut();
        Self {
            weight: a.weight.lend(at, bytes),
            remainder: remainder.map(|rem| rem.lend(2 * t.first, 2 * t.numbers)),
            row: a.rows.lend(4 * t.row, 4 * t.rows()),
            column: a.columns.lend(4 * t.column, 4 * columns),
            grad,
            words,
            by_band,
            by_tile,
            r,
            c,
        }
    }
}

fn vector(kernels: Kernels<'_>, t: &Tensor, own: &Own<'_>, c: &Constants, keep: f32) {
    launch(
        kernels
            .by_gradient(["vector_bf16", "vector_f32"])
            .grid(1, 1, 1)
            .block(ALONE)
            .arg(&own.weight)
            .arg(own.remainder.as_ref())
            .arg(&own.row)
            .arg(own.grad)
            .arg(t.numbers)
            .arg(c.eps)
            .arg(c.weight)
            .arg(keep)
            .arg(c.rate)
            .arg(c.threshold)
            .arg(&own.words)
            .arg(&own.by_band),
    );
}

fn matrix(kernels: Kernels<'_>, t: &Tensor, own: &Own<'_>, c: &Constants, keep: f32) {
    let (rows, cols) = (t.rows(), t.cols());
    let blocks = ((t.shape.bands() * t.shape.tiles()) as usize).div_ceil(WARPS);
    let tiled = |names| kernels.by_gradient(names).grid(blocks, 1, 1).block(THREADS);
    let alone = |name| kernels.get(name).grid(1, 1, 1).block(ALONE);
    launch(
        tiled(["sums_bf16", "sums_f32"])
            .arg(own.grad)
            .arg(rows)
            .arg(cols)
            .arg(c.eps)
            .arg(&own.words)
            .arg(&own.by_band)
            .arg(&own.by_tile),
    );
    let both = cols.div_ceil(32) + rows.div_ceil(THREADS as usize);
    let means = kernels.get("means").grid(both, 1, 1).block(THREADS);
    launch(
        means
            .arg(&own.row)
            .arg(&own.column)
            .arg(rows)
            .arg(cols)
            .arg(c.weight)
            .arg(&own.words)
            .arg(&own.by_band)
            .arg(&own.by_tile)
            .arg(&own.c),
    );
    let spread = alone("spread").arg(&own.row).arg(rows);
    launch(spread.arg(&own.words).arg(&own.r));
    launch(
        tiled(["squares_bf16", "squares_f32"])
            .arg(own.grad)
            .arg(rows)
            .arg(cols)
            .arg(&own.words)
            .arg(&own.r)
            .arg(&own.c)
            .arg(&own.by_tile),
    );
    let size = alone("size").arg(rows).arg(cols).arg(c.rate);
    launch(size.arg(c.threshold).arg(&own.words).arg(&own.by_tile));
    launch(
        tiled(["apply_bf16", "apply_f32"])
            .arg(&own.weight)
            .arg(own.remainder.as_ref())
            .arg(own.grad)
            .arg(rows)
            .arg(cols)
            .arg(keep)
            .arg(&own.words)
            .arg(&own.r)
            .arg(&own.c),
    );
}

fn launch(launch: Launch<'_>) {
    // SAFETY: the kernel's own arguments, of the sizes that the operation checked (`crate::cuda`).
    unsafe { launch.launch() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_has_the_sizes_of_the_table() {
        for (name, value) in [
            ("BAND", Factoring::BAND),
            ("COLUMNS", Factoring::TILE),
            ("RUN", Factoring::RUN),
            ("WARPS", WARPS as u64),
            ("ALONE", u64::from(ALONE)),
        ] {
            let line = format!("const int {name} = {value};");
            assert!(SOURCE.text.contains(&line), "{line}");
        }
    }
}
