// layer_fwd, layer_bwd: a whole layer with RMSNorm as its sub-layer, of static_layer (one set of coefficients for all tokens) and of
// dynamic_layer (a set for each).
//
// Math      li = Σ_i H_pre[i]·x_i;  r = (mean li² + ε)^(-1/2);  y = w ⊙ li·r;  out_i = Σ_j H_res[i,j]·x_j + H_post[i]·y
//           d_y = Σ_i H_post[i]·g_i;  d_w = Σ_t d_y ⊙ li·r;  d_li = r·(w ⊙ d_y) - li·r³·⟨w ⊙ d_y, li⟩/C
//           d_x_j = Σ_i H_res[i,j]·g_i + H_pre[j]·d_li
//           d_H_post[i] = r·⟨g_i, w ⊙ li⟩;  d_H_res[i,j] = ⟨g_i, x_j⟩;  d_H_pre[i] = r·⟨w ⊙ d_y, x_i⟩ - r³·⟨w ⊙ d_y, li⟩/C·⟨li, x_i⟩
// Operands  x, out, g, d_x [T, n, C] of type E; w [C], mixes [T, n(n+2)] f32, whose tokens may all be one (a stride of 0).
// Mapping   a block takes one token. Up to 4 streams a thread keeps its first vectors of each row in registers, so that rows of up to
//           threads·vectors come from memory once; beyond that they come from cache again. backward: a block goes through one of a
//           number of ranges of tokens that depends on T alone; all sums that r multiplies are taken before r is known, so that one
//           pass over x and g finds every dot product, and a second writes d_x.
// Traffic   forward 2nC elements a token; backward 3nC, and 8C bytes of d_w within the cache.
// Numerics  f32 sums in an order fixed by C, and over tokens by T, alone; li and y stay f32.
#include "mix.cuh"

// Vectors of each row that a thread keeps.
template <u32 N> struct Kept {
    static const u32 COUNT = N == 0 || N > 4 ? 0 : N <= 2 ? 4 : 2;
};

// Output rows that are computed together where there are many: 512 threads leave 128 registers to each.
static const u32 ROWS = 4;

// H_res as [to][from], and H_post as one more column, then H_pre: all coefficients of a token, in shared memory.
template <u32 N> DEVICE void layer_weights(u32 n, const float* mixes, u32 from_to, float* h) {
    for (u32 e = thread_index(); e < n * (n + 2); e += threads()) {
        const u32 i = e / (n + 1), j = e % (n + 1);
        h[e] = e >= n * (n + 1) ? mixes[e - n * (n + 1)]
               : j < n          ? mixes[2 * n + mix_index(n, from_to, i, j)]
                                : mixes[n + i];
    }
    barrier();
}

template <class E> struct LayerFwd {
    Streams<const E> x;
    const float* w;
    Rows<const float> mixes;
    Streams<E> out;
    u64 tokens;
    alignas(8) u32 n, channels, from_to;
    alignas(8) float eps;
};

// The vectors of the n rows at channel c: kept ones, or from memory.
template <class E, u32 N, u32 V> struct Column {
    Packed<E, V> row[N == 0 || N > 4 ? 1 : N];
    template <bool WIDE> DEVICE_MEMBER void load(Rows<const E> x, u32 c, u32 left) {
#pragma unroll
        for (u32 j = 0; j < N; ++j) row[j].template load<WIDE>(x.at(j) + c, left);
    }
};

// Calls f(column, c) for this thread's channels, with columns that are kept or loaded on the way.
template <bool WIDE, u32 V, class E, u32 N, u32 KEEP, class F>
DEVICE void columns(const Column<E, N, V> (&kept)[KEEP], Rows<const E> x, u32 channels, F f) {
    u32 c = thread_index() * V;
#pragma unroll
    for (u32 k = 0; k < KEEP; ++k, c += threads() * V) {
        if (c < channels) f(kept[k], c);
    }
    for (; c < channels; c += threads() * V) {
        Column<E, N, V> column;
        column.template load<WIDE>(x, c, channels - c);
        f(column, c);
    }
}

