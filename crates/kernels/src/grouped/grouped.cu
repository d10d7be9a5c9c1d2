// Grouped products on tensor cores, and plain ones for f32 and for sizes that no 16 bytes hold.
//
// Each product is C = A·B with an inner dimension that is summed. An operand lies in memory by its outer rows (the
// inner numbers of one next to each other) or turned, by its inner rows. A block finds its tile's expert from the
// offsets, so that no tile is computed that no row needs: the grid has as many tiles as there can be, and those behind
// the last end at once.
#include "common.cuh"
#include "flash_ptx.cuh"

struct Group {
    int expert;  // below 0: no such tile
    int first;   // row
    int end;
};

// The expert of tile `tile`, and the tile's first row, where each expert's rows are cut into tiles of `rows`. Called
// by whole warps.
__device__ __forceinline__ Group find(const int* offsets, int experts, int tile, int rows) {
    const int lane = threadIdx.x & 31;
    for (int base = 0; base < experts; base += 32) {
        int e = base + lane;
        int first = e < experts ? offsets[e] : 0, end = e < experts ? offsets[e + 1] : 0;
        int tiles = (end - first + rows - 1) / rows, upto = tiles;
#pragma unroll
        for (int d = 1; d < 32; d <<= 1) {
            int before = __shfl_up_sync(0xffffffffu, upto, d);
            if (lane >= d) upto += before;
        }
        u32 found = __ballot_sync(0xffffffffu, tile < upto);
        if (found) {
            int lucky = __ffs(found) - 1;
            int skipped = tile - (upto - tiles);  // tiles of this expert before it
            Group g;
            g.expert = base + lucky;
            g.first = __shfl_sync(0xffffffffu, first + skipped * rows, lucky);
            g.end = __shfl_sync(0xffffffffu, end, lucky);
            return g;
        }
        tile -= __shfl_sync(0xffffffffu, upto, 31);
    }
    return {-1, 0, 0};
}

constexpr int THREADS = 256;

#ifdef BF16
constexpr int TILE = 128;      // rows and columns of a block
constexpr int INNER = 32;      // inner numbers of a step
constexpr int STAGES = 3;
// Rows of shared memory are 16 bytes longer than their numbers: an odd number of 16-byte words, so that the eight rows
// of a matrix lie in different banks.
constexpr int STRAIGHT = INNER + 8, TURNED = TILE + 8;
constexpr int HALF = TILE * STRAIGHT * 2;  // bytes of an operand's tile; a turned one is smaller
static_assert(INNER * TURNED * 2 <= HALF, "either fits");

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wait_for_all_but() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Starts copies of TILE outer and INNER inner numbers; zeros where the operand has none.
template <bool IS_TURNED>
__device__ __forceinline__ void fetch(u32 to, const E* from, u64 stride, int outer, int outer_end,
                                      int inner, int inner_end) {
#pragma unroll
    for (int i = 0; i < TILE * INNER / 8 / THREADS; i++) {
        int chunk = i * THREADS + threadIdx.x;
        constexpr int WIDTH = IS_TURNED ? TILE / 8 : INNER / 8;
        int row = chunk / WIDTH, column = chunk % WIDTH * 8;
        int o = outer + (IS_TURNED ? column : row), p = inner + (IS_TURNED ? row : column);
        bool there = o < outer_end && p < inner_end;
        const E* source = from + (IS_TURNED ? (u64)p * stride + o : (u64)o * stride + p);
        copy16(to + (row * (IS_TURNED ? TURNED : STRAIGHT) + column) * 2, there ? source : from,
               there);
    }
}

// 16 outer by 16 inner numbers as the left operand of a product, or as two right ones of 8 outer numbers each.
template <bool IS_TURNED, bool LEFT>
__device__ __forceinline__ void fragment(u32 (&r)[4], u32 at, int outer, int inner) {
    const int lane = threadIdx.x & 31;
    // Which of four 8x8 matrices is the second in outer, and which in inner direction: 0 1 0 1 and 0 0 1 1 on the left.
    int one = (lane >> 3) & 1, two = lane >> 4;
    int o = outer + (LEFT ? one : two) * 8, p = inner + (LEFT ? two : one) * 8;
    if constexpr (IS_TURNED)
        load_transposed(r, at + ((p + (lane & 7)) * TURNED + o) * 2);
    else
        load_matrices(r, at + ((o + (lane & 7)) * STRAIGHT + p) * 2);
}

// An operand: where it begins, how far its rows are apart, and where its outer numbers of this tile begin and all end.
struct Operand {
    const E* from;
    u64 stride;
    int outer;
    int end;
};

