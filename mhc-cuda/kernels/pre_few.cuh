// pre_few_products, pre_few_finish: `pre` of pre_cluster for few tokens, and post_pre's, in two launches that spread K and the channels over
// the whole device.
//
// Math      As pre_cluster.cuh, bit for bit: the same sums in the same order.
// Operands  As there; units [T, U, SUMS] f32 is scratch: what each warp of pre_cluster's clusters would add up, U of them.
// Mapping   products: a block for each unit, which copies its part of φ and of x to shared memory, and a warp for 8 columns of 16 tokens.
//           finish: a block for a token and 1024 channels; all add the units up again, as that costs less than telling each other.
// Traffic   φ once, 10·C bytes and 900·U a token, from the second level cache where they are read again.
// Numerics  As pre_cluster.cuh.
// Tried     The time is that of a few trips to memory and of code that no cache has: so loops are short, `finish` is launched while
//           `products` runs, and takes its way once without data before it waits for them.
#include "hopper.cuh"
#include "mma.cuh"
#include "token.cuh"

// The last three: for post_pre, as in pre_cluster.
struct PreFewProducts {
    Streams<const bf16> x;
    Rows<const float> phi;
    const float* weight;
    float* units;
    u64 tokens;
    // Blocks of 32 channels of a unit, channels of a rank, whether the two parts of φ have one sum.
    alignas(8) u32 channels, blocks, part_channels, together;
    Rows<const bf16> y;
    Rows<const float> before;
    Streams<bf16> x_next;
    alignas(8) u32 from_to;
};

struct PreFewFinish {
    const float* units;
    Streams<const bf16> x;
    const float *alpha, *bias;
    Rows<bf16> layer_input;
    Rows<float> mixes, z;
    float* inv_rms;
    u64 tokens;
    alignas(8) u32 channels, ranks;
    Form form;
    alignas(8) float pre_eps, post_mult, rms_eps;
};

static const u32 N = 4, P = N * (N + 2), WARPS = 8, SUMS = P + 4;

// Where the 32-channel blocks of a unit lie.
struct Place {
    u32 stream, rest, per_stream;
    DEVICE_MEMBER Place(const PreFewProducts& a, u32 unit) : per_stream(a.part_channels / 32) {
        const u32 first = unit % WARPS * a.blocks;
        stream = first / per_stream;
        rest = first % per_stream;
    }
    DEVICE_MEMBER void next() {
        if (++rest == per_stream) {
            rest = 0;
            ++stream;
        }
    }
};

// x_next of a token's 8 channels of stream `to`, in place of its x of stream 0, and to `out`. What a thread reads it has copied itself,
// but for h.
DEVICE void post_piece(const PreFewProducts& a, u32 at, u32 set, u32 h, u32 to, bf16* out) {
    float sum[8], v[8];
    Packed<bf16, 8> packed;
    shared_load(packed.w, at + N * set);
    packed.get(v);
    const float post = shared_load(h + (N + to) * 4);
#pragma unroll
    for (u32 e = 0; e < 8; ++e) sum[e] = post * v[e];
#pragma unroll
    for (u32 j = 0; j < N; ++j) {
        const float res = shared_load(h + (2 * N + mix_index(N, a.from_to, to, j)) * 4);
        shared_load(packed.w, at + j * set);
        packed.get(v);
#pragma unroll
        for (u32 e = 0; e < 8; ++e) sum[e] = fused(res, v[e], sum[e]);
    }
    packed.set(sum);
    shared_store(at, packed.w);
    global_store(out, packed.w);
}

// What a warp multiplies in one block of 32 channels: two slabs of 16.
struct Fragments {
    u32 x[2][4];
    float phi[4][2];

    DEVICE_MEMBER void load(u32 from, u32 column) {
        load_matrices(x[0], from);
        load_matrices(x[1], from + 32);
#pragma unroll
        for (u32 e = 0; e < 4; ++e) shared_load(phi[e], column + e * 32);
    }
    DEVICE_MEMBER void scale(u32 weight) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            float w[2];
            shared_load(w, weight + e * 32);
            phi[e][0] *= w[0];
            phi[e][1] *= w[1];
        }
    }
};

