// dynamic_fwd_cluster: dynamic_layer for 4 streams of f32 in one launch and one pass over x.
//
// Math      z, ρ as in project, the coefficients as in coefficients, out as in layer_fwd.
// Operands  x, out [T, 4, C], rows at multiples of 16 bytes, C a multiple of 4 and at most 1536; all f32.
// Mapping   As pre_cluster: a cluster of 8 blocks splits the channels, in rows of 32; a block has its part of φ in registers for the whole
//           launch, and tiles of 16 tokens come by tensor copies through a ring of slots. Of each tile, every block sends its partial
//           sums of two tokens to the block that owns them, which sends back first H_pre and H_post, then, after Sinkhorn, H_res. The
//           squares of the layer's input go from every block to all while H_res is made. What is still in the slot becomes `out`.
//           Warps 0..7 multiply, 8..11 mix, 12 copies, 13 adds and sends, 14 and 15 make the coefficients of every other tile.
//           A tile's messages have a box. A block sends its partial sums of a tile when it has mixed the tile that had the box before. By
//           then every owner has read all sums of that tile; and nothing else is sent for a tile before each block has sent its sums.
// Traffic   4nC elements a token, φ once a cluster.
// Numerics  TF32 halves of both factors, three products of four; f32 sums in an order fixed by C.
// Measured  (C = 1280, H100, with 4.3 µs of an empty graph) T = 2560: 47.8 µs, 1.31 times what x once and out once take; T = 16384: 244,
//           1.05 times; T = 320: 17.7; T = 1: 12.8. The one block a tile before this, which read x twice: 60.9, 431, 38, 28. ncu: 53 MB
//           read for 52 of x. A tile takes 2.9 µs once the first has passed, which takes 15. Narrower rows gain less, as Sinkhorn is most
//           of it then: C = 512: 35.5 µs, before 29; four launches 50.5.
// Tried     (T = 2560) Multiplying and mixing by the same 8 warps: 65. Rows of 16 channels in a slot: 6 more. φ straight from memory to
//           registers and w from the first cache, which has little room beside the slots: 58 to 62. A matrix of Sinkhorn to a thread: as
//           slow as an element to a lane, and more to issue. 4 slots: 49.4; 3: 55.5 (harness of its own, where 5 are 46.5).
#include "dynamic_layout.cuh"

// A multiplying warp's part of φ, from shared memory.
DEVICE void take_phi(Phi& mine, const DynamicFwd& a, const Place& l) {
    const u32 q = lane_index() % 4;
    barrier_wait(l.begun, 0);
    mine.take(2 * N * l.live, [&](float(&phi)[P / 8][4], u32 half) {
        if (l.channel(half / (2 * N)) + half % 2 * (ROW / 2) + q * 4 >= a.channels) return;
        const u32 at = l.phi + half / 2 * PHI_ROWS + piece(row_of_lane(), half % 2 * 4 + q);
#pragma unroll
        for (u32 t = 0; t < P / 8; ++t) shared_load(phi[t], at + t * 8 * (ROW * 4));
    });
}

// The sums over the multiplying warps, to the tokens' owners: one warp, so that those that multiply need not wait for each other.
DEVICE void reduce_and_send(const Place& l, const Tiles& tiles) {
    const u32 lane = lane_index();
    cluster_wait();
    Turn now, before;
#pragma unroll 1
    for (u32 k = 0; k < tiles.count; ++k, now.next(l.boxes)) {
        const u32 box = l.box_of(now);
        if (k >= l.boxes) {
            barrier_wait(l.empty + before.slot * 8, before.parity);
            before.next(l.slots);
        }
        if (lane == 0) {
            barrier_expect(box + SUMMED, GATES);
            barrier_expect(box + GATED, RES - GATES);
            barrier_expect(box + MIXED, NORMS - RES);
            barrier_expect(box + NORMED, SUMMED - NORMS);
        }
        barrier_wait(l.added, k % 2);
        float square = 0.0f;
#pragma unroll
        for (u32 w = 0; w < MULTIPLY; ++w) square += shared_load(l.partial + w * PARTIAL + (TILE * P + lane % TILE) * 4);
#pragma unroll
        for (u32 item = lane; item < TILE * P / 4; item += 32) {
            const u32 token = item / (P / 4), part = item % (P / 4), owner = token / OWNED;
            float sum[4] = {};
#pragma unroll
            for (u32 w = 0; w < MULTIPLY; ++w) {
                float v[4];
                shared_load(v, l.partial + w * PARTIAL + item * 16);
#pragma unroll
                for (u32 e = 0; e < 4; ++e) sum[e] += v[e];
            }
            send(address_in(box + ((l.rank * OWNED + token % OWNED) * P + part * 4) * 4, owner), sum, address_in(box + SUMMED, owner));
        }
        if (lane < TILE) {
            const u32 owner = lane / OWNED;
            send(address_in(box + SQUARES + (lane % OWNED * RANKS + l.rank) * 4, owner), square, address_in(box + SUMMED, owner));
        }
        barrier_arrive(l.taken);
    }
}

