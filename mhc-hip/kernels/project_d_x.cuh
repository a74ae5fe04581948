// What the gradient of x takes besides the product on the matrix units, see project_bwd_tiles.
#pragma once
#include "projection.cuh"

// V neighbours of d_x of token t: d is p·φ of them, x their row.
template <u32 N, class E, class O, u32 V>
DEVICE void write_d_x(const ProjectBoth<E, O>& a, u64 t, u32 i, u32 c, bool live, float (&d)[V], const float (&x)[V]) {
    const float shrink = a.shrink[t];
#pragma unroll
    for (u32 m = 0; m < V; ++m) d[m] = fused(-shrink, x[m], d[m]);
    float v[V];
    if (a.d_li.p || a.d_li_f32.p) {
        const float h = a.mixes.at(t)[i];
        if (a.d_li.p) load(a.d_li.at(t) + c, v);
        else load(a.d_li_f32.at(t) + c, v);
#pragma unroll
        for (u32 m = 0; m < V; ++m) d[m] = fused(h, v[m], d[m]);
    }
    if (a.d_x_next.p && a.from_to == 2) {
        load(a.d_x_next.at(t).at(i) + c, v);
#pragma unroll
        for (u32 m = 0; m < V; ++m) d[m] += v[m];
    } else if (a.d_x_next.p) {
#pragma unroll
        for (u32 l = 0; l < N; ++l) {
            const float h = a.mixes.at(t)[2 * N + mix_index(N, a.from_to, l, i)];
            load(a.d_x_next.at(t).at(l) + c, v);
#pragma unroll
            for (u32 m = 0; m < V; ++m) d[m] = fused(h, v[m], d[m]);
        }
    }
    if (live) store(a.d_x.at(t).at(i) + c, d);
}

template <class E> using ProjectBothSame = ProjectBoth<E, E>;
template <class E> using ProjectBothWide = ProjectBoth<E, float>;
