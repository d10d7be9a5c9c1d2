// Attention of single rows over kept keys and values: stores, runs of keys, and their joining in order. No sum
// depends on which block comes first.
#include "common.cuh"

// Keys of a run, and threads of its block.
#define SPLIT 128
// Query heads of a block.
#define TILE 8

#define NONE __uint_as_float(0xff800000u)

// Where a row belongs; none of padding, and of a place or position that the cache has not.
struct At {
    u64 place, position;
    bool padding, there;
};

__device__ __forceinline__ At at(const int* positions, const int* places, u64 row, u64 n_places,
                                 u64 keys) {
    i64 place = places[row], position = positions[row];
    bool there = place >= 0 && (u64)place < n_places && position >= 0 && (u64)position < keys;
    return {(u64)place, (u64)position, place == -1, there};
}

// The first position that one sees.
__device__ __forceinline__ u64 first_of(u64 position, u64 window) {
    return position + 1 > window ? position + 1 - window : 0;
}

// Grid: rows, key heads.
extern "C" __global__ void __launch_bounds__(128)
    cached_store(E* cache, const E* qkv, const int* positions, const int* places, u64 n_places,
                 u64 keys, u64 heads, u64 kv_heads, u64 width) {
    u64 row = blockIdx.x, kv = blockIdx.y;
    At a = at(positions, places, row, n_places, keys);
    if (!a.there) return;
    const E* key = qkv + row * (heads + 2 * kv_heads) * width + (heads + kv) * width;
    const E* value = key + kv_heads * width;
    E* to = cache + ((a.place * kv_heads + kv) * keys + a.position) * width;
    u64 half = n_places * kv_heads * keys * width;
    for (u64 i = threadIdx.x; i < width; i += 128) {
        to[i] = key[i];
        to[half + i] = value[i];
    }
}

