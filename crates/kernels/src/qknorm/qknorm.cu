// RMSNorm of the queries of a row together and of its keys: the first `queries` numbers and the next `keys`, each part
// with a weight of its own; as many values as keys follow and pass.
#include "common.cuh"

// A block a row, which it reads twice, the second time from the caches.
extern "C" __global__ void __launch_bounds__(256)
    forward(E* __restrict__ y, float* __restrict__ rstds, const E* __restrict__ x,
            const E* __restrict__ wq, const E* __restrict__ wk, u64 queries, u64 keys, float eps) {
    __shared__ float scratch[33];
    const u64 row = blockIdx.x, width = queries + 2 * keys;
    x += row * width;
    y += row * width;
    for (int part = 0; part < 2; part++) {
        const u64 start = part ? queries : 0, n = part ? keys : queries;
        const E* w = part ? wk : wq;
        float squares = 0;
        for (u64 i = threadIdx.x; i < n; i += blockDim.x)
            squares += widen(x[start + i]) * widen(x[start + i]);
        float rstd = 1.0f / sqrtf(block_sum(squares, scratch) / (float)n + eps);
        if (threadIdx.x == 0) rstds[2 * row + part] = rstd;
        for (u64 i = threadIdx.x; i < n; i += blockDim.x)
            y[start + i] = narrow<E>(widen(x[start + i]) * rstd * widen(w[i]));
    }
    for (u64 i = queries + keys + threadIdx.x; i < width; i += blockDim.x) y[i] = x[i];
}

// A block a run of rows; the partial, queries + keys numbers, is added up where it lies, each number by one thread.
extern "C" __global__ void __launch_bounds__(256)
    backward(E* __restrict__ dx, float* __restrict__ partials, const E* __restrict__ dy,
             const E* __restrict__ x, const float* __restrict__ rstds, const E* __restrict__ wq,
             const E* __restrict__ wk, u64 rows, u64 queries, u64 keys, u64 run) {
    __shared__ float scratch[33];
    const u64 width = queries + 2 * keys;
    float* dw = partials + blockIdx.x * (queries + keys);
    for (u64 i = threadIdx.x; i < queries + keys; i += blockDim.x) dw[i] = 0;
    __syncthreads();
    const u64 first = blockIdx.x * run, end = first + run < rows ? first + run : rows;
    for (u64 row = first; row < end; row++) {
        for (int part = 0; part < 2; part++) {
            const u64 start = part ? queries : 0, n = part ? keys : queries;
            const u64 at = row * width + start;
            const E* w = part ? wk : wq;
            const float rstd = rstds[2 * row + part];
            float sum = 0;
            for (u64 i = threadIdx.x; i < n; i += blockDim.x) {
                float d = widen(dy[at + i]), hat = widen(x[at + i]) * rstd;
                sum += d * widen(w[i]) * hat;
                dw[start + i] += d * hat;
            }
            float mean = block_sum(sum, scratch) / (float)n;
            for (u64 i = threadIdx.x; i < n; i += blockDim.x) {
                float hat = widen(x[at + i]) * rstd;
                dx[at + i] = narrow<E>(rstd * (widen(dy[at + i]) * widen(w[i]) - hat * mean));
            }
            // Keys begin at another thread's column.
            __syncthreads();
        }
        for (u64 i = queries + keys + threadIdx.x; i < width; i += blockDim.x)
            dx[row * width + i] = dy[row * width + i];
    }
}
