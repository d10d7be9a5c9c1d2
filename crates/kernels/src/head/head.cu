// The head's kernels, of logits as they are; and what needs no logits.
#include "head.cuh"

// `wide`: rows are whole 16-byte units at such addresses. `kept` is how many units of a row the
// dynamic shared memory holds.
extern "C" __global__ void __launch_bounds__(1024)
    gradient_wide(E* logits, double* losses, const int* labels, u64 vocab, u64 stride, float scale,
                  u32 kept) {
    row_loss<true, true>(logits, losses, labels, vocab, stride, scale, kept, Plain{});
}
extern "C" __global__ void __launch_bounds__(1024)
    gradient_narrow(E* logits, double* losses, const int* labels, u64 vocab, u64 stride, float scale,
                    u32 kept) {
    row_loss<false, true>(logits, losses, labels, vocab, stride, scale, kept, Plain{});
}
extern "C" __global__ void __launch_bounds__(1024)
    loss_wide(E* logits, double* losses, const int* labels, u64 vocab, u64 stride) {
    row_loss<true, false>(logits, losses, labels, vocab, stride, 0.0f, 0, Plain{});
}
extern "C" __global__ void __launch_bounds__(1024)
    loss_narrow(E* logits, double* losses, const int* labels, u64 vocab, u64 stride) {
    row_loss<false, false>(logits, losses, labels, vocab, stride, 0.0f, 0, Plain{});
}

// Sum of losses and number of rows that have one, in the order of rows: overwritten by the first
// chunk, added to by later ones. One block; one thread adds, which for the rows of a chunk is
// microseconds beside the milliseconds of its products.
//
// With RIGHT the second word is of two halves: that number, and of these rows those whose first logit, `stride` numbers
// apart, is 1.
template <bool RIGHT>
__device__ __forceinline__ void add_up(double* loss, const double* losses, const int* labels, u64 n,
                                       int first, const E* logits, u64 stride) {
    __shared__ double some[256];
    __shared__ u64 counts[256];
    double sum = 0.0;
    u64 count = 0;
    if (threadIdx.x == 0 && !first) {
        sum = loss[0];
        count = RIGHT ? (u64)__double_as_longlong(loss[1]) : (u64)loss[1];
    }
    for (u64 base = 0; base < n; base += 256) {
        u64 i = base + threadIdx.x;
        int counted = i < n && labels[i] >= 0;
        u64 right = RIGHT && counted && widen(logits[i * stride]) == 1.0f;
        counts[threadIdx.x] = (u64)counted | right << 32;
        some[threadIdx.x] = counted ? losses[i] : 0.0;
        __syncthreads();
        if (threadIdx.x == 0) {
#pragma unroll 8
            for (int k = 0; k < 256; k++) {
                // Adding 0 for a row without a loss changes no bit: a loss is never -0.
                sum += some[k];
                count += counts[k];
            }
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        loss[0] = sum;
        loss[1] = RIGHT ? __longlong_as_double((long long)count) : (double)count;
    }
}
extern "C" __global__ void __launch_bounds__(256)
    totals(double* loss, const double* losses, const int* labels, u64 n, int first) {
    add_up<false>(loss, losses, labels, n, first, nullptr, 0);
}
extern "C" __global__ void __launch_bounds__(256)
    totals_right(double* loss, const double* losses, const int* labels, u64 n, int first,
                 const E* logits, u64 stride) {
    add_up<true>(loss, losses, labels, n, first, logits, stride);
}

// Rows of h: for sequence i of the grid, its first row whose label is not negative, or zeros.
extern "C" __global__ void __launch_bounds__(256)
    gather(E* to, const E* h, const int* labels, u64 seq, u64 hidden) {
    __shared__ u32 found;
    if (threadIdx.x == 0) found = ~0u;
    __syncthreads();
    const int* own = labels + (u64)blockIdx.x * seq;
    for (u64 t = threadIdx.x; t < seq; t += 256)
        if (own[t] >= 0) {
            atomicMin(&found, (u32)t); // the least, whatever the order
            break;
        }
    __syncthreads();
    u32 t = found;
    const E* from = h + ((u64)blockIdx.x * seq + (t == ~0u ? 0 : t)) * hidden;
    E* row = to + (u64)blockIdx.x * hidden;
    for (u64 i = threadIdx.x; i < hidden; i += 256)
        row[i] = t == ~0u ? narrow<E>(0.0f) : from[i];
}

// to = from as f32, a number a thread: the few logits of classes.
extern "C" __global__ void __launch_bounds__(256) widen_all(float* to, const E* from, u64 n) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) to[i] = widen(from[i]);
}
