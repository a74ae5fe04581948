// Products of small matrices on NVIDIA's tensor cores (mma.sync, compute capability 8.0 and above).
//
// D [16, 8] += A [16, k]·B [k, 8], row g = lane / 4 and g + 8 of A and D, column g of B; of k, a lane with q = lane % 4 holds what its
// instruction wants: for bf16 (k = 16) 2q, 2q + 1, 2q + 8, 2q + 9; for tf32 (k = 8) q and q + 4. A sum over k may number its terms as
// it likes, so a lane that holds 8 neighbours of a row gives them out in slabs: one instruction's share each.
#pragma once
#include "vector.cuh"

struct alignas(16) Quad {
    u32 w[4];
};

DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE void mma_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE void mma_tf32(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The nearest tf32, ties away from zero.
DEVICE u32 to_tf32(float v) {
    u32 r;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(v));
    return r;
}

// v = hi + lo in tf32 but for its last bit or two. Without rounding, so that nothing overflows.
DEVICE void split_tf32(float v, u32& hi, u32& lo) {
    hi = float_to_bits(v) & 0xffffe000u;
    lo = float_to_bits(v - bits_to_float(hi));
}

// Two bf16 in a word, `lo` in its lower half.
DEVICE u32 pack_bf16(float lo, float hi) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

// v = hi + lo with 16 bits or more, for two numbers.
DEVICE void split_bf16(float v0, float v1, u32& hi, u32& lo) {
    hi = pack_bf16(v0, v1);
    lo = pack_bf16(v0 - bits_to_float(hi << 16), v1 - bits_to_float(hi & 0xffff0000u));
}

// The same for f16, whose range the numbers must suit.
DEVICE void split_f16(float v0, float v1, u32& hi, u32& lo) {
    float f[2];
    const float v[2] = {v0, v1};
    hi = pack<f16>(v);
    unpack(hi, f, (f16*)0);
    const float rest[2] = {v0 - f[0], v1 - f[1]};
    lo = pack<f16>(rest);
}

// How streams of type E are multiplied by f32 numbers. `split`: the slab `s` of 8 neighbours of B as two numbers each; words 0, 1 are
// the larger parts. `A::set`: the slab of two rows.
template <class E> struct Mma {
    static const u32 SLABS = 4;
    static const bool EXACT = sizeof(E) == 2;

    struct A {
        u32 hi[4], lo[4];
        DEVICE_MEMBER void set(const Packed<E, 8>& row, const Packed<E, 8>& row8, u32 s) {
            float f[8], f8[8];
            row.get(f);
            row8.get(f8);
            const float v[4] = {f[2 * s], f8[2 * s], f[2 * s + 1], f8[2 * s + 1]};
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                hi[e] = EXACT ? float_to_bits(v[e]) : to_tf32(v[e]);
                lo[e] = EXACT ? 0 : to_tf32(v[e] - bits_to_float(hi[e]));
            }
        }
    };
    DEVICE_MEMBER static Quad split(const float (&f)[8], u32 s) {
        Quad quad;
#pragma unroll
        for (u32 e = 0; e < 2; ++e) {
            quad.w[e] = to_tf32(f[2 * s + e]);
            quad.w[2 + e] = to_tf32(f[2 * s + e] - bits_to_float(quad.w[e]));
        }
        return quad;
    }
    DEVICE_MEMBER static void multiply(float (&d)[4], const A& a, const Quad& b) {
        if (!EXACT) mma_tf32(d, a.lo, b.w[0], b.w[1]);
        mma_tf32(d, a.hi, b.w[2], b.w[3]);
        mma_tf32(d, a.hi, b.w[0], b.w[1]);
    }
};

template <> struct Mma<bf16> {
    static const u32 SLABS = 2;

    struct A {
        u32 hi[4];
        DEVICE_MEMBER void set(const Packed<bf16, 8>& row, const Packed<bf16, 8>& row8, u32 s) {
            hi[0] = row.w[2 * s];
            hi[1] = row8.w[2 * s];
            hi[2] = row.w[2 * s + 1];
            hi[3] = row8.w[2 * s + 1];
        }
    };
    DEVICE_MEMBER static Quad split(const float (&f)[8], u32 s) {
        Quad quad;
        split_bf16(f[4 * s], f[4 * s + 1], quad.w[0], quad.w[2]);
        split_bf16(f[4 * s + 2], f[4 * s + 3], quad.w[1], quad.w[3]);
        return quad;
    }
    DEVICE_MEMBER static void multiply(float (&d)[4], const A& a, const Quad& b) {
        mma_bf16(d, a.hi, b.w[2], b.w[3]);
        mma_bf16(d, a.hi, b.w[0], b.w[1]);
    }
};

DEVICE constexpr bool is_bf16(bf16*) { return true; }
DEVICE constexpr bool is_bf16(f16*) { return false; }

// Products of 16-bit numbers as they are.
template <class E> DEVICE void mma16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    if constexpr (is_bf16((E*)0)) mma_bf16(d, a, b0, b1);
    else mma_f16(d, a, b0, b1);
}

// How f32 numbers B become pairs of E, and what that does to sums: bf16 have the range of f32, so that nothing is to be done.
template <class E, u32 TILES> struct Pairs {
    static const bool SCALED = false;
    DEVICE_MEMBER static void take(const float (&f)[2], u32& hi, u32& lo) { split_bf16(f[0], f[1], hi, lo); }
};

// For f16, a warp's numbers of a column are multiplied by the power of two that brings the largest to [2^14, 2^15): pairs then have 22
// bits, 16 where a number is 2^-24 of that.
template <u32 TILES> struct Pairs<f16, TILES> {
    static const bool SCALED = true;
    // As they are, until all are there.
    DEVICE_MEMBER static void take(const float (&f)[2], u32& hi, u32& lo) {
        hi = float_to_bits(f[0]);
        lo = float_to_bits(f[1]);
    }
    // `inverse[t]` is what the sums of column lane / 4 of tile t are to be multiplied by.
    template <u32 BLOCKS>
    DEVICE_MEMBER static void split(u32 (&hi)[BLOCKS][TILES][4], u32 (&lo)[BLOCKS][TILES][4], float (&inverse)[TILES]) {
#pragma unroll
        for (u32 t = 0; t < TILES; ++t) {
            // Of positive numbers as words, which order as the numbers do.
            u32 most = 0;
            const auto take_larger = [&](u32 word) { most = (word & 0x7fffffffu) > most ? word & 0x7fffffffu : most; };
#pragma unroll
            for (u32 b = 0; b < BLOCKS; ++b) {
#pragma unroll
                for (u32 e = 0; e < 4; ++e) {
                    take_larger(hi[b][t][e]);
                    take_larger(lo[b][t][e]);
                }
            }
            take_larger(float_to_bits(shuffle_xor(bits_to_float(most), 1)));
            take_larger(float_to_bits(shuffle_xor(bits_to_float(most), 2)));
            const u32 exponent = smaller(268 - (most >> 23), 253u);
            const float scale = bits_to_float(exponent << 23);
            inverse[t] = bits_to_float((254 - exponent) << 23);
#pragma unroll
            for (u32 b = 0; b < BLOCKS; ++b) {
#pragma unroll
                for (u32 e = 0; e < 4; ++e) {
                    split_f16(bits_to_float(hi[b][t][e]) * scale, bits_to_float(lo[b][t][e]) * scale, hi[b][t][e], lo[b][t][e]);
                }
            }
        }
    }
};
