// orthostochastic, orthostochastic_bwd: squares of a nearly orthogonal matrix by Newton-Schulz iteration, and the exact gradient.
//
// Math      X = L/(‖L‖ + ε);  for each (a, b, c): A = X·Xᵀ, B = b·A + c·A², X ← a·X + B·X;  H = X∘X
//           backwards: G = 2X∘d_H;  D = G·Xᵀ, S = b·D + c·(D·A + A·D), G ← a·G + B·G + (S + Sᵀ)·X;  d_L = G/q - L·⟨G, L⟩/(q²‖L‖), q = ‖L‖ + ε
// Operands  logits, h_res and their gradients [T, n, n] f32.
// Mapping   a wave takes a matrix, a lane a column. backward: every X lies in scratch of a fixed number of waves, which go from matrix to
//           matrix.
// Traffic   forward 8n² bytes a matrix; backward 12n², and 8·steps·n² within the cache.
// Numerics  f32 matrices, f64 sums: the steps multiply small singular values, and with them what is lost, by up to 7 each.
#include "operand.cuh"
#include "reduce.cuh"

static const u32 LINE = 33, SQUARE = 32 * 33, STEPS = 16;

struct Coefficient {
    alignas(8) float v;
};

// out = p·m + Σ_k left[i][k]·right[k][j], with the right one's or the left one's transpose taken where asked; out is none of them.
template <bool LEFT_T, bool RIGHT_T>
DEVICE void multiply(u32 n, float* out, const float* left, const float* right, float p, const float* m) {
    const u32 j = lane_index();
    for (u32 i = 0; j < n && i < n; ++i) {
        double sum = (double)p * m[i * LINE + j];
        for (u32 k = 0; k < n; ++k) {
            sum += (double)(LEFT_T ? left[k * LINE + i] : left[i * LINE + k]) * (RIGHT_T ? right[j * LINE + k] : right[k * LINE + j]);
        }
        out[i * LINE + j] = (float)sum;
    }
    wave_barrier();
}

// out = p·a + q·b, which may be one of them.
DEVICE void combine(u32 n, float* out, float p, const float* a, float q, const float* b) {
    const u32 j = lane_index();
    for (u32 i = 0; j < n && i < n; ++i) out[i * LINE + j] = fused(p, a[i * LINE + j], q * b[i * LINE + j]);
    wave_barrier();
}

// X = L/q; gives ‖L‖.
DEVICE float scale(Rows<const float> logits, u32 n, float eps, float* x) {
    const u32 j = lane_index();
    float square = 0.0f;
    for (u32 i = 0; j < n && i < n; ++i) square = fused(logits.at(i)[j], logits.at(i)[j], square);
    const float norm = square_root(wave_sum(square));
    for (u32 i = 0; j < n && i < n; ++i) x[i * LINE + j] = logits.at(i)[j] / (norm + eps);
    wave_barrier();
    return norm;
}

// B into `b` from A in `a`, with A² on the way.
DEVICE void polynomial(u32 n, float* b, const float* a, float* square, float pb, float pc) {
    multiply<false, false>(n, square, a, a, 0.0f, a);
    combine(n, b, pb, a, pc, square);
}

struct OrthostochasticFwd {
    Streams<const float> logits;
    Streams<float> h_res;
    u64 tokens;
    alignas(8) u32 n, steps;
    alignas(8) float eps;
    Coefficient k[3 * STEPS];
};

DEVICE void orthostochastic_fwd(const OrthostochasticFwd& a) {
    SHARED float shared[2][3 * SQUARE];
    const u32 n = a.n, j = lane_index();
    for (u64 t = (u64)block_x() * waves() + wave_index(); t < a.tokens; t += (u64)blocks_x() * waves()) {
        float *x = shared[wave_index()], *gram = x + SQUARE, *other = gram + SQUARE;
        scale(a.logits.at(t), n, a.eps, x);
        for (u32 s = 0; s < a.steps; ++s) {
            const Coefficient* k = a.k + 3 * s;
            multiply<false, true>(n, gram, x, x, 0.0f, x);
            // A² where the next X will be, then B in place of A.
            polynomial(n, gram, gram, other, k[1].v, k[2].v);
            multiply<false, false>(n, other, gram, x, k[0].v, x);
            float* next = other;
            other = x;
            x = next;
        }
        for (u32 i = 0; j < n && i < n; ++i) a.h_res.at(t).at(i)[j] = x[i * LINE + j] * x[i * LINE + j];
        wave_barrier();
    }
}

