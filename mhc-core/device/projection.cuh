// What the kernels of `project` and its gradient take, whichever of them a device runs, and where a row's neighbours lie.
#pragma once
#include "operand.cuh"

// parts [ranges, T, P] and squares [ranges, T] of x, by ranges of `steps` steps of 32 channels.
template <class E> struct ProjectFwd {
    Streams<const E> x;
    Rows<const float> phi;
    const float* weight;
    float* parts;
    float* squares;
    u64 tokens;
    alignas(8) u32 n, channels, columns, steps;
};

// d_x is of type O: E, or f32 where another gradient goes on from it (post_pre_bwd).
template <class E, class O> struct ProjectDx {
    Streams<const E> x;
    Rows<const float> phi;
    const float* weight;
    const float* p;
    const float* shrink;
    Streams<O> d_x;
    // Absent in `project` itself. The gradient of the sub-layer's input is of type E, or f32 where it was computed on the way.
    Rows<const float> mixes;
    Rows<const E> d_li;
    Rows<const float> d_li_f32;
    Streams<const E> d_x_next;
    u64 tokens;
    // from_to, of the n·n block: 0 [to][from], 1 [from][to], 2: H_res is the identity.
    alignas(8) u32 n, channels, columns, from_to;
};

// Both products in one pass: the parts [ranges, P, K] of phi's gradient too, by ranges of `range` tokens.
template <class E, class O> struct ProjectBoth : ProjectDx<E, O> {
    float* parts;
    alignas(8) u32 ranges, range;
};

// Where 8 neighbours of a flattened row lie, which never cross streams, as a row of a stream has a multiple of them.
template <u32 STEP> struct Cursor {
    u64 offset;
    u32 c;

    DEVICE_MEMBER void set(u64 k, u32 channels, u64 stream) {
        c = (u32)(k % channels);
        offset = k / channels * stream + c;
    }
    DEVICE_MEMBER void next(u32 channels, u64 stream) {
        c += STEP;
        offset += STEP;
        while (c >= channels) {
            c -= channels;
            offset += stream - channels;
        }
    }
};
