//! Mixing coefficients of many tokens: what `pre`, `post_pre`, the layers and `coefficients` itself are made of.

use core::ops::Range;

use mhc_core::{Dims, Numerics, ops::coefficients};

use crate::{call::Rows, simd::Simd};

/// f32s of scratch that [`Coeffs`]' functions need, for any number of tokens.
pub(crate) fn scratch_len(n: usize, numerics: &Numerics) -> usize {
    let _ = (n, numerics);
    0
}

/// The parameters of `coefficients`.
#[derive(Clone, Copy)]
pub(crate) struct Coeffs<'a> {
    pub n: usize,
    pub numerics: &'a Numerics,
    /// `[3]`: of H_pre, H_post, H_res.
    pub alpha: &'a [f32],
    /// `[n(n+2)]`
    pub bias: &'a [f32],
}

impl Coeffs<'_> {
    /// `mixes` from `z` for some tokens. What a token gets does not depend on which others are in the range.
    ///
    /// # Safety
    /// `z` and `mixes` have the tokens as rows of n(n+2), `scratch` has [`scratch_len`] elements; no one else writes these rows.
    #[inline(always)]
    pub unsafe fn forward<S: Simd>(
        &self,
        s: S,
        z: Rows<'_, f32>,
        mixes: Rows<'_, f32>,
        tokens: Range<usize>,
        scratch: &mut [f32],
    ) {
        let _ = (s, scratch);
        let d = Dims::new(1, self.n, 1);
        for t in tokens {
            // SAFETY: `t` is in range by the caller's promise.
            unsafe {
                let m = coefficients::forward(&d, self.numerics, z.row(t), self.alpha, self.bias);
                mixes.row_mut(t).copy_from_slice(&m);
            }
        }
    }

    /// `d_z` from `z` and `d_mixes` for some tokens; adds their `[d_alpha 3 | d_bias n(n+2)]` to `sums`, in order.
    ///
    /// # Safety
    /// As [`forward`](Self::forward), and `sums` has 3 + n(n+2) elements.
    #[inline(always)]
    pub unsafe fn backward<S: Simd>(
        &self,
        s: S,
        z: Rows<'_, f32>,
        d_mixes: Rows<'_, f32>,
        d_z: Rows<'_, f32>,
        tokens: Range<usize>,
        scratch: &mut [f32],
        sums: &mut [f32],
    ) {
        let _ = (s, scratch);
        let d = Dims::new(1, self.n, 1);
        for t in tokens {
            // SAFETY: `t` is in range by the caller's promise.
            unsafe {
                let (z, d_m) = (z.row(t), d_mixes.row(t));
                let (g, d_alpha, d_bias) = coefficients::backward(&d, self.numerics, z, self.alpha, self.bias, d_m);
                d_z.row_mut(t).copy_from_slice(&g);
                sums.iter_mut().zip(d_alpha.iter().chain(&d_bias)).for_each(|(s, v)| *s += v);
            }
        }
    }
}
