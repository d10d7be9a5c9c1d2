// Flash attention backward on tensor cores: one kernel for the gradients of keys and values, one for
// those of queries. Probabilities are computed again from lse; nothing is added in memory, so every
// sum has a fixed order and is rounded once.
#pragma once
#ifdef BF16
#include "flash.cuh"

// Gradients of keys and values.
//
// A block owns a tile of keys of one key head, a warp 16 or 32 of its rows; it goes through the
// head's query heads in order and through their tiles of queries, which come two at a time through
// shared memory. Scores are computed with a row for each key, so that probabilities and their
// gradients are left operands as they stand in registers. Where the sums of a row do not fit a
// thread's registers (D = 256), SPLIT warps compute the same scores and each sums a part of the
// columns.
namespace kv {
constexpr int SPLIT = D <= 128 ? 1 : 2;
constexpr int MT = D <= 64 ? 2 : 1;
constexpr int KEYS = 16 * MT * WARPS / SPLIT;
constexpr int QUERIES = D <= 128 ? 32 : 16;
constexpr int W = D / SPLIT;

// What a tile of queries brings: rows of q and d_out, then lse, delta and document starts.
constexpr u32 NUMBERS = 2 * at(QUERIES, 0), STAGE = NUMBERS + 3 * QUERIES * 4;

// The first query from k0 on whose first key is after `last_key`; `end` if there is none. All threads
// of the block call it and get the same.
__device__ __forceinline__ int first_unseen(const int* starts, int k0, int end, int last_key,
                                            int window) {
    int from = k0, n = end - k0; // the answer is in from ..= from + n
    while (n > 0) {
        int step = (n + THREADS - 1) / THREADS;
        int offset = (int)threadIdx.x * step;
        // First keys never decrease, so the queries that see the tile come first.
        int seen = __syncthreads_count(offset < n &&
                                       first_key(starts, from + offset, window) <= last_key);
        if (seen == 0) break;
        int past = (seen - 1) * step + 1;
        n = least(step - 1, n - past);
        from += past;
    }
    return from;
}
} // namespace kv

