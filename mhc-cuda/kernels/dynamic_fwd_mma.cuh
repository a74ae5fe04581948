// dynamic_fwd_mma: dynamic_layer for 4 streams of f32 in one launch.
//
// Math      z, ρ as in project, the coefficients as in coefficients, out as in layer_fwd.
// Operands  x, out [T, 4, C], rows at multiples of 16 bytes, C a multiple of 16 and at most 1536; all f32.
// Mapping   A block takes tiles of 20 tokens: what 2560 tokens are on 128 multiprocessors. Its warps share K for all tokens, and φ comes
//           from the second cache once a tile. A lane copies ahead just what it multiplies, so that warps need not wait for each other.
//           D = A·B with 24 columns of φ, as two parts, for the 48 rows of A, and 24 tokens, of which 20 are there, for the columns of
//           B: a lane's rows of φ and tokens are its rows in all fragments, and of each D it holds both parts. Half a warp then makes
//           H_res of a token. At last 4 groups of 4 warps take a token each; the rows of two have come ahead by then.
// Traffic   4nC elements a token, of which x comes from the second cache the second time, as far as it still has it; φ once a tile.
// Numerics  TF32 halves of both factors, three products of four; sums of UNIT steps by the tensor cores, which round towards zero, then
//           rounded additions. All orders fixed by C.
// Measured  (T = 2560, C = 1280, H100, with 4.9 µs of an empty graph) 60.9 µs, where project_fwd_mma, finish, coefficients and layer_fwd
//           take 86.4 (T = 320: 38 and 44; T = 1: 28 and 38; T = 16384: 431 and 423, each with one token ahead). 1.67 times what x once
//           and out once take.
// Tried     φ and x straight into registers: 79; through shared memory, but without the rows of the last part ahead: 76; with those of one
//           token a group, and each 16 bytes of `out` in one instruction: 63. Rows kept in shared memory from the first part on: slower,
//           as they leave no place to copy ahead. ncu: the products are bound by what is issued, 178 instructions for 30 products, and
//           three quarters of x come from memory a second time.
#include "column.cuh"
#include "mma.cuh"
#include "sinkhorn.cuh"

struct DynamicFwd {
    Streams<const float> x;
    const float* w;
    Rows<const float> phi;
    const float *alpha, *bias;
    Streams<float> out;
    // These two may be absent.
    Rows<float> z;
    float* inv_rms;
    u64 tokens;
    alignas(8) u32 channels, from_to;
    Form form;
    alignas(8) float pre_eps, post_mult, rms_eps, norm_eps;
};

// Streams, columns of φ, tokens of a tile; warps; channels of a step, steps on their way and steps between rounded additions.
static const u32 N = 4, P = N * (N + 2), TILE = 20, WARPS = 16, STEP = 16, STAGES = 3, UNIT = 8;
// Numbers of a token's partial sums: the columns and Σx². Threads of a group, and vectors of a row that each has at most.
static const u32 SUMS = P + 1, GROUP = 128, GROUPS = WARPS * 32 / GROUP, KEEP = 3, AHEAD = 2;
// A token's coefficients in shared memory: H_pre, H_post, H_res as [to][from], and the distance to the next token's.
static const u32 POST = N, RES = 2 * N, COEFFICIENTS = P + 4;

// What a lane copies and multiplies: rows g, g + 8, g + 16 of the tile and of φ, of which it has 4 of 16 channels.
struct Fetch {
    const char *x[3], *phi;
    u64 stream, phi8;
    Words<4>* slot;
    u32 left, per_stream, steps, stage;
    bool third;

    // `mine`: room for 6 vectors of STAGES steps, those of a step 32 vectors apart.
    DEVICE_MEMBER Fetch(const DynamicFwd& a, u64 t0, u32 first, u32 count, Words<4>* mine) : slot(mine), steps(count), stage(0) {
        const u32 g = lane_index() / 4, q = lane_index() % 4;
        per_stream = a.channels / STEP;
        left = per_stream - first % per_stream;
        stream = (a.x.stream - a.channels) * 4;
        third = g + 16 < TILE;
        const u64 k = (u64)(first / per_stream) * a.x.stream + (u64)(first % per_stream) * STEP + 4 * q;
#pragma unroll
        for (u32 r = 0; r < 3; ++r) {
            // Past the last token another is read and not written.
            const u64 token = t0 + smaller(g + 8 * r, TILE - 1);
            x[r] = (const char*)(a.x.p + (token < a.tokens ? token : a.tokens - 1) * a.x.token + k);
        }
        phi = (const char*)(a.phi.at(g) + (u64)first * STEP + 4 * q);
        phi8 = 8 * 4 * a.phi.step;
    }
    DEVICE_MEMBER void next() {
        if (steps > 0) {
            Words<4>* to = slot + stage * (6 * 32);
#pragma unroll
            for (u32 r = 0; r < 3; ++r) {
                if (r < 2 || third) copy_ahead<16>(shared_address(to + r * 32), x[r], true);
                copy_ahead<16>(shared_address(to + (3 + r) * 32), phi + r * phi8, true);
            }
            --steps;
        }
        copies_end();
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        const u64 across = --left == 0 ? stream : 0;
        if (left == 0) left = per_stream;
        phi += STEP * 4;
#pragma unroll
        for (u32 r = 0; r < 3; ++r) x[r] += STEP * 4 + across;
    }
};

