// Adafactor over the tensors of a piece, with the host's bits: 14 bytes a number, the gradient three times.
//
// Memory-bound. The formula and the order of sums are those of the module's head, operation for operation:
// every intrinsic rounds once, and a sum in f64 has no product that could be contracted with it. A tensor is a
// run of launches in one stream; what one leaves in the scratch the next finds there.
//
// A warp has a tile of 128 columns of a band of 64 rows: thread t its columns t, t + 32, t + 64 and t + 96, so that
// a fold by halves is two additions and five exchanges, and no access asks for more alignment than a number's.
#include "update.cuh"

const int BAND = 64;
const int COLUMNS = 128;
const int RUN = 1024;
// Warps of a block.
const int WARPS = 8;
// Rows of which a warp has the gradients in flight, and those of which it has the weights too.
const int FLIGHT = 8;
const int WRITTEN = 4;
// Threads of a kernel that is one block.
const int ALONE = 1024;

// The words of a step, at the start of the scratch.
struct Words {
    float grad_scale;
    int go;
    float minus_rate;
};

// Whether the step applies, and the factor of clipping. One block.
extern "C" __global__ void __launch_bounds__(THREADS)
    start(Words* words, const double* clip, const double* parts, u64 n_parts) {
    struct {
        float grad_scale;
    } c = {1.0f};
    bool applies = go(c, clip, parts, n_parts);
    if (threadIdx.x == 0) {
        words->grad_scale = c.grad_scale;
        words->go = applies;
    }
}

// A warp's tile by halves, the same in every thread.
__device__ __forceinline__ float fold(const float* x) {
    float a = __fadd_rn(x[0], x[2]), b = __fadd_rn(x[1], x[3]);
    float sum = __fadd_rn(a, b);
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, d));
    return sum;
}

// The sum of n numbers in 1024 lanes, of one block: `at(i)` is the i-th.
template <class At> __device__ __forceinline__ double total(u64 n, At at, double* scratch) {
    double sum = 0.0;
    for (u64 i = threadIdx.x; i < n; i += ALONE) sum += (double)at(i);
    return block_sum(sum, scratch);
}

__device__ __forceinline__ float mixed(float weight, float old, float x) {
    return __fmaf_rn(weight, __fsub_rn(x, old), old);
}
__device__ __forceinline__ float root(double x) { return __double2float_rn(__dsqrt_rn(x)); }
__device__ __forceinline__ float inverse_root(float moment) {
    return root(__ddiv_rn(1.0, (double)moment));
}
__device__ __forceinline__ float rate_of(double squares, u64 numbers, double rate,
                                         double threshold) {
    double size = __ddiv_rn(__dsqrt_rn(__ddiv_rn(squares, (double)numbers)), threshold);
    double by = size <= 1.0 ? 1.0 : size; // what is no number stays none
    return __double2float_rn(-__ddiv_rn(rate, by));
}

// A warp's tile.
struct Tile {
    u64 band, tile, tiles, row, cols;
    int rows;
    bool there;

    __device__ __forceinline__ Tile(u64 all_rows, u64 cols) : cols(cols) {
        tiles = (cols + COLUMNS - 1) / COLUMNS;
        u64 index = (u64)blockIdx.x * WARPS + (threadIdx.x >> 5);
        band = index / tiles, tile = index % tiles;
        row = band * BAND;
        there = row < all_rows;
        rows = !there ? 0 : all_rows - row < BAND ? (int)(all_rows - row) : BAND;
    }
    // The thread's columns.
    __device__ __forceinline__ u64 column(int k) const {
        return tile * COLUMNS + (threadIdx.x & 31) + 32 * k;
    }
    __device__ __forceinline__ bool has(int k) const { return column(k) < cols; }

    __device__ __forceinline__ bool has(int i, int k) const { return i < rows && has(k); }
    __device__ __forceinline__ u64 at(int i, int k) const { return (row + i) * cols + column(k); }

