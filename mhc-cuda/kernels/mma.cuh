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
