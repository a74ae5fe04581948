// pre_norm, pre_norm_bwd: the RMSNorm of the aggregate in `pre`, and its gradient. The rest of `pre` is made of the kernels of
// project, coefficients and aggregate.
//
// Math      li = Σ_i H_pre[i]·x_i;  r = (mean li² + ε)^(-1/2);  layer_input = w ⊙ li·r
//           d_li = r·(w ⊙ g) - li·r³·⟨w ⊙ g, li⟩/C;  d_w = Σ_t g ⊙ li·r;  d_H_pre[i] = ⟨d_li, x_i⟩,  g = d_layer_input
// Operands  x [T, n, C], layer_input, g [T, C] of type E; mixes [T, n(n+2)], w [C], d_li [T, C] f32.
// Mapping   a block takes one token, in backward those of one of a number of ranges that depends on T alone; li is computed anew in each
//           pass from rows that lie in the cache.
// Traffic   forward (n + 1)·C elements a token; backward (n + 1)·C elements + 4C bytes.
// Numerics  li stays f32; f32 sums in an order fixed by C, and over tokens by T, alone.
#include "mix.cuh"

template <class E> struct PreNorm {
    Streams<const E> x;
    const float* w;
    Rows<const float> mixes;
    Rows<E> layer_input;
    float* inv_rms;
    u64 tokens;
    alignas(8) u32 n, channels;
    alignas(8) float eps;
};

template <class E, u32 N, u32 V, bool WIDE> DEVICE void pre_norm_token(const PreNorm<E>& a, u64 t, u32 n, float* scratch) {
    const Rows<const E> x = a.x.at(t);
    const float* pre = a.mixes.at(t);
    float square = 0.0f;
    for (u32 c = thread_index() * V; c < a.channels; c += threads() * V) {
        float li[1][V] = {};
        mix<N, WIDE>(li, n, 0, pre, 0, 1, x, c, a.channels - c);
#pragma unroll
        for (u32 k = 0; k < V; ++k) square = fused(li[0][k], li[0][k], square);
    }
    const float r = 1.0f / square_root(block_sum(square, scratch) / (float)a.channels + a.eps);
    for (u32 c = thread_index() * V; c < a.channels; c += threads() * V) {
        float li[1][V] = {}, w[V];
        mix<N, WIDE>(li, n, 0, pre, 0, 1, x, c, a.channels - c);
        load<WIDE>(a.w + c, w, a.channels - c);
#pragma unroll
        for (u32 k = 0; k < V; ++k) li[0][k] = li[0][k] * r * w[k];
        store<WIDE>(a.layer_input.at(t) + c, li[0], a.channels - c);
    }
    if (a.inv_rms && thread_index() == 0) a.inv_rms[t] = r;
}

template <class E, u32 N, bool WIDE> DEVICE void pre_norm(const PreNorm<E>& a) {
    SHARED float scratch[MAX_WAVES];
    const u32 n = streams<N>(a.n), V = Width<E>::V;
    // The last tokens first: where a projection went before, they are what the cache still has.
    for (u64 b = block_x(); b < a.tokens; b += blocks_x()) {
        const u64 t = a.tokens - 1 - b;
        pre_norm_token<E, N, V, WIDE>(a, t, n, scratch);
    }
}

template <class E> struct PreNormBwd {
    Streams<const E> x;
    const float* w;
    Rows<const float> mixes;
    const float* inv_rms;
    Rows<const E> g;
    Rows<const float> more;
    Rows<float> d_mixes;
    Rows<float> d_li;
    // [blocks, C]
    float* d_w;
    u64 tokens;
    alignas(8) u32 n, channels;
};

template <class E, u32 N, u32 V, bool WIDE>
DEVICE void pre_norm_bwd_token(const PreNormBwd<E>& a, u64 t, u32 n, float* scratch, float* d_w) {
    const Rows<const E> x = a.x.at(t);
    const E* g = a.g.at(t);
    const float *pre = a.mixes.at(t), r = a.inv_rms[t];
    float* d_li = a.d_li.at(t);
    float along = 0.0f;
    for (u32 c = thread_index() * V; c < a.channels; c += threads() * V) {
        float li[1][V] = {}, w[V], gv[V];
        mix<N, WIDE>(li, n, 0, pre, 0, 1, x, c, a.channels - c);
        load<WIDE>(a.w + c, w, a.channels - c);
        load<WIDE>(g + c, gv, a.channels - c);
#pragma unroll
        for (u32 k = 0; k < V; ++k) along = fused(w[k] * gv[k], li[0][k], along);
    }
    const float pull = r * r * r * block_sum(along, scratch) / (float)a.channels;
    for (u32 c = thread_index() * V; c < a.channels; c += threads() * V) {
        float li[1][V] = {}, w[V], gv[V], d[V];
        mix<N, WIDE>(li, n, 0, pre, 0, 1, x, c, a.channels - c);
        load<WIDE>(a.w + c, w, a.channels - c);
        load<WIDE>(g + c, gv, a.channels - c);
#pragma unroll
        for (u32 k = 0; k < V; ++k) {
            d[k] = r * w[k] * gv[k] - pull * li[0][k];
            if (WIDE || c + k < a.channels) d_w[c + k] = fused(gv[k] * r, li[0][k], d_w[c + k]);
        }
        store<WIDE>(d_li + c, d, a.channels - c);
    }
    barrier();
    float* d_mixes = a.d_mixes.at(t);
    const float* more = a.more.at(t);
    dots<V, WIDE>(
        n, 1, a.channels, [&](u32 i) { return x.at(i); }, [&](u32) { return (const float*)d_li; },
        [&](u32 i, u32, float sum) { d_mixes[i] = sum + more[i]; });
    for (u32 e = n + thread_index(); e < n * (n + 2); e += threads()) d_mixes[e] = more[e];
}

template <class E, u32 N, bool WIDE> DEVICE void pre_norm_bwd(const PreNormBwd<E>& a) {
    SHARED float scratch[MAX_WAVES];
    const u32 n = streams<N>(a.n), V = Width<E>::V;
    float* d_w = a.d_w + (u64)block_x() * a.channels;
    for (u32 c = thread_index() * V; c < a.channels; c += threads() * V) {
        for (u32 k = 0; k < V && c + k < a.channels; ++k) d_w[c + k] = 0.0f;
    }
    const u64 range = (a.tokens + blocks_x() - 1) / blocks_x(), first = block_x() * range;
    const u64 last = first + range < a.tokens ? first + range : a.tokens;
    for (u64 t = first; t < last; ++t) {
        pre_norm_bwd_token<E, N, V, WIDE>(a, t, n, scratch, d_w);
    }
}

#define MHC_KERNEL_pre_norm(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 512, 2, PreNorm<E>, pre_norm<E, N, true>)
#define MHC_KERNEL_pre_norm_any(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 512, 2, PreNorm<E>, pre_norm<E, N, false>)
#define MHC_KERNEL_pre_norm_bwd(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 512, 1, PreNormBwd<E>, pre_norm_bwd<E, N, true>)
#define MHC_KERNEL_pre_norm_bwd_any(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 512, 1, PreNormBwd<E>, pre_norm_bwd<E, N, false>)
