//! `head` and `head_bwd`.

use core::ops::Range;

use mhc_core::{
    DType, Dims,
    ops::{Head, HeadBwd},
};

use super::{CpuOp, project::store};
use crate::{
    call::{Call, Rows, by_dtype},
    projection::{Backward, Direct, Part, Projection, Shape, Step, Streams, Tokens, Upstream},
    reduce::Partition,
    rows,
    simd::{Lane, Simd, SimdFn},
};

const MAX_STREAMS: usize = mhc_core::MAX_STREAMS;

fn shape(d: &Dims) -> Shape {
    Shape { streams: d.streams, channels: d.channels, columns: d.streams }
}

/// `1 / (1 + e^-t)`.
fn sigmoid(t: f32) -> f32 {
    1.0 / (1.0 + (-t).exp())
}

impl CpuOp for Head {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        shape(d).workspace(d.tokens)
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        let p = projection(c, self.rms_eps);
        // SAFETY: the operands were validated, and the scratch is all the projection's.
        by_dtype!(c.act, E => unsafe {
            p.run(c, &Collapse { c, pre_eps: self.pre_eps as f32, x: c.rows::<E>("x"), out: c.outputs::<E>("out") });
        });
    }
}

fn projection<'a>(c: &'a Call<'_>, rms_eps: f64) -> Projection<'a> {
    let (x, phi, shape) = (Streams::of(c, "x"), c.rows("phi"), shape(&c.d));
    Projection { x, phi, weight: None, rms_eps: rms_eps as f32, shape, tokens: c.d.tokens }
}

/// Adds up the streams of a block.
struct Collapse<'a, E> {
    c: &'a Call<'a>,
    pre_eps: f32,
    x: Rows<'a, E>,
    out: Rows<'a, E>,
}

impl<E: Lane> Step for Collapse<'_, E> {
    fn after(&self, tokens: &Tokens, z: &mut [f32], inv_rms: &[f32]) {
        if self.c.has("z") {
            // SAFETY: each block of tokens has its own rows.
            unsafe { store(self.c.rows("z"), self.c.rows("inv_rms"), tokens.range.clone(), z, inv_rms) };
        }
        self.c.simd(Weighted { step: self, tokens: tokens.range.clone(), z });
    }
}

struct Weighted<'a, 'b, E> {
    step: &'a Collapse<'b, E>,
    tokens: Range<usize>,
    z: &'a [f32],
}

impl<E: Lane> SimdFn for Weighted<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Collapse { c, pre_eps, x, out } = self.step;
        let n = c.d.streams;
        // SAFETY: parameters have one row; each block of tokens has its own rows.
        unsafe {
            let (scale, bias) = (c.rows::<f32>("scale").row(0)[0], c.rows::<f32>("bias").row(0));
            for (t, z) in self.tokens.zip(self.z.chunks_exact(n)) {
                let mut h = [0.0; MAX_STREAMS];
                for i in 0..n {
                    h[i] = sigmoid(scale * z[i] + bias[i]) + pre_eps;
                }
                rows::mix(s, (1, n), &h[..n], x.at(t), None, out.one(t));
            }
        }
    }
}

/// Bytes of the partial sums of `[d_scale | d_bias n]`, behind which the rest of the gradient's scratch begins.
fn sums(d: &Dims) -> usize {
    Partition::of(d.tokens).bytes(1 + d.streams).next_multiple_of(64)
}

/// Bytes before the weights `[T, n]` of the streams, which come last.
fn weights(d: &Dims) -> usize {
    sums(d) + shape(d).backward_workspace(d.tokens)
}

