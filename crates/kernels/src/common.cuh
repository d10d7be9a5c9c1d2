// What all kernels share: storage types, wide loads, sums of warps and blocks in a fixed order.
//
// Self-contained: NVRTC needs no header of CUDA's. A source is compiled once with BF16 defined and
// once with F32; E is the storage type of the model's tensors. Arithmetic is float throughout.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#ifdef BF16
typedef u16 E;
#else
typedef float E;
#endif

__device__ __forceinline__ float bits_to_float(u32 bits) { return __uint_as_float(bits); }

// bf16 -> float, exact.
__device__ __forceinline__ float widen(u16 x) { return __uint_as_float((u32)x << 16); }
__device__ __forceinline__ float widen(float x) { return x; }

// float -> bf16, to nearest even; every NaN becomes a NaN.
__device__ __forceinline__ u16 to_bf16(float x) {
    u16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
// Two floats -> two bf16 in one word, `low` in the low half.
__device__ __forceinline__ u32 to_bf16x2(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

template <typename T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ u16 narrow<u16>(float x) { return to_bf16(x); }
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }

// Eight numbers as floats: one 16-byte access for bf16, two for f32. The address is a multiple of
// 16 bytes.
struct Eight {
    float x[8];
};

// Eight bf16 of a wide load.
__device__ __forceinline__ Eight widen8(const uint4& v) {
    u32 w[4] = {v.x, v.y, v.z, v.w};
    Eight r;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        r.x[2 * i] = __uint_as_float(w[i] << 16);
        r.x[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
    }
    return r;
}

__device__ __forceinline__ Eight load8(const u16* p) {
    uint4 v = *reinterpret_cast<const uint4*>(p);  // one access: by reference it would become four
    return widen8(v);
}
__device__ __forceinline__ Eight load8(const float* p) {
    float4 a = *reinterpret_cast<const float4*>(p);
    float4 b = *reinterpret_cast<const float4*>(p + 4);
    return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}
__device__ __forceinline__ void store8(u16* p, const Eight& v) {
    uint4 w;
    w.x = to_bf16x2(v.x[0], v.x[1]);
    w.y = to_bf16x2(v.x[2], v.x[3]);
    w.z = to_bf16x2(v.x[4], v.x[5]);
    w.w = to_bf16x2(v.x[6], v.x[7]);
    *reinterpret_cast<uint4*>(p) = w;
}
__device__ __forceinline__ void store8(float* p, const Eight& v) {
    *reinterpret_cast<float4*>(p) = make_float4(v.x[0], v.x[1], v.x[2], v.x[3]);
    *reinterpret_cast<float4*>(p + 4) = make_float4(v.x[4], v.x[5], v.x[6], v.x[7]);
}

// Eight numbers as they lie in memory: half the registers of eight floats for bf16.
#ifdef BF16
typedef uint4 Raw;
__device__ __forceinline__ Raw load_raw(const E* p) { return *reinterpret_cast<const uint4*>(p); }
__device__ __forceinline__ void store_raw(E* p, const Raw& r) { *reinterpret_cast<uint4*>(p) = r; }
__device__ __forceinline__ Raw zero_raw() { return make_uint4(0, 0, 0, 0); }
#else
typedef Eight Raw;
__device__ __forceinline__ Raw load_raw(const E* p) { return load8(p); }
__device__ __forceinline__ void store_raw(E* p, const Raw& r) { store8(p, r); }
__device__ __forceinline__ Raw zero_raw() { return {{0, 0, 0, 0, 0, 0, 0, 0}}; }
__device__ __forceinline__ Eight widen8(const Raw& r) { return r; }
#endif

// The sum over a warp, the same in every lane, by a fixed tree.
template <typename T> __device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}

// The sum over a block of `blockDim.x` threads (a multiple of 32, at most 1024), the same in every
// thread, by a fixed tree. `scratch` has 33 numbers; barriers before and after, so it may be used
// again at once.
template <typename T> __device__ __forceinline__ T block_sum(T x, T* scratch) {
    x = warp_sum(x);
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    __syncthreads();
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    if (warp == 0) {
        T y = lane < (int)(blockDim.x >> 5) ? scratch[lane] : T(0);
        y = warp_sum(y);
        if (lane == 0) scratch[32] = y;
    }
    __syncthreads();
    return scratch[32];
}
