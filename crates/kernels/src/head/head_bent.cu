// The head's kernels, of logits that are multiplied and capped.
#include "head.cuh"

// `wide`: rows are whole 16-byte units at such addresses. `kept` is how many units of a row the
// dynamic shared memory holds.
extern "C" __global__ void __launch_bounds__(1024)
    gradient_wide(E* logits, double* losses, const int* labels, u64 vocab, u64 stride, float scale,
                  u32 kept, float factor, float cap) {
    row_loss<true, true>(logits, losses, labels, vocab, stride, scale, kept, Bent{factor, cap});
}
extern "C" __global__ void __launch_bounds__(1024)
    gradient_narrow(E* logits, double* losses, const int* labels, u64 vocab, u64 stride, float scale,
                    u32 kept, float factor, float cap) {
    row_loss<false, true>(logits, losses, labels, vocab, stride, scale, kept, Bent{factor, cap});
}
extern "C" __global__ void __launch_bounds__(1024)
    loss_wide(E* logits, double* losses, const int* labels, u64 vocab, u64 stride,
              float factor, float cap) {
    row_loss<true, false>(logits, losses, labels, vocab, stride, 0.0f, 0, Bent{factor, cap});
}
extern "C" __global__ void __launch_bounds__(1024)
    loss_narrow(E* logits, double* losses, const int* labels, u64 vocab, u64 stride,
              float factor, float cap) {
    row_loss<false, false>(logits, losses, labels, vocab, stride, 0.0f, 0, Bent{factor, cap});
}

// Logits that are read by people: multiplied and capped where they lie. Any grid of blocks of 256 threads.
extern "C" __global__ void __launch_bounds__(256) bend(float* logits, u64 n, float factor, float cap) {
    const Bent bend = {factor, cap};
    for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < n; i += (u64)gridDim.x * 256)
        logits[i] = bend.value(logits[i]);
}
