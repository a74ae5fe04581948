// pre_wide: `pre` for 8 streams of bf16, whose φ no cluster has registers for: all but the matrices, with x from memory once.
//
// Math      z_j = ρ·Σ_k φ[j,k]·w[k]·x[k], ρ = (Σ_k x[k]²/K + ε)^(-1/2); layer_input = Σ_i H_pre[i]·x_i, H_pre = σ(α·z + b) + ε
// Operands  x [T, 8, C] of bf16, rows at multiples of 16 bytes; layer_input [T, C]; φ [80, 8·C], z [T, 80] f32.
// Mapping   A block keeps a slice of K of φ in shared memory for the whole launch; the blocks that have all slices are a team, and teams
//           take tiles of 64 tokens in turn. A block multiplies its slice of each tile of its team, which tensor copies bring through a
//           ring of stages, and leaves the sums in memory, where a team has room for those of KEPT tiles. Block b then finishes token b of
//           the tile: it adds the sums of all slices, and mixes the streams, which the second cache still has. A team knows by two counters
//           for each tile, 0 before the launch: how many blocks have left their sums, and how many tokens' sums have been taken. All blocks
//           must run at the same time.
//           Warps 0..3 and 4..7 multiply a tile each in turn, 8..11 and 12..15 finish one each in turn, 16 copies, 17..19 talk to the team.
// Traffic   18·C bytes and 320 a token, φ once a team; through the second cache x twice and 336·slices bytes a token twice.
// Numerics  φ·w as the sum of two bf16. Sums of UNIT·64 channels by the tensor cores, which round towards zero, then rounded additions in
//           an order fixed by C: a token's numbers depend on nothing else.
// Measured  (H100, T = 4096, C = 4096, with the start and without the matrices; x at the speed of a copy takes 104 µs) 190 µs; T = 16384: 703;
//           T = 1: 20.6. The second cache is busy for 85 % of the time; memory gives 319 MB, of which x is 268.
// Tried     Warps that multiply and finish also count and wait for the team: 249 µs. Sums straight to memory, 8 bytes a lane: 212 (KEPT = 2),
//           218 (3), 228 (4): what is ahead of the finish must fit the second cache; by a bulk copy: 200. Without hints of what to keep
//           of x: 231 for 200; of sums or of the result: no other time. KEPT = 1: 232 for 200, 3: 196 for 190. Stages 2: 220 for 200, 4: 193
//           for 190. UNIT = 2: the same, and z no nearer to float64 (2.4e-6 of its norm, from φ's two bf16). The launch overlapping
//           the start: the same. Matrices by one more warp of each block, one at a time: 227 µs for all, two at a time: 209.
#include "copies.cuh"
#include "hopper.cuh"
#include "mma.cuh"
#include "operand.cuh"
#include "reduce.cuh"
#include "wgmma.cuh"

struct PreWide {
    TensorMap tiles;
    Streams<const bf16> x;
    Rows<const float> phi;
    const float *weight, *alpha, *bias;
    Rows<bf16> layer_input;
    Rows<float> z;
    float *inv_rms, *sums;
    u32* counts;
    u64 tokens;
    // Slices of K, and lines of 64 channels of one.
    alignas(8) u32 channels, slices, width;
    alignas(8) float pre_eps, rms_eps;
};

struct PreWideStart {
    u32* counts;
    u64 count;
};

static const u32 N = 8, P = N * (N + 2), SUMS = P + 4, TILE = 64, STAGES = 3, KEPT = 2, UNIT = 4;
// Threads of a group, groups that multiply and that finish, parts of the slices that a token's sums are added in.
static const u32 GROUP = 128, MULTIPLY = 2, FINISH = 2, PARTS = 4;
// Bytes of a stage, of a line of φ's larger or smaller parts, of a block's sums of a tile.
static const u32 STAGE = TILE * 128, PHI = P * 128, SUMS_BYTES = TILE * SUMS * 4;

// What this block is, and where things lie in its shared memory.
struct Block {
    u32 rank, team, teams, phi, ring, full, empty, outgoing, begun, written, drained, room, taken;
    u64 tiles;