// 16 bytes of what is staged for each rank and each of PARTS parts of 16 bytes, to the same place behind `to` in every block.
template <u32 PARTS> DEVICE void send_staged(u32 staged, u32 to, u32 bar) {
    wave_barrier();
#pragma unroll
    for (u32 part = lane_index() / RANKS; part < PARTS; part += 32 / RANKS) {
        float v[4];
        shared_load(v, staged + part * 16);
        send(address_in(to + part * 16, lane_index() % RANKS), v, address_in(bar, lane_index() % RANKS));
    }
}

// A lane of a warp that makes the coefficients of two tokens, half a warp each.
struct Pair {
    // The lane's token of the two; its element of H_res, in the order of Sinkhorn and in that of φ; its column of H_pre or H_post, which
    // the lanes of two elements have.
    u32 half, element, place, gate, staged, far;
    float alpha_gate, bias_gate, alpha_res, bias_res;

    DEVICE_MEMBER Pair(const DynamicFwd& a, const Place& l, u32 me) {
        half = lane_index() / (N * N);
        element = LaneMatrix<N>::element();
        place = a.form.lead ? element : element % N * N + element / N;
        gate = element % (2 * N);
        staged = l.staged + me * STAGED;
        far = l.far + me * FAR;
        alpha_gate = a.alpha[gate / N];
        bias_gate = a.bias[gate];
        alpha_res = a.alpha[2];
        bias_res = a.bias[2 * N + place];
    }
    // In the order of the ranks.
    DEVICE_MEMBER float sum(u32 box, u32 column) const {
        float v[RANKS], sum = 0.0f;
#pragma unroll
        for (u32 r = 0; r < RANKS; ++r) v[r] = shared_load(box + ((r * OWNED + half) * P + column) * 4);
#pragma unroll
        for (u32 r = 0; r < RANKS; ++r) sum += v[r];
        return sum;
    }
    DEVICE_MEMBER float inverse_rms(const DynamicFwd& a, u32 box) const {
        float v[2][4], sum = 0.0f;
        shared_load(v[0], box + SQUARES + half * RANKS * 4);
        shared_load(v[1], box + SQUARES + half * RANKS * 4 + 16);
#pragma unroll
        for (u32 r = 0; r < RANKS; ++r) sum += v[r / 4][r % 4];
        return 1.0f / square_root(sum / (float)(N * a.channels) + a.rms_eps);
    }
    // The lane's logit. H_pre and H_post go out.
    DEVICE_MEMBER float gates(const DynamicFwd& a, const Place& l, u32 box, u64 token) const {
        const float rho = inverse_rms(a, box), z_gate = rho * sum(box, gate), z_res = rho * sum(box, 2 * N + place);
        const float open = sigmoid(fused(alpha_gate, z_gate, bias_gate));
        if (element < 2 * N) shared_store(staged + (half * 2 * N + gate) * 4, gate < N ? open + a.pre_eps : a.post_mult * open);
        send_staged<OWNED * 2 * N / 4>(staged, box + GATES + l.rank * OWNED * 2 * N * 4, box + GATED);
        if (token < a.tokens) {
            if (a.z.p) {
                a.z.at(token)[2 * N + place] = z_res;
                if (element < 2 * N) a.z.at(token)[gate] = z_gate;
            }
            if (element == 0 && a.inv_rms) a.inv_rms[token] = rho;
        }
        return fused(alpha_res, z_res, bias_res);
    }
    // Whether the logits of the lane's token want f64.
    DEVICE_MEMBER bool far_apart(float logit) const {
        float max = logit, min = logit;
#pragma unroll
        for (u32 m = 1; m < N * N; m *= 2) {
            max = larger(max, shuffle_xor(max, m));
            min = smaller(min, shuffle_xor(min, m));
        }
        return !(max - min < 60.0f && max < 80.0f && min > -80.0f);
    }
    // H_res goes out.
    DEVICE_MEMBER void mix(const DynamicFwd& a, const Place& l, u32 box, float logit) const {
        const u32 to = staged + OWNED * 2 * N * 4, wide = __ballot_sync(0xffffffffu, far_apart(logit));
        float v = lanes_forward<N>(a.form, logit, [](u32, u32, float) {});
#pragma unroll 1
        for (u32 k = 0; k < OWNED; ++k) {
            if (!(wide >> k * N * N & 1)) continue;
            if (half == k) shared_store(to + element * 4, logit);
            wave_barrier();
            WaveMatrix<double> m = {(double*)__cvta_shared_to_generic(far), N};
            sinkhorn(m, a.form, 0.0, [&](u32 i, u32 j) { return shared_load(to + (i * N + j) * 4); }, [](u32, u32, double) {});
            if (half == k) v = (float)m.template at<true>(element / N, element % N);
            wave_barrier();
        }
        const u32 at = a.from_to ? place % N * N + place / N : place;
        shared_store(to + (half * N * N + at) * 4, v);
        send_staged<OWNED * N * N / 4>(to, box + RES + l.rank * OWNED * N * N * 4, box + MIXED);
    }
};

