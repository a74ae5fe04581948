// recompute, recompute_bwd: the sub-layers' inputs and the residuals of L sub-layers from the first residual, and the gradient.
//
// Math      x_0 = x;  layer_inputs[l] = Σ_i H_pre[l,i]·x_l,i;  x_{l+1} = residuals[l] = H_res[l]·x_l + H_post[l]·y[l]ᵀ, rounded to E
//           backwards from l = L - 1, with g = carried + d_residuals[l]: d_y, d_H_post, d_H_res as in post_bwd, d_H_pre[i] =
//           ⟨d_layer_inputs[l], x_l,i⟩, carried = H_res[l]ᵀ·g + H_pre[l]·d_layer_inputs[l]ᵀ; d_x is what is carried in the end.
// Operands  x, d_x [T, n, C], y, layer_inputs [L, T, C], residuals [L, T, n, C] and their gradients of type E; mixes [L, T, n(n+2)] f32.
// Mapping   forward: a thread takes 16 bytes of each stream of a token through all layers; x_l comes back from the cache, where the same
//           thread has just left it. backward: a block takes a token; `carried` lies in scratch, twice, f32.
// Traffic   forward (n + L(n + 2))·C elements + 4Ln(n+2) bytes a token; backward ((2L + 1)n + 3L)·C elements and 16LnC bytes of scratch.
// Numerics  f32 sums in an order fixed by C alone; residuals are rounded between layers, as they are in a model.
#include "mix.cuh"

// [L, T, C] and [L, T, n, C].
template <class E> struct Layers {
    E* p;
    u64 layer, token;
    DEVICE_MEMBER E* at(u64 l, u64 t) const { return p + l * layer + t * token; }
};
template <class E> struct LayerStreams {
    E* p;
    u64 layer, token, stream;
    DEVICE_MEMBER Rows<E> at(u64 l, u64 t) const { return {p + l * layer + t * token, stream}; }
};

// Rows that are computed together: with what goes from layer to layer, more than 4 do not fit into registers.
template <u32 N> struct Together {
    static const u32 G = Group<N>::G < 4 ? Group<N>::G : 4;
};

template <class E> struct RecomputeFwd {
    Streams<const E> x;
    Layers<const float> mixes;
    Layers<const E> y;
    Layers<E> layer_inputs;
    LayerStreams<E> residuals;
    u64 tokens;
    alignas(8) u32 n, channels, layers, from_to;
};

template <class E, u32 N, u32 V, bool WIDE> DEVICE void recompute_token(const RecomputeFwd<E>& a, u64 t, u32 n) {
    const u32 G = Together<N>::G, step = blocks_y() * threads() * V;
    const u32 to = a.from_to ? 1 : n, from = a.from_to ? n : 1;
    for (u32 c = (block_y() * threads() + thread_index()) * V; c < a.channels; c += step) {
        Rows<const E> x = a.x.at(t);
        for (u32 l = 0; l < a.layers; ++l) {
            const float* mixes = a.mixes.at(l, t);
            float li[1][V] = {}, y[V];
            mix<N, WIDE>(li, n, 0, mixes, 0, 1, x, c, a.channels - c);
            store<WIDE>(a.layer_inputs.at(l, t) + c, li[0], a.channels - c);
            load<WIDE>(a.y.at(l, t) + c, y, a.channels - c);
            const Rows<E> next = a.residuals.at(l, t);
            for (u32 i = 0; i < n; i += G) {
                float acc[G][V];
#pragma unroll
                for (u32 g = 0; g < G; ++g) {
                    const float p = mixes[n + smaller(i + g, n - 1)];
#pragma unroll
                    for (u32 k = 0; k < V; ++k) acc[g][k] = p * y[k];
                }
                mix<N, WIDE>(acc, n, i, mixes + 2 * n, to, from, x, c, a.channels - c);
#pragma unroll
                for (u32 g = 0; g < G; ++g) {
                    if (i + g < n) store<WIDE>(next.at(i + g) + c, acc[g], a.channels - c);
                }
            }
            x = {next.p, next.step};
        }
    }
}

template <class E, u32 N, bool WIDE> DEVICE void recompute_fwd(const RecomputeFwd<E>& a) {
    const u32 n = streams<N>(a.n), V = Width<E>::V;
    for (u64 t = block_x(); t < a.tokens; t += blocks_x()) {
        recompute_token<E, N, V, WIDE>(a, t, n);
    }
}

template <class E> struct RecomputeBwd {
    Streams<const E> x;
    Layers<const float> mixes;
    Layers<const E> y;
    LayerStreams<const E> residuals;
    Layers<const E> d_layer_inputs;
    LayerStreams<const E> d_residuals;
    Streams<E> d_x;
    Layers<float> d_mixes;
    Layers<E> d_y;
    // [blocks, 2, n, C]: g, and what is carried.
    float* carried;
    u64 tokens;
    alignas(8) u32 n, channels, layers, from_to;
};

