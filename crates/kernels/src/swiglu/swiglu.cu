// SwiGLU and GeGLU. Groups of eight numbers where F is a multiple of eight, single numbers otherwise, in one
// flat count over all rows: rows of any length fill the blocks alike.
#include "common.cuh"

// Groups that a thread has under way.
constexpr int DEPTH = 2;

// Groups of `N` numbers as floats.
template <int N> struct Group {
    float x[N];
};
template <int N> __device__ __forceinline__ Group<N> load(const E* p) {
    Group<N> g;
    if constexpr (N == 8) {
        Eight e = load8(p);
#pragma unroll
        for (int i = 0; i < 8; i++) g.x[i] = e.x[i];
    } else {
        g.x[0] = widen(*p);
    }
    return g;
}
template <int N> __device__ __forceinline__ void store(E* p, const Group<N>& g) {
    if constexpr (N == 8) {
        Eight e;
#pragma unroll
        for (int i = 0; i < 8; i++) e.x[i] = g.x[i];
        store8(p, e);
    } else {
        *p = narrow<E>(g.x[0]);
    }
}

// 1 / (1 + e^-x). The exponential is at most e^86, as on the CPU device nearly (e^88), so that the
// approximate reciprocal and its correction stay within normal numbers; NaN stays NaN.
__device__ __forceinline__ float sigmoid(float x) {
    float d = 1.0f + expf(x < -86.0f ? 86.0f : -x), r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
    return fmaf(r, fmaf(-d, r, 1.0f), r);
}

// What becomes of a gate, and its derivative: silu'(g) = s + g·s·(1 - s) with s = sigmoid(g).
struct Silu {
    static __device__ __forceinline__ void of(float g, float& value, float& slope) {
        float s = sigmoid(g);
        value = g * s;
        slope = s + g * s * (1.0f - s);
    }
};

// GELU in its tanh form, as in gelu.cu.
struct Gelu {
    static __device__ __forceinline__ void of(float g, float& value, float& slope) {
        constexpr float TWICE_SLOPE = 1.5957692f, CUBIC = 0.044715f;
        float s = sigmoid(TWICE_SLOPE * (g + CUBIC * g * g * g));
        value = g * s;
        slope = s + g * s * (1.0f - s) * (TWICE_SLOPE * (1.0f + 3.0f * CUBIC * g * g));
    }
};

// The groups of this thread, as (row, first number in its half of the row).
template <int N> struct Place {
    u64 row[DEPTH];
    u32 at[DEPTH];
    bool here[DEPTH];

    __device__ Place(u64 rows, u64 f) {
        const u32 groups = (u32)(f / N);
        const u64 first = (u64)blockIdx.x * (DEPTH * blockDim.x);
        const u64 row0 = first / groups;
        const u32 group0 = (u32)(first - row0 * groups);
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            // Below 2^32: a row has fewer than 2^31 groups.
            u32 group = group0 + k * blockDim.x + threadIdx.x, more = group / groups;
            row[k] = row0 + more;
            at[k] = (group - more * groups) * N;
            here[k] = row[k] < rows;
        }
    }
};

template <class Gate, int N>
__device__ __forceinline__ void forward_groups(E* __restrict__ y, const E* __restrict__ gate_up,
                                               u64 rows, u64 f) {
    Place<N> p(rows, f);
    Group<N> gate[DEPTH], up[DEPTH];
#pragma unroll
    for (int k = 0; k < DEPTH; k++) {
        if (!p.here[k]) continue;
        const E* from = gate_up + p.row[k] * 2 * f + p.at[k];
        gate[k] = load<N>(from);
        up[k] = load<N>(from + f);
    }
#pragma unroll
    for (int k = 0; k < DEPTH; k++) {
        if (!p.here[k]) continue;
#pragma unroll
        for (int i = 0; i < N; i++) {
            float value, slope;
            Gate::of(gate[k].x[i], value, slope);
            gate[k].x[i] = value * up[k].x[i];
        }
        store<N>(y + p.row[k] * f + p.at[k], gate[k]);
    }
}

template <class Gate, int N>
__device__ __forceinline__ void backward_groups(E* __restrict__ d_gate_up,
                                                const E* __restrict__ dy,
                                                const E* __restrict__ gate_up, u64 rows, u64 f) {
    Place<N> p(rows, f);
    Group<N> gate[DEPTH], up[DEPTH], d[DEPTH];
#pragma unroll
    for (int k = 0; k < DEPTH; k++) {
        if (!p.here[k]) continue;
        const E* from = gate_up + p.row[k] * 2 * f + p.at[k];
        gate[k] = load<N>(from);
        up[k] = load<N>(from + f);
        d[k] = load<N>(dy + p.row[k] * f + p.at[k]);
    }
#pragma unroll
    for (int k = 0; k < DEPTH; k++) {
        if (!p.here[k]) continue;
#pragma unroll
        for (int i = 0; i < N; i++) {
            float value, slope, dy_i = d[k].x[i];
            Gate::of(gate[k].x[i], value, slope);
            gate[k].x[i] = dy_i * up[k].x[i] * slope;
            up[k].x[i] = dy_i * value;
        }
        E* to = d_gate_up + p.row[k] * 2 * f + p.at[k];
        store<N>(to, gate[k]);
        store<N>(to + f, up[k]);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    forward(E* y, const E* gate_up, u64 rows, u64 f) {
    forward_groups<Silu, 8>(y, gate_up, rows, f);
}
extern "C" __global__ void __launch_bounds__(256)
    forward_plain(E* y, const E* gate_up, u64 rows, u64 f) {
    forward_groups<Silu, 1>(y, gate_up, rows, f);
}
extern "C" __global__ void __launch_bounds__(256)
    backward(E* d_gate_up, const E* dy, const E* gate_up, u64 rows, u64 f) {
    backward_groups<Silu, 8>(d_gate_up, dy, gate_up, rows, f);
}
extern "C" __global__ void __launch_bounds__(256)
    backward_plain(E* d_gate_up, const E* dy, const E* gate_up, u64 rows, u64 f) {
    backward_groups<Silu, 1>(d_gate_up, dy, gate_up, rows, f);
}

extern "C" __global__ void __launch_bounds__(256)
    gelu_forward(E* y, const E* gate_up, u64 rows, u64 f) {
    forward_groups<Gelu, 8>(y, gate_up, rows, f);
}
extern "C" __global__ void __launch_bounds__(256)
    gelu_forward_plain(E* y, const E* gate_up, u64 rows, u64 f) {
    forward_groups<Gelu, 1>(y, gate_up, rows, f);
}
extern "C" __global__ void __launch_bounds__(256)
    gelu_backward(E* d_gate_up, const E* dy, const E* gate_up, u64 rows, u64 f) {
    backward_groups<Gelu, 8>(d_gate_up, dy, gate_up, rows, f);
}
extern "C" __global__ void __launch_bounds__(256)
    gelu_backward_plain(E* d_gate_up, const E* dy, const E* gate_up, u64 rows, u64 f) {
    backward_groups<Gelu, 1>(d_gate_up, dy, gate_up, rows, f);
}
