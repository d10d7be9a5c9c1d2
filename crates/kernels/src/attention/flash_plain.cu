// Attention without tensor cores: every head width, either storage type, f32 arithmetic. Correct and
// slow; and, for both ways, Σ d_out·out of each query.
//
// A warp owns one query (or one key, for its gradient) and goes through its keys (queries) 32 at a
// time in order: a lane for each while scores are computed, a lane for each column while rows are
// added.
#include "common.cuh"

struct Shape {
    u64 batch, seq, heads, kv_heads, width;
    __device__ u64 stride() const { return (heads + 2 * kv_heads) * width; }
    __device__ u64 group() const { return heads / kv_heads; }
    // Where heads start, in numbers.
    __device__ u64 query(u64 b, u64 t, u64 h) const { return (b * seq + t) * stride() + h * width; }
    __device__ u64 key(u64 b, u64 t, u64 h) const { return query(b, t, heads + h); }
    __device__ u64 value(u64 b, u64 t, u64 h) const { return query(b, t, heads + kv_heads + h); }
    __device__ u64 output(u64 b, u64 t, u64 h) const { return ((b * seq + t) * heads + h) * width; }
    __device__ u64 line(u64 b, u64 h) const { return (b * heads + h) * seq; }
};

__device__ __forceinline__ float dot(const E* a, const E* b, u64 n) {
    float x = 0.0f;
    for (u64 i = 0; i < n; i++) x = fmaf(widen(a[i]), widen(b[i]), x);
    return x;
}

// The first key that token t of row b sees: its document's first, or that of its window of tokens. A window of
// 0 is none, and then it sees what is behind it as well.
__device__ __forceinline__ u64 first_key(const int* doc_start, u64 b, u64 seq, u64 t, u64 window) {
    int start = doc_start[b * seq + t];
    u64 first = start > 0 ? (u64)start : 0;
    u64 of_window = window > 0 && t + 1 > window ? t + 1 - window : 0;
    return first > of_window ? first : of_window;
}

// Behind the last key that it sees: behind itself, or the first token whose document starts after it.
__device__ __forceinline__ u64 end_of_keys(const int* doc_start, u64 b, u64 seq, u64 t, u64 window) {
    u64 from = t + 1, end = window > 0 ? from : seq; // the answer is in from ..= end
    while (from < end) {
        u64 middle = (from + end) / 2;
        if (doc_start[b * seq + middle] > (int)t) end = middle;
        else from = middle + 1;
    }
    return from;
}

// A score, capped unless `cap` is 0.
__device__ __forceinline__ float bent(float score, float cap) {
    return cap > 0.0f ? cap * tanhf(score / cap) : score;
}
// How fast it changes with what it was made of.
__device__ __forceinline__ float slope(float bent, float cap) {
    float t = cap > 0.0f ? bent / cap : 0.0f;
    return 1.0f - t * t;
}

// All kernels below but the last: one warp a block; grid: tokens of a row, heads, rows of tokens.

// Shared memory: width + 32 floats.
extern "C" __global__ void __launch_bounds__(32)
    plain_forward(E* out, float* lse, const E* qkv, const int* doc_start, u64 seq, u64 heads,
                  u64 kv_heads, u64 width, float scale, u64 window, float cap) {
    extern __shared__ uint4 pool[];
    float* sum = reinterpret_cast<float*>(pool);
    float* weights = sum + width;
    Shape s = {gridDim.z, seq, heads, kv_heads, width};
    u64 t = blockIdx.x, h = blockIdx.y, b = blockIdx.z, kv = h / s.group();
    u32 lane = threadIdx.x;
    const E* query = qkv + s.query(b, t, h);
    for (u64 i = lane; i < width; i += 32) sum[i] = 0.0f;
    float top = __uint_as_float(0xff800000u), total = 0.0f;
    u64 end = end_of_keys(doc_start, b, seq, t, window);
    for (u64 from = first_key(doc_start, b, seq, t, window); from < end; from += 32) {
        u64 n = end - from < 32 ? end - from : 32;
        float score = __uint_as_float(0xff800000u);
        if (lane < n) score = bent(scale * dot(query, qkv + s.key(b, from + lane, kv), width), cap);
        float most = fmaxf(top, warp_max(score));
        float factor = expf(top - most), p = expf(score - most);
        top = most;
        total = total * factor + warp_sum(p);
        weights[lane] = p;
        __syncwarp();
        for (u64 i = lane; i < width; i += 32) {
            float x = sum[i] * factor;
            for (u64 j = 0; j < n; j++)
                x = fmaf(weights[j], widen(qkv[s.value(b, from + j, kv) + i]), x);
            sum[i] = x;
        }
        __syncwarp();
    }
    float factor = 1.0f / total;
    E* to = out + s.output(b, t, h);
    for (u64 i = lane; i < width; i += 32) to[i] = narrow<E>(sum[i] * factor);
    if (lane == 0) lse[s.line(b, h) + t] = top + logf(total);
}

