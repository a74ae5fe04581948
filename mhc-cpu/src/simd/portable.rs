//! Plain Rust: 4 lanes in an array, which is one register of most baselines. The level of last resort, and the plainest statement of what the others must do.

use core::array::from_fn;

use mhc_core::{Element, bf16, f16};

use super::Simd;

#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(never)]
fn outlined<R>(f: impl FnOnce() -> R) -> R {
    f()
}

// SAFETY: needs no instruction beyond the target's baseline; pointers are the caller's promise.
#[allow(clippy::undocumented_unsafe_blocks)]
unsafe impl Simd for Portable {
    type V = [f32; 4];
    const LANES: usize = 4;

    #[inline(always)]
    fn outlined<R>(self, f: impl FnOnce() -> R) -> R {
        outlined(f)
    }
    #[inline(always)]
    fn splat(self, v: f32) -> [f32; 4] {
        [v; 4]
    }
    #[inline(always)]
    fn add(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn max(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    // Two roundings: `mul_add` without the instruction is a call into libm.
    #[inline(always)]
    fn fma(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn select_gt(self, a: [f32; 4], b: [f32; 4], x: [f32; 4], y: [f32; 4]) -> [f32; 4] {
        from_fn(|i| if a[i] > b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    fn round(self, a: [f32; 4]) -> [f32; 4] {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    fn scale2(self, a: [f32; 4], k: [f32; 4]) -> [f32; 4] {
        from_fn(|i| a[i] * f32::from_bits((k[i] as i32 + 127).clamp(0, 255).cast_unsigned() << 23))
    }
    #[inline(always)]
    fn sqrt(self, a: [f32; 4]) -> [f32; 4] {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    fn sum(self, a: [f32; 4]) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }
    #[inline(always)]
    unsafe fn load_f32(self, p: *const f32) -> [f32; 4] {
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> [f32; 4] {
        unsafe { p.cast::<[bf16; 4]>().read_unaligned() }.map(|v| f32::from_bits(u32::from(v.to_bits()) << 16))
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> [f32; 4] {
        unsafe { p.cast::<[f16; 4]>().read_unaligned() }.map(f16::to_f32)
    }
    #[inline(always)]
    unsafe fn store_f32(self, p: *mut f32, v: [f32; 4]) {
        unsafe { p.cast::<[f32; 4]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, v: [f32; 4]) {
        unsafe { p.cast::<[bf16; 4]>().write_unaligned(v.map(bf16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16, v: [f32; 4]) {
        unsafe { p.cast::<[f16; 4]>().write_unaligned(v.map(<f16 as Element>::from_f32)) }
    }
}
