// rms_norm, rms_norm_bwd: RMSNorm over the channels of a token, and its gradient.
//
// Math      r = (mean x² + ε)^(-1/2);  y = w ⊙ x·r
//           d_x = r·(w ⊙ g) - x·r³·⟨w ⊙ g, x⟩/C;  d_w = Σ_t r·(g ⊙ x),  g = d_y
// Operands  x, y, g, d_x [T, C] of type E; w, d_w [C], r [T] f32.
// Mapping   forward, d_x: a block takes one token, whose first 4 vectors a thread stay in registers between the passes over it.
//           d_w: a block takes a slice of the channels and one of a fixed number of ranges of tokens; sum_rows adds the ranges.
// Traffic   forward 2C elements a token; backward 5C.
// Numerics  f32 sums in an order fixed by C, and for d_w by T, alone; one rounding to E.
#include "operand.cuh"
#include "reduce.cuh"
#include "vector.cuh"

static const u32 KEEP = 4;

template <class E> struct RmsNormFwd {
    Rows<const E> x;
    const float* w;
    Rows<E> y;
    float* inv_rms;
    u64 tokens;
    alignas(8) u32 n, channels;
    alignas(8) float eps;
};

// Calls f(c, values) for the vectors of a row that are this thread's; those in `kept` are not loaded again.
template <bool WIDE, u32 V, class E, class F> DEVICE void revisit(const E* row, u32 channels, const Packed<E, V> (&kept)[KEEP], F f) {
    const u32 step = threads() * V;
    u32 c = thread_index() * V;
#pragma unroll
    for (u32 k = 0; k < KEEP; ++k, c += step) {
        float v[V];
        if (c < channels) {
            kept[k].get(v);
            f(c, v);
        }
    }
    for (; c < channels; c += step) {
        float v[V];
        load<WIDE>(row + c, v, channels - c);
        f(c, v);
    }
}

template <bool WIDE, u32 V, class E> DEVICE void keep(const E* row, u32 channels, Packed<E, V> (&kept)[KEEP]) {
    u32 c = thread_index() * V;
#pragma unroll
    for (u32 k = 0; k < KEEP; ++k, c += threads() * V) {
        if (c < channels) kept[k].template load<WIDE>(row + c, channels - c);
    }
}

template <class E, u32 V, bool WIDE> DEVICE void rms_norm_fwd_token(const RmsNormFwd<E>& a, u64 t, float* scratch) {
    Packed<E, V> kept[KEEP];
    const E* x = a.x.at(t);
    keep<WIDE>(x, a.channels, kept);
    float square = 0.0f;
    revisit<WIDE>(x, a.channels, kept, [&](u32, const float(&v)[V]) {
#pragma unroll
        for (u32 k = 0; k < V; ++k) square = fused(v[k], v[k], square);
    });
    const float r = 1.0f / square_root(block_sum(square, scratch) / (float)a.channels + a.eps);
    revisit<WIDE>(x, a.channels, kept, [&](u32 c, const float(&v)[V]) {
        float y[V], w[V];
        load<WIDE>(a.w + c, w, a.channels - c);
#pragma unroll
        for (u32 k = 0; k < V; ++k) y[k] = v[k] * r * w[k];
        store<WIDE>(a.y.at(t) + c, y, a.channels - c);
    });
    if (a.inv_rms && thread_index() == 0) a.inv_rms[t] = r;
}

template <class E, u32 N, bool WIDE> DEVICE void rms_norm_fwd(const RmsNormFwd<E>& a) {
    const u32 V = Width<E>::V;
    SHARED float scratch[MAX_WAVES];
    for (u64 t = block_x(); t < a.tokens; t += blocks_x()) {
        rms_norm_fwd_token<E, V, WIDE>(a, t, scratch);
    }
}

template <class E> struct RmsNormBwd {
    Rows<const E> x;
    const float* w;
    const float* inv_rms;
    Rows<const E> g;
    Rows<E> d_x;
    u64 tokens;
    alignas(8) u32 n, channels;
};

template <class E, u32 V, bool WIDE> DEVICE void rms_norm_bwd_token(const RmsNormBwd<E>& a, u64 t, float* scratch) {
    Packed<E, V> x[KEEP];
    const E *row = a.x.at(t), *g = a.g.at(t);
    keep<WIDE>(row, a.channels, x);
    float along = 0.0f;
    revisit<WIDE>(row, a.channels, x, [&](u32 c, const float(&v)[V]) {
        float gv[V], w[V];
        load<WIDE>(g + c, gv, a.channels - c);
        load<WIDE>(a.w + c, w, a.channels - c);
#pragma unroll
        for (u32 k = 0; k < V; ++k) along = fused(w[k] * gv[k], v[k], along);
    });
    const float r = a.inv_rms[t], pull = r * r * r * block_sum(along, scratch) / (float)a.channels;
    revisit<WIDE>(row, a.channels, x, [&](u32 c, const float(&v)[V]) {
        float gv[V], w[V], d[V];
        load<WIDE>(g + c, gv, a.channels - c);
        load<WIDE>(a.w + c, w, a.channels - c);
#pragma unroll
        for (u32 k = 0; k < V; ++k) d[k] = r * w[k] * gv[k] - v[k] * pull;
        store<WIDE>(a.d_x.at(t) + c, d, a.channels - c);
    });
}

template <class E, u32 N, bool WIDE> DEVICE void rms_norm_bwd(const RmsNormBwd<E>& a) {
    const u32 V = Width<E>::V;
    SHARED float scratch[MAX_WAVES];
    for (u64 t = block_x(); t < a.tokens; t += blocks_x()) {
        rms_norm_bwd_token<E, V, WIDE>(a, t, scratch);
    }
}

template <class E> struct RmsNormWeight {
    Rows<const E> x;
    const float* inv_rms;
    Rows<const E> g;
    float* parts;
    u64 tokens;
    alignas(8) u32 n, channels;
};

template <class E, u32 N> DEVICE void rms_norm_bwd_w(const RmsNormWeight<E>& a) {
    const u64 range = (a.tokens + blocks_y() - 1) / blocks_y(), first = block_y() * range;
    const u64 last = first + range < a.tokens ? first + range : a.tokens;
    const u32 c = block_x() * threads() + thread_index();
    if (c >= a.channels) return;
    float sum = 0.0f;
#pragma unroll 4
    for (u64 t = first; t < last; ++t) sum = fused(a.inv_rms[t] * to_float(a.g.at(t)[c]), to_float(a.x.at(t)[c]), sum);
    a.parts[(u64)block_y() * a.channels + c] = sum;
}

#define MHC_KERNEL_rms_norm_fwd(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 256, 3, RmsNormFwd<E>, rms_norm_fwd<E, N, true>)
#define MHC_KERNEL_rms_norm_fwd_any(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 256, 3, RmsNormFwd<E>, rms_norm_fwd<E, N, false>)
#define MHC_KERNEL_rms_norm_bwd(NAME, E, N) MHC_ENTRY(NAME, 256, RmsNormBwd<E>, rms_norm_bwd<E, N, true>)
#define MHC_KERNEL_rms_norm_bwd_any(NAME, E, N) MHC_ENTRY(NAME, 256, RmsNormBwd<E>, rms_norm_bwd<E, N, false>)
#define MHC_KERNEL_rms_norm_bwd_w(NAME, E, N) MHC_ENTRY(NAME, 256, RmsNormWeight<E>, rms_norm_bwd_w<E, N>)
