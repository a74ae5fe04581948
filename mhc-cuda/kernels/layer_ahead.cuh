// static_fwd_ahead, static_bwd_ahead, static_bwd_finish, dynamic_bwd_ahead, dynamic_bwd_finish: the layers (see layer_fwd, layer_bwd) up
// to 4 streams, for rows of channels that the threads of one block hold in registers.
//
// Operands  as layer_fwd and layer_bwd; static: the raw coefficients in place of mixes; dynamic: z and ρ, and the coefficients, p and s
//           of coefficients_bwd come out.
// Mapping   A block goes from token to token; a thread has the same channels of every row of each. Static: while its first rows are on
//           their way, every block makes the coefficients, the same bits in each. Backward: rows come ahead by copies that run by
//           themselves, into places that only their thread reads, so that nobody waits for anybody; the one barrier of a token is for
//           the sums over channels, which every warp adds for itself. d_w stays in registers, d_mixes of all tokens in a lane each.
//           static_bwd_finish: blocks of 32 columns of d_w; one more adds d_mixes and goes back through sigmoids and Sinkhorn. Dynamic:
//           two warps more go back from each token's d_mixes while the others are at the next tokens (coefficients_back.cuh);
//           dynamic_bwd_finish adds d_w and the gradients of alpha and the bias.
// Traffic   forward 2nC elements a token, backward 3nC (dynamic: 2nC, and 4C + 16n(n+2) bytes), and 4(C + n(n+2)) bytes a block.
// Numerics  f32 sums in an order fixed by C, and over tokens by T, alone.
// Measured  (n = 4, f32, T = 2560, C = 1280, one H100, 4.5 µs of an empty graph in each) static forward 43.3 µs, where three launches took
//           50.8; backward 73.6, of which 8 are static_bwd_finish; both 115, where ten launches took 191.
// Tried     Sinkhorn by one thread: 45.3, and 83 with the finish, as its code is long and cold; by lanes it is neither. Backward with 132
//           ranges of tokens: 67.5 against 65.5; 528: 65.0, but 80 with the finish; three or four tokens ahead: the same. Stores of 4
//           words that the compiler split: 2 µs.
#include "coefficients_back.cuh"
#include "column.cuh"

// The coefficients in shared memory: H_res as [to][from] with H_post as one more column, then H_pre.
template <u32 N> struct Weights {
    static const u32 ROW = N + 1, PRE = N * ROW, COUNT = N * (N + 2);
};

// The parameters of static_layer.
struct Raw {
    const float* h_pre;
    const float* h_post;
    Rows<const float> h_res;
    Form form;
    alignas(8) float pre_eps, post_mult;
};

// By the first warp; the others see them after a barrier.
template <u32 N> DEVICE void raw_weights(const Raw& a, u32 from_to, float* h) {
    using W = Weights<N>;
    SHARED double far[N * 33];
    if (wave_index() > 0) return;
    const u32 e = lane_index();
    if (e < 2 * N) {
        const float s = sigmoid(e < N ? a.h_pre[e] : a.h_post[e - N]);
        if (e < N) h[W::PRE + e] = s + a.pre_eps;
        else h[(e - N) * W::ROW + N] = a.post_mult * s;
    }
    project_one<N>(
        a.form, far, [&](u32 i, u32 j) { return a.h_res.at(i)[j]; },
        [&](u32 i, u32 j, float v) { h[from_to ? j * W::ROW + i : i * W::ROW + j] = v; });
}

template <class E> struct StaticFwd {
    Streams<const E> x;
    const float* w;
    Raw raw;
    Streams<E> out;
    u64 tokens;
    alignas(8) u32 n, channels, from_to;
    alignas(8) float eps;
};

