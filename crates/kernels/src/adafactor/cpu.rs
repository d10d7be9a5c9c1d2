//! Adafactor on threads: a band of rows, a run of a vector or some columns are one thread's at a time.
//!
//! The loops are plain Rust, compiled for the baseline, for AVX2 with FMA and for AVX-512; the compiler may
//! not reorder, contract or approximate anything in them, so each compilation gives the same bits.

use lowtide_device::{Dst, Queue};
use lowtide_workload::{Dtype, Factoring};
use rayon::prelude::*;

use super::{Arrays, Constants, Tensor};
use crate::number::{self, Number};
use crate::update::elementwise::Path;
use crate::update::{join, split};

const BAND: usize = Factoring::BAND as usize;
const TILE: usize = Factoring::TILE as usize;
const RUN: usize = Factoring::RUN as usize;
/// Lanes of a sum over bands.
const LANES: usize = 8;
/// Columns that a thread sums over bands at a time.
const COLUMNS: usize = 256;

/// The step, on a processor that has the path.
pub(super) fn step(path: Path, q: &Queue, tensors: &[Tensor], arrays: Arrays<'_>, c: Constants) {
    assert!(path.is_available(), "this processor lacks {path:?}");
    match arrays.gradient_type {
        Dtype::Bf16 => on::<u16>(path, q, tensors, arrays, &c),
        Dtype::F32 => on::<f32>(path, q, tensors, arrays, &c),
    }
}

fn on<G: Number>(path: Path, q: &Queue, tensors: &[Tensor], a: Arrays<'_>, c: &Constants) {
    let rows = a.rows.write::<f32>();
    let columns = a.columns.write::<f32>();
    let mut scratch = a.scratch;
    let mut master = match a.remainder {
        Some(rem) => Master::Split(a.weight.write(), rem.write()),
        None => Master::Whole(a.weight.write()),
    };
    q.run(|| {
        for t in tensors {
            let mut own = One {
                path,
                c,
                t,
                grad: number::read::<G>(a.gradient, t.first, t.numbers),
                rows: &mut rows[t.row..][..t.rows()],
                keep: if t.decay { c.keep } else { 1.0 },
            };
            let master = master.part(t.first, t.numbers);
            match t.is_vector() {
                true => own.vector(master, &mut scratch),
                false => own.matrix(master, &mut columns[t.column..][..t.cols()], &mut scratch),
            }
        }
    });
}

/// The master weights of a run of numbers, as the precision stores them.
enum Master<'a> {
    /// bf16 weight bits and remainders.
    Split(&'a mut [u16], &'a mut [i16]),
    /// f32 weights.
    Whole(&'a mut [f32]),
}

impl Master<'_> {
    fn part(&mut self, first: usize, n: usize) -> Master<'_> {
        match self {
            Self::Split(w, rem) => Master::Split(&mut w[first..][..n], &mut rem[first..][..n]),
            Self::Whole(w) => Master::Whole(&mut w[first..][..n]),
        }
    }

    /// Runs of `n` of them, for threads.
    fn chunks(self, n: usize) -> Vec<Self> {
        match self {
            Self::Split(w, rem) => {
                let pairs = w.chunks_mut(n).zip(rem.chunks_mut(n));
                pairs.map(|(w, rem)| Master::Split(w, rem)).collect()
            }
            Self::Whole(w) => w.chunks_mut(n).map(Master::Whole).collect(),
        }
    }
}

/// The scratch of a tensor as f32, part by part behind the words.
fn parts<'a>(scratch: &'a mut Dst<'_>, shape: Factoring) -> [&'a mut [f32]; 4] {
    let [words, sizes @ ..] = shape.parts().map(|b| b as usize);
    let mut rest = Some(scratch.again().split_at(words).1);
    sizes.map(|bytes| {
        let (part, behind) = rest.take().expect("put back").split_at(bytes);
        rest = Some(behind);
        part.write::<f32>()
    })
}

/// One tensor on its way through a step.
struct One<'a, G> {
    path: Path,
    c: &'a Constants,
    t: &'a Tensor,
    grad: &'a [G],
    rows: &'a mut [f32],
    keep: f32,
}

