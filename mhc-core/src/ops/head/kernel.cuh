// head_gates, head_gates_bwd: the gates of the final collapse to one stream, and their gradient. The rest of `head` is made of the kernels
// of project and aggregate.
//
// Math      h = σ(scale·z + bias) + pre_eps;  d_t = d_h·σ·(1 - σ);  d_z = scale·d_t
// Operands  z, h, d_h, d_t, d_z [T, n] f32, scale [1], bias [n].
// Mapping   a thread takes one number.
// Traffic   forward 8n bytes a token; backward 20n.
// Numerics  f32.
#include "operand.cuh"

struct HeadGates {
    Rows<const float> z;
    const float* scale;
    const float* bias;
    Rows<float> h;
    u64 tokens;
    alignas(8) u32 n, channels;
    alignas(8) float pre_eps;
};

DEVICE void head_gates(const HeadGates& a) {
    const u64 all = a.tokens * a.n, step = (u64)blocks_x() * threads();
    for (u64 e = (u64)block_x() * threads() + thread_index(); e < all; e += step) {
        const u64 t = e / a.n;
        const u32 i = (u32)(e % a.n);
        a.h.at(t)[i] = sigmoid(fused(a.scale[0], a.z.at(t)[i], a.bias[i])) + a.pre_eps;
    }
}

struct HeadGatesBwd {
    Rows<const float> z;
    const float* scale;
    const float* bias;
    Rows<const float> d_h;
    Rows<float> d_t, d_z;
    u64 tokens;
    alignas(8) u32 n, channels;
};

DEVICE void head_gates_bwd(const HeadGatesBwd& a) {
    const u64 all = a.tokens * a.n, step = (u64)blocks_x() * threads();
    for (u64 e = (u64)block_x() * threads() + thread_index(); e < all; e += step) {
        const u64 t = e / a.n;
        const u32 i = (u32)(e % a.n);
        const float v = fused(a.scale[0], a.z.at(t)[i], a.bias[i]), d = a.d_h.at(t)[i] * sigmoid(v) * sigmoid(-v);
        a.d_t.at(t)[i] = d;
        a.d_z.at(t)[i] = a.scale[0] * d;
    }
}

#define MHC_KERNEL_head_gates(NAME, E, N) MHC_ENTRY(NAME, 256, HeadGates, head_gates)
#define MHC_KERNEL_head_gates_bwd(NAME, E, N) MHC_ENTRY(NAME, 256, HeadGatesBwd, head_gates_bwd)
