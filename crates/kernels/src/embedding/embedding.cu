// Rows of a table by index, and the gradient of the table.
//
// Memory-bound: forward reads and writes each row once; backward reads each row of dy once and
// writes the table once.
#include "common.cuh"

// ---- forward -----------------------------------------------------------------------------------

const int WARPS = 8;
// 16-byte accesses that a lane has in flight.
const int FLIGHT = 4;
// Numbers of 16 bytes.
const int VECTOR = 16 / sizeof(E);

__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }

// A warp a row. An index outside its table makes the row NaN and reads nothing.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    forward(E* y, const int* tokens, const E* w, const E* wpe, const int* positions, u64 rows,
            u64 c, u64 vocab, u64 places) {
    u64 row = (u64)blockIdx.x * WARPS + (threadIdx.x >> 5);
    if (row >= rows) return;
    int lane = threadIdx.x & 31;
    i64 token = tokens[row], position = wpe ? positions[row] : 0;
    bool good = token >= 0 && (u64)token < vocab;
    if (wpe) good = good && position >= 0 && (u64)position < places;
    E* to = y + row * c;
    if (!good) {
        for (u64 i = lane; i < c; i += 32) to[i] = narrow<E>(not_a_number());
        return;
    }
    const E* from = w + (u64)token * c;
    const E* add = wpe ? wpe + (u64)position * c : nullptr;
    u64 start = 0;
    if ((((u64)to | (u64)from | (u64)add) & 15) == 0) {
        u64 units = c / VECTOR;
        const uint4* a = reinterpret_cast<const uint4*>(from);
        uint4* out = reinterpret_cast<uint4*>(to);
        if (!add) {
            for (u64 i = lane; i < units; i += 32 * FLIGHT) {
                uint4 x[FLIGHT];
#pragma unroll
                for (int k = 0; k < FLIGHT; k++)
                    if (i + 32 * k < units) x[k] = a[i + 32 * k];
#pragma unroll
                for (int k = 0; k < FLIGHT; k++)
                    if (i + 32 * k < units) out[i + 32 * k] = x[k];
            }
        } else {
            const uint4* b = reinterpret_cast<const uint4*>(add);
            for (u64 i = lane; i < units; i += 32 * FLIGHT) {
                uint4 x[FLIGHT], z[FLIGHT];
#pragma unroll
                for (int k = 0; k < FLIGHT; k++)
                    if (i + 32 * k < units) x[k] = a[i + 32 * k], z[k] = b[i + 32 * k];
#pragma unroll
                for (int k = 0; k < FLIGHT; k++) {
                    if (i + 32 * k >= units) continue;
                    u32 p[4] = {x[k].x, x[k].y, x[k].z, x[k].w};
                    u32 q[4] = {z[k].x, z[k].y, z[k].z, z[k].w};
#pragma unroll
                    for (int j = 0; j < 4; j++) {
#ifdef BF16
                        float low = widen((u16)p[j]) + widen((u16)q[j]);
                        float high = widen((u16)(p[j] >> 16)) + widen((u16)(q[j] >> 16));
                        p[j] = to_bf16x2(low, high);
#else
                        p[j] = __float_as_uint(__uint_as_float(p[j]) + __uint_as_float(q[j]));
#endif
                    }
                    out[i + 32 * k] = make_uint4(p[0], p[1], p[2], p[3]);
                }
            }
        }
        start = units * VECTOR;
    }
    for (u64 i = start + lane; i < c; i += 32)
        to[i] = add ? narrow<E>(widen(from[i]) + widen(add[i])) : from[i];
}

