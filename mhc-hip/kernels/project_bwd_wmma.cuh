// project_bwd_wmma: both products of the projection's gradient (see project) in one pass over bf16 streams, on the matrix units of RDNA.
//
// Math      d_x[t,i,c] = Σ_j p[t,j]·φ[j,i,c]·w[i,c] - s[t]·x[t,i,c] + H_pre[t,i]·d_li[t,c] + Σ_l H_res[t,l,i]·d_x_next[t,l,c]
//           G[j,i,c] = Σ_t p[t,j]·x[t,i,c] over one range of tokens
// Operands  x, d_li, d_x_next bf16, d_x bf16 or f32; everything else f32. P = N(N + 2) columns, a multiple of 8; rows of channels in
//           vectors of 16 bytes.
// Mapping   a block owns 8 waves' channels and one range of tokens, 16 at a time. It splits their p into 16-bit numbers, in shared memory
//           in the order in which lanes want them, while the tokens before are multiplied; a wave owns 64 channels of one stream, whose φ
//           lies split in shared memory and whose part of G stays in registers. Channel 4·(lane % 16) + m is column lane % 16 of tile m of
//           both products, and the tokens that are a lane's rows of D = p·φ are those whose x it loads, for G = p^T·x too.
// Traffic   (2 + 1/n)·nC elements a token, nC more for d_x_next, which comes n times from cache; 4P·nC bytes of G a range.
// Numerics  p·φ of two f16 each, 22 bits, whose smaller parts are not multiplied with each other; brought near 2^14 before, a token and a
//           channel at a time, so that nothing is lost at the lower end. p·x of three bf16, which are all of p, and one. Sums in f32; all
//           orders fixed by T and C.
#include "matrix.cuh"
#include "project_d_x.cuh"
#include "reduce.cuh"

// Waves of a block; tiles of 16 channels of a wave.
static const u32 WAVES = 8, TILES = 4;

template <u32 N> struct Shape {
    // Columns, and packs of 8 of them; products of a pack of p with one of φ, and instructions for all of those; and for all columns as
    // rows.
    static const u32 P = N * (N + 2), PACKS = P / 8, PRODUCTS = 3 * PACKS, INNER = (PRODUCTS * 8 + 15) / 16, OUTER = (P + 15) / 16;
    static_assert(P % 8 == 0, "whole packs");
};

// Products in their order: small·large, large·small, large·large. The packs of p are its small ones, its large ones and one of zeros, for
// where the last instruction has room; those of φ the large, then the small.
template <u32 N> DEVICE u32 pack_of_p(u32 product) { return product < 2 * Shape<N>::PACKS ? product : product - Shape<N>::PACKS; }
template <u32 N> DEVICE u32 pack_of_phi(u32 product) { return product < 2 * Shape<N>::PACKS ? product : product - 2 * Shape<N>::PACKS; }

// p of 16 tokens.
template <u32 N> struct Tokens {
    // Tokens as rows, in f16: an odd number of packs each, to keep off each other's banks.
    Quad rows[16][2 * Shape<N>::PACKS + 1];
    // Columns as rows, in bf16: of a part, and of 16 columns, packs of tokens by place_of.
    Quad columns[3][Shape<N>::OUTER][2][16];
    // What undoes the scale of `rows`.
    float back[16];
};

// The exponent of a power of two, as f32 has it.
DEVICE float power(u32 exponent) { return bits_to_float(exponent << 23); }
// The exponent of a largest magnitude, and of what brings that near 2^14.
DEVICE u32 exponent_of(float most, u32 least) {
    const u32 e = float_to_bits(most) >> 23;
    return e < least ? least : e > 253 ? 253 : e;
}
DEVICE float towards_f16(u32 exponent) { return power(267 - exponent); }

DEVICE float magnitude(float v) { return bits_to_float(float_to_bits(v) & 0x7fffffffu); }

// The nearest f16, and what is left of v.
DEVICE u16 take_f16(float& v) {
    const u16 h = float_to_half(v);
    v -= half_to_float(h);
    return h;
}
DEVICE u16 take_bf16(float& v) {
    const u16 h = float_to_brain(v);
    v -= bits_to_float((u32)h << 16);
    return h;
}

