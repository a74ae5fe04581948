//! `coefficients` and `coefficients_bwd`: blocks of tokens through [`Coeffs`].

use mhc_core::{
    DType, Dims, Numerics,
    ops::{Coefficients, CoefficientsBwd},
};

use super::CpuOp;
use crate::{
    call::{Call, Rows},
    coeffs::{Coeffs, scratch_len},
    lanes::Blocks,
    simd::{Simd, SimdFn},
};

impl CpuOp for Coefficients {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        Blocks::of(d.tokens).count() * scratch_len(d.streams, &self.numerics) * size_of::<f32>()
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        c.blocks(Blocks::of(c.d.tokens).count(), |b| c.simd(Forward { c, numerics: &self.numerics, b }));
    }
}

struct Forward<'a> {
    c: &'a Call<'a>,
    numerics: &'a Numerics,
    b: usize,
}

impl SimdFn for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Forward { c, numerics, b } = self;
        let n = c.d.streams;
        // SAFETY: parameters have one row; every block has its own tokens and its own part of the scratch.
        unsafe {
            let (alpha, bias) = (c.rows("alpha").row(0), c.rows("bias").row(0));
            let scratch = c.scratch(0, b, scratch_len(n, numerics));
            Coeffs { n, numerics, alpha, bias }.forward(
                s,
                c.rows("z"),
                c.rows("mixes"),
                Blocks::of(c.d.tokens).tokens(b),
                scratch,
            );
        }
    }
}

impl CpuOp for CoefficientsBwd {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        Blocks::of(d.tokens).count() * (scratch_len(d.streams, &self.numerics) + 3 + d.mix()) * size_of::<f32>()
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        let (n, sums) = (c.d.streams, 3 + c.d.mix());
        let blocks = Blocks::of(c.d.tokens).count();
        let offset = blocks * scratch_len(n, &self.numerics) * size_of::<f32>();
        c.blocks(blocks, |b| c.simd(Backward { c, numerics: &self.numerics, b, offset }));
        // SAFETY: both have one row; the blocks are done with their sums, which are added in the order of the blocks.
        unsafe {
            let (d_alpha, d_bias): (Rows<'_, f32>, Rows<'_, f32>) = (c.rows("d_alpha"), c.rows("d_bias"));
            let (d_alpha, d_bias) = (d_alpha.row_mut(0), d_bias.row_mut(0));
            d_alpha.fill(0.0);
            d_bias.fill(0.0);
            for b in 0..blocks {
                let part: &mut [f32] = c.scratch(offset, b, sums);
                d_alpha.iter_mut().chain(&mut *d_bias).zip(part).for_each(|(sum, v)| *sum += *v);
            }
        }
    }
}

struct Backward<'a> {
    c: &'a Call<'a>,
    numerics: &'a Numerics,
    b: usize,
    /// Where the blocks' sums begin.
    offset: usize,
}

impl SimdFn for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Backward { c, numerics, b, offset } = self;
        let n = c.d.streams;
        // SAFETY: parameters have one row; every block has its own tokens, scratch and sums.
        unsafe {
            let (alpha, bias) = (c.rows("alpha").row(0), c.rows("bias").row(0));
            let scratch = c.scratch(0, b, scratch_len(n, numerics));
            let sums = c.scratch(offset, b, 3 + c.d.mix());
            sums.fill(0.0);
            let (z, d_mixes, d_z) = (c.rows("z"), c.rows("d_mixes"), c.rows("d_z"));
            let coeffs = Coeffs { n, numerics, alpha, bias };
            coeffs.backward(s, z, d_mixes, d_z, Blocks::of(c.d.tokens).tokens(b), scratch, sums);
        }
    }
}