impl<G: Number> One<'_, G> {
    /// The factor of an update of this sum of squares.
    fn minus_rate(&self, squares: f64) -> f32 {
        minus_rate(self.c, squares, self.t.numbers)
    }

    fn matrix(&mut self, master: Master<'_>, columns: &mut [f32], scratch: &mut Dst<'_>) {
        let (cols, shape) = (self.t.cols(), self.t.shape);
        let tiles = shape.tiles() as usize;
        let [by_band, by_tile, r, c] = parts(scratch, shape);
        let by_band = &mut by_band[..shape.bands() as usize * cols];
        let by_tile = &mut by_tile[..self.rows.len() * tiles];
        let (r, c) = (&mut r[..self.rows.len()], &mut c[..cols]);
        let (path, k, grad) = (self.path, self.c, self.grad);

        let bands = grad.par_chunks(BAND * cols);
        let sums = by_band.par_chunks_mut(cols);
        let own = by_tile.par_chunks_mut(BAND * tiles);
        (bands, sums, own)
            .into_par_iter()
            .for_each(|(g, sums, own)| {
                call(path, Sums { g, sums, own, k });
            });
        self.means(&*by_band, columns, c);
        let own = by_tile.par_chunks(tiles).with_min_len(1024);
        self.rows.par_iter_mut().zip(own).for_each(|(row, own)| {
            let sum = own.iter().fold(0.0, |sum, &x| sum + f64::from(x));
            *row = mixed(k, *row, (sum / cols as f64) as f32);
        });
        let mean = total(self.rows.iter().copied()) / self.rows.len() as f64;
        let factors = r.par_iter_mut().with_min_len(1024);
        let rows = self.rows.par_iter();
        factors
            .zip(rows)
            .for_each(|(r, row)| *r = (mean / f64::from(*row)).sqrt() as f32);

        let (r, c) = (&*r, &*c);
        let sums = by_band.par_chunks_mut(cols);
        let own = by_tile.par_chunks_mut(BAND * tiles);
        let bands = grad.par_chunks(BAND * cols).zip(r.par_chunks(BAND));
        (bands, sums, own)
            .into_par_iter()
            .for_each(|((g, r), sums, own)| {
                let f = Factors { r, c };
                call(path, Squares { g, f, sums, own, k });
            });
        let own = by_tile.chunks(BAND * tiles);
        let squares = total(own.flat_map(|own| own[..tiles].iter().copied()));

        let (minus_rate, keep) = (self.minus_rate(squares), self.keep);
        let bands = grad.par_chunks(BAND * cols).zip(r.par_chunks(BAND));
        let masters = master.chunks(BAND * cols).into_par_iter();
        bands.zip(masters).for_each(|((g, r), master)| {
            let f = Factors { r, c };
            call(
                path,
                Apply {
                    g,
                    f,
                    master,
                    k,
                    minus_rate,
                    keep,
                },
            );
        });
    }

    /// New columns and their factors from the sums of each band.
    fn means(&self, by_band: &[f32], columns: &mut [f32], c: &mut [f32]) {
        let (rows, cols) = (self.rows.len() as f64, columns.len());
        let own = columns
            .par_chunks_mut(COLUMNS)
            .zip(c.par_chunks_mut(COLUMNS));
        own.enumerate().for_each(|(i, (columns, c))| {
            let mut lanes = [[0f64; COLUMNS]; LANES];
            for (band, sums) in by_band.chunks(cols).enumerate() {
                let sums = &sums[i * COLUMNS..][..columns.len()];
                for (lane, x) in lanes[band % LANES].iter_mut().zip(sums) {
                    *lane += f64::from(*x);
                }
            }
            for (j, (column, c)) in columns.iter_mut().zip(c).enumerate() {
                let sum = fold(lanes.map(|lane| lane[j]));
                *column = mixed(self.c, *column, (sum / rows) as f32);
                *c = (1.0 / f64::from(*column)).sqrt() as f32;
            }
        });
    }

    fn vector(&mut self, master: Master<'_>, scratch: &mut Dst<'_>) {
        let [by_run, ..] = parts(scratch, self.t.shape);
        let by_run = &mut by_run[..self.grad.len().div_ceil(RUN)];
        let (path, k) = (self.path, self.c);
        let runs = self.grad.par_chunks(RUN).zip(self.rows.par_chunks_mut(RUN));
        runs.zip(by_run.par_iter_mut())
            .for_each(|((g, rows), sum)| {
                call(path, Run { g, rows, sum, k });
            });
        let squares = total(by_run.iter().copied());
        let (minus_rate, keep) = (self.minus_rate(squares), self.keep);
        let runs = self.grad.par_chunks(RUN).zip(self.rows.par_chunks(RUN));
        let masters = master.chunks(RUN).into_par_iter();
        runs.zip(masters).for_each(|((g, rows), master)| {
            call(
                path,
                ApplyRun {
                    g,
                    rows,
                    master,
                    k,
                    minus_rate,
                    keep,
                },
            );
        });
    }
}

