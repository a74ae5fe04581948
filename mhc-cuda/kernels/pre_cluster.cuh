// pre_cluster, post_pre_cluster: `pre` for 4 streams of bf16 in one pass over x, and `post` of the sub-layer before in the same pass.
//
// Math      z_j = ρ·Σ_k φ[j,k]·w[k]·x[k], ρ = (Σ_k x[k]²/K + ε)^(-1/2); coefficients as in coefficients.cuh; layer_input = Σ_i H_pre[i]·x_i
// Operands  x [T, 4, C] bf16, rows at multiples of 16 bytes; layer_input [T, C] bf16; φ [24, 4C], z, mixes [T, 24] f32.
// Mapping   A cluster of R blocks splits the channels: a block has channels [rank·C/R, (rank + 1)·C/R) of all streams, its part of φ in
//           registers for the whole launch, as fragments of products spread over 8 warps. Tiles of 16 tokens come by tensor copies
//           through a ring of slots in shared memory. For each tile, every block sends its partial sums of a token to the block that
//           owns the token; that adds them in the order of the ranks and sends H_pre back to all; what is still in the slot is mixed.
//           Warps 0..7 multiply and mix; 8 copies; 9 adds and sends; 10, 11 make coefficients, Sinkhorn after H_pre has gone out.
//           No slot is overwritten early: the copy of tile k + slots waits for the mix of tile k, that for H_pre from every owner, and an
//           owner sends it when it has read the partial sums of tile k of every block. So rings of that depth are safe everywhere.
// Traffic   10·C bytes + 200 a token, φ once a cluster.
// Numerics  φ·w as the sum of two bf16; f32 sums in an order fixed by C: a token's numbers depend on nothing else.
// Tried     (numbers of the prototype, C = 4096, T = 16384, H100) 64 bulk copies a tile: 384 µs; one tensor copy: 255; own warps to
//           reduce and to mix: 249, but slower where φ takes more than 160 registers; cluster of 16 for C = 2560: slower than of 8.
#include "hopper.cuh"
#include "mma.cuh"
#include "sinkhorn.cuh"

// The last five: for post_pre, where x, y and their coefficients `before` are the operands of `post`, and what is projected and mixed
// is x_next, which is written too.
struct PreCluster {
    TensorMap x, y;
    Rows<const float> phi;
    const float *weight, *alpha, *bias;
    Rows<bf16> layer_input;
    Rows<float> mixes, z;
    float* inv_rms;
    u64 tokens;
    alignas(8) u32 channels, slots;
    Form form;
    alignas(8) float pre_eps, post_mult, rms_eps;
    Rows<const float> before;
    Streams<bf16> x_next;
    alignas(8) u32 from_to;
};

// Streams, columns of φ, tokens of a tile, warps that multiply and that make coefficients; floats of a token's partial sums: the
// columns, Σx², and 3 to fill 16 bytes.
static const u32 N = 4, P = N * (N + 2), TILE = 16, MULTIPLY = 8, COEFFICIENTS = 2, SUMS = P + 4;
// Tiles whose matrices one warp makes doubly stochastic together; tiles that are copied before φ is there: more would hold it up (1.5 %
// of C = 4096, T = 16384 in the prototype). Named barriers: 1 after `post`, 2 and 3 of the warps that make coefficients.
static const u32 GROUP = 4, FIRST = 2, PHI_LOADED = 4;
static const u32 SUMS_BYTES = TILE * SUMS * 4, FAR_BYTES = 896;

// Where things lie in a block's shared memory.
struct Layout {
    u32 slot, rank, ranks, owned, owned_bits, part_channels, slots;
    u32 base, reduce, sums, h_pre, far, full, empty, summed, sent, added, taken;

