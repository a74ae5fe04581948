// pre_cluster, post_pre_cluster: `pre` for 2 or 4 streams of 16 bits in one pass over x, and `post` of the sub-layer before in the same pass.
// pre_norm_cluster: with an RMSNorm of the aggregate.
//
// Math      z_j = ρ·Σ_k φ[j,k]·w[k]·x[k], ρ = (Σ_k x[k]²/K + ε)^(-1/2); coefficients as in coefficients.cuh; layer_input = Σ_i H_pre[i]·x_i,
//           or that times its own inverse root mean square and a weight
// Operands  x [T, n, C] of type E, rows at multiples of 16 bytes; layer_input [T, C] of type E; φ [P, n·C], z, mixes [T, P] f32.
// Mapping   A cluster of R blocks splits the channels: a block has channels [rank·C/R, (rank + 1)·C/R) of all streams, its part of φ in
//           registers for the whole launch, as fragments of products spread over 8 warps. Tiles of 16 tokens come by tensor copies
//           through a ring of slots in shared memory. For each tile, every block sends its partial sums of a token to the block that
//           owns the token; that adds them in the order of the ranks and sends H_pre back to all; what is still in the slot is mixed.
//           Warps 0..7 multiply and mix; 8 copies; 9 adds and sends; 10, 11 make coefficients, Sinkhorn after H_pre has gone out.
//           No slot is overwritten early: the copy of tile k + slots waits for the mix of tile k, that for H_pre from every owner, and an
//           owner sends it when it has read the partial sums of tile k of every block. So rings of that depth are safe everywhere.
//           φ comes through shared memory, in rows, where all but the first slots will be.
//           An RMSNorm takes one more exchange: each block sends the squares of its aggregates to all. Where registers hold the
//           aggregates, their slot is free from then on, and they are written a tile later; else they are made again after the next
//           products. Norms of tile k are read before anybody can send those of tile k + slots, as slots > behind + 1.
// Traffic   2·(n + 1)·C bytes + 200 a token, φ once a cluster.
// Numerics  φ·w as the sum of two E, of 16 bits and more; f32 sums in an order fixed by C: a token's numbers depend on nothing else.
// Tried     (numbers of the prototype, C = 4096, T = 16384, H100) 64 bulk copies a tile: 384 µs; one tensor copy: 255; own warps to
//           reduce and to mix: 249, but slower where φ takes more than 160 registers; cluster of 16 for C = 2560: slower than of 8.
//           (This one, T = 16384) Sinkhorn with its lines side by side: 259 → 241 µs at C = 4096, as it took issue slots from warps that
//           multiply; one buffer of partial sums, which makes room for a slot: 241 → 250 there, 161 → 163 at C = 2560; to mix a tile one
//           or two tiles later than it is multiplied: 249 and 241 there, 161 and 163 at C = 2560; the RMSNorm as a branch of the same
//           kernel: 12 % of all uses. RMSNorm, T = 4096, C = 4096: its weight from memory, which every tile waits for twice: 114 µs;
//           from shared memory: 103; and its aggregates written a tile later: 99. φ from memory to fragments, 32 bytes at a time: in
//           registers 9.4 µs after the launch (C = 2560); in rows sent off by one warp, before its first tile: 5.2 µs, the first tile 6.6.
// Measured  T = 4096, C = 2560 (1.5 × the time of a copy): 15 clusters fit, of whose 256 tiles one has 18; 2.2 µs a tile is what memory
//           gives; the last tile takes 4 µs from its sums to the end, most of it Sinkhorn's chain.
#include "cluster_roles.cuh"

