// sum_rows: the second pass of every weight gradient: adds the partial sums of blocks of tokens, always in the same order.
//
// Math      out[k] = Σ_r parts[r, k]
// Operands  parts [rows, count] f32 in scratch; out: `count` f32 behind each other.
// Mapping   a block takes 32 columns; its 16 groups of 32 threads take rows g, g + 16, ... and are added in the order of g.
// Traffic   4·(rows + 1)·count bytes.
#include "operand.cuh"

struct SumRows {
    const float* parts;
    float* out;
    alignas(8) u64 step;
    alignas(8) u32 rows, count;
};

// Groups, and rows that a thread has on their way at once: a few trips to the cache for hundreds of rows.
static const u32 GROUPS = 16;

DEVICE void sum_rows(const SumRows& a) {
    SHARED float group[GROUPS][32];
    const u32 column = thread_index() % 32, g = thread_index() / 32, k = block_x() * 32 + column;
    float sum = 0.0f;
    if (k < a.count) {
#pragma unroll 8
        for (u32 r = g; r < a.rows; r += GROUPS) sum += a.parts[r * a.step + k];
    }
    group[g][column] = sum;
    barrier();
    if (g == 0 && k < a.count) {
        sum = group[0][column];
#pragma unroll
        for (u32 i = 1; i < GROUPS; ++i) sum += group[i][column];
        a.out[k] = sum;
    }
}

#define MHC_KERNEL_sum_rows(NAME, E, N) MHC_ENTRY(NAME, 32 * GROUPS, SumRows, sum_rows)