// KEEP vectors of each row a thread, and those of the next token.
template <class E, u32 N, u32 KEEP> DEVICE void static_fwd_ahead(const StaticFwd<E>& a) {
    using W = Weights<N>;
    const u32 V = Width<E>::V;
    SHARED float h[W::COUNT];
    SHARED float scratch[MAX_WAVES];
    Column<E, N> x[KEEP], next[KEEP];
    const auto fetch = [&](u64 t) {
#pragma unroll
        for (u32 q = 0; q < KEEP; ++q) {
            const u32 c = (thread_index() + q * threads()) * V;
            if (c < a.channels && t < a.tokens) next[q].load(a.x.at(t), c);
        }
    };
    fetch(block_x());
    raw_weights<N>(a.raw, a.from_to, h);
    barrier();
    for (u64 t = block_x(); t < a.tokens; t += blocks_x()) {
#pragma unroll
        for (u32 q = 0; q < KEEP; ++q) x[q] = next[q];
        fetch(t + blocks_x());
        float square = 0.0f;
#pragma unroll
        for (u32 q = 0; q < KEEP; ++q) {
            float li[V];
            x[q].sum(h + W::PRE, 1, li);
            if ((thread_index() + q * threads()) * V >= a.channels) continue;
#pragma unroll
            for (u32 k = 0; k < V; ++k) square = fused(li[k], li[k], square);
        }
        const float r = 1.0f / square_root(block_sum(square, scratch) / (float)a.channels + a.eps);
        const Rows<E> out = a.out.at(t);
#pragma unroll
        for (u32 q = 0; q < KEEP; ++q) {
            const u32 c = (thread_index() + q * threads()) * V;
            if (c >= a.channels) continue;
            float y[V], w[V];
            x[q].sum(h + W::PRE, 1, y);
            load(a.w + c, w);
#pragma unroll
            for (u32 k = 0; k < V; ++k) y[k] = y[k] * r * w[k];
#pragma unroll
            for (u32 i = 0; i < N; ++i) {
                float acc[V];
#pragma unroll
                for (u32 k = 0; k < V; ++k) acc[k] = h[i * W::ROW + N] * y[k];
                x[q].add(h + i * W::ROW, 1, acc);
                put(out.at(i) + c, acc);
            }
        }
    }
}

template <class E> struct LayerBwd {
    Streams<const E> x;
    const float* w;
    // static_layer; of dynamic_layer the conventions alone.
    Raw raw;
    // dynamic_layer: what a token's coefficients are made of.
    Rows<const float> z;
    const float *alpha, *bias, *inv_rms;
    Streams<const E> g;
    // static_layer.
    Streams<E> d_x;
    // dynamic_layer: [T, C]; the coefficients again; p and s of coefficients_bwd; and its sums over tokens, [2 · blocks, 2, n(n+2)].
    Rows<float> d_li, mixes;
    float *p, *shrink, *sums;
    // static_layer: [blocks, n(n+2)].
    float* d_mixes;
    // [blocks, C]
    float* d_w;
    u64 tokens;
    alignas(8) u32 n, channels, from_to;
    alignas(8) float eps;
};

// Sums over the channels of a token: the products g_i·x_j, then of li², of w·d_y·li, and for each stream of w·d_y·x_i, li·x_i, g_i·w·li.
template <u32 N> struct Dots {
    static const u32 SQUARE = N * N, ALONG = SQUARE + 1, D_X = SQUARE + 2, LI_X = D_X + N, G_Y = LI_X + N, COUNT = G_Y + N;
    static const u32 PADDED = COUNT <= 16 ? 16 : 32;
};

// What the threads of a block fetch ahead: STAGES tokens, each thread's vectors of x and g behind those of the threads before it.
template <class E, u32 N, u32 STAGES> struct Ahead {
    const LayerBwd<E>& a;
    Words<4>* mine;
    u32 c;
    u64 last;
    u32 threads;

    DEVICE_MEMBER Words<4>& place(u32 stage, u32 row) const { return mine[(stage * 2 * N + row) * threads]; }
    DEVICE_MEMBER void fetch(u64 t, u32 stage) const {
        if (c < a.channels && t < last) {
#pragma unroll
            for (u32 j = 0; j < N; ++j) {
                copy_ahead<16>(shared_address(&place(stage, j)), a.x.at(t).at(j) + c, true);
                copy_ahead<16>(shared_address(&place(stage, N + j)), a.g.at(t).at(j) + c, true);
            }
        }
        copies_end();
    }
    // Zeros where there are no channels, as the places were set to zero.
    DEVICE_MEMBER void take(u32 stage, Column<E, N>& x, Column<E, N>& g) const {
        copies_wait<STAGES - 1>();
#pragma unroll
        for (u32 j = 0; j < N; ++j) {
            *(Words<4>*)x.row[j].w = place(stage, j);
            *(Words<4>*)g.row[j].w = place(stage, N + j);
        }
    }
};