// A step of SplitMix64, as in `moments.rs`.
__device__ __forceinline__ u64 scramble(u64 x) {
    u64 z = x + 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// Adds noise: `Noise` of the operation, number for number. A warp a row.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    noise(E* y, u64 rows, u64 c, u64 key, u64 first, float largest) {
    u64 row = (u64)blockIdx.x * WARPS + (threadIdx.x >> 5);
    if (row >= rows) return;
    u64 z = scramble(key + first + row);
    u32 a = (u32)z, b = (u32)(z >> 32);
    E* to = y + row * c;
    for (u64 i = threadIdx.x & 31; i < c; i += 32) {
        u32 x = (u32)i + a;
        x = (x ^ (x >> 16)) * 0x21f0aaadu;
        x = (x ^ (x >> 15) ^ b) * 0xd35a2d97u;
        x = x ^ (x >> 15);
        float drawn = __fmaf_rn((float)(x >> 8), 1.0f / 8388608.0f, -1.0f);
        to[i] = narrow<E>(__fmaf_rn(drawn, largest, widen(to[i])));
    }
}

// The label of a token of a second text: SECOND_TEXT of the operation.
const int SECOND_TEXT = -101;

// The same with three tables: types stand in the labels, all 0 without them. Position p has row first + p.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    forward_typed(E* y, const int* tokens, const E* w, const E* wpe, const int* positions, const E* wtt,
                  const int* labels, u64 rows, u64 c, u64 vocab, u64 places, u64 first) {
    u64 row = (u64)blockIdx.x * WARPS + (threadIdx.x >> 5);
    if (row >= rows) return;
    int lane = threadIdx.x & 31;
    i64 token = tokens[row], position = positions[row] + (i64)first;
    bool good = token >= 0 && (u64)token < vocab && position >= 0 && (u64)position < places;
    E* to = y + row * c;
    if (!good) {
        for (u64 i = lane; i < c; i += 32) to[i] = narrow<E>(not_a_number());
        return;
    }
    const E *from = w + (u64)token * c, *add = wpe + (u64)position * c;
    const E* type = wtt + (labels && labels[row] == SECOND_TEXT ? c : 0);
    u64 start = 0;
    if ((((u64)to | (u64)from | (u64)add | (u64)type) & 15) == 0 && c % 8 == 0) {
        for (u64 i = 8 * lane; i < c; i += 256) {
            Eight x = load8(from + i), b = load8(type + i), p = load8(add + i);
#pragma unroll
            for (int k = 0; k < 8; k++) x.x[k] = x.x[k] + b.x[k] + p.x[k];
            store8(to + i, x);
        }
        start = c;
    }
    for (u64 i = start + lane; i < c; i += 32)
        to[i] = narrow<E>(widen(from[i]) + widen(type[i]) + widen(add[i]));
}

// ---- rows sorted by token ----------------------------------------------------------------------
//
// Keys are (token, row), all different, so there is one sorted order, whatever sorts them: a
// bitonic network. Rows whose token is outside the table, and what fills up to a power of two, get
// the last key.

const u64 LAST = ~0ull;
const int SORT_THREADS = 1024;
const int LOCAL = 4096; // keys that a block sorts in shared memory

// One step of the network over a block's keys: pairs `j` apart, ascending where bit `k` of the
// key's place is 0. `base` is the place of the block's first key, a multiple of LOCAL.
__device__ __forceinline__ void step_shared(u64* keys, u64 base, u64 k, u32 j) {
    for (u32 p = threadIdx.x; p < LOCAL / 2; p += SORT_THREADS) {
        u32 i = ((p & ~(j - 1)) << 1) | (p & (j - 1));
        u64 a = keys[i], b = keys[i + j];
        bool up = ((base + i) & k) == 0;
        if ((a > b) == up) keys[i] = b, keys[i + j] = a;
    }
    __syncthreads();
}

