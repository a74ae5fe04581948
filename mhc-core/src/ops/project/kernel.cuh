// project, project_bwd: RMSNorm of a token's flattened row and its projection (arXiv 2512.24880, eq. 5, 7), and the gradient. P columns:
// n(n+2) for the coefficients, n for the head.
//
// Math      z_j = ρ·Σ_k φ[j,k]·w[k]·x[k],  ρ = (Σ_k x[k]²/K + ε)^(-1/2)
//           p_j = ρ·d_z_j;  s = ρ²/K·Σ_j d_z_j·z_j;  d_x[k] = Σ_j p_j·φ[j,k]·w[k] - s·x[k]
//           G[j,k] = Σ_t p_j·x[k];  d_φ[j,k] = w[k]·G[j,k];  d_w[k] = Σ_j φ[j,k]·G[j,k]
//           In `pre` and the layers d_x also takes H_pre[i]·d_li + Σ_l H_res[l,i]·d_x_next_l.
// Operands  x, d_x, d_li, d_x_next of type E; everything else f32.
// Mapping   forward: 64 tokens × 32 columns a block, over one of a number of ranges of K that depends on K and P alone, so that a token's
//           result does not depend on the others; a second kernel adds the ranges. d_x: 64 tokens × 64 channels a block, inner sum over
//           columns. G: 32 columns × 64 channels, over one of a fixed number of ranges of tokens.
// Traffic   forward x and φ once, and 8·ranges·(P + 1) bytes a token; d_x 2K elements a token; G 1K a token.
// Numerics  f32 throughout, φ too.
#include "projection.cuh"
#include "reduce.cuh"
#include "vector.cuh"

// Tokens, columns and channels of a tile; rows of shared memory are 4 longer, to keep off each other's banks.
static const u32 TOKENS = 64, COLUMNS = 32, DEPTH = 32, CHANNELS = 64;

// `COUNT` values from p, of which those at or past `left` are 0; `wide` says that they may be loaded together.
template <u32 COUNT, class E> DEVICE void fetch(const E* p, u32 left, bool wide, float (&f)[COUNT]) {
    if (wide && left >= COUNT) {
        load(p, f);
    } else {
#pragma unroll
        for (u32 k = 0; k < COUNT; ++k) f[k] = k < left ? to_float(p[k]) : 0.0f;
    }
}

DEVICE u32 remaining(u64 all, u64 from) { return from < all ? (u32)(all - from < 1u << 30 ? all - from : 1u << 30) : 0; }

// parts [ranges, T, P], squares [ranges, T]. A range is `steps` steps of DEPTH channels; no step crosses streams.
template <class E> DEVICE void project_fwd(const ProjectFwd<E>& a) {
    alignas(16) SHARED float xs[TOKENS][DEPTH + 4];
    alignas(16) SHARED float ps[COLUMNS][DEPTH + 4];
    const u32 tid = thread_index(), per_stream = (a.channels + DEPTH - 1) / DEPTH;
    const u32 first = block_z() * a.steps, last = smaller(first + a.steps, per_stream * a.n);
    const u32 column0 = block_y() * COLUMNS;
    const bool wide = a.channels % 8 == 0 && aligned(a.x.p, a.x.token | a.x.stream) && aligned(a.phi.p, a.phi.step) &&
                      aligned(a.weight, 0);
    const u32 row = tid / 4, part = tid % 4 * 8, column = tid / 8, four = tid % 8 * 4;
    const u32 ty = tid / 16, tx = tid % 16;
    for (u64 t0 = (u64)block_x() * TOKENS; t0 < a.tokens; t0 += (u64)blocks_x() * TOKENS) {
        const u64 token = t0 + row;
        float acc[4][2] = {}, square = 0.0f;
        for (u32 q = first; q < last; ++q) {
            const u32 i = q / per_stream, c0 = q % per_stream * DEPTH;
            float xv[8] = {}, pv[4] = {};
            if (token < a.tokens) fetch(a.x.at(token).at(i) + c0 + part, remaining(a.channels, c0 + part), wide, xv);
            if (column0 + column < a.columns) {
                const u64 k = (u64)i * a.channels + c0 + four;
                fetch(a.phi.at(column0 + column) + k, remaining(a.channels, c0 + four), wide, pv);
                if (a.weight) {
                    float w[4];
                    fetch(a.weight + k, remaining(a.channels, c0 + four), wide, w);
#pragma unroll
                    for (u32 e = 0; e < 4; ++e) pv[e] *= w[e];
                }
            }
            barrier();
#pragma unroll
            for (u32 e = 0; e < 8; ++e) square = fused(xv[e], xv[e], square);
            float lo[4] = {xv[0], xv[1], xv[2], xv[3]}, hi[4] = {xv[4], xv[5], xv[6], xv[7]};
            store(&xs[row][part], lo);
            store(&xs[row][part + 4], hi);
            store(&ps[column][four], pv);
            barrier();
#pragma unroll
            for (u32 k = 0; k < DEPTH; k += 4) {
                float b[2][4];
                load(&ps[tx][k], b[0]);
                load(&ps[tx + 16][k], b[1]);
#pragma unroll
                for (u32 r = 0; r < 4; ++r) {
                    float v[4];
                    load(&xs[ty * 4 + r][k], v);
#pragma unroll
                    for (u32 e = 0; e < 4; ++e) {
                        acc[r][0] = fused(v[e], b[0][e], acc[r][0]);
                        acc[r][1] = fused(v[e], b[1][e], acc[r][1]);
                    }
                }
            }
        }
        const u64 base = (u64)block_z() * a.tokens;
#pragma unroll
        for (u32 r = 0; r < 4; ++r) {
            const u64 t = t0 + ty * 4 + r;
#pragma unroll
            for (u32 s = 0; s < 2; ++s) {
                const u32 j = column0 + tx + s * 16;
                if (t < a.tokens && j < a.columns) a.parts[(base + t) * a.columns + j] = acc[r][s];
            }
        }
        square += shuffle_xor(square, 1);
        square += shuffle_xor(square, 2);
        if (block_y() == 0 && part == 0 && token < a.tokens) a.squares[base + token] = square;
    }
}