// This thread's part of the sums.
template <class E, u32 N, u32 V>
DEVICE void multiply(const Column<E, N>& x, const Column<E, N>& g, const float (&w)[V], const float (&li)[V], const float (&d_y)[V],
                     float (&s)[Dots<N>::PADDED]) {
    using S = Dots<N>;
#pragma unroll
    for (u32 k = 0; k < S::PADDED; ++k) s[k] = 0.0f;
#pragma unroll
    for (u32 k = 0; k < V; ++k) {
        s[S::SQUARE] = fused(li[k], li[k], s[S::SQUARE]);
        s[S::ALONG] = fused(w[k] * d_y[k], li[k], s[S::ALONG]);
    }
#pragma unroll
    for (u32 i = 0; i < N; ++i) {
        float gv[V], xv[V];
        g.row[i].get(gv);
        x.row[i].get(xv);
#pragma unroll
        for (u32 k = 0; k < V; ++k) {
            s[S::D_X + i] = fused(w[k] * d_y[k], xv[k], s[S::D_X + i]);
            s[S::LI_X + i] = fused(li[k], xv[k], s[S::LI_X + i]);
            s[S::G_Y + i] = fused(gv[k], w[k] * li[k], s[S::G_Y + i]);
        }
#pragma unroll
        for (u32 j = 0; j < N; ++j) {
            float v[V];
            x.row[j].get(v);
#pragma unroll
            for (u32 k = 0; k < V; ++k) s[i * N + j] = fused(gv[k], v[k], s[i * N + j]);
        }
    }
}

// From all sums, the value of lane `e`: element e of d_mixes.
template <u32 N> DEVICE float mixing_gradient(float sum, float r, float pull, u32 from_to) {
    using S = Dots<N>;
    const u32 e = lane_index(), m = e < 2 * N ? 0 : (e - 2 * N) % (N * N);
    // Elements 0..N and N..2N both come from the sum at e + LI_X.
    const float with_x = shuffle(sum, (S::D_X + e) % MHC_WAVE), other = shuffle(sum, (S::LI_X + e) % MHC_WAVE);
    const float pair = shuffle(sum, from_to ? m % N * N + m / N : m);
    return e < N ? r * with_x - pull * other : e < 2 * N ? r * other : pair;
}

// H_pre and H_post of a token of dynamic_layer, whose H_res is not wanted: one coefficient a thread.
template <class E, u32 N> struct Gates {
    float alpha = 0.0f, bias = 0.0f, z = 0.0f;

    DEVICE_MEMBER void begin(const LayerBwd<E>& a) {
        const u32 e = thread_index();
        if (e >= 2 * N) return;
        alpha = a.alpha[e < N ? 0 : 1];
        bias = a.bias[e];
    }
    DEVICE_MEMBER void fetch(const LayerBwd<E>& a, u64 t, u64 last) {
        if (thread_index() < 2 * N && t < last) z = a.z.at(t)[thread_index()];
    }
    DEVICE_MEMBER void put(const LayerBwd<E>& a, float* h) const {
        using W = Weights<N>;
        const u32 e = thread_index();
        if (e >= 2 * N) return;
        const float s = sigmoid(fused(alpha, z, bias));
        if (e < N) h[W::PRE + e] = s + a.raw.pre_eps;
        else h[(e - N) * W::ROW + N] = a.raw.post_mult * s;
    }
};

