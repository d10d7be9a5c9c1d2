// Cross-entropy of a chunk of logits, and its gradient in their place.
//
// Memory-bound: a logit is read and its gradient written once. A row is read twice, and 300 KB of
// one do not stay in a multiprocessor whole: what fits is kept in shared memory, and the rest is
// read again from L2, where 132 rests are a few MB.
#pragma once
#include "common.cuh"

// Numbers of 16 bytes.
const int VECTOR = 16 / sizeof(E);
const float LOG2_E = 1.44269504f;

__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }
__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

// e^d for d <= 0, 0 below -87.3. The argument is a difference that was rounded before it is scaled,
// so the largest logit gives exactly 1. The error relative to 1, the least that a sum has, is
// 2^-22.
__device__ __forceinline__ float exp_negative(float d) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(d * LOG2_E));
    return y;
}

// The largest number so far and the sum of e^(x - largest); (-inf, 0) for none.
struct Softmax {
    float most, sum;
};

// What to subtract: never -inf, whose difference with itself is NaN.
__device__ __forceinline__ float origin(float most) {
    return most == minus_infinity() ? 0.0f : most;
}

__device__ __forceinline__ Softmax join(Softmax a, Softmax b) {
    float most = fmaxf(a.most, b.most), from = origin(most);
    // Explicit roundings, here and below: contracted one way in one kernel and another way in the
    // next, the loss alone would have other bits than in training.
    float left = __fmul_rn(a.sum, exp_negative(a.most - from));
    float right = __fmul_rn(b.sum, exp_negative(b.most - from));
    return {most, __fadd_rn(left, right)};
}

// Adds N numbers. A NaN among them makes the sum NaN.
template <int N> __device__ __forceinline__ void add(Softmax& s, const float* x) {
    float most = s.most;
#pragma unroll
    for (int i = 0; i < N; i++) most = fmaxf(most, x[i]);
    float from = origin(most);
    if (most != s.most) s.sum = __fmul_rn(s.sum, exp_negative(s.most - from));
    float sum = exp_negative(x[0] - from);
#pragma unroll
    for (int i = 1; i < N; i++) sum = __fadd_rn(sum, exp_negative(x[i] - from));
    s.most = most;
    s.sum = __fadd_rn(s.sum, sum);
}