// Gradient of a query. Shared memory: width + 32 floats.
extern "C" __global__ void __launch_bounds__(32)
    plain_backward_q(E* d_qkv, const E* d_out, const E* qkv, const float* lse, const float* delta,
                     const int* doc_start, u64 seq, u64 heads, u64 kv_heads, u64 width,
                     float scale, u64 window, float cap) {
    extern __shared__ uint4 pool[];
    float* sum = reinterpret_cast<float*>(pool);
    float* weights = sum + width;
    Shape s = {gridDim.z, seq, heads, kv_heads, width};
    u64 t = blockIdx.x, h = blockIdx.y, b = blockIdx.z, kv = h / s.group();
    u32 lane = threadIdx.x;
    const E *query = qkv + s.query(b, t, h), *d = d_out + s.output(b, t, h);
    float log_sum = lse[s.line(b, h) + t], mean = delta[s.line(b, h) + t];
    for (u64 i = lane; i < width; i += 32) sum[i] = 0.0f;
    u64 end = end_of_keys(doc_start, b, seq, t, window);
    for (u64 from = first_key(doc_start, b, seq, t, window); from < end; from += 32) {
        u64 n = end - from < 32 ? end - from : 32;
        float ds = 0.0f;
        if (lane < n) {
            float score = bent(scale * dot(query, qkv + s.key(b, from + lane, kv), width), cap);
            float p = expf(score - log_sum);
            ds = p * (dot(d, qkv + s.value(b, from + lane, kv), width) - mean) * slope(score, cap);
        }
        weights[lane] = ds;
        __syncwarp();
        for (u64 i = lane; i < width; i += 32) {
            float x = sum[i];
            for (u64 j = 0; j < n; j++)
                x = fmaf(weights[j], widen(qkv[s.key(b, from + j, kv) + i]), x);
            sum[i] = x;
        }
        __syncwarp();
    }
    E* to = d_qkv + s.query(b, t, h);
    for (u64 i = lane; i < width; i += 32) to[i] = narrow<E>(sum[i] * scale);
}

// Gradients of a key and a value: the sum over their query heads in order, and over the queries of
// each. Shared memory: 2·width + 64 floats. The grid's heads are key heads.
extern "C" __global__ void __launch_bounds__(32)
    plain_backward_kv(E* d_qkv, const E* d_out, const E* qkv, const float* lse, const float* delta,
                      const int* doc_start, u64 seq, u64 heads, u64 kv_heads, u64 width,
                      float scale, u64 window, float cap) {
    extern __shared__ uint4 pool[];
    float *dk = reinterpret_cast<float*>(pool), *dv = dk + width;
    float *scores = dv + width, *weights = scores + 32;
    Shape s = {gridDim.z, seq, heads, kv_heads, width};
    u64 k = blockIdx.x, kv = blockIdx.y, b = blockIdx.z;
    u32 lane = threadIdx.x;
    const E *key = qkv + s.key(b, k, kv), *value = qkv + s.value(b, k, kv);
    for (u64 i = lane; i < width; i += 32) dk[i] = dv[i] = 0.0f;
    for (u64 h = kv * s.group(); h < (kv + 1) * s.group(); h++) {
        // First keys never decrease: behind a query that does not see the key none does.
        // The first query that sees it is itself, or its document's first token.
        u64 first = window > 0 ? k : first_key(doc_start, b, seq, k, window);
        for (u64 from = first; from < seq && first_key(doc_start, b, seq, from, window) <= k;
             from += 32) {
            u64 n = seq - from < 32 ? seq - from : 32;
            float p = 0.0f, ds = 0.0f;
            if (lane < n && first_key(doc_start, b, seq, from + lane, window) <= k) {
                u64 t = from + lane;
                float score = bent(scale * dot(qkv + s.query(b, t, h), key, width), cap);
                p = expf(score - lse[s.line(b, h) + t]);
                ds = p * (dot(d_out + s.output(b, t, h), value, width) - delta[s.line(b, h) + t]) *
                     slope(score, cap);
            }
            weights[lane] = p;
            scores[lane] = ds;
            __syncwarp();
            for (u64 i = lane; i < width; i += 32) {
                float x = dk[i], y = dv[i];
                for (u64 j = 0; j < n; j++) {
                    x = fmaf(scores[j], widen(qkv[s.query(b, from + j, h) + i]), x);
                    y = fmaf(weights[j], widen(d_out[s.output(b, from + j, h) + i]), y);
                }
                dk[i] = x;
                dv[i] = y;
            }
            __syncwarp();
        }
    }
    E *to_k = d_qkv + s.key(b, k, kv), *to_v = d_qkv + s.value(b, k, kv);
    for (u64 i = lane; i < width; i += 32) {
        to_k[i] = narrow<E>(dk[i] * scale);
        to_v[i] = narrow<E>(dv[i]);
    }
}

// delta (B, H, T) = Σ d_out·out over the columns: what the softmax's gradient subtracts. Sixteen
// lanes a query and head; `wide`: 16-byte loads, where width is a multiple of 8 and both tensors
// start at a multiple of 16. Bound: bytes of d_out and out over bandwidth.
// Any grid of blocks of 128 threads that covers 16·B·T·H.
extern "C" __global__ void __launch_bounds__(128)
    flash_delta(float* delta, const E* d_out, const E* out, u64 batch, u64 seq, u64 heads,
                u64 width, int wide) {
    u64 thread = (u64)blockIdx.x * 128 + threadIdx.x;
    u64 line = thread / 16, rows = batch * seq;
    u32 lane = threadIdx.x % 16;
    bool there = line < rows * heads;
    float x = 0.0f;
    if (there) {
        const E *a = d_out + line * width, *b = out + line * width;
        if (wide) {
            for (u64 i = lane * 8; i < width; i += 128) {
                Eight u = load8(a + i), v = load8(b + i);
#pragma unroll
                for (int j = 0; j < 8; j++) x = fmaf(u.x[j], v.x[j], x);
            }
        } else {
            for (u64 i = lane; i < width; i += 16) x = fmaf(widen(a[i]), widen(b[i]), x);
        }
    }
#pragma unroll
    for (int d = 8; d > 0; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    if (there && lane == 0) {
        u64 row = line / heads, head = line % heads;
        delta[(row / seq * heads + head) * seq + row % seq] = x;
    }
}
