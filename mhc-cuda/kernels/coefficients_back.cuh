// The gradients of the coefficients of dynamic_layer, by warps beside those that make the gradients of the rows: Sinkhorn is a chain of
// short steps, which others do not feel, and a launch of its own would take as long as the chain.
//
// Measured  (dynamic_layer forward and backward, n = 4, f32, T = 2560, C = 1280, one H100) 199.3 µs, where coefficients_bwd and
//           coefficients_bwd_total, 21.6 and 5.6 by themselves, came behind the layer and all took 238.6, of which 26 were forward's.
//           With one such warp, which then is what the others wait for: 213 (ncu: dynamic_bwd_ahead 61, without it 44).
#pragma once
#include "hopper.cuh"
#include "sinkhorn.cuh"

// A barrier in shared memory, which compute capability 8.0 has already: the lanes of one warp arrive and go on, and what each of them did
// before is done for who has waited for phase `parity`. Hopper's barrier_wait, which need not ask again and again, took as long here.
struct Handover {
    u64 state;

    DEVICE_MEMBER void begin() { barrier_init(shared_address(&state), MHC_WAVE); }
    DEVICE_MEMBER void arrive() { barrier_arrive(shared_address(&state)); }
    DEVICE_MEMBER void wait(u32 parity) const {
        asm volatile(
            "{\n.reg .pred p;\nL_%=:\nmbarrier.test_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra L_%=;\n}\n" ::"r"(
                shared_address(&state)),
            "r"(parity)
            : "memory");
    }
};

// What the block leaves to the warps of `coefficients_back`: the gradients of the coefficients of as many tokens as a warp has lanes
// for, to one warp after the other, so that nobody waits for anybody. Handed over by bar.arrive and bar.sync, which order as much (PTX
// ISA, barrier), it took as long, but compute-sanitizer's racecheck does not follow those, nor bar.sync alone in blocks of many tokens.
template <u32 N> struct Mail {
    static const u32 MIX = N * (N + 2), TOKENS = MHC_WAVE / (N * N), WARPS = 2, EACH = WARPS * TOKENS;
    float d_mixes[WARPS][TOKENS][MIX];
    Handover full[WARPS], empty[WARPS];

    // By one thread; the others see it after a barrier.
    DEVICE_MEMBER void begin() {
        for (u32 box = 0; box < WARPS; ++box) {
            full[box].begin();
            empty[box].begin();
        }
    }
    // By the first warp: of the k-th of `count` tokens.
    DEVICE_MEMBER void put(u32 k, u32 count, float d) {
        const u32 box = k / TOKENS % WARPS, place = k % TOKENS, round = k / EACH;
        if (place == 0 && round > 0) empty[box].wait((round - 1) % 2);
        if (lane_index() < MIX) d_mixes[box][place][lane_index()] = d;
        if (place + 1 == TOKENS || k + 1 == count) full[box].arrive();
    }
};

// The matrices of a wave's tokens where logits lie far apart, and what becomes of them.
template <u32 N> struct Far {
    float logits[N * N], again[N * N], d_logits[N * N];
};

