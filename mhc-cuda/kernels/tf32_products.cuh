// Products of a tile of f32 by φ for clusters that keep φ in registers: TF32 halves of both factors, three products of four.
//
// A slot has rows of 32 channels as copies bring them, [row][stream][token], and half rows of 16 channels are numbered as they lie there.
#pragma once
#include "cluster_layout.cuh"
#include "reduce.cuh"

// A lane's token of the first 8 of a tile, and its column of 8 of φ: such that 8 lanes' pieces of two rows lie in all banks.
DEVICE u32 row_of_lane() { return lane_index() / 8 + lane_index() / 4 % 2 * 4; }

// The part of φ of a multiplying warp: of `count` half rows, from the `first` of the block on, a lane's column of every 8, and channels
// 4·(lane % 4) and the next three.
template <u32 MOST, u32 COLUMNS> struct HalfRows {
    float phi[MOST][COLUMNS / 8][4];
    u32 first, count;

    // Of the `all` of a block. load(v, half): what a lane has of a half row, if it is not zero.
    template <class F> DEVICE_MEMBER void take(u32 all, F load) {
        const u32 each = (all + MULTIPLY - 1) / MULTIPLY;
        first = wave_index() * each;
        count = first < all ? smaller(each, all - first) : 0;
#pragma unroll
        for (u32 b = 0; b < MOST; ++b) {
#pragma unroll
            for (u32 t = 0; t < COLUMNS / 8; ++t) {
#pragma unroll
                for (u32 e = 0; e < 4; ++e) phi[b][t][e] = 0.0f;
            }
            if (b < count) load(phi[b], first + b);
        }
    }
};

// A warp's part of the products of one tile, in parts whose sum they are, and Σx² of a lane's tokens, over the lanes that have them.
template <u32 COLUMNS> struct Products {
    static const u32 TILES = COLUMNS / 8;
    float large[TILES][4] = {}, small[TILES][4] = {}, square[2] = {};

    template <u32 MOST> DEVICE_MEMBER Products(const HalfRows<MOST, COLUMNS>& mine, u32 slot) {
        const u32 token = row_of_lane();
        const auto fetch = [&](float(&x)[2][4], u32 b) {
            const u32 half = mine.first + smaller(b, mine.count - 1);
            const u32 at = slot + half / 2 * ROWS + piece(token, half % 2 * 4 + lane_index() % 4);
            shared_load(x[0], at);
            shared_load(x[1], at + ROWS / 2);
        };
        if (mine.count == 0) return;
        float next[2][4];
        fetch(next, 0);
#pragma unroll
        for (u32 b = 0; b < MOST; ++b) {
            if (b >= mine.count) break;
            float x[2][4];
#pragma unroll
            for (u32 e = 0; e < 8; ++e) x[e / 4][e % 4] = next[e / 4][e % 4];
            fetch(next, b + 1);
            add(mine.phi[b], x);
        }
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            square[h] += shuffle_xor(square[h], 1);
            square[h] += shuffle_xor(square[h], 2);
        }
    }
    DEVICE_MEMBER void add(const float (&phi)[TILES][4], const float (&x)[2][4]) {
#pragma unroll
        for (u32 e = 0; e < 4; e += 2) {
            u32 hi[4], lo[4];
#pragma unroll
            for (u32 k = 0; k < 4; ++k) {
                const float v = x[k % 2][e + k / 2];
                split_tf32(v, hi[k], lo[k]);
                square[k % 2] = fused(v, v, square[k % 2]);
            }
#pragma unroll
            for (u32 t = 0; t < TILES; ++t) {
                u32 phi_hi[2], phi_lo[2];
#pragma unroll
                for (u32 k = 0; k < 2; ++k) {
                    // Split for each tile again: the compiler would keep both parts, and has no registers for them.
                    float v = phi[t][e + k];
                    asm volatile("" : "+f"(v));
                    split_tf32(v, phi_hi[k], phi_lo[k]);
                }
                mma_tf32(small[t], lo, phi_hi[0], phi_hi[1]);
                mma_tf32(large[t], hi, phi_hi[0], phi_hi[1]);
                mma_tf32(small[t], hi, phi_lo[0], phi_lo[1]);
            }
        }
    }
    // Token after token at distances of `step` bytes from `to`, and their squares from `squares`.
    DEVICE_MEMBER void put(u32 to, u32 step, u32 squares, u32 squares_step) const {
        const u32 token = row_of_lane(), q = lane_index() % 4;
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            const u32 row = h * 8 + token;
#pragma unroll
            for (u32 t = 0; t < TILES; ++t) {
                // Columns 2·q and 2·q + 1 of the products, as lanes have them.
                const u32 at = to + row * step + (t * 8 + q) * 4;
                shared_store(at, large[t][h * 2] + small[t][h * 2]);
                shared_store(at + 16, large[t][h * 2 + 1] + small[t][h * 2 + 1]);
            }
            if (q == 0) shared_store(squares + row * squares_step, square[h]);
        }
    }
};
