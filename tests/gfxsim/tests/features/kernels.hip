// One kernel for each feature of the hardware that code for it may use. `models.rs` says what each must write.
//
// Every kernel reads a word for each work item from `in`, unless it says otherwise, and is launched with groups of 256.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef u32 u32x4 __attribute__((ext_vector_type(4)));
typedef float f32x4 __attribute__((ext_vector_type(4)));
typedef float f32x8 __attribute__((ext_vector_type(8)));
typedef float f32x16 __attribute__((ext_vector_type(16)));
typedef double f64x4 __attribute__((ext_vector_type(4)));
typedef short s16x4 __attribute__((ext_vector_type(4)));
typedef short s16x8 __attribute__((ext_vector_type(8)));
typedef short s16x16 __attribute__((ext_vector_type(16)));
typedef __bf16 b16x8 __attribute__((ext_vector_type(8)));

#if defined(__GFX9__)
#define WAVE 64
#else
#define WAVE 32
#endif
#define INLINE static inline __attribute__((device, always_inline))
#define LDS static __attribute__((shared))
#define FEATURE(name)                                                              \
    extern "C" __attribute__((global, amdgpu_flat_work_group_size(256, 256))) void \
    name(const u32* __restrict__ in, u32* __restrict__ out, u32 n)
// A feature that takes word `i` of the input, `x`, to word `i` of the output.
#define EACH(name, ...)                         \
    FEATURE(name) {                             \
        const u32 i = item(), t = work_item();  \
        const u32 x = in[i];                    \
        (void)t;                                \
        out[i] = (__VA_ARGS__);                 \
    }
