//! `collapse` and `collapse_bwd`: every stream with the same weight.

use core::ops::Range;

use mhc_core::{
    MAX_STREAMS,
    ops::{Collapse, CollapseBwd, collapse::weight},
};

use super::{CpuOp, expand};
use crate::{
    call::{Call, Rows, by_dtype},
    rows,
    simd::{Lane, Simd, SimdFn},
};

/// Tokens of one block.
const GRAIN: usize = 16;

impl CpuOp for Collapse {
    unsafe fn launch(&self, c: &Call<'_>) {
        let n = c.d.streams;
        let weight = weight(self.mean, n) as f32;
        by_dtype!(c.act, E => c.tokens(GRAIN, |tokens| {
            c.simd(Weighted { shape: (1, n), weight, from: c.rows::<E>("x"), to: c.rows::<E>("h"), tokens });
        }));
    }
}

impl CpuOp for CollapseBwd {
    unsafe fn launch(&self, c: &Call<'_>) {
        let n = c.d.streams;
        if !self.mean {
            // SAFETY: the description's shapes.
            return by_dtype!(c.act, E => unsafe { expand::copies::<E>(c, "d_h", "d_x") });
        }
        let weight = weight(self.mean, n) as f32;
        by_dtype!(c.act, E => c.tokens(GRAIN, |tokens| {
            c.simd(Weighted { shape: (n, 1), weight, from: c.rows::<E>("d_h"), to: c.rows::<E>("d_x"), tokens });
        }));
    }
}

/// Every output row of a token as the sum of its input rows, all with one weight. `shape` counts output and input rows, one of them 1.
pub(super) struct Weighted<'a, E> {
    pub shape: (usize, usize),
    pub weight: f32,
    pub from: Rows<'a, E>,
    pub to: Rows<'a, E>,
    pub tokens: Range<usize>,
}

impl<E: Lane> SimdFn for Weighted<'_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let weights = [self.weight; MAX_STREAMS];
        for t in self.tokens {
            // SAFETY: `t` is in range, and each token is one block's alone. An operand `[T, C]` has one row for each token, which
            // `at` presents as the first of rows that are never reached.
            unsafe { rows::mix(s, self.shape, &weights, self.from.at(t), None, self.to.at(t)) };
        }
    }
}
