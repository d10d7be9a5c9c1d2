// The head's kernels for training with smoothed labels; logits may be multiplied and capped (1 and 0: they are not).
#include "head.cuh"

// `wide`: rows are whole 16-byte units at such addresses. `kept` is how many units of a row the
// dynamic shared memory holds.
extern "C" __global__ void __launch_bounds__(1024)
    gradient_wide(E* logits, double* losses, const int* labels, u64 vocab, u64 stride, float scale,
                  u32 kept, float factor, float cap, float e) {
    row_loss<true, true, Bent, true>(logits, losses, labels, vocab, stride, scale, kept,
                                     Bent{factor, cap}, e);
}
extern "C" __global__ void __launch_bounds__(1024)
    gradient_narrow(E* logits, double* losses, const int* labels, u64 vocab, u64 stride, float scale,
                    u32 kept, float factor, float cap, float e) {
    row_loss<false, true, Bent, true>(logits, losses, labels, vocab, stride, scale, kept,
                                      Bent{factor, cap}, e);
}