template <class E, u32 N, u32 V> DEVICE void aggregate_of(const Column<E, N, V>& column, const float* pre, float (&li)[V]) {
#pragma unroll
    for (u32 k = 0; k < V; ++k) li[k] = 0.0f;
#pragma unroll
    for (u32 j = 0; j < N; ++j) {
        float v[V];
        column.row[j].get(v);
#pragma unroll
        for (u32 k = 0; k < V; ++k) li[k] = fused(pre[j], v[k], li[k]);
    }
}

template <class E, u32 N, u32 V, bool WIDE> DEVICE void layer_fwd_few(const LayerFwd<E>& a, u64 t, const float* h, float* scratch) {
    const u32 KEEP = Kept<N>::COUNT;
    const Rows<const E> x = a.x.at(t);
    const Rows<E> out = a.out.at(t);
    const float* pre = h + N * (N + 1);
    Column<E, N, V> kept[KEEP];
#pragma unroll
    for (u32 k = 0; k < KEEP; ++k) {
        const u32 c = (thread_index() + k * threads()) * V;
        if (c < a.channels) kept[k].template load<WIDE>(x, c, a.channels - c);
    }
    float square = 0.0f;
    columns<WIDE>(kept, x, a.channels, [&](const Column<E, N, V>& column, u32) {
        float li[V];
        aggregate_of(column, pre, li);
#pragma unroll
        for (u32 k = 0; k < V; ++k) square = fused(li[k], li[k], square);
    });
    const float r = 1.0f / square_root(block_sum(square, scratch) / (float)a.channels + a.eps);
    columns<WIDE>(kept, x, a.channels, [&](const Column<E, N, V>& column, u32 c) {
        float y[V], w[V];
        aggregate_of(column, pre, y);
        load<WIDE>(a.w + c, w, a.channels - c);
#pragma unroll
        for (u32 k = 0; k < V; ++k) y[k] = y[k] * r * w[k];
#pragma unroll
        for (u32 i = 0; i < N; ++i) {
            float acc[V];
#pragma unroll
            for (u32 k = 0; k < V; ++k) acc[k] = h[i * (N + 1) + N] * y[k];
#pragma unroll
            for (u32 j = 0; j < N; ++j) {
                float v[V];
                column.row[j].get(v);
#pragma unroll
                for (u32 k = 0; k < V; ++k) acc[k] = fused(h[i * (N + 1) + j], v[k], acc[k]);
            }
            store<WIDE>(out.at(i) + c, acc, a.channels - c);
        }
    });
}

template <class E, u32 N, u32 V, bool WIDE>
DEVICE void layer_fwd_many(const LayerFwd<E>& a, u64 t, u32 n, const float* h, float* scratch) {
    const u32 G = ROWS;
    const Rows<const E> x = a.x.at(t);
    const Rows<E> out = a.out.at(t);
    const float* pre = h + n * (n + 1);
    float square = 0.0f;
    for (u32 c = thread_index() * V; c < a.channels; c += threads() * V) {
        float li[1][V] = {};
        mix<N, WIDE>(li, n, 0, pre, 0, 1, x, c, a.channels - c);
#pragma unroll
        for (u32 k = 0; k < V; ++k) square = fused(li[0][k], li[0][k], square);
    }
    const float r = 1.0f / square_root(block_sum(square, scratch) / (float)a.channels + a.eps);
    for (u32 c = thread_index() * V; c < a.channels; c += threads() * V) {
        float y[1][V] = {}, w[V];
        mix<N, WIDE>(y, n, 0, pre, 0, 1, x, c, a.channels - c);
        load<WIDE>(a.w + c, w, a.channels - c);
#pragma unroll
        for (u32 k = 0; k < V; ++k) y[0][k] = y[0][k] * r * w[k];
        for (u32 i = 0; i < n; i += G) {
            float acc[G][V];
#pragma unroll
            for (u32 g = 0; g < G; ++g) {
                const float p = h[smaller(i + g, n - 1) * (n + 1) + n];
#pragma unroll
                for (u32 k = 0; k < V; ++k) acc[g][k] = p * y[0][k];
            }
            mix<N, WIDE>(acc, n, i, h, n + 1, 1, x, c, a.channels - c);
#pragma unroll
            for (u32 g = 0; g < G; ++g) {
                if (i + g < n) store<WIDE>(out.at(i + g) + c, acc[g], a.channels - c);
            }
        }
    }
}

