// What the kernels of the layers do with the rows of a token.
#pragma once
#include "copies.cuh"
#include "operand.cuh"

// A thread's vector of each row.
template <class E, u32 N> struct Column {
    static const u32 V = Width<E>::V;
    Packed<E, V> row[N];

    DEVICE_MEMBER void load(Rows<const E> x, u32 c) {
#pragma unroll
        for (u32 j = 0; j < N; ++j) row[j].template load<true>(x.at(j) + c, V);
    }
    // Σ_j h[j·step]·x_j
    DEVICE_MEMBER void sum(const float* h, u32 step, float (&to)[V]) const {
#pragma unroll
        for (u32 k = 0; k < V; ++k) to[k] = 0.0f;
        add(h, step, to);
    }
    DEVICE_MEMBER void add(const float* h, u32 step, float (&to)[V]) const {
#pragma unroll
        for (u32 j = 0; j < N; ++j) {
            float v[V];
            row[j].get(v);
#pragma unroll
            for (u32 k = 0; k < V; ++k) to[k] = fused(h[j * step], v[k], to[k]);
        }
    }
};

template <class E, u32 V> DEVICE void put(E* p, const float (&f)[V]) {
    Packed<E, V> packed;
    packed.set(f);
    global_store(p, packed.w);
}