// A lane's sums of a warp's channels: columns g + 8·r of tokens 8·b + 2·q and the next; Σx² of token g + 8·r over all lanes q.
struct Partial {
    float sum[3][3][2] = {}, square[3] = {};

    // The rows of a D are columns [0, 16), then [16, 24) and the smaller parts of [0, 8), then those of [8, 24).
    DEVICE_MEMBER void take(float (&d)[3][3][4]) {
#pragma unroll
        for (u32 b = 0; b < 3; ++b) {
#pragma unroll
            for (u32 e = 0; e < 2; ++e) {
                sum[0][b][e] += d[0][b][e] + d[1][b][2 + e];
                sum[1][b][e] += d[0][b][2 + e] + d[2][b][e];
                sum[2][b][e] += d[1][b][e] + d[2][b][2 + e];
            }
#pragma unroll
            for (u32 m = 0; m < 3; ++m) {
#pragma unroll
                for (u32 e = 0; e < 4; ++e) d[m][b][e] = 0.0f;
            }
        }
    }
};

DEVICE void multiply(const Words<4>* from, float (&d)[3][3][4], float (&square)[3]) {
    float x[3][4], phi[3][4];
#pragma unroll
    for (u32 r = 0; r < 3; ++r) {
        load((const float*)(from + r * 32), x[r]);
        load((const float*)(from + (3 + r) * 32), phi[r]);
    }
#pragma unroll
    for (u32 e = 0; e < 4; e += 2) {
        u32 hi[3][2], lo[3][2], x_hi[3][2], x_lo[3][2];
#pragma unroll
        for (u32 r = 0; r < 3; ++r) {
#pragma unroll
            for (u32 k = 0; k < 2; ++k) {
                split_tf32(phi[r][e + k], hi[r][k], lo[r][k]);
                split_tf32(x[r][e + k], x_hi[r][k], x_lo[r][k]);
                square[r] = fused(x[r][e + k], x[r][e + k], square[r]);
            }
        }
        const u32 rows[3][4] = {{hi[0][0], hi[1][0], hi[0][1], hi[1][1]},
                                {hi[2][0], lo[0][0], hi[2][1], lo[0][1]},
                                {lo[1][0], lo[2][0], lo[1][1], lo[2][1]}};
#pragma unroll
        for (u32 b = 0; b < 3; ++b) {
            mma_tf32(d[0][b], rows[0], x_lo[b][0], x_lo[b][1]);
            mma_tf32(d[1][b], rows[1], x_lo[b][0], x_lo[b][1]);
            mma_tf32(d[2][b], rows[2], x_hi[b][0], x_hi[b][1]);
        }
#pragma unroll
        for (u32 b = 0; b < 3; ++b) {
            mma_tf32(d[0][b], rows[0], x_hi[b][0], x_hi[b][1]);
            mma_tf32(d[1][b], rows[1], x_hi[b][0], x_hi[b][1]);
        }
    }
}

DEVICE void project_tile(const DynamicFwd& a, u64 t0, Words<4>* mine, Partial& out) {
    const u32 steps = a.channels / STEP * N, each = (steps + WARPS - 1) / WARPS;
    const u32 first = smaller(wave_index() * each, steps), count = smaller(each, steps - first);
    Fetch fetch(a, t0, first, count, mine);
#pragma unroll
    for (u32 k = 0; k + 1 < STAGES; ++k) fetch.next();
    float d[3][3][4] = {};
#pragma unroll 1
    for (u32 k = 0; k < count;) {
#pragma unroll 1
        for (const u32 end = smaller(k + UNIT, count); k < end; ++k) {
            copies_wait<STAGES - 2>();
            fetch.next();
            // Where the next but STAGES - 1 will be fetched to.
            multiply(mine + fetch.stage * (6 * 32), d, out.square);
        }
        out.take(d);
    }
#pragma unroll
    for (u32 r = 0; r < 3; ++r) {
        out.square[r] += shuffle_xor(out.square[r], 1);
        out.square[r] += shuffle_xor(out.square[r], 2);
    }
}