    // Some of these rows' gradients, in f32 and by the factor of clipping; 0 where there is none. What
    // follows is done with all of them and kept where there is one: without a branch the rows in flight overlap.
    template <int ROWS, typename G>
    __device__ __forceinline__ void load(const G* grad, int from, float scale,
                                         float (&g)[ROWS][4]) const {
        G stored[ROWS][4];
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                stored[i][k] = G(0);
                if (has(from + i, k)) stored[i][k] = grad[at(from + i, k)];
            }
        }
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
#pragma unroll
            for (int k = 0; k < 4; k++) g[i][k] = __fmul_rn(widen(stored[i][k]), scale);
        }
    }
    // Factors of the rows, 0 where there is none.
    template <int ROWS>
    __device__ __forceinline__ void factors(const float* r, int from, float (&own)[ROWS]) const {
#pragma unroll
        for (int i = 0; i < ROWS; i++) own[i] = from + i < rows ? r[row + from + i] : 0.0f;
    }
};

// Sums of squares: of each row tile by tile, of each column band by band.
template <typename G>
__device__ __forceinline__ void sums(const G* grad, u64 rows, u64 cols, float eps,
                                     const Words* words, float* by_band, float* by_tile) {
    if (!words->go) return;
    float scale = words->grad_scale;
    Tile t(rows, cols);
    if (!t.there) return;
    float column[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int from = 0; from < t.rows; from += FLIGHT) {
        float g[FLIGHT][4];
        t.load(grad, from, scale, g);
        float row[FLIGHT];
#pragma unroll
        for (int i = 0; i < FLIGHT; i++) {
            float s[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float square = __fadd_rn(__fmul_rn(g[i][k], g[i][k]), eps);
                s[k] = t.has(from + i, k) ? square : 0.0f;
                column[k] = __fadd_rn(column[k], s[k]);
            }
            row[i] = fold(s);
        }
        if ((threadIdx.x & 31) == 0) {
#pragma unroll
            for (int i = 0; i < FLIGHT; i++) {
                if (from + i < t.rows) by_tile[(t.row + from + i) * t.tiles + t.tile] = row[i];
            }
        }
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
        if (t.has(k)) by_band[t.band * cols + t.column(k)] = column[k];
    }
}

// New moments of rows and columns, and the factors of columns. The first blocks have 32 columns each, the others
// a row a thread.
extern "C" __global__ void __launch_bounds__(THREADS)
    means(float* row, float* col, u64 rows, u64 cols, float weight, const Words* words,
          const float* by_band, const float* by_tile, float* c) {
    __shared__ double lanes[WARPS][32];
    if (!words->go) return;
    u64 of_columns = (cols + 31) / 32;
    if (blockIdx.x >= of_columns) {
        u64 i = (blockIdx.x - of_columns) * THREADS + threadIdx.x;
        if (i >= rows) return;
        u64 tiles = (cols + COLUMNS - 1) / COLUMNS;
        double sum = 0.0;
        for (u64 t = 0; t < tiles; t++) sum += (double)by_tile[i * tiles + t];
        row[i] = mixed(weight, row[i], __double2float_rn(__ddiv_rn(sum, (double)cols)));
        return;
    }
    int lane = threadIdx.x >> 5, own = threadIdx.x & 31;
    u64 j = (u64)blockIdx.x * 32 + own;
    u64 bands = (rows + BAND - 1) / BAND;
    double sum = 0.0;
    if (j < cols) {
#pragma unroll 8
        for (u64 band = lane; band < bands; band += WARPS) sum += (double)by_band[band * cols + j];
    }
    lanes[lane][own] = sum;
    __syncthreads();
    if (lane > 0 || j >= cols) return;
    double x[WARPS];
#pragma unroll
    for (int i = 0; i < WARPS; i++) x[i] = lanes[i][own];
#pragma unroll
    for (int half = WARPS / 2; half > 0; half /= 2) {
#pragma unroll
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    }
    col[j] = mixed(weight, col[j], __double2float_rn(__ddiv_rn(x[0], (double)rows)));
    c[j] = inverse_root(col[j]);
}

