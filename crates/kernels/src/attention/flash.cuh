// What the kernels of flash attention share: tiles in shared memory and products of them.
//
// BF16's value is the head's width rounded up to 32, 64, 96, 128 or 256; columns from the true width
// on are zeros in shared memory and are never stored. A tile's row is 16 bytes longer than its
// numbers: an odd number of 16-byte words, so that the eight rows of a matrix lie in different banks
// and every offset inside a tile is a constant of the instruction.
#pragma once
#include "common.cuh"
#include "flash_ptx.cuh"

#if defined(BF16) && BF16 > 1
constexpr int D = BF16;
#else
constexpr int D = 128;
#endif
static_assert(D % 32 == 0 && D <= 256, "an odd number of 16-byte words a row");

constexpr int STRIDE = D + 8;
constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;
constexpr float LOG2E = 1.4426950408889634f;

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }
__device__ __forceinline__ int least(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int most(int a, int b) { return a > b ? a : b; }

// The first key that query t of a row of tokens sees: its document's first, or that of its window.
// Below zero where the window reaches before the row.
__device__ __forceinline__ int first_key(const int* starts, int t, int window) {
    return most(starts[t], t + 1 - window);
}

#ifdef FULL
// Behind the last key that query t of a row of tokens sees, as far as it is in `from` ..= `end`: where it sees what is
// behind it, that is the first token whose document starts after t.
__device__ __forceinline__ int end_of_keys(const int* starts, int t, int from, int end) {
    from = most(from, t + 1);
#pragma unroll 1
    while (from < end) {
        int middle = (from + end) / 2;
        if (starts[middle] > t) end = middle;
        else from = middle + 1;
    }
    return from;
}
#endif

#ifdef CAPPED
#define CAP_PARAMETER , float cap
// tanh within 2^-22, absolutely: 1 - 2 / (1 + e^2x), whose exponential may be 0 or infinite.
__device__ __forceinline__ float tanh_fast(float x) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.0f + exp2_fast(x * (2.0f * LOG2E))));
    return fmaf(-2.0f, r, 1.0f);
}

// Scores, before they are multiplied by `scale`, become cap·tanh(scale·score/cap) to the base 2 of their exponentials.
template <int MT, int N>
__device__ __forceinline__ void bend(float (&x)[MT][N / 8][4], float scale, float cap) {
    float down = scale / cap, up = cap * LOG2E;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) x[m][n][i] = up * tanh_fast(x[m][n][i] * down);
}

// How fast a capped score changes with the score, 1 - tanh². Probability and lse tell the capped score, so that no register
// has to keep it; `shift` is lse·log2(e). Nothing of a probability that is 0 matters.
__device__ __forceinline__ float slope(float p, float shift, float cap) {
    float log2_p;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(log2_p) : "f"(p));
    float t = (log2_p + shift) / (cap * LOG2E);
    return p > 0.0f ? fmaf(-t, t, 1.0f) : 0.0f;
}
#else
#define CAP_PARAMETER
#endif

// Bytes from a tile's start to a row and column.
__device__ __forceinline__ constexpr u32 at(int row, int column) {
    return (u32)(row * STRIDE + column) * 2;
}

// What a lane adds to the start of 16 rows and 16 columns for the left operand of a product; and,
// with load_transposed, for the right one whose rows are the summed dimension.
__device__ __forceinline__ u32 left(int lane) { return at(lane & 15, (lane >> 4) * 8); }
// The same for the right operand whose columns are the summed dimension, with load_matrices.
__device__ __forceinline__ u32 right(int lane) {
    return at((lane & 7) + (lane >> 4) * 8, ((lane >> 3) & 1) * 8);
}

