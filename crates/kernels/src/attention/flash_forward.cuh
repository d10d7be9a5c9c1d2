// Flash attention forward on tensor cores.
//
// A block owns a tile of queries of one head, a warp 16 or 32 of its rows; keys and values come in
// tiles through shared memory. Scores, the running softmax and the sums stay in registers. While
// scores are computed the tile of values is on its way, and the next tile of keys while the values
// are added.
#pragma once
#ifdef BF16
#include "flash.cuh"

constexpr int QUERIES = D <= 128 ? 128 : 64;
constexpr int KEYS = 64;
constexpr int MT = QUERIES / 16 / WARPS;

// Shared memory: QUERIES + 2·KEYS rows of 2·STRIDE bytes. Grid: tiles of queries, heads, rows of
// tokens.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    flash_forward(E* out, float* lse, const E* qkv, const int* doc_start, u64 seq, u64 heads,
                  u64 kv_heads, u64 head_dim, float scale, u64 window CAP_PARAMETER) {
    extern __shared__ uint4 pool[];
    E* tile = reinterpret_cast<E*>(pool);
    u32 queries = shared_address(pool);
    u32 keys = queries + at(QUERIES, 0), values = keys + at(KEYS, 0);
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int T = (int)seq, width = (int)head_dim;
    int head = blockIdx.y, kv_head = head / (int)(heads / kv_heads);
    u64 batch = blockIdx.z, stride = (heads + 2 * kv_heads) * head_dim;
    // The last tiles see the most keys; started first, they do not end last.
    int q0 = (int)(gridDim.x - 1 - blockIdx.x) * QUERIES;

    const int* starts = doc_start + batch * seq;
    const E* row = qkv + batch * seq * stride;
    const E* from_k = row + (heads + kv_head) * head_dim;
    const E* from_v = from_k + kv_heads * head_dim;
    int end = least(q0 + QUERIES, T);
    // First keys do not fall inside a row of tokens: the first query's is the least.
    int k0 = most(first_key(starts, q0, (int)window), 0) / KEYS * KEYS;
    int last_start = first_key(starts, end - 1, (int)window);
#ifdef FULL
    // Ends of keys do not fall either: the last query's is the largest, the first one's the least.
    int first_end = end_of_keys(starts, q0, 0, T);
    end = end_of_keys(starts, end - 1, 0, T);
#endif

    fetch<QUERIES>(queries, row + head * head_dim, stride, q0, T, width);
    fetch<KEYS>(keys, from_k, stride, k0, T, width);

    float sum[MT][D / 8][4];
    clear<MT, D>(sum);
    float top[MT][2], total[MT][2]; // of raw scores; a lane's own part of Σ 2^(scaled score - top)
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            top[m][half] = minus_infinity();
            total[m][half] = 0.0f;
        }
#ifdef CAPPED
    const float c = 1.0f, natural = 0.6931472f;  // bent scores are to the base 2
#else
    const float c = scale * LOG2E, natural = scale;
#endif
    int warp_row = warp * 16 * MT;
    u32 a = queries + at(warp_row, 0) + left(lane);
    u32 b_keys = keys + right(lane), b_values = values + left(lane);

    for (; k0 < end; k0 += KEYS) {
        wait_copies();
        __syncthreads(); // the keys are there, and nobody reads the values before them any more
        fetch<KEYS>(values, from_v, stride, k0, T, width);
        float s[MT][KEYS / 8][4];
        scores<MT, KEYS>(s, a, b_keys);
#ifdef CAPPED
        bend<MT, KEYS>(s, scale, cap);
#endif
        wait_copies();
        __syncthreads(); // the values are there, and nobody reads the keys any more
        if (k0 + KEYS < end) fetch<KEYS>(keys, from_k, stride, k0 + KEYS, T, width);

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
                                s[m][n][2 * half + i] = minus_infinity();
                        }
                }
        }
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float x = top[m][half];
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
                    x = fmaxf(x, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
                // A row lies in four lanes.
                x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
                x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
                // A row that has seen no key yet must not subtract infinity from infinity.
                float shift = x == minus_infinity() ? 0.0f : x * c;
                float factor = exp2_fast(top[m][half] * c - shift);
                top[m][half] = x;
                float part = total[m][half] * factor;
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float p = exp2_fast(fmaf(s[m][n][2 * half + i], c, -shift));
                        s[m][n][2 * half + i] = p;
                        part += p;
                    }
                total[m][half] = part;
#pragma unroll
                for (int n = 0; n < D / 8; n++) {
                    sum[m][n][2 * half] *= factor;
                    sum[m][n][2 * half + 1] *= factor;
                }
            }
        add_product<MT, KEYS, D>(sum, s, b_values);
    }

    float factor[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float x = total[m][half];
            x += __shfl_xor_sync(0xffffffffu, x, 1);
            x += __shfl_xor_sync(0xffffffffu, x, 2);
            factor[m][half] = 1.0f / x;
            int query = q0 + warp_row + m * 16 + half * 8 + lane / 4;
            if (lane % 4 == 0 && query < T)
                lse[(batch * heads + head) * seq + query] = top[m][half] * natural + logf(x);
        }
    // The warp's own rows of the queries, which only it has read.
    store<MT, D>(tile + warp_row * STRIDE, sum, factor,
                 out + (batch * seq * heads + head) * head_dim, heads * head_dim, q0 + warp_row, T,
                 width);
}
#endif