// One warp's partial sums into its place of `sums` [WARPS / 2][TILE][SUMS], or on top of what another put there.
template <bool ADD> DEVICE void put_partial(const Partial& mine, float* sums) {
    const u32 lane = lane_index(), g = lane / 4, q = lane % 4;
    float* to = sums + wave_index() % (WARPS / 2) * (TILE * SUMS);
#pragma unroll
    for (u32 b = 0; b < 3; ++b) {
#pragma unroll
        for (u32 e = 0; e < 2; ++e) {
            const u32 token = 8 * b + 2 * q + e;
            if (token >= TILE) continue;
#pragma unroll
            for (u32 r = 0; r < 3; ++r) {
                float& v = to[token * SUMS + 8 * r + g];
                v = mine.sum[r][b][e] + (ADD ? v : 0.0f);
            }
        }
    }
#pragma unroll
    for (u32 r = 0; r < 3; ++r) {
        if (q > 0 || g + 8 * r >= TILE) continue;
        float& v = to[(g + 8 * r) * SUMS + P];
        v = mine.square[r] + (ADD ? v : 0.0f);
    }
}

// z and ρ, H_pre and H_post, and the logits of H_res.
DEVICE void coefficients_tile(const DynamicFwd& a, u64 t0, const Partial& mine, float* sums, float (*h)[COEFFICIENTS]) {
    const u32 tid = thread_index();
    if (wave_index() >= WARPS / 2) put_partial<false>(mine, sums);
    barrier();
    if (wave_index() < WARPS / 2) put_partial<true>(mine, sums);
    barrier();
    if (tid < TILE * SUMS) {
        float sum = 0.0f;
#pragma unroll
        for (u32 w = 0; w < WARPS / 2; ++w) sum += sums[w * TILE * SUMS + tid];
        sums[tid] = sum;
    }
    barrier();
    if (tid < TILE * P) {
        const u32 token = tid / P, j = tid % P;
        const float rho = 1.0f / square_root(sums[token * SUMS + P] / (float)(N * a.channels) + a.rms_eps);
        const float z = rho * sums[token * SUMS + j], t = fused(a.alpha[j < N ? 0 : j < 2 * N ? 1 : 2], z, a.bias[j]);
        h[token][j] = j < N ? sigmoid(t) + a.pre_eps : j < 2 * N ? a.post_mult * sigmoid(t) : t;
        if (t0 + token < a.tokens) {
            if (a.z.p) a.z.at(t0 + token)[j] = z;
            if (j == 0 && a.inv_rms) a.inv_rms[t0 + token] = rho;
        }
    }
    barrier();
}

// H_res of two tokens in place of their logits, each by half a warp; where logits lie far apart, by the whole warp in f64.
DEVICE void mixing(const DynamicFwd& a, float (*h)[COEFFICIENTS], double* far) {
    const u32 lane = lane_index(), e = LaneMatrix<N>::element(), from_to = a.from_to;
    float* mine = h[lane / (N * N)] + RES;
    const auto logits = [](const float* from) { return [=](u32 i, u32 j) { return from[i * N + j]; }; };
    const auto out = [=](float* to) { return [=](u32 i, u32 j, float v) { to[from_to ? j * N + i : i * N + j] = v; }; };
    const bool wide = far_apart<false>(N, logits(mine));
    const float v = lanes_forward<N>(a.form, led(a.form, logits(mine))(e / N, e % N), [](u32, u32, float) {});
    wave_barrier();
    if (!wide) led(a.form, out(mine))(e / N, e % N, v);
    for (u32 k = 0; k < 2; ++k) {
        if (shuffle(wide ? 1.0f : 0.0f, k * N * N) == 0.0f) continue;
        float* matrix = h[k] + RES;
        WaveMatrix<double> m = {far, N};
        sinkhorn(m, a.form, 0.0, led(a.form, logits(matrix)), [](u32, u32, double) {});
        if (lane < N * N) led(a.form, out(matrix))(e / N, e % N, (float)m.template at<true>(e / N, e % N));
        wave_barrier();
    }
}

// The rows of a group's next token, on their way to places of shared memory that only their thread reads, a group's vectors apart.
struct Token {
    Words<4>* slots;

