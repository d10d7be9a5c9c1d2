// y = p + bias + residual, rounded once: the end of a product that the library computes without
// its bias and residual. p is float (rows, cols); bias and residual may be null.
#include "common.cuh"

extern "C" __global__ void store(E* y, const float* p, const E* bias, const E* residual,
                                 unsigned long long cols) {
    u64 row = (u64)blockIdx.x * cols;
    for (u64 j = threadIdx.x; j < cols; j += blockDim.x) {
        float x = p[row + j];
        if (bias) x += widen(bias[j]);
        if (residual) x += widen(residual[row + j]);
        y[row + j] = narrow<E>(x);
    }
}
