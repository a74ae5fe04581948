// post, post_bwd: mixing the streams and distributing the sub-layer's output (arXiv 2512.24880, eq. 3), and its gradient.
//
// Math      x_next_i = Σ_j H_res[i,j]·x_j + H_post[i]·y
//           d_x_j = Σ_i H_res[i,j]·g_i;  d_y = Σ_i H_post[i]·g_i;  d_H_res[i,j] = ⟨g_i, x_j⟩;  d_H_post[i] = ⟨g_i, y⟩,  g = d_x_next
// Operands  x, x_next, g [T, n, C], y [T, C] of type E; mixes [T, n(n+2)] f32.
// Mapping   forward: a block takes one token and a slice of its channels, a thread 16 bytes of each stream.
//           backward: a block takes one token. Up to 4 streams every element is loaded once, and the n(n+1) dot products are carried in
//           registers; for more, the waves share 4×4 tiles of them and the rows come from cache again.
// Traffic   forward (2n + 1)·C elements + 4n(n+1) bytes a token; backward (3n + 2)·C elements, (2n + 2)·C without d_x.
// Numerics  f32 sums in an order fixed by C alone; one rounding to E.
#include "mix.cuh"

template <class E> struct PostFwd {
    Streams<const E> x;
    Rows<const E> y;
    Rows<const float> mixes;
    Streams<E> x_next;
    u64 tokens;
    alignas(8) u32 n, channels, from_to;
};

// H_res as [to][from], and H_post as one more column: (n + 1) weights for each output stream.
template <u32 N> DEVICE void weights(u32 n, const float* mixes, u32 from_to, float* h, u32 first, u32 step) {
#pragma unroll(N != 0 && N <= 4 ? 1024 : 1)
    for (u32 e = first; e < n * (n + 1); e += step) {
        const u32 i = e / (n + 1), j = e % (n + 1);
        h[e] = j < n ? mixes[2 * n + mix_index(n, from_to, i, j)] : mixes[n + i];
    }
}

template <class E, u32 N, u32 V, bool WIDE> DEVICE void post_fwd_token(const PostFwd<E>& a, u64 t, u32 n, const float* h) {
    const u32 G = Group<N>::G;
    const Rows<const E> x = a.x.at(t);
    const Rows<E> x_next = a.x_next.at(t);
    for (u32 c = (block_y() * threads() + thread_index()) * V; c < a.channels; c += blocks_y() * threads() * V) {
        float y[V];
        load<WIDE>(a.y.at(t) + c, y, a.channels - c);
        for (u32 i = 0; i < n; i += G) {
            float acc[G][V];
#pragma unroll
            for (u32 g = 0; g < G; ++g) {
                const float w = h[smaller(i + g, n - 1) * (n + 1) + n];
#pragma unroll
                for (u32 k = 0; k < V; ++k) acc[g][k] = w * y[k];
            }
            mix<N, WIDE>(acc, n, i, h, n + 1, 1, x, c, a.channels - c);
#pragma unroll
            for (u32 g = 0; g < G; ++g) {
                if (i + g < n) store<WIDE>(x_next.at(i + g) + c, acc[g], a.channels - c);
            }
        }
    }
}

template <class E, u32 N, bool WIDE> DEVICE void post_fwd(const PostFwd<E>& a) {
    const u32 n = streams<N>(a.n), V = Width<E>::V;
    for (u64 t = block_x(); t < a.tokens; t += blocks_x()) {
        if constexpr (N != 0 && N <= 4) {
            float h[N * (N + 1)];
            weights<N>(N, a.mixes.at(t), a.from_to, h, 0, 1);
            post_fwd_token<E, N, V, WIDE>(a, t, n, h);
        } else {
            SHARED float h[32 * 33];
            weights<N>(n, a.mixes.at(t), a.from_to, h, thread_index(), threads());
            barrier();
            post_fwd_token<E, N, V, WIDE>(a, t, n, h);
            barrier();
        }
    }
}

// The upstream gradient is of type D: E, or f32 where it was computed on the way (post_pre_bwd).
template <class E, class D> struct PostBwd {
    Streams<const E> x;
    Rows<const E> y;
    Rows<const float> mixes;
    Streams<const D> g;
    Streams<E> d_x;
    Rows<E> d_y;
    Rows<float> d_mixes;
    u64 tokens;
    alignas(8) u32 n, channels, from_to;
};

