// What the kernels of elementwise optimizers share: a step over segments of a piece, with the host's bits.
//
// Memory-bound: each byte of weight, state and gradient once. A number's result depends on that number
// alone, or with 8-bit moments on its block of 128, which is one warp's; so the grid may follow the device.
//
// A rule R is a struct of its factors, `grad_scale` and `keep` among them, with `N` moments, of which
// `is_signed(i)` says whether they have a sign, and
//   void update(float keep, float grad, float& p, float* m) const
// the formula of its module's head, operation for operation: every intrinsic rounds once and none of them may
// be contracted with another.
#pragma once
#include "common.cuh"

// Four numbers that lie one after another, at a multiple of their bytes.
__device__ __forceinline__ void load4(float* x, const float* p) {
    float4 a = *reinterpret_cast<const float4*>(p);
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
}
__device__ __forceinline__ void load4(u16* x, const u16* p) {
    uint2 a = *reinterpret_cast<const uint2*>(p);
    x[0] = (u16)a.x, x[1] = (u16)(a.x >> 16), x[2] = (u16)a.y, x[3] = (u16)(a.y >> 16);
}
__device__ __forceinline__ void store4(float* p, const float* x) {
    *reinterpret_cast<float4*>(p) = make_float4(x[0], x[1], x[2], x[3]);
}
__device__ __forceinline__ void store4(u16* p, const u16* x) {
    uint2 a;
    a.x = (u32)x[0] | (u32)x[1] << 16;
    a.y = (u32)x[2] | (u32)x[3] << 16;
    *reinterpret_cast<uint2*>(p) = a;
}

// Master weights: bf16 and remainder (as the bits of an i16), or f32.
__device__ __forceinline__ float join(u16 w, u16 rem) {
    return __uint_as_float(((u32)w << 16) + (u32)(int)(short)rem);
}
__device__ __forceinline__ void split(float p, u16& w, u16& rem) {
    u32 bits = __float_as_uint(p);
    u32 magnitude = bits & 0x7fffffffu, sign = bits & 0x80000000u;
    if (magnitude > 0x7f800000u) {
        bits = 0x7fc00000u; // all NaNs are one
    } else if (magnitude > 0x7f7f7fffu && magnitude < 0x7f800000u) {
        bits = sign | 0x7f7f7fffu; // would round to an infinite weight
    }
    w = (u16)((bits + 0x8000u) >> 16);
    rem = (u16)bits;
}

// A number with its stored master weight.
template <class R>
__device__ __forceinline__ void one(const R& c, float keep, float grad, u16& w, u16& rem, float* m) {
    float p = join(w, rem);
    c.update(keep, grad, p, m);
    split(p, w, rem);
}
template <class R>
__device__ __forceinline__ void one(const R& c, float keep, float grad, float& w, u16&, float* m) {
    c.update(keep, grad, w, m);
}

// Moments: `moments.rs`, operation for operation.

// Where random bits of a segment come from.
struct Random {
    u32 a, b;
    __device__ __forceinline__ u32 bits(u32 i) const {
        u32 x = i + a;
        x = (x ^ (x >> 16)) * 0x21f0aaadu;
        x = (x ^ (x >> 15) ^ b) * 0xd35a2d97u;
        return x ^ (x >> 15);
    }
};

// float -> bf16, up in magnitude where the lower half and r (below 2^16) carry.
__device__ __forceinline__ u16 to_bf16_random(float x, u32 r) {
    u32 bits = __float_as_uint(x);
    return (bits & 0x7fffffffu) > 0x7f800000u ? (u16)0x7fc0 : (u16)((bits + r) >> 16);
}

// A number whose moments are stored as they are computed, or as bf16; `i` is its position.
template <class R, typename W>
__device__ __forceinline__ void stored(const R& c, float keep, float grad, W& w, u16& rem, float* m,
                                       Random, u64) {
    one(c, keep, grad, w, rem, m);
}
template <class R, typename W>
__device__ __forceinline__ void stored(const R& c, float keep, float grad, W& w, u16& rem, u16* m,
                                       Random random, u64 i) {
    float wide[R::N];
#pragma unroll
    for (int a = 0; a < R::N; a++) wide[a] = widen(m[a]);
    one(c, keep, grad, w, rem, wide);
    u32 r = random.bits((u32)i);
#pragma unroll
    for (int a = 0; a < R::N; a++) m[a] = to_bf16_random(wide[a], r >> 16 * a & 0xffffu);
}

