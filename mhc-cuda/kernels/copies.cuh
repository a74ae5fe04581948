// Copies from memory to shared memory that run by themselves (cp.async, compute capability 8.0 and above), loads with a hint, and
// barriers of some of a block's warps. Shared memory is named by 32-bit addresses here, as the instructions want it.
#pragma once
#include "vector.cuh"

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Begins to copy BYTES, 4, 8 or 16, from a multiple of as many; unless `live` nothing is read, and zeros are written. 16 bytes bring
// the 128 around them into the second cache: neighbours of a row are copied by other warps soon, and memory likes to be read in lines
// (project_bwd_mma at T = 16384, C = 4096, whose warps read 64 bytes of a row: 719 µs without, 642 with, 641 with 256).
template <u32 BYTES> DEVICE void copy_ahead(u32 to, const void* from, bool live) {
    const u32 bytes = live ? BYTES : 0;
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(BYTES), "r"(bytes) : "memory");
    }
}

// Ends a group of copies.
DEVICE void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until this thread's copies are there, but for those of its last LEFT groups.
template <u32 LEFT> DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// 16 bytes at a time into registers, and the 256 around them into the second cache: for rows of which the other lines are wanted next.
template <class E, u32 V> DEVICE void load_lines(Packed<E, V>& to, const E* from) {
    static_assert(Packed<E, V>::COUNT % 4 == 0, "whole instructions");
#pragma unroll
    for (u32 i = 0; i < Packed<E, V>::COUNT; i += 4) {
        asm volatile("ld.global.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to.w[i]), "=r"(to.w[i + 1]), "=r"(to.w[i + 2]), "=r"(to.w[i + 3])
                     : "l"(from + i * Packed<E, V>::PER));
    }
}

// 16 bytes that nobody here reads again. The compiler may take four instructions, each of which touches every sector of a row.
DEVICE void global_store(void* p, const u32 (&v)[4]) {
    asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]) : "memory");
}

// `count` threads of the block meet at barrier `id`; those of `named_arrive` do not wait.
DEVICE void named_arrive(u32 id, u32 count) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(count) : "memory"); }
DEVICE void named_sync(u32 id, u32 count) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(count) : "memory"); }