    // A slot has the tile's streams, one after the other, then its y.
    DEVICE_MEMBER Layout(u32 shared, u32 channels, u32 slots, u32 ranks, bool post) : rank(cluster_rank()), ranks(ranks), slots(slots) {
        // 4, 8 or 16 ranks.
        owned_bits = ranks == 16 ? 0 : ranks == 8 ? 1 : 2;
        owned = 1u << owned_bits;
        part_channels = channels >> (4 - owned_bits);
        slot = part_channels * (N + post) * TILE * 2;
        base = (shared + 1023) / 1024 * 1024;
        reduce = base + slots * slot;
        sums = reduce + 2 * MULTIPLY * SUMS_BYTES;
        h_pre = sums + slots * SUMS_BYTES;
        far = h_pre + slots * TILE * 16;
        full = far + COEFFICIENTS * FAR_BYTES;
        empty = full + slots * 8;
        summed = empty + slots * 8;
        sent = summed + slots * 8;
        added = sent + slots * 8;
        taken = added + 16;
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

// The part of φ of a multiplying warp: BLOCKS blocks of 32 channels for three times 8 columns, word 2·s + h for half h of slab s of 16.
template <u32 BLOCKS> struct Weights {
    u32 hi[BLOCKS][P / 8][4], lo[BLOCKS][P / 8][4];

    // Blocks past the last are read as some other and not multiplied: without branches all loads are on their way together.
    template <bool WEIGHT> DEVICE_MEMBER void load(const PreCluster& a, const Layout& l, u32 warp, u32 lane) {
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
                    split_bf16(f[0], f[1], hi[b][tile][e], lo[b][tile][e]);
                }
            }
            if (++rest == per_stream) {
                rest = 0;
                ++stream;
            }
        }
    }
};

// Lane's row of a tile in a slot: [stream][64 channels][token][64], 128 bytes a row whose 16-byte pieces are permuted by the row.
DEVICE u32 piece(u32 row, u32 piece) { return row * 128 + ((piece ^ (row & 7)) << 4); }

// A warp's part of the products of one tile, and Σx², into `to`.
template <u32 BLOCKS> DEVICE void multiply(const Weights<BLOCKS>& phi, const Layout& l, u32 slot, u32 to, u32 warp, u32 lane) {
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
            for (u32 tile = 0; tile < P / 8; ++tile) mma_bf16(acc[tile], x, phi.hi[b][tile][2 * slab], phi.hi[b][tile][2 * slab + 1]);
#pragma unroll
            for (u32 tile = 0; tile < P / 8; ++tile) mma_bf16(low[tile], x, phi.lo[b][tile][2 * slab], phi.lo[b][tile][2 * slab + 1]);
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                const float v = bits_to_float(x[e] << 16), w = bits_to_float(x[e] & 0xffff0000u);
                square[e % 2] = fused(w, w, fused(v, v, square[e % 2]));
            }
        }
    }
    const u32 g = lane / 4, q = lane % 4;
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
        const u32 at = to + ((warp * TILE + h * 8 + g) * SUMS + q * 2) * 4;
#pragma unroll
        for (u32 tile = 0; tile < P / 8; ++tile) {
            shared_store(at + tile * 32, acc[tile][h * 2] + apart[tile][h * 2], acc[tile][h * 2 + 1] + apart[tile][h * 2 + 1]);
        }
        square[h] += shuffle_xor(square[h], 1);
        square[h] += shuffle_xor(square[h], 2);
        if (q == 0) shared_store(to + ((warp * TILE + h * 8 + g) * SUMS + P) * 4, square[h]);
    }
}

// The sums over the multiplying warps, to the tokens' owners: one warp, so that those that multiply need not wait for each other.
DEVICE void reduce_and_send(const Layout& l, u32 tiles) {
    const u32 lane = thread_index() % 32;
    cluster_wait();
    Turn now, buffer;
    for (u32 k = 0; k < tiles; ++k, now.next(l.slots), buffer.next(2)) {
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
        wave_barrier();
        if (lane == 0) barrier_arrive(l.taken + buffer.slot * 8);
    }
}