    DEVICE_MEMBER Block(const PreWide& a, u32 shared) {
        rank = block_x() % a.slices;
        team = block_x() / a.slices;
        teams = blocks_x() / a.slices;
        tiles = (a.tokens + TILE - 1) / TILE;
        phi = (shared + 1023) / 1024 * 1024;
        ring = phi + a.width * 2 * PHI;
        outgoing = ring + STAGES * STAGE;
        full = outgoing + SUMS_BYTES;
        empty = full + STAGES * 8;
        begun = empty + STAGES * 8;
        written = begun + MULTIPLY * 8;
        drained = written + 8;
        room = drained + MULTIPLY * 8;
        taken = room + KEPT * 8;
    }
    DEVICE_MEMBER u64 tile(u32 turn) const { return team + (u64)turn * teams; }
    // The sums of a slice of the team's tile `turn`.
    DEVICE_MEMBER float* sums(const PreWide& a, u32 turn, u32 slice) const {
        return a.sums + (u64)((team * KEPT + turn % KEPT) * a.slices + slice) * (TILE * SUMS);
    }
};

// The stage of a line, and how often it was used, as parity.
struct Turn {
    u32 stage = 0, parity = 0;
    DEVICE_MEMBER void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// One more, after all that this thread and those that it has met did.
DEVICE void count(u32* counter) { asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory"); }
DEVICE void wait_for(const u32* counter, u32 n) {
    u32 v;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(counter) : "memory");
    while (v < n);
}
// 16 bytes that another block wrote, from the second cache.
DEVICE void load_written(float (&v)[4], const float* p) {
    asm volatile("ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3]) : "l"(p) : "memory");
}

// What of x the second cache should keep until it is read again, and what it may drop then.
struct Keep {
    u64 policy;
    DEVICE_MEMBER Keep() { asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy)); }
    DEVICE_MEMBER void load(u32 to, const TensorMap& map, const u32 (&at)[4], u32 bar) const {
        asm volatile(
            "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
            "[%0], [%1, {%2,%3,%4,%5}], [%6], %7;" ::"r"(to),
            "l"(&map), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(bar), "l"(policy)
            : "memory");
    }
};
struct Drop {
    u64 policy;
    DEVICE_MEMBER Drop() { asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy)); }
    DEVICE_MEMBER void load(u32 (&v)[4], const void* p) const {
        asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0,%1,%2,%3}, [%4], %5;"
                     : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                     : "l"(p), "l"(policy)
                     : "memory");
    }
};

// This block's slice of φ·w into shared memory, as pairs of bf16, by all threads that do not copy.
DEVICE void fill(const PreWide& a, const Block& b) {
    const u32 threads = (MULTIPLY + FINISH) * GROUP, pieces = a.width * 8, items = pieces * P, AT_ONCE = 2;
    const u64 first = (u64)b.rank * a.width * 64;
    for (u32 item0 = thread_index(); item0 < items; item0 += AT_ONCE * threads) {
        float f[AT_ONCE][8] = {};
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; ++i) {
            const u32 item = item0 + i * threads;
            if (item < items) load(a.phi.at(item / pieces) + first + item % pieces * 8, f[i]);
        }
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; ++i) {
            const u32 item = item0 + i * threads, k = item % pieces;
            if (item >= items) continue;
            if (a.weight) {
                float w[8];
                load(a.weight + first + k * 8, w);
#pragma unroll
                for (u32 e = 0; e < 8; ++e) f[i][e] *= w[e];
            }
            u32 hi[4], lo[4];
#pragma unroll
            for (u32 e = 0; e < 4; ++e) split_bf16(f[i][2 * e], f[i][2 * e + 1], hi[e], lo[e]);
            const u32 to = b.phi + k / 8 * (2 * PHI) + permuted(item / pieces, k % 8);
            shared_store(to, hi);
            shared_store(to + PHI, lo);
        }
    }
}

