//! The update of one chunk with AVX-512: 32 numbers a turn, which is one cache line of each 16-bit
//! array and two of each f32 array, with software prefetch. Moments are f32 or bf16; 8-bit ones take
//! the portable loop, compiled for AVX-512.
//!
//! Five streams in and four out at once are more than the hardware's prefetchers follow well; they
//! also stop at every page. The tail uses masks, so nothing outside the chunk is read or written.
//!
//! Tried on 16 cores of a Xeon with 300 MiB of last-level cache, and left out: non-temporal stores
//! (10 % slower on 16 threads, 40 % on one: every line is read first, so there is no read for
//! ownership to save) and the division by `root_correction2` through its reciprocal with two exact
//! corrections (no gain: memory sets the pace). Prefetch gives 7 to 13 % on 16 threads and 20 to
//! 25 % on one; distances from 256 to 2048 numbers differ by less than the noise.

use std::arch::x86_64::*;

use super::Constants;
use crate::update::cpu::{self, Chunk, Gradients, Master, Stored};
use crate::update::moments::{FIRST_FACTOR, Random, SECOND_FACTOR};
use crate::update::split::{HALF, INFINITY_BITS, MAGNITUDE, MAX_BITS, NAN_BITS};

/// How far ahead lines are asked for, in numbers: 2 KiB of the f32 arrays, 1 KiB of the others.
const AHEAD: usize = 512;
/// Numbers in a register.
const LANES: usize = 16;

/// Addresses of a chunk's arrays; which types they have is known by the loop's parameters.
#[derive(Clone, Copy)]
struct Arrays {
    w: *mut u8,
    rem: *mut i16,
    m: *mut u8,
    v: *mut u8,
    grad: *const u8,
}

/// The formula's factors, one a register.
#[derive(Clone, Copy)]
struct Factors {
    grad_scale: __m512,
    one_minus_beta1: __m512,
    one_minus_beta2: __m512,
    root_correction2: __m512,
    eps: __m512,
    keep: __m512,
    minus_rate: __m512,
    random: Random,
}

/// Updates a chunk; the same bits as `cpu::portable`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn update(chunk: Chunk<'_, 2>, c: &Constants) {
    if matches!(chunk.moments, Stored::Int8(..)) {
        return cpu::avx512(chunk, c);
    }
    let Chunk {
        master,
        moments,
        grad,
        random,
        keep,
    } = chunk;
    let (m, v, n, v_len, m_bf16) = match moments {
        Stored::F32([m, v]) => (
            m.as_mut_ptr().cast(),
            v.as_mut_ptr().cast(),
            m.len(),
            v.len(),
            false,
        ),
        Stored::Bf16([m, v]) => (
            m.as_mut_ptr().cast(),
            v.as_mut_ptr().cast(),
            m.len(),
            v.len(),
            true,
        ),
        Stored::Int8(..) => unreachable!("taken above"),
    };
    let f = Factors {
        grad_scale: _mm512_set1_ps(c.grad_scale),
        one_minus_beta1: _mm512_set1_ps(c.one_minus_beta1),
        one_minus_beta2: _mm512_set1_ps(c.one_minus_beta2),
        root_correction2: _mm512_set1_ps(c.root_correction2),
        eps: _mm512_set1_ps(c.eps),
        keep: _mm512_set1_ps(keep),
        minus_rate: _mm512_set1_ps(c.minus_rate),
        random,
    };
    let (w, rem, w_len) = match master {
        Master::Split(w, rem) => {
            assert_eq!(rem.len(), n, "remainders of a chunk");
            (w.as_mut_ptr().cast(), rem.as_mut_ptr(), w.len())
        }
        Master::Whole(w) => (w.as_mut_ptr().cast(), std::ptr::null_mut(), w.len()),
    };
    let (g, g_len, g_bf16) = match grad {
        Gradients::Bf16(g) => (g.as_ptr().cast(), g.len(), true),
        Gradients::F32(g) => (g.as_ptr().cast(), g.len(), false),
    };
    assert_eq!([w_len, v_len, g_len], [n; 3], "arrays of a chunk");
    let a = Arrays {
        w,
        rem,
        m,
        v,
        grad: g,
    };
    // SAFETY: in each arm the arrays have `n` numbers of the arm's types, as asserted or matched
    // above, and are borrowed until the call returns.
    unsafe {
        match (rem.is_null(), g_bf16, m_bf16) {
            (false, true, false) => run::<true, true, false>(a, n, &f),
            (false, false, false) => run::<true, false, false>(a, n, &f),
            (true, true, false) => run::<false, true, false>(a, n, &f),
            (true, false, false) => run::<false, false, false>(a, n, &f),
            (false, true, true) => run::<true, true, true>(a, n, &f),
            (false, false, true) => run::<true, false, true>(a, n, &f),
            (true, true, true) => run::<false, true, true>(a, n, &f),
            (true, false, true) => run::<false, false, true>(a, n, &f),
        }
    }
}