// The same through a statement that ends in a return.
#define EACH_BY(name, ...)                                          \
    INLINE u32 by_##name(const u32* in, u32 i, u32 t, u32 x, u32 n) \
        __VA_ARGS__                                                 \
    FEATURE(name) { out[item()] = by_##name(in, item(), work_item(), in[item()], n); }

INLINE u32 work_item() { return __builtin_amdgcn_workitem_id_x(); }
INLINE u32 item() { return __builtin_amdgcn_workgroup_id_x() * 256 + work_item(); }
INLINE u32 lane() { return work_item() % WAVE; }
INLINE float as_float(u32 u) { return __builtin_bit_cast(float, u); }
INLINE u32 as_bits(float f) { return __builtin_bit_cast(u32, f); }
INLINE void barrier() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

// Lanes.
#define DPP(old, control, rows) __builtin_amdgcn_update_dpp(old, x, control, rows, 0xf, false)
EACH(dpp_quad, DPP(0, 0xb1, 0xf))
EACH(dpp_rotate, DPP(0, 0x128, 0xf))
EACH(dpp_mirror, DPP(0, 0x140, 0xf))
EACH(dpp_half_mirror, DPP(0, 0x141, 0xf))
EACH(dpp_shift_right, DPP(5, 0x111, 0xf))
#if WAVE == 64
EACH(dpp_broadcast15, DPP(7, 0x142, 0xa))
EACH(dpp_broadcast31, DPP(7, 0x143, 0xc))
#else
EACH(dpp_xor, DPP(0, 0x163, 0xf))
EACH(permute_rows, __builtin_amdgcn_permlanex16(x, x, 0x76543210, 0xfedcba98, false, false))
#endif
#if defined(__gfx950__)
EACH_BY(swap_rows, {
    const auto a = __builtin_amdgcn_permlane16_swap(x, x * 3, false, false);
    const auto b = __builtin_amdgcn_permlane32_swap(x, x * 5, false, false);
    return a[0] ^ a[1] * 7 ^ b[0] * 11 ^ b[1] * 13;
})
#endif
EACH(pull, __builtin_amdgcn_ds_bpermute((lane() ^ 5) << 2, x))
EACH(push, __builtin_amdgcn_ds_permute((lane() ^ 9) << 2, x))
EACH(swizzle, __builtin_amdgcn_ds_swizzle(x, 0x401f))
EACH(read_lanes, __builtin_amdgcn_readlane(x, 13) + __builtin_amdgcn_readfirstlane(x))
EACH_BY(ballot, {
#if WAVE == 64
    const u64 odd = __builtin_amdgcn_ballot_w64(x & 1);
#else
    const u64 odd = __builtin_amdgcn_ballot_w32(x & 1);
#endif
    return (u32)odd ^ (u32)(odd >> 32) ^ __builtin_popcountll(odd);
})

// The workgroup's memory.
EACH_BY(lds_reversed, {
    LDS u32 words[256];
    words[t] = x;
    barrier();
    return words[255 - t];
})
EACH_BY(lds_vectors, {
    LDS u32x4 vectors[256];
    vectors[t] = u32x4{x, x + 1, x + 2, x + 3};
    barrier();
    const u32x4 v = vectors[t ^ 77];
    return v[0] ^ v[1] * 3 ^ v[2] * 5 ^ v[3] * 7;
})
EACH_BY(lds_pairs, {
    LDS u32 words[1024];
    words[t] = x;
    words[t + 512] = x * 3;
    barrier();
    return words[t ^ 1] + words[(t ^ 1) + 512] * 5;
})
EACH_BY(lds_sums, {
    LDS u32 sums[8];
    if (t < 8) sums[t] = 0;
    barrier();
    __hip_atomic_fetch_add(&sums[x & 7], x, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP);
    barrier();
    return sums[t & 7];
})
EACH_BY(lds_float_sums, {
    LDS float sums[8];
    if (t < 8) sums[t] = 0;
    barrier();
    __hip_atomic_fetch_add(&sums[t & 7], (float)(x & 15), __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP);
    barrier();
    return as_bits(sums[t & 7]);
})
EACH_BY(flat, {
    LDS u32 words[256];
    words[t] = x * 3;
    barrier();
    const u32* p = x & 1 ? (const u32*)&words[t ^ 1] : &in[i];
    return *(volatile const u32*)p;
})
#if defined(__gfx942__) || defined(__gfx950__)
typedef __attribute__((address_space(3))) u32 lds_word;
typedef __attribute__((address_space(1))) u32 global_word;
#define TO_LDS(bytes, words, offset)                                                                               \
    __builtin_amdgcn_global_load_lds((global_word*)(u32*)(in + i), (lds_word*)(words + (t & ~63u) * (bytes / 4)), \
                                     bytes, offset, 0);                                                           \
    __builtin_amdgcn_s_waitcnt(0);                                                                                 \
    barrier()
EACH_BY(load_to_lds, {
    LDS u32 words[256];
    TO_LDS(4, words, 0);
    return words[t ^ 3];
})
#endif
#if defined(__gfx950__)
// Overlapping vectors: item i loads words i to i + 3 of the input, which has three more.
EACH_BY(load_vectors_to_lds, {
    LDS u32 words[1024];
    TO_LDS(16, words, 0);
    return words[4 * (t ^ 3)] ^ words[4 * (t ^ 3) + 3] * 3;
})
#endif

// Atomics of global memory. The output begins as zeros.
FEATURE(count) { __hip_atomic_fetch_add(&out[in[item()] & 31], 1u, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT); }
FEATURE(largest) {
    __hip_atomic_fetch_max(&out[in[item()] & 31], in[item()], __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}
FEATURE(ticket) {
    const u32 k = __hip_atomic_fetch_add(&out[0], 1u, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
    out[1 + k] = 1;
}
FEATURE(compare_swap) {
    u32* p = &out[in[item()] & 31];
    u32 old = *p;
    while (!__hip_atomic_compare_exchange_strong(p, &old, old + 3, __ATOMIC_RELAXED, __ATOMIC_RELAXED,
                                                 __HIP_MEMORY_SCOPE_AGENT)) {
    }
}
FEATURE(last_one) {
    const u32 i = item();
    out[i] = in[i];
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "agent");
    const u32 k = __hip_atomic_fetch_add(&out[n], 1u, __ATOMIC_ACQ_REL, __HIP_MEMORY_SCOPE_AGENT);
    if (k == n - 1) out[n + 1] = 77;
}

// Numbers.
EACH(divide, as_bits((float)(int)x / ((float)(int)(x >> 3) + 0.5f)))
EACH_BY(divide_extremes, {
    const u32 scale = (x >> 8 & 3) * 60;
    const float a = as_float((x & 0x807fffff) | (27 + scale) << 23);
    const float b = as_float((x * 2654435761u & 0x807fffff) | (227 - scale) << 23);
    return as_bits(a / b);
})
EACH_BY(divide_doubles, {
    const double q = ((double)x + 0.25) / ((double)(x >> 5) + 1.5);
    const u64 bits = __builtin_bit_cast(u64, q);
    return (u32)bits ^ (u32)(bits >> 32);
})
EACH(square_root, as_bits(__builtin_sqrtf((float)x)))
EACH(divide_integers, x / (n + 2) + x % ((x >> 20) + 1))
EACH_BY(wide, {
    u64 a = (u64)x * x + 12345;
    a ^= a >> 29;
    a *= 0xbf58476d1ce4e5b9ull;
    return (u32)(a >> 32) ^ (u32)(a >> 7);
})
EACH_BY(halves, {
    _Float16 h = (_Float16)((float)(x & 1023) * 0.37f);
    h = h * h + (_Float16)1.0f;
    return __builtin_bit_cast(u16, h);
})
EACH_BY(brains, {
    const __bf16 b = (__bf16)as_float((x & 0x3fffffff) | 0x20000000);
    return __builtin_bit_cast(u16, b);
})
EACH_BY(approximations, {
    const float v = (float)(x & 255) * 0.01f;
    return as_bits(__builtin_amdgcn_exp2f(v) + __builtin_amdgcn_logf(v + 1.0f) + __builtin_amdgcn_rsqf(v + 1.0f) +
                   __builtin_amdgcn_rcpf(v + 2.0f));
})
EACH(bytes_and_middle, as_bits(__builtin_amdgcn_fmed3f((float)(int)x, -100.0f, 1e6f)) ^
                           __builtin_amdgcn_perm(x, x + 7, 0x01060205) ^ __builtin_amdgcn_alignbyte(x, x + 3, 1))

// Control.
EACH_BY(collatz, {
    u32 v = x & 0xffff;
    u32 steps = 0;
    while (v > 1 && steps < 200) {
        v = v & 1 ? 3 * v + 1 : v >> 1;
        ++steps;
    }
    return steps;
})
EACH_BY(choose, {
    switch (x & 7) {
    case 0: return x * 3;
    case 1: return x ^ 0x55;
    case 2: return x >> 3;
    case 5: return x + n;
    case 6: return ~x;
    default: return 9;
    }
})
EACH_BY(own_memory, {
    u32 own[16];
    for (u32 k = 0; k < 16; ++k) own[k] = x * (k + 1);
    for (u32 k = 0; k < 4; ++k) {
        const u32 at = x >> (4 * k) & 15;
        own[at] ^= own[15 - at] + k;
    }
    u32 sum = 0;
    for (u32 k = 0; k < n; ++k) sum = sum * 31 + own[k & 15];
    return sum;
})
EACH_BY(clock, {
    __builtin_amdgcn_s_sleep(1);
    return x + (u32)(__builtin_readcyclecounter() >> 63);
})

// Loads and stores.
EACH(narrow_loads, ((const u8*)in)[4 * i + 1] + ((const u16*)in)[2 * i + 1] * 7 + (u32)((const signed char*)in)[4 * i + 3])
FEATURE(narrow_stores) {
    const u32 i = item();
    ((u16*)out)[2 * i] = in[i] >> 3;
    ((u8*)out)[4 * i + 2] = in[i] >> 9;
    ((u8*)out)[4 * i + 3] = 0x5a;
}
EACH_BY(vector_loads, {
    const u32x4 v = ((const u32x4*)in)[i >> 2];
    return v[i & 3] + v[(i + 1) & 3];
})
FEATURE(streamed) {
    __builtin_nontemporal_store(__builtin_nontemporal_load(in + item()) + 1, out + item());
}
FEATURE(copied_by_vectors) { ((u32x4*)out)[item()] = ((const u32x4*)in)[item()]; }

// Matrices: A row-major, B row-major behind it, both bf16; the first wave alone writes the product, f32, row-major.
#define MATRIX(name, k, ...)                                                 \
    FEATURE(name) {                                                          \
        if (work_item() >= WAVE) return;                                     \
        const u16 *A = (const u16*)in, *B = A + (k) * ROWS(k);               \
        const u32 l = lane();                                                \
        float* D = (float*)out;                                              \
        __VA_ARGS__                                                          \
    }
#define ROWS(k) ((k) == 8 ? 32 : 16)
#define SINGLE(bits) as_float((u32)(bits) << 16)
#if WAVE == 64
MATRIX(mfma_16x16x16, 16, {
    s16x4 a, b;
    for (u32 k = 0; k < 4; ++k) {
        a[k] = A[l % 16 * 16 + l / 16 * 4 + k];
        b[k] = B[(l / 16 * 4 + k) * 16 + l % 16];
    }
    f32x4 d = {0, 0, 0, 0};
    d = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(a, b, d, 0, 0, 0);
    for (u32 k = 0; k < 4; ++k) D[(l / 16 * 4 + k) * 16 + l % 16] = d[k];
})
MATRIX(mfma_32x32x8, 8, {
    s16x4 a, b;
    for (u32 k = 0; k < 4; ++k) {
        a[k] = A[l % 32 * 8 + l / 32 * 4 + k];
        b[k] = B[(l / 32 * 4 + k) * 32 + l % 32];
    }
    f32x16 d;
    for (u32 k = 0; k < 16; ++k) d[k] = 0;
    d = __builtin_amdgcn_mfma_f32_32x32x8bf16_1k(a, b, d, 0, 0, 0);
    for (u32 k = 0; k < 16; ++k) D[(k % 4 + l / 32 * 4 + k / 4 * 8) * 32 + l % 32] = d[k];
})
MATRIX(mfma_singles, 16, {
    f32x4 d = {0, 0, 0, 0};
    for (u32 s = 0; s < 4; ++s) {
        const float a = SINGLE(A[l % 16 * 16 + s * 4 + l / 16]);
        const float b = SINGLE(B[(s * 4 + l / 16) * 16 + l % 16]);
        d = __builtin_amdgcn_mfma_f32_16x16x4f32(a, b, d, 0, 0, 0);
    }
    for (u32 k = 0; k < 4; ++k) D[(l / 16 * 4 + k) * 16 + l % 16] = d[k];
})
MATRIX(mfma_doubles, 16, {
    f64x4 d = {0, 0, 0, 0};
    for (u32 s = 0; s < 4; ++s) {
        const double a = SINGLE(A[l % 16 * 16 + s * 4 + l / 16]);
        const double b = SINGLE(B[(s * 4 + l / 16) * 16 + l % 16]);
        d = __builtin_amdgcn_mfma_f64_16x16x4f64(a, b, d, 0, 0, 0);
    }
    for (u32 k = 0; k < 4; ++k) D[(k * 4 + l / 16) * 16 + l % 16] = (float)d[k];
})
#if defined(__gfx950__)
MATRIX(mfma_16x16x32, 32, {
    s16x8 a, b;
    for (u32 k = 0; k < 8; ++k) {
        a[k] = A[l % 16 * 32 + l / 16 * 8 + k];
        b[k] = B[(l / 16 * 8 + k) * 16 + l % 16];
    }
    f32x4 d = {0, 0, 0, 0};
    d = __builtin_amdgcn_mfma_f32_16x16x32_bf16(__builtin_bit_cast(b16x8, a), __builtin_bit_cast(b16x8, b), d, 0, 0, 0);
    for (u32 k = 0; k < 4; ++k) D[(l / 16 * 4 + k) * 16 + l % 16] = d[k];
})
#endif
#else
MATRIX(wmma_16x16x16, 16, {
    s16x16 a, b;
    for (u32 k = 0; k < 16; ++k) {
        a[k] = A[l % 16 * 16 + k];
        b[k] = B[k * 16 + l % 16];
    }
    f32x8 d;
    for (u32 k = 0; k < 8; ++k) d[k] = 0;
    d = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(a, b, d);
    for (u32 k = 0; k < 8; ++k) D[(2 * k + l / 16) * 16 + l % 16] = d[k];
})
#endif

// Mistakes, which must be seen.
FEATURE(reads_behind) { out[item()] = in[item() + 4 * n]; }
FEATURE(writes_behind) { out[item() + 1] = in[item()]; }
EACH_BY(reads_lds_too_far, {
    LDS u32 words[256];
    words[t] = x;
    barrier();
    return *(volatile u32*)&words[t + n * 64];
})
EACH_BY(forgets_barrier, {
    LDS u32 words[256];
    words[t] = x;
    return *(volatile u32*)&words[255 - t];
})
#if defined(__gfx942__) || defined(__gfx950__)
EACH(eight_bits, __builtin_amdgcn_cvt_pk_fp8_f32((float)(x & 63), 1.0f, 0, false))
#endif
