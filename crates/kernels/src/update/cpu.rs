//! A chunk on one thread: a rule's formula in scalar Rust, compiled for the baseline, again for AVX2 with
//! FMA, and again for AVX-512.
//!
//! The compiler vectorises the loops; it may not reorder, contract or approximate anything in them,
//! so each compilation gives the same bits. A processor without FMA gets them from the C library.

use lowtide_device::Plain;

use super::elementwise::Rule;
use super::moments::{BLOCK, Random, encode, first, first_code, second, second_code, to_bf16};
use super::split::{join, split};

/// Where the master weights of a chunk are.
pub(crate) enum Master<'a> {
    /// bf16 weight bits and remainders.
    Split(&'a mut [u16], &'a mut [i16]),
    /// f32 weights.
    Whole(&'a mut [f32]),
}

/// The gradients of a chunk.
pub(crate) enum Gradients<'a> {
    /// bf16 bits.
    Bf16(&'a [u16]),
    /// f32.
    F32(&'a [f32]),
}

/// The moments of a chunk.
pub(crate) enum Stored<'a, const N: usize> {
    /// f32.
    F32([&'a mut [f32]; N]),
    /// bf16 bits.
    Bf16([&'a mut [u16]; N]),
    /// Codes, and a scale for each block of them. Blocks count from the chunk's start.
    Int8([&'a mut [u8]; N], [&'a mut [f32]; N]),
}

/// What one thread updates at a time; all slices but scales have one length.
pub(crate) struct Chunk<'a, const N: usize> {
    pub master: Master<'a>,
    pub moments: Stored<'a, N>,
    pub grad: Gradients<'a>,
    /// Random bits of the chunk's numbers, counted from its start.
    pub random: Random,
    /// What a master weight is multiplied with first: [`Rule::keep`], or 1 without decay.
    pub keep: f32,
}

/// A stored number that widens to f32 exactly.
trait Widen: Plain {
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

/// Master weights one by one.
trait Weights {
    /// The first `n` of them.
    fn first(self, n: usize) -> Self;
    fn get(&self, i: usize) -> f32;
    fn put(&mut self, i: usize, p: f32);
}
impl Weights for (&mut [u16], &mut [i16]) {
    #[inline(always)]
    fn first(self, n: usize) -> Self {
        (&mut self.0[..n], &mut self.1[..n])
    }
    #[inline(always)]
    fn get(&self, i: usize) -> f32 {
        join(self.0[i], self.1[i])
    }
    #[inline(always)]
    fn put(&mut self, i: usize, p: f32) {
        (self.0[i], self.1[i]) = split(p);
    }
}
impl Weights for &mut [f32] {
    #[inline(always)]
    fn first(self, n: usize) -> Self {
        &mut self[..n]
    }
    #[inline(always)]
    fn get(&self, i: usize) -> f32 {
        self[i]
    }
    #[inline(always)]
    fn put(&mut self, i: usize, p: f32) {
        self[i] = p;
    }
}

/// Moments as they come out of the formula, or rounded to bf16.
trait Kept: Widen {
    /// Rounded stochastically by sixteen random bits; in f32 the number itself.
    fn round(x: f32, random: u32) -> Self;
}
impl Kept for f32 {
    #[inline(always)]
    fn round(x: f32, _: u32) -> Self {
        x
    }
}
impl Kept for u16 {
    #[inline(always)]
    fn round(x: f32, random: u32) -> Self {
        to_bf16(x, random)
    }
}

#[inline(always)]
fn each<R: Rule<N>, W: Weights, M: Kept, G: Widen, const N: usize>(
    w: W,
    moments: [&mut [M]; N],
    grad: &[G],
    random: Random,
    keep: f32,
    rule: &R,
) {
    let n = grad.len();
    // Lengths that the compiler knows to be one: no check stands in the loop.
    let mut w = w.first(n);
    let moments = moments.map(|m| &mut m[..n]);
    for (i, g) in grad.iter().enumerate() {
        let old = std::array::from_fn(|k| moments[k][i].widen());
        let (p, new) = rule.update(keep, g.widen(), w.get(i), old);
        w.put(i, p);
        let bits = random.bits(i as u32);
        for k in 0..N {
            // The lower half rounds the first, the upper half the second.
            moments[k][i] = M::round(new[k], bits >> (16 * k) & 0xffff);
        }
    }
}

/// A block of 8-bit moments while it is updated.
struct Block<const N: usize> {
    p: [f32; BLOCK],
    m: [[f32; BLOCK]; N],
    g: [f32; BLOCK],
    codes: [u8; BLOCK],
}

impl<const N: usize> Block<N> {
    const ZERO: Self = Self {
        p: [0.0; BLOCK],
        m: [[0.0; BLOCK]; N],
        g: [0.0; BLOCK],
        codes: [0; BLOCK],
    };
}

/// 8-bit moments, a block at a time: widened into f32 arrays, updated there, stored. The last
/// block's arrays are filled up with zeros, so that every loop has one length; nothing behind the
/// chunk's end is read or written.
#[inline(always)]
fn block_loop<R: Rule<N>, G: Widen, const N: usize>(
    mut master: Master<'_>,
    codes: [&mut [u8]; N],
    scales: [&mut [f32]; N],
    grad: &[G],
    keep: f32,
    rule: &R,
) {
    let mut b = Block::<N>::ZERO;
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
        for k in 0..N {
            b.codes[..n].copy_from_slice(&codes[k][range.clone()]);
            let scale = scales[k][at];
            for (x, code) in b.m[k].iter_mut().zip(&b.codes) {
                *x = match R::SIGNED[k] {
                    true => first(*code, scale),
                    false => second(*code, scale),
                };
            }
        }
        for i in 0..BLOCK {
            let old = std::array::from_fn(|k| b.m[k][i]);
            let (p, new) = rule.update(keep, b.g[i], b.p[i], old);
            b.p[i] = p;
            for (m, new) in b.m.iter_mut().zip(new) {
                m[i] = new;
            }
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
        for k in 0..N {
            scales[k][at] = match R::SIGNED[k] {
                true => encode(&b.m[k], &mut b.codes, first_code, 0x7f),
                false => encode(&b.m[k], &mut b.codes, second_code, 0xff),
            };
            codes[k][range.clone()].copy_from_slice(&b.codes[..n]);
        }
    }
}

#[inline(always)]
fn body<R: Rule<N>, const N: usize>(chunk: Chunk<'_, N>, rule: &R) {
    let Chunk {
        master,
        moments,
        grad,
        random,
        keep,
    } = chunk;
    match grad {
        Gradients::Bf16(g) => by_kind(master, moments, g, random, keep, rule),
        Gradients::F32(g) => by_kind(master, moments, g, random, keep, rule),
    }
}

#[inline(always)]
fn by_kind<R: Rule<N>, G: Widen, const N: usize>(
    master: Master<'_>,
    moments: Stored<'_, N>,
    g: &[G],
    random: Random,
    keep: f32,
    rule: &R,
) {
    match (master, moments) {
        (Master::Split(w, rem), Stored::F32(m)) => each((w, rem), m, g, random, keep, rule),
        (Master::Whole(w), Stored::F32(m)) => each(w, m, g, random, keep, rule),
        (Master::Split(w, rem), Stored::Bf16(m)) => each((w, rem), m, g, random, keep, rule),
        (Master::Whole(w), Stored::Bf16(m)) => each(w, m, g, random, keep, rule),
        (master, Stored::Int8(m, scales)) => block_loop(master, m, scales, g, keep, rule),
    }
}

/// The loop for the processor that the crate was compiled for.
pub(crate) fn portable<R: Rule<N>, const N: usize>(chunk: Chunk<'_, N>, rule: &R) {
    body(chunk, rule);
}

/// The loop for x86-64 with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn avx2<R: Rule<N>, const N: usize>(chunk: Chunk<'_, N>, rule: &R) {
    body(chunk, rule);
}

/// The loop for x86-64 with AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) fn avx512<R: Rule<N>, const N: usize>(chunk: Chunk<'_, N>, rule: &R) {
    body(chunk, rule);
}