struct OrthostochasticBwd {
    Streams<const float> logits, d_h_res;
    Streams<float> d_logits;
    u64 tokens;
    alignas(8) u32 n, steps;
    alignas(8) float eps;
    Coefficient k[3 * STEPS];
    // [waves, steps, n, n]
    float* saved;
};

DEVICE void orthostochastic_bwd(const OrthostochasticBwd& a) {
    SHARED float shared[2][5 * SQUARE];
    const u32 n = a.n, j = lane_index();
    const u64 mine = (u64)block_x() * waves() + wave_index();
    float* saved = a.saved + mine * a.steps * n * n;
    for (u64 t = mine; t < a.tokens; t += (u64)blocks_x() * waves()) {
        float *x = shared[wave_index()], *gram = x + SQUARE, *b = gram + SQUARE, *g = b + SQUARE, *d = g + SQUARE;
        const Rows<const float> logits = a.logits.at(t);
        const float norm = scale(logits, n, a.eps, x), q = norm + a.eps;
        for (u32 s = 0; s < a.steps; ++s) {
            const Coefficient* k = a.k + 3 * s;
            for (u32 i = 0; j < n && i < n; ++i) saved[((u64)s * n + i) * n + j] = x[i * LINE + j];
            multiply<false, true>(n, gram, x, x, 0.0f, x);
            polynomial(n, b, gram, d, k[1].v, k[2].v);
            multiply<false, false>(n, d, b, x, k[0].v, x);
            combine(n, x, 1.0f, d, 0.0f, d);
        }
        for (u32 i = 0; j < n && i < n; ++i) g[i * LINE + j] = 2.0f * x[i * LINE + j] * a.d_h_res.at(t).at(i)[j];
        wave_barrier();
        for (u32 s = a.steps; s-- > 0;) {
            const Coefficient* k = a.k + 3 * s;
            for (u32 i = 0; j < n && i < n; ++i) x[i * LINE + j] = saved[((u64)s * n + i) * n + j];
            wave_barrier();
            multiply<false, true>(n, gram, x, x, 0.0f, x);
            polynomial(n, b, gram, d, k[1].v, k[2].v);
            // d = a·G + B·G, the direct part; b = D; then S in `g`, whose old value is no longer wanted.
            multiply<false, false>(n, d, b, g, k[0].v, g);
            multiply<false, true>(n, b, g, x, 0.0f, g);
            multiply<false, false>(n, g, b, gram, 0.0f, b);
            for (u32 i = 0; j < n && i < n; ++i) {
                float sum = 0.0f;
                for (u32 l = 0; l < n; ++l) sum = fused(gram[i * LINE + l], b[l * LINE + j], sum);
                g[i * LINE + j] = fused(k[1].v, b[i * LINE + j], k[2].v * (g[i * LINE + j] + sum));
            }
            wave_barrier();
            for (u32 i = 0; j < n && i < n; ++i) b[i * LINE + j] = g[i * LINE + j] + g[j * LINE + i];
            wave_barrier();
            multiply<false, false>(n, g, b, x, 1.0f, d);
        }
        float along = 0.0f;
        for (u32 i = 0; j < n && i < n; ++i) along = fused(g[i * LINE + j], logits.at(i)[j], along);
        along = wave_sum(along);
        const float pull = norm > 0.0f ? along / (q * q * norm) : 0.0f;
        for (u32 i = 0; j < n && i < n; ++i) a.d_logits.at(t).at(i)[j] = g[i * LINE + j] / q - pull * logits.at(i)[j];
        wave_barrier();
    }
}

#define MHC_KERNEL_orthostochastic_fwd(NAME, E, N) MHC_ENTRY(NAME, 128, OrthostochasticFwd, orthostochastic_fwd)
#define MHC_KERNEL_orthostochastic_bwd(NAME, E, N) MHC_ENTRY(NAME, 128, OrthostochasticBwd, orthostochastic_bwd)
