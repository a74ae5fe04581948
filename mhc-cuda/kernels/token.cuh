// What one warp makes of the sums of one token: coefficients, and H_res by Sinkhorn. For kernels that keep the whole of `pre`.
//
// Their arguments A have alpha, bias, mixes, z, inv_rms, tokens, channels, pre_eps, post_mult and rms_eps.
#pragma once
#include "copies.cuh"
#include "sinkhorn.cuh"

// What a lane knows of its column.
template <u32 N> struct Column {
    static const u32 P = N * (N + 2);
    float alpha, bias, per_row;

    template <class A> DEVICE_MEMBER Column(const A& a, u32 lane) {
        alpha = a.alpha[lane < N ? 0 : lane < 2 * N ? 1 : 2];
        bias = lane < P ? a.bias[lane] : 0.0f;
        per_row = 1.0f / (float)(N * a.channels);
    }
};

// The coefficients of a token: a lane's share, and H_pre.
template <u32 N> struct TokenCoefficients {
    static const u32 P = N * (N + 2);
    // Lane's z, its coefficient before σ, H_pre and H_post where it has them; all lanes: ρ and H_pre.
    float z, v, pre, post, rho, h[4];

    // `sum`: lane's column of the products, and Σx² in lane P.
    template <class A> DEVICE_MEMBER TokenCoefficients(const A& a, const Column<N>& column, float sum) {
        rho = 1.0f / square_root(fused(shuffle(sum, P), column.per_row, a.rms_eps));
        z = rho * sum;
        v = fused(column.alpha, z, column.bias);
        const float gate = sigmoid(v);
        pre = gate + a.pre_eps;
        post = a.post_mult * gate;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) h[i] = i < N ? shuffle(pre, i) : 0.0f;
    }

    // All but H_res to memory.
    template <class A> DEVICE_MEMBER void store(const A& a, u64 token, u32 lane) const {
        if (lane < P) a.z.at(token)[lane] = z;
        if (lane < 2 * N) a.mixes.at(token)[lane] = lane < N ? pre : post;
        if (lane == 0 && a.inv_rms) a.inv_rms[token] = rho;
    }
};

// A half-step of one thread's matrix, whose denominators are sums plus ε: half_step, with all lines side by side.
template <bool FIRST, u32 N> DEVICE void plain_half_step(OwnMatrix<float, N>& m, float eps) {
    float d[N];
#pragma unroll
    for (u32 k = 0; k < N; ++k) {
#pragma unroll
        for (u32 l = 0; l < N; ++l) d[l] = k ? d[l] + m.template at<FIRST>(l, k) : m.template at<FIRST>(l, k);
    }
#pragma unroll
    for (u32 l = 0; l < N; ++l) d[l] = reciprocal(d[l] + eps);
#pragma unroll
    for (u32 l = 0; l < N; ++l) {
#pragma unroll
        for (u32 k = 0; k < N; ++k) m.template at<FIRST>(l, k) *= d[l];
    }
}

// All half-steps but the first, as in `sinkhorn`, without what no thread waits for in a launch of many tokens: here it is the time.
template <u32 N> DEVICE void balance(OwnMatrix<float, N>& m, const Form& form) {
    const auto none = [](u32, float) {};
    if (form.mode >= THRESHOLD) {
        half_step<false>(m, form, 0.0f, none);
#pragma unroll 1
        for (u32 k = 1; k < form.iters; ++k) {
            half_step<true>(m, form, 0.0f, none);
            half_step<false>(m, form, 0.0f, none);
        }
    } else {
        const float eps = form.mode == ADDED ? form.eps : 0.0f;
        plain_half_step<false>(m, eps);
#pragma unroll 1
        for (u32 k = 1; k < form.iters; ++k) {
            plain_half_step<true>(m, eps);
            plain_half_step<false>(m, eps);
        }
    }
}

// H_res of a token in f64, where its logits lie far apart: by a whole warp, from z in memory, with `far` of its own.
template <u32 N, class A> DEVICE void mix_far(const A& a, const Form& form, u64 t, u32 far) {
    const float *z = a.z.at(t) + 2 * N, *bias = a.bias + 2 * N, alpha = a.alpha[2];
    WaveMatrix<double> shared = {(double*)__cvta_shared_to_generic(far), N};
    run_forward(
        shared, form, 0.0, led(form, [&](u32 i, u32 j) { return fused(alpha, z[i * N + j], bias[i * N + j]); }),
        led(form, [&](u32 i, u32 j, float v) { a.mixes.at(t)[2 * N + i * N + j] = v; }));
}

