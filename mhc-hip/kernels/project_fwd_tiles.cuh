// project_fwd_tiles: the products of `project` on the matrix units; stands in for project_fwd, with the same arguments and results.
//
// Math      parts[r, t, j] = Σ_k φ[j,k]·w[k]·x[t,k], squares[r, t] = Σ_k x[t,k]²: k in range r of K.
// Operands  x [T, n, C] of type E, rows at multiples of 16 bytes; φ [P, K], w [K], parts, squares f32.
// Mapping   A block keeps its range of φ in shared memory, in the order in which lanes want it, and goes over tiles of 128 tokens; a wave
//           takes 16 tokens at a time of its share of a tile, and loads them straight from memory into fragments, 16 bytes a lane. Of
//           many columns a CHUNK of the range after the other is kept, for one tile of tokens.
// Traffic   x once for every 16·NT columns, φ once a block, or once a tile from cache; 4·ranges·(P + 1) bytes a token.
// Numerics  φ·w as the sum of two bf16 for bf16 streams (16 bits and more), as f32 for the others. Sums in f32, in an order fixed by K and
//           the range alone.
#include "matrix.cuh"
#include "projection.cuh"
#include "reduce.cuh"

// Channels of a step; packs of 8 of them in a lane; lanes that hold different ones; threads; tokens of a block, of a wave in tiles of 16.
static const u32 STEP = GROUPS * NEAR, PACKS = NEAR / 8, HOLD = GROUPS * 16, THREADS = 256, TOKENS = 128;
static const u32 MINE = TOKENS / 16 / (THREADS / MHC_WAVE);

// φ·w of channels [first, last) and columns [column0, column0 + 16·NT) into shared memory: [step][tile of columns][quad][lane].
template <class E, u32 NT> DEVICE void fill(const ProjectFwd<E>& a, u32 column0, u64 first, u64 last, Quad* shared) {
    const u32 steps = (u32)((last - first + STEP - 1) / STEP);
    for (u32 item = thread_index(); item < steps * NT * HOLD; item += THREADS) {
        const u32 lane = item % HOLD, tile = item / HOLD % NT, step = item / HOLD / NT;
        const u32 column = column0 + tile * 16 + lane % 16;
        float f[NEAR] = {};
#pragma unroll
        for (u32 pack = 0; pack < PACKS; ++pack) {
            const u64 k = first + step * STEP + lane / 16 * NEAR + pack * 8;
            if (column >= a.columns || k >= last) continue;
            float v[8], w[8];
            load(a.phi.at(column) + k, v);
            if (a.weight) load(a.weight + k, w);
#pragma unroll
            for (u32 e = 0; e < 8; ++e) f[pack * 8 + e] = a.weight ? v[e] * w[e] : v[e];
        }
        Quad quads[NEAR / 4];
        Product<E>::split(f, quads);
#pragma unroll
        for (u32 q = 0; q < NEAR / 4; ++q) shared[((step * NT + tile) * (NEAR / 4) + q) * HOLD + lane] = quads[q];
    }
}

