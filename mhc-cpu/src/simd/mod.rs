//! Vectors of f32 with one interface, chosen at run time.
//!
//! A kernel is a [`SimdFn`]: generic over [`Simd`], everything it calls `#[inline(always)]`. [`Level::run`] instantiates it inside a
//! function that carries the `target_feature`s, so that the intrinsics inline. Closures handed to iterators would not be
//! instantiated there; kernels use loops.
//!
//! Tried and rejected: `[f32; 16]` under `target_feature` instead of intrinsics (1.8 x slower in the projection, 6 x in reductions);
//! an AVX512-BF16 level (`vdpbf16ps` needs phi as hi + lo pairs: 2.75 ms against 2.5 ms for shifted bf16 and f32 phi).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(test)]
mod tests;

use mhc_core::{Element, bf16, f16};

/// One instruction set's vectors.
///
/// # Safety
/// A value may exist only where the instruction set does; the methods rely on it.
pub(crate) unsafe trait Simd: Copy + Send + Sync + 'static {
    /// A vector of [`LANES`](Simd::LANES) f32.
    type V: Copy;
    /// Lanes of a vector.
    const LANES: usize;

    fn splat(self, v: f32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a·b + c`, rounded once where the instruction set can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `x` where `a > b`, else `y`.
    fn select_gt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// 1 / a to 1 ulp or so, for a of 2^-126 to 2^126 and infinity; cheaper than a division where the instruction set can.
    #[inline(always)]
    fn recip(self, a: Self::V) -> Self::V {
        self.div(self.splat(1.0), a)
    }
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// `a·2^k` for integral `k` in -126..=127.
    fn scale2(self, a: Self::V, k: Self::V) -> Self::V;
    fn sqrt(self, a: Self::V) -> Self::V;
    /// The sum of the lanes, always in the same order.
    fn sum(self, a: Self::V) -> f32;

    /// # Safety
    /// `p` is readable for `LANES` elements.
    unsafe fn load_f32(self, p: *const f32) -> Self::V;
    /// # Safety
    /// `p` is readable for `LANES` elements.
    unsafe fn load_bf16(self, p: *const bf16) -> Self::V;
    /// Two vectors of 2·`LANES` bf16 in whatever order is cheapest, the one in which [`store_bf16_pair`](Simd::store_bf16_pair) takes them.
    ///
    /// # Safety
    /// `p` is readable for 2·`LANES` elements.
    #[inline(always)]
    unsafe fn load_bf16_pair(self, p: *const bf16) -> [Self::V; 2] {
        // SAFETY: the caller's promise.
        unsafe { [self.load_bf16(p), self.load_bf16(p.add(Self::LANES))] }
    }
    /// The inverse of [`load_bf16_pair`](Simd::load_bf16_pair), past the caches if it is `streamed`.
    ///
    /// # Safety
    /// `p` is writable for 2·`LANES` elements, and if streamed aligned to as many.
    #[inline(always)]
    unsafe fn store_bf16_pair(self, p: *mut bf16, v: [Self::V; 2], streamed: bool) {
        for half in 0..2 {
            // SAFETY: the caller's promise.
            unsafe {
                let p = p.add(half * Self::LANES);
                if streamed { self.stream_bf16(p, v[half]) } else { self.store_bf16(p, v[half]) }
            }
        }
    }
    /// # Safety
    /// `p` is readable for `LANES` elements.
    unsafe fn load_f16(self, p: *const f16) -> Self::V;
    /// # Safety
    /// `p` is writable for `LANES` elements.
    unsafe fn store_f32(self, p: *mut f32, v: Self::V);
    /// # Safety
    /// `p` is writable for `LANES` elements.
    unsafe fn store_bf16(self, p: *mut bf16, v: Self::V);
    /// # Safety
    /// `p` is writable for `LANES` elements.
    unsafe fn store_f16(self, p: *mut f16, v: Self::V);

    /// Transposes the first `LANES` vectors: lane j of vector i becomes lane i of vector j.
    #[inline(always)]
    fn transpose(self, m: &mut [Self::V; 16]) {
        let mut lanes = [0.0; 256];
        for i in 0..Self::LANES {
            let mut row = [0.0; 16];
            // SAFETY: a vector has at most 16 lanes.
            unsafe { self.store_f32(row.as_mut_ptr(), m[i]) };
            for j in 0..Self::LANES {
                lanes[j * Self::LANES + i] = row[j];
            }
        }
        for j in 0..Self::LANES {
            // SAFETY: `LANES²` elements were written.
            m[j] = unsafe { self.load_f32(lanes.as_ptr().add(j * Self::LANES)) };
        }
    }

    /// Calls `f`, which must be `#[inline(always)]`, in a function of its own with the same instruction set. For what many kernels
    /// use and what takes microseconds: it is then compiled once instead of once for every use (the crate built three times slower
    /// without).
    fn outlined<R>(self, f: impl FnOnce() -> R) -> R;

    /// [`store_f32`](Simd::store_f32) past the caches, where the instruction set can; visible to others after [`fence`](Simd::fence).
    ///
    /// # Safety
    /// `p` is writable for `LANES` elements and aligned to as many.
    #[inline(always)]
    unsafe fn stream_f32(self, p: *mut f32, v: Self::V) {
        // SAFETY: the caller's promise.
        unsafe { self.store_f32(p, v) }
    }
    /// # Safety
    /// As [`stream_f32`](Simd::stream_f32).
    #[inline(always)]
    unsafe fn stream_bf16(self, p: *mut bf16, v: Self::V) {
        // SAFETY: the caller's promise.
        unsafe { self.store_bf16(p, v) }
    }
    /// # Safety
    /// As [`stream_f32`](Simd::stream_f32).
    #[inline(always)]
    unsafe fn stream_f16(self, p: *mut f16, v: Self::V) {
        // SAFETY: the caller's promise.
        unsafe { self.store_f16(p, v) }
    }
    /// Makes everything streamed so far visible to whoever this thread synchronises with.
    #[inline(always)]
    fn fence(self) {}

    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    /// e^a to 1 ulp or so: 2^k · P(r) with k = round(a / ln 2), |r| ≤ ln2/2 (Cephes' polynomial). 0 below -87.3, infinite above 88.7.
    #[inline(always)]
    fn exp(self, a: Self::V) -> Self::V {
        let c = |v| self.splat(v);
        // `max(lo, x)` and not `max(x, lo)`: NaN comes through.
        let x = self.min(c(88.722_84), self.max(c(-87.336_55), a));
        let k = self.min(c(127.0), self.round(self.mul(x, c(core::f32::consts::LOG2_E))));
        let r = self.fma(k, c(2.121_944_4e-4), self.fma(k, c(-0.693_359_4), x));
        let mut p = c(1.987_569_1e-4);
        for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
            p = self.fma(p, r, c(coefficient));
        }
        p = self.add(self.fma(self.mul(r, r), p, r), c(1.0));
        let e = self.scale2(p, k);
        let e = self.select_gt(c(-87.336_55), a, c(0.0), e);
        self.select_gt(a, c(88.722_84), c(f32::INFINITY), e)
    }

    /// 1 / (1 + e^-a).
    #[inline(always)]
    fn sigmoid(self, a: Self::V) -> Self::V {
        let one = self.splat(1.0);
        self.div(one, self.add(one, self.exp(self.sub(self.zero(), a))))
    }
}

