// LayerNorm: RMSNorm's kernels with a mean and a bias.
#include "norm.cuh"

extern "C" __global__ void __launch_bounds__(512)
    forward(E* y, float* mean, float* rstd, const E* x, const E* w, const E* b, u64 rows, u64 c,
            int warps, float eps) {
    norm_forward<true>(y, mean, rstd, x, w, b, rows, c, warps, eps);
}

extern "C" __global__ void __launch_bounds__(256)
    forward_plain(E* y, float* mean, float* rstd, const E* x, const E* w, const E* b, u64 c,
                  float eps) {
    norm_forward_plain<true>(y, mean, rstd, x, w, b, c, eps);
}

extern "C" __global__ void __launch_bounds__(512)
    backward(E* dx, float* partials, const E* dy, const E* x, const float* mean, const float* rstd,
             const E* w, const E* residual, u64 rows, u64 c, u64 run, int warps) {
    norm_backward<true>(dx, partials, dy, x, mean, rstd, w, residual, rows, c, run, warps);
}

extern "C" __global__ void __launch_bounds__(256)
    backward_plain(E* dx, float* partials, const E* dy, const E* x, const float* mean,
                   const float* rstd, const E* w, const E* residual, u64 rows, u64 c, u64 run) {
    norm_backward_plain<true>(dx, partials, dy, x, mean, rstd, w, residual, rows, c, run);
}