// Of each head and run of keys: the largest score, the sum of exponentials, and the sum of values under them, in f32.
// Grid: runs, tiles of query heads that share a key head, rows from `first` on. Shared memory:
// TILE·(width + SPLIT) floats. `wide`: 16-byte loads.
extern "C" __global__ void __launch_bounds__(SPLIT)
    cached_runs(float* runs, const E* cache, const E* qkv, const int* positions, const int* places,
                u64 first, u64 n_places, u64 keys, u64 heads, u64 kv_heads, u64 width, float scale,
                u64 window, float cap, int wide) {
    extern __shared__ uint4 pool[];
    float* q = reinterpret_cast<float*>(pool);
    float* p = q + TILE * width;
    u64 group = heads / kv_heads, tiles = (group + TILE - 1) / TILE;
    u64 kv = blockIdx.y / tiles, tile = blockIdx.y % tiles * TILE, row = first + blockIdx.z;
    At a = at(positions, places, row, n_places, keys);
    if (!a.there) return;
    u64 from = (u64)blockIdx.x * SPLIT, seen = first_of(a.position, window);
    u64 begin = from > seen ? from : seen, end = from + SPLIT;
    if (end > a.position + 1) end = a.position + 1;
    if (begin >= end) return;
    u32 tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    u32 n = group - tile < TILE ? (u32)(group - tile) : TILE;
    u64 head = kv * group + tile;
    const E* query = qkv + row * (heads + 2 * kv_heads) * width + head * width;
    for (u64 i = tid; i < TILE * width; i += SPLIT)
        q[i] = i < n * width ? scale * widen(query[i]) : 0.0f;
    __syncthreads();

    // A thread for each key.
    const E* line = cache + (a.place * kv_heads + kv) * keys * width;
    u64 key = from + tid;
    bool here = key >= begin && key < end;
    float x[TILE];
#pragma unroll
    for (u32 h = 0; h < TILE; h++) x[h] = 0.0f;
    if (here) {
        const E* k = line + key * width;
        if (wide) {
            for (u64 i = 0; i < width; i += 8) {
                Eight e = load8(k + i);
#pragma unroll
                for (u32 h = 0; h < TILE; h++) {
                    if (h >= n) continue;
#pragma unroll
                    for (u32 j = 0; j < 8; j++) x[h] = fmaf(q[h * width + i + j], e.x[j], x[h]);
                }
            }
        } else {
            for (u64 i = 0; i < width; i++) {
                float e = widen(k[i]);
#pragma unroll
                for (u32 h = 0; h < TILE; h++) x[h] = fmaf(q[h * width + i], e, x[h]);
            }
        }
    }
#pragma unroll
    for (u32 h = 0; h < TILE; h++) {
        float score = cap > 0.0f ? cap * tanhf(x[h] / cap) : x[h];
        p[h * SPLIT + tid] = here ? score : NONE;
    }
    __syncthreads();

    // A warp for each head.
    u64 row_runs = (u64)blockIdx.z * heads, size = width + 2;
    for (u32 h = warp; h < n; h += SPLIT / 32) {
        float* scores = p + h * SPLIT;
        float top = NONE, total = 0.0f;
        for (u32 i = lane; i < SPLIT; i += 32) top = fmaxf(top, scores[i]);
        top = warp_max(top);
        for (u32 i = lane; i < SPLIT; i += 32) {
            float y = expf(scores[i] - top);
            scores[i] = y;
            total += y;
        }
        total = warp_sum(total);
        if (lane == 0) {
            float* run = runs + ((row_runs + head + h) * gridDim.x + blockIdx.x) * size;
            run[0] = top;
            run[1] = total;
        }
    }
    __syncthreads();

    // A thread for each column.
    const E* values = line + n_places * kv_heads * keys * width;
    for (u64 c = tid; c < width; c += SPLIT) {
        float sum[TILE];
#pragma unroll
        for (u32 h = 0; h < TILE; h++) sum[h] = 0.0f;
#pragma unroll 8
        for (u64 i = begin; i < end; i++) {
            float e = widen(values[i * width + c]);
#pragma unroll
            for (u32 h = 0; h < TILE; h++)
                if (h < n) sum[h] = fmaf(p[h * SPLIT + (i - from)], e, sum[h]);
        }
#pragma unroll
        for (u32 h = 0; h < TILE; h++)
            if (h < n)
                runs[((row_runs + head + h) * gridDim.x + blockIdx.x) * size + 2 + c] = sum[h];
    }
}

// Joins a head's runs, in order. Grid: query heads, rows from `first` on.
extern "C" __global__ void __launch_bounds__(128)
    cached_join(E* out, const float* runs, const int* positions, const int* places, u64 first,
                u64 n_places, u64 keys, u64 width, u64 window) {
    u64 heads = gridDim.x, head = blockIdx.x, row = first + blockIdx.y;
    u64 n_runs = (keys + SPLIT - 1) / SPLIT, size = width + 2;
    At a = at(positions, places, row, n_places, keys);
    E* to = out + (row * heads + head) * width;
    if (!a.there) {
        float x = a.padding ? 0.0f : __uint_as_float(0x7fc00000u);
        for (u64 c = threadIdx.x; c < width; c += 128) to[c] = narrow<E>(x);
        return;
    }
    const float* all = runs + ((u64)blockIdx.y * heads + head) * n_runs * size;
    u64 begin = first_of(a.position, window) / SPLIT, end = a.position / SPLIT + 1;
    float top = NONE, total = 0.0f;
    for (u64 r = begin; r < end; r++) top = fmaxf(top, all[r * size]);
    for (u64 r = begin; r < end; r++) total += all[r * size + 1] * expf(all[r * size] - top);
    for (u64 c = threadIdx.x; c < width; c += 128) {
        float sum = 0.0f;
        for (u64 r = begin; r < end; r++)
            sum = fmaf(all[r * size + 2 + c], expf(all[r * size] - top), sum);
        to[c] = narrow<E>(sum / total);
    }
}
