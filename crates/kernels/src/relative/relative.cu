// Attention of queries to keys of another product, with a number for each head and distance added to the scores. Plain: a
// warp owns one query (of its gradient too), one key for its gradient, or one distance for that of the numbers added, and
// goes through what that sees in order. So nothing is added by two warps, and sums have one order.
//
// Tq, Tk tokens of a row; H heads of D numbers, at most 256; queries (B·Tq, H·D), keys and values (B·Tk, 2·H·D), the
// numbers added (H, Tq + Tk - 1), the logarithms (B, H, Tq). seen (B·Tq, 2): first key and the one behind the last of
// each query; seen_by (B·Tk, 2): the same of each key's queries.
#include "common.cuh"

// Numbers of a head that a lane has.
constexpr int MOST = 8;


// Lane i has numbers i, i + 32, ...; 0 behind the last.
__device__ __forceinline__ void load_head(float* to, const E* x, u64 d, int lane) {
#pragma unroll
    for (int i = 0; i < MOST; i++) to[i] = lane + 32 * i < d ? widen(x[lane + 32 * i]) : 0.0f;
}

__device__ __forceinline__ void store_head(E* to, const float* x, u64 d, int lane, float factor) {
#pragma unroll
    for (int i = 0; i < MOST; i++)
        if (lane + 32 * i < d) to[lane + 32 * i] = narrow<E>(factor * x[i]);
}

__device__ __forceinline__ float dot(const float* a, const float* b) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < MOST; i++) sum = fmaf(a[i], b[i], sum);
    return warp_sum(sum);
}

// One block a row of tokens, of which one thread works.
extern "C" __global__ void ranges(const int* __restrict__ queries, const int* __restrict__ keys,
                                  int* __restrict__ seen, int* __restrict__ seen_by, u64 tq, u64 tk,
                                  u64 causal) {
    if (threadIdx.x > 0) return;
    u64 b = blockIdx.x;
    queries += b * tq;
    seen += 2 * b * tq;
    keys += b * tk;
    seen_by += 2 * b * tk;
    u64 t = 0, s = 0;
    while (t < tq || s < tk) {
        u64 t0 = t, s0 = s;
        while (t < tq && queries[t] == queries[t0]) t++;
        while (s < tk && keys[s] == keys[s0]) s++;
        for (u64 i = t0; i < t; i++) {
            seen[2 * i] = (int)s0;
            seen[2 * i + 1] = (int)(causal ? i + 1 : s);
        }
        for (u64 j = s0; j < s; j++) {
            seen_by[2 * j] = (int)(causal ? j : t0);
            seen_by[2 * j + 1] = (int)t;
        }
    }
}

// One warp a block; grid: queries of a row, heads, rows.
extern "C" __global__ void __launch_bounds__(32)
    forward(E* __restrict__ out, float* __restrict__ lse, const E* __restrict__ q,
            const E* __restrict__ kv, const float* __restrict__ bias, const int* __restrict__ seen,
            u64 tq, u64 tk, u64 heads, u64 d, float scale) {
    u64 t = blockIdx.x, h = blockIdx.y, b = blockIdx.z, c = heads * d;
    int lane = threadIdx.x;
    const int* range = seen + 2 * (b * tq + t);
    float query[MOST], x[MOST], sums[MOST] = {};
    load_head(query, q + (b * tq + t) * c + h * d, d, lane);
    float most = __int_as_float(0xff800000), total = 0.0f;
    for (u64 s = range[0]; s < (u64)range[1]; s++) {
        const E* key = kv + (b * tk + s) * 2 * c + h * d;
        load_head(x, key, d, lane);
        float score = scale * dot(query, x);
        if (bias) score += bias[h * (tq + tk - 1) + s + tq - 1 - t];
        float now = fmaxf(most, score), old = expf(most - now), weight = expf(score - now);
        load_head(x, key + c, d, lane);
        total = total * old + weight;
#pragma unroll
        for (int i = 0; i < MOST; i++) sums[i] = sums[i] * old + weight * x[i];
        most = now;
    }
    bool any = range[0] < range[1];
    store_head(out + (b * tq + t) * c + h * d, sums, d, lane, any ? 1.0f / total : 0.0f);
    if (lane == 0) lse[(b * heads + h) * tq + t] = any ? most + logf(total) : 0.0f;
}

// Gradient of a query; and Σ p·dp, which is d_out·out, for the other two.
extern "C" __global__ void __launch_bounds__(32)
    backward_queries(E* __restrict__ dq, float* __restrict__ means, const E* __restrict__ d_out,
                     const E* __restrict__ q, const E* __restrict__ kv,
                     const float* __restrict__ bias, const E* __restrict__ out,
                     const float* __restrict__ lse, const int* __restrict__ seen, u64 tq, u64 tk,
                     u64 heads, u64 d, float scale) {
    u64 t = blockIdx.x, h = blockIdx.y, b = blockIdx.z, c = heads * d;
    int lane = threadIdx.x;
    const int* range = seen + 2 * (b * tq + t);
    u64 at = (b * tq + t) * c + h * d, place = (b * heads + h) * tq + t;
    float query[MOST], gradient[MOST], x[MOST], sums[MOST] = {};
    load_head(query, q + at, d, lane);
    load_head(gradient, d_out + at, d, lane);
    load_head(x, out + at, d, lane);
    float mean = dot(gradient, x);
    if (lane == 0) means[place] = mean;
    for (u64 s = range[0]; s < (u64)range[1]; s++) {
        const E* key = kv + (b * tk + s) * 2 * c + h * d;
        load_head(x, key + c, d, lane);
        float dp = dot(gradient, x);
        load_head(x, key, d, lane);
        float score = scale * dot(query, x);
        if (bias) score += bias[h * (tq + tk - 1) + s + tq - 1 - t];
        float ds = expf(score - lse[place]) * (dp - mean);
#pragma unroll
        for (int i = 0; i < MOST; i++) sums[i] += ds * x[i];
    }
    store_head(dq + at, sums, d, lane, scale);
}

