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

// The words of V elements, not yet unpacked: half the registers of floats for 16-bit types.
template <class E, u32 V> struct Packed {
    static const u32 PER = 4 / sizeof(E), COUNT = V / PER, STEP = COUNT < 4 ? COUNT : 4;
    static_assert(V % PER == 0 && (STEP == 4 || COUNT == STEP) && STEP != 3, "whole words, whole instructions");
    u32 w[COUNT];

    DEVICE_MEMBER void load(const E* p) {
#pragma unroll
        for (u32 i = 0; i < COUNT; i += STEP) {
            const Words<STEP> words = *(const Words<STEP>*)(p + i * PER);
#pragma unroll
            for (u32 k = 0; k < STEP; ++k) w[i + k] = words.w[k];
        }
    }
    DEVICE_MEMBER void store(E* p) const {
#pragma unroll
        for (u32 i = 0; i < COUNT; i += STEP) {
            Words<STEP> words;
#pragma unroll
            for (u32 k = 0; k < STEP; ++k) words.w[k] = w[i + k];
            *(Words<STEP>*)(p + i * PER) = words;
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

// One element at a time.
template <class E> struct Packed<E, 1> {
    E e;
    DEVICE_MEMBER void load(const E* p) { e = *p; }
    DEVICE_MEMBER void store(E* p) const { *p = e; }
    DEVICE_MEMBER void get(float (&f)[1]) const { f[0] = to_float(e); }
    DEVICE_MEMBER void set(const float (&f)[1]) { from_float(f[0], e); }
};

template <class E, u32 V> DEVICE void load(const E* p, float (&f)[V]) {
    Packed<E, V> packed;
    packed.load(p);
    packed.get(f);
}

template <class E, u32 V> DEVICE void store(E* p, const float (&f)[V]) {
    Packed<E, V> packed;
    packed.set(f);
    packed.store(p);
}
