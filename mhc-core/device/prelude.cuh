// The only file that names a compiler or a vendor: types, thread indices, barriers, shuffles, conversions and vectors of memory.
//
// No header is needed by NVRTC, by clang for AMDGCN, or by hiprtc; the host emulator (MHC_EMU) supplies the same names in emu.hpp.
//
// A kernel `k` is a function `template <class E, u32 N> k(Args<E>)` of the streams' element type and their number, 0 where that is an
// argument; a macro MHC_KERNEL_k(NAME, E, N) makes an entry of it. It takes one struct, whose fields are the arguments of the launch
// in order, 8 bytes each: what the host holds as an array of 64-bit cells.
//
// MHC_ENTRY(NAME, THREADS, ARGS, function) is for blocks of at most THREADS threads, and leaves to the compiler how many registers each
// has. MHC_ENTRY_RESIDENT(NAME, THREADS, BLOCKS, ARGS, function) says how many blocks are to run on a multiprocessor at a time: fewer get
// more registers, where the compiler would keep some of them in memory for the sake of more blocks, or go beyond what is good.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#if defined(MHC_EMU)

#include "emu.hpp"

#elif defined(__AMDGCN__)

#if defined(__GFX9__)
#define MHC_WAVE 64
#define MHC_SIMDS 4
#else
#define MHC_WAVE 32
#define MHC_SIMDS 2
#endif
#define DEVICE static inline __attribute__((device, always_inline))
#define DEVICE_MEMBER inline __attribute__((device, always_inline))
#define SHARED static __attribute__((shared))
#define DYNAMIC_SHARED(type, name) extern __attribute__((shared, aligned(16))) type name[]
#define MHC_ENTRY(NAME, THREADS, ARGS, ...)                                                         \
    extern "C" __attribute__((global, amdgpu_flat_work_group_size(1, THREADS))) void NAME(ARGS a) { \
        __VA_ARGS__(a);                                                                             \
    }
// A compute unit has 4 SIMDs of 64 lanes, or shares as many of 32 with its neighbour: the waves of BLOCKS blocks are spread over 4 or 2.
#define MHC_ENTRY_RESIDENT(NAME, THREADS, BLOCKS, ARGS, ...)                                          \
    extern "C" __attribute__((global, amdgpu_flat_work_group_size(1, THREADS),                        \
                              amdgpu_waves_per_eu(((BLOCKS) * (THREADS) + MHC_SIMDS * MHC_WAVE - 1) / \
                                                  (MHC_SIMDS * MHC_WAVE)))) void NAME(ARGS a) {       \
        __VA_ARGS__(a);                                                                               \
    }

DEVICE u32 thread_index() { return __builtin_amdgcn_workitem_id_x(); }
DEVICE u32 threads() { return __builtin_amdgcn_workgroup_size_x(); }
DEVICE u32 block_x() { return __builtin_amdgcn_workgroup_id_x(); }
DEVICE u32 block_y() { return __builtin_amdgcn_workgroup_id_y(); }
DEVICE u32 block_z() { return __builtin_amdgcn_workgroup_id_z(); }
// The runtime leaves the numbers of blocks at the head of the implicit arguments, from code object 5 on; the packet has threads alone,
// and each quotient would be a division.
DEVICE u32 blocks_of(u32 axis) {
    return ((const __attribute__((address_space(4))) u32*)__builtin_amdgcn_implicitarg_ptr())[axis];
}
DEVICE u32 blocks_x() { return blocks_of(0); }
DEVICE u32 blocks_y() { return blocks_of(1); }
DEVICE u32 blocks_z() { return blocks_of(2); }

DEVICE void barrier() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

// Orders the shared memory of one wave. Its lanes run together, so that only the compiler has to be held.
DEVICE void wave_barrier() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
    __builtin_amdgcn_wave_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}

