// Products of small matrices on AMD's matrix units: D [16 rows, 16 columns] += A [16, k]·B [k, 16].
//
// A lane has a row of A and a column of B, both lane % 16, and of k what its instruction wants of its group of lanes, lane / 16. Column
// lane % 16 of D is in its registers, in rows that the family chooses. A sum over k may number its terms as it likes, so a lane that
// holds NEAR neighbours of a row gives them out in turn.
//
//   CDNA   64 lanes, 4 groups; f32: 1 of k a lane (k = 4), bf16: 4 (k = 16), on gfx950 8 (k = 32); rows 4·group + r
//   RDNA 3 32 lanes; both halves hold the same 16 of k; rows 2·r + half
//   RDNA 4 32 lanes, 2 groups of 8 (k = 16); rows 8·group + r
#pragma once
#include "vector.cuh"

typedef float F4 __attribute__((ext_vector_type(4)));
typedef float F8 __attribute__((ext_vector_type(8)));
typedef short S4 __attribute__((ext_vector_type(4)));
typedef short S8 __attribute__((ext_vector_type(8)));

struct alignas(16) Quad {
    u32 w[4];
};

#if defined(__GFX9__)
static const u32 GROUPS = 4, NEAR = 8, ROWS = 4;
typedef F4 Sums;
DEVICE u32 row_of(u32 lane, u32 r) { return lane / 16 * 4 + r; }
#elif defined(__GFX11__)
static const u32 GROUPS = 1, NEAR = 16, ROWS = 8;
typedef F8 Sums;
DEVICE u32 row_of(u32 lane, u32 r) { return r * 2 + lane / 16; }
DEVICE u32 place_of(u32 row) { return row % 2 * 8 + row / 2; }
#else
static const u32 GROUPS = 2, NEAR = 8, ROWS = 8;
typedef F8 Sums;
DEVICE u32 row_of(u32 lane, u32 r) { return lane / 16 * 8 + r; }
DEVICE u32 place_of(u32 row) { return row; }
#endif

#if !defined(__GFX9__)
// What a lane of RDNA gives an instruction of one factor.
struct Fragment {
    Quad quads[NEAR / 8];
};
typedef short Brains __attribute__((ext_vector_type(NEAR)));
typedef _Float16 Halves __attribute__((ext_vector_type(NEAR)));
#if defined(__GFX11__)
#define MHC_WMMA(TYPE) __builtin_amdgcn_wmma_f32_16x16x16_##TYPE##_w32
#else
#define MHC_WMMA(TYPE) __builtin_amdgcn_wmma_f32_16x16x16_##TYPE##_w32_gfx12
#endif
DEVICE void multiply_bf16(Sums& d, const Fragment& a, const Fragment& b) {
    d = MHC_WMMA(bf16)(__builtin_bit_cast(Brains, a), __builtin_bit_cast(Brains, b), d);
}
DEVICE void multiply_f16(Sums& d, const Fragment& a, const Fragment& b) {
    d = MHC_WMMA(f16)(__builtin_bit_cast(Halves, a), __builtin_bit_cast(Halves, b), d);
}
#undef MHC_WMMA

// A column of 16 numbers as a factor, from those of rows row_of(lane, r) that this lane and the other of the column have: number
// place_of(row) of k is that of a row.
DEVICE Fragment gather(const Quad& own) {
    Fragment f = {{own}};
#if defined(__GFX11__)
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
        const u32 other = float_to_bits(shuffle_xor(bits_to_float(own.w[k]), 16));
        f.quads[0].w[k] = thread_index() & 16 ? other : own.w[k];
        f.quads[1].w[k] = thread_index() & 16 ? own.w[k] : other;
    }
#endif
    return f;
}
#endif

// Two numbers rounded to bf16, the first in the lower half, and what is left of them.
DEVICE u32 split_bf16(float (&v)[2]) {
    u32 packed = 0;
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const u32 hi = float_to_brain(v[e]);
        packed |= hi << 16 * e;
        v[e] -= bits_to_float(hi << 16);
    }
    return packed;
}

// How streams of type E are multiplied by f32 numbers. `split` puts NEAR neighbours of B into NEAR / 4 quads, `multiply` takes as many
// and NEAR neighbours of A in packs of 8.
template <class E> struct Product;

// As the sum of two bf16, 16 bits and more: the quads of the smaller ones follow those of the larger. The smaller go first into the sum.
template <> struct Product<bf16> {
    DEVICE_MEMBER static void split(const float (&f)[NEAR], Quad (&quads)[NEAR / 4]) {
#pragma unroll
        for (u32 e = 0; e < NEAR; e += 2) {
            float v[2] = {f[e], f[e + 1]};
            quads[e / 8].w[e % 8 / 2] = split_bf16(v);
            quads[NEAR / 8 + e / 8].w[e % 8 / 2] = split_bf16(v);
        }
    }
    DEVICE_MEMBER static void multiply(Sums& d, const Packed<bf16, 8> (&a)[NEAR / 8], const Quad (&b)[NEAR / 4]) {
#pragma unroll
        for (u32 part = 2; part-- > 0;) {
#if defined(__gfx950__)
            typedef __bf16 B8 __attribute__((ext_vector_type(8)));
            const B8 x = __builtin_bit_cast(B8, a[0]), y = __builtin_bit_cast(B8, b[part]);
            d = __builtin_amdgcn_mfma_f32_16x16x32_bf16(x, y, d, 0, 0, 0);
#elif defined(__GFX9__)
            const S8 x = __builtin_bit_cast(S8, a[0]), y = __builtin_bit_cast(S8, b[part]);
            d = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(x.lo, y.lo, d, 0, 0, 0);
            d = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(x.hi, y.hi, d, 0, 0, 0);
#else
            Fragment x, y;
#pragma unroll
            for (u32 pack = 0; pack < NEAR / 8; ++pack) {
                x.quads[pack] = __builtin_bit_cast(Quad, a[pack]);
                y.quads[pack] = b[part * (NEAR / 8) + pack];
            }
            multiply_bf16(d, x, y);
#endif
        }
    }
};

#if defined(__GFX9__)
DEVICE void multiply_f32(F4& d, float a, float b) { d = __builtin_amdgcn_mfma_f32_16x16x4f32(a, b, d, 0, 0, 0); }

// In f32, as both are: RDNA has no such instruction.
template <class E> struct Product {
    DEVICE_MEMBER static void split(const float (&f)[NEAR], Quad (&quads)[NEAR / 4]) {
#pragma unroll
        for (u32 e = 0; e < NEAR; ++e) quads[e / 4].w[e % 4] = float_to_bits(f[e]);
    }
    DEVICE_MEMBER static void multiply(Sums& d, const Packed<E, 8> (&a)[1], const Quad (&b)[2]) {
        float f[8];
        a[0].get(f);
#pragma unroll
        for (u32 e = 0; e < 8; ++e) multiply_f32(d, f[e], bits_to_float(b[e / 4].w[e % 4]));
    }
};
#endif