template <bool POST> DEVICE void pre_few_products(const PreFewProducts& a) {
    DYNAMIC_SHARED(u8, shared);
    launch_dependents();
    const u32 me = thread_index(), unit = block_x(), channel0 = unit / WARPS * a.part_channels;
    const u32 rows = threads() / 6, left = (u32)(a.tokens - block_y() * rows), live = smaller(left, rows);
    // Rows of φ, norm weights, a row of each token, for post_pre its further streams, y and mixes.
    const u32 width = a.blocks * 32, phi_row = width * 4 + 32, x_row = width * 2 + 16, set = rows * x_row;
    const u32 phi = shared_address(shared), weight = phi + P * phi_row, x = weight + phi_row, before = x + (N + 1) * set;
    const u32 token = me / 4, piece = me % 4;
    const u64 t = block_y() * rows + token;
    // The last warps of a rank may have fewer blocks, or none.
    const u32 all = a.part_channels / 32 * N, first = smaller(all, unit % WARPS * a.blocks), blocks = smaller(a.blocks, all - first);
    Place place(a, unit);
#pragma unroll 1
    for (u32 b = 0; b < blocks; ++b, place.next()) {
        const u32 c = channel0 + place.rest * 32;
        const u64 k = (u64)place.stream * a.channels + c;
        if (me < P * 8) copy_ahead<16>(phi + me / 8 * phi_row + b * 128 + me % 8 * 16, a.phi.at(me / 8) + k + me % 8 * 4, true);
        if (a.weight && me < 8) copy_ahead<16>(weight + b * 128 + me * 16, a.weight + k + me * 4, true);
        if (token < live) {
            const u32 to = x + token * x_row + b * 64 + piece * 16;
            if constexpr (POST) {
#pragma unroll
                for (u32 j = 0; j < N; ++j) copy_ahead<16>(to + j * set, a.x.at(t).at(j) + c + piece * 8, true);
                copy_ahead<16>(to + N * set, a.y.at(t) + c + piece * 8, true);
            } else {
                copy_ahead<16>(to, a.x.at(t).at(place.stream) + c + piece * 8, true);
            }
        }
    }
    if constexpr (POST) {
        if (token < live) {
#pragma unroll 1
            for (u32 e = piece; e < P; e += 4) copy_ahead<4>(before + (token * P + e) * 4, a.before.at(t) + e, true);
        }
    }
    copies_end();
    copies_wait<0>();
    if constexpr (POST) {
        // The four threads of a token have copied its mixes together.
        wave_barrier();
        if (token < live) {
            Place place(a, unit);
#pragma unroll 1
            for (u32 b = 0; b < blocks; ++b, place.next()) {
                bf16* out = a.x_next.at(t).at(place.stream) + channel0 + place.rest * 32 + piece * 8;
                post_piece(a, x + token * x_row + b * 64 + piece * 16, set, before + token * P * 4, place.stream, out);
            }
        }
    }
    barrier();
    const u32 lane = me % 32, tile = me / 32 % 3, group = me / 96, g = lane / 4, q = lane % 4;
    if (group * 16 >= live) return;
    const u32 from = x + (group * 16 + lane % 16) * x_row + lane / 16 * 16, column = phi + (tile * 8 + g) * phi_row + q * 8;
    float acc[4] = {}, apart[4] = {}, square[2] = {};
    Fragments next;
    if (blocks) next.load(from, column);
#pragma unroll 1
    for (u32 b = 0; b < blocks; ++b) {
        Fragments now = next;
        if (b + 1 < blocks) next.load(from + (b + 1) * 64, column + (b + 1) * 128);
        if (a.weight) now.scale(weight + b * 128 + q * 8);
        u32 hi[4], lo[4];
#pragma unroll
        for (u32 e = 0; e < 4; ++e) split_bf16(now.phi[e][0], now.phi[e][1], hi[e], lo[e]);
        mma_bf16(acc, now.x[0], hi[0], hi[1]);
        if (a.together) {
            mma_bf16(acc, now.x[0], lo[0], lo[1]);
            mma_bf16(acc, now.x[1], hi[2], hi[3]);
            mma_bf16(acc, now.x[1], lo[2], lo[3]);
        } else {
            mma_bf16(apart, now.x[0], lo[0], lo[1]);
            mma_bf16(acc, now.x[1], hi[2], hi[3]);
            mma_bf16(apart, now.x[1], lo[2], lo[3]);
        }
#pragma unroll
        for (u32 e = 0; e < 8; ++e) {
            float two[2];
            unpack(now.x[e / 4][e % 4], two, (bf16*)0);
            square[e % 2] = fused(two[1], two[1], fused(two[0], two[0], square[e % 2]));
        }
    }
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
        const u32 row = group * 16 + h * 8 + g;
        square[h] += shuffle_xor(square[h], 1);
        square[h] += shuffle_xor(square[h], 2);
        if (row >= live) continue;
        float* to = a.units + ((block_y() * rows + row) * blocks_x() + unit) * SUMS;
        const float two[2] = {acc[h * 2] + apart[h * 2], acc[h * 2 + 1] + apart[h * 2 + 1]};
        store(to + tile * 8 + q * 2, two);
        // With what fills its 16 bytes: they are read together.
        if (tile == 0) to[P + q] = q == 0 ? square[h] : 0.0f;
    }
}

