// project_bwd_tiles: both products of the projection's gradient (see project) in one pass over x, on the matrix units of CDNA.
//
// Math      d_x[t,i,c] = Σ_j p[t,j]·φ[j,i,c]·w[i,c] - s[t]·x[t,i,c] + H_pre[t,i]·d_li[t,c] + Σ_l H_res[t,l,i]·d_x_next[t,l,c]
//           G[j,i,c] = Σ_t p[t,j]·x[t,i,c] over one range of tokens
// Operands  x, d_li, d_x_next of type E, d_x of E or f32; everything else f32. P = N(N + 2) columns; rows of channels in vectors of 16
//           bytes.
// Mapping   a wave owns 128 channels of one stream and one range of tokens, 16 at a time, and needs no other; neighbouring waves have the
//           streams of the same channels, which read the same d_x_next. Its part of φ and its part of G stay in registers, so that there
//           is no shared memory. A lane has 8 neighbouring channels of 4 tokens: channel 8·(lane % 16) + m is column lane % 16 of tile m
//           of both products, and tokens 4·(lane / 16) + r are both the rows of D = p·φ in a lane and what its instruction r wants of
//           B = x in G = p^T·x. So x goes from memory to both without an exchange between lanes.
// Traffic   (2 + 1/n)·nC elements a token, nC more for d_x_next, which comes n times from cache; 4P·nC bytes of G a range.
// Numerics  products and sums in f32, as the instruction has it; all orders fixed by T and C.
#include "matrix.cuh"
#include "project_d_x.cuh"
#include "reduce.cuh"

template <u32 N> struct Shape {
    // Columns, and instructions for all of them: 4 columns each as the inner sum, 16 each as rows.
    static const u32 P = N * (N + 2), INNER = (P + 3) / 4, OUTER = (P + 15) / 16;
};

// A wave's part of φ·w: of tile m, column 4·k + lane / 16 of channel 8·(lane % 16) + m.
template <class E, class O, u32 N>
DEVICE void load_phi(const ProjectBoth<E, O>& a, u32 i, u32 c, bool live, float (&phi)[Shape<N>::INNER][8]) {
    const u64 at = (u64)i * a.channels + c;
    float w[8] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
    if (a.weight && live) load(a.weight + at, w);
#pragma unroll
    for (u32 k = 0; k < Shape<N>::INNER; ++k) {
        const u32 j = 4 * k + lane_index() / 16;
        float f[8] = {};
        if (live && j < Shape<N>::P) load(a.phi.at(j) + at, f);
#pragma unroll
        for (u32 m = 0; m < 8; ++m) phi[k][m] = f[m] * w[m];
    }
}

template <class E, class O, u32 N> DEVICE void project_bwd_tiles(const ProjectBoth<E, O>& a) {
    using S = Shape<N>;
    const u32 groups = (a.channels + 127) / 128, index = block_x() * waves() + wave_index();
    const u32 i = index % N, range = index / N / groups, lane = lane_index(), group = lane / 16;
    if (range >= a.ranges) return;
    const u32 own = index / N % groups * 128 + lane % 16 * 8;
    // Lanes past the last channel take the first ones and write nothing, as do tokens past the last of the range.
    const bool live = own < a.channels;
    const u32 c = live ? own : 0;
    const u64 first = (u64)range * a.range, end = first + a.range < a.tokens ? first + a.range : a.tokens;
    float phi[S::INNER][8];
    load_phi<E, O, N>(a, i, c, live, phi);
    F4 sum[S::OUTER][8] = {};
#pragma unroll 1
    for (u64 t0 = first; t0 < end; t0 += 16) {
        // p with tokens as rows, and with columns as rows: of token 4·group + r.
        float rows[S::INNER], columns[4][S::OUTER];
        const u64 token = t0 + lane % 16;
#pragma unroll
        for (u32 k = 0; k < S::INNER; ++k) {
            const u32 j = 4 * k + group;
            rows[k] = token < end && j < S::P ? a.p[token * S::P + j] : 0.0f;
        }
#pragma unroll
        for (u32 r = 0; r < 4; ++r) {
            const u64 mine = t0 + 4 * group + r;
#pragma unroll
            for (u32 k = 0; k < S::OUTER; ++k) {
                const u32 j = 16 * k + lane % 16;
                columns[r][k] = mine < end && j < S::P ? a.p[mine * S::P + j] : 0.0f;
            }
        }
        F4 product[8] = {};
#pragma unroll
        for (u32 k = 0; k < S::INNER; ++k) {
#pragma unroll
            for (u32 m = 0; m < 8; ++m) multiply_f32(product[m], rows[k], phi[k][m]);
        }
#pragma unroll
        for (u32 r = 0; r < 4; ++r) {
            // φ and G leave no registers to load more than one token of a lane at a time; other waves fill the gaps.
            const u64 mine = t0 + 4 * group + r, t = mine < end ? mine : end - 1;
            float x[8], d[8];
            load(a.x.at(t).at(i) + c, x);
#pragma unroll
            for (u32 m = 0; m < 8; ++m) {
                d[m] = product[m][r];
#pragma unroll
                for (u32 k = 0; k < S::OUTER; ++k) multiply_f32(sum[k][m], columns[r][k], x[m]);
            }
            write_d_x<N>(a, t, i, c, live && mine < end, d, x);
        }
    }
    const u64 row = (u64)N * a.channels;
    float* part = a.parts + (u64)range * S::P * row + (u64)i * a.channels + c;
#pragma unroll
    for (u32 k = 0; k < S::OUTER; ++k) {
#pragma unroll
        for (u32 r = 0; r < 4; ++r) {
            const u32 j = 16 * k + 4 * group + r;
            float v[8];
#pragma unroll
            for (u32 m = 0; m < 8; ++m) v[m] = sum[k][m][r];
            if (live && j < S::P) store(part + j * row, v);
        }
    }
}

// φ and G are about half of a lane's 256 registers.
#define MHC_KERNEL_project_bwd_tiles(NAME, E, N) \
    MHC_ENTRY_RESIDENT(NAME, 256, 2, ProjectBothSame<E>, project_bwd_tiles<E, E, N>)
#define MHC_KERNEL_project_bwd_tiles_f32(NAME, E, N) \
    MHC_ENTRY_RESIDENT(NAME, 256, 2, ProjectBothWide<E>, project_bwd_tiles<E, float, N>)
