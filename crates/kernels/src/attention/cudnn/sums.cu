// Adds what one tile of attention's backward gives to what the tiles before it gave; and copies heads of long rows.
//
// `sum` and `part` are (tokens, width) without gaps, tokens of `out` are `stride` numbers apart; width
// and stride are multiples of eight, every start is one of 16 bytes. The first part sets the sum, the
// last one is added and rounded into `out`, and leaves the sum as it is. A thread has eight numbers.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256)
    add_part(float* __restrict__ sum, const E* __restrict__ part, E* __restrict__ out, u64 tokens,
             u64 width, u64 stride, bool first, bool last) {
    u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= tokens * width) return;
    Eight x = load8(part + i);
    if (!first) {
        Eight before = load8(sum + i);
#pragma unroll
        for (int k = 0; k < 8; k++) x.x[k] += before.x[k];
    }
    if (last) {
        store8(out + i / width * stride + i % width, x);
    } else {
        store8(sum + i, x);
    }
}

// Copies `tokens` rows of `width` numbers from one place to another, where rows are so many numbers apart. Widths and
// strides are multiples of eight, every start is one of 16 bytes. A thread has eight numbers.
extern "C" __global__ void __launch_bounds__(256)
    copy_columns(E* __restrict__ to, const E* __restrict__ from, u64 tokens, u64 width, u64 to_stride,
                 u64 from_stride) {
    u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= tokens * width) return;
    u64 token = i / width, at = i - token * width;
    store_raw(to + token * to_stride + at, load_raw(from + token * from_stride + at));
}