// sum = the tile of A·B over the inner numbers from `inner` to `end`. A warp has 64 rows of 32 columns.
template <bool A_TURNED, bool B_TURNED>
__device__ __forceinline__ void multiply(float (&sum)[4][4][4], const Operand& a, const Operand& b,
                                         int inner, int end) {
    extern __shared__ uint4 pool[];
    const u32 base = shared_address(pool);
    const int warp = threadIdx.x >> 5, row = (warp & 1) * 64, column = (warp >> 1) * 32;
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sum[m][n][i] = 0.0f;

    const int steps = (end - inner + INNER - 1) / INNER;
    auto start = [&](int step) {
        if (step < steps) {
            u32 to = base + step % STAGES * 2 * HALF;
            int p = inner + step * INNER;
            fetch<A_TURNED>(to, a.from, a.stride, a.outer, a.end, p, end);
            fetch<B_TURNED>(to + HALF, b.from, b.stride, b.outer, b.end, p, end);
        }
        commit();  // also of nothing, so that counts are right
    };
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) start(s);
    for (int step = 0; step < steps; step++) {
        wait_for_all_but<STAGES - 2>();
        __syncthreads();  // the copies of all are there, and all are done with the stage that is filled next
        start(step + STAGES - 1);
        u32 at = base + step % STAGES * 2 * HALF;
#pragma unroll
        for (int p = 0; p < INNER; p += 16) {
            u32 fa[4][4], fb[2][4];
#pragma unroll
            for (int m = 0; m < 4; m++) fragment<A_TURNED, true>(fa[m], at, row + m * 16, p);
#pragma unroll
            for (int n = 0; n < 2; n++)
                fragment<B_TURNED, false>(fb[n], at + HALF, column + n * 16, p);
#pragma unroll
            for (int m = 0; m < 4; m++)
#pragma unroll
                for (int n = 0; n < 4; n++)
                    mma(sum[m][n], fa[m], fb[n / 2][n % 2 * 2], fb[n / 2][n % 2 * 2 + 1]);
        }
    }
}

// Calls `put(row, column, x, y)` for each two numbers of a tile next to each other.
template <class Put>
__device__ __forceinline__ void each_pair(const float (&sum)[4][4][4], int row, int column,
                                          const Put& put) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    row += (warp & 1) * 64 + lane / 4;
    column += (warp >> 1) * 32 + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int n = 0; n < 4; n++)
                put(row + m * 16 + half * 8, column + n * 8, sum[m][n][2 * half],
                    sum[m][n][2 * half + 1]);
}

// Rows of the tile's expert times its weight, or its transpose.
template <bool W_TURNED>
__device__ __forceinline__ void rows_product(E* y, const E* x, const E* w, const int* offsets,
                                             int experts, int cols, int inner) {
    Group g = find(offsets, experts, blockIdx.x, TILE);
    if (g.expert < 0) return;
    const int column = blockIdx.y * TILE;
    Operand a = {x, (u64)inner, g.first, g.end};
    Operand b = {w + (u64)g.expert * cols * inner, (u64)(W_TURNED ? cols : inner), column, cols};
    float sum[4][4][4];
    multiply<false, W_TURNED>(sum, a, b, 0, inner);
    each_pair(sum, g.first, column, [&](int row, int col, float s, float t) {
        if (row < g.end && col < cols)
            *reinterpret_cast<u32*>(y + (u64)row * cols + col) = to_bf16x2(s, t);
    });
}