// The two warps take tiles in turns. One takes a tile when the other has what it waited for, or else a wait might take an old phase of a
// box for its own.
DEVICE void coefficients(const DynamicFwd& a, const Place& l, const Tiles& tiles) {
    const u32 me = wave_index() - MULTIPLY - MIX - 2;
    const Pair pair(a, l, me);
    cluster_wait();
    Turn now;
    for (u32 k = 0; k < tiles.count; ++k, now.next(l.boxes)) {
        if (k % COEFFICIENTS != me) continue;
        const u32 box = l.box_of(now);
        if (k > 0) named_sync(2 + me, 64);
        barrier_wait_cluster(box + SUMMED, now.parity);
        wave_barrier();
        if (k + 1 < tiles.count) named_arrive(2 + (me + 1) % COEFFICIENTS, 64);
        pair.mix(a, l, box, pair.gates(a, l, box, tiles.token(k) + l.rank * OWNED + pair.half));
    }
}

// A mixing lane: one token of the warp's four, and 16 bytes of every row of a token.
struct Mixer {
    u32 token, column, at;

    DEVICE_MEMBER Mixer() {
        token = (wave_index() - MULTIPLY) * MIXED_TOKENS + lane_index() / 8;
        column = lane_index() % 8;
        at = piece(token, column);
    }
    // f(c, x) for the first of 4 channels, and those of all streams; the next ones are on their way by then.
    template <class F> DEVICE_MEMBER void each(const Place& l, u32 slot, F f) const {
        float next[N][4];
        const auto fetch = [&](u32 row) {
#pragma unroll
            for (u32 i = 0; i < N; ++i) shared_load(next[i], slot + (smaller(row, l.rows - 1) * N + i) * ROWS + at);
        };
        fetch(0);
#pragma unroll 2
        for (u32 row = 0; row < l.live; ++row) {
            float x[N][4];
#pragma unroll
            for (u32 e = 0; e < 4 * N; ++e) x[e / 4][e % 4] = next[e / 4][e % 4];
            fetch(row + 1);
            f(l.channel(row) + column * 4, x);
        }
    }
    DEVICE_MEMBER static void input(const float (&pre)[N], const float (&x)[N][4], float (&li)[4]) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            li[e] = 0.0f;
#pragma unroll
            for (u32 i = 0; i < N; ++i) li[e] = fused(pre[i], x[i][e], li[e]);
        }
    }
    // The squares of the layer's input, over this block's channels, to every block. Past the last channel x is zero.
    DEVICE_MEMBER void send_norms(const Place& l, u32 box, u32 slot) const {
        float pre[N], square = 0.0f;
        shared_load(pre, box + GATES + token * 2 * N * 4);
        each(l, slot, [&](u32, const float(&x)[N][4]) {
            float li[4];
            input(pre, x, li);
#pragma unroll
            for (u32 e = 0; e < 4; ++e) square = fused(li[e], li[e], square);
        });
#pragma unroll
        for (u32 m = 1; m < 8; m *= 2) square += shuffle_xor(square, m);
        // A token has as many lanes as there are ranks.
        send(address_in(box + NORMS + (token * RANKS + l.rank) * 4, column), square, address_in(box + NORMED, column));
    }
    DEVICE_MEMBER void mix(const DynamicFwd& a, const Place& l, u32 box, u32 slot, u64 t) const {
        if (t >= a.tokens) return;
        float pre[N], post[N], res[N][N], norms[2][4], sum = 0.0f;
        shared_load(pre, box + GATES + token * 2 * N * 4);
        shared_load(post, box + GATES + token * 2 * N * 4 + N * 4);
#pragma unroll
        for (u32 i = 0; i < N; ++i) shared_load(res[i], box + RES + (token * N + i) * N * 4);
        shared_load(norms[0], box + NORMS + token * RANKS * 4);
        shared_load(norms[1], box + NORMS + token * RANKS * 4 + 16);
#pragma unroll
        for (u32 r = 0; r < RANKS; ++r) sum += norms[r / 4][r % 4];
        const float inverse = 1.0f / square_root(sum / (float)a.channels + a.norm_eps);
        const Rows<float> to = a.out.at(t);
        each(l, slot, [&](u32 c, const float(&x)[N][4]) {
            if (c >= a.channels) return;
            float y[4], w[4];
            shared_load(w, l.w + (c - l.channel(0)) * 4);
            input(pre, x, y);
#pragma unroll
            for (u32 e = 0; e < 4; ++e) y[e] *= inverse * w[e];
#pragma unroll
            for (u32 i = 0; i < N; ++i) {
                float out[4];
#pragma unroll
                for (u32 e = 0; e < 4; ++e) {
                    out[e] = post[i] * y[e];
#pragma unroll
                    for (u32 j = 0; j < N; ++j) out[e] = fused(res[i][j], x[j][e], out[e]);
                }
                Packed<float, 4> packed;
                packed.set(out);
                global_store(to.at(i) + c, packed.w);
            }
        });
    }
};