// A warp's part of the products of one tile, and Σx², into `to`.
template <class E, u32 N, u32 BLOCKS>
DEVICE void multiply(const Weights<E, N, BLOCKS>& phi, const Layout<N>& l, u32 slot, u32 to, u32 warp, u32 lane) {
    const u32 P = Sizes<N>::P, SUMS = Sizes<N>::SUMS;
    // The two parts of φ are added apart where registers allow, which halves the chains of dependent products.
    float acc[P / 8][4] = {}, apart[P / 8][4] = {}, square[2] = {};
    float(&low)[P / 8][4] = BLOCKS <= 5 ? apart : acc;
    const u32 row = lane % 16, blocks = l.part_channels / 32 * N;
    const auto fetch = [&](u32(&x)[4], u32 slabs) {
        const u32 block = smaller(warp * BLOCKS + slabs / 2, blocks - 1);
        load_matrices(x, slot + block / 2 * (TILE * 128) + piece(row, block % 2 * 4 + slabs % 2 * 2 + lane / 16));
    };
    u32 next[4];
    fetch(next, 0);
#pragma unroll
    for (u32 b = 0; b < BLOCKS; ++b) {
#pragma unroll
        for (u32 slab = 0; slab < 2; ++slab) {
            u32 x[4] = {next[0], next[1], next[2], next[3]};
            if (b * 2 + slab + 1 < BLOCKS * 2) fetch(next, b * 2 + slab + 1);
            if (warp * BLOCKS + b >= blocks) continue;
#pragma unroll
            for (u32 tile = 0; tile < P / 8; ++tile) mma16<E>(acc[tile], x, phi.hi[b][tile][2 * slab], phi.hi[b][tile][2 * slab + 1]);
#pragma unroll
            for (u32 tile = 0; tile < P / 8; ++tile) mma16<E>(low[tile], x, phi.lo[b][tile][2 * slab], phi.lo[b][tile][2 * slab + 1]);
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                float v[2];
                unpack(x[e], v, (E*)0);
                square[e % 2] = fused(v[1], v[1], fused(v[0], v[0], square[e % 2]));
            }
        }
    }
    const u32 g = lane / 4, q = lane % 4;
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
        const u32 at = to + ((warp * TILE + h * 8 + g) * SUMS + q * 2) * 4;
#pragma unroll
        for (u32 tile = 0; tile < P / 8; ++tile) {
            float v[2] = {acc[tile][h * 2] + apart[tile][h * 2], acc[tile][h * 2 + 1] + apart[tile][h * 2 + 1]};
            if constexpr (Pairs<E, P / 8>::SCALED) {
                float inverse[2];
                shared_load(inverse, l.scales + (warp * P + tile * 8 + q * 2) * 4);
                v[0] *= inverse[0];
                v[1] *= inverse[1];
            }
            shared_store(at + tile * 32, v[0], v[1]);
        }
        square[h] += shuffle_xor(square[h], 1);
        square[h] += shuffle_xor(square[h], 2);
        if (q == 0) shared_store(to + ((warp * TILE + h * 8 + g) * SUMS + P) * 4, square[h]);
    }
}

// The aggregate of 8 channels of a token, whose pieces of the streams begin at `at`.
template <class E, u32 N> DEVICE void aggregate(float (&sum)[8], const Layout<N>& l, const float (&h)[4], u32 at) {
#pragma unroll
    for (u32 i = 0; i < N; ++i) {
        Packed<E, 8> x;
        float v[8];
        shared_load(x.w, at + i * l.part_channels * TILE * 2);
        x.get(v);
#pragma unroll
        for (u32 e = 0; e < 8; ++e) sum[e] = i ? fused(h[i], v[e], sum[e]) : fused(h[i], v[e], 0.0f);
    }
}

// Where the thread's pieces of a tile are: always of the same token, as there are twice 16 times 8 threads.
struct Piece {
    u32 token = thread_index() / 8 % TILE, column = thread_index() % 8, group = thread_index() / (8 * TILE);
    DEVICE_MEMBER u32 in(u32 slot) const { return slot + group * (TILE * 128) + piece(token, column); }
    DEVICE_MEMBER u32 channel() const { return group * 64 + column * 8; }
};

// The aggregates of a thread's pieces of a tile.
template <class E, u32 N, bool KEPT> struct Aggregates {
    // As they are wanted.
    DEVICE_MEMBER void make(const Layout<N>&, u32, u32) {}
    template <class F> DEVICE_MEMBER void each(const Layout<N>& l, u32 turn, u32 slot, F f) const {
        Piece p;
        float h[4];
        shared_load(h, l.h_pre + (turn * TILE + p.token) * 16);
#pragma unroll 2
        for (; p.group < l.part_channels / 64; p.group += 2) {
            float sum[8];
            aggregate<E>(sum, l, h, p.in(slot));
            f(p, sum);
        }
    }
};

// Kept from when they are made, where registers allow: two pieces, as there are 256 channels at most.
template <class E, u32 N> struct Aggregates<E, N, true> {
    float sums[2][8];

    DEVICE_MEMBER void make(const Layout<N>& l, u32 turn, u32 slot) {
        Piece p;
        float h[4];
        shared_load(h, l.h_pre + (turn * TILE + p.token) * 16);
#pragma unroll
        for (u32 i = 0; i < 2; ++i, p.group += 2) {
            if (p.group < l.part_channels / 64) aggregate<E>(sums[i], l, h, p.in(slot));
        }
    }
    template <class F> DEVICE_MEMBER void each(const Layout<N>& l, u32, u32, F f) const {
        Piece p;
#pragma unroll
        for (u32 i = 0; i < 2; ++i, p.group += 2) {
            if (p.group < l.part_channels / 64) f(p, sums[i]);
        }
    }
};

