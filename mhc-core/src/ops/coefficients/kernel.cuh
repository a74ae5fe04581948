// coefficients, coefficients_bwd: a token's projection to its mixing coefficients (arXiv 2512.24880, eq. 7-9), and the gradient.
//
// Math      t = alpha·z + bias;  H_pre = σ(t) + pre_eps;  H_post = post_mult·σ(t);  H_res = Sinkhorn(t)
//           d_bias = Σ_t d_t;  d_alpha_g = Σ_t Σ_{e in g} d_t·z;  d_z = alpha·d_t
// Operands  z, mixes and their gradients [T, n(n+2)], alpha [3], bias [n(n+2)], all f32.
// Mapping   up to 4 streams a thread, else a wave takes a token. backward: up to 4 streams a block adds what its tokens give to the
//           gradients of bias and alpha, else d_t goes to scratch and a second kernel adds columns over a fixed number of ranges of
//           tokens; a last one adds the blocks or ranges in order.
// Traffic   forward 8n(n+2) bytes a token; backward 12n(n+2), and 12n(n+2) within the cache.
// Numerics  f32 (see sinkhorn.cuh).
#include "sinkhorn.cuh"

struct CoefficientsFwd {
    Rows<const float> z;
    const float* alpha;
    const float* bias;
    Rows<float> mixes;
    u64 tokens;
    alignas(8) u32 n, channels;
    Form form;
    alignas(8) float pre_eps, post_mult;
};

template <u32 N> DEVICE void coefficients_fwd(const CoefficientsFwd& a) {
    SHARED double shared[Owner<N>::THREAD ? 1 : 2 * MATRIX];
    const u32 n = streams<N>(a.n), one = Owner<N>::THREAD ? 1 : MHC_WAVE;
    double* mine = Owner<N>::THREAD ? shared : shared + wave_index() * MATRIX;
    const u64 first = ((u64)block_x() * threads() + thread_index()) / one, step = (u64)blocks_x() * threads() / one;
    const float alpha[3] = {a.alpha[0], a.alpha[1], a.alpha[2]};
    for (u64 t = first; t < a.tokens; t += step) {
        const float* z = a.z.at(t);
        float* mixes = a.mixes.at(t);
        for (u32 e = Owner<N>::THREAD ? 0 : lane_index(); e < 2 * n; e += one) {
            const float s = sigmoid(fused(e < n ? alpha[0] : alpha[1], z[e], a.bias[e]));
            mixes[e] = e < n ? s + a.pre_eps : a.post_mult * s;
        }
        project_matrix<N>(
            a.form, n, mine,
            [&](u32 i, u32 j) { return fused(alpha[2], z[2 * n + i * n + j], a.bias[2 * n + i * n + j]); },
            [&](u32 i, u32 j, float v) { mixes[2 * n + i * n + j] = v; });
    }
}

struct CoefficientsBwd {
    Rows<const float> z;
    const float* alpha;
    const float* bias;
    Rows<const float> d_mixes;
    // What is wanted of these: the gradient of z; that of t; the coefficients again.
    Rows<float> d_z, d_t;
    Rows<float> mixes;
    // What the gradient of the projection takes, if it comes next: p = ρ·d_z [T, n(n+2)] and s = ρ²/K·⟨d_z, z⟩ [T].
    const float* inv_rms;
    float* p;
    float* shrink;
    // Up to 4 streams: [blocks, 2, n(n+2)], sums of d_t and of d_t·z over a block's tokens.
    float* parts;
    u64 tokens;
    alignas(8) u32 n, channels;
    Form form;
    alignas(8) float pre_eps, post_mult;
    double* sums;
    // Whether there is dynamic shared memory for them.
    alignas(8) u32 near;
};

DEVICE float of_group(const float (&alpha)[3], u32 n, u32 e) {
    // Chosen among values: a place in an array would have to be in memory.
    const float pre = alpha[0], post = alpha[1], res = alpha[2];
    return e < n ? pre : e < 2 * n ? post : res;
}