struct ProjectFinish {
    const float* parts;
    const float* squares;
    Rows<float> z;
    float* inv_rms;
    u64 tokens;
    alignas(8) u32 columns, ranges;
    alignas(8) float row, eps;
};

DEVICE void project_fwd_finish(const ProjectFinish& a) {
    const u64 all = a.tokens * a.columns, step = (u64)blocks_x() * threads();
    for (u64 e = (u64)block_x() * threads() + thread_index(); e < all; e += step) {
        const u64 t = e / a.columns;
        const u32 j = (u32)(e % a.columns);
        float square = 0.0f, sum = 0.0f;
#pragma unroll 4
        for (u32 r = 0; r < a.ranges; ++r) {
            square += a.squares[r * a.tokens + t];
            sum += a.parts[r * all + e];
        }
        const float rho = 1.0f / square_root(square / a.row + a.eps);
        a.z.at(t)[j] = rho * sum;
        if (j == 0 && a.inv_rms) a.inv_rms[t] = rho;
    }
}

struct ProjectTokens {
    Rows<const float> z;
    const float* inv_rms;
    Rows<const float> d_z;
    float* p;
    float* shrink;
    u64 tokens;
    alignas(8) u32 columns;
    alignas(8) float row;
};

// p [T, P] and shrink [T], the s of the formula: a wave takes a token.
DEVICE void project_bwd_tokens(const ProjectTokens& a) {
    const u64 step = (u64)blocks_x() * waves();
    for (u64 t = (u64)block_x() * waves() + wave_index(); t < a.tokens; t += step) {
        const float rho = a.inv_rms[t];
        float dot = 0.0f;
        for (u32 j = lane_index(); j < a.columns; j += MHC_WAVE) {
            const float d = a.d_z.at(t)[j];
            dot = fused(d, a.z.at(t)[j], dot);
            a.p[t * a.columns + j] = rho * d;
        }
        dot = wave_sum(dot);
        if (lane_index() == 0) a.shrink[t] = dot * rho * rho / a.row;
    }
}