template <class E, u32 N, bool WIDE> DEVICE void layer_fwd(const LayerFwd<E>& a) {
    SHARED float h[32 * 34];
    SHARED float scratch[MAX_WAVES];
    const u32 n = streams<N>(a.n), V = Width<E>::V;
    // The last tokens first: where a projection went before, they are what the cache still has.
    for (u64 b = block_x(); b < a.tokens; b += blocks_x()) {
        const u64 t = a.tokens - 1 - b;
        layer_weights<N>(n, a.mixes.at(t), a.from_to, h);
        if constexpr (Kept<N>::COUNT > 0) {
            layer_fwd_few<E, N, V, WIDE>(a, t, h, scratch);
        } else {
            layer_fwd_many<E, N, V, WIDE>(a, t, n, h, scratch);
        }
        barrier();
    }
}

template <class E> struct LayerBwd {
    Streams<const E> x;
    const float* w;
    Rows<const float> mixes;
    Streams<const E> g;
    // One of the two: d_x, or, where the projection's part of d_x is still to come, d_li [T, C] for it to go on from.
    Streams<E> d_x;
    Rows<float> d_li;
    // [T, n(n+2)] of every token, or [blocks, n(n+2)] of a range of tokens.
    Rows<float> d_mixes;
    // [blocks, C]
    float* d_w;
    u64 tokens;
    alignas(8) u32 n, channels, from_to, by_token;
    alignas(8) float eps;
};

// Sums that a token needs besides the products of g and x: of li², of w·d_y·li; then for each stream of w·d_y·x_i, li·x_i, g_i·w·li.
template <u32 N> struct Sums {
    static const u32 PAIRS = N * N, COUNT = N * N + 3 * N + 2;
    static const u32 PADDED = COUNT <= 8 ? 8 : COUNT <= 16 ? 16 : 32;
};

