// Operands as kernels get them: an address and the distances, in elements, between neighbours along all but the last axis. An absent
// operand has address 0.
#pragma once
#include "prelude.cuh"

// Rows along the last axis: [n, C] of one token, or [T, C], [T, n(n+2)], [n(n+2), K].
template <class E> struct Rows {
    E* p;
    u64 step;
    DEVICE_MEMBER E* at(u64 row) const { return p + row * step; }
};

// [T, n, C].
template <class E> struct Streams {
    E* p;
    u64 token, stream;
    DEVICE_MEMBER Rows<E> at(u64 t) const { return {p + t * token, stream}; }
};

// The number of streams: N where it is known at compile time, else the argument.
template <u32 N> DEVICE u32 streams(u32 n) { return N ? N : n; }

// Position in the n·n block of the weight with which stream `from` enters stream `to`.
DEVICE u32 mix_index(u32 n, u32 from_to, u32 to, u32 from) { return from_to ? from * n + to : to * n + from; }