// Shared memory: 2·KEYS rows of 2·STRIDE bytes, and two stages. Grid: tiles of keys, key heads, rows
// of tokens.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    flash_backward_kv(E* d_qkv, const E* d_out, const E* qkv, const float* lse, const float* delta,
                      const int* doc_start, u64 seq, u64 heads, u64 kv_heads, u64 head_dim,
                      float scale, u64 window CAP_PARAMETER) {
    using namespace kv;
    extern __shared__ uint4 pool[];
    char* base = reinterpret_cast<char*>(pool);
    constexpr u32 VALUES = at(KEYS, 0), STAGES = 2 * VALUES;
    u32 shared = shared_address(pool);
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int T = (int)seq, width = (int)head_dim, group = (int)(heads / kv_heads);
    int kv_head = blockIdx.y;
    u64 batch = blockIdx.z, stride = (heads + 2 * kv_heads) * head_dim;
    // The first tiles are seen by the most queries, and start first.
    int k0 = (int)blockIdx.x * KEYS;

    const int* starts = doc_start + batch * seq;
    const E* row = qkv + batch * seq * stride;
    const E* row_out = d_out + batch * seq * heads * head_dim;
    u64 at_k = (heads + kv_head) * head_dim, at_v = at_k + kv_heads * head_dim;
    fetch<KEYS>(shared, row + at_k, stride, k0, T, width);
    fetch<KEYS>(shared + VALUES, row + at_v, stride, k0, T, width);
    int end = first_unseen(starts, k0, T, least(k0 + KEYS, T) - 1, (int)window);

    // Starts the copies of the tile of queries from q0 of a head.
    auto bring = [&](u32 stage, int head, int q0) {
        fetch<QUERIES>(stage, row + head * head_dim, stride, q0, T, width);
        fetch<QUERIES>(stage + at(QUERIES, 0), row_out + head * head_dim, heads * head_dim, q0, T,
                       width);
        u64 line = (batch * heads + head) * seq;
        if (threadIdx.x < 3 * QUERIES) {
            int which = threadIdx.x / QUERIES, query = q0 + threadIdx.x % QUERIES;
            const void* from = which == 0   ? (const void*)(lse + line)
                               : which == 1 ? (const void*)(delta + line)
                                            : (const void*)starts;
            bool there = query < T;
            copy4(stage + NUMBERS + threadIdx.x * 4, (const int*)from + (there ? query : 0), there);
        }
    };

    float dk[MT][W / 8][4], dv[MT][W / 8][4];
    clear<MT, W>(dk);
    clear<MT, W>(dv);
#ifdef CAPPED
    const float c = 1.0f;  // bent scores are to the base 2
#else
    const float c = scale * LOG2E;
#endif
    int warp_row = warp / SPLIT * 16 * MT, first_column = warp % SPLIT * W;
    u32 a_keys = shared + at(warp_row, 0) + left(lane), a_values = a_keys + VALUES;

#ifdef FULL
    // The first query that sees the tile is the first token of its first key's document.
    const int from = most(starts[k0], 0);
    int lowest = starts[k0], highest = starts[least(k0 + KEYS, T) - 1], of_key[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int key = k0 + warp_row + m * 16 + half * 8 + lane / 4;
            of_key[m][half] = starts[least(key, T - 1)];
        }
#else
    const int from = k0;
#endif
    int head = kv_head * group, last_head = head + group - 1, q0 = from;
    u32 stage = 0;
    bool more = q0 < end;
    if (more) bring(shared + STAGES, head, q0);
    while (more) {
        wait_copies();
        __syncthreads(); // this tile is there, and nobody reads the one before it any more
        int next_head = head, next_q0 = q0 + QUERIES;
        if (next_q0 >= end) {
            next_head++;
            next_q0 = from;
        }
        more = next_head <= last_head;
        if (more) bring(shared + STAGES + (stage ^ 1) * STAGE, next_head, next_q0);

        u32 offset = STAGES + stage * STAGE;
        u32 b_queries = shared + offset, b_d_out = b_queries + at(QUERIES, 0);
        const float* lses = reinterpret_cast<const float*>(base + offset + NUMBERS);
        const float* deltas = lses + QUERIES;
        const int* tile_starts = reinterpret_cast<const int*>(lses + 2 * QUERIES);

        float p[MT][QUERIES / 8][4];
        scores<MT, QUERIES>(p, a_keys, b_queries + right(lane));
#ifdef CAPPED
        bend<MT, QUERIES>(p, scale, cap);
#endif
        int first = k0 + warp_row;
#ifdef FULL
        bool cut = q0 + QUERIES > T || tile_starts[QUERIES - 1] != lowest || tile_starts[0] != highest;
#else
        bool cut = k0 + KEYS - 1 > q0 || q0 + QUERIES > T ||
                   most(tile_starts[QUERIES - 1], q0 + QUERIES - (int)window) > k0;
#endif
        if (cut) {
#pragma unroll
            for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int column = n * 8 + lane % 4 * 2 + i, query = q0 + column;
#ifdef FULL
                    int start = tile_starts[column];
#else
                    int start = most(tile_starts[column], query + 1 - (int)window);
#endif
#pragma unroll
                    for (int m = 0; m < MT; m++)
#pragma unroll
                        for (int half = 0; half < 2; half++) {
#ifdef FULL
                            bool unseen = of_key[m][half] != start || query >= T;
#else
                            int key = first + m * 16 + half * 8 + lane / 4;
                            bool unseen = key > query || key < start || query >= T;
#endif
                            if (unseen)
                                p[m][n][2 * half + i] = minus_infinity();
                        }
                }
        }
#pragma unroll
        for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float shift = lses[n * 8 + lane % 4 * 2 + i] * LOG2E;
#pragma unroll
                for (int m = 0; m < MT; m++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        float& x = p[m][n][2 * half + i];
                        x = exp2_fast(fmaf(x, c, -shift));
                    }
            }
        add_product<MT, QUERIES, W>(dv, p, b_d_out + left(lane) + at(0, first_column));

        float ds[MT][QUERIES / 8][4];
        scores<MT, QUERIES>(ds, a_values, b_d_out + right(lane));