// Starts copies of rows first .. first + ROWS, `stride` numbers apart, to a tile: zeros for rows
// from `end` and columns from `width` on.
template <int ROWS>
__device__ __forceinline__ void fetch(u32 to, const E* from, u64 stride, int first, int end,
                                      int width) {
    constexpr int CHUNKS = D / 8;
    static_assert(ROWS * CHUNKS % THREADS == 0, "every thread copies as much");
    // Registers are scarcer here than instructions: loops stay loops, nothing is kept between calls.
    int thread = thread_again();
    if constexpr (THREADS % CHUNKS == 0) {
        // A thread stays in its column.
        constexpr int STEP = THREADS / CHUNKS;
        int row = thread / CHUNKS, column = thread % CHUNKS * 8;
        const E* source = from + (u64)(first + row) * stride + column;
        int left = column < width ? end - first - row : 0;
        to += at(row, column);
#pragma unroll 1
        for (int i = 0; i < ROWS / STEP; i++) {
            bool there = i * STEP < left;
            copy16(to + at(i * STEP, 0), there ? source : from, there);
            source += STEP * stride;
        }
    } else {
#pragma unroll 1
        for (int i = thread; i < ROWS * CHUNKS; i += THREADS) {
            int row = i / CHUNKS, column = i % CHUNKS * 8;
            bool there = first + row < end && column < width;
            copy16(to + at(row, column), there ? from + (u64)(first + row) * stride + column : from,
                   there);
        }
    }
}

// c = the product of MT·16 rows at `a` with the N rows at `b`, over D.
template <int MT, int N>
__device__ __forceinline__ void scores(float (&c)[MT][N / 8][4], u32 a, u32 b) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) c[m][n][i] = 0.0f;
#pragma unroll 4
    for (int k = 0; k < D / 16; k++) {
        u32 fa[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) load_matrices(fa[m], a + at(m * 16, k * 16));
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            u32 fb[4];
            load_matrices(fb, b + at(n * 16, k * 16));
#pragma unroll
            for (int m = 0; m < MT; m++) {
                mma(c[m][2 * n], fa[m], fb[0], fb[1]);
                mma(c[m][2 * n + 1], fa[m], fb[2], fb[3]);
            }
        }
    }
}

// sum += p, rounded to bf16, times W columns of the N rows at `b`. Sums of one product are laid out
// over the lanes as the left operand of the next is, so p never leaves its registers.
template <int MT, int N, int W>
__device__ __forceinline__ void add_product(float (&sum)[MT][W / 8][4],
                                            const float (&p)[MT][N / 8][4], u32 b) {
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        u32 fa[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) {
            fa[m][0] = to_bf16x2(p[m][2 * k][0], p[m][2 * k][1]);
            fa[m][1] = to_bf16x2(p[m][2 * k][2], p[m][2 * k][3]);
            fa[m][2] = to_bf16x2(p[m][2 * k + 1][0], p[m][2 * k + 1][1]);
            fa[m][3] = to_bf16x2(p[m][2 * k + 1][2], p[m][2 * k + 1][3]);
        }
#pragma unroll
        for (int n = 0; n < W / 16; n++) {
            u32 fb[4];
            load_transposed(fb, b + at(k * 16, n * 16));
#pragma unroll
            for (int m = 0; m < MT; m++) {
                mma(sum[m][2 * n], fa[m], fb[0], fb[1]);
                mma(sum[m][2 * n + 1], fa[m], fb[2], fb[3]);
            }
        }
    }
}

template <int MT, int W> __device__ __forceinline__ void clear(float (&sum)[MT][W / 8][4]) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < W / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sum[m][n][i] = 0.0f;
}

// Stores a warp's MT·16 rows of W columns, times factor[m][half] by row and rounded once, from row
// `first` of `to` on; rows from `end` and columns from `columns` on are dropped. `tile` is the place
// of these rows and columns in shared memory, which no other warp may use any more: through it the
// stores become 16 bytes wide.
template <int MT, int W>
__device__ __forceinline__ void store(E* tile, const float (&sum)[MT][W / 8][4],
                                      const float (&factor)[MT][2], E* to, u64 stride, int first,
                                      int end, int columns) {
    int lane = threadIdx.x & 31;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int n = 0; n < W / 8; n++) {
                int row = m * 16 + half * 8 + lane / 4, column = n * 8 + lane % 4 * 2;
                float f = factor[m][half];
                *reinterpret_cast<u32*>(tile + row * STRIDE + column) =
                    to_bf16x2(sum[m][n][2 * half] * f, sum[m][n][2 * half + 1] * f);
            }
    __syncwarp();
    constexpr int CHUNKS = W / 8;
#pragma unroll 4
    for (int i = lane; i < MT * 16 * CHUNKS; i += 32) {
        int row = i / CHUNKS, column = i % CHUNKS * 8;
        if (first + row < end && column < columns)
            *reinterpret_cast<uint4*>(to + (u64)(first + row) * stride + column) =
                *reinterpret_cast<const uint4*>(tile + row * STRIDE + column);
    }
}
