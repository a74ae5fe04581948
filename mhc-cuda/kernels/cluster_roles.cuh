// What blocks of pre_cluster and pre_cluster_f32 do besides multiplying and mixing: how they begin, and the warps that add and send and
// that make coefficients.
#pragma once
#include "cluster_layout.cuh"
#include "token.cuh"

// How many tiles a cluster has.
DEVICE u32 tiles_of(u64 tokens, u32 cluster, u32 clusters) {
    const u64 all = (tokens + TILE - 1) / TILE;
    return cluster < all ? (u32)((all - cluster + clusters - 1) / clusters) : 0;
}

// All barriers; `mixers` warps mix. Every role waits for the cluster before it sends.
template <u32 N> DEVICE void begin(const Layout<N>& l, u32 mixers) {
    if (thread_index() == 0) {
        for (u32 s = 0; s < l.slots; ++s) {
            barrier_init(l.full + s * 8, 1);
            barrier_init(l.empty + s * 8, mixers);
            barrier_init(l.summed + s * 8, 1);
            barrier_init(l.sent + s * 8, 1);
            barrier_init(l.normed + s * 8, 1);
        }
        // Every lane arrives: what it wrote or read is then ordered by itself.
        barrier_init(l.phi_there, 1);
        for (u32 b = 0; b < l.buffers; ++b) {
            barrier_init(l.added + b * 8, MULTIPLY * 32);
            barrier_init(l.taken + b * 8, 32);
        }
        barrier_init_done();
    }
    barrier();
    cluster_arrive();
}

// The sums over the multiplying warps, to the tokens' owners: one warp, so that those that multiply need not wait for each other.
template <u32 N> DEVICE void reduce_and_send(const Layout<N>& l, u32 tiles) {
    const u32 SUMS = Sizes<N>::SUMS, SUMS_BYTES = Sizes<N>::SUMS_BYTES, lane = thread_index() % 32;
    cluster_wait();
    Turn now, buffer;
    for (u32 k = 0; k < tiles; ++k, now.next(l.slots), buffer.next(l.buffers)) {
        const u32 from = l.reduce + buffer.slot * (MULTIPLY * SUMS_BYTES);
        barrier_wait(l.added + buffer.slot * 8, buffer.parity);
#pragma unroll 2
        for (u32 item = lane; item < TILE * (SUMS / 4); item += 32) {
            const u32 token = item / (SUMS / 4), part = item % (SUMS / 4);
            float sum[4];
            shared_load(sum, from + item * 16);
#pragma unroll
            for (u32 w = 1; w < MULTIPLY; ++w) {
                float v[4];
                shared_load(v, from + w * SUMS_BYTES + item * 16);
#pragma unroll
                for (u32 e = 0; e < 4; ++e) sum[e] += v[e];
            }
            const u32 owner = token >> l.owned_bits, row = l.rank * l.owned + token % l.owned;
            const u32 to = l.sums + now.slot * SUMS_BYTES + (row * SUMS + part * 4) * 4;
            send(address_in(to, owner), sum, address_in(l.summed + now.slot * 8, owner));
        }
        barrier_arrive(l.taken + buffer.slot * 8);
    }
}

// One token that this block owns: H_pre to all blocks of the cluster, the rest to memory. Returns the lane's coefficient before σ.
template <class E, u32 N>
DEVICE float token_coefficients(const PreCluster<E>& a, const Layout<N>& l, const Column<N>& column, u32 slot, u32 t, u64 token) {
    const u32 lane = thread_index() % 32, SUMS = Sizes<N>::SUMS;
    const u32 from = l.sums + slot * Sizes<N>::SUMS_BYTES + (t * SUMS + smaller(lane, Sizes<N>::P)) * 4;
    // All loads first, then the sum in the order of the ranks.
    float part[16], sum = 0.0f;
#pragma unroll
    for (u32 r = 0; r < 16; ++r) part[r] = r < l.ranks ? shared_load(from + (r << l.owned_bits) * (SUMS * 4)) : 0.0f;
#pragma unroll
    for (u32 r = 0; r < 16; ++r) sum += part[r];
    const TokenCoefficients<N> k(a, column, sum);
    if (lane < l.ranks) {
        const u32 to = l.h_pre + (slot * TILE + l.rank * l.owned + t) * 16;
        send(address_in(to, lane), k.h, address_in(l.sent + slot * 8, lane));
    }
    if (token < a.tokens) k.store(a, token, lane);
    return k.v;
}

// The warps take groups of tiles in turn: first what the blocks wait for, tile by tile, then Sinkhorn for the whole group, during which
// the next warp goes on. One warp's tiles come after the other's, or else a wait might take an old phase of a slot for its own.
template <class E, u32 N> DEVICE void coefficients(const PreCluster<E>& a, const Layout<N>& l, u32 cluster, u32 clusters, u32 tiles) {
    const u32 lane = thread_index() % 32, me = thread_index() / 32 - MULTIPLY - 2, owned = l.owned;
    const Column<N> column(a, lane);
    cluster_wait();
    Turn now;
    for (u32 k0 = 0; k0 < tiles; k0 += GROUP) {
        if (k0 / GROUP % COEFFICIENTS != me) {
            for (u32 k = 0; k < GROUP; ++k) now.next(l.slots);
            continue;
        }
        if (k0 > 0) named_sync(2 + me, 64);
        float logits[N * N] = {};
        for (u32 k = k0; k < k0 + GROUP && k < tiles; ++k) {
            const u64 first = (u64)(cluster + k * clusters) * TILE + l.rank * owned;
            barrier_wait_cluster(l.summed + now.slot * 8, now.parity);
            for (u32 t = 0; t < owned; ++t) {
                const float v = token_coefficients(a, l, column, now.slot, t, first + t);
#pragma unroll
                for (u32 e = 0; e < N * N; ++e) {
                    const float logit = shuffle(v, 2 * N + e);
                    if (lane == (k - k0) * owned + t) logits[e] = logit;
                }
            }
            now.next(l.slots);
        }
        wave_barrier();
        if (k0 + GROUP < tiles) named_arrive(2 + (me + 1) % COEFFICIENTS, 64);
        const u32 k = k0 + (lane >> l.owned_bits);
        const u64 token = (u64)(cluster + k * clusters) * TILE + l.rank * owned + lane % owned;
        mix_lanes<N>(a, a.form, logits, token, lane < GROUP * owned && k < tiles && token < a.tokens, l.far + me * FAR_BYTES);
    }
}
