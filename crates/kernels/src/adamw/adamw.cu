// One AdamW step over segments of a piece, with the host's bits.
//
// Memory-bound: 26 bytes a number (18 with bf16 moments, 14.125 with 8-bit ones), each once. A
// number's result depends on that number alone, or with 8-bit moments on its block of 128, which is
// one warp's; so the grid may follow the device.
#include "common.cuh"

// The factors of a step, as the host computed them.
struct Factors {
    float grad_scale, one_minus_beta1, one_minus_beta2, root_correction2, eps, keep, minus_rate;
};

// The formula of the module's head, operation for operation: every intrinsic rounds once and none
// of them may be contracted with another.
__device__ __forceinline__ void update(const Factors& c, float keep, float grad, float& p, float& m,
                                       float& v) {
    float g = __fmul_rn(grad, c.grad_scale);
    m = __fmaf_rn(c.one_minus_beta1, __fsub_rn(g, m), m);
    v = __fmaf_rn(c.one_minus_beta2, __fmaf_rn(g, g, -v), v);
    float d = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), c.root_correction2), c.eps);
    p = __fmaf_rn(c.minus_rate, __fdiv_rn(m, d), __fmul_rn(p, keep));
}

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
__device__ __forceinline__ void one(const Factors& c, float keep, float grad, u16& w, u16& rem,
                                    float& m, float& v) {
    float p = join(w, rem);
    update(c, keep, grad, p, m, v);
    split(p, w, rem);
}
__device__ __forceinline__ void one(const Factors& c, float keep, float grad, float& w, u16&,
                                    float& m, float& v) {
    update(c, keep, grad, w, m, v);
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
template <typename W>
__device__ __forceinline__ void stored(const Factors& c, float keep, float grad, W& w, u16& rem,
                                       float& m, float& v, Random, u64) {
    one(c, keep, grad, w, rem, m, v);
}
template <typename W>
__device__ __forceinline__ void stored(const Factors& c, float keep, float grad, W& w, u16& rem,
                                       u16& m, u16& v, Random random, u64 i) {
    float mf = widen(m), vf = widen(v);
    one(c, keep, grad, w, rem, mf, vf);
    u32 r = random.bits((u32)i);
    m = to_bf16_random(mf, r & 0xffffu);
    v = to_bf16_random(vf, r >> 16);
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
__device__ __forceinline__ bool go(Factors& c, const double* clip, const double* parts,
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
    __device__ __forceinline__ float keep(const Factors& c) const {
        return (place[segment] & 1) ? c.keep : 1.0f;
    }
    // The first of this thread's four numbers in the segment.
    __device__ __forceinline__ u64 own_first(u64 tile) const {
        return (tile - first) * TILE + 4 * threadIdx.x;
    }
};

// Moments of type M, float or bf16. `random` is the list of the segments' random bits, for bf16.
template <typename G, typename M>
__device__ __forceinline__ void steps(E* w, u16* rem, M* m, M* v, const G* grad, Factors c,
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
            M ms[4], vs[4];
            G gs[4];
            load4(ws, w + at);
            if (sizeof(E) == 2) load4(rems, rem + at);
            load4(ms, m + at);
            load4(vs, v + at);
            load4(gs, grad + at);
#pragma unroll
            for (int k = 0; k < 4; k++)
                stored(c, keep, widen(gs[k]), ws[k], rems[k], ms[k], vs[k], from, i + k);
            store4(w + at, ws);
            if (sizeof(E) == 2) store4(rem + at, rems);
            store4(m + at, ms);
            store4(v + at, vs);
        } else {
            u64 last = i + 4 < end ? i + 4 : end;
#pragma unroll 1
            for (; i < last; i++) {
                u64 at = offset + i;
                u16 r = sizeof(E) == 2 ? rem[at] : (u16)0;
                stored(c, keep, widen(grad[at]), w[at], r, m[at], v[at], from, i);
                if (sizeof(E) == 2) rem[at] = r;
            }
        }
    }
}

