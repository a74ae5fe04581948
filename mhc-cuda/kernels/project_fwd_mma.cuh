// project_fwd_mma: the products of `project` on tensor cores; stands in for project_fwd, with the same arguments and results.
//
// Math      parts[r, t, j] = Σ_k φ[j,k]·w[k]·x[t,k], squares[r, t] = Σ_k x[t,k]²: k in range r of K.
// Operands  x [T, n, C] of type E, rows at multiples of 16 bytes; φ [P, K], w [K], parts, squares f32.
// Mapping   A block keeps its range of φ in shared memory, in the order in which lanes want it, and goes over tiles of tokens; a warp
//           takes 16·M of a tile and loads them straight from memory into fragments. A product does not care in which order its k's
//           are numbered, so a lane gets 8 neighbours of a row: 16 bytes of bf16.
//           Where columns come in groups, a block fills several times for a range, and again for every tile, as the parts of short ranges
//           would be most of the traffic: n = 32, T = 128, C = 1280 in f32 has 178 MB of φ, and had as much of parts.
// Traffic   x once for every 8·NT columns, φ once a block, or a tile of tokens where it is filled again, 4·ranges·(P + 1) bytes a token.
// Numerics  φ·w as the sum of two bf16 for bf16 streams (16 bits and more), of two tf32 for the others (21 bits), where f32 streams are
//           split so too. Sums of UNIT channels by the tensor cores, which round towards zero, then rounded additions in order.
// Tried     φ from global memory for each tile: bound by L2. Plain loads of x, 64 bytes of a row at a time for 16-bit streams: 97 µs
//           where 256 bytes go to the second cache at once: 90 (n = 4, T = 4096, C = 4096); n = 8: 321 and 296; f32: 153 and 150.
//           n = 8, where ranges of 256 make parts of 168 MB: ranges of 4096 by blocks of 256 tokens that share φ through a ring of
//           stages, 8 warps of 32 tokens, φ split by each: 245 µs; split once for all: 283 with one step of x in flight, 235 with two
//           and 204 bytes spilled; 16 warps of 16 tokens: 291; lines of x brought to the second cache 512 bytes ahead: 283 to 319. A
//           block alone with one token takes 0.9 to 1.7 µs a step: it is the chains of products between 160 registers of sums, not
//           memory. Sums of whole units in nested order gave the same bits with short ranges as with long ones.
#include "copies.cuh"
#include "mma.cuh"
#include "projection.cuh"
#include "vector.cuh"

// Channels of a step, of which a lane holds 8; steps of a unit.
static const u32 STEP = 32, UNIT = 4, WARPS = 4;

// φ·w of channels [first, last) and columns [column0, column0 + 8·NT) into shared memory: [step][slab][tile of 8 columns][lane].
template <class E, u32 NT> DEVICE void fill(const ProjectFwd<E>& a, u32 column0, u64 first, u64 last, Quad* shared) {
    const u32 SLABS = Mma<E>::SLABS, steps = (u32)((last - first + STEP - 1) / STEP);
    for (u32 item = thread_index(); item < steps * NT * 32; item += threads()) {
        const u32 lane = item % 32, tile = item / 32 % NT, step = item / 32 / NT;
        const u32 column = column0 + tile * 8 + lane / 4;
        const u64 k = first + step * STEP + lane % 4 * 8;
        float f[8] = {};
        if (column < a.columns && k < last) {
            load(a.phi.at(column) + k, f);
            if (a.weight) {
                float w[8];
                load(a.weight + k, w);
#pragma unroll
                for (u32 e = 0; e < 8; ++e) f[e] *= w[e];
            }
        }
#pragma unroll
        for (u32 s = 0; s < SLABS; ++s) shared[((step * SLABS + s) * NT + tile) * 32 + lane] = Mma<E>::split(f, s);
    }
}

// What the launch asked for.
DEVICE u32 dynamic_shared_bytes() {
    u32 bytes;
    asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
    return bytes;
}

