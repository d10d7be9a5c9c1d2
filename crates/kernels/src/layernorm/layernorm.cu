// LayerNorm: RMSNorm's kernels with a mean and, unless `b` is null, a bias.
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

// A block a run of rows; its teams take the run's rows in turn. Sums of dw and db lie in dynamic
// shared memory, each number one thread's: in registers, where RMSNorm's sums are, they leave none
// for a row ahead. A team has 8·GROUPS·threads numbers there for each sum, thread t's groups of
// four at [2·group + half][t], which has no bank conflicts. At the end the teams' sums are added in
// order and become the run's partial: C numbers of dw, then C of db.
extern "C" __global__ void __launch_bounds__(512)
    backward(E* __restrict__ dx, float* __restrict__ partials, const E* __restrict__ dy,
             const E* __restrict__ x, const float* __restrict__ means,
             const float* __restrict__ rstds, const E* __restrict__ w,
             const E* __restrict__ residual, u64 rows, u64 c, u64 run, int warps) {
    extern __shared__ float4 sums[];
    __shared__ float scratch[2][WARPS][2];
    Team team(warps);
    const int groups = (int)(c / 8), slots = 2 * GROUPS * team.threads;
    float4* dw = sums + team.id * 2 * slots + team.thread;
    float4* db = dw + slots;
#pragma unroll
    for (int i = 0; i < 2 * GROUPS; i++) {
        dw[i * team.threads] = db[i * team.threads] = make_float4(0, 0, 0, 0);
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
        float rstd = rstds[row], mean = means[row];
        float total[2] = {0, 0};
#pragma unroll
        for (int v = 0; v < GROUPS; v++) {
            int g = v * team.threads + team.thread;
            if (g >= groups) continue;
            Eight d = widen8(raw_dy[v]), hat = widen8(raw_x[v]), weight = load8(w + 8 * g);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                hat.x[i] = (hat.x[i] - mean) * rstd;
                float gradient = d.x[i] * weight.x[i];
                total[0] += gradient * hat.x[i];
                total[1] += gradient;
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int slot = (2 * v + h) * team.threads;
                const float *p = d.x + 4 * h, *q = hat.x + 4 * h;
                float4 sum = dw[slot];
                add(sum, make_float4(p[0] * q[0], p[1] * q[1], p[2] * q[2], p[3] * q[3]));
                dw[slot] = sum;
                sum = db[slot];
                add(sum, make_float4(p[0], p[1], p[2], p[3]));
                db[slot] = sum;
            }
        }
        team_sum<2>(total, team, scratch);
        float mean_g_hat = total[0] / n, mean_g = total[1] / n;
#pragma unroll
        for (int v = 0; v < GROUPS; v++) {
            int g = v * team.threads + team.thread;
            if (g >= groups) continue;
            Eight d = widen8(raw_dy[v]), e = widen8(raw_x[v]), weight = load8(w + 8 * g);
            Eight r = widen8(raw_residual[v]);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float hat = (e.x[i] - mean) * rstd;
                float gradient = d.x[i] * weight.x[i] - mean_g;
                d.x[i] = rstd * (gradient - hat * mean_g_hat);
                if (residual) d.x[i] += r.x[i];
            }
            store8(dx + at + 8 * g, d);
        }
    }
    __syncthreads();
    float* partial = partials + blockIdx.x * 2 * c;
    for (int i = threadIdx.x; i < 2 * slots; i += blockDim.x) {
        int sum = i / slots, slot = i - sum * slots;
        int row = slot / team.threads, thread = slot - row * team.threads;
        int g = (row >> 1) * team.threads + thread;
        if (g >= groups) continue;
        float4 total = sums[i];
        for (int t = 1; t < team.teams(); t++) add(total, sums[t * 2 * slots + i]);
        *reinterpret_cast<float4*>(partial + sum * c + 8 * g + 4 * (row & 1)) = total;
    }
}

extern "C" __global__ void __launch_bounds__(256)
    backward_plain(E* dx, float* partials, const E* dy, const E* x, const float* mean,
                   const float* rstd, const E* w, const E* residual, u64 rows, u64 c, u64 run) {
    norm_backward_plain<true>(dx, partials, dy, x, mean, rstd, w, residual, rows, c, run);
}
