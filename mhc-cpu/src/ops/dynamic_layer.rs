//! `dynamic_layer` and `dynamic_layer_bwd`: as `pre`, with what follows done on the rows still in cache.

use core::ops::Range;

use mhc_core::{
    DType, Dims,
    ops::{DynamicLayer, DynamicLayerBwd},
};

use super::{
    CpuOp,
    post::{self, MAX_NN, oriented},
    pre::{coeffs, projection},
    pre_bwd::{Carry, StreamGradients, kept, parts, sums},
    project::store,
};
use crate::{
    call::{Call, Rows, by_dtype},
    coeffs::scratch_len,
    projection::{Backward, Chunks, Direct, Part, Shape, Step, Streams, Tokens, Upstream},
    reduce::Partition,
    rows,
    simd::{Lane, Simd, SimdFn},
};

/// Numbers of a chunk's part of the scratch: that of the coefficients, and a row in f32.
fn part(layer: &DynamicLayer, d: &Dims) -> usize {
    scratch_len(d.streams, &layer.numerics) + d.channels
}

impl CpuOp for DynamicLayer {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        let parts = Chunks::of(d.tokens).count() * part(self, d);
        Shape::mixes(d).workspace(d.tokens) + parts * size_of::<f32>()
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        by_dtype!(c.act, E => {
            let p = projection(c, &self.numerics, None, Streams::of(c, "x"));
            // SAFETY: the operands were validated, and the scratch has the parts of `workspace`.
            unsafe { p.run(c, &Layer { c, layer: self, x: c.rows::<E>("x") }) };
        });
    }
}

struct Layer<'a, E> {
    c: &'a Call<'a>,
    layer: &'a DynamicLayer,
    x: Rows<'a, E>,
}

impl<E: Lane> Step for Layer<'_, E> {
    fn after(&self, tokens: &Tokens, z: &mut [f32], inv_rms: &[f32]) {
        if self.c.has("z") {
            // SAFETY: each block of tokens has its own rows.
            unsafe { store(self.c.rows("z"), self.c.rows("inv_rms"), tokens.range.clone(), z, inv_rms) };
        }
        self.c.simd(Forward { layer: self, tokens, z });
    }
}

/// From a block's z to its outputs.
struct Forward<'a, 'b, E> {
    layer: &'a Layer<'b, E>,
    tokens: &'a Tokens,
    z: &'a mut [f32],
}

impl<E: Lane> SimdFn for Forward<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Forward { layer: Layer { c, layer, x }, tokens: Tokens { range, chunk }, z } = self;
        let (n, numerics, out) = (c.d.streams, &layer.numerics, c.outputs::<E>("out"));
        // SAFETY: parameters have one row; each block of tokens has its own rows, and each chunk its own part of the scratch.
        unsafe {
            let part = c.scratch(Shape::mixes(&c.d).workspace(c.d.tokens), *chunk, part(layer, &c.d));
            let (scratch, y) = part.split_at_mut(scratch_len(n, numerics));
            // The coefficients take the place of z.
            let mixes = Rows::over(z, c.d.mix());
            coeffs(c, numerics).forward(s, mixes, mixes, 0..range.len(), scratch);
            for (row, t) in range.clone().enumerate() {
                let m = mixes.row(row);
                rows::mix(s, (1, n), &m[..n], x.at(t), None, Rows::over(y, c.d.channels));
                let r = rows::inv_rms(rows::sum_squares(s, y), y.len(), layer.norm_eps as f32);
                rows::scale_in_place(s, r, c.rows("w").row(0), y);
                post::token(s, (numerics.orientation, n), m, x.at(t), y, out.at(t));
            }
        }
    }
}

/// Rows of f32 that a block of tokens needs in backward: the aggregate, y, and their gradients.
const ROWS: usize = 4;

impl CpuOp for DynamicLayerBwd {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        parts(d, kept(d, &self.numerics, ROWS)).end + d.tokens * size_of::<f32>()
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        let numerics = &self.numerics;
        let (partition, kept) = (Partition::of(c.d.tokens), kept(&c.d, numerics, ROWS));
        let parts = parts(&c.d, kept);
        by_dtype!(c.act, E => {
            // SAFETY: the operands were validated; the parts of the scratch lie behind each other, and each token's rows of them are
            // its block's alone.
            unsafe {
                let mixes = Rows::over(c.scratch(parts.mixes, 0, c.d.tokens * c.d.mix()), c.d.mix());
                let pull = Rows::over(c.scratch(parts.pull, 0, c.d.tokens), c.d.tokens);
                let inv_rms = Rows::over(c.scratch(parts.end, 0, c.d.tokens), c.d.tokens);
                let (x, d_out) = (c.rows::<E>("x"), c.rows::<E>("d_out"));
                let p = projection(c, numerics, None, Streams::of(c, "x"));
                let (d_x, d_phi) = (Streams::outputs(c, "d_x"), c.rows("d_phi"));
                let backward = Backward { p, d_x, d_phi, d_weight: None, scratch: parts.projection };
                let norm = Norm { pull, inv_rms };
                let upstream = backward.upstream(c);
                partition.for_each(c, kept, |tokens, kept| {
                    c.simd(Logits { c, layer: self, x, upstream, mixes, norm, tokens, kept });
                });
                partition.sum(c, kept, 0, 1, c.rows("d_alpha"));
                partition.sum(c, kept, 3, 1, c.rows("d_bias"));
                partition.sum(c, kept, 3 + c.d.mix(), 1, c.rows("d_w"));
                backward.run(c, &Through { c, layer: self, x, d_out, mixes, norm });
            }
        });
    }
}

/// What the second pass needs of the RMSNorm of each token: `d_a = inv_rms·w⊙d_y − pull·a`.
#[derive(Clone, Copy)]
struct Norm<'a> {
    pull: Rows<'a, f32>,
    inv_rms: Rows<'a, f32>,
}