/// Asks for the cache line at `p`, which need not be readable, to be brought to L2.
#[inline(always)]
pub(crate) fn prefetch_l2(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: part of every x86-64; a prefetch never faults.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T1 }>(p.cast())
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// A kernel, generic over the instruction set.
pub(crate) trait SimdFn {
    type Output;
    /// Must be `#[inline(always)]`, as everything it calls with `s`.
    fn call<S: Simd>(self, s: S) -> Self::Output;
}

/// Elements that vectors load and store.
pub(crate) trait Lane: Element {
    /// # Safety
    /// `p` is readable for `LANES` elements.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V;
    /// # Safety
    /// `p` is writable for `LANES` elements.
    unsafe fn store<S: Simd>(s: S, p: *mut Self, v: S::V);

    /// [`store`](Lane::store) past the caches.
    ///
    /// # Safety
    /// `p` is writable for `LANES` elements and aligned to as many.
    unsafe fn stream<S: Simd>(s: S, p: *mut Self, v: S::V);

    /// Two vectors of 2·`LANES` elements in the order in which [`store_pair`](Lane::store_pair) takes them: for what is done to each
    /// element alone.
    ///
    /// # Safety
    /// `p` is readable for 2·`LANES` elements.
    #[inline(always)]
    unsafe fn load_pair<S: Simd>(s: S, p: *const Self) -> [S::V; 2] {
        // SAFETY: the caller's promise.
        unsafe { [Self::load(s, p), Self::load(s, p.add(S::LANES))] }
    }

