// What the roles of pre_cluster's blocks share: the arguments, where things lie in shared memory, and the part of φ that a warp keeps.
#pragma once
#include "hopper.cuh"
#include "mma.cuh"
#include "sinkhorn.cuh"

// `before`, `x_next`, `from_to`: for post_pre, where x, y and their coefficients `before` are the operands of `post`, and what is projected
// and mixed is x_next, which is written too. `w`, `li_inv_rms` and `li_eps`: for an RMSNorm of the aggregate.
template <class E> struct PreCluster {
    TensorMap x, y;
    Rows<const float> phi;
    const float *weight, *alpha, *bias;
    Rows<E> layer_input;
    Rows<float> mixes, z;
    float* inv_rms;
    u64 tokens;
    // How many tiles later than it is multiplied a tile is mixed: less than slots.
    alignas(8) u32 channels, slots, behind;
    Form form;
    alignas(8) float pre_eps, post_mult, rms_eps;
    Rows<const float> before;
    Streams<E> x_next;
    alignas(8) u32 from_to;
    const float* w;
    float* li_inv_rms;
    alignas(8) float li_eps;
};

// Tokens of a tile, warps that multiply and that make coefficients; tiles whose matrices one warp makes doubly stochastic together; tiles
// that are copied before φ is there: more would hold it up (1.5 % of C = 4096, T = 16384 in the prototype); buffers of partial sums.
static const u32 TILE = 16, MULTIPLY = 8, COEFFICIENTS = 2, GROUP = 4, FIRST = 2, BUFFERS = 2;
// Named barriers: 1 after `post`, 2 and 3 of the warps that make coefficients.
static const u32 PHI_LOADED = 4;
// Bytes of a warp that makes coefficients; of the norms of a tile's aggregates, two of each token from each rank; of what scaled sums are
// to be multiplied by.
static const u32 FAR_BYTES = 896, NORM_BYTES = 16 * 2 * TILE * 4, SCALE_BYTES = MULTIPLY * 24 * 4;

// Columns of φ; floats of a token's partial sums: the columns, Σx², and 3 to fill 16 bytes.
template <u32 N> struct Sizes {
    static const u32 P = N * (N + 2), SUMS = P + 4, SUMS_BYTES = TILE * SUMS * 4;
};

// Where things lie in a block's shared memory.
template <u32 N> struct Layout {
    u32 slot, rank, ranks, owned, owned_bits, part_channels, slots;
    u32 base, reduce, sums, h_pre, norms, scales, far, full, empty, summed, sent, normed, added, taken;

    // A slot has the tile's streams, one after the other, then its y.
    template <class E> DEVICE_MEMBER Layout(const PreCluster<E>& a, u32 shared, u32 ranks, bool post, bool norm)
        : rank(cluster_rank()), ranks(ranks), slots(a.slots) {
        const u32 SUMS_BYTES = Sizes<N>::SUMS_BYTES;
        // 4, 8 or 16 ranks.
        owned_bits = ranks == 16 ? 0 : ranks == 8 ? 1 : 2;
        owned = 1u << owned_bits;
        part_channels = a.channels >> (4 - owned_bits);
        slot = part_channels * (N + post) * TILE * 2;
        base = (shared + 1023) / 1024 * 1024;
        reduce = base + slots * slot;
        sums = reduce + BUFFERS * MULTIPLY * SUMS_BYTES;
        h_pre = sums + slots * SUMS_BYTES;
        norms = h_pre + slots * TILE * 16;
        scales = norms + (norm ? slots * NORM_BYTES : 0);
        far = scales + (Pairs<E, 1>::SCALED ? SCALE_BYTES : 0);
        full = far + COEFFICIENTS * FAR_BYTES;
        empty = full + slots * 8;
        summed = empty + slots * 8;
        sent = summed + slots * 8;
        normed = sent + slots * 8;
        added = normed + slots * 8;
        taken = added + BUFFERS * 8;
    }
};

// The slot of a tile, and how often it was used, as parity.
struct Turn {
    u32 slot = 0, parity = 0;
    DEVICE_MEMBER void next(u32 slots) {
        if (++slot == slots) {
            slot = 0;
            parity ^= 1;
        }
    }
};

// The part of φ of a multiplying warp: BLOCKS blocks of 32 channels for each 8 columns, word 2·s + h for half h of slab s of 16.
template <class E, u32 N, u32 BLOCKS> struct Weights {
    static const u32 P = Sizes<N>::P;
    u32 hi[BLOCKS][P / 8][4], lo[BLOCKS][P / 8][4];

    // Blocks past the last are read as some other and not multiplied: without branches all loads are on their way together.
    template <bool WEIGHT> DEVICE_MEMBER void load(const PreCluster<E>& a, const Layout<N>& l, u32 warp, u32 lane) {
        const u32 per_stream = l.part_channels / 32;
        u32 stream = warp * BLOCKS / per_stream, rest = warp * BLOCKS % per_stream;
#pragma unroll
        for (u32 b = 0; b < BLOCKS; ++b) {
            const u64 k = (u64)smaller(stream, N - 1) * a.channels + l.rank * l.part_channels + rest * 32 + lane % 4 * 2;
#pragma unroll
            for (u32 tile = 0; tile < P / 8; ++tile) {
                const float* row = a.phi.at(tile * 8 + lane / 4) + k;
#pragma unroll
                for (u32 e = 0; e < 4; ++e) {
                    float f[2];
                    ::load(row + e * 8, f);
                    if (WEIGHT) {
                        float w[2];
                        ::load(a.weight + k + e * 8, w);
                        f[0] *= w[0];
                        f[1] *= w[1];
                    }
                    Pairs<E, P / 8>::take(f, hi[b][tile][e], lo[b][tile][e]);
                }
            }
            if (++rest == per_stream) {
                rest = 0;
                ++stream;
            }
        }
        if constexpr (Pairs<E, P / 8>::SCALED) {
            float inverse[P / 8];
            Pairs<E, P / 8>::split(hi, lo, inverse);
            // For this warp alone, where registers are few.
#pragma unroll
            for (u32 tile = 0; tile < P / 8; ++tile) {
                if (lane % 4 == 0) shared_store(l.scales + (warp * P + tile * 8 + lane / 4) * 4, inverse[tile]);
            }
            wave_barrier();
        }
    }
};
