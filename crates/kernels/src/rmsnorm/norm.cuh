// RMSNorm and LayerNorm: the same kernels but for the mean, and for `plus`, which is added to RMSNorm's weights: minus zero,
// which changes none, or one. `CENTER` says whether there is one.
//
// Where C is a multiple of eight and not too wide, a *team* of warps owns a row and each thread
// keeps a few groups of eight of its numbers in registers, so that a tensor is read once. A block
// has one team or several, each with a barrier of its own. Other shapes take the plain kernels, a
// block a row, which read a row again from the caches.
#pragma once
#include "common.cuh"

// Groups of eight numbers of a row that a thread holds at most.
constexpr int GROUPS = 4;
// Most warps of a block.
constexpr int WARPS = 16;

// Consecutive warps of a block that work on one row.
struct Team {
    int id, thread, threads, warps;
    // Which of two buffers the next sum uses: a barrier lies between two uses of one buffer, so
    // one barrier a sum is enough.
    int turn;

    __device__ explicit Team(int warps) : warps(warps), turn(0) {
        threads = 32 * warps;
        id = threadIdx.x / threads;
        thread = threadIdx.x - id * threads;
    }
    __device__ int teams() const { return blockDim.x / threads; }
};

// A barrier of the team alone. Written out for each, so that a block takes five of the hardware's
// barriers and not all; a team of several warps is one of four at most.
__device__ __forceinline__ void team_barrier(const Team& team) {
    __syncwarp();
    switch (team.id) {
        case 0: asm volatile("bar.sync 1, %0;" ::"r"(team.threads) : "memory"); break;
        case 1: asm volatile("bar.sync 2, %0;" ::"r"(team.threads) : "memory"); break;
        case 2: asm volatile("bar.sync 3, %0;" ::"r"(team.threads) : "memory"); break;
        default: asm volatile("bar.sync 4, %0;" ::"r"(team.threads) : "memory"); break;
    }
}

// N sums over a team at once, the same in all its threads: a tree in each warp, then the warps in
// order. All threads of the team call it.
template <int N>
__device__ __forceinline__ void team_sum(float (&x)[N], Team& team, float (*scratch)[WARPS][N]) {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = warp_sum(x[i]);
    if (team.warps == 1) return;
    float (*mine)[N] = scratch[team.turn] + team.id * team.warps;
    team.turn ^= 1;
    if ((team.thread & 31) == 0) {
#pragma unroll
        for (int i = 0; i < N; i++) mine[team.thread >> 5][i] = x[i];
    }
    team_barrier(team);
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = mine[0][i];
    for (int warp = 1; warp < team.warps; warp++) {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] += mine[warp][i];
    }
}

// A team a row.
template <bool CENTER>
__device__ __forceinline__ void norm_forward(E* __restrict__ y, float* __restrict__ means,
                                             float* __restrict__ rstds, const E* __restrict__ x,
                                             const E* __restrict__ w, const E* __restrict__ b,
                                             u64 rows, u64 c, int warps, float eps,
                                             float plus = -0.0f) {
    __shared__ float scratch[2][WARPS][1];
    Team team(warps);
    u64 row = (u64)blockIdx.x * team.teams() + team.id;
    if (row >= rows) return;  // the whole team
    x += row * c;
    y += row * c;
    int groups = (int)(c / 8);
    float n = (float)c;

    Raw raw[GROUPS];
#pragma unroll
    for (int v = 0; v < GROUPS; v++) {
        int g = v * team.threads + team.thread;
        raw[v] = zero_raw();
        if (g < groups) raw[v] = load_raw(x + 8 * g);
    }
    float mean = 0;
    if (CENTER) {
        float sum[1] = {0};
#pragma unroll
        for (int v = 0; v < GROUPS; v++) {
            Eight e = widen8(raw[v]);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[0] += e.x[i];
        }
        team_sum<1>(sum, team, scratch);
        mean = sum[0] / n;
    }
    float squares[1] = {0};
#pragma unroll
    for (int v = 0; v < GROUPS; v++) {
        if (v * team.threads + team.thread >= groups) continue;
        Eight e = widen8(raw[v]);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float d = CENTER ? e.x[i] - mean : e.x[i];
            squares[0] += d * d;
        }
    }
    team_sum<1>(squares, team, scratch);
    float rstd = 1.0f / sqrtf(squares[0] / n + eps);
    if (team.thread == 0) {
        rstds[row] = rstd;
        if (CENTER) means[row] = mean;
    }
