//! `rms_norm` and `rms_norm_bwd`: a token at a time, its row in L1 between the sum and the scaling.

use core::{marker::PhantomData, ops::Range};

use mhc_core::{
    DType, Dims,
    ops::{RmsNorm, RmsNormBwd},
};

use super::CpuOp;
use crate::{
    call::{Call, by_dtype},
    reduce::Partition,
    rows,
    simd::{Lane, Simd, SimdFn},
};

/// Tokens of one block.
const GRAIN: usize = 32;

impl CpuOp for RmsNorm {
    unsafe fn launch(&self, c: &Call<'_>) {
        let eps = self.eps as f32;
        by_dtype!(c.act, E => c.tokens(GRAIN, |tokens| c.simd(Forward::<E> { c, eps, tokens, e: PhantomData })));
    }
}

struct Forward<'a, E> {
    c: &'a Call<'a>,
    eps: f32,
    tokens: Range<usize>,
    e: PhantomData<E>,
}

impl<E: Lane> SimdFn for Forward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let c = self.c;
        let (x, w, y, inv_rms) = (c.rows::<E>("x"), c.rows("w"), c.rows::<E>("y"), c.rows::<f32>("inv_rms"));
        for t in self.tokens {
            // SAFETY: `t` is in range, its rows have the shapes of the description, and each token is one block's alone.
            unsafe {
                let (x, w, y) = (x.row(t), w.row(0), y.row_mut(t));
                let r = rows::inv_rms(rows::sum_squares(s, x), x.len(), self.eps);
                rows::scale(s, r, w, x, y);
                if c.has("inv_rms") {
                    *inv_rms.ptr(0, t) = r;
                }
            }
        }
    }
}

impl CpuOp for RmsNormBwd {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        Partition::of(d.tokens).bytes(d.channels)
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        let (partition, len) = (Partition::of(c.d.tokens), c.d.channels);
        // SAFETY: `workspace` has made room for the partial sums of d_w, `len` for each block.
        unsafe {
            by_dtype!(c.act, E => partition.for_each(c, len, |tokens, d_w| {
                c.simd(Backward::<E> { c, tokens, d_w, e: PhantomData });
            }));
            partition.sum(c, len, 0, 1, c.rows("d_w"));
        }
    }
}

struct Backward<'a, E> {
    c: &'a Call<'a>,
    tokens: Range<usize>,
    d_w: &'a mut [f32],
    e: PhantomData<E>,
}

impl<E: Lane> SimdFn for Backward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let c = self.c;
        let (x, w, g) = (c.rows::<E>("x"), c.rows("w"), c.rows::<E>("d_y"));
        let (inv_rms, d_x) = (c.rows::<f32>("inv_rms"), c.rows::<E>("d_x"));
        for t in self.tokens {
            // SAFETY: `t` is in range, its rows have the shapes of the description, and each token is one block's alone.
            unsafe {
                let r = *inv_rms.ptr(0, t);
                rows::rms_norm_bwd(s, r, w.row(0), x.row(t), g.row(t), d_x.row_mut(t), self.d_w);
            }
        }
    }
}
