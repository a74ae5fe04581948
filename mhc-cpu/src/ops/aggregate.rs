//! `aggregate` and `aggregate_bwd`: one pass over the streams, a token at a time.

use core::{marker::PhantomData, ops::Range};

use mhc_core::ops::{Aggregate, AggregateBwd};

use super::CpuOp;
use crate::{
    call::{Call, by_dtype},
    rows,
    simd::{Lane, Simd, SimdFn},
};

/// Tokens of one block.
const GRAIN: usize = 16;

impl CpuOp for Aggregate {
    unsafe fn launch(&self, c: &Call<'_>) {
        by_dtype!(c.act, E => c.tokens(GRAIN, |tokens| c.simd(Forward::<E> { c, tokens, e: PhantomData })));
    }
}

struct Forward<'a, E> {
    c: &'a Call<'a>,
    tokens: Range<usize>,
    e: PhantomData<E>,
}

impl<E: Lane> SimdFn for Forward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let (c, n) = (self.c, self.c.d.streams);
        let (x, mixes, layer_input) = (c.rows::<E>("x"), c.rows("mixes"), c.rows::<E>("layer_input"));
        for t in self.tokens {
            // SAFETY: `t` is in range, its rows have the shapes of the description, and each token is one block's alone.
            unsafe { rows::mix(s, (1, n), &mixes.row(t)[..n], x.at(t), None, layer_input.one(t)) };
        }
    }
}

impl CpuOp for AggregateBwd {
    unsafe fn launch(&self, c: &Call<'_>) {
        by_dtype!(c.act, E => c.tokens(GRAIN, |tokens| c.simd(Backward::<E> { c, tokens, e: PhantomData })));
    }
}

struct Backward<'a, E> {
    c: &'a Call<'a>,
    tokens: Range<usize>,
    e: PhantomData<E>,
}

impl<E: Lane> SimdFn for Backward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let (c, n) = (self.c, self.c.d.streams);
        let (x, g, d_x) = (c.rows::<E>("x"), c.rows::<E>("d_layer_input"), c.outputs::<E>("d_x"));
        let (mixes, d_mixes) = (c.rows("mixes"), c.rows("d_mixes"));
        for t in self.tokens {
            // SAFETY: `t` is in range, its rows have the shapes of the description, and each token is one block's alone.
            unsafe {
                let (g, d_m) = (g.one(t), d_mixes.row_mut(t));
                rows::mix(s, (n, 1), &mixes.row(t)[..n], g, None, d_x.at(t));
                rows::dots(s, (n, 1), x.at(t), g, d_m);
                d_m[n..].fill(0.0);
            }
        }
    }
}
