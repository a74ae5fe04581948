// V neighbouring elements of memory as floats, in instructions of 16 bytes where V allows.
#pragma once
#include "prelude.cuh"

// Elements in 16 bytes.
template <class E> struct Width {
    static const u32 V = 16 / sizeof(E);
};

template <u32 N> struct alignas(4 * N) Words {
    u32 w[N];
};

// Whether a row at `p` that is reached over distances of `strides` (or-ed) elements may be accessed in 16 bytes.
template <class E> DEVICE bool aligned(const E* p, u64 strides) { return (((u64)p | strides * sizeof(E)) & 15) == 0; }

DEVICE void unpack(u32 w, float (&f)[1], float*) { f[0] = bits_to_float(w); }
DEVICE void unpack(u32 w, float (&f)[2], bf16*) {
    f[0] = bits_to_float(w << 16);
    f[1] = bits_to_float(w & 0xffff0000u);
}
DEVICE void unpack(u32 w, float (&f)[2], f16*) {
    f[0] = half_to_float((u16)w);
    f[1] = half_to_float((u16)(w >> 16));
}
DEVICE u32 bits_of(float v) { return float_to_bits(v); }
template <class E> DEVICE u32 bits_of(E v) { return v.bits; }
DEVICE void from_bits(u32 w, float& v) { v = bits_to_float(w); }
template <class E> DEVICE void from_bits(u32 w, E& v) { v.bits = (u16)w; }
template <class E> DEVICE u32 pack(const float* f) {
    if constexpr (sizeof(E) == 4) {
        return float_to_bits(f[0]);
    } else {
        E a, b;
        from_float(f[0], a);
        from_float(f[1], b);
        return (u32)b.bits << 16 | a.bits;
    }
}

// V neighbouring elements, not yet unpacked: half the registers of floats for 16-bit types. WIDE: they may be accessed together; else
// one by one, and only the first `left` are there. Which thread holds which element is the same either way, so that sums are too.
template <class E, u32 V> struct Packed {
    static const u32 PER = 4 / sizeof(E), COUNT = V / PER, STEP = COUNT < 4 ? COUNT : 4;
    static_assert(V % PER == 0 && (STEP == 4 || COUNT == STEP) && STEP != 3, "whole words, whole instructions");
    u32 w[COUNT];

    template <bool WIDE> DEVICE_MEMBER void load(const E* p, u32 left) {
        if constexpr (WIDE) {
#pragma unroll
            for (u32 i = 0; i < COUNT; i += STEP) {
                const Words<STEP> words = *(const Words<STEP>*)(p + i * PER);
#pragma unroll
                for (u32 k = 0; k < STEP; ++k) w[i + k] = words.w[k];
            }
        } else {
#pragma unroll
            for (u32 i = 0; i < COUNT; ++i) {
                w[i] = 0;
#pragma unroll
                for (u32 k = 0; k < PER; ++k) {
                    if (i * PER + k < left) w[i] |= bits_of(p[i * PER + k]) << 32 / PER * k;
                }
            }
        }
    }
    template <bool WIDE> DEVICE_MEMBER void store(E* p, u32 left) const {
        if constexpr (WIDE) {
#pragma unroll
            for (u32 i = 0; i < COUNT; i += STEP) {
                Words<STEP> words;
#pragma unroll
                for (u32 k = 0; k < STEP; ++k) words.w[k] = w[i + k];
                *(Words<STEP>*)(p + i * PER) = words;
            }
        } else {
#pragma unroll
            for (u32 k = 0; k < V; ++k) {
                if (k < left) from_bits(w[k / PER] >> 32 / PER * (k % PER), p[k]);
            }
        }
    }
    DEVICE_MEMBER void get(float (&f)[V]) const {
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            float part[PER];
            unpack(w[i], part, (E*)0);
#pragma unroll
            for (u32 k = 0; k < PER; ++k) f[i * PER + k] = part[k];
        }
    }
    DEVICE_MEMBER void set(const float (&f)[V]) {
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) w[i] = pack<E>(f + i * PER);
    }
};

template <bool WIDE = true, class E, u32 V> DEVICE void load(const E* p, float (&f)[V], u32 left = V) {
    Packed<E, V> packed;
    packed.template load<WIDE>(p, left);
    packed.get(f);
}

template <bool WIDE = true, class E, u32 V> DEVICE void store(E* p, const float (&f)[V], u32 left = V) {
    Packed<E, V> packed;
    packed.set(f);
    packed.template store<WIDE>(p, left);
}