template <class E, u32 N, u32 V, bool WIDE>
DEVICE void layer_bwd_few(const LayerBwd<E>& a, u64 t, const float* h, float* scratch, float* sums, float* d_w) {
    const u32 P = Sums<N>::PAIRS;
    const Rows<const E> x = a.x.at(t), g = a.g.at(t);
    const float* pre = h + N * (N + 1);
    float s[Sums<N>::PADDED];
#pragma unroll
    for (u32 k = 0; k < Sums<N>::PADDED; ++k) s[k] = 0.0f;
    Column<E, N, V> xs, gs;
    const auto d_y_of = [&](float(&d_y)[V]) {
#pragma unroll
        for (u32 k = 0; k < V; ++k) d_y[k] = 0.0f;
#pragma unroll
        for (u32 i = 0; i < N; ++i) {
            float v[V];
            gs.row[i].get(v);
#pragma unroll
            for (u32 k = 0; k < V; ++k) d_y[k] = fused(h[i * (N + 1) + N], v[k], d_y[k]);
        }
    };
    for (u32 c = thread_index() * V; c < a.channels; c += threads() * V) {
        float li[V], d_y[V], w[V];
        xs.template load<WIDE>(x, c, a.channels - c);
        gs.template load<WIDE>(g, c, a.channels - c);
        load<WIDE>(a.w + c, w, a.channels - c);
        aggregate_of(xs, pre, li);
        d_y_of(d_y);
#pragma unroll
        for (u32 k = 0; k < V; ++k) {
            const float wd = w[k] * d_y[k];
            s[P] = fused(li[k], li[k], s[P]);
            s[P + 1] = fused(wd, li[k], s[P + 1]);
        }
#pragma unroll
        for (u32 i = 0; i < N; ++i) {
            float gv[V], xv[V];
            gs.row[i].get(gv);
            xs.row[i].get(xv);
#pragma unroll
            for (u32 k = 0; k < V; ++k) {
                s[P + 2 + i] = fused(w[k] * d_y[k], xv[k], s[P + 2 + i]);
                s[P + 2 + N + i] = fused(li[k], xv[k], s[P + 2 + N + i]);
                s[P + 2 + 2 * N + i] = fused(gv[k], w[k] * li[k], s[P + 2 + 2 * N + i]);
            }
#pragma unroll
            for (u32 j = 0; j < N; ++j) {
                float v[V];
                xs.row[j].get(v);
#pragma unroll
                for (u32 k = 0; k < V; ++k) s[i * N + j] = fused(gv[k], v[k], s[i * N + j]);
            }
        }
    }
    const float sum = block_sums(s, scratch);
    if (thread_index() < Sums<N>::COUNT) sums[thread_index()] = sum;
    barrier();
    const float r = 1.0f / square_root(sums[P] / (float)a.channels + a.eps);
    const float pull = r * r * r * sums[P + 1] / (float)a.channels;
    for (u32 c = thread_index() * V; c < a.channels; c += threads() * V) {
        float d_li[V], d_y[V], w[V];
        // The last column is still in registers: for rows of one vector a thread nothing is loaded again.
        if (threads() * V < a.channels) {
            xs.template load<WIDE>(x, c, a.channels - c);
            gs.template load<WIDE>(g, c, a.channels - c);
        }
        load<WIDE>(a.w + c, w, a.channels - c);
        aggregate_of(xs, pre, d_li);
        d_y_of(d_y);
#pragma unroll
        for (u32 k = 0; k < V; ++k) {
            if (WIDE || c + k < a.channels) d_w[c + k] = fused(d_y[k] * r, d_li[k], d_w[c + k]);
            d_li[k] = r * w[k] * d_y[k] - pull * d_li[k];
        }
        if (a.d_li.p) store<WIDE>(a.d_li.at(t) + c, d_li, a.channels - c);
        if (!a.d_x.p) continue;
#pragma unroll
        for (u32 j = 0; j < N; ++j) {
            float d[V];
#pragma unroll
            for (u32 k = 0; k < V; ++k) d[k] = pre[j] * d_li[k];
#pragma unroll
            for (u32 i = 0; i < N; ++i) {
                float v[V];
                gs.row[i].get(v);
#pragma unroll
                for (u32 k = 0; k < V; ++k) d[k] = fused(h[i * (N + 1) + j], v[k], d[k]);
            }
            store<WIDE>(a.d_x.at(t).at(j) + c, d, a.channels - c);
        }
    }
}