// A wave's φ·w into shared memory, and what undoes the scale of this lane's channels and of p's. Its halves take two channels each.
template <u32 N, class B> DEVICE void fill(const B& a, u32 i, u32 c, Quad (&phi)[2 * Shape<N>::PACKS][TILES][16], float (&back)[TILES]) {
    using S = Shape<N>;
    const u32 half = lane_index() / 16, column = lane_index() % 16;
    const u64 at = (u64)i * a.channels + c + 2 * half;
    float w[2] = {1.0f, 1.0f}, f[S::P][2], most[2] = {}, own[2];
    if (a.weight) load(a.weight + at, w);
#pragma unroll
    for (u32 j = 0; j < S::P; ++j) {
        load(a.phi.at(j) + at, f[j]);
#pragma unroll
        for (u32 e = 0; e < 2; ++e) {
            f[j][e] *= w[e];
            most[e] = larger(most[e], magnitude(f[j][e]));
        }
    }
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const u32 exponent = exponent_of(most[e], 27);
        const float scale = towards_f16(exponent);
        own[e] = power(exponent - 26);
#pragma unroll
        for (u32 q = 0; q < S::PACKS; ++q) {
            Quad large = {}, small = {};
#pragma unroll
            for (u32 k = 0; k < 8; ++k) {
                float v = f[8 * q + k][e] * scale;
                large.w[k / 2] |= (u32)take_f16(v) << 16 * (k % 2);
                small.w[k / 2] |= (u32)float_to_half(v) << 16 * (k % 2);
            }
            phi[q][2 * half + e][column] = large;
            phi[S::PACKS + q][2 * half + e][column] = small;
        }
    }
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
        const float other = shuffle_xor(own[e], 16);
        back[e] = half ? other : own[e];
        back[2 + e] = half ? own[e] : other;
    }
}

// p of tokens [t0, t0 + 16) into shared memory, 16 threads a token; 0 from `end` on.
template <u32 N> DEVICE void split(const float* p, u64 t0, u64 end, Tokens<N>& to) {
    using S = Shape<N>;
    const u32 token = thread_index() / 16, thread = thread_index() % 16, place = place_of(token);
    float v[S::OUTER], most = 0.0f;
#pragma unroll
    for (u32 k = 0; k < S::OUTER; ++k) {
        const u32 j = 16 * k + thread;
        v[k] = t0 + token < end && j < S::P ? p[(t0 + token) * S::P + j] : 0.0f;
        most = larger(most, magnitude(v[k]));
    }
#pragma unroll
    for (u32 mask = 1; mask < 16; mask *= 2) most = larger(most, shuffle_xor(most, mask));
    const u32 exponent = exponent_of(most, 14);
    u16* row = (u16*)to.rows[token];
    if (thread < 8) row[16 * S::PACKS + thread] = 0;
    if (thread == 0) to.back[token] = power(exponent);
#pragma unroll
    for (u32 k = 0; k < S::OUTER; ++k) {
        const u32 j = 16 * k + thread;
        float scaled = v[k] * towards_f16(exponent);
        const u16 large = take_f16(scaled), small = float_to_half(scaled);
        if (j < S::P) {
            row[j] = small;
            row[8 * S::PACKS + j] = large;
        }
#pragma unroll
        for (u32 part = 0; part < 3; ++part) ((u16*)to.columns[part][k][place / 8])[8 * thread + place % 8] = take_bf16(v[k]);
    }
}

// The packs of an instruction, of which `at(g)` is the one of the lane's group g.
template <class F> DEVICE Fragment fragment(F at) {
    Fragment f;
#pragma unroll
    for (u32 g = 0; g < NEAR / 8; ++g) f.quads[g] = at(GROUPS == 1 ? g : lane_index() / 16);
    return f;
}

// D = p·φ of 16 tokens.
template <u32 N>
DEVICE void multiply_phi(const Tokens<N>& p, const Quad (&phi)[2 * Shape<N>::PACKS][TILES][16], Sums (&product)[TILES]) {
    const u32 lane = lane_index() % 16;
    // Not unrolled, or the compiler loads all factors at once, and lacks registers.
#pragma unroll 1
    for (u32 k = 0; k < Shape<N>::INNER; ++k) {
        const Fragment rows = fragment([&](u32 g) { return p.rows[lane][pack_of_p<N>(2 * k + g)]; });
#pragma unroll
        for (u32 m = 0; m < TILES; ++m) {
            multiply_f16(product[m], rows, fragment([&](u32 g) { return phi[pack_of_phi<N>(2 * k + g)][m][lane]; }));
        }
    }
}