DEVICE void copy(const PreWide& a, const Block& b) {
    const u32 lines = a.channels / 64;
    const Keep keep;
    Turn now;
    for (u32 turn = 0; b.tile(turn) < b.tiles; ++turn) {
        for (u32 k = 0; k < a.width; ++k, now.next()) {
            const u32 line = b.rank * a.width + k, full = b.full + now.stage * 8;
            barrier_wait(b.empty + now.stage * 8, now.parity ^ 1);
            barrier_expect(full, STAGE);
            const u32 at[4] = {0, (u32)b.tile(turn) * TILE, line % lines, line / lines};
            keep.load(b.ring + now.stage * STAGE, a.tiles, at, full);
        }
    }
}

// The products of this block's slice of a tile, of which a lane has two rows, and Σx² of token me / 2, of which it has half.
struct Products {
    float sum[40] = {}, square = 0.0f;

    DEVICE_MEMBER Products(const PreWide& a, const Block& b, Turn& now, u32 begun) {
        const u32 me = thread_index() % GROUP;
        float acc[40] = {};
        for (u32 k = 0; k < a.width; ++k, now.next()) {
            const u32 stage = b.ring + now.stage * STAGE;
            const u64 x = rows_at(stage), phi = rows_at(b.phi + k * (2 * PHI));
            barrier_wait(b.full + now.stage * 8, now.parity);
            if (k + 1 == a.width && me == 0) barrier_arrive(begun);
            products_fence();
#pragma unroll
            for (u32 s = 0; s < 4; ++s) {
                product(acc, x + 2 * s, phi + 2 * s, k % UNIT | s);
                product(acc, x + 2 * s, phi + PHI / 16 + 2 * s, 1);
            }
            products_end();
#pragma unroll
            for (u32 p = 0; p < 4; ++p) {
                Packed<bf16, 8> packed;
                float v[8];
                shared_load(packed.w, stage + permuted(me / 2, me % 2 * 4 + p));
                packed.get(v);
#pragma unroll
                for (u32 e = 0; e < 8; ++e) square = fused(v[e], v[e], square);
            }
            products_wait();
            wave_barrier();
            if (lane_index() == 0) barrier_arrive(b.empty + now.stage * 8);
            if (k % UNIT != UNIT - 1 && k + 1 != a.width) continue;
#pragma unroll
            for (u32 e = 0; e < 40; ++e) sum[e] += acc[e];
        }
        square += shuffle_xor(square, 1);
    }
    DEVICE_MEMBER void put(u32 to) const {
        const u32 me = thread_index() % GROUP, lane = lane_index();
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            const u32 row = to + ((me / 32 * 16 + h * 8 + lane / 4) * SUMS + lane % 4 * 2) * 4;
#pragma unroll
            for (u32 t = 0; t < P / 8; ++t) shared_store(row + t * 32, sum[t * 4 + h * 2], sum[t * 4 + h * 2 + 1]);
        }
        const u32 four[4] = {float_to_bits(square)};
        if (me % 2 == 0) shared_store(to + (me / 2 * SUMS + P) * 4, four);
    }
};

// Every MULTIPLY-th tile of the team.
DEVICE void multiply(const PreWide& a, const Block& b) {
    const u32 group = thread_index() / GROUP;
    Turn now;
    for (u32 turn = 0; b.tile(turn) < b.tiles; ++turn) {
        if (turn % MULTIPLY != group) {
            for (u32 k = 0; k < a.width; ++k) now.next();
            continue;
        }
        // A phase and the next but one look the same: nobody waits for a stage before the tile before has had all of its own.
        if (turn > 0) barrier_wait(b.begun + (turn - 1) % MULTIPLY * 8, (turn - 1) / MULTIPLY % 2);
        const Products products(a, b, now, b.begun + group * 8);
        if (turn > 0) barrier_wait(b.drained + (turn - 1) % MULTIPLY * 8, (turn - 1) / MULTIPLY % 2);
        products.put(b.outgoing);
        named_sync(2 + group, GROUP);
        barrier_wait(b.room + turn % KEPT * 8, turn / KEPT % 2);
        float* to = b.sums(a, turn, b.rank);
        for (u32 i = thread_index() % GROUP * 4; i < TILE * SUMS; i += GROUP * 4) {
            u32 four[4];
            shared_load(four, b.outgoing + i * 4);
            global_store(to + i, four);
        }
        // In this order: who waits for the second has all arrivals at the first behind it.
        barrier_arrive(b.written);
        barrier_arrive(b.drained + turn % MULTIPLY * 8);
    }
}

