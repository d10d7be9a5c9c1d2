// RMSNorm, and the second half of every sum over rows: adding up the partials of runs of rows.
#include "norm.cuh"

extern "C" __global__ void __launch_bounds__(512)
    forward(E* y, float* rstd, const E* x, const E* w, u64 rows, u64 c, int warps, float eps,
            float plus) {
    norm_forward<false>(y, nullptr, rstd, x, w, nullptr, rows, c, warps, eps, plus);
}

extern "C" __global__ void __launch_bounds__(256)
    forward_plain(E* y, float* rstd, const E* x, const E* w, u64 c, float eps, float plus) {
    norm_forward_plain<false>(y, nullptr, rstd, x, w, nullptr, c, eps, plus);
}

// Groups of eight numbers of a row that a thread holds in the backward pass. A row is asked for ahead
// where registers hold two; numbers of four bytes leave none for that.
constexpr int BACK_GROUPS = 2;
constexpr bool AHEAD = sizeof(E) == 2;

// What a thread holds of a row, as it lies in memory.
struct Row {
    Raw dy[BACK_GROUPS], x[BACK_GROUPS], residual[BACK_GROUPS];
    float rstd;
};

// A block a run of rows; its teams take the run's rows in turn, and ask for the next row before they
// work on the one that they have: with two blocks a multiprocessor, as many as the registers allow,
// loads are then always under way. A thread keeps its numbers of w and its sums of dw in registers
// too. At the end the teams' sums meet in `sums` and are added in order.
extern "C" __global__ void __launch_bounds__(512)
    backward(E* __restrict__ dx, float* __restrict__ partials, const E* __restrict__ dy,
             const E* __restrict__ x, const float* __restrict__ rstds, const E* __restrict__ w,
             const E* __restrict__ residual, u64 rows, u64 c, u64 run, float plus, int warps) {
    extern __shared__ float4 sums[];
    __shared__ float scratch[2][WARPS][1];
    Team team(warps);
    const int groups = (int)(c / 8);
    Raw weights[BACK_GROUPS];
    Eight dw[BACK_GROUPS];
#pragma unroll
    for (int v = 0; v < BACK_GROUPS; v++) {
        int g = v * team.threads + team.thread;
        weights[v] = g < groups ? load_raw(w + 8 * g) : zero_raw();
#pragma unroll
        for (int i = 0; i < 8; i++) dw[v].x[i] = 0;
    }
    const u64 first = blockIdx.x * run, end = first + run < rows ? first + run : rows;
    // Zeros where the row has no more numbers, or the run no more rows: they add nothing to a sum.
    auto load = [&](u64 row) {
        Row r;
        r.rstd = row < end ? rstds[row] : 0.0f;
#pragma unroll
        for (int v = 0; v < BACK_GROUPS; v++) {
            int g = v * team.threads + team.thread;
            r.dy[v] = r.x[v] = r.residual[v] = zero_raw();
            if (g < groups && row < end) {
                u64 at = row * c + 8 * g;
                r.dy[v] = load_raw(dy + at);
                r.x[v] = load_raw(x + at);
                if (residual) r.residual[v] = load_raw(residual + at);
            }
        }
        return r;
    };
    u64 row = first + team.id;
    Row now;
    if (AHEAD) now = load(row);
    // Every team takes every turn, with or without a row, and so passes as many barriers as the others:
    // racecheck counts them to tell what came first.
    for (u64 turn = first; turn < end; turn += team.teams(), row += team.teams()) {
        Row next;
        if (AHEAD)
            next = load(row + team.teams());
        else
            now = load(row);
        // dy·w, of which the row's sum and its dx are made.
        Eight gradient[BACK_GROUPS];
        float total[1] = {0};
#pragma unroll
        for (int v = 0; v < BACK_GROUPS; v++) {
            Eight d = widen8(now.dy[v]), e = widen8(now.x[v]), weight = widen8(weights[v]);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float hat = e.x[i] * now.rstd;
                gradient[v].x[i] = d.x[i] * (weight.x[i] + plus);
                total[0] += gradient[v].x[i] * hat;
                dw[v].x[i] += d.x[i] * hat;
            }
        }
        team_sum<1>(total, team, scratch);
        float mean = total[0] / (float)c;
#pragma unroll
        for (int v = 0; v < BACK_GROUPS; v++) {
            int g = v * team.threads + team.thread;
            if (g >= groups || row >= end) continue;
            Eight e = widen8(now.x[v]), r = widen8(now.residual[v]), out;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                out.x[i] = now.rstd * (gradient[v].x[i] - e.x[i] * now.rstd * mean);
                if (residual) out.x[i] += r.x[i];
            }
            store8(dx + row * c + 8 * g, out);
        }
        if (AHEAD) now = next;
    }
    float* mine = reinterpret_cast<float*>(sums) + team.id * c;
#pragma unroll
    for (int v = 0; v < BACK_GROUPS; v++) {
        int g = v * team.threads + team.thread;
        if (g < groups) store8(mine + 8 * g, dw[v]);
    }
    __syncthreads();
    float4* partial = reinterpret_cast<float4*>(partials + blockIdx.x * c);
    for (int i = threadIdx.x; i < 2 * groups; i += blockDim.x) {
        float4 all = sums[i];
        for (int t = 1; t < team.teams(); t++) add(all, sums[t * 2 * groups + i]);
        partial[i] = all;
    }
}

extern "C" __global__ void __launch_bounds__(256)
    backward_plain(E* dx, float* partials, const E* dy, const E* x, const float* rstd, const E* w,
                   const E* residual, u64 rows, u64 c, u64 run, float plus) {
    norm_backward_plain<false>(dx, partials, dy, x, nullptr, rstd, w, residual, rows, c, run, plus);
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
