// Rotary positions, with or without the norm of each query and key head.
//
// Where D/2 is a multiple of eight, a thread has eight numbers of a head and the eight that turn
// with them; D/16 threads have a head, a warp a row. Other head sizes take the plain kernels, a
// warp a head.
//
// `table` has D floats a position, D/2 cosines, then D/2 sines. A position that it lacks makes the
// row's rotated heads NaN: the processor's version panics there, a kernel must not read past it.
#include "common.cuh"

// Independent heads that a thread has under way, and blocks that a multiprocessor should hold: what
// the registers allow.
#ifdef BF16
constexpr int DEPTH = 3, BACK_DEPTH = 2, BLOCKS = 3;
#else
constexpr int DEPTH = 2, BACK_DEPTH = 1, BLOCKS = 2;
#endif

__device__ __forceinline__ float nan_float() { return __uint_as_float(0x7fc00000u); }

// Heads of a row.
struct Shape {
    u32 heads, rotated, all, d;  // H, H+KV, H+2KV, D
};

// Eight cosines and sines of one position.
struct Turn {
    Eight cos, sin;
};
__device__ __forceinline__ Turn turn_at(const float* table, u64 positions, int position, u32 d,
                                        u32 i) {
    Turn t;
    if (position >= 0 && (u64)position < positions) {
        const float* at = table + (u64)position * d + i;
        t.cos = load8(at);
        t.sin = load8(at + d / 2);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) t.cos.x[i] = t.sin.x[i] = nan_float();
    }
    return t;
}

// The sum over `lanes` neighbouring threads of a warp, a power of two, the same in each.
__device__ __forceinline__ float head_sum(float x, u32 lanes) {
    for (u32 d = lanes / 2; d > 0; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

// y = the rotated x; `back` turns the other way. A warp a row: its threads read the row's cosines and
// sines once. Threads beyond the last whole head's only keep the others' company: with NORM the
// launcher sees to it that there are none.
template <bool NORM>
__device__ __forceinline__ void rotate(E* __restrict__ y, const E* __restrict__ x,
                                       const int* __restrict__ positions,
                                       const float* __restrict__ table, u64 table_rows,
                                       const E* __restrict__ wq, const E* __restrict__ wk,
                                       float* __restrict__ rstds, float eps, float plus, u64 rows,
                                       Shape s, bool back) {
    const u32 half = s.d / 2, lanes = s.d / 16, slots = 32 / lanes;
    const u32 slot = (threadIdx.x & 31) / lanes, lane = (threadIdx.x & 31) - slot * lanes;
    const u64 row = (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;  // the whole warp
    x += row * s.all * s.d + 8 * lane;
    y += row * s.all * s.d + 8 * lane;
    Turn t = turn_at(table, table_rows, positions[row], s.d, 8 * lane);
    if (back) {
#pragma unroll
        for (int i = 0; i < 8; i++) t.sin.x[i] = -t.sin.x[i];
    }
    for (u32 base = 0; base < s.all; base += DEPTH * slots) {
        Raw low[DEPTH], high[DEPTH];
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            u32 head = base + k * slots + slot;
            low[k] = high[k] = zero_raw();
            if (slot < slots && head < s.all) {
                low[k] = load_raw(x + head * s.d);
                high[k] = load_raw(x + head * s.d + half);
            }
        }
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            u32 head = base + k * slots + slot;
            const bool here = slot < slots && head < s.all, turns = here && head < s.rotated;
            E* to = y + head * s.d;
            if (here && !turns) {
                store_raw(to, low[k]);
                store_raw(to + half, high[k]);
            }
            Eight a = widen8(low[k]), b = widen8(high[k]);
            float rstd = 0;
            if (NORM) {
                float squares = 0;
#pragma unroll
                for (int i = 0; i < 8; i++) squares += a.x[i] * a.x[i] + b.x[i] * b.x[i];
                squares = head_sum(squares, lanes);  // all threads of the warp
                rstd = 1.0f / sqrtf(squares / (float)s.d + eps);
            }
            if (!turns) continue;
            if (NORM) {
                if (lane == 0) rstds[row * s.rotated + head] = rstd;
                const E* w = (head < s.heads ? wq : wk) + 8 * lane;
                Eight w1 = load8(w), w2 = load8(w + half);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    a.x[i] = a.x[i] * rstd * (w1.x[i] + plus);
                    b.x[i] = b.x[i] * rstd * (w2.x[i] + plus);
                }
            }
            Eight y1, y2;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                y1.x[i] = a.x[i] * t.cos.x[i] - b.x[i] * t.sin.x[i];
                y2.x[i] = b.x[i] * t.cos.x[i] + a.x[i] * t.sin.x[i];
            }
            store8(to, y1);
            store8(to + half, y2);
        }
    }
}