/// # Safety
/// The arrays must hold `n` numbers, of bf16 weights with remainders when `SPLIT` and of f32
/// weights otherwise, of bf16 gradients when `G16` and of f32 gradients otherwise, of bf16 moments
/// when `M16` and of f32 moments otherwise.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn run<const SPLIT: bool, const G16: bool, const M16: bool>(
    a: Arrays,
    n: usize,
    f: &Factors,
) {
    let mut i = 0;
    while i + 2 * LANES <= n {
        prefetch::<SPLIT, G16, M16>(&a, i + AHEAD);
        // SAFETY: 32 numbers from `i` are inside (loop condition).
        unsafe {
            update16::<SPLIT, G16, M16>(&a, i, !0, f);
            update16::<SPLIT, G16, M16>(&a, i + LANES, !0, f);
        }
        i += 2 * LANES;
    }
    while i < n {
        let left = (n - i).min(LANES);
        // SAFETY: the mask names the `left` numbers from `i` that are inside.
        unsafe { update16::<SPLIT, G16, M16>(&a, i, !0 >> (LANES - left), f) };
        i += left;
    }
}

/// Asks for the lines of 32 numbers from `i`. They may lie outside the arrays: a prefetch of an
/// address that is not mapped does nothing, and no value is ever used.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch<const SPLIT: bool, const G16: bool, const M16: bool>(a: &Arrays, i: usize) {
    let line = |p: *const u8| _mm_prefetch::<_MM_HINT_T0>(p.cast());
    let two = |p: *const u8| {
        line(p);
        line(p.wrapping_add(64));
    };
    if SPLIT {
        line(a.w.wrapping_add(2 * i));
        line(a.rem.wrapping_add(i).cast());
    } else {
        two(a.w.wrapping_add(4 * i));
    }
    if M16 {
        line(a.m.wrapping_add(2 * i));
        line(a.v.wrapping_add(2 * i));
    } else {
        two(a.m.wrapping_add(4 * i));
        two(a.v.wrapping_add(4 * i));
    }
    if G16 {
        line(a.grad.wrapping_add(2 * i))
    } else {
        two(a.grad.wrapping_add(4 * i))
    }
}

/// Updates the numbers from `i` that `mask` names.
///
/// # Safety
/// As `run`, and the named numbers must be inside the arrays.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn update16<const SPLIT: bool, const G16: bool, const M16: bool>(
    a: &Arrays,
    i: usize,
    mask: __mmask16,
    f: &Factors,
) {
    // SAFETY: masked loads touch only the named numbers, which are inside (caller); the pointers
    // have the types that the parameters say.
    let (grad, p, m, v) = unsafe {
        let grad = if G16 {
            widen(_mm256_maskz_loadu_epi16(mask, a.grad.cast::<i16>().add(i)))
        } else {
            _mm512_maskz_loadu_ps(mask, a.grad.cast::<f32>().add(i))
        };
        let p = if SPLIT {
            let w = _mm256_maskz_loadu_epi16(mask, a.w.cast::<i16>().add(i));
            join(w, _mm256_maskz_loadu_epi16(mask, a.rem.add(i)))
        } else {
            _mm512_maskz_loadu_ps(mask, a.w.cast::<f32>().add(i))
        };
        if M16 {
            let m = widen(_mm256_maskz_loadu_epi16(mask, a.m.cast::<i16>().add(i)));
            let v = widen(_mm256_maskz_loadu_epi16(mask, a.v.cast::<i16>().add(i)));
            (grad, p, m, v)
        } else {
            let m = _mm512_maskz_loadu_ps(mask, a.m.cast::<f32>().add(i));
            let v = _mm512_maskz_loadu_ps(mask, a.v.cast::<f32>().add(i));
            (grad, p, m, v)
        }
    };
    let g = _mm512_mul_ps(grad, f.grad_scale);
    let m = _mm512_fmadd_ps(f.one_minus_beta1, _mm512_sub_ps(g, m), m);
    let v = _mm512_fmadd_ps(f.one_minus_beta2, _mm512_fmsub_ps(g, g, v), v);
    let root = _mm512_div_ps(_mm512_sqrt_ps(v), f.root_correction2);
    let u = _mm512_div_ps(m, _mm512_add_ps(root, f.eps));
    let p = _mm512_fmadd_ps(f.minus_rate, u, _mm512_mul_ps(p, f.keep));
    // SAFETY: masked stores touch only the named numbers, as the loads.
    unsafe {
        if M16 {
            let r = random(f.random, i);
            let m = to_bf16(m, _mm512_and_si512(r, _mm512_set1_epi32(0xffff)));
            let v = to_bf16(v, _mm512_srli_epi32::<16>(r));
            _mm256_mask_storeu_epi16(a.m.cast::<i16>().add(i), mask, m);
            _mm256_mask_storeu_epi16(a.v.cast::<i16>().add(i), mask, v);
        } else {
            _mm512_mask_storeu_ps(a.m.cast::<f32>().add(i), mask, m);
            _mm512_mask_storeu_ps(a.v.cast::<f32>().add(i), mask, v);
        }
        if SPLIT {
            let (w, rem) = split(p);
            _mm256_mask_storeu_epi16(a.w.cast::<i16>().add(i), mask, w);
            _mm256_mask_storeu_epi16(a.rem.add(i), mask, rem);
        } else {
            _mm512_mask_storeu_ps(a.w.cast::<f32>().add(i), mask, p);
        }
    }
}

