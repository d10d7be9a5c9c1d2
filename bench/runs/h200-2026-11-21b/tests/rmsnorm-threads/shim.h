#include <pthread.h>
#include <cstdint>
#include <cstring>
#include <cmath>
#include <cstdio>
#include <vector>
#include <thread>
#include <random>
#include <algorithm>
struct D3 { unsigned x, y, z; };
static thread_local D3 threadIdx, blockIdx; static D3 blockDim;
#define __device__
#define __global__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
struct alignas(16) uint4 { unsigned x,y,z,w; }; struct alignas(16) float4 { float x,y,z,w; };
inline uint4 make_uint4(unsigned a,unsigned b,unsigned c,unsigned d){return {a,b,c,d};}
inline float4 make_float4(float a,float b,float c,float d){return {a,b,c,d};}
inline float __uint_as_float(unsigned u){float f;memcpy(&f,&u,4);return f;}
inline unsigned __float_as_uint(float f){unsigned u;memcpy(&u,&f,4);return u;}
static pthread_barrier_t block_bar, named[16], warp_bar[32];
static unsigned xch[1024];
inline void __syncthreads(){pthread_barrier_wait(&block_bar);}
inline void __syncwarp(){pthread_barrier_wait(&warp_bar[threadIdx.x>>5]);}
inline void bar_sync(int id,int n){(void)n;pthread_barrier_wait(&named[id]);}
template<class T> T __shfl_xor_sync(unsigned,T v,int d){static_assert(sizeof(T)==4);memcpy(&xch[threadIdx.x],&v,4);__syncwarp();T r;memcpy(&r,&xch[threadIdx.x^d],4);__syncwarp();return r;}
static float4 dynamic_shared[16384];
inline unsigned short rn(float x){unsigned u=__float_as_uint(x);u+=0x7fff+((u>>16)&1);return u>>16;}