// The factors of rows. One block.
extern "C" __global__ void __launch_bounds__(ALONE)
    spread(const float* row, u64 rows, const Words* words, float* r) {
    __shared__ double scratch[33];
    if (!words->go) return;
    double mean = total(rows, [&](u64 i) { return row[i]; }, scratch);
    mean = __ddiv_rn(mean, (double)rows);
    for (u64 i = threadIdx.x; i < rows; i += ALONE) r[i] = root(__ddiv_rn(mean, (double)row[i]));
}

// Sums of the squares of the updates, tile by tile, each where the sum of its first row was.
template <typename G>
__device__ __forceinline__ void squares(const G* grad, u64 rows, u64 cols, const Words* words,
                                        const float* r, const float* c, float* by_tile) {
    if (!words->go) return;
    float scale = words->grad_scale;
    Tile t(rows, cols);
    if (!t.there) return;
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f}, cs[4];
#pragma unroll
    for (int k = 0; k < 4; k++) cs[k] = t.has(k) ? c[t.column(k)] : 0.0f;
    for (int from = 0; from < t.rows; from += FLIGHT) {
        float g[FLIGHT][4], own[FLIGHT];
        t.load(grad, from, scale, g);
        t.factors(r, from, own);
#pragma unroll
        for (int i = 0; i < FLIGHT; i++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float u = __fmul_rn(g[i][k], __fmul_rn(own[i], cs[k]));
                float more = __fadd_rn(sum[k], __fmul_rn(u, u));
                sum[k] = t.has(from + i, k) ? more : sum[k];
            }
        }
    }
    float all = fold(sum);
    if ((threadIdx.x & 31) == 0) by_tile[t.row * t.tiles + t.tile] = all;
}

// The factor of the update from these squares. One block.
extern "C" __global__ void __launch_bounds__(ALONE)
    size(u64 rows, u64 cols, double rate, double threshold, Words* words, const float* by_tile) {
    __shared__ double scratch[33];
    if (!words->go) return;
    u64 tiles = (cols + COLUMNS - 1) / COLUMNS, bands = (rows + BAND - 1) / BAND;
    auto at = [&](u64 i) { return by_tile[i / tiles * BAND * tiles + i % tiles]; };
    double sum = total(bands * tiles, at, scratch);
    if (threadIdx.x == 0) words->minus_rate = rate_of(sum, rows * cols, rate, threshold);
}

// A new master weight, as it is stored.
__device__ __forceinline__ void update(u16& w, u16& rem, float minus_rate, float u, float keep) {
    split(__fmaf_rn(minus_rate, u, __fmul_rn(join(w, rem), keep)), w, rem);
}
__device__ __forceinline__ void update(float& w, u16&, float minus_rate, float u, float keep) {
    w = __fmaf_rn(minus_rate, u, __fmul_rn(w, keep));
}

// The update.
template <typename G>
__device__ __forceinline__ void apply(E* w, u16* rem, const G* grad, u64 rows, u64 cols, float keep,
                                      const Words* words, const float* r, const float* c) {
    if (!words->go) return;
    float scale = words->grad_scale, minus_rate = words->minus_rate;
    Tile t(rows, cols);
    if (!t.there) return;
    float cs[4];
#pragma unroll
    for (int k = 0; k < 4; k++) cs[k] = t.has(k) ? c[t.column(k)] : 0.0f;
    for (int from = 0; from < t.rows; from += WRITTEN) {
        float g[WRITTEN][4], own[WRITTEN];
        E ws[WRITTEN][4];
        u16 rems[WRITTEN][4];
#pragma unroll
        for (int i = 0; i < WRITTEN; i++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                ws[i][k] = E(0), rems[i][k] = 0;
                if (!t.has(from + i, k)) continue;
                ws[i][k] = w[t.at(from + i, k)];
                if (sizeof(E) == 2) rems[i][k] = rem[t.at(from + i, k)];
            }
        }
        t.load(grad, from, scale, g);
        t.factors(r, from, own);
#pragma unroll
        for (int i = 0; i < WRITTEN; i++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float u = __fmul_rn(g[i][k], __fmul_rn(own[i], cs[k]));
                update(ws[i][k], rems[i][k], minus_rate, u, keep);
            }
        }