DEVICE float bits_to_float(u32 u) { return __builtin_bit_cast(float, u); }
DEVICE u32 float_to_bits(float f) { return __builtin_bit_cast(u32, f); }
DEVICE double bits_to_double(u64 u) { return __builtin_bit_cast(double, u); }
DEVICE float shuffle(float v, u32 lane) {
    return bits_to_float(__builtin_amdgcn_ds_bpermute(lane << 2, float_to_bits(v)));
}
// The value of lane ^ mask. Every mask is a number once loops are unrolled, and what remains of this is one or two moves between lanes,
// which take a cycle each where the crossbar of shared memory takes a hundred.
DEVICE float shuffle_xor(float v, u32 mask) {
    const int bits = __builtin_bit_cast(int, v);
#define MHC_MOVE(V, HOW) __builtin_amdgcn_mov_dpp(V, HOW, 0xf, 0xf, true)
    switch (mask) {
    // quad_perm [1,0,3,2] and [2,3,0,1].
    case 1: return __builtin_bit_cast(float, MHC_MOVE(bits, 0xb1));
    case 2: return __builtin_bit_cast(float, MHC_MOVE(bits, 0x4e));
#if MHC_WAVE == 64
    // 7 - lane of 8 and then 3 - lane of 4: row_half_mirror, quad_perm [3,2,1,0]; row_ror:8.
    case 4: return __builtin_bit_cast(float, MHC_MOVE(MHC_MOVE(bits, 0x141), 0x1b));
    case 8: return __builtin_bit_cast(float, MHC_MOVE(bits, 0x128));
#if defined(__gfx950__)
    // The first result has the even rows, or the lower half, of both operands, the second the others.
    case 16: {
        const auto both = __builtin_amdgcn_permlane16_swap(bits, bits, false, false);
        return __builtin_bit_cast(float, thread_index() & 16 ? both[0] : both[1]);
    }
    case 32: {
        const auto both = __builtin_amdgcn_permlane32_swap(bits, bits, false, false);
        return __builtin_bit_cast(float, thread_index() & 32 ? both[0] : both[1]);
    }
#else
    // Through shared memory's crossbar, but without an address to compute.
    case 16: return __builtin_bit_cast(float, __builtin_amdgcn_ds_swizzle(bits, 0x401f));
#endif
#else
    // row_xmask; the other row's lane of the same place.
    case 4: return __builtin_bit_cast(float, MHC_MOVE(bits, 0x164));
    case 8: return __builtin_bit_cast(float, MHC_MOVE(bits, 0x168));
    case 16: return __builtin_bit_cast(float, __builtin_amdgcn_permlanex16(bits, bits, 0x76543210, 0xfedcba98, true, false));
#endif
    default: return shuffle(v, (thread_index() % MHC_WAVE) ^ mask);
    }
#undef MHC_MOVE
}
DEVICE float square_root(float v) { return __builtin_sqrtf(v); }
// 1 / v within one unit in the last place, for normal v whose reciprocal is normal; without the branches of a division.
DEVICE float reciprocal(float v) {
    const float r = __builtin_amdgcn_rcpf(v);
    return __builtin_fmaf(r, __builtin_fmaf(-v, r, 1.0f), r);
}
DEVICE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEVICE float nearest_integer(float v) { return __builtin_rintf(v); }
DEVICE u16 float_to_half(float f) { return __builtin_bit_cast(u16, (_Float16)f); }
DEVICE float half_to_float(u16 h) { return (float)__builtin_bit_cast(_Float16, h); }
#if defined(__gfx950__)
DEVICE u16 float_to_brain(float f) { return __builtin_bit_cast(u16, (__bf16)f); }
#else
DEVICE u16 float_to_brain(float f) {
    const u32 u = float_to_bits(f);
    return f != f ? (u16)(u >> 16 | 0x40) : (u16)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
#endif

#else

#define MHC_WAVE 32
#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
#define SHARED __shared__
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#define MHC_ENTRY(NAME, THREADS, ARGS, ...)                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ ARGS a) { __VA_ARGS__(a); }
#define MHC_ENTRY_RESIDENT(NAME, THREADS, BLOCKS, ARGS, ...)                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) NAME(const __grid_constant__ ARGS a) { __VA_ARGS__(a); }

DEVICE u32 thread_index() { return threadIdx.x; }
DEVICE u32 threads() { return blockDim.x; }
DEVICE u32 block_x() { return blockIdx.x; }
DEVICE u32 block_y() { return blockIdx.y; }
DEVICE u32 block_z() { return blockIdx.z; }
DEVICE u32 blocks_z() { return gridDim.z; }
DEVICE u32 blocks_x() { return gridDim.x; }
DEVICE u32 blocks_y() { return gridDim.y; }
DEVICE void barrier() { __syncthreads(); }
DEVICE void wave_barrier() { __syncwarp(); }
DEVICE float bits_to_float(u32 u) { return __uint_as_float(u); }
DEVICE u32 float_to_bits(float f) { return __float_as_uint(f); }
DEVICE double bits_to_double(u64 u) { return __longlong_as_double((long long)u); }
DEVICE float shuffle_xor(float v, u32 mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
DEVICE float shuffle(float v, u32 lane) { return __shfl_sync(0xffffffffu, v, lane); }
DEVICE float square_root(float v) { return __fsqrt_rn(v); }
DEVICE float reciprocal(float v) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return __fmaf_rn(r, __fmaf_rn(-v, r, 1.0f), r);
}
DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float nearest_integer(float v) { return rintf(v); }
DEVICE u16 float_to_half(float f) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
DEVICE float half_to_float(u16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
DEVICE u16 float_to_brain(float f) {
    u16 h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

#endif

struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};
typedef float f32;

DEVICE float to_float(float v) { return v; }
DEVICE float to_float(bf16 v) { return bits_to_float((u32)v.bits << 16); }
DEVICE float to_float(f16 v) { return half_to_float(v.bits); }
DEVICE void from_float(float v, float& out) { out = v; }
DEVICE void from_float(float v, bf16& out) { out.bits = float_to_brain(v); }
DEVICE void from_float(float v, f16& out) { out.bits = float_to_half(v); }

DEVICE u32 smaller(u32 a, u32 b) { return a < b ? a : b; }
DEVICE float larger(float a, float b) { return a > b ? a : b; }
DEVICE float smaller(float a, float b) { return a < b ? a : b; }

// e^v within one unit in the last place: two-part reduction by ln 2, a polynomial of degree 6, and a scale in two steps, so that
// results below the normal range are right too. The same bits on every target, which no vendor's exp promises.
DEVICE float exponential(float v) {
    const float x = smaller(larger(v, -104.0f), 89.0f);
    const float k = nearest_integer(x * 1.44269504f);
    const float r = fused(k, -1.42860677e-6f, fused(k, -0.693145752f, x));
    float p = 1.37805939e-3f;
    p = fused(p, r, 8.37312452e-3f);
    p = fused(p, r, 4.16695364e-2f);
    p = fused(p, r, 1.66664720e-1f);
    p = fused(p, r, 4.99999851e-1f);
    p = fused(p, r, 1.0f);
    p = fused(p, r, 1.0f);
    const int e = (int)k, half = e / 2;
    const float scaled = p * bits_to_float((u32)(half + 127) << 23) * bits_to_float((u32)(e - half + 127) << 23);
    return v != v ? v : scaled;
}

// 1 / (1 + e^-v), without overflow on either side.
DEVICE float sigmoid(float v) {
    const float e = exponential(v < 0.0f ? v : -v);
    return (v < 0.0f ? e : 1.0f) * reciprocal(1.0f + e);
}

// ln v for normal v > 0, within one unit in the last place: the exponent, and a polynomial around 1.
DEVICE float logarithm(float v) {
    const u32 bits = float_to_bits(v), e = (bits - 0x3f2aaaabu) & 0xff800000u;
    const float f = bits_to_float(bits - e) - 1.0f, s = f * f, k = (float)(int)e * 1.19209290e-7f;
    float r = fused(fused(-0.130187988f, f, 0.140889585f), s, fused(-0.121489584f, f, 0.139809534f));
    r = fused(r, f, -0.166845024f);
    r = fused(r, f, 0.200121149f);
    r = fused(r, f, -0.249996364f);
    r = fused(r, f, 0.333331943f);
    r = fused(r, f, -0.5f);
    return fused(k, 0.693147182f, fused(r, s, f));
}