// Dynamic: THREADS and the warps of Mail more, whose denominators lie behind the rows that come ahead.
template <class E, u32 N, bool DYNAMIC, u32 STAGES, u32 THREADS> DEVICE void layer_bwd_ahead(const LayerBwd<E>& a) {
    using W = Weights<N>;
    using S = Dots<N>;
    const u32 V = Width<E>::V, WAVES = THREADS / MHC_WAVE, MIX = N * (N + 2);
    SHARED float weights[2][W::COUNT];
    SHARED float scratch[2][WAVES * MHC_WAVE];
    DYNAMIC_SHARED(Words<4>, stages);
    const u32 c = thread_index() * V;
    const u64 range = (a.tokens + blocks_x() - 1) / blocks_x(), first = block_x() * range;
    const u64 last = first + range < a.tokens ? first + range : a.tokens;
    const u32 own = threads() - (DYNAMIC ? Mail<N>::WARPS * MHC_WAVE : 0);
    SHARED Mail<N> mail;
    if constexpr (DYNAMIC) {
        if (thread_index() == 0) mail.begin();
        barrier();
    }
    if (DYNAMIC && thread_index() >= own) {
        const u32 box = (thread_index() - own) / MHC_WAVE;
        double* kept = (double*)(stages + 2 * N * STAGES * own) + box * 2 * a.raw.form.iters * N;
        coefficients_back<N>(a, first, last, box, mail, kept);
        return;
    }
    const auto meet = [=]() { named_sync(1, own); };
    const Ahead<E, N, STAGES> ahead = {a, stages + thread_index(), c, last, own};
    float w[V] = {}, d_w[V] = {}, d_mix = 0.0f;
    if (c < a.channels) load(a.w + c, w);
    else {
        for (u32 k = 0; k < 2 * N * STAGES; ++k) ahead.place(k / (2 * N), k % (2 * N)) = {};
    }
#pragma unroll
    for (u32 s = 0; s < STAGES; ++s) ahead.fetch(first + s, s);
    Gates<E, N> gates;
    if constexpr (DYNAMIC) {
        gates.begin(a);
        gates.fetch(a, first, last);
        gates.put(a, weights[0]);
        gates.fetch(a, first + 1, last);
    } else {
        raw_weights<N>(a.raw, a.from_to, weights[0]);
    }
    meet();
    u32 stage = 0, turn = 0;
    for (u64 t = first; t < last; ++t) {
        const float* h = weights[DYNAMIC ? turn : 0];
        Column<E, N> x, g;
        ahead.take(stage, x, g);
        ahead.fetch(t + STAGES, stage);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        float s[S::PADDED], li[V], d_y[V];
        x.sum(h + W::PRE, 1, li);
        g.sum(h + N, W::ROW, d_y);
        multiply(x, g, w, li, d_y, s);
        scratch[turn][thread_index()] = wave_sums(s);
        // Of the next token: what a slower warp still reads after the barrier is the other buffer.
        if constexpr (DYNAMIC) {
            gates.put(a, weights[turn ^ 1]);
            gates.fetch(a, t + 2, last);
        }
        meet();
        float sum = 0.0f;
        for (u32 v = 0; v < own / MHC_WAVE; ++v) sum += scratch[turn][v * MHC_WAVE + lane_index()];
        turn ^= 1;
        const float r = 1.0f / square_root(shuffle(sum, S::SQUARE) / (float)a.channels + a.eps);
        const float pull = r * r * r * shuffle(sum, S::ALONG) / (float)a.channels;
        if (wave_index() == 0) {
            const float d = mixing_gradient<N>(sum, r, pull, a.from_to);
            if constexpr (DYNAMIC) mail.put((u32)(t - first), (u32)(last - first), d);
            else d_mix += d;
        }
#pragma unroll
        for (u32 k = 0; k < V; ++k) {
            d_w[k] = fused(d_y[k] * r, li[k], d_w[k]);
            li[k] = r * w[k] * d_y[k] - pull * li[k];
        }
        if (c >= a.channels) continue;
        if constexpr (DYNAMIC) {
            store(a.d_li.at(t) + c, li);
        } else {
#pragma unroll
            for (u32 j = 0; j < N; ++j) {
                float d[V];
#pragma unroll
                for (u32 k = 0; k < V; ++k) d[k] = h[W::PRE + j] * li[k];
                g.add(h + j, W::ROW, d);
                put(a.d_x.at(t).at(j) + c, d);
            }
        }
    }
    if (c < a.channels) store(a.d_w + (u64)block_x() * a.channels + c, d_w);
    if (!DYNAMIC && thread_index() < MIX) a.d_mixes[block_x() * MIX + thread_index()] = d_mix;
}

struct StaticFinish {
    const float* d_w_parts;
    const float* d_mixes_parts;
    Raw raw;
    float* d_w;
    float* d_h_pre;
    float* d_h_post;
    Rows<float> d_h_res;
    alignas(8) u32 rows, channels;
};

// Groups of 32 threads that add every so many rows, g, g + GROUPS, ... of parts [rows, count].
static const u32 GROUPS = 16;

DEVICE float group_sum(const float* parts, u32 rows, u32 count, u32 k, u32 g) {
    float sum = 0.0f;
#pragma unroll 9
    for (u32 r = g; r < rows; r += GROUPS) sum += parts[(u64)r * count + k];
    return sum;
}

DEVICE float sum_of_groups(const float (&group)[GROUPS][32], u32 column) {
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < GROUPS; ++i) sum += group[i][column];
    return sum;
}