// The code whose value is nearest to y, from 0 to 1: the least of BITS lines, rounded.
template <int BITS> __device__ __forceinline__ u32 nearest(float y) {
    float c = __fmul_rn(y, (float)(1ull << (3 * (BITS - 1))));
#pragma unroll
    for (int i = 1; i < BITS; i++) {
        float slope = (float)((double)(1ull << (3 * BITS - 2 * i)) / 7.0);
        float offset = (float)((6.0 * (double)(1ull << i) - 7.0) / 7.0);
        float other = __fmaf_rn(y, slope, offset);
        c = other < c ? other : c;
    }
    return __float_as_uint(__fadd_rn(c, 8388608.0f)) & ((1u << BITS) - 1u);
}
// The value of a code; every operation is exact.
template <int BITS> __device__ __forceinline__ float value(u32 code) {
    float f = (float)(int)code;
    float p = __uint_as_float(__float_as_uint(f) & 0xff800000u);
    return (1.0f / (float)(1ull << (3 * BITS))) * (p * p) * (7.0f * f + 7.0f - 6.0f * p);
}
__device__ __forceinline__ u32 first_code(float x, float inverse) {
    float y = __fmul_rn(x, inverse);
    return nearest<7>(fabsf(y)) | ((__float_as_uint(y) >> 24) & 0x80u);
}
__device__ __forceinline__ float first(u32 code, float scale) {
    u32 magnitude = __float_as_uint(value<7>(code & 0x7fu));
    return __fmul_rn(__uint_as_float(magnitude | (code & 0x80u) << 24), scale);
}
__device__ __forceinline__ u32 second_code(float x, float inverse) {
    float y = __fmul_rn(x, inverse);
    u32 code = nearest<8>(y);
    return code == 0 && y > 0.0f ? 1u : code; // what is above zero stays above it
}
__device__ __forceinline__ float second(u32 code, float scale) {
    return __fmul_rn(value<8>(code), scale);
}
// Scale and its inverse from the bits of the largest magnitude of a block. False: a number is not
// finite, and the block becomes NaN.
__device__ __forceinline__ bool scales(u32 top, float& scale, float& inverse) {
    scale = inverse = 0.0f;
    if (top >= 0x7f800000u) {
        scale = __uint_as_float(0x7fc00000u);
        return false;
    }
    if (top >= 0x00800000u) {
        scale = __uint_as_float(top);
        inverse = __fdiv_rn(1.0f, scale);
    }
    return true;
}
__device__ __forceinline__ u32 warp_top(u32 x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
        u32 y = __shfl_xor_sync(0xffffffffu, x, d);
        x = y > x ? y : x;
    }
    return x;
}

const int THREADS = 256;
// A thread has four numbers in its registers at once: five blocks of a multiprocessor keep 70 KB of
// loads in flight, every access of a warp is whole sectors, and eight numbers would spill.
const int TILE = THREADS * 4;
const int SEGMENTS = 16;

// Where a segment starts (a multiple of 128; the lowest bit says that decay applies) and its
// length; a length of 0 ends the list.
#define SEGMENT(i) u64 place##i, u64 length##i
#define PUT(i) place[i] = place##i, length[i] = length##i
#define ALL(f)                                                                                     \
    f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), \
        f(15)

// Whether the step applies; takes the factor of clipping. Also makes the list of segments visible.
template <class R>
__device__ __forceinline__ bool go(R& c, const double* clip, const double* parts,
                                   u64 n_parts) {
    // All blocks see the same `clip` and `parts`, so all go or none.
    if (clip) {
        if (clip[2] == 0.0) return false;
        c.grad_scale = __double2float_rn(clip[0]);
    }
    int bad = 0;
    if (parts) {
        for (u64 i = threadIdx.x; i < n_parts; i += THREADS)
            bad |= ((u32)__double2hiint(parts[i]) & 0x7ff00000u) == 0x7ff00000u;
    }
    return !__syncthreads_or(bad);
}

// A walk over tiles in rising order: the segments one after the other, each cut into tiles of its
// own.
struct Walk {
    const u64 *place, *length;
    int segment;
    u64 first, own;  // first tile of the segment, and how many it has

    __device__ __forceinline__ Walk(const u64* place, const u64* length)
        : place(place), length(length), segment(0), first(0), own((length[0] + TILE - 1) / TILE) {}
    __device__ __forceinline__ void to(u64 tile) {
        while (tile >= first + own) {
            first += own;
            segment++;
            own = (length[segment] + TILE - 1) / TILE;
        }
    }
    // Numbers of the segment, and where it starts.
    __device__ __forceinline__ u64 end() const { return length[segment]; }
    __device__ __forceinline__ u64 offset() const { return place[segment] & ~1ull; }
    template <class R> __device__ __forceinline__ float keep(const R& c) const {
        return (place[segment] & 1) ? c.keep : 1.0f;
    }
    // The first of this thread's four numbers in the segment.
    __device__ __forceinline__ u64 own_first(u64 tile) const {
        return (tile - first) * TILE + 4 * threadIdx.x;
    }
};