template <class E, class O> DEVICE void project_bwd_x(const ProjectDx<E, O>& a) {
    alignas(16) SHARED float tokens[COLUMNS][TOKENS + 4];
    alignas(16) SHARED float ps[COLUMNS][CHANNELS + 4];
    const u32 tid = thread_index(), per_stream = (a.channels + CHANNELS - 1) / CHANNELS;
    const u32 i = block_x() / per_stream, c0 = block_x() % per_stream * CHANNELS;
    const bool wide = a.channels % 8 == 0 && aligned(a.x.p, a.x.token | a.x.stream) && aligned(a.phi.p, a.phi.step) &&
                      aligned(a.weight, 0) && aligned(a.d_x.p, a.d_x.token | a.d_x.stream) &&
                      aligned(a.d_li.p, a.d_li.step) && aligned(a.d_x_next.p, a.d_x_next.token | a.d_x_next.stream);
    const u32 row = tid / 4, part = tid % 4 * 8, column = tid / 8, eight = tid % 8 * 8;
    const u32 ty = tid / 16, tx = tid % 16, c = c0 + tx * 4, left = remaining(a.channels, c);
    for (u64 t0 = (u64)block_y() * TOKENS; t0 < a.tokens; t0 += (u64)blocks_y() * TOKENS) {
        float acc[4][4] = {};
        for (u32 j0 = 0; j0 < a.columns; j0 += COLUMNS) {
            float pv[8] = {}, fv[8] = {};
            if (t0 + row < a.tokens) {
                fetch(a.p + (t0 + row) * a.columns + j0 + part, remaining(a.columns, j0 + part), false, pv);
            }
            if (j0 + column < a.columns) {
                const u64 k = (u64)i * a.channels + c0 + eight;
                fetch(a.phi.at(j0 + column) + k, remaining(a.channels, c0 + eight), wide, fv);
                if (a.weight) {
                    float w[8];
                    fetch(a.weight + k, remaining(a.channels, c0 + eight), wide, w);
#pragma unroll
                    for (u32 e = 0; e < 8; ++e) fv[e] *= w[e];
                }
            }
            barrier();
#pragma unroll
            for (u32 e = 0; e < 8; ++e) {
                tokens[part + e][row] = pv[e];
                ps[column][eight + e] = fv[e];
            }
            barrier();
            const u32 some = smaller(COLUMNS, a.columns - j0);
#pragma unroll 4
            for (u32 j = 0; j < some; ++j) {
                float p[4], f[4];
                load(&tokens[j][ty * 4], p);
                load(&ps[j][tx * 4], f);
#pragma unroll
                for (u32 r = 0; r < 4; ++r) {
#pragma unroll
                    for (u32 e = 0; e < 4; ++e) acc[r][e] = fused(p[r], f[e], acc[r][e]);
                }
            }
        }
        for (u32 r = 0; r < 4; ++r) {
            const u64 t = t0 + ty * 4 + r;
            if (t >= a.tokens || left == 0) continue;
            float v[4], d[4];
            fetch(a.x.at(t).at(i) + c, left, wide, v);
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                // Of a row that changes from turn to turn, and so not by an index that the compiler cannot see.
                const float through = r == 0 ? acc[0][e] : r == 1 ? acc[1][e] : r == 2 ? acc[2][e] : acc[3][e];
                d[e] = through - v[e] * a.shrink[t];
            }
            if (a.d_li.p || a.d_li_f32.p) {
                const float h = a.mixes.at(t)[i];
                if (a.d_li.p) fetch(a.d_li.at(t) + c, left, wide, v);
                else fetch(a.d_li_f32.at(t) + c, left, false, v);
#pragma unroll
                for (u32 e = 0; e < 4; ++e) d[e] = fused(h, v[e], d[e]);
            }
            for (u32 l = a.from_to == 2 ? i : 0; a.d_x_next.p && l < (a.from_to == 2 ? i + 1 : a.n); ++l) {
                const float h = a.from_to == 2 ? 1.0f : a.mixes.at(t)[2 * a.n + mix_index(a.n, a.from_to, l, i)];
                fetch(a.d_x_next.at(t).at(l) + c, left, wide, v);
#pragma unroll
                for (u32 e = 0; e < 4; ++e) d[e] = fused(h, v[e], d[e]);
            }
            O* out = a.d_x.at(t).at(i) + c;
            if (wide && left >= 4) {
                store(out, d);
            } else {
#pragma unroll
                for (u32 e = 0; e < 4; ++e) {
                    if (e < left) from_float(d[e], out[e]);
                }
            }
        }
    }
}

template <class E> struct ProjectDphi {
    Streams<const E> x;
    const float* p;
    float* parts;
    u64 tokens;
    alignas(8) u32 n, channels, columns;
};

