//! AVX-512: 16 lanes.

use core::arch::x86_64::*;

use mhc_core::{bf16, f16};

use super::{Simd, SimdFn};

/// Proof that AVX-512 F, BW, DQ and VL are there: only [`run`] makes one.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL, FMA and F16C.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(crate) unsafe fn run<F: SimdFn>(f: F) -> F::Output {
    f.call(Avx512(()))
}

/// # Safety
/// As [`run`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
#[inline(never)]
unsafe fn outlined<R>(f: impl FnOnce() -> R) -> R {
    f()
}

// SAFETY of every block below: an `Avx512` exists only inside `run`, where the instructions do; pointers are the caller's promise.
#[allow(clippy::undocumented_unsafe_blocks)]
unsafe impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    fn outlined<R>(self, f: impl FnOnce() -> R) -> R {
        unsafe { outlined(f) }
    }
    #[inline(always)]
    fn splat(self, v: f32) -> __m512 {
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn select_gt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), y, x) }
    }
    #[inline(always)]
    fn recip(self, a: __m512) -> __m512 {
        unsafe {
            // 14 bits and one step of Newton's; infinity would make it NaN and keeps the 0 it has.
            let r = _mm512_rcp14_ps(a);
            let finite = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(a, _mm512_set1_ps(f32::INFINITY));
            _mm512_mask_fmadd_ps(r, finite, _mm512_fnmadd_ps(a, r, _mm512_set1_ps(1.0)), r)
        }
    }
    #[inline(always)]
    fn transpose(self, m: &mut [__m512; 16]) {
        unsafe {
            let mut t = [_mm512_setzero_ps(); 16];
            for i in (0..16).step_by(2) {
                t[i] = _mm512_unpacklo_ps(m[i], m[i + 1]);
                t[i + 1] = _mm512_unpackhi_ps(m[i], m[i + 1]);
            }
            // Vector 4i + j: column 4l + j of rows 4i..4i + 4 in its quarter l.
            for i in (0..16).step_by(4) {
                m[i] = _mm512_shuffle_ps::<0x44>(t[i], t[i + 2]);
                m[i + 1] = _mm512_shuffle_ps::<0xee>(t[i], t[i + 2]);
                m[i + 2] = _mm512_shuffle_ps::<0x44>(t[i + 1], t[i + 3]);
                m[i + 3] = _mm512_shuffle_ps::<0xee>(t[i + 1], t[i + 3]);
            }
            for j in 0..4 {
                let (even_low, odd_low) =
                    (_mm512_shuffle_f32x4::<0x88>(m[j], m[j + 4]), _mm512_shuffle_f32x4::<0xdd>(m[j], m[j + 4]));
                let (even_high, odd_high) = (
                    _mm512_shuffle_f32x4::<0x88>(m[j + 8], m[j + 12]),
                    _mm512_shuffle_f32x4::<0xdd>(m[j + 8], m[j + 12]),
                );
                m[j] = _mm512_shuffle_f32x4::<0x88>(even_low, even_high);
                m[j + 8] = _mm512_shuffle_f32x4::<0xdd>(even_low, even_high);
                m[j + 4] = _mm512_shuffle_f32x4::<0x88>(odd_low, odd_high);
                m[j + 12] = _mm512_shuffle_f32x4::<0xdd>(odd_low, odd_high);
            }
        }
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn scale2(self, a: __m512, k: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(a, k) }
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    unsafe fn load_f32(self, p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> __m512 {
        unsafe {
            let half = _mm256_loadu_si256(p.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
        }
    }
    /// Even and odd elements: two operations instead of two for each.
    #[inline(always)]
    unsafe fn load_bf16_pair(self, p: *const bf16) -> [__m512; 2] {
        unsafe {
            let both = _mm512_loadu_si512(p.cast());
            let odd = _mm512_and_si512(both, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)), _mm512_castsi512_ps(odd)]
        }
    }
    #[inline(always)]
    unsafe fn store_bf16_pair(self, p: *mut bf16, [even, odd]: [__m512; 2], streamed: bool) {
        unsafe {
            let even = _mm512_srli_epi32::<16>(self.round_bf16_up(even));
            let both = _mm512_mask_blend_epi16(0xaaaa_aaaa, even, self.round_bf16_up(odd));
            if streamed { _mm512_stream_si512(p.cast(), both) } else { _mm512_storeu_si512(p.cast(), both) }
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f32(self, p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, v: __m512) {
        unsafe { _mm256_storeu_si256(p.cast(), self.round_bf16(v)) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16, v: __m512) {
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(v)) }
    }
    #[inline(always)]
    unsafe fn stream_f32(self, p: *mut f32, v: __m512) {
        unsafe { _mm512_stream_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn stream_bf16(self, p: *mut bf16, v: __m512) {
        unsafe { _mm256_stream_si256(p.cast(), self.round_bf16(v)) }
    }
    #[inline(always)]
    unsafe fn stream_f16(self, p: *mut f16, v: __m512) {
        unsafe { _mm256_stream_si256(p.cast(), _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(v)) }
    }
    #[inline(always)]
    fn fence(self) {
        unsafe { _mm_sfence() }
    }
}

impl Avx512 {
    /// Rounded to nearest even bf16, each in the upper half of its lane; what is left in the lower halves means nothing.
    #[inline(always)]
    fn round_bf16_up(self, v: __m512) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let u = _mm512_castps_si512(v);
            let down = _mm512_add_epi32(u, _mm512_set1_epi32(0x7fff));
            let odd = _mm512_test_epi32_mask(u, _mm512_set1_epi32(0x1_0000));
            let even = _mm512_mask_add_epi32(down, odd, down, _mm512_set1_epi32(1));
            // Rounding would carry a NaN's mantissa into its exponent: make it a quiet NaN instead.
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            _mm512_mask_or_epi32(even, nan, u, _mm512_set1_epi32(0x0040_0000))
        }
    }

    /// 16 bf16, rounded to nearest even.
    #[inline(always)]
    fn round_bf16(self, v: __m512) -> __m256i {
        // SAFETY: as above.
        unsafe {
            // The upper halves of the lanes, by one permutation: a shift and a narrowing are three operations.
            let upper = _mm512_set_epi64(
                0,
                0,
                0,
                0,
                0x001f_001d_001b_0019,
                0x0017_0015_0013_0011,
                0x000f_000d_000b_0009,
                0x0007_0005_0003_0001,
            );
            _mm512_castsi512_si256(_mm512_permutexvar_epi16(upper, self.round_bf16_up(v)))
        }
    }
}