    DEVICE_MEMBER Words<4>& place(u32 turn, u32 k, u32 i) const { return slots[((turn * KEEP + k) * N + i) * GROUP]; }
    DEVICE_MEMBER static u32 channel(u32 k) { return (thread_index() % GROUP + k * GROUP) * 4; }
    DEVICE_MEMBER void fetch(const DynamicFwd& a, u64 t0, u32 token, u32 turn) const {
        if (token < TILE && t0 + token < a.tokens) {
            const Rows<const float> rows = a.x.at(t0 + token);
#pragma unroll
            for (u32 k = 0; k < KEEP; ++k) {
#pragma unroll
                for (u32 i = 0; i < N; ++i) {
                    if (channel(k) < a.channels) copy_ahead<16>(shared_address(&place(turn, k, i)), rows.at(i) + channel(k), true);
                }
            }
        }
        copies_end();
    }
    DEVICE_MEMBER void take(Column<float, N> (&x)[KEEP], u32 turn) const {
        copies_wait<AHEAD - 1>();
#pragma unroll
        for (u32 k = 0; k < KEEP; ++k) {
#pragma unroll
            for (u32 i = 0; i < N; ++i) *(Words<4>*)x[k].row[i].w = place(turn, k, i);
        }
    }
};

// One token of a group: `squares` has room for its warps.
DEVICE void layer_token(const DynamicFwd& a, u64 t, const Column<float, N> (&x)[KEEP], const float* h, float* squares) {
    float pre[N], post[N], square = 0.0f;
    load(h, pre);
#pragma unroll
    for (u32 k = 0; k < KEEP; ++k) {
        if (Token::channel(k) >= a.channels) continue;
        float li[4];
        x[k].sum(pre, 1, li);
#pragma unroll
        for (u32 e = 0; e < 4; ++e) square = fused(li[e], li[e], square);
    }
    square = wave_sum(square);
    if (lane_index() == 0) squares[wave_index() % 4] = square;
    named_sync(1 + thread_index() / GROUP, GROUP);
    float all[4];
    load(squares, all);
    const float r = 1.0f / square_root((all[0] + all[1] + all[2] + all[3]) / (float)a.channels + a.norm_eps);
    load(h + POST, post);
#pragma unroll
    for (u32 k = 0; k < KEEP; ++k) {
        const u32 c = Token::channel(k);
        if (c >= a.channels) continue;
        float y[4], w[4];
        x[k].sum(pre, 1, y);
        load(a.w + c, w);
#pragma unroll
        for (u32 e = 0; e < 4; ++e) y[e] *= r * w[e];
#pragma unroll
        for (u32 i = 0; i < N; ++i) {
            float res[N], out[4];
            load(h + RES + i * N, res);
#pragma unroll
            for (u32 e = 0; e < 4; ++e) out[e] = post[i] * y[e];
            x[k].add(res, 1, out);
            put(a.out.at(t).at(i) + c, out);
        }
    }
}

DEVICE void dynamic_fwd_mma(const DynamicFwd& a) {
    DYNAMIC_SHARED(Words<4>, shared);
    alignas(16) SHARED float h[TILE][COEFFICIENTS];
    alignas(16) SHARED float squares[2][WARPS];
    SHARED double far[TILE / 2][N * 33];
    // The partial sums lie where the steps were, behind the rows that have begun to come.
    Words<4>* steps = shared + wave_index() * (STAGES * 6 * 32) + lane_index();
    float* sums = (float*)(shared + GROUPS * AHEAD * GROUP * KEEP * N);
    for (u64 t0 = (u64)block_x() * TILE; t0 < a.tokens; t0 += (u64)blocks_x() * TILE) {
        Token token;
        {
            Partial mine;
            project_tile(a, t0, steps, mine);
            copies_wait<0>();
            barrier();
            token.slots = shared + thread_index() / GROUP * (AHEAD * GROUP * KEEP * N) + thread_index() % GROUP;
            for (u32 k = 0; k < AHEAD; ++k) token.fetch(a, t0, thread_index() / GROUP + k * GROUPS, k);
            coefficients_tile(a, t0, mine, sums, h);
        }
        if (wave_index() < TILE / 2) mixing(a, h + wave_index() * 2, far[wave_index()]);
        barrier();
        const u32 group = thread_index() / GROUP;
        u32 turn = 0;
#pragma unroll 1
        for (u32 k = group; k < TILE && t0 + k < a.tokens; k += GROUPS, turn ^= 1) {
            Column<float, N> x[KEEP];
            token.take(x, turn);
            token.fetch(a, t0, k + AHEAD * GROUPS, turn);
            layer_token(a, t0 + k, x, h[k], squares[turn] + group * 4);
        }
        barrier();
    }
}

#define MHC_KERNEL_dynamic_fwd_mma(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 512, 1, DynamicFwd, dynamic_fwd_mma)