// layer_input of a tile's channels that this block has; with an RMSNorm, the aggregates times `scale` and w.
template <bool NORM, class E, u32 N, bool KEPT>
DEVICE void mix_slot(
    const Aggregates<E, N, KEPT>& kept, const PreCluster<E>& a, const Layout<N>& l, u32 turn, u32 slot, u64 first_token, float scale) {
    const u64 token = first_token + Piece().token;
    if (token >= a.tokens) return;
    kept.each(l, turn, slot, [&](const Piece& p, const float(&sum)[8]) {
        const u32 c = l.rank * l.part_channels + p.channel();
        Packed<E, 8> out;
        if constexpr (NORM) {
            float v[8];
#pragma unroll
            for (u32 e = 0; e < 8; e += 4) {
                float w[4];
                shared_load(w, l.w + (p.channel() + e) * 4);
#pragma unroll
                for (u32 i = 0; i < 4; ++i) v[e + i] = sum[e + i] * scale * w[i];
            }
            out.set(v);
        } else {
            out.set(sum);
        }
        global_store(a.layer_input.at(token) + c, out.w);
    });
}

// The squares of a tile's aggregates over the channels that this block has, to every block of the cluster.
template <class E, u32 N, bool KEPT> DEVICE void send_norms(Aggregates<E, N, KEPT>& kept, const Layout<N>& l, u32 turn, u32 slot) {
    const u32 warp = thread_index() / 32, lane = thread_index() % 32;
    float square = 0.0f;
    kept.make(l, turn, slot);
    kept.each(l, turn, slot, [&](const Piece&, const float(&sum)[8]) {
#pragma unroll
        for (u32 e = 0; e < 8; ++e) square = fused(sum[e], sum[e], square);
    });
#pragma unroll
    for (u32 m = 4; m > 0; m /= 2) square += shuffle_xor(square, m);
    const float four[4] = {shuffle(square, 0), shuffle(square, 8), shuffle(square, 16), shuffle(square, 24)};
    if (lane < l.ranks) {
        const u32 to = l.norms + turn * NORM_BYTES + (l.rank * 2 + warp / 4) * (TILE * 4) + warp % 4 * 16;
        send(address_in(to, lane), four, address_in(l.normed + turn * 8, lane));
    }
}

// The inverse root mean square of the aggregate of this thread's token.
template <class E, u32 N> DEVICE float inverse_norm(const PreCluster<E>& a, const Layout<N>& l, u32 turn, u64 first_token) {
    const Piece p;
    float sum = 0.0f;
    for (u32 part = p.column; part < l.ranks * 2; part += 8) {
        sum += shared_load(l.norms + turn * NORM_BYTES + part * (TILE * 4) + p.token * 4);
    }
#pragma unroll
    for (u32 m = 4; m > 0; m /= 2) sum += shuffle_xor(sum, m);
    const float r = 1.0f / square_root(sum / (float)a.channels + a.li_eps);
    const bool mine = l.rank == 0 && thread_index() < 8 * TILE && p.column == 0 && first_token + p.token < a.tokens;
    if (a.li_inv_rms && mine) a.li_inv_rms[first_token + p.token] = r;
    return r;
}

// The weights of `post` for the token that a thread has in every tile.
template <u32 N> struct PostWeights {
    float res[N][N], post[N];

    template <class E> DEVICE_MEMBER void load(const PreCluster<E>& a, u64 first_token) {
        const u64 token = first_token + thread_index() / 8 % TILE;
        const float* h = a.before.at(token < a.tokens ? token : a.tokens - 1);
#pragma unroll
        for (u32 i = 0; i < N; ++i) {
            post[i] = h[N + i];
#pragma unroll
            for (u32 j = 0; j < N; ++j) res[i][j] = h[2 * N + mix_index(N, a.from_to, i, j)];
        }
    }
};

