// y = factor·x [+ residual]. `groups` groups of eight numbers, then one by one what is left of n: fewer
// than eight where the tensors allow wide access, all of them (no groups) where they do not.
#include "common.cuh"

// Groups that a thread has under way: as in the launcher.
constexpr int DEPTH = 2;

extern "C" __global__ void __launch_bounds__(256)
    forward(E* __restrict__ y, const E* __restrict__ x, const E* __restrict__ residual, u64 n,
            u64 groups, float factor) {
    u64 first = (u64)blockIdx.x * (DEPTH * blockDim.x) + threadIdx.x;
    Eight e[DEPTH], r[DEPTH];
#pragma unroll
    for (int k = 0; k < DEPTH; k++) {
        u64 g = first + k * blockDim.x;
        if (g < groups) {
            e[k] = load8(x + 8 * g);
            if (residual) r[k] = load8(residual + 8 * g);
        }
    }
#pragma unroll
    for (int k = 0; k < DEPTH; k++) {
        u64 g = first + k * blockDim.x;
        if (g >= groups) continue;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            e[k].x[i] *= factor;
            if (residual) e[k].x[i] += r[k].x[i];
        }
        store8(y + 8 * g, e[k]);
    }
    u64 rest = 8 * groups + (u64)blockIdx.x * blockDim.x + threadIdx.x;
#pragma unroll 1
    for (u64 i = rest; i < n; i += (u64)gridDim.x * blockDim.x) {
        float sum = factor * widen(x[i]);
        if (residual) sum += widen(residual[i]);
        y[i] = narrow<E>(sum);
    }
}