// Moments of type M, float or bf16. `random` is the list of the segments' random bits, for bf16.
template <class R, typename G, typename M>
__device__ __forceinline__ void steps(E* w, u16* rem, M* const (&m)[R::N], const G* grad, R c,
                                      const double* clip, const double* parts, u64 n_parts,
                                      bool wide, u64 tiles, const u64* place, const u64* length,
                                      const u64* random) {
    if (!go(c, clip, parts, n_parts)) return;
    Walk walk(place, length);
    for (u64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        walk.to(tile);
        u64 end = walk.end(), offset = walk.offset();
        float keep = walk.keep(c);
        Random from = {0, 0};
        if (sizeof(M) == 2)
            from = {(u32)random[walk.segment], (u32)(random[walk.segment] >> 32)};
        u64 i = walk.own_first(tile);
        if (wide && i + 4 <= end) {
            u64 at = offset + i;
            E ws[4];
            u16 rems[4];
            M ms[R::N][4];
            G gs[4];
            load4(ws, w + at);
            if (sizeof(E) == 2) load4(rems, rem + at);
#pragma unroll
            for (int a = 0; a < R::N; a++) load4(ms[a], m[a] + at);
            load4(gs, grad + at);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                M one[R::N];
#pragma unroll
                for (int a = 0; a < R::N; a++) one[a] = ms[a][k];
                stored(c, keep, widen(gs[k]), ws[k], rems[k], one, from, i + k);
#pragma unroll
                for (int a = 0; a < R::N; a++) ms[a][k] = one[a];
            }
            store4(w + at, ws);
            if (sizeof(E) == 2) store4(rem + at, rems);
#pragma unroll
            for (int a = 0; a < R::N; a++) store4(m[a] + at, ms[a]);
        } else {
            u64 last = i + 4 < end ? i + 4 : end;
#pragma unroll 1
            for (; i < last; i++) {
                u64 at = offset + i;
                u16 r = sizeof(E) == 2 ? rem[at] : (u16)0;
                M one[R::N];
#pragma unroll
                for (int a = 0; a < R::N; a++) one[a] = m[a][at];
                stored(c, keep, widen(grad[at]), w[at], r, one, from, i);
                if (sizeof(E) == 2) rem[at] = r;
#pragma unroll
                for (int a = 0; a < R::N; a++) m[a][at] = one[a];
            }
        }
    }
}

// Moments of 8 bits: a warp has a block of 128 numbers and all its scales.
template <class R, typename G>
__device__ __forceinline__ void steps8(E* w, u16* rem, u8* const (&m)[R::N], const G* grad, R c,
                                       const double* clip, const double* parts, u64 n_parts,
                                       bool wide, u64 tiles, const u64* place, const u64* length,
                                       float* const (&scale)[R::N]) {
    if (!go(c, clip, parts, n_parts)) return;
    Walk walk(place, length);
    for (u64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        walk.to(tile);
        u64 end = walk.end(), offset = walk.offset();
        float keep = walk.keep(c);
        u64 i = walk.own_first(tile);
        if ((i & ~127ull) >= end) continue; // the whole warp is behind the end
        int n = i >= end ? 0 : i + 4 <= end ? 4 : (int)(end - i);
        bool four = wide && n == 4;
        u64 at = offset + i, block = at / 128;
        E ws[4] = {};
        u16 rems[4] = {};
        u32 codes[R::N] = {}; // four codes each, the first in the lowest byte
        G gs[4] = {};
        if (four) {
            load4(ws, w + at);
            if (sizeof(E) == 2) load4(rems, rem + at);
#pragma unroll
            for (int a = 0; a < R::N; a++) codes[a] = *reinterpret_cast<const u32*>(m[a] + at);
            load4(gs, grad + at);
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                if (k < n) {
                    ws[k] = w[at + k];
                    if (sizeof(E) == 2) rems[k] = rem[at + k];
#pragma unroll
                    for (int a = 0; a < R::N; a++) codes[a] |= (u32)m[a][at + k] << 8 * k;
                    gs[k] = grad[at + k];
                }
            }
        }
        float s[R::N];
#pragma unroll
        for (int a = 0; a < R::N; a++) s[a] = scale[a][block];
        float ms[4][R::N];
        u32 top[R::N] = {};
#pragma unroll
        for (int k = 0; k < 4; k++) {
#pragma unroll
            for (int a = 0; a < R::N; a++) {
                u32 code = codes[a] >> 8 * k & 0xffu;
                ms[k][a] = R::is_signed(a) ? first(code, s[a]) : second(code, s[a]);
            }
            if (k < n) {
                one(c, keep, widen(gs[k]), ws[k], rems[k], ms[k]);
#pragma unroll
                for (int a = 0; a < R::N; a++) {
                    u32 magnitude = __float_as_uint(ms[k][a]) & 0x7fffffffu;
                    top[a] = magnitude > top[a] ? magnitude : top[a];
                }
            }
        }
#pragma unroll
        for (int a = 0; a < R::N; a++) {
            float inverse;
            bool finite = scales(warp_top(top[a]), s[a], inverse);
            codes[a] = 0;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                u32 code = R::is_signed(a) ? (finite ? first_code(ms[k][a], inverse) : 0x7fu)
                                           : (finite ? second_code(ms[k][a], inverse) : 0xffu);
                codes[a] |= code << 8 * k;
            }
        }
        if (four) {
            store4(w + at, ws);
            if (sizeof(E) == 2) store4(rem + at, rems);
#pragma unroll
            for (int a = 0; a < R::N; a++) *reinterpret_cast<u32*>(m[a] + at) = codes[a];
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                if (k < n) {
                    w[at + k] = ws[k];
                    if (sizeof(E) == 2) rem[at + k] = rems[k];
#pragma unroll
                    for (int a = 0; a < R::N; a++) m[a][at + k] = (u8)(codes[a] >> 8 * k);
                }
            }
        }
        if ((threadIdx.x & 31) == 0) {
#pragma unroll
            for (int a = 0; a < R::N; a++) scale[a][block] = s[a];
        }
    }
}

