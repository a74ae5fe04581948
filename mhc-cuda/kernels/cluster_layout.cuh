// What the roles of the blocks of pre_cluster and pre_cluster_f32 share: the arguments, where things lie in shared memory, how φ comes
// there, and the part of it that a warp of pre_cluster keeps.
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
    // How many tiles later than it is multiplied a tile is mixed: less than slots. Of f32, as soon as can be.
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
// that are copied before φ is in registers, at most.
static const u32 TILE = 16, MULTIPLY = 8, COEFFICIENTS = 2, GROUP = 4, FIRST = 2;
// Named barriers: 1 of the warps that multiply, 2 and 3 of those that make coefficients.
static const u32 PHI_TAKEN = 4;
// Bytes of a tile's rows of one stream in a slot, 128 of each token.
static const u32 ROWS = TILE * 128;
// Bytes of a warp that makes coefficients; of the norms of a tile's aggregates, two of each token from each rank; of what scaled sums are
// to be multiplied by.
static const u32 FAR_BYTES = 896, NORM_BYTES = 16 * 2 * TILE * 4, SCALE_BYTES = MULTIPLY * 24 * 4;

// Columns of φ; floats of a token's partial sums: the columns, Σx², and 3 to fill 16 bytes.
template <u32 N> struct Sizes {
    static const u32 P = N * (N + 2), SUMS = P + 4, SUMS_BYTES = TILE * SUMS * 4;
};

// Where 16 bytes of a row of a slot are among a tile's rows of 128 bytes: copies permute them by the row.
DEVICE u32 piece(u32 row, u32 piece) { return row * 128 + ((piece ^ (row & 7)) << 4); }

// Where things lie in a block's shared memory.
template <u32 N> struct Layout {
    // `buffers` of partial sums: one for f32, as that makes room for a slot.
    u32 slot, rank, ranks, owned, owned_bits, part_channels, slots, buffers;
    u32 base, reduce, sums, h_pre, norms, w, scales, far, full, empty, summed, sent, normed, added, taken, phi_there;
    // φ at first: rows of this block's channels, P for each stream, then of the weight, one for each, whose distance keeps them off each
    // other's banks. They end where `reduce` ends, and leave room for `first` tiles.
    u32 phi, phi_row, first;

    // A slot has rows of 128 bytes: [stream][64 channels][token], then those of its y; of f32, [32 channels][stream][token].
    template <class E> DEVICE_MEMBER Layout(const PreCluster<E>& a, u32 shared, bool post, bool norm)
        : rank(cluster_rank()), ranks(cluster_ranks()), slots(a.slots), buffers(sizeof(E) == 4 ? 1 : 2) {
        const u32 SUMS_BYTES = Sizes<N>::SUMS_BYTES;
        // 4, 8 or 16 ranks.
        owned_bits = ranks == 16 ? 0 : ranks == 8 ? 1 : 2;
        owned = 1u << owned_bits;
        part_channels = a.channels >> (4 - owned_bits);
        slot = part_channels * (N + post) * TILE * sizeof(E);
        base = (shared + 1023) / 1024 * 1024;
        reduce = base + slots * slot;
        sums = reduce + buffers * MULTIPLY * SUMS_BYTES;
        h_pre = sums + slots * SUMS_BYTES;
        norms = h_pre + slots * TILE * 16;
        w = norms + (norm ? slots * NORM_BYTES : 0);
        scales = w + (norm ? part_channels * 4 : 0);
        far = scales + (Pairs<E, 1>::SCALED ? SCALE_BYTES : 0);
        full = far + COEFFICIENTS * FAR_BYTES;
        empty = full + slots * 8;
        summed = empty + slots * 8;
        sent = summed + slots * 8;
        normed = sent + slots * 8;
        added = normed + slots * 8;
        taken = added + buffers * 8;
        phi_there = taken + buffers * 8;
        phi_row = part_channels * 4 + 32;
        phi = (sums - N * (Sizes<N>::P + 1) * phi_row) / 16 * 16;
        first = smaller((phi - base) / slot, FIRST);
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

// φ from memory to shared memory, in whole rows, where fragments would be read 32 bytes at a time; by the warps after those that multiply
// and that copies tiles, as one takes 30 ns to send off a row. With them the weight of the RMSNorm.
template <class E, u32 N> DEVICE void copy_phi(const PreCluster<E>& a, const Layout<N>& l) {
    const u32 P = Sizes<N>::P, warps = COEFFICIENTS + 1, me = thread_index() - (MULTIPLY + 1) * 32;
    const u32 rows = N * (a.weight ? P + 1 : P), bytes = l.part_channels * 4;
    if (me == 0) {
        barrier_expect(l.phi_there, (a.w ? rows + 1 : rows) * bytes);
        if (a.w) bulk_load(l.w, a.w + l.rank * l.part_channels, bytes, l.phi_there);
    }
    for (u32 row = me % 32 * warps + me / 32; row < rows; row += 32 * warps) {
        const u32 stream = row < N * P ? row / P : row - N * P;
        const float* from = row < N * P ? a.phi.at(row % P) : a.weight;
        bulk_load(l.phi + row * l.phi_row, from + (u64)stream * a.channels + l.rank * l.part_channels, bytes, l.phi_there);
    }
}

// The part of φ of a multiplying warp: BLOCKS blocks of 32 channels for each 8 columns, word 2·s + h for half h of slab s of 16.
template <class E, u32 N, u32 BLOCKS> struct Weights {
    static const u32 P = Sizes<N>::P;
    u32 hi[BLOCKS][P / 8][4], lo[BLOCKS][P / 8][4];

    // From shared memory. Blocks past the last are read as some other and not multiplied.
    DEVICE_MEMBER void take(const PreCluster<E>& a, const Layout<N>& l, u32 warp, u32 lane) {
        const u32 per_stream = l.part_channels / 32;
        u32 stream = warp * BLOCKS / per_stream, rest = warp * BLOCKS % per_stream;
#pragma unroll
        for (u32 b = 0; b < BLOCKS; ++b) {
            const u32 i = smaller(stream, N - 1), at = l.phi + (rest * 32 + lane % 4 * 2) * 4;
            const u32 row = at + (i * P + lane / 4) * l.phi_row, weight = at + (N * P + i) * l.phi_row;
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
#pragma unroll
                for (u32 tile = 0; tile < P / 8; ++tile) {
                    float f[2];
                    shared_load(f, row + tile * 8 * l.phi_row + e * 32);
                    if (a.weight) {
                        float w[2];
                        shared_load(w, weight + e * 32);
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