// Warp 0 belongs to no group, as the matrix takes it that long to come back to. Dynamic shared memory: the denominators of Sinkhorn's
// half-steps.
template <u32 N> DEVICE void static_bwd_finish(const StaticFinish& a) {
    SHARED float group[GROUPS][32];
    SHARED float d[32];
    SHARED double far[2 * N * 33];
    DYNAMIC_SHARED(double, denominators);
    const u32 MIX = N * (N + 2), column = thread_index() % 32, g = thread_index() / 32;
    const bool matrix = block_x() + 1 == blocks_x();
    if (g > 0) {
        const u32 count = matrix ? MIX : a.channels, k = matrix ? column : block_x() * 32 + column;
        group[g - 1][column] = k < count ? group_sum(matrix ? a.d_mixes_parts : a.d_w_parts, a.rows, count, k, g - 1) : 0.0f;
    }
    const auto logits = led(a.raw.form, [&](u32 i, u32 j) { return a.raw.h_res.at(i)[j]; });
    const u32 e = LaneMatrix<N>::element();
    float* kept = (float*)denominators;
    float logit = 0.0f, v = 0.0f;
    bool wide = false;
    if (g == 0 && matrix) {
        wide = far_apart<true>(N, logits);
        logit = logits(e / N, e % N);
        if (!wide) v = lanes_forward<N>(a.raw.form, logit, [&](u32 k, u32 line, float d) { kept[k * N + line] = d; });
    }
    barrier();
    if (g > 0) return;
    const float sum = sum_of_groups(group, column);
    if (!matrix) {
        if (block_x() * 32 + column < a.channels) a.d_w[block_x() * 32 + column] = sum;
        return;
    }
    d[column] = sum;
    wave_barrier();
    if (column < 2 * N) {
        const bool pre = column < N;
        const float t = pre ? a.raw.h_pre[column] : a.raw.h_post[column - N];
        // σ' = σ(t)·σ(-t): 1 - σ would lose the digits of a small one.
        *(pre ? a.d_h_pre + column : a.d_h_post + column - N) = sum * (pre ? 1.0f : a.raw.post_mult) * sigmoid(t) * sigmoid(-t);
    }
    const auto up = led(a.raw.form, [&](u32 i, u32 j, float) { return d[2 * N + i * N + j]; });
    const auto out = led(a.raw.form, [&](u32 i, u32 j, float v) { a.d_h_res.at(i)[j] = v; });
    if (wide) {
        WaveMatrix<double> y = {far, N}, g = {far + N * 33, N};
        run_backward(y, g, a.raw.form, 0.0, denominators, 1, logits, up, out);
    } else {
        const float back = lanes_back<N>(a.raw.form, logit, v, up(e / N, e % N, v), [&](u32 k, u32 line) { return kept[k * N + line]; });
        if (column < N * N) out(e / N, e % N, back);
    }
}

struct DynamicFinish {
    const float *d_w_parts, *sums;
    float *d_w, *d_alpha, *d_bias;
    alignas(8) u32 rows, channels;
};

// Blocks of 32 columns of d_w; the last but one adds the gradient of the bias, the last those of alpha.
template <u32 N> DEVICE void dynamic_bwd_finish(const DynamicFinish& a) {
    SHARED float group[GROUPS][32];
    const u32 MIX = N * (N + 2), column = thread_index() % 32, g = thread_index() / 32, of_w = blocks_x() - 2;
    const bool weights = block_x() < of_w, bias = block_x() == of_w;
    const u32 k = weights ? block_x() * 32 + column : bias ? column : MIX + column;
    const bool there = weights ? k < a.channels : column < MIX;
    const u32 rows = weights ? a.rows : Mail<N>::WARPS * a.rows, count = weights ? a.channels : 2 * MIX;
    group[g][column] = there ? group_sum(weights ? a.d_w_parts : a.sums, rows, count, k, g) : 0.0f;
    barrier();
    if (g > 0) return;
    const float sum = sum_of_groups(group, column);
    if (weights || bias) {
        if (there) (weights ? a.d_w : a.d_bias)[k] = sum;
        return;
    }
    for (u32 i = 0; i < 3; ++i) {
        const float all = wave_sum(smaller(column / N, 2u) == i ? sum : 0.0f);
        if (column == 0) a.d_alpha[i] = all;
    }
}

#define MHC_KERNEL_static_fwd_ahead(NAME, E, N) \
    MHC_ENTRY_RESIDENT(NAME, 320, 2, StaticFwd<E>, static_fwd_ahead<E, N, sizeof(E) / 2>)
#define MHC_KERNEL_static_bwd_ahead(NAME, E, N) \
    MHC_ENTRY_RESIDENT(NAME, 512, 1, LayerBwd<E>, layer_bwd_ahead<E, N, false, 2, 512>)
// Two blocks of 384 threads, which 1280 channels take.
#define MHC_KERNEL_dynamic_bwd_ahead(NAME, E, N) \
    MHC_ENTRY_RESIDENT(NAME, 768, 1, LayerBwd<E>, layer_bwd_ahead<E, N, true, 2, 512>)
#define MHC_KERNEL_static_bwd_finish(NAME, E, N) MHC_ENTRY(NAME, 32 * GROUPS + 32, StaticFinish, static_bwd_finish<N>)
#define MHC_KERNEL_dynamic_bwd_finish(NAME, E, N) MHC_ENTRY(NAME, 32 * GROUPS, DynamicFinish, dynamic_bwd_finish<N>)
