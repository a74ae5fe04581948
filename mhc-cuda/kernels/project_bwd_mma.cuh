// project_bwd_mma: both products of the projection's gradient (see project) in one pass over x, on tensor cores.
//
// Math      d_x[t,i,c] = Σ_j p[t,j]·φ[j,i,c]·w[i,c] - s[t]·x[t,i,c] + H_pre[t,i]·d_li[t,c] + Σ_l H_res[t,l,i]·d_x_next[t,l,c]
//           G[j,i,c] = Σ_t p[t,j]·x[t,i,c] over one range of tokens
// Operands  x, d_li, d_x_next of type E, d_x of E or f32; everything else f32. P ≤ 8·B columns; rows of channels in vectors of 16 bytes.
// Mapping   a warp owns 32 channels of all n streams and one range of tokens, and needs no other. Its part of φ lies in shared memory as
//           fragments, its part of G in accumulators. Products are transposed, channels × columns × tokens: then a lane's share of D, 4
//           neighbouring channels of tokens q and q + 4 of 8, is its share of x as the A of G = x^T·p, and x goes from shared memory to
//           d_x and to G without an exchange between lanes.
//           Tokens come 8·S at a time: S = 2 groups of 16-bit streams share what is read of φ. What a phase has used is fetched for the
//           next tokens at once, so that one buffer does.
// Traffic   (3 + 1/n)·nC elements a token, and 4P·nC bytes of G a range; φ once a range, p and the coefficients C/32 times from cache.
// Numerics  three products of TF32 halves for each of f32, two where one factor is exact (x of 16 bits); sums over more than 8·S tokens
//           are added in f32, as tensor cores do not round to nearest. All orders fixed by T and C.
#include "copies.cuh"
#include "mma.cuh"
#include "projection.cuh"
#include "reduce.cuh"

// Rows of 32 channels of element type T, of tokens behind each other, in shared memory: in units of 16 bytes, whose order within a row
// keeps lanes (g, q) that read channels 4g of tokens q, and lanes that write whole rows, off each other's banks.
template <class T> struct Units {
    static const u32 ROW = 2 * sizeof(T), EACH = 16 / sizeof(T), AT_ONCE = 32 / ROW;
    DEVICE_MEMBER static u32 place(u32 token, u32 unit) {
        return (token * ROW + (unit ^ (sizeof(T) == 2 ? token & 2 : token % 4 * 2))) * 16;
    }
    // Begins to copy 8 tokens; `from` is what lane_index() copies of the first AT_ONCE, of which this many are there.
    DEVICE_MEMBER static void copy(u32 to, const T* from, u64 step, int left, u32 lane, bool live) {
#pragma unroll
        for (u32 t = 0; t < 8; t += AT_ONCE) {
            const u32 token = t + lane / ROW;
            copy_ahead<16>(to + place(token, lane % ROW), from + t * step, live && (int)token < left);
        }
    }
    // Channels 4g..4g + 3 of a token.
    DEVICE_MEMBER static void read(const char* from, u32 token, u32 g, Packed<T, 4>& v) {
        v.template load<true>((const T*)(from + place(token, g * 4 / EACH)) + g * 4 % EACH, 4);
    }
    DEVICE_MEMBER static void read(const char* from, u32 token, u32 g, float (&f)[4]) {
        Packed<T, 4> v;
        read(from, token, g, v);
        v.get(f);
    }
};

// One warp's shared memory, in bytes.
template <class E, u32 N, u32 B> struct Layout {
    static const u32 S = 4 / sizeof(E), TOKENS = 8 * S, CHANNELS = 32, ROWS = TOKENS * 32 * sizeof(E);
    // A token's coefficients: H_res as [from][to], H_pre, s; and the distance to the next token's.
    static const u32 PRE = N * N, SHRINK = PRE + N, COEFFICIENTS = 28;
    static const u32 PHI = 0, X = PHI + 16 * 32 * 2 * N * B, D_X_NEXT = X + N * ROWS, D_LI = D_X_NEXT + N * ROWS,
                     P = D_LI + TOKENS * 32 * 4, P_BYTES = TOKENS * 8 * B * 4, MIXES = P + 2 * P_BYTES,
                     BYTES = MIXES + TOKENS * COEFFICIENTS * 4;
};

