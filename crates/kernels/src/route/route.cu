// The router of a mixture of experts. A chunk of tokens is a block's; what depends on other chunks is told by counts.
#include "common.cuh"

constexpr int WARPS = 8;
constexpr int CHUNK = 128;    // tokens of a block: as in cuda.rs
constexpr int CHOSEN_MAX = 32;

// Greater keys are greater logits, and of equal ones the lower index; what is no number is the least. Never 0.
__device__ __forceinline__ u64 key(float x, u32 index) {
    u32 bits = __float_as_uint(x + 0.0f);  // one zero
    u32 high = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    if (x != x) high = 0;
    return (u64)high << 32 | (0xffffffffu - index);
}
__device__ __forceinline__ u32 index_of(u64 key) { return 0xffffffffu - (u32)key; }

__device__ __forceinline__ u64 warp_greatest(u64 x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
        u64 y = __shfl_xor_sync(0xffffffffu, x, d);
        x = y > x ? y : x;
    }
    return x;
}

// The largest logit of a row, and the sum of exponentials below it. A NaN is in the sum if not in the largest.
__device__ __forceinline__ void softmax(const E* logits, int experts, float& most, float& sum) {
    int lane = threadIdx.x & 31;
    most = __uint_as_float(0xff800000u);
    for (int e = lane; e < experts; e += 32) most = fmaxf(most, widen(logits[e]));
    most = warp_max(most);
    sum = 0.0f;
    for (int e = lane; e < experts; e += 32) sum += expf(widen(logits[e]) - most);
    sum = warp_sum(sum);
}

// The weight of this lane's choice: `p` is its share of the softmax, 0 from lane `chosen` on.
__device__ __forceinline__ float weigh(float p, int chosen, int renormalise) {
    if (!renormalise) return p;
    float sum = 0.0f;
    for (int j = 0; j < chosen; j++) sum += __shfl_sync(0xffffffffu, p, j);
    return p / sum;
}

// Choices and their weights, token by token, and of each chunk how many rows each expert gets.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    choose(int* choices, float* by_choice, int* counts, const E* logits, u64 rows, u64 experts,
           u64 chosen, int renormalise) {
    __shared__ int mine[CHUNK * CHOSEN_MAX];
    const int lane = threadIdx.x & 31, n = (int)experts, k = (int)chosen;
    const u64 first = (u64)blockIdx.x * CHUNK;
    const int tokens = (int)(rows - first < CHUNK ? rows - first : CHUNK);
    for (int t = threadIdx.x >> 5; t < tokens; t += WARPS) {
        const E* row = logits + (first + t) * experts;
        float most, sum, p = 0.0f;
        softmax(row, n, most, sum);
        u64 last = ~0ull;
        for (int j = 0; j < k; j++) {
            u64 best = 0;
            for (int e = lane; e < n; e += 32) {
                u64 of = key(widen(row[e]), e);
                if (of < last && of > best) best = of;
            }
            last = warp_greatest(best);
            if (lane == j) {
                u32 e = index_of(last);
                mine[t * k + j] = e;
                p = expf(widen(row[e]) - most) / sum;
            }
        }
        float w = weigh(p, k, renormalise);
        if (lane < k) {
            u64 at = (first + t) * chosen + lane;
            choices[at] = mine[t * k + lane];
            by_choice[at] = w;
        }
    }
    __syncthreads();
    for (int e = threadIdx.x; e < n; e += 32 * WARPS) {
        int count = 0;
        for (int i = 0; i < tokens * k; i++) count += mine[i] == e;
        counts[blockIdx.x * experts + e] = count;
    }
}

// Counts become the first sorted row of each chunk and expert; `offsets` those of each expert.
extern "C" __global__ void __launch_bounds__(1024)
    offsets(int* offsets, int* counts, u64 chunks, u64 experts) {
    __shared__ int ends[1024];
    const int e = threadIdx.x;
    int total = 0;
    if (e < experts)
        for (u64 c = 0; c < chunks; c++) total += counts[c * experts + e];
    ends[e] = total;
    __syncthreads();
    for (int d = 1; d < 1024; d <<= 1) {
        int before = e >= d ? ends[e - d] : 0;
        __syncthreads();
        ends[e] += before;
        __syncthreads();
    }
    if (e >= experts) return;
    int at = ends[e] - total;
    offsets[e] = at;
    if (e + 1 == experts) offsets[experts] = ends[e];
    for (u64 c = 0; c < chunks; c++) {
        int count = counts[c * experts + e];
        counts[c * experts + e] = at;
        at += count;
    }
}

// Each row to its place: of one expert the rows of a chunk in the order of its tokens.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    place(int* tokens, int* places, float* weights, const int* choices, const float* by_choice,
          const int* starts, u64 rows, u64 experts, u64 chosen) {
    __shared__ int mine[CHUNK * CHOSEN_MAX], to[CHUNK * CHOSEN_MAX];
    const int n = (int)experts, k = (int)chosen;
    const u64 first = (u64)blockIdx.x * CHUNK;
    const int all = (int)(rows - first < CHUNK ? rows - first : CHUNK) * k;
    for (int i = threadIdx.x; i < all; i += 32 * WARPS) mine[i] = choices[first * chosen + i];
    __syncthreads();
    for (int e = threadIdx.x; e < n; e += 32 * WARPS) {
        int at = starts[blockIdx.x * experts + e];
        for (int i = 0; i < all; i++)
            if (mine[i] == e) to[i] = at++;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < all; i += 32 * WARPS) {
        places[first * chosen + i] = to[i];
        tokens[to[i]] = (int)first + i / k;
        weights[to[i]] = by_choice[first * chosen + i];
    }
}

// A warp a token.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    backward(E* d_logits, const float* d_weights, const E* logits, const int* choices,
             const int* places, u64 rows, u64 experts, u64 chosen, int renormalise) {
    const int lane = threadIdx.x & 31, n = (int)experts, k = (int)chosen;
    const u64 row = (u64)blockIdx.x * WARPS + (threadIdx.x >> 5);
    if (row >= rows) return;
    const E* x = logits + row * experts;
    E* dx = d_logits + row * experts;
    float most, sum, p = 0.0f, dw = 0.0f;
    softmax(x, n, most, sum);
    int e = 0;
    if (lane < k) {
        e = choices[row * chosen + lane];
        dw = d_weights[places[row * chosen + lane]];
        p = expf(widen(x[e]) - most) / sum;
    }
    float w = weigh(p, k, renormalise);
    float mean = warp_sum(w * dw);
    // Without renormalising, what is not chosen has a share of the softmax too.
    for (int i = lane; i < n; i += 32)
        dx[i] = narrow<E>(renormalise ? 0.0f : -(expf(widen(x[i]) - most) / sum) * mean);
    __syncwarp();
    if (lane < k) dx[e] = narrow<E>(w * (dw - mean));
}
