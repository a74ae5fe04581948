// sinkhorn, sinkhorn_bwd: logits to doubly stochastic matrices (arXiv 2512.24880, eq. 9), and the exact gradient.
//
// Math      see sinkhorn.cuh
// Operands  logits, h_res and their gradients [T, n, n] f32.
// Mapping   up to 4 streams a thread, else a wave takes a matrix. backward: what is left of forward lies in scratch, a column for each of
//           a fixed number of threads or waves, which go from matrix to matrix.
// Traffic   forward 8n² bytes a matrix; backward 12n², and 4·iters·n within the cache.
// Numerics  f32, f64 for logits more than 60 apart; exact whatever the logits' size.
#include "sinkhorn.cuh"

struct SinkhornFwd {
    Streams<const float> logits;
    Streams<float> h_res;
    u64 tokens;
    alignas(8) u32 n, channels;
    Form form;
};

template <u32 N> DEVICE void sinkhorn_fwd(const SinkhornFwd& a) {
    SHARED double shared[Owner<N>::THREAD ? 1 : 2 * MATRIX];
    const u32 n = streams<N>(a.n), one = Owner<N>::THREAD ? 1 : MHC_WAVE;
    double* mine = Owner<N>::THREAD ? shared : shared + wave_index() * MATRIX;
    const u64 first = ((u64)block_x() * threads() + thread_index()) / one, step = (u64)blocks_x() * threads() / one;
    for (u64 t = first; t < a.tokens; t += step) {
        const Rows<const float> logits = a.logits.at(t);
        const Rows<float> h = a.h_res.at(t);
        project_matrix<N>(
            a.form, n, mine, [&](u32 i, u32 j) { return logits.at(i)[j]; }, [&](u32 i, u32 j, float v) { h.at(i)[j] = v; });
    }
}

struct SinkhornBwd {
    Streams<const float> logits, d_h_res;
    Streams<float> d_logits;
    u64 tokens;
    alignas(8) u32 n, channels;
    Form form;
    double* sums;
    // Whether there is dynamic shared memory for them.
    alignas(8) u32 near;
};

template <u32 N> DEVICE void sinkhorn_bwd(const SinkhornBwd& a) {
    SHARED double shared[Owner<N>::THREAD ? 1 : 4 * MATRIX];
    const u32 n = streams<N>(a.n), one = Owner<N>::THREAD ? 1 : MHC_WAVE;
    double* mine = Owner<N>::THREAD ? shared : shared + wave_index() * 2 * MATRIX;
    const u64 first = ((u64)block_x() * threads() + thread_index()) / one, step = (u64)blocks_x() * threads() / one;
    DYNAMIC_SHARED(float, near);
    const Sums sums = {a.sums + first, step, a.near ? near + thread_index() : (float*)0};
    for (u64 t = first; t < a.tokens; t += step) {
        const Rows<const float> logits = a.logits.at(t), up = a.d_h_res.at(t);
        const Rows<float> down = a.d_logits.at(t);
        project_matrix_back<N>(
            a.form, n, mine, sums, [&](u32 i, u32 j) { return logits.at(i)[j]; },
            [&](u32 i, u32 j, float) { return up.at(i)[j]; }, [&](u32 i, u32 j, float v) { down.at(i)[j] = v; });
    }
}

#define MHC_KERNEL_sinkhorn_fwd(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 128, 4, SinkhornFwd, sinkhorn_fwd<N>)
#define MHC_KERNEL_sinkhorn_bwd(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 128, 2, SinkhornBwd, sinkhorn_bwd<N>)
