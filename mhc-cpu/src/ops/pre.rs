//! `pre`: projection, coefficients and aggregate of 16 tokens at a time, whose rows are read from memory once.

use mhc_core::{DType, Dims, Numerics, ops::Pre};

use super::{CpuOp, project::store};
use crate::{
    call::{Call, Rows, by_dtype},
    coeffs::{Coeffs, scratch_len},
    projection::{Chunks, Projection, Shape, Step, Streams, Tokens},
    rows,
    simd::{Lane, Simd, SimdFn},
};

impl CpuOp for Pre {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        workspace(d, &self.numerics)
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        let p = projection(c, &self.numerics, c.weight("norm_weight"), Streams::of(c, "x"));
        by_dtype!(c.act, E => {
            let (x, mixes, layer_input) = (c.rows::<E>("x"), c.rows("mixes"), c.outputs("layer_input"));
            // SAFETY: the operands were validated, and the scratch has the parts of `workspace`.
            unsafe { p.run(c, &Half { c, numerics: &self.numerics, rms_norm: self.rms_norm, x, mixes, layer_input }) };
        });
    }
}

/// Bytes of scratch of `pre`: the projection's, and a part for each chunk.
pub(super) fn workspace(d: &Dims, numerics: &Numerics) -> usize {
    Shape::mixes(d).workspace(d.tokens) + Chunks::of(d.tokens).count() * part(d, numerics) * size_of::<f32>()
}

/// Numbers of a chunk's part: scratch of the coefficients, and a row in f32.
fn part(d: &Dims, numerics: &Numerics) -> usize {
    scratch_len(d.streams, numerics) + d.channels
}

/// The projection of the streams `x` to the logits of all coefficients.
pub(super) fn projection<'a>(
    c: &'a Call<'_>,
    numerics: &Numerics,
    weight: Option<&'a [f32]>,
    x: Streams<'a>,
) -> Projection<'a> {
    let (phi, shape, rms_eps) = (c.rows("phi"), Shape::mixes(&c.d), numerics.rms_eps as f32);
    Projection { x, phi, weight, rms_eps, shape, tokens: c.d.tokens }
}

/// The parameters of the coefficients.
pub(super) fn coeffs<'a>(c: &'a Call<'_>, numerics: &'a Numerics) -> Coeffs<'a> {
    // SAFETY: parameters have one row, which nobody writes.
    let (alpha, bias) = unsafe { (c.rows("alpha").row(0), c.rows("bias").row(0)) };
    Coeffs { n: c.d.streams, numerics, alpha, bias }
}

/// `pre` of the streams `x`: what `post_pre` does with x_next.
pub(super) struct Half<'a, E> {
    pub c: &'a Call<'a>,
    pub numerics: &'a Numerics,
    pub rms_norm: Option<f64>,
    pub x: Rows<'a, E>,
    /// Where the coefficients go.
    pub mixes: Rows<'a, f32>,
    /// Where the aggregates go.
    pub layer_input: Rows<'a, E>,
}

impl<E: Lane> Step for Half<'_, E> {
    fn written(&self, t: usize) -> (*const u8, usize) {
        let to = self.layer_input;
        let bytes = if to.streamed() { 0 } else { to.len() * size_of::<E>() };
        // SAFETY: the token is in range.
        (unsafe { to.ptr(t, 0) }.cast_const().cast(), bytes)
    }

    fn after(&self, tokens: &Tokens, z: &mut [f32], inv_rms: &[f32]) {
        if self.c.has("z") {
            // SAFETY: each block of tokens has its own rows.
            unsafe { store(self.c.rows("z"), self.c.rows("inv_rms"), tokens.range.clone(), z, inv_rms) };
        }
        self.c.simd(Aggregate { half: self, tokens, z });
    }
}

/// From a block's z to its coefficients and layer inputs.
struct Aggregate<'a, 'b, E> {
    half: &'a Half<'b, E>,
    tokens: &'a Tokens,
    z: &'a mut [f32],
}

impl<E: Lane> SimdFn for Aggregate<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Aggregate { half, tokens: Tokens { range, chunk }, z } = self;
        let Half { c, numerics, rms_norm, x, mixes, layer_input } = half;
        let (n, mix) = (c.d.streams, c.d.mix());
        // SAFETY: parameters have one row; each block of tokens has its own rows, and each chunk its own part of the scratch.
        unsafe {
            let part = c.scratch(Shape::mixes(&c.d).workspace(c.d.tokens), *chunk, part(&c.d, numerics));
            let (scratch, row) = part.split_at_mut(scratch_len(n, numerics));
            coeffs(c, numerics).forward(s, Rows::over(z, mix), mixes.from(range.start), 0..range.len(), scratch);
            for t in range.clone() {
                let h_pre = &mixes.row(t)[..n];
                let Some(eps) = rms_norm else {
                    rows::mix(s, (1, n), h_pre, x.at(t), None, layer_input.one(t));
                    continue;
                };
                rows::mix(s, (1, n), h_pre, x.at(t), None, Rows::over(row, c.d.channels));
                let r = rows::inv_rms(rows::sum_squares(s, row), row.len(), *eps as f32);
                rows::scale(s, r, c.rows("w").row(0), row, layer_input.row_mut(t));
                if c.has("li_inv_rms") {
                    *c.rows("li_inv_rms").ptr(0, t) = r;
                }
            }
        }
    }
}