// Gradient of a key and its value; grid: keys of a row, heads, rows.
extern "C" __global__ void __launch_bounds__(32)
    backward_keys(E* __restrict__ d_kv, const float* __restrict__ means,
                  const E* __restrict__ d_out, const E* __restrict__ q, const E* __restrict__ kv,
                  const float* __restrict__ bias, const float* __restrict__ lse,
                  const int* __restrict__ seen_by, u64 tq, u64 tk, u64 heads, u64 d, float scale) {
    u64 s = blockIdx.x, h = blockIdx.y, b = blockIdx.z, c = heads * d;
    int lane = threadIdx.x;
    const int* range = seen_by + 2 * (b * tk + s);
    u64 at = (b * tk + s) * 2 * c + h * d;
    float key[MOST], value[MOST], query[MOST], gradient[MOST], dk[MOST] = {}, dv[MOST] = {};
    load_head(key, kv + at, d, lane);
    load_head(value, kv + at + c, d, lane);
    for (u64 t = range[0]; t < (u64)range[1]; t++) {
        u64 from = (b * tq + t) * c + h * d, place = (b * heads + h) * tq + t;
        load_head(query, q + from, d, lane);
        load_head(gradient, d_out + from, d, lane);
        float score = scale * dot(query, key);
        if (bias) score += bias[h * (tq + tk - 1) + s + tq - 1 - t];
        float weight = expf(score - lse[place]);
        float ds = weight * (dot(gradient, value) - means[place]);
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            dk[i] += ds * query[i];
            dv[i] += weight * gradient[i];
        }
    }
    store_head(d_kv + at, dk, d, lane, scale);
    store_head(d_kv + at + c, dv, d, lane, 1.0f);
}

// Gradient of the number of a distance and head, over rows and queries in order; grid: distances, heads.
extern "C" __global__ void __launch_bounds__(32)
    backward_bias(float* __restrict__ d_bias, const float* __restrict__ means,
                  const E* __restrict__ d_out, const E* __restrict__ q, const E* __restrict__ kv,
                  const float* __restrict__ bias, const float* __restrict__ lse,
                  const int* __restrict__ seen, u64 tq, u64 tk, u64 heads, u64 d, float scale,
                  u64 rows, u64 accumulate) {
    u64 distance = blockIdx.x, h = blockIdx.y, c = heads * d;
    int lane = threadIdx.x;
    u64 at = h * (tq + tk - 1) + distance;
    float query[MOST], gradient[MOST], x[MOST], sum = 0.0f;
    // Key s = distance - (Tq - 1) + t is from 0 to Tk - 1.
    u64 first = distance < tq - 1 ? tq - 1 - distance : 0;
    u64 end = tk + tq - 1 - distance;
    for (u64 b = 0; b < rows; b++) {
        for (u64 t = first; t < tq && t < end; t++) {
            u64 s = distance + t - (tq - 1);
            const int* range = seen + 2 * (b * tq + t);
            if (s < (u64)range[0] || s >= (u64)range[1]) continue;
            u64 from = (b * tq + t) * c + h * d, place = (b * heads + h) * tq + t;
            const E* key = kv + (b * tk + s) * 2 * c + h * d;
            load_head(query, q + from, d, lane);
            load_head(gradient, d_out + from, d, lane);
            load_head(x, key, d, lane);
            float score = scale * dot(query, x) + bias[at];
            load_head(x, key + c, d, lane);
            sum += expf(score - lse[place]) * (dot(gradient, x) - means[place]);
        }
    }
    if (lane == 0) d_bias[at] = accumulate ? d_bias[at] + sum : sum;
}

// A bucket's number for its distances, from `first` to before `end`; grid: heads.
extern "C" __global__ void __launch_bounds__(128)
    spread(float* __restrict__ bias, const E* __restrict__ w, u64 heads, u64 distances, u64 bucket,
           u64 first, u64 end) {
    u64 h = blockIdx.x;
    float x = widen(w[bucket * heads + h]);
    for (u64 i = first + threadIdx.x; i < end; i += blockDim.x) bias[h * distances + i] = x;
}

// The sum of a bucket's distances in order; a thread has a head.
extern "C" __global__ void __launch_bounds__(128)
    gather(float* __restrict__ dw, const float* __restrict__ d_bias, u64 heads, u64 distances,
           u64 bucket, u64 first, u64 end, u64 accumulate) {
    u64 h = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (h >= heads) return;
    float sum = 0.0f;
    for (u64 i = first; i < end; i++) sum += d_bias[h * distances + i];
    float* to = dw + bucket * heads + h;
    *to = accumulate ? *to + sum : sum;
}