#pragma unroll
        for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float mean = deltas[n * 8 + lane % 4 * 2 + i];
#pragma unroll
                for (int m = 0; m < MT; m++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        float& x = ds[m][n][2 * half + i];
                        x = p[m][n][2 * half + i] * (x - mean);
#ifdef CAPPED
                        x *= slope(p[m][n][2 * half + i],
                                   lses[n * 8 + lane % 4 * 2 + i] * LOG2E, cap);
#endif
                    }
            }
        add_product<MT, QUERIES, W>(dk, ds, b_queries + left(lane) + at(0, first_column));
        head = next_head;
        q0 = next_q0;
        stage ^= 1;
    }

    wait_copies();
    __syncthreads(); // nobody reads keys and values any more: their places take the sums
    float one[MT][2], scales[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            one[m][half] = 1.0f;
            scales[m][half] = scale;
        }
    E* tile = reinterpret_cast<E*>(base) + warp_row * STRIDE + first_column;
    E* to = d_qkv + batch * seq * stride + first_column;
    store<MT, W>(tile, dk, scales, to + at_k, stride, k0 + warp_row, T, width - first_column);
    store<MT, W>(tile + KEYS * STRIDE, dv, one, to + at_v, stride, k0 + warp_row, T,
                 width - first_column);
}

// Gradients of queries.
//
// A block owns a tile of queries of one head, a warp 16 or 32 of its rows. Of keys there are two
// tiles in shared memory, because they are needed to the end; of values one, which is replaced while
// the gradient of scores is multiplied with the keys.
namespace queries {
constexpr int QUERIES = D <= 128 ? 128 : 64;
constexpr int KEYS = D <= 64 ? 64 : D <= 128 ? 32 : 16;
constexpr int MT = QUERIES / 16 / WARPS;
} // namespace queries