template <bool POST> DEVICE void pre_few_finish(const PreFewFinish& a) {
    SHARED float sums[16 * SUMS];
    SHARED double far[112];
    const u32 me = thread_index(), warp = me / 32, lane = me % 32, c = block_x() * 1024 + me * 8;
    const u64 token = block_y();
    const bool mixes = warp < 4 && c < a.channels;
    const Column<N> column(a, lane);
    Packed<bf16, 8> x[N] = {};
    const auto load_x = [&]() {
        if (mixes) {
#pragma unroll
            for (u32 i = 0; i < N; ++i) x[i].template load<true>(a.x.at(token).at(i) + c, 8);
        }
    };
    if (!POST) load_x();
    Form form = a.form;
    form.iters = 2;
    // Once without data, so that the code is in the caches when they come; the compiler is not to know, or it would make two copies of it.
    u32 live;
    asm volatile("mov.u32 %0, 0;" : "=r"(live));
#pragma unroll 1
    for (;; live = 1, form.iters = a.form.iters) {
        if (live) {
            wait_for_launch();
            if (POST) load_x();
        }
        if (me < 112) {
            const u32 rank = me / 7, part = me % 7;
            float sum[4] = {}, v[WARPS][4];
            if (live && rank < a.ranks) {
                const float* from = a.units + ((token * a.ranks + rank) * WARPS) * SUMS + part * 4;
#pragma unroll
                for (u32 w = 0; w < WARPS; ++w) load(from + w * SUMS, v[w]);
#pragma unroll
                for (u32 e = 0; e < 4; ++e) {
                    sum[e] = v[0][e];
#pragma unroll
                    for (u32 w = 1; w < WARPS; ++w) sum[e] += v[w][e];
                }
            }
            store(sums + rank * SUMS + part * 4, sum);
        }
        barrier();
        float part[16], sum = 0.0f;
#pragma unroll
        for (u32 r = 0; r < 16; ++r) part[r] = sums[r * SUMS + smaller(lane, P)];
#pragma unroll
        for (u32 r = 0; r < 16; ++r) sum += part[r];
        const TokenCoefficients<N> k(a, column, sum);
        if (warp < 4) {
            float out[8] = {};
#pragma unroll
            for (u32 i = 0; i < N; ++i) {
                float v[8];
                x[i].get(v);
#pragma unroll
                for (u32 e = 0; e < 8; ++e) out[e] = fused(k.h[i], v[e], out[e]);
            }
            if (live && mixes) store(a.layer_input.at(token) + c, out);
        } else if (block_x() == 0) {
            if (live) k.store(a, token, lane);
            wave_barrier();
            mix_token<N>(a, form, k.v, token, live, shared_address(far));
        }
        if (live) break;
        barrier();
    }
}

#define MHC_KERNEL_pre_few_products(NAME, E, N) MHC_ENTRY(NAME, 384, PreFewProducts, pre_few_products<false>)
#define MHC_KERNEL_pre_few_finish(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 160, 4, PreFewFinish, pre_few_finish<false>)
#define MHC_KERNEL_post_pre_few_products(NAME, E, N) MHC_ENTRY(NAME, 384, PreFewProducts, pre_few_products<true>)
#define MHC_KERNEL_post_pre_few_finish(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 160, 4, PreFewFinish, pre_few_finish<true>)