// x (m, k), w (experts, n, k), y (m, n).
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    forward(E* y, const E* x, const E* w, const int* offsets, u64 experts, u64 n, u64 k) {
    rows_product<false>(y, x, w, offsets, (int)experts, (int)n, (int)k);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    input(E* dx, const E* dy, const E* w, const int* offsets, u64 experts, u64 n, u64 k) {
    rows_product<true>(dx, dy, w, offsets, (int)experts, (int)k, (int)n);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    weight(float* dw, const E* dy, const E* x, const int* offsets, u64 n, u64 k, int accumulate) {
    const int e = blockIdx.z, first = offsets[e], end = offsets[e + 1];
    if (accumulate && first == end) return;
    const int row = blockIdx.y * TILE, column = blockIdx.x * TILE;
    Operand a = {dy, n, row, (int)n}, b = {x, k, column, (int)k};
    float sum[4][4][4];
    multiply<true, true>(sum, a, b, first, end);
    float* to = dw + (u64)e * n * k;
    each_pair(sum, row, column, [&](int r, int c, float s, float t) {
        if (r < n && c < k) {
            float2* at = reinterpret_cast<float2*>(to + (u64)r * k + c);
            float2 old = accumulate ? *at : make_float2(0.0f, 0.0f);
            *at = make_float2(old.x + s, old.y + t);
        }
    });
}
#endif

// ---------------------------------------------------------------- without tensor cores

constexpr int EDGE = 64;   // rows and columns of a block
constexpr int DEPTH = 16;  // inner numbers of a step

// An operand of the plain products; from `inner` on its numbers are `inner_stride` apart.
struct Strided {
    const E* from;
    u64 outer_stride;
    u64 inner_stride;
    int outer;
    int end;
};

__device__ __forceinline__ void fill(float (&to)[DEPTH][EDGE + 4], const Strided& s, int inner,
                                     int end) {
#pragma unroll
    for (int i = 0; i < EDGE * DEPTH / THREADS; i++) {
        int at = i * THREADS + threadIdx.x;
        // Threads next to each other read numbers next to each other.
        bool along = s.inner_stride == 1;
        int p = along ? at % DEPTH : at / EDGE, o = along ? at / DEPTH : at % EDGE;
        bool there = s.outer + o < s.end && inner + p < end;
        to[p][o] = there ? widen(s.from[(u64)(s.outer + o) * s.outer_stride +
                                        (u64)(inner + p) * s.inner_stride])
                         : 0.0f;
    }
}

// Sums of four rows and four columns of a thread.
__device__ __forceinline__ void multiply_plain(float (&sum)[4][4], const Strided& a,
                                               const Strided& b, int inner, int end) {
    __shared__ float left[DEPTH][EDGE + 4], right[DEPTH][EDGE + 4];
    const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int n = 0; n < 4; n++) sum[m][n] = 0.0f;
    for (; inner < end; inner += DEPTH) {
        fill(left, a, inner, end);
        fill(right, b, inner, end);
        __syncthreads();
#pragma unroll
        for (int p = 0; p < DEPTH; p++)
#pragma unroll
            for (int m = 0; m < 4; m++)
#pragma unroll
                for (int n = 0; n < 4; n++)
                    sum[m][n] = fmaf(left[p][row + m], right[p][column + n], sum[m][n]);
        __syncthreads();
    }
}

template <class Put>
__device__ __forceinline__ void each_plain(const float (&sum)[4][4], int row, int column,
                                           const Put& put) {
    row += threadIdx.x / 16 * 4;
    column += threadIdx.x % 16 * 4;
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int n = 0; n < 4; n++) put(row + m, column + n, sum[m][n]);
}

// `turned`: each expert's weight is (inner, cols), not (cols, inner).
__device__ __forceinline__ void rows_plain(E* y, const E* x, const E* w, const int* offsets,
                                           int experts, int cols, int inner, bool turned) {
    Group g = find(offsets, experts, blockIdx.x, EDGE);
    if (g.expert < 0) return;
    const int column = blockIdx.y * EDGE;
    Strided a = {x, (u64)inner, 1, g.first, g.end};
    Strided b = {w + (u64)g.expert * cols * inner, (u64)(turned ? 1 : inner),
                 (u64)(turned ? cols : 1), column, cols};
    float sum[4][4];
    multiply_plain(sum, a, b, 0, inner);
    each_plain(sum, g.first, column, [&](int row, int col, float s) {
        if (row < g.end && col < cols) y[(u64)row * cols + col] = narrow<E>(s);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    forward_plain(E* y, const E* x, const E* w, const int* offsets, u64 experts, u64 n, u64 k) {
    rows_plain(y, x, w, offsets, (int)experts, (int)n, (int)k, false);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    input_plain(E* dx, const E* dy, const E* w, const int* offsets, u64 experts, u64 n, u64 k) {
    rows_plain(dx, dy, w, offsets, (int)experts, (int)k, (int)n, true);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    weight_plain(float* dw, const E* dy, const E* x, const int* offsets, u64 n, u64 k,
                 int accumulate) {
    const int e = blockIdx.z, first = offsets[e], end = offsets[e + 1];
    if (accumulate && first == end) return;
    const int row = blockIdx.y * EDGE, column = blockIdx.x * EDGE;
    Strided a = {dy, 1, n, row, (int)n}, b = {x, 1, k, column, (int)k};
    float sum[4][4];
    multiply_plain(sum, a, b, first, end);
    float* to = dw + (u64)e * n * k;
    each_plain(sum, row, column, [&](int r, int c, float s) {
        if (r < n && c < k) {
            float* at = to + (u64)r * k + c;
            *at = accumulate ? *at + s : s;
        }
    });
}