#pragma unroll
    for (int v = 0; v < GROUPS; v++) {
        int g = v * team.threads + team.thread;
        if (g >= groups) continue;
        Eight e = widen8(raw[v]), weight = load8(w + 8 * g);
        if (CENTER) {
            Eight bias;  // minus zero changes no number
            if (b) {
                bias = load8(b + 8 * g);
            } else {
#pragma unroll
                for (int i = 0; i < 8; i++) bias.x[i] = -0.0f;
            }
#pragma unroll
            for (int i = 0; i < 8; i++)
                e.x[i] = (e.x[i] - mean) * rstd * weight.x[i] + bias.x[i];
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) e.x[i] = e.x[i] * rstd * (weight.x[i] + plus);
        }
        store8(y + 8 * g, e);
    }
}

// A block a row, of any C.
template <bool CENTER>
__device__ __forceinline__ void norm_forward_plain(E* __restrict__ y, float* __restrict__ means,
                                                   float* __restrict__ rstds,
                                                   const E* __restrict__ x,
                                                   const E* __restrict__ w,
                                                   const E* __restrict__ b, u64 c, float eps,
                                                   float plus = -0.0f) {
    __shared__ float scratch[33];
    u64 row = blockIdx.x;
    x += row * c;
    y += row * c;
    float n = (float)c, mean = 0;
    if (CENTER) {
        float sum = 0;
        for (u64 i = threadIdx.x; i < c; i += blockDim.x) sum += widen(x[i]);
        mean = block_sum(sum, scratch) / n;
    }
    float squares = 0;
    for (u64 i = threadIdx.x; i < c; i += blockDim.x) {
        float d = CENTER ? widen(x[i]) - mean : widen(x[i]);
        squares += d * d;
    }
    float rstd = 1.0f / sqrtf(block_sum(squares, scratch) / n + eps);
    if (threadIdx.x == 0) {
        rstds[row] = rstd;
        if (CENTER) means[row] = mean;
    }
    for (u64 i = threadIdx.x; i < c; i += blockDim.x) {
        float e = CENTER ? (widen(x[i]) - mean) * rstd * widen(w[i]) + (b ? widen(b[i]) : -0.0f)
                         : widen(x[i]) * rstd * (widen(w[i]) + plus);
        y[i] = narrow<E>(e);
    }
}

__device__ __forceinline__ void add(float4& to, const float4& x) {
    to.x += x.x;
    to.y += x.y;
    to.z += x.z;
    to.w += x.w;
}

// A block a run of rows, of any C; the partial is added up where it lies, each number by one
// thread.
template <bool CENTER>
__device__ __forceinline__ void norm_backward_plain(
    E* __restrict__ dx, float* __restrict__ partials, const E* __restrict__ dy,
    const E* __restrict__ x, const float* __restrict__ means, const float* __restrict__ rstds,
    const E* __restrict__ w, const E* __restrict__ residual, u64 rows, u64 c, u64 run,
    float plus = -0.0f) {
    __shared__ float scratch[33];
    float* dw = partials + blockIdx.x * (CENTER ? 2 : 1) * c;
    float* db = dw + c;  // only with a mean
    for (u64 i = threadIdx.x; i < c; i += blockDim.x) {
        dw[i] = 0;
        if (CENTER) db[i] = 0;
    }
    float n = (float)c;
    u64 first = blockIdx.x * run, end = first + run < rows ? first + run : rows;
    for (u64 row = first; row < end; row++) {
        u64 at = row * c;
        float rstd = rstds[row], mean = CENTER ? means[row] : 0.0f;
        float sum_g_hat = 0, sum_g = 0;
        for (u64 i = threadIdx.x; i < c; i += blockDim.x) {
            float d = widen(dy[at + i]), e = widen(x[at + i]);
            float hat = (CENTER ? e - mean : e) * rstd;
            float gradient = d * (widen(w[i]) + plus);
            sum_g_hat += gradient * hat;
            dw[i] += d * hat;
            if (CENTER) {
                sum_g += gradient;
                db[i] += d;
            }
        }
        float mean_g_hat = block_sum(sum_g_hat, scratch) / n;
        float mean_g = CENTER ? block_sum(sum_g, scratch) / n : 0.0f;
        for (u64 i = threadIdx.x; i < c; i += blockDim.x) {
            float e = widen(x[at + i]);
            float hat = (CENTER ? e - mean : e) * rstd;
            float gradient = widen(dy[at + i]) * (widen(w[i]) + plus);
            if (CENTER) gradient -= mean_g;
            float d = rstd * (gradient - hat * mean_g_hat);
            if (residual) d += widen(residual[at + i]);
            dx[at + i] = narrow<E>(d);
        }
    }
}