// The gradient of t of one token, `put(e, v)`; by a thread or by a wave.
template <u32 N, class F>
DEVICE void token_bwd(const CoefficientsBwd& a, u32 n, u64 t, const float (&alpha)[3], double* mine, const Sums& sums, F put) {
    const u32 one = Owner<N>::THREAD ? 1 : MHC_WAVE;
    const float *z = a.z.at(t), *up = a.d_mixes.at(t);
    float* mixes = a.mixes.p ? a.mixes.at(t) : (float*)0;
    for (u32 e = Owner<N>::THREAD ? 0 : lane_index(); e < 2 * n; e += one) {
        const float v = fused(of_group(alpha, n, e), z[e], a.bias[e]);
        // σ' = σ(t)·σ(-t): 1 - σ would lose the digits of a small one.
        const float s = sigmoid(v);
        if (mixes) mixes[e] = e < n ? s + a.pre_eps : a.post_mult * s;
        put(e, up[e] * (e < n ? 1.0f : a.post_mult) * s * sigmoid(-v));
    }
    project_matrix_back<N>(
        a.form, n, mine, sums,
        [&](u32 i, u32 j) { return fused(alpha[2], z[2 * n + i * n + j], a.bias[2 * n + i * n + j]); },
        [&](u32 i, u32 j, float v) {
            if (mixes) mixes[2 * n + i * n + j] = v;
            return up[2 * n + i * n + j];
        },
        [&](u32 i, u32 j, float v) { put(2 * n + i * n + j, v); });
}

// A token a thread, whose sums over the block go on from shared memory.
template <u32 N> DEVICE void coefficients_bwd_few(const CoefficientsBwd& a, const float (&alpha)[3], const Sums& sums) {
    const u32 MIX = N * (N + 2), MOST = 64;
    SHARED float column[2 * MIX][MOST + 1];
    float total[2 * MIX / MHC_WAVE + 1] = {};
    for (u64 t0 = (u64)block_x() * threads(); t0 < a.tokens; t0 += (u64)blocks_x() * threads()) {
        const u64 t = t0 + thread_index();
        if (t < a.tokens) {
            token_bwd<N>(a, N, t, alpha, (double*)0, sums, [&](u32 e, float v) { column[e][thread_index()] = v; });
            const float* z = a.z.at(t);
            const float rho = a.p ? a.inv_rms[t] : 0.0f;
            float dot = 0.0f;
#pragma unroll
            for (u32 e = 0; e < MIX; ++e) {
                const float d_t = column[e][thread_index()], d_z = of_group(alpha, N, e) * d_t, v = z[e];
                column[MIX + e][thread_index()] = d_t * v;
                dot = fused(d_z, v, dot);
                if (a.d_z.p) a.d_z.at(t)[e] = d_z;
                if (a.p) a.p[t * MIX + e] = rho * d_z;
            }
            if (a.p) a.shrink[t] = dot * rho * rho / (float)(N * a.channels);
        } else {
            for (u32 e = 0; e < 2 * MIX; ++e) column[e][thread_index()] = 0.0f;
        }
        barrier();
#pragma unroll
        for (u32 k = 0; k < 2 * MIX / MHC_WAVE + 1; ++k) {
            const u32 e = thread_index() + k * threads();
            if (e >= 2 * MIX) continue;
#pragma unroll 8
            for (u32 i = 0; i < threads(); ++i) total[k] += column[e][i];
        }
        barrier();
    }
#pragma unroll
    for (u32 k = 0; k < 2 * MIX / MHC_WAVE + 1; ++k) {
        const u32 e = thread_index() + k * threads();
        if (e < 2 * MIX) a.parts[(u64)block_x() * 2 * MIX + e] = total[k];
    }
}

template <u32 N> DEVICE void coefficients_bwd(const CoefficientsBwd& a) {
    const float alpha[3] = {a.alpha[0], a.alpha[1], a.alpha[2]};
    const u32 one = Owner<N>::THREAD ? 1 : MHC_WAVE;
    const u64 first = ((u64)block_x() * threads() + thread_index()) / one, step = (u64)blocks_x() * threads() / one;
    DYNAMIC_SHARED(float, near);
    const Sums sums = {a.sums + first, step, a.near ? near + thread_index() : (float*)0};
    if constexpr (Owner<N>::THREAD) {
        coefficients_bwd_few<N>(a, alpha, sums);
    } else {
        SHARED double shared[4 * MATRIX];
        const u32 n = streams<N>(a.n), mix = n * (n + 2);
        for (u64 t = first; t < a.tokens; t += step) {
            const float *z = a.z.at(t), rho = a.p ? a.inv_rms[t] : 0.0f;
            float dot = 0.0f;
            token_bwd<N>(a, n, t, alpha, shared + wave_index() * 2 * MATRIX, sums, [&](u32 e, float d_t) {
                const float d_z = of_group(alpha, n, e) * d_t;
                a.d_t.at(t)[e] = d_t;
                dot = fused(d_z, z[e], dot);
                if (a.d_z.p) a.d_z.at(t)[e] = d_z;
                if (a.p) a.p[t * mix + e] = rho * d_z;
            });
            dot = wave_sum(dot);
            if (a.p && lane_index() == 0) a.shrink[t] = dot * rho * rho / (float)(n * a.channels);
        }
    }
}

