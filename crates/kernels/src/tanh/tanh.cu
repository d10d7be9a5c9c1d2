// The hyperbolic tangent, a number a thread: heads that classify have few of them.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256)
    forward(E* __restrict__ y, const E* __restrict__ x, u64 n) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = narrow<E>(tanhf(widen(x[i])));
}

extern "C" __global__ void __launch_bounds__(256)
    backward(E* __restrict__ dx, const E* __restrict__ dy, const E* __restrict__ y, u64 n) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float t = widen(y[i]);
    dx[i] = narrow<E>(widen(dy[i]) * (1.0f - t * t));
}
