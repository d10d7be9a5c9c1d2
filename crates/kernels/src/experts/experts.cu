// Rows around the products of experts: a block a row.
#include "common.cuh"

// silu and its derivative, as in swiglu.cu.
__device__ __forceinline__ float sigmoid(float x) {
    float d = 1.0f + expf(x < -86.0f ? 86.0f : -x), r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
    return fmaf(r, fmaf(-d, r, 1.0f), r);
}

// Numbers that are loaded at once: eight, or one where rows are no multiple of them.
template <int N> struct Some {
    float x[N];
};
template <int N> __device__ __forceinline__ Some<N> get(const E* p) {
    Some<N> r;
    if constexpr (N == 8) {
        Eight v = load8(p);
#pragma unroll
        for (int i = 0; i < 8; i++) r.x[i] = v.x[i];
    } else {
        r.x[0] = widen(*p);
    }
    return r;
}
template <int N> __device__ __forceinline__ void put(E* p, const Some<N>& v) {
    if constexpr (N == 8) {
        Eight w;
#pragma unroll
        for (int i = 0; i < 8; i++) w.x[i] = v.x[i];
        store8(p, w);
    } else {
        *p = narrow<E>(v.x[0]);
    }
}

template <int N>
__device__ __forceinline__ void gather_row(E* y, const E* x, const int* tokens, u64 width) {
    const u64 row = blockIdx.x;
    const E* from = x + (u64)tokens[row] * width;
    for (u64 i = threadIdx.x * N; i < width; i += blockDim.x * N)
        put<N>(y + row * width + i, get<N>(from + i));
}

template <int N>
__device__ __forceinline__ void combine_row(E* y, const E* x, const E* residual, const int* places,
                                            u64 chosen, u64 width) {
    const u64 row = blockIdx.x;
    const int* of = places + row * chosen;
    for (u64 i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        Some<N> sum = get<N>(x + (u64)of[0] * width + i);
        for (u64 j = 1; j < chosen; j++) {
            Some<N> more = get<N>(x + (u64)of[j] * width + i);
#pragma unroll
            for (int l = 0; l < N; l++) sum.x[l] += more.x[l];
        }
        Some<N> more = get<N>(residual + row * width + i);
#pragma unroll
        for (int l = 0; l < N; l++) sum.x[l] += more.x[l];
        put<N>(y + row * width + i, sum);
    }
}

template <int N>
__device__ __forceinline__ void act_row(E* y, const E* gate_up, const float* weights, u64 f) {
    const u64 row = blockIdx.x;
    const float weight = weights[row];
    const E* gates = gate_up + row * 2 * f;
    for (u64 i = threadIdx.x * N; i < f; i += blockDim.x * N) {
        Some<N> gate = get<N>(gates + i), up = get<N>(gates + f + i);
#pragma unroll
        for (int l = 0; l < N; l++)
            gate.x[l] = weight * (gate.x[l] * sigmoid(gate.x[l]) * up.x[l]);
        put<N>(y + row * f + i, gate);
    }
}

template <int N>
__device__ __forceinline__ void act_backward_row(E* d_gate_up, float* d_weights, const E* dy,
                                                 const E* gate_up, const float* weights, u64 f) {
    __shared__ float scratch[33];
    const u64 row = blockIdx.x;
    const float weight = weights[row];
    const E* gates = gate_up + row * 2 * f;
    E* to = d_gate_up + row * 2 * f;
    float total = 0.0f;
    for (u64 i = threadIdx.x * N; i < f; i += blockDim.x * N) {
        Some<N> gate = get<N>(gates + i), up = get<N>(gates + f + i), d = get<N>(dy + row * f + i);
#pragma unroll
        for (int l = 0; l < N; l++) {
            float g = gate.x[l], s = sigmoid(g), value = g * s;
            float plain = d.x[l], dl = weight * plain;
            total += plain * (value * up.x[l]);
            gate.x[l] = dl * up.x[l] * (s + g * s * (1.0f - s));
            up.x[l] = dl * value;
        }
        put<N>(to + i, gate);
        put<N>(to + f + i, up);
    }
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) d_weights[row] = total;
}

#define BOTH(NAME, N)                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                              \
        gather##NAME(E* y, const E* x, const int* tokens, u64 width) {                             \
        gather_row<N>(y, x, tokens, width);                                                        \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                              \
        combine##NAME(E* y, const E* x, const E* residual, const int* places, u64 chosen,          \
                      u64 width) {                                                                 \
        combine_row<N>(y, x, residual, places, chosen, width);                                     \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                              \
        act##NAME(E* y, const E* gate_up, const float* weights, u64 f) {                           \
        act_row<N>(y, gate_up, weights, f);                                                        \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                              \
        act_backward##NAME(E* d_gate_up, float* d_weights, const E* dy, const E* gate_up,          \
                           const float* weights, u64 f) {                                          \
        act_backward_row<N>(d_gate_up, d_weights, dy, gate_up, weights, f);                        \
    }

BOTH(, 8)
BOTH(_plain, 1)