/// The first pass over a block of tokens: the gradient of its coefficients, and of z through them.
struct Logits<'a, E> {
    c: &'a Call<'a>,
    layer: &'a DynamicLayerBwd,
    x: Rows<'a, E>,
    upstream: Upstream<'a>,
    mixes: Rows<'a, f32>,
    norm: Norm<'a>,
    tokens: Range<usize>,
    kept: &'a mut [f32],
}

impl<E: Lane> SimdFn for Logits<'_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Logits { c, layer, x, upstream, mixes, norm, tokens, kept } = self;
        let (n, channels, numerics) = (c.d.streams, c.d.channels, &layer.numerics);
        let (z, inv_rms, g) = (c.rows::<f32>("z"), c.rows::<f32>("inv_rms"), c.rows::<E>("d_out"));
        let (sums, rest) = kept.split_at_mut(sums(&c.d));
        let (scratch, rest) = rest.split_at_mut(scratch_len(n, numerics));
        let (coeff_sums, d_w) = sums.split_at_mut(3 + c.d.mix());
        let (a, rest) = rest.split_at_mut(channels);
        let (y, rest) = rest.split_at_mut(channels);
        let (d_a, d_y) = rest.split_at_mut(channels);
        let mut d_h_res = [0.0; MAX_NN];
        // SAFETY: parameters have one row; each block of tokens has its own rows and its own part of the scratch.
        unsafe {
            let (coeffs, w) = (coeffs(c, numerics), c.rows("w").row(0));
            coeffs.forward(s, z, mixes, tokens.clone(), scratch);
            for t in tokens.clone() {
                let (m, d_m, x, g) = (mixes.row(t), upstream.d_p.row_mut(t), x.at(t), g.at(t));
                rows::mix(s, (1, n), &m[..n], x, None, Rows::over(a, channels));
                let r = rows::inv_rms(rows::sum_squares(s, a), channels, layer.norm_eps as f32);
                rows::scale(s, r, w, a, y);
                let (h_post, d_x) = (&m[n..2 * n], None::<Rows<'_, E>>);
                // Nothing is mixed back yet, so that the transpose is not needed.
                let token = rows::MixBwd { x, y: &*y, g, h_res_t: &[], h_post, d_x, d_y: Rows::over(d_y, channels) };
                rows::mix_bwd(s, n, &token, &mut d_m[n..2 * n], &mut d_h_res);
                oriented(numerics.orientation, n, &d_h_res, &mut d_m[2 * n..], false);
                *norm.inv_rms.ptr(0, t) = r;
                *norm.pull.ptr(0, t) = rows::rms_norm_bwd(s, r, w, a, d_y, d_a, d_w);
                rows::dots(s, (n, 1), x, Rows::over(d_a, channels), &mut d_m[..n]);
            }
            coeffs.backward(s, z, upstream.d_p, upstream.d_p, tokens.clone(), scratch, coeff_sums);
            for t in tokens {
                upstream.scale(&Shape::mixes(&c.d), t, z.row(t), *inv_rms.ptr(0, t));
            }
        }
    }
}

/// What x gets besides the projection: `H_pre_i·d_a`, and what is mixed back.
struct Through<'a, E> {
    c: &'a Call<'a>,
    layer: &'a DynamicLayerBwd,
    x: Rows<'a, E>,
    d_out: Rows<'a, E>,
    mixes: Rows<'a, f32>,
    norm: Norm<'a>,
}

impl<E: Lane> Direct for Through<'_, E> {
    fn shared(&self, part: &Part, out: &mut [f32]) {
        self.c.simd(AggregateGradient { through: self, part, out });
    }

    fn streams(&self, part: &Part, streams: Range<usize>, shared: &[f32], out: &mut [f32]) {
        let (c, orientation, mixes) = (self.c, self.layer.numerics.orientation, self.mixes);
        let (n, carry) = (c.d.streams, Carry::Mixed(self.d_out));
        c.simd(StreamGradients { n, orientation, mixes, carry, part, streams, shared, out });
    }
}

/// The gradient of the aggregate, through the RMSNorm.
struct AggregateGradient<'a, 'b, E> {
    through: &'a Through<'b, E>,
    part: &'a Part,
    out: &'a mut [f32],
}

impl<E: Lane> SimdFn for AggregateGradient<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Through { c: call, x, d_out, mixes, norm, .. } = self.through;
        let (part, c, n, out) = (self.part, self.part.channel, call.d.streams, self.out.as_mut_ptr());
        let w = call.rows::<f32>("w");
        part.for_each(
            #[inline(always)]
            // SAFETY: tokens and channels are in range, and buffers have room for whole vectors.
            |t, at| unsafe {
                let (r, pull) = (s.splat(*norm.inv_rms.ptr(0, t)), s.splat(-*norm.pull.ptr(0, t)));
                rows::vectors(
                    s,
                    part.len,
                    #[inline(always)]
                    |k, count, full| {
                        let (mut a, mut d_y) = (s.zero(), s.zero());
                        for i in 0..n {
                            let (h_pre, h_post) = (s.splat(*mixes.ptr(t, i)), s.splat(*mixes.ptr(t, n + i)));
                            a = s.fma(h_pre, rows::load(s, x.at(t).ptr(i, c + k), count, full), a);
                            d_y = s.fma(h_post, rows::load(s, d_out.at(t).ptr(i, c + k), count, full), d_y);
                        }
                        let d_y = s.mul(rows::load(s, w.ptr(0, c + k), count, full), d_y);
                        s.store_f32(out.add(at + k), s.fma(pull, a, s.mul(r, d_y)));
                    },
                );
            },
        );
    }
}
