// RMSNorm and LayerNorm: the same kernels but for the mean. `CENTER` says whether there is one.
//
// Where C is a multiple of eight and not too wide, a *team* of warps owns a row and each thread
// keeps up to GROUPS groups of eight of its numbers in registers, so that a tensor is read once. A
// block has one team or several, each with a barrier of its own. Other shapes take the plain
// kernels, a block a row, which read a row again from the caches.
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
                                             u64 rows, u64 c, int warps, float eps) {
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
            Eight bias = load8(b + 8 * g);
#pragma unroll
            for (int i = 0; i < 8; i++)
                e.x[i] = (e.x[i] - mean) * rstd * weight.x[i] + bias.x[i];
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) e.x[i] = e.x[i] * rstd * weight.x[i];
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
                                                   const E* __restrict__ b, u64 c, float eps) {
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
        float e = CENTER ? (widen(x[i]) - mean) * rstd * widen(w[i]) + widen(b[i])
                         : widen(x[i]) * rstd * widen(w[i]);
        y[i] = narrow<E>(e);
    }
}

__device__ __forceinline__ void add4(float4& to, float a, float b, float c, float d) {
    to.x += a;
    to.y += b;
    to.z += c;
    to.w += d;
}

// A block a run of rows; its teams take the run's rows in turn. Sums of dw (and db) lie in dynamic
// shared memory, each number one thread's: registers would cost warps, and so loads in flight. A
// team has 8·GROUPS·threads numbers there for each sum, thread t's groups of four at
// [2·group + half][t], which has no bank conflicts. At the end the teams' sums are added in order
// and become the run's partial: C numbers of dw, then C of db.
template <bool CENTER>
__device__ __forceinline__ void norm_backward(E* __restrict__ dx, float* __restrict__ partials,
                                              const E* __restrict__ dy, const E* __restrict__ x,
                                              const float* __restrict__ means,
                                              const float* __restrict__ rstds,
                                              const E* __restrict__ w,
                                              const E* __restrict__ residual, u64 rows, u64 c,
                                              u64 run, int warps) {
    constexpr int SUMS = CENTER ? 2 : 1;
    extern __shared__ float4 sums[];
    __shared__ float scratch[2][WARPS][SUMS];
    Team team(warps);
    const int groups = (int)(c / 8), slots = 2 * GROUPS * team.threads;
    float4* dw = sums + team.id * SUMS * slots + team.thread;
    float4* db = dw + slots;  // only with a mean
#pragma unroll
    for (int i = 0; i < 2 * GROUPS; i++) {
        dw[i * team.threads] = make_float4(0, 0, 0, 0);
        if (CENTER) db[i * team.threads] = make_float4(0, 0, 0, 0);
    }
    float n = (float)c;
    u64 first = blockIdx.x * run, end = first + run < rows ? first + run : rows;
    for (u64 row = first + team.id; row < end; row += team.teams()) {
        u64 at = row * c;
        Raw raw_dy[GROUPS], raw_x[GROUPS], raw_residual[GROUPS];
#pragma unroll
        for (int v = 0; v < GROUPS; v++) {
            int g = v * team.threads + team.thread;
            raw_dy[v] = raw_x[v] = raw_residual[v] = zero_raw();
            if (g < groups) {
                raw_dy[v] = load_raw(dy + at + 8 * g);
                raw_x[v] = load_raw(x + at + 8 * g);
                if (residual) raw_residual[v] = load_raw(residual + at + 8 * g);
            }
        }
        float rstd = rstds[row], mean = CENTER ? means[row] : 0.0f;
        float total[SUMS];
#pragma unroll
        for (int i = 0; i < SUMS; i++) total[i] = 0;
#pragma unroll
        for (int v = 0; v < GROUPS; v++) {
            int g = v * team.threads + team.thread;
            if (g >= groups) continue;
            Eight d = widen8(raw_dy[v]), hat = widen8(raw_x[v]), weight = load8(w + 8 * g);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                hat.x[i] = (CENTER ? hat.x[i] - mean : hat.x[i]) * rstd;
                float gradient = d.x[i] * weight.x[i];
                total[0] += gradient * hat.x[i];
                if (CENTER) total[SUMS - 1] += gradient;
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int slot = (2 * v + h) * team.threads;
                const float *p = d.x + 4 * h, *q = hat.x + 4 * h;
                float4 sum = dw[slot];
                add4(sum, p[0] * q[0], p[1] * q[1], p[2] * q[2], p[3] * q[3]);
                dw[slot] = sum;
                if (CENTER) {
                    sum = db[slot];
                    add4(sum, p[0], p[1], p[2], p[3]);
                    db[slot] = sum;
                }
            }
        }
        team_sum<SUMS>(total, team, scratch);
        float mean_g_hat = total[0] / n, mean_g = CENTER ? total[SUMS - 1] / n : 0.0f;
#pragma unroll
        for (int v = 0; v < GROUPS; v++) {
            int g = v * team.threads + team.thread;
            if (g >= groups) continue;
            Eight d = widen8(raw_dy[v]), e = widen8(raw_x[v]), weight = load8(w + 8 * g);
            Eight r = widen8(raw_residual[v]);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float hat = (CENTER ? e.x[i] - mean : e.x[i]) * rstd;
                float gradient = d.x[i] * weight.x[i];
                if (CENTER) gradient -= mean_g;
                d.x[i] = rstd * (gradient - hat * mean_g_hat);
                if (residual) d.x[i] += r.x[i];
            }
            store8(dx + at + 8 * g, d);
        }
    }
    __syncthreads();
    float* partial = partials + blockIdx.x * SUMS * c;
    for (int i = threadIdx.x; i < SUMS * slots; i += blockDim.x) {
        int sum = i / slots, slot = i - sum * slots;
        int row = slot / team.threads, thread = slot - row * team.threads;
        int g = (row >> 1) * team.threads + thread;
        if (g >= groups) continue;
        float4 total = sums[i];
        for (int t = 1; t < team.teams(); t++) {
            float4 more = sums[t * SUMS * slots + i];
            add4(total, more.x, more.y, more.z, more.w);
        }
        *reinterpret_cast<float4*>(partial + sum * c + 8 * g + 4 * (row & 1)) = total;
    }
}

// A block a run of rows, of any C; the partial is added up where it lies, each number by one
// thread.
template <bool CENTER>
__device__ __forceinline__ void norm_backward_plain(
    E* __restrict__ dx, float* __restrict__ partials, const E* __restrict__ dy,
    const E* __restrict__ x, const float* __restrict__ means, const float* __restrict__ rstds,
    const E* __restrict__ w, const E* __restrict__ residual, u64 rows, u64 c, u64 run) {
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
            float gradient = d * widen(w[i]);
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
            float gradient = widen(dy[at + i]) * widen(w[i]);
            if (CENTER) gradient -= mean_g;
            float d = rstd * (gradient - hat * mean_g_hat);
            if (residual) d += widen(residual[at + i]);
            dx[at + i] = narrow<E>(d);
        }
    }
}