template <class E, u32 NT, u32 AHEAD, u32 CHUNK> DEVICE void project_fwd_tiles(const ProjectFwd<E>& a) {
    DYNAMIC_SHARED(Quad, shared);
    const u32 lane = lane_index(), column0 = block_y() * 16 * NT;
    const u64 row = (u64)a.n * a.channels, first = (u64)block_z() * a.steps * 32;
    const u64 last = first + a.steps * 32 < row ? first + a.steps * 32 : row;
    u64 filled = last;
    for (u64 tile0 = (u64)block_x() * TOKENS; tile0 < a.tokens; tile0 += (u64)blocks_x() * TOKENS) {
        const u64 t0 = tile0 + wave_index() * 16 * MINE;
        // Rows past the last token are read as the last one and not written.
        const E* rows[MINE];
#pragma unroll
        for (u32 m = 0; m < MINE; ++m) {
            const u64 t = t0 + m * 16 + lane % 16;
            rows[m] = a.x.p + (t < a.tokens ? t : a.tokens - 1) * a.x.token;
        }
        Sums sum[MINE][NT] = {};
        float square[MINE] = {};
        Packed<E, 8> ring[AHEAD][MINE][PACKS];
        Cursor<STEP> cursor[PACKS];
        u64 k = first + lane % HOLD / 16 * NEAR;
#pragma unroll
        for (u32 pack = 0; pack < PACKS; ++pack) cursor[pack].set(k + pack * 8 < row ? k + pack * 8 : 0, a.channels, a.x.stream);
        const auto fetch = [&](Packed<E, 8>(&to)[MINE][PACKS]) {
#pragma unroll
            for (u32 pack = 0; pack < PACKS; ++pack) {
#pragma unroll
                for (u32 m = 0; m < MINE; ++m) {
                    if (k + pack * 8 < last) to[m][pack].template load<true>(rows[m] + cursor[pack].offset, 8);
                    else to[m][pack] = Packed<E, 8>{};
                }
                cursor[pack].next(a.channels, a.x.stream);
            }
            k += STEP;
        };
#pragma unroll
        for (u32 s = 0; s < AHEAD; ++s) fetch(ring[s]);
        const Quad* b = shared;
        for (u64 some = first; some < last; some += AHEAD * STEP) {
            // Where a chunk begins; the only one of a range stays for all tiles.
            if ((some - first) % CHUNK == 0) {
                if (some != filled) {
                    barrier();
                    fill<E, NT>(a, column0, some, some + CHUNK < last ? some + CHUNK : last, shared);
                    barrier();
                    filled = some;
                }
                b = shared + lane % HOLD;
            }
#pragma unroll
            for (u32 s = 0; s < AHEAD; ++s) {
                Packed<E, 8> x[MINE][PACKS];
#pragma unroll
                for (u32 m = 0; m < MINE; ++m) {
#pragma unroll
                    for (u32 pack = 0; pack < PACKS; ++pack) x[m][pack] = ring[s][m][pack];
                }
                fetch(ring[s]);
                if (some + s * STEP >= last) continue;
#pragma unroll
                for (u32 m = 0; m < MINE; ++m) {
#pragma unroll
                    for (u32 pack = 0; pack < PACKS; ++pack) {
                        float f[8];
                        x[m][pack].get(f);
#pragma unroll
                        for (u32 e = 0; e < 8; ++e) square[m] = fused(f[e], f[e], square[m]);
                    }
                }
#pragma unroll
                for (u32 tile = 0; tile < NT; ++tile) {
                    Quad quads[NEAR / 4];
#pragma unroll
                    for (u32 q = 0; q < NEAR / 4; ++q) quads[q] = b[(tile * (NEAR / 4) + q) * HOLD];
#pragma unroll
                    for (u32 m = 0; m < MINE; ++m) Product<E>::multiply(sum[m][tile], x[m], quads);
                }
                b += NT * (NEAR / 4) * HOLD;
            }
        }
        const u64 base = (u64)block_z() * a.tokens;
#pragma unroll
        for (u32 m = 0; m < MINE; ++m) {
            // The groups of lanes that share a token.
            float s = square[m];
#pragma unroll
            for (u32 mask = 16; mask < HOLD; mask *= 2) s += shuffle_xor(s, mask);
            const u64 own = t0 + m * 16 + lane % 16;
            if (block_y() == 0 && lane < 16 && own < a.tokens) a.squares[base + own] = s;
#pragma unroll
            for (u32 tile = 0; tile < NT; ++tile) {
                const u32 j = column0 + tile * 16 + lane % 16;
#pragma unroll
                for (u32 r = 0; r < ROWS; ++r) {
                    const u64 t = t0 + m * 16 + row_of(lane, r);
                    if (t < a.tokens && j < a.columns) a.parts[(base + t) * a.columns + j] = sum[m][tile][r];
                }
            }
        }
    }
}

// A chunk of φ takes the shared memory of a compute unit, so that a SIMD has one wave or two, with registers for many loads on the way.
#define MHC_KERNEL_project_fwd_tiles_16(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 256, 2, ProjectFwd<E>, project_fwd_tiles<E, 1, 4, 512>)
#define MHC_KERNEL_project_fwd_tiles_32(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 256, 1, ProjectFwd<E>, project_fwd_tiles<E, 2, 4, 512>)
#define MHC_KERNEL_project_fwd_tiles_80(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 256, 1, ProjectFwd<E>, project_fwd_tiles<E, 5, 4, 128>)