// x_next of a slot in place of its x, and to memory.
template <class E, u32 N>
DEVICE void post_slot(const PreCluster<E>& a, const Layout<N>& l, u32 slot, const PostWeights<N>& h, u64 first_token) {
    const u32 stream = l.part_channels * TILE * 2, token = thread_index() / 8 % TILE;
    for (u32 item = thread_index(); item < TILE * l.part_channels / 8; item += MULTIPLY * 32) {
        const u32 group = item / (8 * TILE), at = slot + group * (TILE * 128) + piece(token, item % 8);
        Packed<E, 8> x[N], y;
        shared_load(y.w, at + N * stream);
#pragma unroll
        for (u32 j = 0; j < N; ++j) shared_load(x[j].w, at + j * stream);
        float v[N + 1][8];
        y.get(v[N]);
#pragma unroll
        for (u32 j = 0; j < N; ++j) x[j].get(v[j]);
#pragma unroll
        for (u32 i = 0; i < N; ++i) {
            float sum[8];
#pragma unroll
            for (u32 e = 0; e < 8; ++e) {
                sum[e] = h.post[i] * v[N][e];
#pragma unroll
                for (u32 j = 0; j < N; ++j) sum[e] = fused(h.res[i][j], v[j][e], sum[e]);
            }
            Packed<E, 8> out;
            out.set(sum);
            shared_store(at + i * stream, out.w);
            if (first_token + token >= a.tokens) continue;
            global_store(a.x_next.at(first_token + token).at(i) + l.rank * l.part_channels + group * 64 + item % 8 * 8, out.w);
        }
    }
}

template <class E, u32 N, u32 BLOCKS, bool POST, bool NORM>
DEVICE void multiply_and_mix(const PreCluster<E>& a, const Layout<N>& l, u32 cluster, u32 clusters, u32 tiles) {
    const u32 warp = thread_index() / 32, lane = thread_index() % 32;
    Weights<E, N, BLOCKS> phi;
    barrier_wait(l.phi_there, 0);
    phi.take(a, l, warp, lane);
    // Sums of the first tile go where φ was, and so do tiles.
    named_sync(1, MULTIPLY * 32);
    named_arrive(PHI_TAKEN, MULTIPLY * 32 + 32);
    cluster_wait();
    PostWeights<N> h;
    if (POST) h.load(a, (u64)cluster * TILE);
    // What is kept leaves its slot at once, and is written a tile later, when the norms have long come.
    constexpr bool KEPT = NORM && BLOCKS <= 4;
    const u32 behind = a.behind, last = behind + KEPT;
    Turn now, then, mixed, buffer;
    Aggregates<E, N, KEPT> made, kept;
    const auto leave = [&](const Turn& turn) {
        wave_barrier();
        if (lane == 0) barrier_arrive(l.empty + turn.slot * 8);
    };
    for (u32 k = 0; k < tiles + last; ++k) {
        if (NORM && k >= behind && k < tiles + behind) {
            // The norms are on their way while the next tile is multiplied.
            Turn& turn = KEPT ? then : mixed;
            barrier_wait_cluster(l.sent + turn.slot * 8, turn.parity);
            send_norms(made, l, turn.slot, l.base + turn.slot * l.slot);
            if (KEPT) {
                leave(turn);
                turn.next(l.slots);
            }
        }
        if (k < tiles) {
            const u64 first_token = (u64)(cluster + k * clusters) * TILE;
            if (thread_index() == 0) {
                barrier_expect(l.summed + now.slot * 8, Sizes<N>::SUMS_BYTES);
                barrier_expect(l.sent + now.slot * 8, TILE * 16);
                if (NORM) barrier_expect(l.normed + now.slot * 8, l.ranks * 2 * TILE * 4);
            }
            barrier_wait(l.full + now.slot * 8, now.parity);
            if (POST) {
                post_slot(a, l, l.base + now.slot * l.slot, h, first_token);
                // The next tile's, which are on their way while this one is multiplied.
                h.load(a, first_token + (u64)clusters * TILE);
                named_sync(1, MULTIPLY * 32);
            }
            barrier_wait(l.taken + buffer.slot * 8, buffer.parity ^ 1);
            multiply(phi, l, l.base + now.slot * l.slot, l.reduce + buffer.slot * (MULTIPLY * Sizes<N>::SUMS_BYTES), warp, lane);
            barrier_arrive(l.added + buffer.slot * 8);
            now.next(l.slots);
            buffer.next(l.buffers);
        }
        if (k >= last) {
            const u64 first_token = ((u64)cluster + (u64)(k - last) * clusters) * TILE;
            float scale = 1.0f;
            if (NORM) {
                barrier_wait_cluster(l.normed + mixed.slot * 8, mixed.parity);
                scale = inverse_norm(a, l, mixed.slot, first_token);
            } else {
                barrier_wait_cluster(l.sent + mixed.slot * 8, mixed.parity);
            }
            mix_slot<NORM>(kept, a, l, mixed.slot, l.base + mixed.slot * l.slot, first_token, scale);
            // What was written here must not come after what the copy engine writes next.
            if (POST) fence_copies();
            if (!KEPT) leave(mixed);
            mixed.next(l.slots);
        }
        if constexpr (KEPT) kept = made;
    }
}