// More streams: li and d_y are computed anew wherever they are wanted, from rows that lie in the cache.
template <class E, u32 N, u32 V, bool WIDE>
DEVICE void layer_bwd_many(
    const LayerBwd<E>& a, u64 t, u32 n, const float* h, float* scratch, float* sums, float* d_w) {
    const u32 G = ROWS, P = n * n;
    const Rows<const E> x = a.x.at(t), g = a.g.at(t);
    const float* pre = h + n * (n + 1);
    float square = 0.0f, along = 0.0f;
    for (u32 c = thread_index() * V; c < a.channels; c += threads() * V) {
        float li[1][V] = {}, d_y[1][V] = {}, w[V];
        mix<N, WIDE>(li, n, 0, pre, 0, 1, x, c, a.channels - c);
        mix<N, WIDE>(d_y, n, 0, h + n, 0, n + 1, g, c, a.channels - c);
        load<WIDE>(a.w + c, w, a.channels - c);
#pragma unroll
        for (u32 k = 0; k < V; ++k) {
            square = fused(li[0][k], li[0][k], square);
            along = fused(w[k] * d_y[0][k], li[0][k], along);
        }
    }
    square = block_sum(square, scratch);
    along = block_sum(along, scratch);
    const float r = 1.0f / square_root(square / (float)a.channels + a.eps);
    const float pull = r * r * r * along / (float)a.channels;
    dots<V, WIDE>(
        n, n, a.channels, [&](u32 i) { return g.at(i); }, [&](u32 j) { return x.at(j); },
        [&](u32 i, u32 j, float sum) { sums[i * n + j] = sum; });
    for (u32 i = wave_index(); i < n; i += waves()) {
        float with_d = 0.0f, with_li = 0.0f, with_g = 0.0f;
        for (u32 c = lane_index() * V; c < a.channels; c += MHC_WAVE * V) {
            float li[1][V] = {}, d_y[1][V] = {}, w[V], xv[V], gv[V];
            mix<N, WIDE>(li, n, 0, pre, 0, 1, x, c, a.channels - c);
            mix<N, WIDE>(d_y, n, 0, h + n, 0, n + 1, g, c, a.channels - c);
            load<WIDE>(a.w + c, w, a.channels - c);
            load<WIDE>(x.at(i) + c, xv, a.channels - c);
            load<WIDE>(g.at(i) + c, gv, a.channels - c);
#pragma unroll
            for (u32 k = 0; k < V; ++k) {
                with_d = fused(w[k] * d_y[0][k], xv[k], with_d);
                with_li = fused(li[0][k], xv[k], with_li);
                with_g = fused(gv[k], w[k] * li[0][k], with_g);
            }
        }
        with_d = wave_sum(with_d);
        with_li = wave_sum(with_li);
        with_g = wave_sum(with_g);
        if (lane_index() == 0) {
            sums[P + 2 + i] = with_d;
            sums[P + 2 + n + i] = with_li;
            sums[P + 2 + 2 * n + i] = with_g;
        }
    }
    if (thread_index() == 0) {
        sums[P] = square;
        sums[P + 1] = along;
    }
    for (u32 c = thread_index() * V; c < a.channels; c += threads() * V) {
        float d_li[1][V] = {}, d_y[1][V] = {}, w[V];
        mix<N, WIDE>(d_li, n, 0, pre, 0, 1, x, c, a.channels - c);
        mix<N, WIDE>(d_y, n, 0, h + n, 0, n + 1, g, c, a.channels - c);
        load<WIDE>(a.w + c, w, a.channels - c);
#pragma unroll
        for (u32 k = 0; k < V; ++k) {
            if (WIDE || c + k < a.channels) d_w[c + k] = fused(d_y[0][k] * r, d_li[0][k], d_w[c + k]);
            d_li[0][k] = r * w[k] * d_y[0][k] - pull * d_li[0][k];
        }
        if (a.d_li.p) store<WIDE>(a.d_li.at(t) + c, d_li[0], a.channels - c);
        for (u32 j = 0; a.d_x.p && j < n; j += G) {
            float d[G][V];
#pragma unroll
            for (u32 k = 0; k < G; ++k) {
#pragma unroll
                for (u32 v = 0; v < V; ++v) d[k][v] = pre[smaller(j + k, n - 1)] * d_li[0][v];
            }
            mix<N, WIDE>(d, n, j, h, 1, n + 1, g, c, a.channels - c);
#pragma unroll
            for (u32 k = 0; k < G; ++k) {
                if (j + k < n) store<WIDE>(a.d_x.at(t).at(j + k) + c, d[k], a.channels - c);
            }
        }
    }
    barrier();
}

