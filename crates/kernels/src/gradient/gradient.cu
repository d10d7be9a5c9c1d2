// The end of a gradient: rounded from its accumulator, padding made zero, sums of squares.
//
// Memory-bound: four bytes read and two (bf16) or four (f32) written a number; nothing is written
// where the gradient is the accumulator. E is the gradient's type.
#include "common.cuh"

const int THREADS = 512;
const int RUN = 1 << 16; // NORM_CHUNK
const int SEGMENTS = 16;
// Groups of four that a thread has in flight.
const int FLIGHT = 4;

// First number of a segment, its length, and where the padding behind it ends. A length of 0 ends
// the list.
#define SEGMENT(i) u64 place##i, u64 length##i, u64 next##i
#define PUT(i) place[i] = place##i, length[i] = length##i, next[i] = next##i
#define ALL(f)                                                                                     \
    f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), \
        f(15)

// Spelled out, because the compiler takes a conditional store of four numbers apart.
__device__ __forceinline__ void put4(u16* p, const float* x) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)),
                 "r"(to_bf16x2(x[0], x[1])), "r"(to_bf16x2(x[2], x[3]))
                 : "memory");
}
__device__ __forceinline__ void put4(float* p, const float* x) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)),
                 "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
                 : "memory");
}

__device__ __forceinline__ void clear(E* grad, u64 start, u64 end) {
    for (u64 i = start + threadIdx.x; i < end; i += THREADS) grad[i] = narrow<E>(0.0f);
}

// Squares of f32 are exact in f64, so the fused operation is the plain one.
__device__ __forceinline__ double square(float x, double sum) {
    double r = (double)widen(narrow<E>(x));
    return __fma_rn(r, r, sum);
}

// One block a run. Order of a run's sum: thread t has the groups of four t, t + 512, ...; it sums
// the first, second, third and fourth numbers of its groups apart, in order, and adds them
// pairwise; then the block's tree. It depends on the position in the run alone, so neither on where
// the piece lies nor on the width of accesses. A number that is not there counts as 0, which
// changes no bit of a sum of squares.
//
// `grad` may be `acc`; then it is not written inside segments. `clear_from` is where the padding
// before the first segment starts.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    finish(E* grad, double* parts, const float* acc, u64 clear_from, ALL(SEGMENT)) {
    __shared__ u64 place[SEGMENTS], length[SEGMENTS], next[SEGMENTS];
    __shared__ double scratch[33];
    if (threadIdx.x == 0) {
        ALL(PUT);
    }
    __syncthreads();
    int segment = 0;
    u64 run = blockIdx.x; // in its segment
    for (;;) {
        u64 runs = (length[segment] + RUN - 1) / RUN;
        if (run < runs) break;
        run -= runs;
        segment++;
    }
    u64 first = place[segment] + run * RUN, end = place[segment] + length[segment];
    int n = end - first < RUN ? (int)(end - first) : RUN;
    if (blockIdx.x == 0) clear(grad, clear_from, place[0]);
    if (first + n == end) clear(grad, end, next[segment]);

    const float* from = acc + first;
    E* to = grad + first;
    bool same = (const void*)grad == (const void*)acc;
    bool wide = (u64)from % 16 == 0 && (u64)to % (4 * sizeof(E)) == 0;
    double sums[4] = {0.0, 0.0, 0.0, 0.0};
    int whole = wide ? n / 4 : 0; // groups that are accessed whole
    for (int base = threadIdx.x; base < whole; base += THREADS * FLIGHT) {
        float x[FLIGHT][4];
#pragma unroll
        for (int k = 0; k < FLIGHT; k++) {
            float4 a = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            int group = base + k * THREADS;
            if (group < whole) a = *reinterpret_cast<const float4*>(from + 4 * group);
            x[k][0] = a.x, x[k][1] = a.y, x[k][2] = a.z, x[k][3] = a.w;
        }
#pragma unroll
        for (int k = 0; k < FLIGHT; k++) {
            int group = base + k * THREADS;
            if (!same && group < whole) put4(to + 4 * group, x[k]);
#pragma unroll
            for (int j = 0; j < 4; j++) sums[j] = square(x[k][j], sums[j]);
        }
    }
    // The others, in the same order: a thread's next group is the first of its own from `whole` on.
    int lane = (int)((threadIdx.x + THREADS - whole % THREADS) % THREADS);
#pragma unroll 1
    for (int group = whole + lane; 4 * group < n; group += THREADS) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int i = 4 * group + j;
            if (i >= n) break;
            float x = from[i];
            if (!same) to[i] = narrow<E>(x);
            sums[j] = square(x, sums[j]);
        }
    }
    double sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// to += more, groups of four numbers. One addition a number, so its bits are those of the processor's.
extern "C" __global__ void __launch_bounds__(THREADS) add(float4* to, const float4* more, u64 groups) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= groups) return;
    float4 a = to[i], b = more[i];
    to[i] = make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z),
                        __fadd_rn(a.w, b.w));
}