// Up to 4 streams: everything in one run along the channels.
template <class E, class D, u32 N, u32 V, bool WIDE> DEVICE void post_bwd_few(const PostBwd<E, D>& a, u64 t, float* scratch) {
    const u32 M = N == 1 ? 2 : N == 2 ? 8 : N == 3 ? 16 : 32;
    float h[N * (N + 1)], dot[M];
    weights<N>(N, a.mixes.at(t), a.from_to, h, 0, 1);
#pragma unroll
    for (u32 k = 0; k < M; ++k) dot[k] = 0.0f;
    const Rows<const E> x = a.x.at(t);
    const Rows<const D> g = a.g.at(t);
    for (u32 c = thread_index() * V; c < a.channels; c += threads() * V) {
        Packed<E, V> px[N], py;
        float gv[N][V];
#pragma unroll
        for (u32 i = 0; i < N; ++i) px[i].template load<WIDE>(x.at(i) + c, a.channels - c);
        py.template load<WIDE>(a.y.at(t) + c, a.channels - c);
#pragma unroll
        for (u32 i = 0; i < N; ++i) load<WIDE>(g.at(i) + c, gv[i], a.channels - c);
#pragma unroll
        for (u32 j = 0; j <= N; ++j) {
            float v[V], d_x[V] = {};
            j < N ? px[j < N ? j : 0].get(v) : py.get(v);
#pragma unroll
            for (u32 i = 0; i < N; ++i) {
#pragma unroll
                for (u32 k = 0; k < V; ++k) {
                    dot[i * (N + 1) + j] = fused(gv[i][k], v[k], dot[i * (N + 1) + j]);
                    d_x[k] = fused(h[i * (N + 1) + j], gv[i][k], d_x[k]);
                }
            }
            if (j == N) {
                store<WIDE>(a.d_y.at(t) + c, d_x, a.channels - c);
            } else if (a.d_x.p) {
                store<WIDE>(a.d_x.at(t).at(j) + c, d_x, a.channels - c);
            }
        }
    }
    const float sum = block_sums(dot, scratch);
    float* d_mixes = a.d_mixes.at(t);
    if (thread_index() < N * (N + 1)) {
        const u32 i = thread_index() / (N + 1), j = thread_index() % (N + 1);
        d_mixes[j < N ? 2 * N + mix_index(N, a.from_to, i, j) : N + i] = sum;
    }
}

// More streams: `h` is shared memory with the weights.
template <class E, class D, u32 N, u32 V, bool WIDE> DEVICE void post_bwd_many(const PostBwd<E, D>& a, u64 t, u32 n, const float* h) {
    const u32 G = Group<N>::G;
    const Rows<const E> x = a.x.at(t);
    const Rows<const D> g = a.g.at(t);
    for (u32 c = thread_index() * V; c < a.channels; c += threads() * V) {
        float d_y[1][V] = {};
        mix<N, WIDE>(d_y, n, 0, h + n, 0, n + 1, g, c, a.channels - c);
        store<WIDE>(a.d_y.at(t) + c, d_y[0], a.channels - c);
        for (u32 j = 0; a.d_x.p && j < n; j += G) {
            float d_x[G][V] = {};
            mix<N, WIDE>(d_x, n, j, h, 1, n + 1, g, c, a.channels - c);
#pragma unroll
            for (u32 k = 0; k < G; ++k) {
                if (j + k < n) store<WIDE>(a.d_x.at(t).at(j + k) + c, d_x[k], a.channels - c);
            }
        }
    }
    float* d_mixes = a.d_mixes.at(t);
    const E* y = a.y.at(t);
    dots<V, WIDE>(
        n, n + 1, a.channels, [&](u32 i) { return g.at(i); }, [&](u32 j) { return j < n ? x.at(j) : y; },
        [&](u32 i, u32 j, float sum) { d_mixes[j < n ? 2 * n + mix_index(n, a.from_to, i, j) : n + i] = sum; });
}

template <class E, class D, u32 N, bool WIDE> DEVICE void post_bwd(const PostBwd<E, D>& a) {
    const u32 n = streams<N>(a.n), V = Width<E>::V;
    SHARED float shared[32 * 33];
    for (u64 t = block_x(); t < a.tokens; t += blocks_x()) {
        if (thread_index() < n) a.d_mixes.at(t)[thread_index()] = 0.0f;
        if constexpr (N != 0 && N <= 4) {
            post_bwd_few<E, D, N, V, WIDE>(a, t, shared);
        } else {
            weights<N>(n, a.mixes.at(t), a.from_to, shared, thread_index(), threads());
            barrier();
            post_bwd_many<E, D, N, V, WIDE>(a, t, n, shared);
            barrier();
        }
    }
}

#define MHC_KERNEL_post_fwd(NAME, E, N) MHC_ENTRY(NAME, 256, PostFwd<E>, post_fwd<E, N, true>)
#define MHC_KERNEL_post_fwd_any(NAME, E, N) MHC_ENTRY(NAME, 256, PostFwd<E>, post_fwd<E, N, false>)
template <class E> using PostBwdSame = PostBwd<E, E>;
template <class E> using PostBwdWide = PostBwd<E, float>;

#define MHC_KERNEL_post_bwd(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 256, 2, PostBwdSame<E>, post_bwd<E, E, N, true>)
#define MHC_KERNEL_post_bwd_any(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 256, 2, PostBwdSame<E>, post_bwd<E, E, N, false>)
#define MHC_KERNEL_post_bwd_f32(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 256, 2, PostBwdWide<E>, post_bwd<E, float, N, true>)
#define MHC_KERNEL_post_bwd_f32_any(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 256, 2, PostBwdWide<E>, post_bwd<E, float, N, false>)