// Makes the keys and sorts runs of LOCAL of them, up and down in turn. `how`: 0: a token is the number and `first`;
// 1: it is the type that a label says; 2: it is 0.
extern "C" __global__ void __launch_bounds__(SORT_THREADS)
    sort_local(u64* keys, const int* tokens, u64 rows, u64 vocab, u32 first, u32 how) {
    __shared__ u64 own[LOCAL];
    u64 base = (u64)blockIdx.x * LOCAL;
    for (u32 i = threadIdx.x; i < LOCAL; i += SORT_THREADS) {
        u64 row = base + i, key = LAST;
        if (row < rows) {
            i64 token = how == 2 ? 0 : how == 1 ? tokens[row] == SECOND_TEXT : (i64)tokens[row] + first;
            if (token >= 0 && (u64)token < vocab) key = (u64)token << 32 | row;
        }
        own[i] = key;
    }
    __syncthreads();
    for (u32 k = 2; k <= LOCAL; k *= 2)
        for (u32 j = k / 2; j > 0; j /= 2) step_shared(own, base, k, j);
    for (u32 i = threadIdx.x; i < LOCAL; i += SORT_THREADS) keys[base + i] = own[i];
}

// One step over all keys: pairs `j` apart, j >= LOCAL. One thread a pair.
extern "C" __global__ void __launch_bounds__(SORT_THREADS)
    merge_step(u64* keys, u64 n, u64 k, u64 j) {
    u64 p = (u64)blockIdx.x * SORT_THREADS + threadIdx.x;
    if (p >= n / 2) return;
    u64 i = ((p & ~(j - 1)) << 1) | (p & (j - 1));
    u64 a = keys[i], b = keys[i + j];
    if ((a > b) == ((i & k) == 0)) keys[i] = b, keys[i + j] = a;
}

// The steps of stage `k` whose pairs lie in one block.
extern "C" __global__ void __launch_bounds__(SORT_THREADS) merge_local(u64* keys, u64 k) {
    __shared__ u64 own[LOCAL];
    u64 base = (u64)blockIdx.x * LOCAL;
    for (u32 i = threadIdx.x; i < LOCAL; i += SORT_THREADS) own[i] = keys[base + i];
    __syncthreads();
    for (u32 j = LOCAL / 2; j > 0; j /= 2) step_shared(own, base, k, j);
    for (u32 i = threadIdx.x; i < LOCAL; i += SORT_THREADS) keys[base + i] = own[i];
}

// Where each token's rows start and end among the keys; both are 0 before.
extern "C" __global__ void __launch_bounds__(256)
    bounds(u32* starts, u32* ends, const u64* keys, u64 rows) {
    u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i >= rows) return;
    u64 key = keys[i];
    if (key == LAST) return;
    u32 token = (u32)(key >> 32);
    if (i == 0 || (u32)(keys[i - 1] >> 32) != token) starts[token] = (u32)i;
    if (i + 1 == rows || (u32)(keys[i + 1] >> 32) != token) ends[token] = (u32)i + 1;
}

// ---- sums --------------------------------------------------------------------------------------

// A token of more rows than this is a block's and not a warp's.
const u32 FEW = 32;
const int SLAB = 256;       // columns of a warp: eight a lane
const int SLABS = 4;        // slabs that one warp goes through
const int PARTS = 16;       // warps of a block that share a token

// A lane's columns of a slab: eight neighbours, or (narrow accesses) every 32nd.
__device__ __forceinline__ u64 column(u64 slab, int lane, int i, bool wide) {
    return slab + (wide ? 8 * lane + i : lane + 32 * i);
}

__device__ __forceinline__ Eight row8(const E* p, u64 slab, int lane, u64 c, bool wide) {
    if (wide) return load8(p + slab + 8 * lane);
    Eight r;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u64 at = column(slab, lane, i, false);
        r.x[i] = at < c ? widen(p[at]) : 0.0f;
    }
    return r;
}