// G += p^T·x of 16 tokens, of which the lane has x of rows row_of(lane, r).
template <u32 N> DEVICE void multiply_x(const Tokens<N>& p, const Packed<bf16, TILES> (&x)[ROWS], Sums (&sum)[Shape<N>::OUTER][TILES]) {
    const u32 lane = lane_index() % 16;
    Fragment columns[TILES];
#pragma unroll
    for (u32 m = 0; m < TILES; ++m) {
        Quad own;
#pragma unroll
        for (u32 r = 0; r < ROWS; r += 2) {
            const u32 first = x[r].w[m / 2] >> 16 * (m % 2), second = x[r + 1].w[m / 2] >> 16 * (m % 2);
            own.w[r / 2] = (first & 0xffff) | second << 16;
        }
        columns[m] = gather(own);
    }
#pragma unroll
    for (u32 k = 0; k < Shape<N>::OUTER; ++k) {
#pragma unroll
        for (u32 part = 3; part-- > 0;) {
            const Fragment rows = fragment([&](u32 g) { return p.columns[part][k][g][lane]; });
#pragma unroll
            for (u32 m = 0; m < TILES; ++m) multiply_bf16(sum[k][m], rows, columns[m]);
        }
    }
}

template <class E, class O, u32 N> DEVICE void project_bwd_wmma(const ProjectBoth<E, O>& a) {
    using S = Shape<N>;
    SHARED Quad phi[WAVES][2 * S::PACKS][TILES][16];
    SHARED Tokens<N> tokens[2];
    const u32 parts = (a.channels + 16 * TILES - 1) / (16 * TILES) * N, blocks = (parts + WAVES - 1) / WAVES;
    const u32 range = block_x() / blocks, index = block_x() % blocks * WAVES + wave_index(), lane = lane_index(), i = index % N;
    const u32 own = (index / N * 16 + lane % 16) * TILES;
    // Lanes past the last channel take the first ones and write nothing, as do tokens past the last of the range.
    const bool live = own < a.channels;
    const u32 c = live ? own : 0;
    const u64 first = (u64)range * a.range, end = first + a.range < a.tokens ? first + a.range : a.tokens;
    float back[TILES];
    fill<N>(a, i, c, phi[wave_index()], back);
    split<N>(a.p, first, end, tokens[0]);
    barrier();
    Sums sum[S::OUTER][TILES] = {};
    u32 turn = 0;
#pragma unroll 1
    for (u64 t0 = first; t0 < end; t0 += 16) {
        const Tokens<N>& p = tokens[turn];
        turn ^= 1;
        const auto token = [&](u32 r) { return t0 + row_of(lane, r); };
        Packed<E, TILES> x[ROWS];
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) {
            const u64 t = token(r) < end ? token(r) : end - 1;
            x[r].template load<true>(a.x.at(t).at(i) + c, TILES);
        }
        split<N>(a.p, t0 + 16, end, tokens[turn]);
        multiply_x<N>(p, x, sum);
        Sums product[TILES] = {};
        multiply_phi<N>(p, phi[wave_index()], product);
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) {
            const float scale = p.back[row_of(lane, r)];
            float d[TILES], f[TILES];
#pragma unroll
            for (u32 m = 0; m < TILES; ++m) d[m] = product[m][r] * back[m] * scale;
            x[r].get(f);
            const bool mine = token(r) < end;
            write_d_x<N>(a, mine ? token(r) : end - 1, i, c, live && mine, d, f);
        }
        barrier();
    }
    const u64 row = (u64)N * a.channels;
    float* part = a.parts + (u64)range * S::P * row + (u64)i * a.channels + c;
#pragma unroll
    for (u32 k = 0; k < S::OUTER; ++k) {
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) {
            const u32 j = 16 * k + row_of(lane, r);
            float v[TILES];
#pragma unroll
            for (u32 m = 0; m < TILES; ++m) v[m] = sum[k][m][r];
            if (live && j < S::P) store(part + j * row, v);
        }
    }
}

// G and the factors of an instruction are most of a lane's registers.
#define MHC_KERNEL_project_bwd_tiles(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 256, 1, ProjectBothSame<E>, project_bwd_wmma<E, E, N>)
#define MHC_KERNEL_project_bwd_tiles_f32(NAME, E, N) MHC_ENTRY_RESIDENT(NAME, 256, 1, ProjectBothWide<E>, project_bwd_wmma<E, float, N>)
