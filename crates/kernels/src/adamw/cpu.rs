//! The update of one chunk on one thread: the formula once, in scalar Rust, compiled for the
//! baseline and again for AVX2 with FMA.
//!
//! The compiler vectorises the loop; it may not reorder, contract or approximate anything in it,
//! so each compilation gives the same bits. A processor without FMA gets them from the C library.

use lowtide_device::Plain;

use super::Constants;
use super::moments::{BLOCK, Random, encode, first, first_code, second, second_code, to_bf16};
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

/// The first and second moments of a chunk.
pub(super) enum Stored<'a> {
    /// f32.
    F32(&'a mut [f32], &'a mut [f32]),
    /// bf16 bits.
    Bf16(&'a mut [u16], &'a mut [u16]),
    /// Codes, and a scale for each block of them. Blocks count from the chunk's start.
    Int8((&'a mut [u8], &'a mut [f32]), (&'a mut [u8], &'a mut [f32])),
}

/// What one thread updates at a time; all slices but scales have one length.
pub(super) struct Chunk<'a> {
    pub master: Master<'a>,
    pub moments: Stored<'a>,
    pub grad: Gradients<'a>,
    /// Random bits of the chunk's numbers, counted from its start.
    pub random: Random,
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

/// `update` with bf16 moments and 32 random bits.
#[inline(always)]
fn update16(
    c: &Constants,
    keep: f32,
    grad: f32,
    p: f32,
    (m, v): (&mut u16, &mut u16),
    r: u32,
) -> f32 {
    let (p, m32, v32) = update(c, keep, grad, p, m.widen(), v.widen());
    (*m, *v) = (to_bf16(m32, r & 0xffff), to_bf16(v32, r >> 16));
    p
}

#[inline(always)]
fn split_loop16<G: Widen>(
    (w, rem): (&mut [u16], &mut [i16]),
    (m, v): (&mut [u16], &mut [u16]),
    grad: &[G],
    random: Random,
    keep: f32,
    c: &Constants,
) {
    let state = w.iter_mut().zip(rem).zip(m.iter_mut().zip(v));
    for ((((w, rem), moments), g), i) in state.zip(grad).zip(0..) {
        let p = update16(c, keep, g.widen(), join(*w, *rem), moments, random.bits(i));
        (*w, *rem) = split(p);
    }
}

#[inline(always)]
fn whole_loop16<G: Widen>(
    w: &mut [f32],
    (m, v): (&mut [u16], &mut [u16]),
    grad: &[G],
    random: Random,
    keep: f32,
    c: &Constants,
) {
    let state = w.iter_mut().zip(m.iter_mut().zip(v));
    for (((w, moments), g), i) in state.zip(grad).zip(0..) {
        *w = update16(c, keep, g.widen(), *w, moments, random.bits(i));
    }
}

/// A block of 8-bit moments while it is updated.
struct Block {
    p: [f32; BLOCK],
    m: [f32; BLOCK],
    v: [f32; BLOCK],
    g: [f32; BLOCK],
    codes: [u8; BLOCK],
}

impl Block {
    const ZERO: Self = Self {
        p: [0.0; BLOCK],
        m: [0.0; BLOCK],
        v: [0.0; BLOCK],
        g: [0.0; BLOCK],
        codes: [0; BLOCK],
    };
}

/// 8-bit moments, a block at a time: widened into f32 arrays, updated there, stored. The last
/// block's arrays are filled up with zeros, so that every loop has one length; nothing behind the
/// chunk's end is read or written.
#[inline(always)]
fn block_loop<G: Widen>(
    mut master: Master<'_>,
    (m, m_scale): (&mut [u8], &mut [f32]),
    (v, v_scale): (&mut [u8], &mut [f32]),
    grad: &[G],
    keep: f32,
    c: &Constants,
) {
    let mut b = Block::ZERO;
    for (at, g) in grad.chunks(BLOCK).enumerate() {
        let n = g.len();
        let range = at * BLOCK..at * BLOCK + n;
        if n < BLOCK {
            b = Block::ZERO;
        }
        for (x, g) in b.g.iter_mut().zip(g) {
            *x = g.widen();
        }
        match &master {
            Master::Split(w, rem) => {
                let stored = w[range.clone()].iter().zip(&rem[range.clone()]);
                for (p, (w, rem)) in b.p.iter_mut().zip(stored) {
                    *p = join(*w, *rem);
                }
            }
            Master::Whole(w) => b.p[..n].copy_from_slice(&w[range.clone()]),
        }
        let (first_scale, second_scale) = (m_scale[at], v_scale[at]);
        b.codes[..n].copy_from_slice(&m[range.clone()]);
        for (x, code) in b.m.iter_mut().zip(&b.codes) {
            *x = first(*code, first_scale);
        }
        b.codes[..n].copy_from_slice(&v[range.clone()]);
        for (x, code) in b.v.iter_mut().zip(&b.codes) {
            *x = second(*code, second_scale);
        }
        for i in 0..BLOCK {
            (b.p[i], b.m[i], b.v[i]) = update(c, keep, b.g[i], b.p[i], b.m[i], b.v[i]);
        }
        match &mut master {
            Master::Split(w, rem) => {
                let stored = w[range.clone()].iter_mut().zip(&mut rem[range.clone()]);
                for (p, (w, rem)) in b.p.iter().zip(stored) {
                    (*w, *rem) = split(*p);
                }
            }
            Master::Whole(w) => w[range.clone()].copy_from_slice(&b.p[..n]),
        }
        m_scale[at] = encode(&b.m, &mut b.codes, first_code, 0x7f);
        m[range.clone()].copy_from_slice(&b.codes[..n]);
        v_scale[at] = encode(&b.v, &mut b.codes, second_code, 0xff);
        v[range].copy_from_slice(&b.codes[..n]);
    }
}

#[inline(always)]
fn body(chunk: Chunk<'_>, c: &Constants) {
    let Chunk {
        master,
        moments,
        grad,
        random,
        keep,
    } = chunk;
    match grad {
        Gradients::Bf16(g) => by_kind(master, moments, g, random, keep, c),
        Gradients::F32(g) => by_kind(master, moments, g, random, keep, c),
    }
}

#[inline(always)]
fn by_kind<G: Widen>(
    master: Master<'_>,
    moments: Stored<'_>,
    g: &[G],
    random: Random,
    keep: f32,
    c: &Constants,
) {
    match (master, moments) {
        (Master::Split(w, rem), Stored::F32(m, v)) => split_loop((w, rem), m, v, g, keep, c),
        (Master::Whole(w), Stored::F32(m, v)) => whole_loop(w, m, v, g, keep, c),
        (Master::Split(w, rem), Stored::Bf16(m, v)) => {
            split_loop16((w, rem), (m, v), g, random, keep, c);
        }
        (Master::Whole(w), Stored::Bf16(m, v)) => {
            whole_loop16(w, (m, v), g, random, keep, c);
        }
        (master, Stored::Int8(m, v)) => block_loop(master, m, v, g, keep, c),
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

/// The loop for x86-64 with AVX-512, for moments that `avx512::update` does not take.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn avx512(chunk: Chunk<'_>, c: &Constants) {
    body(chunk, c);
}