/// `-rate`, made smaller where the root mean square of `numbers` of these squares is above the threshold.
fn minus_rate(c: &Constants, squares: f64, numbers: usize) -> f32 {
    let size = (squares / numbers as f64).sqrt() / c.threshold;
    // What is no number stays none.
    let by = if size <= 1.0 { 1.0 } else { size };
    (-(c.rate / by)) as f32
}

/// The sum of N numbers by halves: the order that the kernels of a GPU have, too.
#[inline(always)]
fn fold<T: Copy + std::ops::AddAssign, const N: usize>(mut x: [T; N]) -> T {
    let mut half = N / 2;
    while half > 0 {
        for i in 0..half {
            let other = x[i + half];
            x[i] += other;
        }
        half /= 2;
    }
    x[0]
}

/// The sum in 1024 lanes, as a block of a device's threads adds them up.
fn total(all: impl Iterator<Item = f32>) -> f64 {
    let mut lanes = [[0f64; 32]; 32];
    for (i, x) in all.enumerate() {
        lanes[i / 32 % 32][i % 32] += f64::from(x);
    }
    fold(lanes.map(fold))
}

/// A loop of the step, compiled for several processors.
trait Work {
    fn work(self);
}

fn call(path: Path, work: impl Work) {
    match path {
        // SAFETY: `step` asserted that the processor has the path.
        #[cfg(target_arch = "x86_64")]
        Path::Avx512 => unsafe { avx512(work) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => unsafe { avx2(work) },
        _ => work.work(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(work: impl Work) {
    work.work();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512(work: impl Work) {
    work.work();
}

/// The sums of a band: of its rows tile by tile, of its columns.
struct Sums<'a, G> {
    g: &'a [G],
    sums: &'a mut [f32],
    own: &'a mut [f32],
    k: &'a Constants,
}

impl<G: Number> Work for Sums<'_, G> {
    #[inline(always)]
    fn work(self) {
        let Self { g, sums, own, k } = self;
        let (scale, eps) = (k.grad_scale, k.eps);
        sums.fill(0.0);
        let tiles = sums.len().div_ceil(TILE);
        for (g, own) in g.chunks(sums.len()).zip(own.chunks_mut(tiles)) {
            let tiles = g.chunks(TILE).zip(sums.chunks_mut(TILE));
            for ((g, sums), own) in tiles.zip(own) {
                let mut x = [0f32; TILE];
                for ((x, g), sum) in x.iter_mut().zip(g).zip(sums) {
                    let g = g.widen() * scale;
                    *x = g * g + eps;
                    *sum += *x;
                }
                *own = fold(x);
            }
        }
    }
}

/// What an update's gradients are multiplied with: factors of the rows of a band, and of the columns.
#[derive(Clone, Copy)]
struct Factors<'a> {
    r: &'a [f32],
    c: &'a [f32],
}

/// The squares of a band's updates, tile by tile.
struct Squares<'a, G> {
    g: &'a [G],
    f: Factors<'a>,
    sums: &'a mut [f32],
    own: &'a mut [f32],
    k: &'a Constants,
}

impl<G: Number> Work for Squares<'_, G> {
    #[inline(always)]
    fn work(self) {
        let Self { g, f, sums, own, k } = self;
        let scale = k.grad_scale;
        sums.fill(0.0);
        for (g, r) in g.chunks(sums.len()).zip(f.r) {
            for ((g, c), sum) in g.iter().zip(f.c).zip(&mut *sums) {
                let u = g.widen() * scale * (r * c);
                *sum += u * u;
            }
        }
        for (sums, own) in sums.chunks(TILE).zip(own) {
            let mut x = [0f32; TILE];
            x[..sums.len()].copy_from_slice(sums);
            *own = fold(x);
        }
    }
}

