//! The update of one chunk on one thread: the formula once, in scalar Rust, compiled for the
//! baseline and again for AVX2 with FMA.
//!
//! The compiler vectorises the loop; it may not reorder, contract or approximate anything in it,
//! so each compilation gives the same bits. A processor without FMA gets them from the C library.

use lowtide_device::Plain;

use super::Constants;
use super::split::{join, split};

/// Where the master weights of a chunk are.
pub(super) enum Master<'a> {
    /// bf16 weight bits and remainders.
    Split(&'a mut [u16], &'a mut [i16]),
    /// f32 weights.
    Whole(&'a mut [f32]),
}

/// The gradients of a chunk.
pub(super) enum Gradients<'a> {
    /// bf16 bits.
    Bf16(&'a [u16]),
    /// f32.
    F32(&'a [f32]),
}

/// What one thread updates at a time; all slices have one length.
pub(super) struct Chunk<'a> {
    pub master: Master<'a>,
    pub m: &'a mut [f32],
    pub v: &'a mut [f32],
    pub grad: Gradients<'a>,
    /// What a master weight is multiplied with first: `Constants::keep`, or 1 without decay.
    pub keep: f32,
}

/// A stored number that widens to f32 exactly.
pub(super) trait Widen: Plain {
    fn widen(self) -> f32;
}
impl Widen for u16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }
}
impl Widen for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

/// One number: (master weight, first moment, second moment) after the step. The formula of the
/// module `adamw`, operation for operation.
#[inline(always)]
fn update(c: &Constants, keep: f32, grad: f32, p: f32, m: f32, v: f32) -> (f32, f32, f32) {
    let g = grad * c.grad_scale;
    let m = c.one_minus_beta1.mul_add(g - m, m);
    let v = c.one_minus_beta2.mul_add(g.mul_add(g, -v), v);
    let denominator = v.sqrt() / c.root_correction2 + c.eps;
    let p = c.minus_rate.mul_add(m / denominator, p * keep);
    (p, m, v)
}

#[inline(always)]
fn split_loop<G: Widen>(
    (w, rem): (&mut [u16], &mut [i16]),
    m: &mut [f32],
    v: &mut [f32],
    grad: &[G],
    keep: f32,
    c: &Constants,
) {
    let state = w.iter_mut().zip(rem).zip(m.iter_mut().zip(v));
    for (((w, rem), (m, v)), g) in state.zip(grad) {
        let p;
        (p, *m, *v) = update(c, keep, g.widen(), join(*w, *rem), *m, *v);
        (*w, *rem) = split(p);
    }
}

#[inline(always)]
fn whole_loop<G: Widen>(
    w: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    grad: &[G],
    keep: f32,
    c: &Constants,
) {
    for ((w, (m, v)), g) in w.iter_mut().zip(m.iter_mut().zip(v)).zip(grad) {
        (*w, *m, *v) = update(c, keep, g.widen(), *w, *m, *v);
    }
}

#[inline(always)]
fn body(chunk: Chunk<'_>, c: &Constants) {
    let Chunk {
        master,
        m,
        v,
        grad,
        keep,
    } = chunk;
    match (master, grad) {
        (Master::Split(w, rem), Gradients::Bf16(g)) => split_loop((w, rem), m, v, g, keep, c),
        (Master::Split(w, rem), Gradients::F32(g)) => split_loop((w, rem), m, v, g, keep, c),
        (Master::Whole(w), Gradients::Bf16(g)) => whole_loop(w, m, v, g, keep, c),
        (Master::Whole(w), Gradients::F32(g)) => whole_loop(w, m, v, g, keep, c),
    }
}

/// The loop for the processor that the crate was compiled for.
pub(super) fn portable(chunk: Chunk<'_>, c: &Constants) {
    body(chunk, c);
}

/// The loop for x86-64 with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
pub(super) fn avx2(chunk: Chunk<'_>, c: &Constants) {
    body(chunk, c);
}