// Rows of dy added in the order of the keys `start .. end`, from 0. With `wide`, the lane's eight
// columns are inside c.
__device__ __forceinline__ Eight add_rows(const E* dy, const u64* keys, u32 start, u32 end, u64 slab,
                                          int lane, u64 c, bool wide) {
    Eight sum = {{0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f}};
    const u32 AHEAD = 4;
    u32 at = start;
    for (; at + AHEAD <= end; at += AHEAD) {
        Eight x[AHEAD];
#pragma unroll
        for (u32 k = 0; k < AHEAD; k++)
            x[k] = row8(dy + (u64)(u32)keys[at + k] * c, slab, lane, c, wide);
#pragma unroll
        for (u32 k = 0; k < AHEAD; k++)
#pragma unroll
            for (int i = 0; i < 8; i++) sum.x[i] += x[k].x[i];
    }
    for (; at < end; at++) {
        Eight x = row8(dy + (u64)(u32)keys[at] * c, slab, lane, c, wide);
#pragma unroll
        for (int i = 0; i < 8; i++) sum.x[i] += x.x[i];
    }
    return sum;
}

// dw (+)= sum for a lane's eight columns.
__device__ __forceinline__ void put(float* dw, Eight sum, u64 slab, int lane, u64 c, bool wide,
                                    bool accumulate) {
    if (wide) {
        float* to = dw + slab + 8 * lane;
        if (accumulate) {
            Eight old = load8(to);
#pragma unroll
            for (int i = 0; i < 8; i++) sum.x[i] = old.x[i] + sum.x[i];
        }
        store8(to, sum);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u64 at = column(slab, lane, i, false);
            if (at < c) dw[at] = accumulate ? dw[at] + sum.x[i] : sum.x[i];
        }
    }
}

// Tokens of at most FEW rows, and those of none: a warp has a row of the table and up to SLABS
// slabs of columns. `wide` says that rows are whole 16-byte units at such addresses.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    few(float* dw, const E* dy, const u64* keys, const u32* starts, const u32* ends, u64 c, u64 vocab,
        int accumulate, int wide) {
    u64 token = (u64)blockIdx.x * WARPS + (threadIdx.x >> 5);
    if (token >= vocab) return;
    int lane = threadIdx.x & 31;
    u32 start = starts[token], end = ends[token];
    if (end - start > FEW || (accumulate && start == end)) return;
    u64 from = (u64)blockIdx.y * SLAB * SLABS;
    for (u64 slab = from; slab < c && slab < from + SLAB * SLABS; slab += SLAB) {
        if (wide && slab + 8 * lane >= c) return;
        Eight sum = add_rows(dy, keys, start, end, slab, lane, c, wide);
        put(dw + token * c, sum, slab, lane, c, wide, accumulate);
    }
}

// Tokens of more than FEW rows: a block has one of them and a slab of columns. Its rows are cut
// into PARTS runs, as equal as can be; each is summed in the order of rows by one warp, and the
// runs are added in order. Of the places 0, FEW, 2 FEW, ... among the keys, the first that lies in
// a token's run names the token's block.
extern "C" __global__ void __launch_bounds__(32 * PARTS)
    many(float* dw, const E* dy, const u64* keys, const u32* starts, const u32* ends, u64 c,
         int accumulate, int wide) {
    __shared__ float sums[PARTS][8][32];
    u32 place = blockIdx.x * FEW;
    u64 key = keys[place];
    if (key == LAST) return;
    u64 token = key >> 32;
    u32 start = starts[token], end = ends[token];
    if (end - start <= FEW || place - start >= FEW) return;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    u64 slab = (u64)blockIdx.y * SLAB;
    u32 each = (end - start + PARTS - 1) / PARTS;
    u32 first = min(start + warp * each, end), last = min(first + each, end);
    bool mine = !wide || slab + 8 * lane < c;
    Eight sum = {{0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f}};
    if (mine) sum = add_rows(dy, keys, first, last, slab, lane, c, wide);
#pragma unroll
    for (int i = 0; i < 8; i++) sums[warp][i][lane] = sum.x[i];
    __syncthreads();
    if (warp != 0 || !mine) return;
#pragma unroll
    for (int i = 0; i < 8; i++)
        for (int part = 1; part < PARTS; part++) sum.x[i] += sums[part][i][lane];
    put(dw + token * c, sum, slab, lane, c, wide, accumulate);
}