struct CoefficientsSums {
    Rows<const float> z, d_t;
    float* parts;
    u64 tokens;
    alignas(8) u32 columns;
};

// parts [ranges, 2, columns]: sums of d_t and of d_t·z over a range of tokens. A block takes 32 columns in 8 groups of tokens.
DEVICE void coefficients_bwd_sums(const CoefficientsSums& a) {
    SHARED float group[8][2][32];
    const u32 mix = a.columns, column = thread_index() % 32, g = thread_index() / 32, e = block_x() * 32 + column;
    const u64 range = (a.tokens + blocks_y() - 1) / blocks_y(), first = block_y() * range;
    const u64 last = first + range < a.tokens ? first + range : a.tokens;
    float sum = 0.0f, with_z = 0.0f;
    if (e < mix) {
        for (u64 t = first + g; t < last; t += 8) {
            const float d = a.d_t.at(t)[e];
            sum += d;
            with_z = fused(d, a.z.at(t)[e], with_z);
        }
    }
    group[g][0][column] = sum;
    group[g][1][column] = with_z;
    barrier();
    if (g < 2 && e < mix) {
        float all = 0.0f;
        for (u32 i = 0; i < 8; ++i) all += group[i][g][column];
        a.parts[((u64)block_y() * 2 + g) * mix + e] = all;
    }
}

struct CoefficientsTotal {
    const float* parts;
    float* d_alpha;
    float* d_bias;
    alignas(8) u32 ranges, columns, n, groups;
};

// One block: 32 columns at a time, whose ranges 8 groups of threads add; then the elements of each alpha.
DEVICE void coefficients_bwd_total(const CoefficientsTotal& a) {
    SHARED float scratch[MAX_WAVES];
    SHARED float group[8][2][32];
    const u32 n = a.n, mix = a.columns, column = thread_index() % 32, g = thread_index() / 32;
    float alpha[3] = {};
    for (u32 e0 = 0; e0 < mix; e0 += 32) {
        const u32 e = e0 + column;
        float sum = 0.0f, with_z = 0.0f;
        if (e < mix) {
#pragma unroll 8
            for (u32 r = g; r < a.ranges; r += 8) {
                sum += a.parts[(u64)r * 2 * mix + e];
                with_z += a.parts[((u64)r * 2 + 1) * mix + e];
            }
        }
        group[g][0][column] = sum;
        group[g][1][column] = with_z;
        barrier();
        if (g == 0 && e < mix) {
            for (u32 k = 1; k < 8; ++k) {
                sum += group[k][0][column];
                with_z += group[k][1][column];
            }
            a.d_bias[e] = sum;
            if (e < n) alpha[0] += with_z;
            else if (e < 2 * n) alpha[1] += with_z;
            else alpha[2] += with_z;
        }
        barrier();
    }
#pragma unroll
    for (u32 g = 0; g < 3; ++g) {
        const float sum = block_sum(alpha[g], scratch);
        if (thread_index() == 0 && g < a.groups) a.d_alpha[g] = sum;
    }
}

#define MHC_KERNEL_coefficients_fwd(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 128, 4, CoefficientsFwd, coefficients_fwd<N>)
#define MHC_KERNEL_coefficients_bwd(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 128, 2, CoefficientsBwd, coefficients_bwd<N>)
#define MHC_KERNEL_coefficients_bwd_sums(NAME, E, N) MHC_ENTRY(NAME, 256, CoefficientsSums, coefficients_bwd_sums)
#define MHC_KERNEL_coefficients_bwd_total(NAME, E, N) MHC_ENTRY(NAME, 256, CoefficientsTotal, coefficients_bwd_total)
