// aggregate, aggregate_bwd: the sub-layer's input as a weighted sum of the streams (arXiv 2512.24880, eq. 3), and its gradient.
//
// Math      layer_input = Σ_i H_pre[i]·x_i;  d_x_i = H_pre[i]·g;  d_H_pre[i] = ⟨g, x_i⟩,  g = d_layer_input
// Operands  x, d_x [T, n, C], layer_input, g [T, C] of type E; mixes, d_mixes [T, n(n+2)] f32, of which only H_pre takes part.
// Mapping   forward: a block takes one token and a slice of its channels, a thread 16 bytes of each stream. backward: a block takes one
//           token; up to 8 streams the dot products are carried in registers, for more the waves share them.
// Traffic   forward (n + 1)·C elements + 4n bytes a token; backward (2n + 1)·C elements + 4n(n + 3) bytes.
// Numerics  f32 sums in an order fixed by C alone; one rounding to E.
#include "mix.cuh"

template <class E> struct AggregateFwd {
    Streams<const E> x;
    Rows<const float> mixes;
    Rows<E> layer_input;
    u64 tokens;
    alignas(8) u32 n, channels;
};

template <class E, u32 N, u32 V, bool WIDE> DEVICE void aggregate_fwd_token(const AggregateFwd<E>& a, u64 t, u32 n) {
    const float* h = a.mixes.at(t);
    const u32 step = blocks_y() * threads() * V;
    for (u32 c = (block_y() * threads() + thread_index()) * V; c < a.channels; c += step) {
        float acc[1][V] = {};
        mix<N, WIDE>(acc, n, 0, h, 0, 1, a.x.at(t), c, a.channels - c);
        store<WIDE>(a.layer_input.at(t) + c, acc[0], a.channels - c);
    }
}

template <class E, u32 N, bool WIDE> DEVICE void aggregate_fwd(const AggregateFwd<E>& a) {
    const u32 n = streams<N>(a.n), V = Width<E>::V;
    // The last tokens first: where a projection went before, they are what the cache still has.
    for (u64 b = block_x(); b < a.tokens; b += blocks_x()) {
        const u64 t = a.tokens - 1 - b;
        aggregate_fwd_token<E, N, V, WIDE>(a, t, n);
    }
}

template <class E> struct AggregateBwd {
    Streams<const E> x;
    Rows<const float> mixes;
    Rows<const E> g;
    Streams<E> d_x;
    Rows<float> d_mixes;
    // Added to d_mixes; absent in `aggregate` itself.
    Rows<const float> more;
    u64 tokens;
    alignas(8) u32 n, channels;
};

// d_x only where there is one, so that the dot products alone can be had as well.
template <class E, u32 N, u32 V, bool WIDE> DEVICE void aggregate_bwd_token(const AggregateBwd<E>& a, u64 t, u32 n, float* scratch) {
    const u32 M = N < 2 ? 1 : N;
    const float* h = a.mixes.at(t);
    const float* more = a.more.p ? a.more.at(t) : (const float*)0;
    const Rows<const E> x = a.x.at(t);
    const E* g = a.g.at(t);
    float* d_mixes = a.d_mixes.at(t);
    float dot[M] = {};
    for (u32 c = thread_index() * V; c < a.channels; c += threads() * V) {
        float gv[V];
        load<WIDE>(g + c, gv, a.channels - c);
#pragma unroll(N != 0 && N <= 8 ? N : 2)
        for (u32 i = 0; i < n; ++i) {
            if constexpr (N != 0 && N <= 8) {
                float xv[V];
                load<WIDE>(x.at(i) + c, xv, a.channels - c);
#pragma unroll
                for (u32 k = 0; k < V; ++k) dot[i] = fused(xv[k], gv[k], dot[i]);
            }
            if (a.d_x.p) {
                float d[V];
#pragma unroll
                for (u32 k = 0; k < V; ++k) d[k] = h[i] * gv[k];
                store<WIDE>(a.d_x.at(t).at(i) + c, d, a.channels - c);
            }
        }
    }
    if constexpr (N != 0 && N <= 8) {
        const float sum = block_sums(dot, scratch);
        if (thread_index() < n) d_mixes[thread_index()] = more ? sum + more[thread_index()] : sum;
    } else {
        dots<V, WIDE>(
            n, 1, a.channels, [&](u32 i) { return x.at(i); }, [&](u32) { return g; },
            [&](u32 i, u32, float sum) { d_mixes[i] = more ? sum + more[i] : sum; });
    }
    for (u32 e = n + thread_index(); e < n * (n + 2); e += threads()) d_mixes[e] = more ? more[e] : 0.0f;
}

template <class E, u32 N, bool WIDE> DEVICE void aggregate_bwd(const AggregateBwd<E>& a) {
    const u32 n = streams<N>(a.n), V = Width<E>::V;
    SHARED float scratch[MAX_WAVES * 8];
    for (u64 t = block_x(); t < a.tokens; t += blocks_x()) {
        aggregate_bwd_token<E, N, V, WIDE>(a, t, n, scratch);
    }
}

#define MHC_KERNEL_aggregate_fwd(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 256, 4, AggregateFwd<E>, aggregate_fwd<E, N, true>)
#define MHC_KERNEL_aggregate_fwd_any(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 256, 4, AggregateFwd<E>, aggregate_fwd<E, N, false>)
#define MHC_KERNEL_aggregate_bwd(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 256, 2, AggregateBwd<E>, aggregate_bwd<E, N, true>)
#define MHC_KERNEL_aggregate_bwd_any(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 256, 2, AggregateBwd<E>, aggregate_bwd<E, N, false>)