// layer_input of a tile's channels that this block has.
DEVICE void mix_slot(const PreCluster& a, const Layout& l, u32 slot, u32 h_pre, u64 first_token) {
    const u32 stream = l.part_channels * TILE * 2;
#pragma unroll 2
    for (u32 item = thread_index(); item < TILE * l.part_channels / 8; item += MULTIPLY * 32) {
        const u32 token = item / 8 % TILE, group = item / (8 * TILE), at = slot + group * (TILE * 128) + piece(token, item % 8);
        if (first_token + token >= a.tokens) continue;
        float h[4], sum[8] = {};
        shared_load(h, h_pre + token * 16);
#pragma unroll
        for (u32 i = 0; i < N; ++i) {
            Packed<bf16, 8> x;
            float v[8];
            shared_load(x.w, at + i * stream);
            x.get(v);
#pragma unroll
            for (u32 e = 0; e < 8; ++e) sum[e] = fused(h[i], v[e], sum[e]);
        }
        Packed<bf16, 8> out;
        out.set(sum);
        global_store(a.layer_input.at(first_token + token) + l.rank * l.part_channels + group * 64 + item % 8 * 8, out.w);
    }
}

// The weights of `post` for the token that a thread has in every tile.
struct PostWeights {
    float res[N][N], post[N];