impl CpuOp for HeadBwd {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        weights(d) + d.tokens * d.streams * size_of::<f32>()
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        let (n, partition, pre_eps) = (c.d.streams, Partition::of(c.d.tokens), self.pre_eps as f32);
        let (p, d_x, d_phi) = (projection(c, self.rms_eps), Streams::outputs(c, "d_x"), c.rows("d_phi"));
        let b = Backward { p, d_x, d_phi, d_weight: None, scratch: sums(&c.d) };
        // SAFETY: the operands were validated; the three parts of the scratch lie behind each other, and a token's rows are its
        // block's alone.
        unsafe {
            let h = Rows::over(c.scratch(weights(&c.d), 0, c.d.tokens * n), n);
            let upstream = b.upstream(c);
            by_dtype!(c.act, E => {
                let (x, d_out) = (c.rows::<E>("x"), c.rows::<E>("d_out"));
                partition.for_each(c, 1 + n, |tokens, sums| {
                    c.simd(Logits { c, upstream, pre_eps, x, d_out, h, tokens, sums });
                });
                partition.sum(c, 1 + n, 0, 1, c.rows("d_scale"));
                partition.sum(c, 1 + n, 1, 1, c.rows("d_bias"));
                b.run(c, &Gate { c, h, d_out });
            });
        }
    }
}

/// From the gradient of the output to that of z, for a block of tokens.
struct Logits<'a, E> {
    c: &'a Call<'a>,
    upstream: Upstream<'a>,
    pre_eps: f32,
    x: Rows<'a, E>,
    d_out: Rows<'a, E>,
    /// Where the weights of the streams go.
    h: Rows<'a, f32>,
    tokens: Range<usize>,
    /// `[d_scale | d_bias n]`
    sums: &'a mut [f32],
}

impl<E: Lane> SimdFn for Logits<'_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Logits { c, upstream, pre_eps, x, d_out, h, tokens, sums } = self;
        let (n, z, inv_rms) = (c.d.streams, c.rows::<f32>("z"), c.rows::<f32>("inv_rms"));
        // SAFETY: parameters have one row; each block of tokens has its own rows.
        unsafe {
            let (scale, bias) = (c.rows::<f32>("scale").row(0)[0], c.rows::<f32>("bias").row(0));
            for t in tokens {
                let (z, d_z, mut d_h) = (z.row(t), upstream.d_p.row_mut(t), [0.0; MAX_STREAMS]);
                rows::dots(s, (n, 1), x.at(t), d_out.one(t), &mut d_h);
                for i in 0..n {
                    let logit = scale * z[i] + bias[i];
                    let sigma = sigmoid(logit);
                    // σ' = σ(t)·σ(-t): 1 - σ would lose the digits of a small one.
                    let d_t = d_h[i] * sigma * sigmoid(-logit);
                    sums[0] += d_t * z[i];
                    sums[1 + i] += d_t;
                    d_z[i] = scale * d_t;
                    *h.ptr(t, i) = sigma + pre_eps;
                }
                upstream.scale(&shape(&c.d), t, z, *inv_rms.ptr(0, t));
            }
        }
    }
}

/// What x gets from the output directly: `H_i·d_out`.
struct Gate<'a, E> {
    c: &'a Call<'a>,
    h: Rows<'a, f32>,
    d_out: Rows<'a, E>,
}

impl<E: Lane> Direct for Gate<'_, E> {
    fn streams(&self, part: &Part, streams: Range<usize>, _: &[f32], out: &mut [f32]) {
        self.c.simd(Gated { gate: self, part, streams, out });
    }
}

struct Gated<'a, 'b, E> {
    gate: &'a Gate<'b, E>,
    part: &'a Part,
    streams: Range<usize>,
    out: &'a mut [f32],
}

impl<E: Lane> SimdFn for Gated<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Gated { gate: Gate { h, d_out, .. }, part, streams, out } = self;
        let out = out.as_mut_ptr();
        for (row, t) in part.tokens.clone().enumerate() {
            // SAFETY: tokens, streams and channels are in range, and the buffer has rows for them.
            unsafe {
                let (h, d_out) = (&h.row(t)[streams.clone()], d_out.one(t).channels(part.channel, part.len));
                rows::mix(s, (streams.len(), 1), h, d_out, None, part.rows(out, row));
            }
        }
    }
}
