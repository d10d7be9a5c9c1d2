// One AdamW step over segments of a piece, with the host's bits.
//
// Memory-bound: 26 bytes a number, each once. A number's result depends on that number alone, so
// the grid may follow the device.
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

template <typename G>
__device__ __forceinline__ void steps(E* w, u16* rem, float* m, float* v, const G* grad, Factors c,
                                      const double* clip, const double* parts, u64 n_parts,
                                      bool wide, u64 tiles, const u64* place, const u64* length) {
    // All blocks see the same `clip` and `parts`, so all go or none.
    if (clip) {
        if (clip[2] == 0.0) return;
        c.grad_scale = __double2float_rn(clip[0]);
    }
    int bad = 0;
    if (parts) {
        for (u64 i = threadIdx.x; i < n_parts; i += THREADS)
            bad |= ((u32)__double2hiint(parts[i]) & 0x7ff00000u) == 0x7ff00000u;
    }
    // Also makes the list of segments visible.
    if (__syncthreads_or(bad)) return;

    int segment = 0;
    u64 first = 0; // tile of the segment's start
    u64 own = (length[0] + TILE - 1) / TILE;
    for (u64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        while (tile >= first + own) {
            first += own;
            segment++;
            own = (length[segment] + TILE - 1) / TILE;
        }
        u64 end = length[segment], offset = place[segment] & ~1ull;
        float keep = (place[segment] & 1) ? c.keep : 1.0f;
        u64 i = (tile - first) * TILE + 4 * threadIdx.x;
        if (wide && i + 4 <= end) {
            u64 at = offset + i;
            E ws[4];
            u16 rems[4];
            float ms[4], vs[4];
            G gs[4];
            load4(ws, w + at);
            if (sizeof(E) == 2) load4(rems, rem + at);
            load4(ms, m + at);
            load4(vs, v + at);
            load4(gs, grad + at);
#pragma unroll
            for (int k = 0; k < 4; k++) one(c, keep, widen(gs[k]), ws[k], rems[k], ms[k], vs[k]);
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
                one(c, keep, widen(grad[at]), w[at], r, m[at], v[at]);
                if (sizeof(E) == 2) rem[at] = r;
            }
        }
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
        steps<G>(w, rem, m, v, grad, c, clip, parts, n_parts, wide != 0, tiles, place, length);    \
    }

STEP(step_bf16, u16)
STEP(step_f32, float)