template <class E, u32 N, bool WIDE> DEVICE void layer_bwd(const LayerBwd<E>& a) {
    SHARED float h[32 * 34];
    SHARED float sums[32 * 32 + 3 * 32 + 2];
    SHARED float scratch[MAX_WAVES * 32];
    const u32 n = streams<N>(a.n), V = Width<E>::V, mix = n * (n + 2), P = n * n;
    float* d_w = a.d_w + (u64)block_x() * a.channels;
    for (u32 c = thread_index() * V; c < a.channels; c += threads() * V) {
        for (u32 k = 0; k < V && c + k < a.channels; ++k) d_w[c + k] = 0.0f;
    }
    const u64 range = (a.tokens + blocks_x() - 1) / blocks_x(), first = block_x() * range;
    const u64 last = first + range < a.tokens ? first + range : a.tokens;
    for (u64 t = first; t < last; ++t) {
        layer_weights<N>(n, a.mixes.at(t), a.from_to, h);
        if constexpr (N != 0 && N <= 4) {
            layer_bwd_few<E, N, V, WIDE>(a, t, h, scratch, sums, d_w);
        } else {
            layer_bwd_many<E, N, V, WIDE>(a, t, n, h, scratch, sums, d_w);
        }
        const float r = 1.0f / square_root(sums[P] / (float)a.channels + a.eps);
        const float pull = r * r * r * sums[P + 1] / (float)a.channels;
        float* out = a.d_mixes.at(a.by_token ? t : block_x());
        for (u32 e = thread_index(); e < mix; e += threads()) {
            float v;
            if (e < n) {
                v = r * sums[P + 2 + e] - pull * sums[P + 2 + n + e];
            } else if (e < 2 * n) {
                v = r * sums[P + 2 + n + e];
            } else {
                const u32 i = (e - 2 * n) / n, j = (e - 2 * n) % n;
                v = a.from_to ? sums[j * n + i] : sums[i * n + j];
            }
            out[e] = a.by_token || t == first ? v : out[e] + v;
        }
        barrier();
    }
    if (!a.by_token && first >= last) {
        for (u32 e = thread_index(); e < mix; e += threads()) a.d_mixes.at(block_x())[e] = 0.0f;
    }
}

// z [n(n+2)] from the three parameters of static_layer, and back.
struct StaticPack {
    const float* h_pre;
    const float* h_post;
    Rows<const float> h_res;
    float* z;
    alignas(8) u32 n;
};

DEVICE void static_pack(const StaticPack& a) {
    const u32 n = a.n;
    for (u32 e = thread_index(); e < n * (n + 2); e += threads()) {
        a.z[e] = e < n ? a.h_pre[e] : e < 2 * n ? a.h_post[e - n] : a.h_res.at((e - 2 * n) / n)[(e - 2 * n) % n];
    }
    for (u32 e = thread_index(); e < n * (n + 2) + 3; e += threads()) a.z[n * (n + 2) + e] = e < 3 ? 1.0f : 0.0f;
}

struct StaticUnpack {
    const float* d_z;
    float* d_h_pre;
    float* d_h_post;
    Rows<float> d_h_res;
    alignas(8) u32 n;
};

DEVICE void static_unpack(const StaticUnpack& a) {
    const u32 n = a.n;
    for (u32 e = thread_index(); e < n * (n + 2); e += threads()) {
        float* out = e < n ? a.d_h_pre + e : e < 2 * n ? a.d_h_post + e - n : a.d_h_res.at((e - 2 * n) / n) + (e - 2 * n) % n;
        *out = a.d_z[e];
    }
}

#define MHC_KERNEL_layer_fwd(NAME, E, N) MHC_ENTRY(NAME, 512, LayerFwd<E>, layer_fwd<E, N, true>)
#define MHC_KERNEL_layer_fwd_any(NAME, E, N) MHC_ENTRY(NAME, 512, LayerFwd<E>, layer_fwd<E, N, false>)
#define MHC_KERNEL_layer_bwd(NAME, E, N) MHC_ENTRY(NAME, 512, LayerBwd<E>, layer_bwd<E, N, true>)
#define MHC_KERNEL_layer_bwd_any(NAME, E, N) MHC_ENTRY(NAME, 512, LayerBwd<E>, layer_bwd<E, N, false>)
#define MHC_KERNEL_static_pack(NAME, E, N) MHC_ENTRY(NAME, 256, StaticPack, static_pack)
#define MHC_KERNEL_static_unpack(NAME, E, N) MHC_ENTRY(NAME, 256, StaticUnpack, static_unpack)
