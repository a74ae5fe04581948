// pre_cluster_f32: `pre` for 4 streams of f32 in one pass over x.
//
// Math      As pre_cluster.
// Operands  x [T, 4, C], rows at multiples of 16 bytes; layer_input [T, C]; φ [24, 4·C], z, mixes [T, 24]; all f32.
// Mapping   As pre_cluster, but for what f32 makes different: slots are twice as large, so that there are few, and are left as early as can
//           be, as the warps that mix have nothing else to do; a tile comes in rows of 32 channels, a copy for each.
//           Warps 0..7 multiply, 8 copies, 9 adds and sends, 10 and 11 make coefficients, 12..15 mix.
//           A tile is mixed when H_pre has come from every owner, who had the sums of every warp by then: whoever mixes leaves the slot
//           for all.
// Traffic   20·C bytes + 200 a token, φ once a cluster.
// Numerics  TF32 halves of both factors, three products of four; f32 sums in an order fixed by C: a token's numbers depend on nothing else.
//           z against f64, C = 4096: off by 6.2e-7 of its norm, where project_fwd_mma is by 9.1e-7.
// Measured  (H100, copies 2896 GB/s; in brackets the launches before this, which read x twice) T = 4096: 91 µs at C = 2560, 80 % of a copy
//           (192), 131 at C = 4096, 89 % (274); T = 16384: 298, 97 % (624), and 469, 99 % (989). In a run before, with two buffers of
//           partial sums: T = 1: 12.8 (33.9) and 14.9 (35.2); T = 64: 14.1 (38.5) and 17.0 (39.5): so there are no other kernels for few.
// Tried     (T = 4096 and 16384) C = 4096: multiplying and mixing by the same 8 warps, as pre_cluster: 184 and 673 µs; two buffers of
//           partial sums, which leave two slots of three: 149 and 529. C = 2048, with two buffers: 8 blocks of 256 channels: 85 and 271,
//           16 of 128: 75 and 251. C = 1024: 4 of 256: 58 and 162, 8 of 128: 46 and 135. Mixing 2 or 8 rows at a time instead of 4: no
//           other time.
#include "cluster_roles.cuh"
#include "tf32_products.cuh"

static const u32 N = 4, P = Sizes<N>::P, MIX = 4, ROW = 32, GROUP_BYTES = N * ROWS;
using Phi = HalfRows<8, P>;
using Args = PreCluster<float>;

// A multiplying warp's part of φ·w, from shared memory.
DEVICE void take_phi(Phi& mine, const Args& a, const Layout<N>& l) {
    const u32 q = lane_index() % 4;
    barrier_wait(l.phi_there, 0);
    mine.take(2 * N * l.part_channels / ROW, [&](float(&phi)[P / 8][4], u32 half) {
        const u32 stream = half / 2 % N, at = l.phi + (half / (2 * N) * ROW + half % 2 * (ROW / 2) + q * 4) * 4;
        float w[4] = {1.0f, 1.0f, 1.0f, 1.0f};
        if (a.weight) shared_load(w, at + (N * P + stream) * l.phi_row);
#pragma unroll
        for (u32 t = 0; t < P / 8; ++t) {
            shared_load(phi[t], at + (stream * P + t * 8 + row_of_lane()) * l.phi_row);
#pragma unroll
            for (u32 e = 0; e < 4; ++e) phi[t][e] *= w[e];
        }
    });
}

DEVICE void multiply(const Args& a, const Layout<N>& l, u32 tiles) {
    const u32 SUMS = Sizes<N>::SUMS, SUMS_BYTES = Sizes<N>::SUMS_BYTES;
    Phi phi;
    take_phi(phi, a, l);
    // Sums of the first tile go where φ was, and so do tiles.
    named_sync(1, MULTIPLY * 32);
    named_arrive(PHI_TAKEN, MULTIPLY * 32 + 32);
    cluster_wait();
    Turn now;
#pragma unroll 1
    for (u32 k = 0; k < tiles; ++k, now.next(l.slots)) {
        barrier_wait(l.full + now.slot * 8, now.parity);
        // The slot's tile before has been mixed, so that these are done with.
        if (thread_index() == 0) {
            barrier_expect(l.summed + now.slot * 8, SUMS_BYTES);
            barrier_expect(l.sent + now.slot * 8, TILE * 16);
        }
        const Products<P> products(phi, l.base + now.slot * l.slot);
        barrier_wait(l.taken, k % 2 ^ 1);
        const u32 to = l.reduce + wave_index() * SUMS_BYTES;
        products.put(to, SUMS * 4, to + P * 4, SUMS * 4);
        barrier_arrive(l.added);
    }
}