/// The update of a band.
struct Apply<'a, G> {
    g: &'a [G],
    f: Factors<'a>,
    master: Master<'a>,
    k: &'a Constants,
    minus_rate: f32,
    keep: f32,
}

impl<G: Number> Work for Apply<'_, G> {
    #[inline(always)]
    fn work(self) {
        let Self { g, f, k, .. } = self;
        let (scale, minus_rate, keep) = (k.grad_scale, self.minus_rate, self.keep);
        let cols = f.c.len();
        let new = |p: f32, g: G, r: f32, c: f32| {
            let u = g.widen() * scale * (r * c);
            minus_rate.mul_add(u, p * keep)
        };
        let rows = g.chunks(cols).zip(f.r);
        match self.master {
            Master::Split(w, rem) => {
                let own = w.chunks_mut(cols).zip(rem.chunks_mut(cols));
                for ((g, r), (w, rem)) in rows.zip(own) {
                    let factors = g.iter().zip(f.c);
                    for ((w, rem), (g, c)) in w.iter_mut().zip(rem).zip(factors) {
                        (*w, *rem) = split(new(join(*w, *rem), *g, *r, *c));
                    }
                }
            }
            Master::Whole(w) => {
                for ((g, r), w) in rows.zip(w.chunks_mut(cols)) {
                    for (w, (g, c)) in w.iter_mut().zip(g.iter().zip(f.c)) {
                        *w = new(*w, *g, *r, *c);
                    }
                }
            }
        }
    }
}

/// What a moment becomes with a new square.
#[inline(always)]
fn mixed(k: &Constants, old: f32, new: f32) -> f32 {
    k.weight.mul_add(new - old, old)
}

/// The factor of a number of a vector.
#[inline(always)]
fn root(moment: f32) -> f32 {
    (1.0 / f64::from(moment)).sqrt() as f32
}

/// The moments of a run of a vector, and the squares of its updates.
struct Run<'a, G> {
    g: &'a [G],
    rows: &'a mut [f32],
    sum: &'a mut f32,
    k: &'a Constants,
}

impl<G: Number> Work for Run<'_, G> {
    #[inline(always)]
    fn work(self) {
        let Self { g, rows, sum, k } = self;
        let mut x = [0f32; TILE];
        for (g, rows) in g.chunks(TILE).zip(rows.chunks_mut(TILE)) {
            for ((x, g), row) in x.iter_mut().zip(g).zip(rows) {
                let g = g.widen() * k.grad_scale;
                let s = g * g + k.eps;
                *row = mixed(k, *row, s);
                let u = g * root(*row);
                *x += u * u;
            }
        }
        *sum = fold(x);
    }
}

/// The update of a run of a vector.
struct ApplyRun<'a, G> {
    g: &'a [G],
    rows: &'a [f32],
    master: Master<'a>,
    k: &'a Constants,
    minus_rate: f32,
    keep: f32,
}

impl<G: Number> Work for ApplyRun<'_, G> {
    #[inline(always)]
    fn work(self) {
        let (scale, minus_rate, keep) = (self.k.grad_scale, self.minus_rate, self.keep);
        let new = |p: f32, g: G, row: f32| {
            let u = g.widen() * scale * root(row);
            minus_rate.mul_add(u, p * keep)
        };
        let own = self.g.iter().zip(self.rows);
        match self.master {
            Master::Split(w, rem) => {
                for ((w, rem), (g, row)) in w.iter_mut().zip(rem).zip(own) {
                    (*w, *rem) = split(new(join(*w, *rem), *g, *row));
                }
            }
            Master::Whole(w) => {
                for (w, (g, row)) in w.iter_mut().zip(own) {
                    *w = new(*w, *g, *row);
                }
            }
        }
    }
}
