// What the roles of dynamic_fwd_cluster's blocks share: the arguments, where things lie in shared memory, and which tiles a cluster has.
#pragma once
#include "tf32_products.cuh"

struct DynamicFwd {
    TensorMap x, phi;
    const float *w, *alpha, *bias;
    Streams<float> out;
    // These two may be absent.
    Rows<float> z;
    float* inv_rms;
    u64 tokens;
    // At most as many boxes as slots.
    alignas(8) u32 channels, slots, boxes, from_to;
    Form form;
    alignas(8) float pre_eps, post_mult, rms_eps, norm_eps;
};

// Streams, columns of φ, blocks of a cluster, tokens of a tile that each owns; warps that mix and tokens that each has. Channels of a row
// in a slot, bytes of a tile's 16 rows of all streams, and of the 24 of φ; a warp has 6 half rows at most.
static const u32 N = 4, P = N * (N + 2), RANKS = 8, OWNED = TILE / RANKS, MIX = 4, MIXED_TOKENS = TILE / MIX;
static const u32 ROW = 32, GROUP_BYTES = N * ROWS, PHI_ROWS = P * ROW * 4;
using Phi = HalfRows<6, P>;

// Parts of a box: partial sums of the owned tokens [rank][token][P], their Σx² [token][rank]; of all tokens H_pre and H_post, H_res as
// [to][from], and Σ of the squares of the layer's input [rank]. Then a barrier for each but Σx².
static const u32 SQUARES = RANKS * OWNED * P * 4, GATES = SQUARES + OWNED * RANKS * 4, RES = GATES + TILE * 2 * N * 4;
static const u32 NORMS = RES + TILE * N * N * 4, SUMMED = NORMS + TILE * RANKS * 4, GATED = SUMMED + 8, MIXED = GATED + 8;
static const u32 NORMED = MIXED + 8, BOX = NORMED + 8;
// Bytes of a warp's partial sums, columns before Σx²; of what a warp that makes coefficients is about to send, and of its f64 matrix.
static const u32 PARTIAL = TILE * (P + 1) * 4, STAGED = OWNED * P * 4, FAR = N * 33 * 8;

// What tensor copies permute begins at a multiple of this.
struct alignas(1024) Kilobyte {
    u8 bytes[1024];
};

// Where things lie in a block's shared memory.
struct Place {
    // Rows that a block has of a stream, and how many of them are there.
    u32 rank, rows, live, slots, slot, boxes;
    u32 base, phi, partial, box, far, staged, w, full, empty, added, taken, begun;

    DEVICE_MEMBER Place(const DynamicFwd& a, u32 shared) : rank(cluster_rank()), slots(a.slots), boxes(a.boxes) {
        const u32 all = (a.channels + ROW - 1) / ROW;
        rows = (all + RANKS - 1) / RANKS;
        live = smaller(all - smaller(rank * rows, all), rows);
        slot = rows * GROUP_BYTES;
        base = shared;
        // Where no tile is yet.
        phi = base + (slots - 2) * slot;
        partial = base + slots * slot;
        box = partial + MULTIPLY * PARTIAL;
        far = box + boxes * BOX;
        staged = far + COEFFICIENTS * FAR;
        w = staged + COEFFICIENTS * STAGED;
        full = w + rows * ROW * 4;
        empty = full + slots * 8;
        added = empty + slots * 8;
        taken = added + 8;
        begun = taken + 8;
    }
    DEVICE_MEMBER u32 box_of(const Turn& turn) const { return box + turn.slot * BOX; }
    DEVICE_MEMBER u32 slot_of(const Turn& turn) const { return base + turn.slot * slot; }
    DEVICE_MEMBER u32 channel(u32 row) const { return (rank * rows + row) * ROW; }
};

// The tiles of a cluster.
struct Tiles {
    u32 cluster = block_x() / RANKS, clusters = blocks_x() / RANKS, count;

    DEVICE_MEMBER Tiles(const DynamicFwd& a) {
        const u32 all = (u32)((a.tokens + TILE - 1) / TILE);
        count = cluster < all ? (all - cluster + clusters - 1) / clusters : 0;
    }
    DEVICE_MEMBER u64 token(u32 k) const { return ((u64)cluster + (u64)k * clusters) * TILE; }
};