DEVICE void multiply(const DynamicFwd& a, const Place& l, const Tiles& tiles) {
    Phi phi;
    take_phi(phi, a, l);
    if (tiles.count > l.slots - 2) named_arrive(PHI_TAKEN, MULTIPLY * 32 + 32);
    cluster_wait();
    Turn now;
#pragma unroll 1
    for (u32 k = 0; k < tiles.count; ++k, now.next(l.slots)) {
        barrier_wait(l.full + now.slot * 8, now.parity);
        const Products<P> products(phi, l.slot_of(now));
        barrier_wait(l.taken, k % 2 ^ 1);
        const u32 to = l.partial + wave_index() * PARTIAL;
        products.put(to, P * 4, to + TILE * P * 4, 4);
        barrier_arrive(l.added);
    }
}

// The squares of a tile go out before the tile before it is mixed, so that nobody waits for them.
DEVICE void mix(const DynamicFwd& a, const Place& l, const Tiles& tiles) {
    const Mixer mixer;
    cluster_wait();
    barrier_wait(l.begun, 0);
    Turn now, then, now_box, then_box;
#pragma unroll 1
    for (u32 k = 0; k <= tiles.count; ++k) {
        if (k < tiles.count) {
            // Of tensor copies, each thread must have waited itself.
            barrier_wait(l.full + now.slot * 8, now.parity);
            barrier_wait_cluster(l.box_of(now_box) + GATED, now_box.parity);
            mixer.send_norms(l, l.box_of(now_box), l.slot_of(now));
            now.next(l.slots);
            now_box.next(l.boxes);
        }
        if (k > 0) {
            const u32 box = l.box_of(then_box);
            barrier_wait_cluster(box + MIXED, then_box.parity);
            barrier_wait_cluster(box + NORMED, then_box.parity);
            mixer.mix(a, l, box, l.slot_of(then), tiles.token(k - 1) + mixer.token);
            wave_barrier();
            if (lane_index() == 0) barrier_arrive(l.empty + then.slot * 8);
            then.next(l.slots);
            then_box.next(l.boxes);
        }
    }
}

