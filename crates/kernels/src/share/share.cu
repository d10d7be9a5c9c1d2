// Shares of a gradient that several units add up in f32.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256)
    add(float* __restrict__ sum, const E* __restrict__ x, u64 n, u64 accumulate) {
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x)
        sum[i] = accumulate ? sum[i] + widen(x[i]) : widen(x[i]);
}

extern "C" __global__ void __launch_bounds__(256)
    round_sum(E* __restrict__ y, const float* __restrict__ sum, u64 n) {
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (u64)gridDim.x * blockDim.x)
        y[i] = narrow<E>(sum[i]);
}