// A unit of a row: 16 bytes, or one number where rows are no whole 16 bytes.
template <bool WIDE> struct Unit;
template <> struct Unit<true> {
    static const int N = VECTOR;
    typedef uint4 Raw;
    static __device__ __forceinline__ void widened(Raw r, float* x) {
        u32 w[4] = {r.x, r.y, r.z, r.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
#ifdef BF16
            x[2 * i] = __uint_as_float(w[i] << 16);
            x[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
#else
            x[i] = __uint_as_float(w[i]);
#endif
        }
    }
    static __device__ __forceinline__ Raw narrowed(const float* x) {
        u32 w[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
#ifdef BF16
            w[i] = to_bf16x2(x[2 * i], x[2 * i + 1]);
#else
            w[i] = __float_as_uint(x[i]);
#endif
        }
        return make_uint4(w[0], w[1], w[2], w[3]);
    }
};
template <> struct Unit<false> {
    static const int N = 1;
    typedef E Raw;
    static __device__ __forceinline__ void widened(Raw r, float* x) { x[0] = widen(r); }
    static __device__ __forceinline__ Raw narrowed(const float* x) { return narrow<E>(x[0]); }
};

// Logits as the product makes them.
struct Plain {
    __device__ __forceinline__ float value(float x) const { return x; }
    __device__ __forceinline__ float slope(float) const { return 1.0f; }
};

// Logits times `factor`, then below `cap` by cap·tanh(x/cap) unless that is 0.
struct Bent {
    float factor, cap;
    __device__ __forceinline__ float value(float x) const {
        // Explicit roundings, for the reason that `join` gives.
        x = __fmul_rn(x, factor);
        return cap > 0.0f ? __fmul_rn(cap, tanhf(__fdiv_rn(x, cap))) : x;
    }
    // How fast it changes with the product's result.
    __device__ __forceinline__ float slope(float x) const {
        if (cap <= 0.0f) return factor;
        float t = tanhf(x * factor / cap);
        return factor * (1.0f - t * t);
    }
};

// One block a row, rows `stride` numbers apart; of how many threads, the width of the row says. Thread t has the units t,
// t + threads, ... of it, in order; then the warp's and the block's tree: the order of a sum
// depends on the width of the row alone. Without GRADIENT the logits stay, but for the first of a row, which becomes
// whether its label has the largest logit, and is the first of those that have.
//
// With SMOOTH a share `e` of the label is spread evenly over all tokens.
template <bool WIDE, bool GRADIENT, class Bend, bool SMOOTH = false>
__device__ __forceinline__ void row_loss(E* logits, double* losses, const int* labels, u64 vocab,
                                         u64 stride, float scale, u32 kept, Bend bend,
                                         float e = 0.0f) {
    typedef Unit<WIDE> U;
    typedef typename U::Raw Raw;
    const int FLIGHT = WIDE ? 4 : 8;
    extern __shared__ uint4 memory[];
    __shared__ Softmax warps[33];
    __shared__ float totals[33];
    const u32 THREADS = blockDim.x;
    Raw* shared = reinterpret_cast<Raw*>(memory);
    E* row = logits + (u64)blockIdx.x * stride;
    Raw* at = reinterpret_cast<Raw*>(row);
    u32 units = (u32)(vocab / U::N);
    int label = labels[blockIdx.x];
    if (label < 0 || (u64)label >= vocab) {
        // No loss; or a label outside the table, which must not pass for one.
        float fill = label < 0 ? 0.0f : not_a_number();
        if (threadIdx.x == 0) losses[blockIdx.x] = fill;
        if (!GRADIENT && threadIdx.x == 0) row[0] = narrow<E>(0.0f);
        if (GRADIENT) {
            float x[U::N];
#pragma unroll
            for (int i = 0; i < U::N; i++) x[i] = fill;
            Raw raw = U::narrowed(x);
            for (u32 u = threadIdx.x; u < units; u += THREADS) at[u] = raw;
        }
        return;
    }
    const float raw_chosen = widen(row[label]), chosen = bend.value(raw_chosen);

    Softmax s = {minus_infinity(), 0.0f};
    float total = 0.0f;
    for (u32 base = threadIdx.x; base < units; base += THREADS * FLIGHT) {
        Raw raw[FLIGHT];
#pragma unroll
        for (int k = 0; k < FLIGHT; k++)
            if (base + k * THREADS < units) raw[k] = at[base + k * THREADS];
#pragma unroll
        for (int k = 0; k < FLIGHT; k++) {
            u32 u = base + k * THREADS;
            if (u >= units) break;
            if (GRADIENT && u < kept) shared[u] = raw[k];
            float x[U::N];
            U::widened(raw[k], x);
#pragma unroll
            for (int i = 0; i < U::N; i++) x[i] = bend.value(x[i]);
            add<U::N>(s, x);
            if (SMOOTH) {
#pragma unroll
                for (int i = 0; i < U::N; i++) total = __fadd_rn(total, x[i]);
            }
        }
    }
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
        Softmax other = {__shfl_xor_sync(0xffffffffu, s.most, d),
                         __shfl_xor_sync(0xffffffffu, s.sum, d)};
        s = join(s, other);
        if (SMOOTH) total = __fadd_rn(total, __shfl_xor_sync(0xffffffffu, total, d));
    }
    int lane = threadIdx.x & 31;
    if (lane == 0) warps[threadIdx.x >> 5] = s;
    if (SMOOTH && lane == 0) totals[threadIdx.x >> 5] = total;
    __syncthreads();
    if (threadIdx.x < 32) {
        s = lane < (int)(THREADS >> 5) ? warps[lane] : Softmax{minus_infinity(), 0.0f};
        if (SMOOTH) total = lane < (int)(THREADS >> 5) ? totals[lane] : 0.0f;
#pragma unroll
        for (int d = 1; d < 32; d <<= 1) {
            Softmax other = {__shfl_xor_sync(0xffffffffu, s.most, d),
                             __shfl_xor_sync(0xffffffffu, s.sum, d)};
            s = join(s, other);
            if (SMOOTH) total = __fadd_rn(total, __shfl_xor_sync(0xffffffffu, total, d));
        }
        if (lane == 0) warps[32] = s;
        if (SMOOTH && lane == 0) totals[32] = total;
    }
    __syncthreads();
    s = warps[32];
    if (threadIdx.x == 0) {
        double loss = ((double)s.most + log((double)s.sum)) - (double)chosen;
        // Sharp, it is lse - label; so is the part of the others lse - mean.
        if (SMOOTH) loss += (double)e * ((double)chosen - (double)totals[32] / (double)vocab);
        losses[blockIdx.x] = loss;
    }
    if (!GRADIENT) {
        // The same for all threads, which have read all of the row.
        bool right = chosen == s.most;
        if (right) {
            int before = 0;
            for (u32 u = threadIdx.x; (u64)u * U::N < (u64)label && u < units; u += THREADS) {
                float x[U::N];
                U::widened(at[u], x);
#pragma unroll
                for (int i = 0; i < U::N; i++)
                    before |= (u64)u * U::N + i < (u64)label && bend.value(x[i]) == s.most;
            }
            right = !__syncthreads_or(before);
        }
        if (threadIdx.x == 0) row[0] = narrow<E>(right ? 1.0f : 0.0f);
        return;
    }

    float factor = __fdiv_rn(scale, s.sum), share = SMOOTH ? e / (float)vocab : 0.0f;
    for (u32 base = threadIdx.x; base < units; base += THREADS * FLIGHT) {
        Raw raw[FLIGHT];
#pragma unroll
        for (int k = 0; k < FLIGHT; k++) {
            u32 u = base + k * THREADS;
            // A thread reads again only what it read and kept itself.
            if (u < units) raw[k] = u < kept ? shared[u] : at[u];
        }
#pragma unroll
        for (int k = 0; k < FLIGHT; k++) {
            u32 u = base + k * THREADS;
            if (u >= units) break;
            float x[U::N];
            U::widened(raw[k], x);
#pragma unroll
            for (int i = 0; i < U::N; i++) {
                float p = exp_negative(bend.value(x[i]) - s.most) * factor;
                if (SMOOTH) p -= share * scale;
                x[i] = p * bend.slope(x[i]);
            }
            at[u] = U::narrowed(x);
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        float p = __fdiv_rn(exp_negative(chosen - s.most), s.sum);
        if (SMOOTH) p = p - (1.0f - e) - share;
        else p = p - 1.0f;
        row[label] = narrow<E>(p * scale * bend.slope(raw_chosen));
    }
}
