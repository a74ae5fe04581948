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
typedef short S16 __attribute__((ext_vector_type(16)));

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
#else
static const u32 GROUPS = 2, NEAR = 8, ROWS = 8;
typedef F8 Sums;
DEVICE u32 row_of(u32 lane, u32 r) { return lane / 16 * 8 + r; }
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
#elif defined(__GFX11__)
            struct Both {
                Quad first, second;
            };
            const Both x = {__builtin_bit_cast(Quad, a[0]), __builtin_bit_cast(Quad, a[1])}, y = {b[part * 2], b[part * 2 + 1]};
            d = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(__builtin_bit_cast(S16, x), __builtin_bit_cast(S16, y), d);
#else
            const S8 x = __builtin_bit_cast(S8, a[0]), y = __builtin_bit_cast(S8, b[part]);
            d = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12(x, y, d);
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