// parts [ranges, P, K]: G over a range of tokens.
template <class E> DEVICE void project_bwd_phi(const ProjectDphi<E>& a) {
    alignas(16) SHARED float xs[DEPTH][CHANNELS + 4];
    alignas(16) SHARED float ps[DEPTH][COLUMNS + 4];
    const u32 tid = thread_index(), per_stream = (a.channels + CHANNELS - 1) / CHANNELS;
    const u32 i = block_x() / per_stream, c0 = block_x() % per_stream * CHANNELS, j0 = block_y() * COLUMNS;
    const bool wide = a.channels % 8 == 0 && aligned(a.x.p, a.x.token | a.x.stream);
    const u64 range = (a.tokens + blocks_z() - 1) / blocks_z(), first = block_z() * range;
    const u64 last = first + range < a.tokens ? first + range : a.tokens;
    const u32 row = tid / 8, eight = tid % 8 * 8, four = tid % 8 * 4, ty = tid / 16, tx = tid % 16;
    float acc[2][4] = {};
    for (u64 t0 = first; t0 < last; t0 += DEPTH) {
        float xv[8] = {}, pv[4] = {};
        if (t0 + row < last) {
            fetch(a.x.at(t0 + row).at(i) + c0 + eight, remaining(a.channels, c0 + eight), wide, xv);
            fetch(a.p + (t0 + row) * a.columns + j0 + four, remaining(a.columns, j0 + four), false, pv);
        }
        barrier();
#pragma unroll
        for (u32 e = 0; e < 8; ++e) xs[row][eight + e] = xv[e];
        store(&ps[row][four], pv);
        barrier();
#pragma unroll 8
        for (u32 t = 0; t < DEPTH; ++t) {
            float v[4], p[2];
            load(&xs[t][tx * 4], v);
            load(&ps[t][ty * 2], p);
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                acc[0][e] = fused(p[0], v[e], acc[0][e]);
                acc[1][e] = fused(p[1], v[e], acc[1][e]);
            }
        }
    }
    const u64 row_length = (u64)a.n * a.channels;
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        const u32 j = j0 + ty * 2 + r;
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            const u32 c = c0 + tx * 4 + e;
            if (j < a.columns && c < a.channels) {
                a.parts[((u64)block_z() * a.columns + j) * row_length + (u64)i * a.channels + c] = acc[r][e];
            }
        }
    }
}

struct ProjectWeights {
    const float* parts;
    Rows<const float> phi;
    const float* weight;
    Rows<float> d_phi;
    float* d_weight;
    u64 row;
    alignas(8) u32 columns, ranges;
};

// The ranges in order; with a weight, one block of rows does all columns, as their sum is its gradient.
DEVICE void project_bwd_weights(const ProjectWeights& a) {
    const u64 k = (u64)block_x() * threads() + thread_index();
    if (k >= a.row) return;
    const float w = a.weight ? a.weight[k] : 1.0f;
    float along = 0.0f;
    for (u32 j = block_y(); j < a.columns; j += blocks_y()) {
        float sum = 0.0f;
#pragma unroll 8
        for (u32 r = 0; r < a.ranges; ++r) sum += a.parts[((u64)r * a.columns + j) * a.row + k];
        a.d_phi.at(j)[k] = sum * w;
        along = fused(sum, a.phi.at(j)[k], along);
    }
    if (a.d_weight) a.d_weight[k] = along;
}

#define MHC_KERNEL_project_fwd(NAME, E, N) MHC_ENTRY(NAME, 256, ProjectFwd<E>, project_fwd<E>)
#define MHC_KERNEL_project_fwd_finish(NAME, E, N) MHC_ENTRY(NAME, 256, ProjectFinish, project_fwd_finish)
#define MHC_KERNEL_project_bwd_tokens(NAME, E, N) MHC_ENTRY(NAME, 256, ProjectTokens, project_bwd_tokens)
template <class E> using ProjectDxSame = ProjectDx<E, E>;
template <class E> using ProjectDxWide = ProjectDx<E, float>;
#define MHC_KERNEL_project_bwd_x(NAME, E, N) MHC_ENTRY(NAME, 256, ProjectDxSame<E>, project_bwd_x<E, E>)
#define MHC_KERNEL_project_bwd_x_f32(NAME, E, N) MHC_ENTRY(NAME, 256, ProjectDxWide<E>, project_bwd_x<E, float>)
#define MHC_KERNEL_project_bwd_phi(NAME, E, N) MHC_ENTRY(NAME, 256, ProjectDphi<E>, project_bwd_phi<E>)
#define MHC_KERNEL_project_bwd_weights(NAME, E, N) MHC_ENTRY(NAME, 256, ProjectWeights, project_bwd_weights)