template <bool POST, class E, u32 N>
DEVICE void copy(const PreCluster<E>& a, const Layout<N>& l, u32 cluster, u32 clusters, u32 tiles) {
    Turn now;
    for (u32 k = 0; k < tiles || k <= l.first; ++k) {
        if (k == l.first) named_sync(PHI_TAKEN, MULTIPLY * 32 + 32);
        if (k >= tiles) continue;
        barrier_wait(l.empty + now.slot * 8, now.parity ^ 1);
        if (thread_index() % 32 == 0) {
            const u32 at[4] = {0, (u32)((cluster + k * clusters) * TILE), l.rank * (l.part_channels / 64), 0};
            barrier_expect(l.full + now.slot * 8, l.slot);
            tensor_load(l.base + now.slot * l.slot, a.x, at, l.full + now.slot * 8);
            if (POST) tensor_load(l.base + now.slot * l.slot + l.part_channels * N * TILE * 2, a.y, at, l.full + now.slot * 8);
        }
        wave_barrier();
        now.next(l.slots);
    }
    cluster_wait();
}

template <class E, u32 N, u32 BLOCKS, bool POST, bool NORM = false> DEVICE void pre_cluster(const PreCluster<E>& a) {
    DYNAMIC_SHARED(u8, shared);
    const Layout<N> l(a, shared_address(shared), POST, NORM);
    const u32 cluster = block_x() / l.ranks, clusters = blocks_x() / l.ranks, warp = thread_index() / 32;
    const u32 tiles = tiles_of(a.tokens, cluster, clusters);
    begin(l, MULTIPLY);
    // 168 registers a thread are enough for 4 blocks of φ; more take some from those who only copy and make coefficients.
    const u32 ALL_OF_PHI = NORM || Pairs<E, 1>::SCALED ? 216 : 208;
    const u32 MORE = BLOCKS > 5 ? ALL_OF_PHI : POST || NORM ? 208 : BLOCKS > 4 ? 192 : 168;
    if (warp < MULTIPLY) {
        if constexpr (MORE > 168) take_registers<MORE>();
        multiply_and_mix<E, N, BLOCKS, POST, NORM>(a, l, cluster, clusters, tiles);
    } else {
        if constexpr (MORE > 168) give_registers<3 * 168 - 2 * MORE>();
        if (warp > MULTIPLY) copy_phi(a, l);
        if (warp == MULTIPLY) copy<POST>(a, l, cluster, clusters, tiles);
        else if (warp == MULTIPLY + 1) reduce_and_send(l, tiles);
        else coefficients(a, l, cluster, clusters, tiles);
    }
    // Nobody ends while others may still write to its shared memory.
    wave_barrier();
    cluster_arrive();
    cluster_wait();
}

#define MHC_KERNEL_pre_cluster_2(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 384, 1, PreCluster<E>, pre_cluster<E, N, 2, false>)
#define MHC_KERNEL_pre_cluster_4(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 384, 1, PreCluster<E>, pre_cluster<E, N, 4, false>)
#define MHC_KERNEL_pre_cluster_5(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 384, 1, PreCluster<E>, pre_cluster<E, N, 5, false>)
#define MHC_KERNEL_pre_cluster_7(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 384, 1, PreCluster<E>, pre_cluster<E, N, 7, false>)
#define MHC_KERNEL_pre_norm_cluster_4(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 384, 1, PreCluster<E>, pre_cluster<E, N, 4, false, true>)
#define MHC_KERNEL_pre_norm_cluster_5(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 384, 1, PreCluster<E>, pre_cluster<E, N, 5, false, true>)
#define MHC_KERNEL_pre_norm_cluster_7(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 384, 1, PreCluster<E>, pre_cluster<E, N, 7, false, true>)
#define MHC_KERNEL_post_pre_cluster_2(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 384, 1, PreCluster<E>, pre_cluster<E, N, 2, true>)
#define MHC_KERNEL_post_pre_cluster_4(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 384, 1, PreCluster<E>, pre_cluster<E, N, 4, true>)
#define MHC_KERNEL_post_pre_cluster_5(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 384, 1, PreCluster<E>, pre_cluster<E, N, 5, true>)