template <class E, class O, u32 N, u32 B> struct Warp {
    using L = Layout<E, N, B>;
    using U = Units<E>;
    static const u32 S = L::S;
    // Whether TF32 holds every x.
    static constexpr bool EXACT = sizeof(E) == 2;
    const ProjectBoth<E, O>& a;
    char* shared;
    u32 address, lane, g, q, c0, end;
    // What this lane copies of the next tokens to fetch: of x and d_x_next a unit of token lane / ROW, of the rest of token g.
    const E *x, *next;
    const char* li;
    const float* mixes;
    // Of the next tokens to write, channels 4g of token q.
    O* d_x;

    DEVICE_MEMBER void begin(u64 first) {
        const u64 t = first + lane / U::ROW, t_wide = first + lane / 8;
        const u32 c = c0 + lane % U::ROW * U::EACH;
        x = a.x.p + t * a.x.token + c;
        next = a.d_x_next.p + t * a.d_x_next.token + c;
        li = a.d_li_f32.p ? (const char*)(a.d_li_f32.at(t_wide) + c0 + lane % 8 * 4) : (const char*)(a.d_li.at(t) + c);
        mixes = a.mixes.at(first + g) + q;
        d_x = a.d_x.p + (first + q) * a.d_x.token + c0 + 4 * g;
    }

    // Fragments of φ·w: of stream i and columns 8b.., A[row][k] for k = q and q + 4 is column 8b + 2q and 8b + 2q + 1, and rows g and
    // g + 8 of tile m are channels 4g + 2m and 4g + 2m + 1.
    DEVICE_MEMBER void load_phi() {
        const u32 c = c0 + 4 * g;
#pragma unroll 1
        for (u32 i = 0; i < N; ++i) {
            const u64 k = (u64)i * a.channels + c;
            float w[4] = {1.0f, 1.0f, 1.0f, 1.0f};
            if (a.weight && c < a.channels) load(a.weight + k, w);
#pragma unroll
            for (u32 b = 0; b < B; ++b) {
                float f[2][4] = {};
#pragma unroll
                for (u32 h = 0; h < 2; ++h) {
                    const u32 j = 8 * b + 2 * q + h;
                    if (c < a.channels && j < a.columns) load(a.phi.at(j) + k, f[h]);
                }
#pragma unroll
                for (u32 m = 0; m < 2; ++m) {
                    const float v[4] = {f[0][2 * m] * w[2 * m], f[0][2 * m + 1] * w[2 * m + 1], f[1][2 * m] * w[2 * m],
                                        f[1][2 * m + 1] * w[2 * m + 1]};
                    store(fragment(i, m, b), v);
                }
            }
        }
    }

    DEVICE_MEMBER float* fragment(u32 i, u32 m, u32 b) const {
        return (float*)(shared + L::PHI + ((i * 2 + m) * B + b) * 512 + lane * 16);
    }

    // Each of these begins to fetch something of the next tokens, of which `left` are there. What is absent, or past the last, is zero.
    DEVICE_MEMBER void fetch_x(int left) {
        const bool live = c0 + lane % U::ROW * U::EACH < a.channels;
#pragma unroll
        for (u32 s = 0; s < S; ++s) {
#pragma unroll
            for (u32 i = 0; i < N; ++i) {
                const u32 to = address + L::X + (s * N + i) * 8 * 16 * U::ROW;
                U::copy(to, x + s * 8 * a.x.token + i * a.x.stream, a.x.token, left - (int)(8 * s), lane, live);
            }
        }
        x += L::TOKENS * a.x.token;
    }

    DEVICE_MEMBER void fetch_p(u32 buffer, int left) {
#pragma unroll
        for (u32 s = 0; s < S; ++s) {
            const u32 to = address + L::P + buffer + (s * 8 + g) * 32 * B + 8 * q;
            const bool live = (int)(8 * s + g) < left;
            const float* p = a.p + (u64)(end - left + 8 * s + g) * a.columns + 2 * q;
#pragma unroll
            for (u32 b = 0; b < B; ++b) {
                copy_ahead<8>(to + b * 32, p + 8 * b, live && 8 * b + 2 * q < a.columns);
            }
        }
    }

    DEVICE_MEMBER void fetch_besides(int left) {
        const bool live = c0 + lane % U::ROW * U::EACH < a.channels, with_next = a.d_x_next.p, with_li = a.d_li.p || a.d_li_f32.p;
#pragma unroll
        for (u32 s = 0; s < S; ++s) {
            const int some = left - (int)(8 * s);
#pragma unroll
            for (u32 i = 0; i < N; ++i) {
                const u32 to = address + L::D_X_NEXT + (s * N + i) * 8 * 16 * U::ROW;
                const E* from = next + s * 8 * a.d_x_next.token + i * a.d_x_next.stream;
                U::copy(to, from, a.d_x_next.token, some, lane, live && with_next);
            }
            const u32 to = address + L::D_LI;
            if (a.d_li_f32.p) {
                const bool there = c0 + lane % 8 * 4 < a.channels;
                const float* from = (const float*)li + s * 8 * a.d_li_f32.step;
                Units<float>::copy(to + s * 1024, from, a.d_li_f32.step, some, lane, there);
            } else {
                const E* from = (const E*)li + s * 8 * a.d_li.step;
                U::copy(to + s * 8 * 16 * U::ROW, from, a.d_li.step, some, lane, live && with_li);
            }
            // The coefficients of token g: lane q takes what concerns stream q, in an order that keeps the lanes off each other's banks.
            const bool there = (int)g < some;
            const u32 row = L::MIXES + (s * 8 + g) * L::COEFFICIENTS * 4;
            const float* m = mixes + s * 8 * a.mixes.step;
            if (q == 0) copy_ahead<4>(address + row + L::SHRINK * 4, a.shrink + (end - left + 8 * s + g), there);
            if (q < N) {
                copy_ahead<4>(address + row + (L::PRE + q) * 4, m, there && with_li);
#pragma unroll
                for (u32 k = 0; k < N; ++k) {
                    const u32 l = (q + k) % N, at = row + (q * N + l) * 4;
                    if (a.from_to == 2) *(float*)(shared + at) = k == 0 ? 1.0f : 0.0f;
                    else copy_ahead<4>(address + at, m - q + 2 * N + mix_index(N, a.from_to, l, q), there && with_next);
                }
            }
        }
        next += L::TOKENS * a.d_x_next.token;
        li += L::TOKENS * (a.d_li_f32.p ? a.d_li_f32.step * 4 : a.d_li.step * sizeof(E));
        mixes += L::TOKENS * a.mixes.step;
    }

    // φ^T·p: of streams i0 and i0 + 1, tile m of channels, and group s of tokens.
    DEVICE_MEMBER void project(u32 i0, u32 buffer, float (&product)[2][2][S][4]) const {
        const float* p = (const float*)(shared + L::P + buffer);
        // p as B, columns × tokens, in halves.
        u32 px[S][2][B][2];
#pragma unroll
        for (u32 s = 0; s < S; ++s) {
#pragma unroll
            for (u32 b = 0; b < B; ++b) {
#pragma unroll
                for (u32 h = 0; h < 2; ++h) {
                    const u32 token = 8 * s + g / 2 + g % 2 * 4;
                    split_tf32(p[token * 8 * B + 8 * b + 2 * q + h], px[s][0][b][h], px[s][1][b][h]);
                }
            }
        }
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
#pragma unroll
            for (u32 m = 0; m < 2; ++m) {
                u32 hi[B][4];
#pragma unroll
                for (u32 b = 0; b < B; ++b) {
                    float f[4];
                    u32 lo[4];
                    load(fragment(i0 + i, m, b), f);
#pragma unroll
                    for (u32 e = 0; e < 4; ++e) split_tf32(f[e], hi[b][e], lo[e]);
#pragma unroll
                    for (u32 s = 0; s < S; ++s) {
                        mma_tf32(product[i][m][s], lo, px[s][0][b][0], px[s][0][b][1]);
                        mma_tf32(product[i][m][s], hi[b], px[s][1][b][0], px[s][1][b][1]);
                    }
                }
                // The large ones last: what they would cut off the small ones is lost.
#pragma unroll
                for (u32 b = 0; b < B; ++b) {
#pragma unroll
                    for (u32 s = 0; s < S; ++s) mma_tf32(product[i][m][s], hi[b], px[s][0][b][0], px[s][0][b][1]);
                }
            }
        }
    }

    DEVICE_MEMBER void write_d_x(u32 i0, const float (&product)[2][2][S][4], int left, Packed<E, 4> (&kept)[N][S][2]) {
#pragma unroll
        for (u32 s = 0; s < S; ++s) {
#pragma unroll
            for (u32 r = 0; r < 2; ++r) {
                const u32 token = q + 4 * r;
                const bool live = (int)(8 * s + token) < left && c0 + 4 * g < a.channels;
                const float* h = (const float*)(shared + L::MIXES) + (8 * s + token) * L::COEFFICIENTS;
                float next[N][4], li[4];
                if (a.d_li_f32.p) Units<float>::read(shared + L::D_LI + s * 1024, token, g, li);
                else U::read(shared + L::D_LI + s * 8 * 16 * U::ROW, token, g, li);
#pragma unroll
                for (u32 l = 0; l < N; ++l) U::read(shared + L::D_X_NEXT + (s * N + l) * 8 * 16 * U::ROW, token, g, next[l]);
                const float shrink = h[L::SHRINK];
#pragma unroll
                for (u32 k = 0; k < 2; ++k) {
                    const u32 i = i0 + k;
                    float x[4], d[4], mix[N];
                    U::read(shared + L::X + (s * N + i) * 8 * 16 * U::ROW, token, g, kept[i][s][r]);
                    kept[i][s][r].get(x);
                    load(h + i * N, mix);
                    const float pre = h[L::PRE + i];
#pragma unroll
                    for (u32 e = 0; e < 4; ++e) {
                        d[e] = fused(pre, li[e], fused(-shrink, x[e], product[k][e / 2][s][e % 2 * 2 + r]));
#pragma unroll
                        for (u32 l = 0; l < N; ++l) d[e] = fused(mix[l], next[l][e], d[e]);
                    }
                    Packed<O, 4> out;
                    out.set(d);
                    if (live) out.template store<true>(d_x + (8 * s + 4 * r) * a.d_x.token + i * a.d_x.stream, 4);
                }
            }
        }
    }

    // Adds x^T·p.
    DEVICE_MEMBER void add_to(float (&sum)[N][2][B][4], const Packed<E, 4> (&kept)[N][S][2], u32 buffer) const {
        const float* p = (const float*)(shared + L::P + buffer);
        // p as B, tokens × columns, in halves.
        u32 pg[S][2][B][2];
#pragma unroll
        for (u32 s = 0; s < S; ++s) {
#pragma unroll
            for (u32 b = 0; b < B; ++b) {
#pragma unroll
                for (u32 r = 0; r < 2; ++r) split_tf32(p[(8 * s + q + 4 * r) * 8 * B + 8 * b + g], pg[s][0][b][r], pg[s][1][b][r]);
            }
        }
#pragma unroll
        for (u32 i = 0; i < N; ++i) {
            u32 hi[S][2][4], lo[S][2][4];
#pragma unroll
            for (u32 s = 0; s < S; ++s) {
#pragma unroll
                for (u32 r = 0; r < 2; ++r) {
                    float x[4];
                    kept[i][s][r].get(x);
#pragma unroll
                    for (u32 e = 0; e < 4; ++e) {
                        if constexpr (EXACT) hi[s][e / 2][r * 2 + e % 2] = float_to_bits(x[e]);
                        else split_tf32(x[e], hi[s][e / 2][r * 2 + e % 2], lo[s][e / 2][r * 2 + e % 2]);
                    }
                }
            }
#pragma unroll
            for (u32 m = 0; m < 2; ++m) {
#pragma unroll
                for (u32 b = 0; b < B; ++b) {
                    float some[4] = {};
#pragma unroll
                    for (u32 s = 0; s < S; ++s) {
                        if constexpr (!EXACT) mma_tf32(some, lo[s][m], pg[s][0][b][0], pg[s][0][b][1]);
                        mma_tf32(some, hi[s][m], pg[s][1][b][0], pg[s][1][b][1]);
                    }
#pragma unroll
                    for (u32 s = 0; s < S; ++s) mma_tf32(some, hi[s][m], pg[s][0][b][0], pg[s][0][b][1]);
#pragma unroll
                    for (u32 e = 0; e < 4; ++e) sum[i][m][b][e] += some[e];
                }
            }
        }
    }

    DEVICE_MEMBER void write(float* part, const float (&sum)[N][2][B][4]) const {
        const u32 c = c0 + 4 * g;
        const u64 row = (u64)N * a.channels;
#pragma unroll
        for (u32 b = 0; b < B; ++b) {
#pragma unroll
            for (u32 h = 0; h < 2; ++h) {
                const u32 j = 8 * b + 2 * q + h;
#pragma unroll
                for (u32 i = 0; i < N; ++i) {
                    const float v[4] = {sum[i][0][b][h], sum[i][0][b][2 + h], sum[i][1][b][h], sum[i][1][b][2 + h]};
                    if (c < a.channels && j < a.columns) store(part + j * row + (u64)i * a.channels + c, v);
                }
            }
        }
    }
};