/// bf16 bits as f32.
#[inline]
#[target_feature(enable = "avx512f")]
fn widen(bits: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
}

/// `crate::update::moments::Random::bits` of the positions from `i` on.
#[inline]
#[target_feature(enable = "avx512f")]
fn random(from: Random, i: usize) -> __m512i {
    let all = |bits: u32| _mm512_set1_epi32(bits as i32);
    let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let x = _mm512_add_epi32(lanes, all(from.a.wrapping_add(i as u32)));
    let x = _mm512_xor_si512(x, _mm512_srli_epi32::<16>(x));
    let x = _mm512_mullo_epi32(x, all(FIRST_FACTOR));
    let x = _mm512_xor_si512(x, _mm512_srli_epi32::<15>(x));
    let x = _mm512_mullo_epi32(_mm512_xor_si512(x, all(from.b)), all(SECOND_FACTOR));
    _mm512_xor_si512(x, _mm512_srli_epi32::<15>(x))
}

/// `crate::update::moments::to_bf16`, sixteen at a time.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn to_bf16(x: __m512, r: __m512i) -> __m256i {
    let all = |bits: u32| _mm512_set1_epi32(bits as i32);
    let bits = _mm512_castps_si512(x);
    let magnitude = _mm512_and_si512(bits, all(MAGNITUDE));
    let nan = _mm512_cmpgt_epu32_mask(magnitude, all(INFINITY_BITS));
    let rounded = _mm512_mask_mov_epi32(_mm512_add_epi32(bits, r), nan, all(NAN_BITS));
    _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded))
}

/// `crate::update::split::join`, sixteen at a time.
#[inline]
#[target_feature(enable = "avx512f")]
fn join(w: __m256i, rem: __m256i) -> __m512 {
    let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(w));
    _mm512_castsi512_ps(_mm512_add_epi32(high, _mm512_cvtepi16_epi32(rem)))
}

/// `crate::update::split::split`, sixteen at a time: (weights, remainders).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn split(p: __m512) -> (__m256i, __m256i) {
    let all = |bits: u32| _mm512_set1_epi32(bits as i32);
    let bits = _mm512_castps_si512(p);
    let magnitude = _mm512_and_si512(bits, all(MAGNITUDE));
    let nan = _mm512_cmpgt_epu32_mask(magnitude, all(INFINITY_BITS));
    let above = _mm512_cmpgt_epu32_mask(magnitude, all(MAX_BITS))
        & _mm512_cmplt_epu32_mask(magnitude, all(INFINITY_BITS));
    let sign = _mm512_andnot_si512(all(MAGNITUDE), bits);
    let bits = _mm512_mask_or_epi32(bits, above, sign, all(MAX_BITS));
    let bits = _mm512_mask_mov_epi32(bits, nan, all(NAN_BITS));
    let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, all(HALF)));
    (_mm512_cvtepi32_epi16(rounded), _mm512_cvtepi32_epi16(bits))
}