// layer_input: a lane has 16 bytes of each row of a token.
DEVICE void mix(const Args& a, const Layout<N>& l, u32 cluster, u32 clusters, u32 tiles) {
    const u32 me = thread_index() - (MULTIPLY + 4) * 32, token = me / 8, column = me % 8;
    cluster_wait();
    Turn now;
#pragma unroll 1
    for (u32 k = 0; k < tiles; ++k, now.next(l.slots)) {
        const u64 t = ((u64)cluster + (u64)k * clusters) * TILE + token;
        // Of tensor copies, each thread must have waited itself.
        barrier_wait(l.full + now.slot * 8, now.parity);
        barrier_wait_cluster(l.sent + now.slot * 8, now.parity);
        if (t < a.tokens) {
            const u32 from = l.base + now.slot * l.slot + piece(token, column);
            float* to = a.layer_input.at(t) + l.rank * l.part_channels + column * 4;
            float h[4];
            shared_load(h, l.h_pre + (now.slot * TILE + token) * 16);
#pragma unroll 4
            for (u32 row = 0; row < l.part_channels / ROW; ++row) {
                float sum[4] = {};
#pragma unroll
                for (u32 i = 0; i < N; ++i) {
                    float x[4];
                    shared_load(x, from + row * GROUP_BYTES + i * ROWS);
#pragma unroll
                    for (u32 e = 0; e < 4; ++e) sum[e] = fused(h[i], x[e], sum[e]);
                }
                Packed<float, 4> out;
                out.set(sum);
                global_store(to + row * ROW, out.w);
            }
        }
        wave_barrier();
        if (lane_index() == 0) barrier_arrive(l.empty + now.slot * 8);
    }
}

DEVICE void copy(const Args& a, const Layout<N>& l, u32 cluster, u32 clusters, u32 tiles) {
    const u32 lane = lane_index();
    Turn now;
#pragma unroll 1
    for (u32 k = 0; k < tiles || k <= l.first; ++k) {
        if (k == l.first) named_sync(PHI_TAKEN, MULTIPLY * 32 + 32);
        if (k >= tiles) continue;
        const u32 full = l.full + now.slot * 8;
        barrier_wait(l.empty + now.slot * 8, now.parity ^ 1);
        if (lane == 0) barrier_expect(full, l.slot);
        wave_barrier();
        if (lane < l.part_channels / ROW) {
            const u32 at[4] = {l.rank * l.part_channels + lane * ROW, (cluster + k * clusters) * TILE, 0, 0};
            tensor_load(l.base + now.slot * l.slot + lane * GROUP_BYTES, a.x, at, full);
        }
        wave_barrier();
        now.next(l.slots);
    }
    cluster_wait();
}

DEVICE void pre_cluster_f32(const Args& a) {
    DYNAMIC_SHARED(u8, shared);
    const Layout<N> l(a, shared_address(shared), false, false);
    const u32 cluster = block_x() / l.ranks, clusters = blocks_x() / l.ranks, warp = wave_index();
    const u32 tiles = tiles_of(a.tokens, cluster, clusters);
    begin(l, MIX);
    // Of 128 registers a thread, those that multiply take 40 from each two of the others.
    if (warp < MULTIPLY) {
        take_registers<168>();
        multiply(a, l, tiles);
    } else {
        give_registers<88>();
        if (warp >= MULTIPLY + 4) {
            mix(a, l, cluster, clusters, tiles);
        } else {
            if (warp > MULTIPLY) copy_phi(a, l);
            if (warp == MULTIPLY) copy(a, l, cluster, clusters, tiles);
            else if (warp == MULTIPLY + 1) reduce_and_send(l, tiles);
            else coefficients(a, l, cluster, clusters, tiles);
        }
    }
    // Nobody ends while others may still write to its shared memory.
    wave_barrier();
    cluster_arrive();
    cluster_wait();
}

#define MHC_KERNEL_pre_cluster_f32(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 512, 1, Args, pre_cluster_f32)