// A warp a head, of any even D.
template <bool NORM>
__device__ __forceinline__ void rotate_plain(E* __restrict__ y, const E* __restrict__ x,
                                             const int* __restrict__ positions,
                                             const float* __restrict__ table, u64 table_rows,
                                             const E* __restrict__ wq, const E* __restrict__ wk,
                                             float* __restrict__ rstds, float eps, float plus,
                                             u64 rows, Shape s, bool back) {
    const u32 half = s.d / 2, lane = threadIdx.x & 31;
    const u64 item = (u64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (item >= rows * s.all) return;  // the whole warp
    const u64 row = item / s.all;
    const u32 head = (u32)(item - row * s.all);
    x += item * s.d;
    y += item * s.d;
    if (head >= s.rotated) {
        for (u32 i = lane; i < s.d; i += 32) y[i] = x[i];
        return;
    }
    float rstd = 0;
    const E* w = head < s.heads ? wq : wk;
    if (NORM) {
        float squares = 0;
        for (u32 i = lane; i < s.d; i += 32) squares += widen(x[i]) * widen(x[i]);
        rstd = 1.0f / sqrtf(warp_sum(squares) / (float)s.d + eps);
        if (lane == 0) rstds[row * s.rotated + head] = rstd;
    }
    const int position = positions[row];
    const bool known = position >= 0 && (u64)position < table_rows;
    const float* turn = table + (u64)(known ? position : 0) * s.d;
    for (u32 i = lane; i < half; i += 32) {
        float cos = known ? turn[i] : nan_float(), sin = known ? turn[i + half] : nan_float();
        if (back) sin = -sin;
        float a = widen(x[i]), b = widen(x[i + half]);
        if (NORM) {
            a = a * rstd * (widen(w[i]) + plus);
            b = b * rstd * (widen(w[i + half]) + plus);
        }
        y[i] = narrow<E>(a * cos - b * sin);
        y[i + half] = narrow<E>(b * cos + a * sin);
    }
}

extern "C" __global__ void __launch_bounds__(256, BLOCKS)
    rotate_heads(E* y, const E* x, const int* positions, const float* table, u64 table_rows,
                 u64 rows, u32 heads, u32 rotated, u32 all, u32 d, int back) {
    rotate<false>(y, x, positions, table, table_rows, nullptr, nullptr, nullptr, 0.0f, 0.0f,
                  rows,
                  {heads, rotated, all, d}, back);
}

extern "C" __global__ void __launch_bounds__(256, BLOCKS)
    rotate_normed(E* y, const E* x, const int* positions, const float* table, u64 table_rows,
                  u64 rows, u32 heads, u32 rotated, u32 all, u32 d, const E* wq, const E* wk,
                  float* rstd, float eps, float plus) {
    rotate<true>(y, x, positions, table, table_rows, wq, wk, rstd, eps, plus, rows,
                 {heads, rotated, all, d}, false);
}

extern "C" __global__ void __launch_bounds__(256)
    rotate_heads_plain(E* y, const E* x, const int* positions, const float* table, u64 table_rows,
                       u64 rows, u32 heads, u32 rotated, u32 all, u32 d, int back) {
    rotate_plain<false>(y, x, positions, table, table_rows, nullptr, nullptr, nullptr, 0.0f, 0.0f,
                  rows,
                        {heads, rotated, all, d}, back);
}

extern "C" __global__ void __launch_bounds__(256)
    rotate_normed_plain(E* y, const E* x, const int* positions, const float* table, u64 table_rows,
                        u64 rows, u32 heads, u32 rotated, u32 all, u32 d, const E* wq, const E* wk,
                        float* rstd, float eps, float plus) {
    rotate_plain<true>(y, x, positions, table, table_rows, wq, wk, rstd, eps, plus, rows,
                       {heads, rotated, all, d}, false);
}

// Back through the rotation and the norm, a block of 256 threads a run of rows; D/16 is a power of
// two, at most 32. A thread keeps its 16 columns' sums of dwq and dwk in registers; at the end the
// threads of one column are summed, those of a warp by a tree, then warps in order. `partials` has
// 2·D numbers a run: dwq, then dwk. `sums` has 2·D floats a warp.
template <bool ONE>
__device__ __forceinline__ void backward_normed_of(
    E* __restrict__ dx, float* __restrict__ partials, const E* __restrict__ dy,
    const int* __restrict__ positions, const float* __restrict__ table, u64 table_rows, u64 rows,
    u32 heads, u32 rotated, u32 all, u32 d, u64 run, const E* __restrict__ x,
    const float* __restrict__ rstds, const E* __restrict__ wq, const E* __restrict__ wk) {
    extern __shared__ float sums[];
    const u32 half = d / 2, lanes = d / 16, slots = blockDim.x / lanes;
    const u32 slot = threadIdx.x / lanes, lane = threadIdx.x - slot * lanes;
    const u64 first = blockIdx.x * run;
    const u64 have = rows - first < run ? rows - first : run;
    const u64 items = have * all, width = (u64)all * d;
    Eight dq[2], dk[2];
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int i = 0; i < 8; i++) dq[h].x[i] = dk[h].x[i] = 0;
    for (u64 base = 0; base < items; base += BACK_DEPTH * slots) {
        Raw dy1[BACK_DEPTH], dy2[BACK_DEPTH], x1[BACK_DEPTH], x2[BACK_DEPTH];
        u64 row[BACK_DEPTH];
        u32 head[BACK_DEPTH];
        bool here[BACK_DEPTH];
#pragma unroll
        for (int k = 0; k < BACK_DEPTH; k++) {
            u64 item = base + k * slots + slot;
            here[k] = item < items;
            dy1[k] = dy2[k] = x1[k] = x2[k] = zero_raw();
            head[k] = 0;
            row[k] = first;
            if (here[k]) {
                // A run of fewer than 2^32 heads: the launcher sees to it.
                u32 local = (u32)item / all;
                head[k] = (u32)item - local * all;
                row[k] = first + local;
                u64 at = row[k] * width + head[k] * d + 8 * lane;
                dy1[k] = load_raw(dy + at);
                dy2[k] = load_raw(dy + at + half);
                if (head[k] < rotated) {
                    x1[k] = load_raw(x + at);
                    x2[k] = load_raw(x + at + half);
                }
            }
        }
#pragma unroll
        for (int k = 0; k < BACK_DEPTH; k++) {
            const bool turns = here[k] && head[k] < rotated;
            E* to = dx + row[k] * width + head[k] * d + 8 * lane;
            if (here[k] && !turns) {
                store_raw(to, dy1[k]);
                store_raw(to + half, dy2[k]);
            }
            Eight n1, n2, hat1, hat2, w1, w2;
            float dot = 0, rstd = 0;
            if (turns) {
                const bool query = head[k] < heads;
                const E* w = (query ? wq : wk) + 8 * lane;
                w1 = load8(w);
                w2 = load8(w + half);
                if (ONE) {
#pragma unroll
                    for (int i = 0; i < 8; i++) {
                        w1.x[i] += 1.0f;
                        w2.x[i] += 1.0f;
                    }
                }
                rstd = rstds[row[k] * rotated + head[k]];
                Turn t = turn_at(table, table_rows, positions[row[k]], d, 8 * lane);
                Eight a = widen8(dy1[k]), b = widen8(dy2[k]);
                hat1 = widen8(x1[k]);
                hat2 = widen8(x2[k]);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    n1.x[i] = a.x[i] * t.cos.x[i] + b.x[i] * t.sin.x[i];
                    n2.x[i] = b.x[i] * t.cos.x[i] - a.x[i] * t.sin.x[i];
                    hat1.x[i] *= rstd;
                    hat2.x[i] *= rstd;
                    dot += n1.x[i] * w1.x[i] * hat1.x[i] + n2.x[i] * w2.x[i] * hat2.x[i];
                }
                if (query) {
#pragma unroll
                    for (int i = 0; i < 8; i++) {
                        dq[0].x[i] += n1.x[i] * hat1.x[i];
                        dq[1].x[i] += n2.x[i] * hat2.x[i];
                    }
                } else {
#pragma unroll
                    for (int i = 0; i < 8; i++) {
                        dk[0].x[i] += n1.x[i] * hat1.x[i];
                        dk[1].x[i] += n2.x[i] * hat2.x[i];
                    }
                }
            }
            float mean = head_sum(dot, lanes) / (float)d;  // all threads of the warp
            if (turns) {
                Eight d1, d2;
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    d1.x[i] = rstd * (n1.x[i] * w1.x[i] - hat1.x[i] * mean);
                    d2.x[i] = rstd * (n2.x[i] * w2.x[i] - hat2.x[i] * mean);
                }
                store8(to, d1);
                store8(to + half, d2);
            }
        }
    }
    const u32 warp = threadIdx.x >> 5;
    float* mine = sums + warp * 2 * d + 8 * lane;
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float q = dq[h].x[i], k = dk[h].x[i];
            for (u32 step = 16; step >= lanes; step >>= 1) {
                q += __shfl_xor_sync(0xffffffffu, q, step);
                k += __shfl_xor_sync(0xffffffffu, k, step);
            }
            if ((threadIdx.x & 31) < lanes) {
                mine[h * half + i] = q;
                mine[d + h * half + i] = k;
            }
        }
    }
    __syncthreads();
    float* partial = partials + (u64)blockIdx.x * 2 * d;
    for (u32 i = threadIdx.x; i < 2 * d; i += blockDim.x) {
        float total = sums[i];
        for (u32 w = 1; w < blockDim.x / 32; w++) total += sums[w * 2 * d + i];
        partial[i] = total;
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
    backward_normed(E* dx, float* partials, const E* dy, const int* positions, const float* table, u64 table_rows,
                    u64 rows, u32 heads, u32 rotated, u32 all, u32 d, u64 run, const E* x,
                    const float* rstds, const E* wq, const E* wk) {
    backward_normed_of<false>(dx, partials, dy, positions, table, table_rows, rows, heads, rotated, all, d,
                              run, x, rstds, wq, wk);
}

// With 1 added to the weights, a kernel of its own: the addition costs the other registers that it has not.
extern "C" __global__ void __launch_bounds__(256, 2)
    backward_normed_one(E* dx, float* partials, const E* dy, const int* positions, const float* table, u64 table_rows,
                        u64 rows, u32 heads, u32 rotated, u32 all, u32 d, u64 run, const E* x,
                        const float* rstds, const E* wq, const E* wk) {
    backward_normed_of<true>(dx, partials, dy, positions, table, table_rows, rows, heads, rotated, all, d,
                              run, x, rstds, wq, wk);
}

// The same for any even D: a warp a head, its sums in shared memory, each number one thread's.
extern "C" __global__ void __launch_bounds__(256)
    backward_normed_plain(E* __restrict__ dx, float* __restrict__ partials,
                          const E* __restrict__ dy, const int* __restrict__ positions,
                          const float* __restrict__ table, u64 table_rows, u64 rows, u32 heads,
                          u32 rotated, u32 all, u32 d, u64 run, const E* __restrict__ x,
                          const float* __restrict__ rstds, const E* __restrict__ wq,
                          const E* __restrict__ wk, float plus) {
    extern __shared__ float sums[];
    const u32 half = d / 2, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32 warps = blockDim.x >> 5;
    const u64 first = blockIdx.x * run;
    const u64 have = rows - first < run ? rows - first : run;
    float* mine = sums + warp * 2 * d;
    for (u32 i = lane; i < half; i += 32)
        mine[i] = mine[i + half] = mine[i + d] = mine[i + d + half] = 0;
    for (u64 item = warp; item < have * all; item += warps) {
        const u64 row = first + item / all;
        const u32 head = (u32)(item % all);
        const u64 at = (first * all + item) * d;
        if (head >= rotated) {
            for (u32 i = lane; i < d; i += 32) dx[at + i] = dy[at + i];
            continue;
        }
        const bool query = head < heads;
        const E* w = query ? wq : wk;
        float* dw = mine + (query ? 0 : d);
        const float rstd = rstds[row * rotated + head];
        const int position = positions[row];
        const bool known = position >= 0 && (u64)position < table_rows;
        const float* turn = table + (u64)(known ? position : 0) * d;
        float dot = 0, mean = 0;
        for (int pass = 0; pass < 2; pass++) {
#pragma unroll 1
            for (u32 i = lane; i < half; i += 32) {
                float cos = known ? turn[i] : nan_float();
                float sin = known ? turn[i + half] : nan_float();
                float a = widen(dy[at + i]), b = widen(dy[at + i + half]);
                float n1 = a * cos + b * sin, n2 = b * cos - a * sin;
                float hat1 = widen(x[at + i]) * rstd, hat2 = widen(x[at + i + half]) * rstd;
                float w1 = widen(w[i]) + plus, w2 = widen(w[i + half]) + plus;
                if (pass == 0) {
                    dot += n1 * w1 * hat1 + n2 * w2 * hat2;
                    dw[i] += n1 * hat1;
                    dw[i + half] += n2 * hat2;
                } else {
                    dx[at + i] = narrow<E>(rstd * (n1 * w1 - hat1 * mean));
                    dx[at + i + half] = narrow<E>(rstd * (n2 * w2 - hat2 * mean));
                }
            }
            if (pass == 0) mean = warp_sum(dot) / (float)d;
        }
    }
    __syncthreads();
    float* partial = partials + (u64)blockIdx.x * 2 * d;
    for (u32 i = threadIdx.x; i < 2 * d; i += blockDim.x) {
        float total = sums[i];
        for (u32 w = 1; w < warps; w++) total += sums[w * 2 * d + i];
        partial[i] = total;
    }
}