DEVICE void copy(const DynamicFwd& a, const Place& l, const Tiles& tiles) {
    const u32 lane = lane_index(), channels = smaller(l.rows * ROW, a.channels - smaller(l.channel(0), a.channels));
    if (lane == 0) {
        barrier_expect(l.begun, l.live * N * PHI_ROWS + channels * 4);
        if (channels > 0) bulk_load(l.w, a.w + l.channel(0), channels * 4, l.begun);
    }
    wave_barrier();
    if (lane < l.live * N) {
        // Behind the last channel of a stream, the next one's, which nobody reads.
        const u32 at[4] = {lane % N * a.channels + l.channel(lane / N), 0, 0, 0};
        tensor_load(l.phi + lane * PHI_ROWS, a.phi, at, l.begun);
    }
    Turn now;
#pragma unroll 1
    for (u32 k = 0; k < tiles.count; ++k, now.next(l.slots)) {
        if (k == l.slots - 2) named_sync(PHI_TAKEN, MULTIPLY * 32 + 32);
        const u32 bar = l.full + now.slot * 8;
        barrier_wait(l.empty + now.slot * 8, now.parity ^ 1);
        if (lane == 0) barrier_expect(bar, l.live * GROUP_BYTES);
        wave_barrier();
        if (lane < l.live) {
            const u32 at[4] = {l.channel(lane), (u32)tiles.token(k), 0, 0};
            tensor_load(l.slot_of(now) + lane * GROUP_BYTES, a.x, at, bar);
        }
        wave_barrier();
    }
    cluster_wait();
}

DEVICE void dynamic_fwd_cluster(const DynamicFwd& a) {
    DYNAMIC_SHARED(Kilobyte, shared);
    const Place l(a, shared_address(shared));
    const Tiles tiles(a);
    if (thread_index() == 0) {
#pragma unroll 1
        for (u32 s = 0; s < l.slots; ++s) {
            barrier_init(l.full + s * 8, 1);
            barrier_init(l.empty + s * 8, MIX);
        }
#pragma unroll 1
        for (u32 b = 0; b < l.boxes; ++b) {
            for (u32 bar = SUMMED; bar < BOX; bar += 8) barrier_init(l.box + b * BOX + bar, 1);
        }
        // Every lane arrives: what it wrote or read is then ordered by itself.
        barrier_init(l.added, MULTIPLY * 32);
        barrier_init(l.taken, 32);
        barrier_init(l.begun, 1);
        barrier_init_done();
    }
    barrier();
    cluster_arrive();
    const u32 warp = wave_index();
    if (warp < MULTIPLY) multiply(a, l, tiles);
    else if (warp < MULTIPLY + MIX) mix(a, l, tiles);
    else if (warp == MULTIPLY + MIX) copy(a, l, tiles);
    else if (warp == MULTIPLY + MIX + 1) reduce_and_send(l, tiles);
    else coefficients(a, l, tiles);
    // Nobody ends while others may still write to its shared memory.
    wave_barrier();
    cluster_arrive();
    cluster_wait();
}

#define MHC_KERNEL_dynamic_fwd_cluster(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 512, 1, DynamicFwd, dynamic_fwd_cluster)
