// RMSNorm, and the second half of every sum over rows: adding up the partials of runs of rows.
#include "norm.cuh"

extern "C" __global__ void __launch_bounds__(512)
    forward(E* y, float* rstd, const E* x, const E* w, u64 rows, u64 c, int warps, float eps) {
    norm_forward<false>(y, nullptr, rstd, x, w, nullptr, rows, c, warps, eps);
}

extern "C" __global__ void __launch_bounds__(256)
    forward_plain(E* y, float* rstd, const E* x, const E* w, u64 c, float eps) {
    norm_forward_plain<false>(y, nullptr, rstd, x, w, nullptr, c, eps);
}

extern "C" __global__ void __launch_bounds__(512)
    backward(E* dx, float* partials, const E* dy, const E* x, const float* rstd, const E* w,
             const E* residual, u64 rows, u64 c, u64 run, int warps) {
    norm_backward<false>(dx, partials, dy, x, nullptr, rstd, w, residual, rows, c, run, warps);
}

extern "C" __global__ void __launch_bounds__(256)
    backward_plain(E* dx, float* partials, const E* dy, const E* x, const float* rstd, const E* w,
                   const E* residual, u64 rows, u64 c, u64 run) {
    norm_backward_plain<false>(dx, partials, dy, x, nullptr, rstd, w, residual, rows, c, run);
}

// `to (+)= Σ partials[run][blockIdx.y·n ..][..n]` over `count` runs of `width` numbers, `second` in
// place of `to` where blockIdx.y is 1. A block has 32 columns and 16 slices of the runs: a slice is
// summed in order, then the slices in order.
extern "C" __global__ void __launch_bounds__(512)
    sum_partials(float* to, float* second, const float* partials, u64 n, u64 width, u64 count,
                 int accumulate) {
    __shared__ float slices[16][32];
    u32 lane = threadIdx.x & 31, slice = threadIdx.x >> 5;
    u64 column = (u64)blockIdx.x * 32 + lane;
    u64 each = (count + 15) / 16, first = slice * each;
    u64 end = first + each < count ? first + each : count;
    float total = 0;
    if (column < n) {
        const float* from = partials + blockIdx.y * n + column;
#pragma unroll 8
        for (u64 run = first; run < end; run++) total += from[run * width];
    }
    slices[slice][lane] = total;
    __syncthreads();
    if (slice != 0 || column >= n) return;
    for (int s = 1; s < 16; s++) total += slices[s][lane];
    float* out = (blockIdx.y == 0 ? to : second) + column;
    *out = accumulate ? *out + total : total;
}
