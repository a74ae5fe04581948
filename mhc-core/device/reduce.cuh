// Sums over a wave and over a block, always in the same order.
#pragma once
#include "prelude.cuh"

static const u32 MAX_WAVES = 1024 / MHC_WAVE;

DEVICE u32 lane_index() { return thread_index() % MHC_WAVE; }
DEVICE u32 wave_index() { return thread_index() / MHC_WAVE; }
DEVICE u32 waves() { return threads() / MHC_WAVE; }

// The sum over the wave, in every lane.
DEVICE float wave_sum(float v) {
#pragma unroll
    for (u32 m = MHC_WAVE / 2; m > 0; m /= 2) v += shuffle_xor(v, m);
    return v;
}

template <u32 HALF, u32 M> DEVICE void fold(float (&v)[M], u32 lane) {
    if constexpr (HALF > 0) {
#pragma unroll
        for (u32 k = 0; k < HALF; ++k) {
            const float keep = lane & HALF ? v[k + HALF] : v[k], give = lane & HALF ? v[k] : v[k + HALF];
            v[k] = keep + shuffle_xor(give, HALF);
        }
        fold<HALF / 2>(v, lane);
    }
}

// The sums of M values over the wave: lane l < M ends with the sum of value l. Each exchange halves the number of values that a lane
// still carries, so that M values cost about M shuffles, not 5·M.
template <u32 M> DEVICE float wave_sums(float (&v)[M]) {
    static_assert((M & (M - 1)) == 0 && M <= MHC_WAVE, "a power of two, one value a lane");
    fold<M / 2>(v, lane_index());
    float sum = v[0];
#pragma unroll
    for (u32 m = M; m < MHC_WAVE; m *= 2) sum += shuffle_xor(sum, m);
    return sum;
}

// The sum over the block, in every thread. `scratch` holds MAX_WAVES floats that nothing else uses until the next barrier but one.
DEVICE float block_sum(float v, float* scratch) {
    v = wave_sum(v);
    if (lane_index() == 0) scratch[wave_index()] = v;
    barrier();
    float sum = 0.0f;
    for (u32 w = 0; w < waves(); ++w) sum += scratch[w];
    barrier();
    return sum;
}

// The sums of M values over the block: thread i < M ends with the sum of value i; `scratch` holds MAX_WAVES·M floats.
template <u32 M> DEVICE float block_sums(float (&v)[M], float* scratch) {
    const float mine = wave_sums(v);
    if (lane_index() < M) scratch[wave_index() * M + lane_index()] = mine;
    barrier();
    float sum = 0.0f;
    if (thread_index() < M) {
        for (u32 w = 0; w < waves(); ++w) sum += scratch[w * M + thread_index()];
    }
    barrier();
    return sum;
}
