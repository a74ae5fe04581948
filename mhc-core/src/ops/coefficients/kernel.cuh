// coefficients, coefficients_bwd: a token's projection to its mixing coefficients (arXiv 2512.24880, eq. 7-9), and the gradient.
//
// Math      t = alpha·z + bias;  H_pre = σ(t) + pre_eps;  H_post = post_mult·σ(t);  H_res = Sinkhorn(t)
//           d_bias = Σ_t d_t;  d_alpha_g = Σ_t Σ_{e in g} d_t·z;  d_z = alpha·d_t
// Operands  z, mixes and their gradients [T, n(n+2)], alpha [3], bias [n(n+2)], all f32.
// Mapping   up to 4 streams a thread, else a wave takes a token. backward: d_t goes to scratch; a second kernel adds columns over a
//           fixed number of ranges of tokens, a third adds the ranges in order.
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
    Rows<float> d_z, d_t;
    // The coefficients again, if they are wanted.
    Rows<float> mixes;
    u64 tokens;
    alignas(8) u32 n, channels;
    Form form;
    alignas(8) float pre_eps, post_mult;
    double* sums;
    // Whether there is dynamic shared memory for them.
    alignas(8) u32 near;
};

template <u32 N> DEVICE void coefficients_bwd(const CoefficientsBwd& a) {
    SHARED double shared[Owner<N>::THREAD ? 1 : 4 * MATRIX];
    const u32 n = streams<N>(a.n), one = Owner<N>::THREAD ? 1 : MHC_WAVE;
    double* mine = Owner<N>::THREAD ? shared : shared + wave_index() * 2 * MATRIX;
    const u64 first = ((u64)block_x() * threads() + thread_index()) / one, step = (u64)blocks_x() * threads() / one;
    const float alpha[3] = {a.alpha[0], a.alpha[1], a.alpha[2]};
    DYNAMIC_SHARED(float, near);
    const Sums sums = {a.sums + first, step, a.near ? near + thread_index() : (float*)0};
    for (u64 t = first; t < a.tokens; t += step) {
        const float *z = a.z.at(t), *up = a.d_mixes.at(t);
        float *d_z = a.d_z.at(t), *d_t = a.d_t.at(t), *mixes = a.mixes.p ? a.mixes.at(t) : (float*)0;
        for (u32 e = Owner<N>::THREAD ? 0 : lane_index(); e < 2 * n; e += one) {
            const float scale = e < n ? alpha[0] : alpha[1], v = fused(scale, z[e], a.bias[e]);
            // σ' = σ(t)·σ(-t): 1 - σ would lose the digits of a small one.
            const float s = sigmoid(v), d = up[e] * (e < n ? 1.0f : a.post_mult) * s * sigmoid(-v);
            if (mixes) mixes[e] = e < n ? s + a.pre_eps : a.post_mult * s;
            d_t[e] = d;
            d_z[e] = scale * d;
        }
        project_matrix_back<N>(
            a.form, n, mine, sums,
            [&](u32 i, u32 j) { return fused(alpha[2], z[2 * n + i * n + j], a.bias[2 * n + i * n + j]); },
            [&](u32 i, u32 j, float v) {
                if (mixes) mixes[2 * n + i * n + j] = v;
                return up[2 * n + i * n + j];
            },
            [&](u32 i, u32 j, float v) {
                d_t[2 * n + i * n + j] = v;
                d_z[2 * n + i * n + j] = alpha[2] * v;
            });
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