// What a thread each tells the team and hears from it, as each takes a microsecond: that sums are there, that a token's have been taken,
// that there is room for more.
DEVICE void tell_written(const PreWide& a, const Block& b) {
    for (u32 turn = 0; b.tile(turn) < b.tiles; ++turn) {
        barrier_wait(b.written, turn % 2);
        count(a.counts + b.tile(turn) * 2);
    }
}
DEVICE void tell_taken(const PreWide& a, const Block& b) {
    for (u32 turn = 0; b.tile(turn) < b.tiles && b.rank < TILE; ++turn) {
        barrier_wait(b.taken + turn % KEPT * 8, turn / KEPT % 2);
        count(a.counts + b.tile(turn) * 2 + 1);
    }
}
DEVICE void hear_taken(const PreWide& a, const Block& b) {
    for (u32 turn = 0; b.tile(turn) < b.tiles; ++turn) {
        if (turn >= KEPT) wait_for(a.counts + b.tile(turn - KEPT) * 2 + 1, TILE);
        barrier_arrive(b.room + turn % KEPT * 8);
    }
}

// The sums over all slices of one token: PARTS parts of each in `parts`.
DEVICE void add_slices(const PreWide& a, const Block& b, u32 turn, u32 me, float (&parts)[PARTS][SUMS]) {
    const u32 column = me % (SUMS / 4) * 4, part = me / (SUMS / 4), each = a.slices / PARTS, AT_ONCE = 4;
    if (part >= PARTS) return;
    const float* from = b.sums(a, turn, part * each) + b.rank * SUMS + column;
    float sum[4] = {};
    for (u32 first = 0; first < each; first += AT_ONCE) {
        float v[AT_ONCE][4];
#pragma unroll
        for (u32 s = 0; s < AT_ONCE; ++s) load_written(v[s], from + (first + s) * (TILE * SUMS));
#pragma unroll
        for (u32 s = 0; s < AT_ONCE; ++s) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) sum[e] += v[s][e];
        }
    }
#pragma unroll
    for (u32 e = 0; e < 4; ++e) parts[part][column + e] = sum[e];
}

// A warp's H_pre of a token; z and ρ to memory, if `first`.
DEVICE void weights(float (&h)[N], const PreWide& a, u64 token, const float (&parts)[PARTS][SUMS], bool first) {
    const u32 lane = lane_index();
    float z[3];
#pragma unroll
    for (u32 i = 0; i < 3; ++i) {
        const u32 column = smaller(lane + 32 * i, P);
        z[i] = parts[0][column];
#pragma unroll
        for (u32 p = 1; p < PARTS; ++p) z[i] += parts[p][column];
    }
    const float rho = 1.0f / square_root(fused(shuffle(z[2], P - 64), 1.0f / (float)(N * a.channels), a.rms_eps));
    if (first) {
#pragma unroll
        for (u32 i = 0; i < 3; ++i) {
            if (lane + 32 * i < P) a.z.at(token)[lane + 32 * i] = rho * z[i];
        }
        if (lane == 0 && a.inv_rms) a.inv_rms[token] = rho;
    }
    const float pre = sigmoid(fused(a.alpha[0], rho * z[0], a.bias[lane % N])) + a.pre_eps;
#pragma unroll
    for (u32 i = 0; i < N; ++i) h[i] = shuffle(pre, i);
}

// A thread's 8 channels of all streams.
struct Piece {
    Packed<bf16, 8> x[N];

