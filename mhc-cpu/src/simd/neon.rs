//! NEON: 4 lanes. f16 goes through scalars, as its vector conversions are not in stable Rust for every target.

use core::arch::aarch64::*;

use mhc_core::{bf16, f16};

use super::{Simd, SimdFn};

/// Proof that NEON is there: only [`run`] makes one.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

/// # Safety
/// The machine has NEON, as every aarch64 machine has.
#[target_feature(enable = "neon")]
pub(crate) unsafe fn run<F: SimdFn>(f: F) -> F::Output {
    f.call(Neon(()))
}

/// # Safety
/// As [`run`].
#[target_feature(enable = "neon")]
#[inline(never)]
unsafe fn outlined<R>(f: impl FnOnce() -> R) -> R {
    f()
}

// SAFETY of every block below: a `Neon` exists only inside `run`, where the instructions do; pointers are the caller's promise.
#[allow(clippy::undocumented_unsafe_blocks, unused_unsafe)]
unsafe impl Simd for Neon {
    type V = float32x4_t;
    const LANES: usize = 4;

    #[inline(always)]
    fn outlined<R>(self, f: impl FnOnce() -> R) -> R {
        unsafe { outlined(f) }
    }
    #[inline(always)]
    fn splat(self, v: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(v) }
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        self.select_gt(a, b, a, b)
    }
    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        self.select_gt(b, a, a, b)
    }
    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    fn select_gt(self, a: float32x4_t, b: float32x4_t, x: float32x4_t, y: float32x4_t) -> float32x4_t {
        unsafe { vbslq_f32(vcgtq_f32(a, b), x, y) }
    }
    #[inline(always)]
    fn round(self, a: float32x4_t) -> float32x4_t {
        unsafe { vrndnq_f32(a) }
    }
    #[inline(always)]
    fn scale2(self, a: float32x4_t, k: float32x4_t) -> float32x4_t {
        unsafe {
            let exponent = vaddq_s32(vcvtnq_s32_f32(k), vdupq_n_s32(127));
            vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
        }
    }
    #[inline(always)]
    fn sqrt(self, a: float32x4_t) -> float32x4_t {
        unsafe { vsqrtq_f32(a) }
    }
    #[inline(always)]
    fn sum(self, a: float32x4_t) -> f32 {
        unsafe { vaddvq_f32(a) }
    }
    #[inline(always)]
    unsafe fn load_f32(self, p: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> float32x4_t {
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> float32x4_t {
        let wide = unsafe { p.cast::<[f16; 4]>().read_unaligned() }.map(f16::to_f32);
        unsafe { vld1q_f32(wide.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn store_f32(self, p: *mut f32, v: float32x4_t) {
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, v: float32x4_t) {
        unsafe {
            let u = vreinterpretq_u32_f32(v);
            let odd = vandq_u32(vshrq_n_u32::<16>(u), vdupq_n_u32(1));
            let even = vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
            // Rounding would carry a NaN's mantissa into its exponent: make it a quiet NaN instead.
            let quiet = vorrq_u32(u, vdupq_n_u32(0x0040_0000));
            let rounded = vbslq_u32(vceqq_f32(v, v), even, quiet);
            vst1_u16(p.cast(), vshrn_n_u32::<16>(rounded));
        }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16, v: float32x4_t) {
        let mut wide = [0f32; 4];
        unsafe {
            vst1q_f32(wide.as_mut_ptr(), v);
            p.cast::<[f16; 4]>().write_unaligned(wide.map(f16::from_f32));
        }
    }
}