    /// The inverse of [`load_pair`](Lane::load_pair), past the caches if it is `streamed`.
    ///
    /// # Safety
    /// `p` is writable for 2·`LANES` elements, and if streamed aligned to as many.
    #[inline(always)]
    unsafe fn store_pair<S: Simd>(s: S, p: *mut Self, v: [S::V; 2], streamed: bool) {
        for half in 0..2 {
            // SAFETY: the caller's promise.
            unsafe {
                let p = p.add(half * S::LANES);
                if streamed { Self::stream(s, p, v[half]) } else { Self::store(s, p, v[half]) }
            }
        }
    }

    /// The first `n < LANES` elements, other lanes 0.
    ///
    /// # Safety
    /// `p` is readable for `n` elements.
    #[inline(always)]
    unsafe fn load_n<S: Simd>(s: S, p: *const Self, n: usize) -> S::V {
        let mut all = [Self::default(); 16];
        // SAFETY: `n < LANES <= 16` elements fit, and the caller vouches for `p`.
        unsafe {
            core::ptr::copy_nonoverlapping(p, all.as_mut_ptr(), n);
            Self::load(s, all.as_ptr())
        }
    }

    /// Stores the first `n < LANES` lanes.
    ///
    /// # Safety
    /// `p` is writable for `n` elements.
    #[inline(always)]
    unsafe fn store_n<S: Simd>(s: S, p: *mut Self, v: S::V, n: usize) {
        let mut all = [Self::default(); 16];
        // SAFETY: a vector has at most 16 lanes, and the caller vouches for `p`.
        unsafe {
            Self::store(s, all.as_mut_ptr(), v);
            core::ptr::copy_nonoverlapping(all.as_ptr(), p, n);
        }
    }
}

macro_rules! lane {
    ($t:ty, $load:ident, $store:ident, $stream:ident $(, $load_pair:ident, $store_pair:ident)?) => {
        impl Lane for $t {
            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
                // SAFETY: the caller's promise is the callee's.
                unsafe { s.$load(p) }
            }
            #[inline(always)]
            unsafe fn store<S: Simd>(s: S, p: *mut Self, v: S::V) {
                // SAFETY: the caller's promise is the callee's.
                unsafe { s.$store(p, v) }
            }
            #[inline(always)]
            unsafe fn stream<S: Simd>(s: S, p: *mut Self, v: S::V) {
                // SAFETY: the caller's promise is the callee's.
                unsafe { s.$stream(p, v) }
            }
            $(
                #[inline(always)]
                unsafe fn load_pair<S: Simd>(s: S, p: *const Self) -> [S::V; 2] {
                    // SAFETY: the caller's promise is the callee's.
                    unsafe { s.$load_pair(p) }
                }
                #[inline(always)]
                unsafe fn store_pair<S: Simd>(s: S, p: *mut Self, v: [S::V; 2], streamed: bool) {
                    // SAFETY: the caller's promise is the callee's.
                    unsafe { s.$store_pair(p, v, streamed) }
                }
            )?
        }
    };
}
lane!(f32, load_f32, store_f32, stream_f32);
lane!(bf16, load_bf16, store_bf16, stream_bf16, load_bf16_pair, store_bf16_pair);
lane!(f16, load_f16, store_f16, stream_f16);

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Level {
    /// Plain Rust, 4 lanes; what the compiler makes of it for the target's baseline.
    Portable,
    /// AVX2, FMA and F16C, 8 lanes.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ, VL, 16 lanes.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON, 4 lanes.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Level {
    /// The levels of this machine, best first.
    pub fn available() -> Vec<Level> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 {
                levels.push(Level::Avx512);
            }
            if avx2 {
                levels.push(Level::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        levels.push(Level::Neon);
        levels.push(Level::Portable);
        levels
    }

    /// `avx512`, `avx2`, `neon`, `portable`.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Level::Neon => "neon",
        }
    }

    /// Runs the kernel on this level.
    ///
    /// # Safety
    /// The level is one of [`available`](Level::available).
    #[inline]
    pub(crate) unsafe fn run<F: SimdFn>(self, f: F) -> F::Output {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            match self {
                Level::Portable => f.call(portable::Portable),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => avx2::run(f),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => avx512::run(f),
                #[cfg(target_arch = "aarch64")]
                Level::Neon => neon::run(f),
            }
        }
    }
}