    DEVICE_MEMBER void load(const Rows<const bf16>& x_t, u32 c, u32 channels, const Drop& drop) {
#pragma unroll
        for (u32 i = 0; i < N; ++i) {
            if (c < channels) drop.load(x[i].w, x_t.at(i) + c);
        }
    }
    DEVICE_MEMBER void mix(const float (&h)[N], bf16* to) const {
        float sum[8] = {};
        Packed<bf16, 8> out;
#pragma unroll
        for (u32 i = 0; i < N; ++i) {
            float v[8];
            x[i].get(v);
#pragma unroll
            for (u32 e = 0; e < 8; ++e) sum[e] = fused(h[i], v[e], sum[e]);
        }
        out.set(sum);
        global_store(to, out.w);
    }
};

// Every FINISH-th tile of the team.
DEVICE void finish(const PreWide& a, const Block& b) {
    SHARED float parts[FINISH][PARTS][SUMS];
    const u32 group = thread_index() / GROUP - MULTIPLY, me = thread_index() % GROUP, STEP = GROUP * 8;
    if (b.rank >= TILE) return;
    const Drop drop;
    for (u32 turn = group; b.tile(turn) < b.tiles; turn += FINISH) {
        const u64 token = b.tile(turn) * TILE + b.rank;
        const u32 taken = b.taken + turn % KEPT * 8;
        if (token >= a.tokens) {
            barrier_arrive(taken);
            continue;
        }
        const Rows<const bf16> x = a.x.at(token);
        Piece now, next;
        now.load(x, me * 8, a.channels, drop);
        next.load(x, me * 8 + STEP, a.channels, drop);
        if (me == 0) wait_for(a.counts + b.tile(turn) * 2, a.slices);
        named_sync(2 + MULTIPLY + group, GROUP);
        add_slices(a, b, turn, me, parts[group]);
        barrier_arrive(taken);
        named_sync(2 + MULTIPLY + group, GROUP);
        float h[N];
        weights(h, a, token, parts[group], me < 32);
        for (u32 c = me * 8; c < a.channels; c += STEP) {
            now.mix(h, a.layer_input.at(token) + c);
            now = next;
            next.load(x, c + 2 * STEP, a.channels, drop);
        }
    }
}

DEVICE void pre_wide(const PreWide& a) {
    DYNAMIC_SHARED(u8, shared);
    const Block b(a, shared_address(shared));
    if (thread_index() == 0) {
        for (u32 s = 0; s < STAGES; ++s) {
            barrier_init(b.full + s * 8, 1);
            barrier_init(b.empty + s * 8, GROUP / 32);
        }
        for (u32 s = 0; s < MULTIPLY; ++s) {
            barrier_init(b.begun + s * 8, 1);
            barrier_init(b.drained + s * 8, GROUP);
        }
        for (u32 s = 0; s < KEPT; ++s) {
            barrier_init(b.room + s * 8, 1);
            barrier_init(b.taken + s * 8, GROUP);
        }
        barrier_init(b.written, GROUP);
        barrier_init_done();
    }
    barrier();
    const u32 group = thread_index() / GROUP, most = MULTIPLY + FINISH;
    // Of 96 registers a thread; these have one lane each that does anything.
    if (group == most) {
        give_registers<32>();
        if (lane_index() != 0) return;
        const u32 warp = wave_index() % 4;
        if (warp == 0) copy(a, b);
        else if (warp == 1) tell_written(a, b);
        else if (warp == 2) tell_taken(a, b);
        else hear_taken(a, b);
        return;
    }
    take_registers<112>();
    fill(a, b);
    fence_copies();
    named_sync(1, most * GROUP);
    if (group < MULTIPLY) multiply(a, b);
    else finish(a, b);
}

DEVICE void pre_wide_start(const PreWideStart& a) {
    for (u64 i = (u64)block_x() * threads() + thread_index(); i < a.count; i += (u64)blocks_x() * threads()) a.counts[i] = 0;
}

#define MHC_KERNEL_pre_wide(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 640, 1, PreWide, pre_wide)
#define MHC_KERNEL_pre_wide_start(NAME, E, N) MHC_ENTRY(NAME, 256, PreWideStart, pre_wide_start)