// H_res to memory, a token a lane.
template <u32 N, class A> DEVICE void mix_lanes(const A& a, const Form& form, const float (&logits)[N * N], u64 token, bool mine, u32 far) {
    // Not `led`, as registers have no addresses.
    const auto in = [&](u32 i, u32 j) { return form.lead ? logits[i * N + j] : logits[j * N + i]; };
    const bool wide = mine && far_apart<false>(N, in);
    OwnMatrix<float, N> m;
    start(m, form, 0.0f, in, [](u32, float) {});
    if (form.start == SOFTMAX && form.mode == ADDED) {
#pragma unroll
        for (u32 e = 0; e < N * N; ++e) m.m[e] += form.eps;
    }
    balance(m, form);
    if (mine && !wide) {
        const auto out = led(form, [&](u32 i, u32 j, float v) { a.mixes.at(token)[2 * N + i * N + j] = v; });
#pragma unroll
        for (u32 e = 0; e < N * N; ++e) out(e / N, e % N, m.m[e]);
    }
    for (u32 lanes = __ballot_sync(0xffffffffu, wide); lanes; lanes &= lanes - 1) {
        mix_far<N>(a, form, __shfl_sync(0xffffffffu, token, __ffs(lanes) - 1), far);
    }
}

// All half-steps but the first of a matrix that has an element a lane. PLAIN: denominators are sums plus `eps`.
template <bool PLAIN, u32 N> DEVICE float balance_lanes(float m, const Form& form, float eps) {
    const u32 lane = thread_index() % 32;
    // The line's elements are at lanes `from`, `from + step` and so on.
    const auto half = [&](u32 from, u32 step) {
        float sum = 0.0f;
#pragma unroll
        for (u32 k = 0; k < N; ++k) sum += shuffle(m, from + k * step);
        float d = PLAIN ? sum + eps : sum;
        if (!PLAIN && !(sum > form.eps)) d = form.mode == CLAMP ? form.eps : 1.0f;
        m *= reciprocal(d);
    };
    half(lane % N, N);
#pragma unroll 1
    for (u32 k = 1; k < form.iters; ++k) {
        half(lane / N * N, 1);
        half(lane % N, N);
    }
    return m;
}

// H_res of one token to memory, by a warp whose lane 2·N + e has logit e: the same operations as mix_lanes, an element a lane. It is the
// shortest way for one token, in time and in code. Lanes from N·N on do what those before them do.
template <u32 N, class A> DEVICE void mix_token(const A& a, const Form& form, float v, u64 token, bool live, u32 far) {
    const u32 lane = thread_index() % 32, e = lane % (N * N), place = form.lead ? e : e % N * N + e / N;
    const float logit = shuffle(v, 2 * N + place);
    float max = logit, min = logit;
#pragma unroll
    for (u32 k = 1; k < N; k *= 2) max = larger(max, shuffle_xor(max, k));
    float m = exponential(logit - max), sum = 0.0f;
#pragma unroll
    for (u32 k = 0; k < N; ++k) sum += shuffle(m, lane / N * N + k);
    bool depends;
    m *= reciprocal(first_denominator(form, sum, max, depends));
    if (form.start == SOFTMAX && form.mode == ADDED) m += form.eps;
#pragma unroll
    for (u32 k = N; k < N * N; k *= 2) max = larger(max, shuffle_xor(max, k));
#pragma unroll
    for (u32 k = 1; k < N * N; k *= 2) min = smaller(min, shuffle_xor(min, k));
    m = form.mode >= THRESHOLD ? balance_lanes<false, N>(m, form, 0.0f)
                               : balance_lanes<true, N>(m, form, form.mode == ADDED ? form.eps : 0.0f);
    if (!live) return;
    if (!(max - min < 60.0f && max < 80.0f && min > -80.0f)) return mix_far<N>(a, form, token, far);
    if (lane < N * N) a.mixes.at(token)[2 * N + place] = m;
}
