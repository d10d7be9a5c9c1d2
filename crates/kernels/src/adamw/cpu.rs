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

/// A number of each array of a block, for moments that are not f32.
struct Block {
    p: [f32; BLOCK],
    m: [f32; BLOCK],
    v: [f32; BLOCK],
    g: [f32; BLOCK],
}

impl Block {
    const ZERO: Self = Self {
        p: [0.0; BLOCK],
        m: [0.0; BLOCK],
        v: [0.0; BLOCK],
        g: [0.0; BLOCK],
    };
}

/// Blocks of 128 numbers: widened into f32 arrays, updated there, stored. The last block's arrays
/// are filled up with zeros, so that every loop has one length; nothing behind the chunk's end is
/// read or written.
#[inline(always)]
fn block_loop<G: Widen>(
    mut master: Master<'_>,
    mut moments: Stored<'_>,
    grad: &[G],
    random: Random,
    keep: f32,
    c: &Constants,
) {
    for (at, g) in grad.chunks(BLOCK).enumerate() {
        let start = at * BLOCK;
        let range = start..start + g.len();
        let mut b = Block::ZERO;
        for (x, g) in b.g.iter_mut().zip(g) {
            *x = g.widen();
        }
        match &master {
            Master::Split(w, rem) => {
                for (p, (w, rem)) in
                    b.p.iter_mut()
                        .zip(w[range.clone()].iter().zip(&rem[range.clone()]))
                {
                    *p = join(*w, *rem);
                }
            }
            Master::Whole(w) => b.p[..g.len()].copy_from_slice(&w[range.clone()]),
        }
        match &moments {
            Stored::F32(m, v) => {
                b.m[..g.len()].copy_from_slice(&m[range.clone()]);
                b.v[..g.len()].copy_from_slice(&v[range.clone()]);
            }
            Stored::Bf16(m, v) => {
                for (x, m) in b.m.iter_mut().zip(&m[range.clone()]) {
                    *x = m.widen();
                }
                for (x, v) in b.v.iter_mut().zip(&v[range.clone()]) {
                    *x = v.widen();
                }
            }
            Stored::Int8((m, m_scale), (v, v_scale)) => {
                for (x, m) in b.m.iter_mut().zip(&m[range.clone()]) {
                    *x = first(*m, m_scale[at]);
                }
                for (x, v) in b.v.iter_mut().zip(&v[range.clone()]) {
                    *x = second(*v, v_scale[at]);
                }
            }
        }
        for i in 0..BLOCK {
            (b.p[i], b.m[i], b.v[i]) = update(c, keep, b.g[i], b.p[i], b.m[i], b.v[i]);
        }
        match &mut master {
            Master::Split(w, rem) => {
                for (p, (w, rem)) in
                    b.p.iter()
                        .zip(w[range.clone()].iter_mut().zip(&mut rem[range.clone()]))
                {
                    (*w, *rem) = split(*p);
                }
            }
            Master::Whole(w) => w[range.clone()].copy_from_slice(&b.p[..g.len()]),
        }
        match &mut moments {
            Stored::F32(m, v) => {
                m[range.clone()].copy_from_slice(&b.m[..g.len()]);
                v[range].copy_from_slice(&b.v[..g.len()]);
            }
            Stored::Bf16(m, v) => {
                let stored = m[range.clone()].iter_mut().zip(&mut v[range]);
                for (i, (m, v)) in stored.enumerate() {
                    let r = random.bits((start + i) as u32);
                    (*m, *v) = (to_bf16(b.m[i], r & 0xffff), to_bf16(b.v[i], r >> 16));
                }
            }
            Stored::Int8((m, m_scale), (v, v_scale)) => {
                let mut codes = [0; BLOCK];
                m_scale[at] = encode(&b.m, &mut codes, first_code, 0x7f);
                m[range.clone()].copy_from_slice(&codes[..g.len()]);
                v_scale[at] = encode(&b.v, &mut codes, second_code, 0xff);
                v[range].copy_from_slice(&codes[..g.len()]);
            }
        }
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
    match (master, moments, grad) {
        (Master::Split(w, rem), Stored::F32(m, v), Gradients::Bf16(g)) => {
            split_loop((w, rem), m, v, g, keep, c);
        }
        (Master::Split(w, rem), Stored::F32(m, v), Gradients::F32(g)) => {
            split_loop((w, rem), m, v, g, keep, c);
        }
        (Master::Whole(w), Stored::F32(m, v), Gradients::Bf16(g)) => {
            whole_loop(w, m, v, g, keep, c);
        }
        (Master::Whole(w), Stored::F32(m, v), Gradients::F32(g)) => {
            whole_loop(w, m, v, g, keep, c);
        }
        (master, moments, Gradients::Bf16(g)) => block_loop(master, moments, g, random, keep, c),
        (master, moments, Gradients::F32(g)) => block_loop(master, moments, g, random, keep, c),
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