template <class E, class O, u32 N, u32 B> DEVICE void project_bwd_mma(const ProjectBoth<E, O>& a) {
    using L = Layout<E, N, B>;
    DYNAMIC_SHARED(char, shared);
    const u32 groups = (a.channels + L::CHANNELS - 1) / L::CHANNELS, index = block_x() * waves() + wave_index();
    const u32 range = index / groups, lane = lane_index(), c0 = index % groups * L::CHANNELS;
    if (range >= a.ranges) return;
    const int tokens = L::TOKENS;
    const u64 first = (u64)range * a.range;
    int left = (int)(first + a.range < a.tokens ? a.range : a.tokens - first);
    char* mine = shared + wave_index() * L::BYTES;
    Warp<E, O, N, B> warp = {a, mine, shared_address(mine), lane, lane / 4, lane % 4, c0, (u32)first + left};
    warp.begin(first);
    warp.fetch_p(0, left);
    copies_end();
    warp.fetch_besides(left);
    warp.fetch_x(left);
    copies_end();
    warp.fetch_p(L::P_BYTES, left - tokens);
    copies_end();
    warp.load_phi();
    float sum[N][2][B][4] = {};
    // p is fetched one turn earlier than the rest, into two buffers, as a turn begins with it.
    u32 buffer = 0;
#pragma unroll 1
    for (; left > 0; left -= tokens, buffer = L::P_BYTES - buffer) {
        Packed<E, 4> x[N][L::S][2];
        copies_wait<2>();
        wave_barrier();
#pragma unroll
        for (u32 i = 0; i < N; i += 2) {
            float product[2][2][L::S][4] = {};
            warp.project(i, buffer, product);
            copies_wait<1>();
            wave_barrier();
            warp.write_d_x(i, product, left, x);
        }
        warp.d_x += L::TOKENS * a.d_x.token;
        wave_barrier();
        warp.fetch_besides(left - tokens);
        warp.fetch_x(left - tokens);
        copies_end();
        warp.add_to(sum, x, buffer);
        wave_barrier();
        warp.fetch_p(buffer, left - 2 * tokens);
        copies_end();
    }
    warp.write(a.parts + (u64)range * a.columns * N * a.channels, sum);
}

template <class E> using ProjectBothSame = ProjectBoth<E, E>;
template <class E> using ProjectBothWide = ProjectBoth<E, float>;

#define MHC_KERNEL_project_bwd_mma(NAME, E, N) \
    MHC_ENTRY_RESIDENT(NAME, 128, 2, ProjectBothSame<E>, project_bwd_mma<E, E, N, (N * (N + 2) + 7) / 8>)
#define MHC_KERNEL_project_bwd_mma_f32(NAME, E, N) \
    MHC_ENTRY_RESIDENT(NAME, 128, 2, ProjectBothWide<E>, project_bwd_mma<E, float, N, (N * (N + 2) + 7) / 8>)
