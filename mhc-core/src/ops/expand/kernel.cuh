// expand_fwd, collapse_fwd: one stream to n and back. Each is the gradient of the other.
//
// Math      expand_fwd: x_i = w·h;  collapse_fwd: h = w·Σ_i x_i;  w = 1, or 1/n for means
// Operands  h [T, C], x [T, n, C] of type E.
// Mapping   a block takes one token and a slice of its channels, a thread 16 bytes of each stream.
// Traffic   (n + 1)·C elements a token.
// Numerics  f32 sums in the order of i; one rounding to E.
#include "operand.cuh"
#include "vector.cuh"

template <class E> struct Spread {
    Rows<const E> h;
    Streams<E> x;
    u64 tokens;
    alignas(8) u32 n, channels;
    alignas(8) float w;
};

template <class E, u32 N, u32 V, bool WIDE> DEVICE void expand_token(const Spread<E>& a, u64 t, u32 n) {
    const u32 step = blocks_y() * threads() * V;
    for (u32 c = (block_y() * threads() + thread_index()) * V; c < a.channels; c += step) {
        float v[V];
        load<WIDE>(a.h.at(t) + c, v, a.channels - c);
#pragma unroll
        for (u32 k = 0; k < V; ++k) v[k] *= a.w;
        Packed<E, V> packed;
        packed.set(v);
        for (u32 i = 0; i < n; ++i) packed.template store<WIDE>(a.x.at(t).at(i) + c, a.channels - c);
    }
}

template <class E, u32 N, bool WIDE> DEVICE void expand_fwd(const Spread<E>& a) {
    const u32 n = streams<N>(a.n), V = Width<E>::V;
    for (u64 t = block_x(); t < a.tokens; t += blocks_x()) {
        expand_token<E, N, V, WIDE>(a, t, n);
    }
}

template <class E> struct Gather {
    Streams<const E> x;
    Rows<E> h;
    u64 tokens;
    alignas(8) u32 n, channels;
    alignas(8) float w;
};

template <class E, u32 N, u32 V, bool WIDE> DEVICE void collapse_token(const Gather<E>& a, u64 t, u32 n) {
    const u32 step = blocks_y() * threads() * V;
    for (u32 c = (block_y() * threads() + thread_index()) * V; c < a.channels; c += step) {
        float sum[V] = {};
#pragma unroll(N != 0 && N <= 8 ? N : 4)
        for (u32 i = 0; i < n; ++i) {
            float v[V];
            load<WIDE>(a.x.at(t).at(i) + c, v, a.channels - c);
#pragma unroll
            for (u32 k = 0; k < V; ++k) sum[k] += v[k];
        }
#pragma unroll
        for (u32 k = 0; k < V; ++k) sum[k] *= a.w;
        store<WIDE>(a.h.at(t) + c, sum, a.channels - c);
    }
}

template <class E, u32 N, bool WIDE> DEVICE void collapse_fwd(const Gather<E>& a) {
    const u32 n = streams<N>(a.n), V = Width<E>::V;
    for (u64 t = block_x(); t < a.tokens; t += blocks_x()) {
        collapse_token<E, N, V, WIDE>(a, t, n);
    }
}

#define MHC_KERNEL_expand_fwd(NAME, E, N) MHC_ENTRY(NAME, 256, Spread<E>, expand_fwd<E, N, true>)
#define MHC_KERNEL_expand_fwd_any(NAME, E, N) MHC_ENTRY(NAME, 256, Spread<E>, expand_fwd<E, N, false>)
#define MHC_KERNEL_collapse_fwd(NAME, E, N) MHC_ENTRY(NAME, 256, Gather<E>, collapse_fwd<E, N, true>)
#define MHC_KERNEL_collapse_fwd_any(NAME, E, N) MHC_ENTRY(NAME, 256, Gather<E>, collapse_fwd<E, N, false>)