    DEVICE_MEMBER void load(const PreCluster& a, u64 first_token) {
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
DEVICE void post_slot(const PreCluster& a, const Layout& l, u32 slot, const PostWeights& h, u64 first_token) {
    const u32 stream = l.part_channels * TILE * 2, token = thread_index() / 8 % TILE;
    for (u32 item = thread_index(); item < TILE * l.part_channels / 8; item += MULTIPLY * 32) {
        const u32 group = item / (8 * TILE), at = slot + group * (TILE * 128) + piece(token, item % 8);
        Packed<bf16, 8> x[N], y;
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
            Packed<bf16, 8> out;
            out.set(sum);
            shared_store(at + i * stream, out.w);
            if (first_token + token >= a.tokens) continue;
            global_store(a.x_next.at(first_token + token).at(i) + l.rank * l.part_channels + group * 64 + item % 8 * 8, out.w);
        }
    }
}

template <u32 BLOCKS, bool POST> DEVICE void multiply_and_mix(const PreCluster& a, const Layout& l, u32 cluster, u32 clusters, u32 tiles) {
    const u32 warp = thread_index() / 32, lane = thread_index() % 32, behind = l.slots > 3 ? 2 : 1;
    Weights<BLOCKS> phi;
    a.weight ? phi.template load<true>(a, l, warp, lane) : phi.template load<false>(a, l, warp, lane);
    if (tiles > FIRST) named_arrive(PHI_LOADED, MULTIPLY * 32 + 32);
    cluster_wait();
    PostWeights h;
    if (POST) h.load(a, (u64)cluster * TILE);
    Turn now, then, buffer;
    for (u32 k = 0; k < tiles + behind; ++k) {
        if (k < tiles) {
            const u64 first_token = (u64)(cluster + k * clusters) * TILE;
            if (thread_index() == 0) {
                barrier_expect(l.summed + now.slot * 8, SUMS_BYTES);
                barrier_expect(l.sent + now.slot * 8, TILE * 16);
            }
            barrier_wait(l.full + now.slot * 8, now.parity);
            if (POST) {
                post_slot(a, l, l.base + now.slot * l.slot, h, first_token);
                // The next tile's, which are on their way while this one is multiplied.
                h.load(a, first_token + (u64)clusters * TILE);
                named_sync(1, MULTIPLY * 32);
            }
            barrier_wait(l.taken + buffer.slot * 8, buffer.parity ^ 1);
            const u32 partial = l.reduce + buffer.slot * (MULTIPLY * SUMS_BYTES);
            multiply<BLOCKS>(phi, l, l.base + now.slot * l.slot, partial, warp, lane);
            wave_barrier();
            if (lane == 0) barrier_arrive(l.added + buffer.slot * 8);
            now.next(l.slots);
            buffer.next(2);
        }
        if (k >= behind) {
            barrier_wait_cluster(l.sent + then.slot * 8, then.parity);
            const u64 tile = (u64)cluster + (k - behind) * clusters;
            mix_slot(a, l, l.base + then.slot * l.slot, l.h_pre + then.slot * TILE * 16, tile * TILE);
            // What was written here must not come after what the copy engine writes next.
            if (POST) fence_copies();
            wave_barrier();
            if (lane == 0) barrier_arrive(l.empty + then.slot * 8);
            then.next(l.slots);
        }
    }
}

template <bool POST> DEVICE void copy(const PreCluster& a, const Layout& l, u32 cluster, u32 clusters, u32 tiles) {
    Turn now;
    for (u32 k = 0; k < tiles; ++k) {
        if (k == FIRST) named_sync(PHI_LOADED, MULTIPLY * 32 + 32);
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

// H_res, a token a lane; where logits lie far apart, the whole warp in f64 with `far` of its own.
DEVICE void mixing(const PreCluster& a, const float (&logits)[N * N], u64 token, bool mine, u32 far) {
    // Not `led`, as registers have no addresses.
    const auto in = [&](u32 i, u32 j) { return a.form.lead ? logits[i * N + j] : logits[j * N + i]; };
    const bool wide = mine && far_apart<false>(N, in);
    OwnMatrix<float, N> m;
    sinkhorn(m, a.form, 0.0f, in, [](u32, u32, float) {});
    if (mine && !wide) {
        const auto out = led(a.form, [&](u32 i, u32 j, float v) { a.mixes.at(token)[2 * N + i * N + j] = v; });
#pragma unroll
        for (u32 e = 0; e < N * N; ++e) out(e / N, e % N, m.m[e]);
    }
    for (u32 lanes = __ballot_sync(0xffffffffu, wide); lanes; lanes &= lanes - 1) {
        const u64 t = __shfl_sync(0xffffffffu, token, __ffs(lanes) - 1);
        const float *z = a.z.at(t) + 2 * N, *bias = a.bias + 2 * N, alpha = a.alpha[2];
        WaveMatrix<double> shared = {(double*)__cvta_shared_to_generic(far), N};
        run_forward(
            shared, a.form, 0.0, led(a.form, [&](u32 i, u32 j) { return fused(alpha, z[i * N + j], bias[i * N + j]); }),
            led(a.form, [&](u32 i, u32 j, float v) { a.mixes.at(t)[2 * N + i * N + j] = v; }));
    }
}

// What a lane knows of its column.
struct Column {
    float alpha, bias, per_row;

    DEVICE_MEMBER Column(const PreCluster& a, u32 lane) {
        alpha = a.alpha[lane < N ? 0 : lane < 2 * N ? 1 : 2];
        bias = lane < P ? a.bias[lane] : 0.0f;
        per_row = 1.0f / (float)(N * a.channels);
    }
};

// One token that this block owns: H_pre to all blocks of the cluster, the rest to memory. Returns the lane's coefficient before σ.
DEVICE float token_coefficients(const PreCluster& a, const Layout& l, const Column& column, u32 slot, u32 t, u64 token) {
    const u32 lane = thread_index() % 32;
    const u32 from = l.sums + slot * SUMS_BYTES + (t * SUMS + smaller(lane, P)) * 4;
    // All loads first, then the sum in the order of the ranks.
    float part[16], sum = 0.0f;
#pragma unroll
    for (u32 r = 0; r < 16; ++r) part[r] = r < l.ranks ? shared_load(from + (r << l.owned_bits) * (SUMS * 4)) : 0.0f;
#pragma unroll
    for (u32 r = 0; r < 16; ++r) sum += part[r];
    const float rho = 1.0f / square_root(fused(shuffle(sum, P), column.per_row, a.rms_eps));
    const float z = rho * sum, v = fused(column.alpha, z, column.bias), gate = sigmoid(v), pre = gate + a.pre_eps;
    const float h[4] = {shuffle(pre, 0), shuffle(pre, 1), shuffle(pre, 2), shuffle(pre, 3)};
    if (lane < l.ranks) {
        const u32 to = l.h_pre + (slot * TILE + l.rank * l.owned + t) * 16;
        send(address_in(to, lane), h, address_in(l.sent + slot * 8, lane));
    }
    if (token < a.tokens) {
        if (lane < P) a.z.at(token)[lane] = z;
        if (lane < 2 * N) a.mixes.at(token)[lane] = lane < N ? pre : a.post_mult * gate;
        if (lane == 0 && a.inv_rms) a.inv_rms[token] = rho;
    }
    return v;
}

// The warps take groups of tiles in turn: first what the blocks wait for, tile by tile, then Sinkhorn for the whole group, during which
// the next warp goes on. One warp's tiles come after the other's, or else a wait might take an old phase of a slot for its own.
DEVICE void coefficients(const PreCluster& a, const Layout& l, u32 cluster, u32 clusters, u32 tiles) {
    const u32 lane = thread_index() % 32, me = thread_index() / 32 - MULTIPLY - 2, owned = l.owned;
    const Column column(a, lane);
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
        mixing(a, logits, token, lane < GROUP * owned && k < tiles && token < a.tokens, l.far + me * FAR_BYTES);
    }
}

template <u32 BLOCKS, bool POST> DEVICE void pre_cluster(const PreCluster& a) {
    DYNAMIC_SHARED(u8, shared);
    u32 ranks;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(ranks));
    const Layout l(shared_address(shared), a.channels, a.slots, ranks, POST);
    const u32 cluster = block_x() / ranks, clusters = blocks_x() / ranks;
    const u64 all = (a.tokens + TILE - 1) / TILE;
    const u32 tiles = cluster < all ? (u32)((all - cluster + clusters - 1) / clusters) : 0, warp = thread_index() / 32;
    if (thread_index() == 0) {
        for (u32 s = 0; s < a.slots; ++s) {
            barrier_init(l.full + s * 8, 1);
            barrier_init(l.empty + s * 8, MULTIPLY);
            barrier_init(l.summed + s * 8, 1);
            barrier_init(l.sent + s * 8, 1);
        }
        for (u32 s = 0; s < 2; ++s) {
            barrier_init(l.added + s * 8, MULTIPLY);
            barrier_init(l.taken + s * 8, 1);
        }
        barrier_init_done();
    }
    barrier();
    cluster_arrive();
    // 168 registers a thread are enough for 4 blocks of φ; more take some from those who only copy and make coefficients.
    const u32 MORE = BLOCKS > 5 || POST ? 208 : BLOCKS > 4 ? 184 : 168;
    if (warp < MULTIPLY) {
        if constexpr (MORE > 168) take_registers<MORE>();
        multiply_and_mix<BLOCKS, POST>(a, l, cluster, clusters, tiles);
    } else {
        if constexpr (MORE > 168) give_registers<3 * 168 - 2 * MORE>();
        if (warp == MULTIPLY) copy<POST>(a, l, cluster, clusters, tiles);
        else if (warp == MULTIPLY + 1) reduce_and_send(l, tiles);
        else coefficients(a, l, cluster, clusters, tiles);
    }
    // Nobody ends while others may still write to its shared memory.
    wave_barrier();
    cluster_arrive();
    cluster_wait();
}

#define MHC_KERNEL_pre_cluster_2(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 384, 1, PreCluster, pre_cluster<2, false>)
#define MHC_KERNEL_pre_cluster_4(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 384, 1, PreCluster, pre_cluster<4, false>)
#define MHC_KERNEL_pre_cluster_5(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 384, 1, PreCluster, pre_cluster<5, false>)
#define MHC_KERNEL_pre_cluster_7(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 384, 1, PreCluster, pre_cluster<7, false>)
#define MHC_KERNEL_post_pre_cluster_2(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 384, 1, PreCluster, pre_cluster<2, true>)
#define MHC_KERNEL_post_pre_cluster_4(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 384, 1, PreCluster, pre_cluster<4, true>)
#define MHC_KERNEL_post_pre_cluster_5(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 384, 1, PreCluster, pre_cluster<5, true>)
