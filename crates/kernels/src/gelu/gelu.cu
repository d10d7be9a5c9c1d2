// GELU. ½·(1 + tanh(u)) is sigmoid(2u), which needs one exponential, as the exact form does. `groups` groups of eight
// numbers, then one by one what is left of n: fewer than eight where the tensors allow wide
// access, all of them (no groups) where they do not.
#include "common.cuh"

// Groups that a thread has under way: as in the launcher.
constexpr int DEPTH = 2;

constexpr float TWICE_SLOPE = 1.5957692f;  // 2·√(2/π)
constexpr float CUBIC = 0.044715f;

// 1 / (1 + e^-x). The exponential is at most e^86, as on the CPU device nearly (e^88), so that the
// approximate reciprocal and its correction stay within normal numbers; NaN stays NaN.
__device__ __forceinline__ float sigmoid(float x) {
    float d = 1.0f + expf(x < -86.0f ? 86.0f : -x), r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
    return fmaf(r, fmaf(-d, r, 1.0f), r);
}

__device__ __forceinline__ float gelu(float x) {
    return x * sigmoid(TWICE_SLOPE * (x + CUBIC * x * x * x));
}

__device__ __forceinline__ float gradient(float dy, float x) {
    float s = sigmoid(TWICE_SLOPE * (x + CUBIC * x * x * x));
    float slope = TWICE_SLOPE * (1.0f + 3.0f * CUBIC * x * x);
    return dy * (s + x * s * (1.0f - s) * slope);
}

struct Tanh {
    static __device__ __forceinline__ float value(float x) { return gelu(x); }
    static __device__ __forceinline__ float back(float dy, float x) { return gradient(dy, x); }
};

// x·Φ(x), by the exponential of the density and the fit that cpu.rs tells of.
struct Exact {
    static __device__ __forceinline__ float normal(float x, float& density) {
        float size = fabsf(x), t = 1.0f / fmaf(0.35f, size, 1.0f);
        float p = -0.029146075f;
        p = fmaf(p, t, 0.1439724f);
        p = fmaf(p, t, -0.2557157f);
        p = fmaf(p, t, 0.15917578f);
        p = fmaf(p, t, -0.02311094f);
        p = fmaf(p, t, 0.10550846f);
        p = fmaf(p, t, 0.119832754f);
        p = fmaf(p, t, 0.13986188f);
        p = fmaf(p, t, 0.1396214f);
        float e = expf(-0.5f * size * size), tail = e * (p * t);
        density = 0.3989423f * e;
        return x < 0.0f ? tail : 1.0f - tail;
    }
    static __device__ __forceinline__ float value(float x) {
        float density;
        return x * normal(x, density);
    }
    static __device__ __forceinline__ float back(float dy, float x) {
        float density, whole = normal(x, density);
        return dy * fmaf(x, density, whole);
    }
};

// NaN stays NaN.
struct Relu {
    static __device__ __forceinline__ float value(float x) { return x < 0.0f ? 0.0f : x; }
    static __device__ __forceinline__ float back(float dy, float x) { return x <= 0.0f ? 0.0f : dy; }
};

template <class FORM>
__device__ __forceinline__ void forward_of(E* __restrict__ y, const E* __restrict__ x, u64 n,
                                           u64 groups) {
    u64 first = (u64)blockIdx.x * (DEPTH * blockDim.x) + threadIdx.x;
    Eight e[DEPTH];
#pragma unroll
    for (int k = 0; k < DEPTH; k++) {
        u64 g = first + k * blockDim.x;
        if (g < groups) e[k] = load8(x + 8 * g);
    }
#pragma unroll
    for (int k = 0; k < DEPTH; k++) {
        u64 g = first + k * blockDim.x;
        if (g >= groups) continue;
#pragma unroll
        for (int i = 0; i < 8; i++) e[k].x[i] = FORM::value(e[k].x[i]);
        store8(y + 8 * g, e[k]);
    }
    u64 rest = 8 * groups + (u64)blockIdx.x * blockDim.x + threadIdx.x;
#pragma unroll 1
    for (u64 i = rest; i < n; i += (u64)gridDim.x * blockDim.x)
        y[i] = narrow<E>(FORM::value(widen(x[i])));
}

template <class FORM>
__device__ __forceinline__ void backward_of(E* __restrict__ dx, const E* __restrict__ dy,
                                            const E* __restrict__ x, u64 n, u64 groups) {
    u64 first = (u64)blockIdx.x * (DEPTH * blockDim.x) + threadIdx.x;
    Eight e[DEPTH], d[DEPTH];
#pragma unroll
    for (int k = 0; k < DEPTH; k++) {
        u64 g = first + k * blockDim.x;
        if (g < groups) {
            e[k] = load8(x + 8 * g);
            d[k] = load8(dy + 8 * g);
        }
    }
#pragma unroll
    for (int k = 0; k < DEPTH; k++) {
        u64 g = first + k * blockDim.x;
        if (g >= groups) continue;
#pragma unroll
        for (int i = 0; i < 8; i++) d[k].x[i] = FORM::back(d[k].x[i], e[k].x[i]);
        store8(dx + 8 * g, d[k]);
    }
    u64 rest = 8 * groups + (u64)blockIdx.x * blockDim.x + threadIdx.x;
#pragma unroll 1
    for (u64 i = rest; i < n; i += (u64)gridDim.x * blockDim.x)
        dx[i] = narrow<E>(FORM::back(widen(dy[i]), widen(x[i])));
}

extern "C" __global__ void __launch_bounds__(256)
    forward(E* __restrict__ y, const E* __restrict__ x, u64 n, u64 groups) {
    forward_of<Tanh>(y, x, n, groups);
}

extern "C" __global__ void __launch_bounds__(256)
    forward_exact(E* __restrict__ y, const E* __restrict__ x, u64 n, u64 groups) {
    forward_of<Exact>(y, x, n, groups);
}

extern "C" __global__ void __launch_bounds__(256)
    backward(E* __restrict__ dx, const E* __restrict__ dy, const E* __restrict__ x, u64 n,
             u64 groups) {
    backward_of<Tanh>(dx, dy, x, n, groups);
}

extern "C" __global__ void __launch_bounds__(256)
    backward_exact(E* __restrict__ dx, const E* __restrict__ dy, const E* __restrict__ x, u64 n,
                   u64 groups) {
    backward_of<Exact>(dx, dy, x, n, groups);
}

extern "C" __global__ void __launch_bounds__(256)
    forward_relu(E* __restrict__ y, const E* __restrict__ x, u64 n, u64 groups) {
    forward_of<Relu>(y, x, n, groups);
}

extern "C" __global__ void __launch_bounds__(256)
    backward_relu(E* __restrict__ dx, const E* __restrict__ dy, const E* __restrict__ x, u64 n,
                  u64 groups) {
    backward_of<Relu>(dx, dy, x, n, groups);
}
