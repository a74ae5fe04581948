// What is done to the n rows of one token: weighted sums of rows, and dot products of rows.
#pragma once
#include "operand.cuh"
#include "reduce.cuh"
#include "vector.cuh"

// Output rows computed together: all of them up to 8 streams, so that each input is loaded once; 8 or 4 at a time for more.
template <u32 N> struct Group {
    static const u32 G = N == 0 ? 4 : N < 8 ? N : 8;
};

// acc_g += Σ_j h[(first + g)·to + j·from]·x_j over the channels c..c+V, of which `left` are there, for rows first..first+G of n; rows past the last are computed
// like the last, for the caller to leave out.
template <u32 N, bool WIDE, u32 G, u32 V, class E>
DEVICE void mix(
    float (&acc)[G][V], u32 n, u32 first, const float* h, u32 to, u32 from, Rows<const E> x, u32 c, u32 left) {
    const u32 count = streams<N>(n);
#pragma unroll(N == 0 || N > 8 ? 2 : N < 4 ? N : 4)
    for (u32 j = 0; j < count; ++j) {
        float v[V];
        load<WIDE>(x.at(j) + c, v, left);
#pragma unroll
        for (u32 g = 0; g < G; ++g) {
            const float w = h[smaller(first + g, count - 1) * to + j * from];
#pragma unroll
            for (u32 k = 0; k < V; ++k) acc[g][k] = fused(w, v[k], acc[g][k]);
        }
    }
}

// Calls `f(i, j, ⟨a_i, b_j⟩)` once for each i < rows and j < cols, with a_i = a(i) and b_j = b(j) rows of `channels` elements. The
// waves of the block share 4×4 tiles of the products; a wave runs along the channels by itself.
template <u32 V, bool WIDE, class A, class B, class F>
DEVICE void dots(u32 rows, u32 cols, u32 channels, A a, B b, F f) {
    const u32 across = (cols + 3) / 4, tiles = (rows + 3) / 4 * across;
    for (u32 tile = wave_index(); tile < tiles; tile += waves()) {
        const u32 i0 = tile / across * 4, j0 = tile % across * 4;
        decltype(a(0)) pa[4];
        decltype(b(0)) pb[4];
        float acc[16];
#pragma unroll
        for (u32 k = 0; k < 4; ++k) {
            pa[k] = a(smaller(i0 + k, rows - 1));
            pb[k] = b(smaller(j0 + k, cols - 1));
        }
#pragma unroll
        for (u32 k = 0; k < 16; ++k) acc[k] = 0.0f;
        for (u32 c = lane_index() * V; c < channels; c += MHC_WAVE * V) {
            float vb[4][V];
#pragma unroll
            for (u32 j = 0; j < 4; ++j) load<WIDE>(pb[j] + c, vb[j], channels - c);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                float va[V];
                load<WIDE>(pa[i] + c, va, channels - c);
#pragma unroll
                for (u32 j = 0; j < 4; ++j) {
#pragma unroll
                    for (u32 k = 0; k < V; ++k) acc[i * 4 + j] = fused(va[k], vb[j][k], acc[i * 4 + j]);
                }
            }
        }
        const float sum = wave_sums(acc);
        const u32 i = i0 + lane_index() / 4, j = j0 + lane_index() % 4;
        if (lane_index() < 16 && i < rows && j < cols) f(i, j, sum);
    }
}