// coefficients_bwd for what comes into `box` of tokens [first, last), with N·N lanes for each; `kept` has room for 2·iters·N
// denominators in f64.
template <u32 N, class A> DEVICE void coefficients_back(const A& a, u64 first, u64 last, u32 box, Mail<N>& mail, double* kept) {
    using M = Mail<N>;
    const u32 MIX = M::MIX, TOKENS = M::TOKENS, COUNT = LaneMatrix<N>::COUNT;
    static_assert(2 * N <= COUNT && TOKENS <= 2, "a lane for each of H_pre and H_post, and denominators that take as much as in f64");
    SHARED Far<N> far_tokens[M::WARPS][TOKENS];
    SHARED double far_matrices[M::WARPS][2 * N * 33];
    Far<N>* far = far_tokens[box];
    double* matrices = far_matrices[box];
    const Form& form = a.raw.form;
    const u32 e = LaneMatrix<N>::element(), mine = lane_index() / COUNT;
    // This lane's coefficients: a gate, in the first lanes, and element m of H_res.
    const bool gate = e < 2 * N, pre = e < N;
    const u32 m = form.lead ? e : e % N * N + e / N, em = 2 * N + m, eg = gate ? e : 0;
    const float alpha_g = a.alpha[pre ? 0 : 1], alpha_m = a.alpha[2], bias_g = a.bias[eg], bias_m = a.bias[em];
    float z_g = 0.0f, z_m = 0.0f, rho = 0.0f;
    const auto fetch = [&](u64 t) {
        if (t >= last) return;
        z_g = a.z.at(t)[eg];
        z_m = a.z.at(t)[em];
        rho = a.inv_rms[t];
    };
    float sum_g[2] = {}, sum_m[2] = {};
    fetch(first + box * TOKENS + mine);
    u32 parity = 0;
#pragma unroll 1
    for (u64 t0 = first + box * TOKENS; t0 < last; t0 += M::EACH) {
        const u64 t = t0 + mine;
        const float zg = z_g, zm = z_m, r = rho;
        fetch(t + M::EACH);
        const float tg = fused(alpha_g, zg, bias_g), s = sigmoid(tg), logit = fused(alpha_m, zm, bias_m);
        far[mine].logits[m] = logit;
        wave_barrier();
        const bool wide = far_apart<false>(N, [&](u32 i, u32 j) { return far[mine].logits[i * N + j]; });
        float* near = (float*)kept + mine;
        float v = lanes_forward<N>(form, logit, [&](u32 k, u32 line, float d) { near[(k * N + line) * TOKENS] = d; });
        mail.full[box].wait(parity);
        parity ^= 1;
        // For the denominators of other lanes, too.
        wave_barrier();
        const float(&up)[TOKENS][MIX] = mail.d_mixes[box];
        const float up_g = up[mine][eg], up_m = up[mine][em];
        float d_m = lanes_back<N>(form, logit, v, up_m, [&](u32 k, u32 line) { return near[(k * N + line) * TOKENS]; });
#pragma unroll 1
        for (u32 h = 0; h < TOKENS; ++h) {
            if (shuffle(wide ? 1.0f : 0.0f, h * COUNT) == 0.0f) continue;
            Far<N>& f = far[h];
            WaveMatrix<double> y = {matrices, N}, g = {matrices + N * 33, N};
            wave_barrier();
            run_backward(
                y, g, form, 0.0, kept, 1, led(form, [&](u32 i, u32 j) { return f.logits[i * N + j]; }),
                led(form,
                    [&](u32 i, u32 j, float v) {
                        f.again[i * N + j] = v;
                        return up[h][2 * N + i * N + j];
                    }),
                led(form, [&](u32 i, u32 j, float v) { f.d_logits[i * N + j] = v; }));
            if (h == mine) {
                v = f.again[m];
                d_m = f.d_logits[m];
            }
        }
        wave_barrier();
        mail.empty[box].arrive();
        // σ' = σ(t)·σ(-t): 1 - σ would lose the digits of a small one.
        const float d_g = gate ? up_g * (pre ? 1.0f : a.raw.post_mult) * s * sigmoid(-tg) : 0.0f;
        float dot = fused(alpha_g * d_g, zg, alpha_m * d_m * zm);
#pragma unroll
        for (u32 k = 1; k < COUNT; k *= 2) dot += shuffle_xor(dot, k);
        if (t >= last) continue;
        sum_g[0] += d_g;
        sum_g[1] = fused(d_g, zg, sum_g[1]);
        sum_m[0] += d_m;
        sum_m[1] = fused(d_m, zm, sum_m[1]);
        a.mixes.at(t)[em] = v;
        a.p[t * MIX + em] = r * alpha_m * d_m;
        if (gate) {
            a.mixes.at(t)[eg] = pre ? s + a.raw.pre_eps : a.raw.post_mult * s;
            a.p[t * MIX + eg] = r * alpha_g * d_g;
        }
        if (e == 0) a.shrink[t] = dot * r * r / (float)(N * a.channels);
    }
    float* sums = a.sums + ((u64)block_x() * M::WARPS + box) * 2 * MIX;
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
#pragma unroll
        for (u32 k = COUNT; k < MHC_WAVE; k *= 2) {
            sum_g[i] += shuffle_xor(sum_g[i], k);
            sum_m[i] += shuffle_xor(sum_m[i], k);
        }
        if (lane_index() >= COUNT) continue;
        sums[i * MIX + em] = sum_m[i];
        if (gate) sums[i * MIX + eg] = sum_g[i];
    }
}