template <class E, u32 NT, u32 M, u32 AHEAD> DEVICE void project_fwd_mma(const ProjectFwd<E>& a) {
    DYNAMIC_SHARED(Quad, shared);
    const u32 SLABS = Mma<E>::SLABS, TOKENS = 16 * M;
    const u32 warp = thread_index() / 32, lane = thread_index() % 32, g = lane / 4, q = lane % 4;
    const u32 column0 = block_y() * 8 * NT, tile_tokens = WARPS * TOKENS;
    const u64 row = (u64)a.n * a.channels, first = (u64)block_z() * a.steps * STEP;
    const u64 last = first + a.steps * STEP < row ? first + a.steps * STEP : row;
    // Channels for which φ has room; a range has as many, or a multiple of it where columns come in groups.
    const u64 kept = dynamic_shared_bytes() / (SLABS * NT * 32 * (u32)sizeof(Quad)) * STEP;
    const bool again = NT == 10 && a.steps * STEP > kept;
    if (!again) {
        fill<E, NT>(a, column0, first, last, shared);
        barrier();
    }
    for (u64 tile0 = (u64)block_x() * tile_tokens; tile0 < a.tokens; tile0 += (u64)blocks_x() * tile_tokens) {
        const u64 t0 = tile0 + warp * TOKENS;
        // Nobody may be missing where all fill.
        if (!again && t0 >= a.tokens) break;
        // Rows past the last token are read as the last one and not written.
        const E* rows[M][2];
#pragma unroll
        for (u32 m = 0; m < M; ++m) {
#pragma unroll
            for (u32 h = 0; h < 2; ++h) {
                const u64 t = t0 + m * 16 + h * 8 + g;
                rows[m][h] = a.x.p + (t < a.tokens ? t : a.tokens - 1) * a.x.token;
            }
        }
        float sum[M][NT][4] = {}, square[M][2] = {};
        Packed<E, 8> ring[AHEAD][M][2];
        Cursor<STEP> cursor;
        u64 k = first + q * 8;
        cursor.set(k < row ? k : 0, a.channels, a.x.stream);
        const auto fetch = [&](Packed<E, 8>(&to)[M][2]) {
#pragma unroll
            for (u32 m = 0; m < M; ++m) {
#pragma unroll
                for (u32 h = 0; h < 2; ++h) {
                    if (k < last) load_lines(to[m][h], rows[m][h] + cursor.offset);
                    else to[m][h] = Packed<E, 8>{};
                }
            }
            k += STEP;
            cursor.next(a.channels, a.x.stream);
        };
#pragma unroll
        for (u32 s = 0; s < AHEAD; ++s) fetch(ring[s]);
        const Quad* b = shared + lane;
        for (u64 unit = first; unit < last; unit += UNIT * STEP) {
            if (again && (unit - first) % kept == 0) {
                barrier();
                fill<E, NT>(a, column0, unit, unit + kept < last ? unit + kept : last, shared);
                barrier();
                b = shared + lane;
            }
            float acc[M][NT][4] = {};
#pragma unroll
            for (u32 s = 0; s < UNIT; ++s) {
                Packed<E, 8> x[M][2];
#pragma unroll
                for (u32 m = 0; m < M; ++m) {
                    x[m][0] = ring[s % AHEAD][m][0];
                    x[m][1] = ring[s % AHEAD][m][1];
                }
                fetch(ring[s % AHEAD]);
                if (unit + s * STEP >= last) continue;
#pragma unroll
                for (u32 m = 0; m < M; ++m) {
#pragma unroll
                    for (u32 h = 0; h < 2; ++h) {
                        float f[8];
                        x[m][h].get(f);
#pragma unroll
                        for (u32 e = 0; e < 8; ++e) square[m][h] = fused(f[e], f[e], square[m][h]);
                    }
                }
#pragma unroll
                for (u32 slab = 0; slab < SLABS; ++slab) {
                    typename Mma<E>::A fragment[M];
#pragma unroll
                    for (u32 m = 0; m < M; ++m) fragment[m].set(x[m][0], x[m][1], slab);
#pragma unroll
                    for (u32 tile = 0; tile < NT; ++tile) {
                        const Quad quad = b[(slab * NT + tile) * 32];
#pragma unroll
                        for (u32 m = 0; m < M; ++m) Mma<E>::multiply(acc[m][tile], fragment[m], quad);
                    }
                }
                b += SLABS * NT * 32;
            }
#pragma unroll
            for (u32 m = 0; m < M; ++m) {
#pragma unroll
                for (u32 tile = 0; tile < NT; ++tile) {
#pragma unroll
                    for (u32 e = 0; e < 4; ++e) sum[m][tile][e] += acc[m][tile][e];
                }
            }
        }
        const u64 base = (u64)block_z() * a.tokens;
#pragma unroll
        for (u32 m = 0; m < M; ++m) {
#pragma unroll
            for (u32 h = 0; h < 2; ++h) {
                const u64 t = t0 + m * 16 + h * 8 + g;
                float s = square[m][h];
                s += shuffle_xor(s, 1);
                s += shuffle_xor(s, 2);
                if (t >= a.tokens) continue;
                if (block_y() == 0 && q == 0) a.squares[base + t] = s;
#pragma unroll
                for (u32 tile = 0; tile < NT; ++tile) {
#pragma unroll
                    for (u32 e = 0; e < 2; ++e) {
                        const u32 j = column0 + tile * 8 + q * 2 + e;
                        if (j < a.columns) a.parts[(base + t) * a.columns + j] = sum[m][tile][h * 2 + e];
                    }
                }
            }
        }
    }
}

// As many blocks as their part of φ leaves room for have registers enough to keep the loads of two steps in flight; in f32, where a step
// has twice the bytes, those of one (72 µs at n = 2, T = 4096, C = 4096 with either).
#define MHC_KERNEL_project_fwd_mma_8(NAME, E, N) \
    MHC_ENTRY_RESIDENT(NAME, 128, 3, ProjectFwd<E>, project_fwd_mma<E, 1, 2, sizeof(E) == 4 ? 1 : 2>)
#define MHC_KERNEL_project_fwd_mma_24(NAME, E, N) \
    MHC_ENTRY_RESIDENT(NAME, 128, 2, ProjectFwd<E>, project_fwd_mma<E, 3, 2, 2>)
#define MHC_KERNEL_project_fwd_mma_80(NAME, E, N) \
    MHC_ENTRY_RESIDENT(NAME, 128, 2, ProjectFwd<E>, project_fwd_mma<E, 10, 1, 2>)