template <class E, u32 N, u32 V, bool WIDE> DEVICE void recompute_bwd_token(const RecomputeBwd<E>& a, u64 t, u32 n) {
    const u32 G = Together<N>::G, to = a.from_to ? 1 : n, from = a.from_to ? n : 1, C = a.channels;
    float* scratch = a.carried + (u64)block_x() * 2 * n * C;
    const Rows<float> g = {scratch, C}, carried = {scratch + (u64)n * C, C};
    const Rows<const float> g_read = {g.p, g.step};
    for (u32 l = a.layers; l-- > 0;) {
        const float* mixes = a.mixes.at(l, t);
        const E *d_li = a.d_layer_inputs.at(l, t), *y = a.y.at(l, t);
        Rows<const E> x = a.x.at(t);
        if (l > 0) x = a.residuals.at(l - 1, t);
        for (u32 c = thread_index() * V; c < C; c += threads() * V) {
            for (u32 i = 0; i < n; ++i) {
                float d[V], v[V];
                load<WIDE>(a.d_residuals.at(l, t).at(i) + c, d, a.channels - c);
                if (l + 1 < a.layers) {
                    load<WIDE>(carried.at(i) + c, v, a.channels - c);
#pragma unroll
                    for (u32 k = 0; k < V; ++k) d[k] += v[k];
                }
                store<WIDE>(g.at(i) + c, d, a.channels - c);
            }
        }
        barrier();
        float* d_mixes = a.d_mixes.at(l, t);
        dots<V, WIDE>(
            n, n + 1, C, [&](u32 i) { return g_read.at(i); }, [&](u32 j) { return j < n ? x.at(j) : y; },
            [&](u32 i, u32 j, float sum) { d_mixes[j < n ? 2 * n + mix_index(n, a.from_to, i, j) : n + i] = sum; });
        dots<V, WIDE>(
            n, 1, C, [&](u32 i) { return x.at(i); }, [&](u32) { return d_li; },
            [&](u32 i, u32, float sum) { d_mixes[i] = sum; });
        for (u32 c = thread_index() * V; c < C; c += threads() * V) {
            float d_y[1][V] = {};
            mix<N, WIDE>(d_y, n, 0, mixes + n, 0, 1, g_read, c, a.channels - c);
            store<WIDE>(a.d_y.at(l, t) + c, d_y[0], a.channels - c);
        }
        // By itself: NVRTC splits wide loads between which it sees a store, each time in another way.
        for (u32 c = thread_index() * V; c < C; c += threads() * V) {
            float d[V];
            load<WIDE>(d_li + c, d, a.channels - c);
            for (u32 j = 0; j < n; j += G) {
                float acc[G][V];
#pragma unroll
                for (u32 k = 0; k < G; ++k) {
                    const float p = mixes[smaller(j + k, n - 1)];
#pragma unroll
                    for (u32 v = 0; v < V; ++v) acc[k][v] = p * d[v];
                }
                mix<N, WIDE>(acc, n, j, mixes + 2 * n, from, to, g_read, c, a.channels - c);
#pragma unroll
                for (u32 k = 0; k < G; ++k) {
                    if (j + k >= n) continue;
                    if (l > 0) store<WIDE>(carried.at(j + k) + c, acc[k], a.channels - c);
                    else store<WIDE>(a.d_x.at(t).at(j + k) + c, acc[k], a.channels - c);
                }
            }
        }
        barrier();
    }
}

template <class E, u32 N, bool WIDE> DEVICE void recompute_bwd(const RecomputeBwd<E>& a) {
    const u32 n = streams<N>(a.n), V = Width<E>::V;
    for (u64 t = block_x(); t < a.tokens; t += blocks_x()) {
        recompute_bwd_token<E, N, V, WIDE>(a, t, n);
    }
}

#define MHC_KERNEL_recompute_fwd(NAME, E, N) MHC_ENTRY(NAME, 256, RecomputeFwd<E>, recompute_fwd<E, N, true>)
#define MHC_KERNEL_recompute_fwd_any(NAME, E, N) MHC_ENTRY(NAME, 256, RecomputeFwd<E>, recompute_fwd<E, N, false>)
#define MHC_KERNEL_recompute_bwd(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 256, (N) ? 2 : 1, RecomputeBwd<E>, recompute_bwd<E, N, true>)
#define MHC_KERNEL_recompute_bwd_any(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 256, (N) ? 2 : 1, RecomputeBwd<E>, recompute_bwd<E, N, false>)
