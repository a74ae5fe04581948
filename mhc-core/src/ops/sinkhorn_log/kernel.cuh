// sinkhorn_log, sinkhorn_log_bwd: Sinkhorn in the log domain, memory rows first, and the exact gradient.
//
// Math      Z = logits/τ;  u_i = -ln n - lse_j(Z_ij + v_j), then v_j = -ln n - lse_i(Z_ij + u_i), from v = 0;  H = n·exp(Z + u + v)
// Operands  logits, h_res and their gradients [T, n, n] f32.
// Mapping   a wave takes a matrix, a lane a row, then a column. backward: u and v of every iteration lie in scratch of a fixed number of
//           waves, which go from matrix to matrix.
// Traffic   forward 8n² bytes a matrix; backward 12n², and 16·iters·n within the cache.
// Numerics  f32.
#include "operand.cuh"
#include "reduce.cuh"

static const u32 LINE = 33, LOG_MATRIX = 32 * 33;

struct SinkhornLogFwd {
    Streams<const float> logits;
    Streams<float> h_res;
    u64 tokens;
    alignas(8) u32 n, iters;
    alignas(8) float tau;
};

// lse_k(Z + p) along row l, or along column l.
template <bool ROW> DEVICE float log_sum(u32 n, const float* z, const float* p, u32 l) {
    float max = -3.0e38f, sum = 0.0f;
    for (u32 k = 0; k < n; ++k) max = larger(max, z[ROW ? l * LINE + k : k * LINE + l] + p[k]);
    for (u32 k = 0; k < n; ++k) sum += exponential(z[ROW ? l * LINE + k : k * LINE + l] + p[k] - max);
    return max + logarithm(sum);
}

// Reads the logits and leaves Z, u and v; `save(k, l, u, v)` gets them after every iteration.
template <class F> DEVICE void log_forward(Rows<const float> logits, u32 n, u32 iters, float tau, float* z, float* u, float* v, F save) {
    const u32 l = lane_index();
    const float marginal = -logarithm((float)n);
    if (l < n) {
        for (u32 k = 0; k < n; ++k) z[l * LINE + k] = logits.at(l)[k] / tau;
        u[l] = v[l] = 0.0f;
    }
    wave_barrier();
    for (u32 k = 0; k < iters; ++k) {
        if (l < n) u[l] = marginal - log_sum<true>(n, z, v, l);
        wave_barrier();
        if (l < n) v[l] = marginal - log_sum<false>(n, z, u, l);
        wave_barrier();
        if (l < n) save(k, l, u[l], v[l]);
    }
}

DEVICE void sinkhorn_log_fwd(const SinkhornLogFwd& a) {
    SHARED float shared[2][LOG_MATRIX + 64];
    float *z = shared[wave_index()], *u = z + LOG_MATRIX, *v = u + 32;
    const u32 n = a.n, l = lane_index();
    for (u64 t = (u64)block_x() * waves() + wave_index(); t < a.tokens; t += (u64)blocks_x() * waves()) {
        log_forward(a.logits.at(t), n, a.iters, a.tau, z, u, v, [](u32, u32, float, float) {});
        for (u32 k = 0; l < n && k < n; ++k) a.h_res.at(t).at(l)[k] = (float)n * exponential(z[l * LINE + k] + u[l] + v[k]);
        wave_barrier();
    }
}

struct SinkhornLogBwd {
    Streams<const float> logits, d_h_res;
    Streams<float> d_logits;
    u64 tokens;
    alignas(8) u32 n, iters;
    alignas(8) float tau;
    // [waves, iters, 2, n]
    float* saved;
};

DEVICE void sinkhorn_log_bwd(const SinkhornLogBwd& a) {
    SHARED float shared[2][2 * LOG_MATRIX + 128];
    float *z = shared[wave_index()], *g = z + LOG_MATRIX, *u = g + LOG_MATRIX, *v = u + 32, *d_u = v + 32, *d_v = d_u + 32;
    const u32 n = a.n, l = lane_index();
    const u64 mine = (u64)block_x() * waves() + wave_index();
    float* saved = a.saved + mine * a.iters * 2 * n;
    const float marginal = -logarithm((float)n);
    for (u64 t = mine; t < a.tokens; t += (u64)blocks_x() * waves()) {
        log_forward(a.logits.at(t), n, a.iters, a.tau, z, u, v, [&](u32 k, u32 i, float us, float vs) {
            saved[k * 2 * n + i] = us;
            saved[k * 2 * n + n + i] = vs;
        });
        for (u32 k = 0; l < n && k < n; ++k) {
            g[l * LINE + k] = a.d_h_res.at(t).at(l)[k] * (float)n * exponential(z[l * LINE + k] + u[l] + v[k]);
        }
        wave_barrier();
        if (l < n) {
            float row = 0.0f, column = 0.0f;
            for (u32 k = 0; k < n; ++k) {
                row += g[l * LINE + k];
                column += g[k * LINE + l];
            }
            d_u[l] = row;
            d_v[l] = column;
        }
        wave_barrier();
        for (u32 k = a.iters; k-- > 0;) {
            // u and v hold those after iteration k. The softmaxes are exp(Z + u - lse) with lse = marginal - v, and the like.
            if (l < n) {
                float sum = 0.0f;
                for (u32 j = 0; j < n; ++j) {
                    const float w = exponential(z[l * LINE + j] + u[l] + v[j] - marginal) * d_v[j];
                    g[l * LINE + j] -= w;
                    sum += w;
                }
                d_u[l] -= sum;
            }
            wave_barrier();
            if (l < n) v[l] = k > 0 ? saved[(k - 1) * 2 * n + n + l] : 0.0f;
            wave_barrier();
            if (l < n) {
                float sum = 0.0f;
                for (u32 i = 0; i < n; ++i) {
                    const float w = exponential(z[i * LINE + l] + v[l] + u[i] - marginal) * d_u[i];
                    g[i * LINE + l] -= w;
                    sum += w;
                }
                d_v[l] = -sum;
            }
            wave_barrier();
            if (l < n) {
                d_u[l] = 0.0f;
                if (k > 0) u[l] = saved[(k - 1) * 2 * n + l];
            }
            wave_barrier();
        }
        for (u32 k = 0; l < n && k < n; ++k) a.d_logits.at(t).at(l)[k] = g[l * LINE + k] / a.tau;
        wave_barrier();
    }
}

#define MHC_KERNEL_sinkhorn_log_fwd(NAME, E, N) MHC_ENTRY(NAME, 128, SinkhornLogFwd, sinkhorn_log_fwd)
#define MHC_KERNEL_sinkhorn_log_bwd(NAME, E, N) MHC_ENTRY(NAME, 128, SinkhornLogBwd, sinkhorn_log_bwd)
