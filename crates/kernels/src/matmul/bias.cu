// Column sums: the gradient of a bias.
//
// Memory-bound: reads each number of dy once; partial sums are a percent of that.
#include "common.cuh"

const int WARPS = 8;
const int SLAB = 256; // columns of a block: eight a lane

// A lane's eight columns of a row: neighbours, or (narrow accesses) every 32nd.
__device__ __forceinline__ Eight row8(const E* p, u64 slab, int lane, u64 cols, bool wide) {
    if (wide) return load8(p + slab + 8 * lane);
    Eight r;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u64 at = slab + lane + 32 * i;
        r.x[i] = at < cols ? widen(p[at]) : 0.0f;
    }
    return r;
}

// Sums of runs of `run` rows. A block has a run and a slab; its warps have an eighth of the run
// each, which they sum in the order of rows, and the eighths are added in order. `wide` says that
// rows are whole eights of numbers at multiples of 16 bytes. `run` is a multiple of 8.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    runs(float* parts, const E* dy, u64 rows, u64 cols, u64 run, int wide) {
    __shared__ float sums[WARPS][8][32];
    const int AHEAD = 4;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    u64 slab = (u64)blockIdx.x * SLAB;
    u64 each = run / WARPS;
    u64 at = (u64)blockIdx.y * run + warp * each, end = at + each;
    if (end > rows) end = rows;
    bool mine = !wide || slab + 8 * lane < cols;
    Eight sum = {{0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f}};
    if (mine) {
        for (; at + AHEAD <= end; at += AHEAD) {
            Eight x[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; k++) x[k] = row8(dy + (at + k) * cols, slab, lane, cols, wide);
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
#pragma unroll
                for (int i = 0; i < 8; i++) sum.x[i] += x[k].x[i];
        }
        for (; at < end; at++) {
            Eight x = row8(dy + at * cols, slab, lane, cols, wide);
#pragma unroll
            for (int i = 0; i < 8; i++) sum.x[i] += x.x[i];
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) sums[warp][i][lane] = sum.x[i];
    __syncthreads();
    // Each warp adds the eighths of one of the eight columns that the lanes have.
    float total = sums[0][warp][lane];
#pragma unroll
    for (int k = 1; k < WARPS; k++) total += sums[k][warp][lane];
    u64 column = slab + (wide ? 8 * lane + warp : lane + 32 * warp);
    if (column < cols) parts[(u64)blockIdx.y * cols + column] = total;
}

// db (+)= the sum of `n` parts of each column. A block has 32 columns; its warps have an eighth of
// the parts each, in order, and the eighths are added in order, and then to db once.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    total(float* db, const float* parts, u64 n, u64 cols, int accumulate) {
    __shared__ float sums[WARPS][32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    u64 column = (u64)blockIdx.x * 32 + lane;
    u64 each = (n + WARPS - 1) / WARPS;
    u64 at = warp * each, end = at + each;
    if (end > n) end = n;
    float sum = 0.0f;
    if (column < cols) {
#pragma unroll 8
        for (; at < end; at++) sum += parts[at * cols + column];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || column >= cols) return;
#pragma unroll
    for (int k = 1; k < WARPS; k++) sum += sums[k][lane];
    db[column] = accumulate ? db[column] + sum : sum;
}
