// What prelude.cuh needs, on the host: a block's threads are fibers that run one after another, in an order that changes from round
// to round, until each waits at a barrier or a shuffle. Included only where MHC_EMU is defined; MHC_WAVE comes from the command line.
//
// Found here: reads and writes outside of operands, scratch and shared memory (ASan), undefined arithmetic, misaligned vectors and
// mistyped arguments (UBSan), barriers that not every thread reaches, shuffles that not every lane reaches, sums that depend on the
// order of threads. Not found: what the device's compiler does, and memory ordering between blocks.
#pragma once

namespace emu {

struct Index {
    u32 thread, threads, block[3], blocks[3];
};
extern Index index;
extern void* dynamic_shared;

void block_barrier();
void wave_barrier();
// Every lane gives a value and gets that of lane `from` of its wave.
float exchange(float value, u32 from);

}  // namespace emu

#define DEVICE static inline
#define DEVICE_MEMBER inline
#define SHARED static
#define DYNAMIC_SHARED(type, name) type* const name = (type*)emu::dynamic_shared
#define MHC_ENTRY(NAME, THREADS, ARGS, ...)                                        \
    extern "C" void NAME(const void* cells) { __VA_ARGS__(*(const ARGS*)cells); } \
    extern "C" const u64 NAME##_bytes = sizeof(ARGS);                              \
    extern "C" const u64 NAME##_threads = THREADS;
#define MHC_ENTRY_RESIDENT(NAME, THREADS, BLOCKS, ARGS, ...) MHC_ENTRY(NAME, THREADS, ARGS, __VA_ARGS__)

DEVICE u32 thread_index() { return emu::index.thread; }
DEVICE u32 threads() { return emu::index.threads; }
DEVICE u32 block_x() { return emu::index.block[0]; }
DEVICE u32 block_y() { return emu::index.block[1]; }
DEVICE u32 block_z() { return emu::index.block[2]; }
DEVICE u32 blocks_x() { return emu::index.blocks[0]; }
DEVICE u32 blocks_y() { return emu::index.blocks[1]; }
DEVICE u32 blocks_z() { return emu::index.blocks[2]; }
DEVICE void barrier() { emu::block_barrier(); }
DEVICE void wave_barrier() { emu::wave_barrier(); }
DEVICE float bits_to_float(u32 u) { return __builtin_bit_cast(float, u); }
DEVICE u32 float_to_bits(float f) { return __builtin_bit_cast(u32, f); }
DEVICE double bits_to_double(u64 u) { return __builtin_bit_cast(double, u); }
DEVICE float shuffle_xor(float v, u32 mask) { return emu::exchange(v, thread_index() % MHC_WAVE ^ mask); }
DEVICE float shuffle(float v, u32 lane) { return emu::exchange(v, lane % MHC_WAVE); }
DEVICE float square_root(float v) { return __builtin_sqrtf(v); }
DEVICE float reciprocal(float v) { return 1.0f / v; }
DEVICE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEVICE float nearest_integer(float v) { return __builtin_rintf(v); }
DEVICE u16 float_to_half(float f) { return __builtin_bit_cast(u16, (_Float16)f); }
DEVICE float half_to_float(u16 h) { return (float)__builtin_bit_cast(_Float16, h); }
DEVICE u16 float_to_brain(float f) {
    const u32 u = float_to_bits(f);
    return f != f ? (u16)(u >> 16 | 0x40) : (u16)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