// Moments of 8 bits: a warp has a block of 128 numbers and both its scales.
template <typename G>
__device__ __forceinline__ void steps8(E* w, u16* rem, u8* m, u8* v, const G* grad, Factors c,
                                       const double* clip, const double* parts, u64 n_parts,
                                       bool wide, u64 tiles, const u64* place, const u64* length,
                                       float* m_scale, float* v_scale) {
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
        u32 mc = 0, vc = 0; // four codes, the first in the lowest byte
        G gs[4] = {};
        if (four) {
            load4(ws, w + at);
            if (sizeof(E) == 2) load4(rems, rem + at);
            mc = *reinterpret_cast<const u32*>(m + at);
            vc = *reinterpret_cast<const u32*>(v + at);
            load4(gs, grad + at);
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                if (k < n) {
                    ws[k] = w[at + k];
                    if (sizeof(E) == 2) rems[k] = rem[at + k];
                    mc |= (u32)m[at + k] << 8 * k;
                    vc |= (u32)v[at + k] << 8 * k;
                    gs[k] = grad[at + k];
                }
            }
        }
        float sm = m_scale[block], sv = v_scale[block];
        float ms[4], vs[4];
        u32 m_top = 0, v_top = 0;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            ms[k] = first(mc >> 8 * k & 0xffu, sm);
            vs[k] = second(vc >> 8 * k & 0xffu, sv);
            if (k < n) {
                one(c, keep, widen(gs[k]), ws[k], rems[k], ms[k], vs[k]);
                u32 mb = __float_as_uint(ms[k]) & 0x7fffffffu;
                u32 vb = __float_as_uint(vs[k]) & 0x7fffffffu;
                m_top = mb > m_top ? mb : m_top;
                v_top = vb > v_top ? vb : v_top;
            }
        }
        float m_inverse, v_inverse;
        bool m_finite = scales(warp_top(m_top), sm, m_inverse);
        bool v_finite = scales(warp_top(v_top), sv, v_inverse);
        mc = vc = 0;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            mc |= (m_finite ? first_code(ms[k], m_inverse) : 0x7fu) << 8 * k;
            vc |= (v_finite ? second_code(vs[k], v_inverse) : 0xffu) << 8 * k;
        }
        if (four) {
            store4(w + at, ws);
            if (sizeof(E) == 2) store4(rem + at, rems);
            *reinterpret_cast<u32*>(m + at) = mc;
            *reinterpret_cast<u32*>(v + at) = vc;
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                if (k < n) {
                    w[at + k] = ws[k];
                    if (sizeof(E) == 2) rem[at + k] = rems[k];
                    m[at + k] = (u8)(mc >> 8 * k);
                    v[at + k] = (u8)(vc >> 8 * k);
                }
            }
        }
        if ((threadIdx.x & 31) == 0) m_scale[block] = sm, v_scale[block] = sv;
    }
}

// The step with gradients of type G. Without `clip` (factor, norm, go) the scale is `grad_scale`;
// with `parts`, nothing is written unless all of them are finite. `wide` says that every array
// starts at a multiple of 16 bytes; `tiles` is the sum of the segments' tiles.
#define STEP(NAME, G)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 5)                                       \
        NAME(E* w, u16* rem, float* m, float* v, const G* grad, float grad_scale,                  \
             float one_minus_beta1, float one_minus_beta2, float root_correction2, float eps,      \
             float keep, float minus_rate, const double* clip, const double* parts, u64 n_parts,   \
             int wide, u64 tiles, ALL(SEGMENT)) {                                                  \
        __shared__ u64 place[SEGMENTS], length[SEGMENTS];                                          \
        if (threadIdx.x == 0) {                                                                    \
            ALL(PUT);                                                                              \
        }                                                                                          \
        Factors c = {grad_scale, one_minus_beta1, one_minus_beta2, root_correction2,               \
                     eps,        keep,            minus_rate};                                     \
        steps<G, float>(w, rem, m, v, grad, c, clip, parts, n_parts, wide != 0, tiles, place,      \
                        length, nullptr);                                                          \
    }

// The same with bf16 moments: behind the segments their random bits.
#define RANDOM(i) u64 random##i
#define PUT_RANDOM(i) random[i] = random##i
#define STEP16(NAME, G)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 5)                                       \
        NAME(E* w, u16* rem, u16* m, u16* v, const G* grad, float grad_scale,                      \
             float one_minus_beta1, float one_minus_beta2, float root_correction2, float eps,      \
             float keep, float minus_rate, const double* clip, const double* parts, u64 n_parts,   \
             int wide, u64 tiles, ALL(SEGMENT), ALL(RANDOM)) {                                     \
        __shared__ u64 place[SEGMENTS], length[SEGMENTS], random[SEGMENTS];                        \
        if (threadIdx.x == 0) {                                                                    \
            ALL(PUT);                                                                              \
            ALL(PUT_RANDOM);                                                                       \
        }                                                                                          \
        Factors c = {grad_scale, one_minus_beta1, one_minus_beta2, root_correction2,               \
                     eps,        keep,            minus_rate};                                     \
        steps<G, u16>(w, rem, m, v, grad, c, clip, parts, n_parts, wide != 0, tiles, place,        \
                      length, random);                                                             \
    }

// The same with 8-bit moments: behind the segments the scales.
#define STEP8(NAME, G)                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                       \
        NAME(E* w, u16* rem, u8* m, u8* v, const G* grad, float grad_scale,                        \
             float one_minus_beta1, float one_minus_beta2, float root_correction2, float eps,      \
             float keep, float minus_rate, const double* clip, const double* parts, u64 n_parts,   \
             int wide, u64 tiles, ALL(SEGMENT), float* m_scale, float* v_scale) {                  \
        __shared__ u64 place[SEGMENTS], length[SEGMENTS];                                          \
        if (threadIdx.x == 0) {                                                                    \
            ALL(PUT);                                                                              \
        }                                                                                          \
        Factors c = {grad_scale, one_minus_beta1, one_minus_beta2, root_correction2,               \
                     eps,        keep,            minus_rate};                                     \
        steps8<G>(w, rem, m, v, grad, c, clip, parts, n_parts, wide != 0, tiles, place, length,    \
                  m_scale, v_scale);                                                               \
    }

STEP(step_bf16, u16)
STEP(step_f32, float)
STEP16(step_bf16_bf16, u16)
STEP16(step_f32_bf16, float)
STEP8(step_bf16_int8, u16)
STEP8(step_f32_int8, float)