#pragma unroll
        for (int i = 0; i < WRITTEN; i++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                if (!t.has(from + i, k)) continue;
                w[t.at(from + i, k)] = ws[i][k];
                if (sizeof(E) == 2) rem[t.at(from + i, k)] = rems[i][k];
            }
        }
    }
}

// All of a vector's step. One block; a warp has a run.
template <typename G>
__device__ __forceinline__ void vector(E* w, u16* rem, float* row, const G* grad, u64 n, float eps,
                                       float weight, float keep, double rate, double threshold,
                                       const Words* words, float* by_run) {
    __shared__ double scratch[33];
    if (!words->go) return;
    float scale = words->grad_scale;
    u64 runs = (n + RUN - 1) / RUN;
    for (u64 run = threadIdx.x >> 5; run < runs; run += ALONE / 32) {
        float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 2
        for (int i = 0; i < RUN / COLUMNS; i++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                u64 at = run * RUN + i * COLUMNS + (threadIdx.x & 31) + 32 * k;
                if (at >= n) continue;
                float g = __fmul_rn(widen(grad[at]), scale);
                float s = __fadd_rn(__fmul_rn(g, g), eps);
                row[at] = mixed(weight, row[at], s);
                float u = __fmul_rn(g, inverse_root(row[at]));
                x[k] = __fadd_rn(x[k], __fmul_rn(u, u));
            }
        }
        float sum = fold(x);
        if ((threadIdx.x & 31) == 0) by_run[run] = sum;
    }
    __syncthreads();
    double sum = total(runs, [&](u64 i) { return by_run[i]; }, scratch);
    float minus_rate = rate_of(sum, n, rate, threshold);
    for (u64 i = threadIdx.x; i < n; i += ALONE) {
        float u = __fmul_rn(__fmul_rn(widen(grad[i]), scale), inverse_root(row[i]));
        u16 own = sizeof(E) == 2 ? rem[i] : (u16)0;
        update(w[i], own, minus_rate, u, keep);
        if (sizeof(E) == 2) rem[i] = own;
    }
}

// The kernels for gradients of type G, each with as many blocks of a multiprocessor as were fastest on an H100.
#define KERNELS(NAME, G)                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, 3)                                       \
        sums_##NAME(const G* grad, u64 rows, u64 cols, float eps, const Words* words,              \
                    float* by_band, float* by_tile) {                                              \
        sums(grad, rows, cols, eps, words, by_band, by_tile);                                      \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                       \
        squares_##NAME(const G* grad, u64 rows, u64 cols, const Words* words, const float* r,      \
                       const float* c, float* by_tile) {                                           \
        squares(grad, rows, cols, words, r, c, by_tile);                                           \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                       \
        apply_##NAME(E* w, u16* rem, const G* grad, u64 rows, u64 cols, float keep,                \
                     const Words* words, const float* r, const float* c) {                         \
        apply(w, rem, grad, rows, cols, keep, words, r, c);                                        \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(ALONE)                                            \
        vector_##NAME(E* w, u16* rem, float* row, const G* grad, u64 n, float eps, float weight,   \
                      float keep, double rate, double threshold, const Words* words,               \
                      float* by_run) {                                                             \
        vector(w, rem, row, grad, n, eps, weight, keep, rate, threshold, words, by_run);           \
    }
KERNELS(bf16, u16)
KERNELS(f32, float)