// The kernels of a rule R, one for each type of gradients and storage of moments: `STEPS(R)` behind these
// definitions.
//
//   FACTORS       parameters of its factors        VALUES        their names, as R's fields stand
//   MOMENTS(T)    parameters of its moments        ARRAYS        their names
//   SCALES        parameters of their scales       SCALE_ARRAYS  their names
//
// Without `clip` (factor, norm, go) the scale is `grad_scale`; with `parts`, nothing is written unless all of
// them are finite. `wide` says that every array starts at a multiple of 16 bytes; `tiles` is the sum of the
// segments' tiles.
#define STEP(NAME, R, G)                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, 5)                                       \
        NAME(E* w, u16* rem, MOMENTS(float), const G* grad, FACTORS, const double* clip,           \
             const double* parts, u64 n_parts, int wide, u64 tiles, ALL(SEGMENT)) {                \
        __shared__ u64 place[SEGMENTS], length[SEGMENTS];                                          \
        if (threadIdx.x == 0) {                                                                    \
            ALL(PUT);                                                                              \
        }                                                                                          \
        float* const arrays[R::N] = {ARRAYS};                                                      \
        steps<R, G, float>(w, rem, arrays, grad, R{VALUES}, clip, parts, n_parts, wide != 0,       \
                           tiles, place, length, nullptr);                                         \
    }

// The same with bf16 moments: behind the segments their random bits.
#define RANDOM(i) u64 random##i
#define PUT_RANDOM(i) random[i] = random##i
#define STEP16(NAME, R, G)                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS, 5)                                       \
        NAME(E* w, u16* rem, MOMENTS(u16), const G* grad, FACTORS, const double* clip,             \
             const double* parts, u64 n_parts, int wide, u64 tiles, ALL(SEGMENT), ALL(RANDOM)) {   \
        __shared__ u64 place[SEGMENTS], length[SEGMENTS], random[SEGMENTS];                        \
        if (threadIdx.x == 0) {                                                                    \
            ALL(PUT);                                                                              \
            ALL(PUT_RANDOM);                                                                       \
        }                                                                                          \
        u16* const arrays[R::N] = {ARRAYS};                                                        \
        steps<R, G, u16>(w, rem, arrays, grad, R{VALUES}, clip, parts, n_parts, wide != 0, tiles,  \
                         place, length, random);                                                   \
    }

// The same with 8-bit moments: behind the segments the scales.
#define STEP8(NAME, R, G)                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                       \
        NAME(E* w, u16* rem, MOMENTS(u8), const G* grad, FACTORS, const double* clip,              \
             const double* parts, u64 n_parts, int wide, u64 tiles, ALL(SEGMENT), SCALES) {        \
        __shared__ u64 place[SEGMENTS], length[SEGMENTS];                                          \
        if (threadIdx.x == 0) {                                                                    \
            ALL(PUT);                                                                              \
        }                                                                                          \
        u8* const arrays[R::N] = {ARRAYS};                                                         \
        float* const scales[R::N] = {SCALE_ARRAYS};                                                \
        steps8<R, G>(w, rem, arrays, grad, R{VALUES}, clip, parts, n_parts, wide != 0, tiles,      \
                     place, length, scales);                                                       \
    }

#define STEPS(R)                                                                                   \
    STEP(step_bf16, R, u16)                                                                        \
    STEP(step_f32, R, float)                                                                       \
    STEP16(step_bf16_bf16, R, u16)                                                                 \
    STEP16(step_f32_bf16, R, float)                                                                \
    STEP8(step_bf16_int8, R, u16)                                                                  \
    STEP8(step_f32_int8, R, float)
