// Products that a group of four warps starts and that run by themselves (wgmma, compute capability 9.0 alone).
//
// D [64, 80] += A [64, 16]·B [16, 80]. A and the transpose of B are rows of 64 numbers of 16 bits in shared memory, 128 bytes each, whose
// 16-byte pieces are permuted by the row, as tensor copies leave them, in groups of 8 rows that begin at multiples of 1024 bytes. Of D,
// warp w has rows 16·w to 16·w + 15, as mma.cuh says: element 4·t + e is element e of the tile of columns 8·t to 8·t + 7.
#pragma once
#include "prelude.cuh"

// Where 16 bytes of a row are among rows of 128.
DEVICE u32 permuted(u32 row, u32 piece) { return row * 128 + ((piece ^ (row & 7)) << 4); }

// What an instruction wants to know of rows at `address`: that groups of 8 of them are 1024 bytes apart, and how pieces are permuted. 16
// numbers further along all rows is 2 more.
DEVICE u64 rows_at(u32 address) { return 1ull << 62 | 64ull << 32 | 1ull << 16 | address >> 4; }

// Orders what this thread did with the registers of D before the products that follow.
DEVICE void products_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Ends a group of products.
DEVICE void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until all are done.
DEVICE void products_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

// D = A·B, plus D if `add`.
DEVICE void product(float (&d)[40], u64 a, u64 b, u32 add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.u32 p, %42, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,"
        "%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39"
        "}, %40, %41, p, 1, 1, 0, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]),
          "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]),
          "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),
          "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
          "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
          "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
          "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
        : "l"(a), "l"(b), "r"(add)
        : "memory");
}