// Shared memory: 2·QUERIES + 3·KEYS rows of 2·STRIDE bytes. Grid: tiles of queries, heads, rows of
// tokens.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    flash_backward_q(E* d_qkv, const E* d_out, const E* qkv, const float* lse, const float* delta,
                     const int* doc_start, u64 seq, u64 heads, u64 kv_heads, u64 head_dim,
                     float scale, u64 window CAP_PARAMETER) {
    using namespace queries;
    extern __shared__ uint4 pool[];
    constexpr u32 D_OUT = at(QUERIES, 0), VALUES = 2 * D_OUT, KEYS_AT = VALUES + at(KEYS, 0);
    u32 shared = shared_address(pool);
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int T = (int)seq, width = (int)head_dim;
    int head = blockIdx.y, kv_head = head / (int)(heads / kv_heads);
    u64 batch = blockIdx.z, stride = (heads + 2 * kv_heads) * head_dim;
    int q0 = (int)(gridDim.x - 1 - blockIdx.x) * QUERIES;

    const int* starts = doc_start + batch * seq;
    const E* row = qkv + batch * seq * stride;
    const E* from_k = row + (heads + kv_head) * head_dim;
    const E* from_v = from_k + kv_heads * head_dim;
    int end = least(q0 + QUERIES, T);
    int k0 = most(first_key(starts, q0, (int)window), 0) / KEYS * KEYS;
    int last_start = first_key(starts, end - 1, (int)window);
#ifdef FULL
    // Ends of keys do not fall either: the last query's is the largest, the first one's the least.
    int first_end = end_of_keys(starts, q0, 0, T);
    end = end_of_keys(starts, end - 1, 0, T);
#endif

    fetch<QUERIES>(shared, row + head * head_dim, stride, q0, T, width);
    fetch<QUERIES>(shared + D_OUT, d_out + (batch * seq * heads + head) * head_dim,
                   heads * head_dim, q0, T, width);
    fetch<KEYS>(shared + KEYS_AT, from_k, stride, k0, T, width);
    fetch<KEYS>(shared + VALUES, from_v, stride, k0, T, width);

    int warp_row = warp * 16 * MT;
    float shift[MT][2], mean[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int query = q0 + warp_row + m * 16 + half * 8 + lane / 4;
            u64 line = (batch * heads + head) * seq;
            shift[m][half] = query < T ? lse[line + query] * LOG2E : 0.0f;
            mean[m][half] = query < T ? delta[line + query] : 0.0f;
        }
    float dq[MT][D / 8][4];
    clear<MT, D>(dq);
#ifdef CAPPED
    const float c = 1.0f;  // bent scores are to the base 2
#else
    const float c = scale * LOG2E;
#endif
    u32 a_queries = shared + at(warp_row, 0) + left(lane), a_d_out = a_queries + D_OUT;
    u32 b_values = shared + VALUES + right(lane);
    u32 stage = 0;

    for (; k0 < end; k0 += KEYS) {
        u32 keys = shared + KEYS_AT + stage * at(KEYS, 0);
        bool more = k0 + KEYS < end;
        stage ^= 1;
        wait_copies();
        __syncthreads(); // this tile is there, and nobody reads the keys before it any more
        if (more)
            fetch<KEYS>(shared + KEYS_AT + stage * at(KEYS, 0), from_k, stride, k0 + KEYS, T,
                        width);
        float p[MT][KEYS / 8][4];
        scores<MT, KEYS>(p, a_queries, keys + right(lane));
#ifdef CAPPED
        bend<MT, KEYS>(p, scale, cap);
#endif
        int first = q0 + warp_row;
#ifdef FULL
        bool cut = k0 + KEYS > first_end || k0 < last_start;
#else
        bool cut = k0 + KEYS - 1 > first || k0 < last_start;
#endif
        if (cut) {
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    // What the query sees, as columns of the tile from the lane's own on.
                    int query = first + m * 16 + half * 8 + lane / 4, own = k0 + lane % 4 * 2;
                    int low = first_key(starts, least(query, T - 1), (int)window) - own;
#ifdef FULL
                    int high = end_of_keys(starts, least(query, T - 1), k0, least(k0 + KEYS, T)) -
                               1 - own;
#else
                    int high = query - own;
#endif
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            if (n * 8 + i > high || n * 8 + i < low)
                                p[m][n][2 * half + i] = minus_infinity();
                        }
                }
        }
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    p[m][n][i] = exp2_fast(fmaf(p[m][n][i], c, -shift[m][i / 2]));

        float ds[MT][KEYS / 8][4];
        scores<MT, KEYS>(ds, a_d_out, b_values);
        if (more) {
            __syncthreads(); // nobody reads the values any more
            fetch<KEYS>(shared + VALUES, from_v, stride, k0 + KEYS, T, width);
        }
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    ds[m][n][i] = p[m][n][i] * (ds[m][n][i] - mean[m][i / 2]);
#ifdef CAPPED
                    ds[m][n][i] *= slope(p[m][n][i], shift[m][i / 2], cap);
#endif
                }
        add_product<MT, KEYS, D>(dq, ds, keys + left(lane));
    }

    float scales[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) scales[m][half] = scale;
    // The warp's own rows of the queries, which only it has read.
    store<MT, D>(reinterpret_cast<E*>(pool) + warp_row * STRIDE, dq, scales,
                 d_qkv + batch * seq * stride + head * head_dim, stride, q0 + warp_row, T, width);
}
#endif
