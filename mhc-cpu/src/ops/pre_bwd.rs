//! `pre_bwd`, in two passes over the streams: the gradient of the coefficients, token by token, and of z through it; then, channel
//! block by channel block, those of x and phi.

use core::ops::Range;

use mhc_core::{DType, Dims, MAX_STREAMS, Numerics, Orientation, ops::PreBwd};

use super::{
    CpuOp,
    pre::{coeffs, projection},
};
use crate::{
    call::{Call, Rows, by_dtype},
    coeffs::scratch_len,
    projection::{Backward, Direct, Part, Shape, Streams, Upstream},
    reduce::Partition,
    rows,
    simd::{Lane, Simd, SimdFn},
};

impl CpuOp for PreBwd {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        workspace(d, &self.numerics)
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        by_dtype!(c.act, E => {
            let half = Half {
                c,
                numerics: &self.numerics,
                rms_norm: self.rms_norm.is_some(),
                x: c.rows::<E>("x"),
                streams: Streams::of(c, "x"),
                d_x: Streams::outputs(c, "d_x"),
                d_mixes: c.rows("d_mixes"),
                carry: if self.carry { Carry::Mixed(c.rows("d_x_next")) } else { Carry::None },
            };
            // SAFETY: the operands were validated, and the scratch has the parts of `workspace`.
            unsafe { half.run() }
        });
    }
}

/// What x's gradient has besides.
#[derive(Clone, Copy)]
pub(super) enum Carry<'a, E> {
    None,
    /// `H_res^T·g`.
    Mixed(Rows<'a, E>),
    /// g itself.
    Whole(Rows<'a, E>),
}

/// Where the parts of the scratch begin, in bytes.
pub(super) struct Parts {
    /// Of the projection's gradient, behind the partial sums and the coefficients' scratch of every block.
    pub projection: usize,
    /// `mixes [T, n(n+2)]`.
    pub mixes: usize,
    /// `pull [T]`, of the RMSNorm.
    pub pull: usize,
    pub end: usize,
}

/// Numbers that a block of tokens keeps: the sums of `[d_alpha 3 | d_bias n(n+2) | d_w C]`, scratch of the coefficients, `rows` rows.
pub(super) fn kept(d: &Dims, numerics: &Numerics, rows: usize) -> usize {
    sums(d) + scratch_len(d.streams, numerics) + rows * d.channels
}

/// Numbers of the sums alone.
pub(super) fn sums(d: &Dims) -> usize {
    3 + d.mix() + d.channels
}

/// The parts where a block of tokens keeps `kept` numbers.
pub(super) fn parts(d: &Dims, kept: usize) -> Parts {
    let projection = Partition::of(d.tokens).bytes(kept).next_multiple_of(64);
    let mixes = projection + Shape::mixes(d).backward_workspace(d.tokens);
    let pull = mixes + d.tokens * d.mix() * size_of::<f32>();
    Parts { projection, mixes, pull, end: pull + d.tokens * size_of::<f32>() }
}

/// Rows of f32 that a block needs for the token at hand: the aggregate and its gradient.
const ROWS: usize = 2;

/// Bytes of scratch of `pre_bwd`.
pub(super) fn workspace(d: &Dims, numerics: &Numerics) -> usize {
    parts(d, kept(d, numerics, ROWS)).end
}

/// `pre_bwd` at the streams `x`: what `post_pre_bwd` does at x_next.
pub(super) struct Half<'a, E> {
    pub c: &'a Call<'a>,
    pub numerics: &'a Numerics,
    pub rms_norm: bool,
    pub x: Rows<'a, E>,
    /// x again, for the projection.
    pub streams: Streams<'a>,
    pub d_x: Streams<'a>,
    pub d_mixes: Rows<'a, f32>,
    pub carry: Carry<'a, E>,
}

impl<E: Lane> Half<'_, E> {
    /// Writes every gradient.
    ///
    /// # Safety
    /// The operands were validated, and the scratch begins with the bytes of [`workspace`].
    pub unsafe fn run(&self) {
        let Half { c, numerics, .. } = *self;
        let (partition, kept) = (Partition::of(c.d.tokens), kept(&c.d, numerics, ROWS));
        let parts = parts(&c.d, kept);
        // SAFETY: the parts lie behind each other, and each token's rows of them are its block's alone.
        unsafe {
            let mixes = Rows::over(c.scratch(parts.mixes, 0, c.d.tokens * c.d.mix()), c.d.mix());
            let pull = Rows::over(c.scratch(parts.pull, 0, c.d.tokens), c.d.tokens);
            let backward = Backward {
                p: projection(c, numerics, c.weight("norm_weight"), self.streams),
                d_x: self.d_x,
                d_phi: c.rows("d_phi"),
                d_weight: c.weight("norm_weight").map(|_| c.rows("d_norm_weight")),
                scratch: parts.projection,
            };
            let upstream = backward.upstream(c);
            partition.for_each(c, kept, |tokens, kept| {
                c.simd(Logits { half: self, shape: &backward.p.shape, upstream, mixes, pull, tokens, kept });
            });
            partition.sum(c, kept, 0, 1, c.rows("d_alpha"));
            partition.sum(c, kept, 3, 1, c.rows("d_bias"));
            if self.rms_norm {
                partition.sum(c, kept, 3 + c.d.mix(), 1, c.rows("d_w"));
            }
            backward.run(c, &Through { half: self, mixes, pull });
        }
    }
}

/// The first pass over a block of tokens.
struct Logits<'a, 'b, E> {
    half: &'a Half<'b, E>,
    shape: &'a Shape,
    upstream: Upstream<'a>,
    mixes: Rows<'a, f32>,
    pull: Rows<'a, f32>,
    tokens: Range<usize>,
    kept: &'a mut [f32],
}

impl<E: Lane> SimdFn for Logits<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Logits { half, shape, upstream, mixes, pull, tokens, kept } = self;
        let Half { c, numerics, rms_norm, x, d_mixes, .. } = *half;
        let (n, channels) = (c.d.streams, c.d.channels);
        let (z, inv_rms, g) = (c.rows::<f32>("z"), c.rows::<f32>("inv_rms"), c.rows::<E>("d_layer_input"));
        let (sums, rest) = kept.split_at_mut(sums(&c.d));
        let (scratch, rest) = rest.split_at_mut(scratch_len(n, numerics));
        let (aggregate, d_aggregate) = rest.split_at_mut(channels);
        let (coeff_sums, d_w) = sums.split_at_mut(3 + c.d.mix());
        // SAFETY: parameters have one row; each block of tokens has its own rows and its own part of the scratch.
        unsafe {
            let coeffs = coeffs(c, numerics);
            coeffs.forward(s, z, mixes, tokens.clone(), scratch);
            for t in tokens.clone() {
                let d_m = upstream.d_p.row_mut(t);
                if rms_norm {
                    let (r, w) = (*c.rows::<f32>("li_inv_rms").ptr(0, t), c.rows("w").row(0));
                    rows::mix(s, (1, n), &mixes.row(t)[..n], x.at(t), None, Rows::over(aggregate, channels));
                    *pull.ptr(0, t) = rows::rms_norm_bwd(s, r, w, &*aggregate, g.row(t), d_aggregate, d_w);
                    rows::dots(s, (n, 1), x.at(t), Rows::over(d_aggregate, channels), d_m);
                } else {
                    rows::dots(s, (n, 1), x.at(t), g.one(t), d_m);
                }
                d_m[n..].fill(0.0);
                d_m.iter_mut().zip(d_mixes.row(t)).for_each(|(sum, v)| *sum += v);
            }
            coeffs.backward(s, z, upstream.d_p, upstream.d_p, tokens.clone(), scratch, coeff_sums);
            for t in tokens {
                upstream.scale(shape, t, z.row(t), *inv_rms.ptr(0, t));
            }
        }
    }
}

/// What x gets besides the projection: `H_pre_i` times the gradient of the aggregate, and the carry.
struct Through<'a, 'b, E> {
    half: &'a Half<'b, E>,
    mixes: Rows<'a, f32>,
    pull: Rows<'a, f32>,
}

impl<E: Lane> Direct for Through<'_, '_, E> {
    fn shared(&self, part: &Part, out: &mut [f32]) {
        self.half.c.simd(AggregateGradient { through: self, part, out });
    }

    fn streams(&self, part: &Part, streams: Range<usize>, shared: &[f32], out: &mut [f32]) {
        let Half { c, numerics, carry, .. } = *self.half;
        let (n, orientation, mixes) = (c.d.streams, numerics.orientation, self.mixes);
        c.simd(StreamGradients { n, orientation, mixes, carry, part, streams, shared, out });
    }
}

/// The gradient of the aggregate, through its RMSNorm if it has one.
struct AggregateGradient<'a, 'b, 'c, E> {
    through: &'a Through<'b, 'c, E>,
    part: &'a Part,
    out: &'a mut [f32],
}

impl<E: Lane> SimdFn for AggregateGradient<'_, '_, '_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Through { half: Half { c: call, rms_norm, x, .. }, mixes, pull } = self.through;
        let (part, c, out) = (self.part, self.part.channel, self.out.as_mut_ptr());
        let g = call.rows::<E>("d_layer_input");
        part.for_each(
            #[inline(always)]
            // SAFETY: tokens and channels are in range, and buffers have room for whole vectors.
            |t, at| unsafe {
                if !rms_norm {
                    return rows::widen(s, g.ptr(t, c), part.len, out.add(at));
                }
                let r = s.splat(*call.rows::<f32>("li_inv_rms").ptr(0, t));
                let (w, pull) = (call.rows::<f32>("w").ptr(0, c), s.splat(-*pull.ptr(0, t)));
                rows::vectors(
                    s,
                    part.len,
                    #[inline(always)]
                    |k, n, full| {
                        let mut aggregate = s.zero();
                        for i in 0..call.d.streams {
                            let h = s.splat(*mixes.ptr(t, i));
                            aggregate = s.fma(h, rows::load(s, x.at(t).ptr(i, c + k), n, full), aggregate);
                        }
                        let g = s.mul(rows::load(s, w.add(k), n, full), rows::load(s, g.ptr(t, c + k), n, full));
                        s.store_f32(out.add(at + k), s.fma(pull, aggregate, s.mul(r, g)));
                    },
                );
            },
        );
    }
}

/// `H_pre_i·d_a` and the carry: what some streams get besides the projection.
pub(super) struct StreamGradients<'a, E> {
    pub n: usize,
    pub orientation: Orientation,
    pub mixes: Rows<'a, f32>,
    pub carry: Carry<'a, E>,
    pub part: &'a Part,
    pub streams: Range<usize>,
    /// d_a, the gradient of the aggregate.
    pub shared: &'a [f32],
    pub out: &'a mut [f32],
}

impl<E: Lane> SimdFn for StreamGradients<'_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let StreamGradients { n, orientation, mixes, carry, part, streams, shared, out } = self;
        let (first, count, out) = (streams.start, streams.len(), out.as_mut_ptr());
        let mut h_res_t = [0.0; 4 * MAX_STREAMS];
        for (row, t) in part.tokens.clone().enumerate() {
            // SAFETY: tokens, streams and channels are in range, and the buffers have rows for them.
            unsafe {
                let m = mixes.row(t);
                let (h_pre, out) = (&m[first..streams.end], part.rows(out, row));
                let d_a = part.row(shared, row);
                match carry {
                    Carry::None => rows::mix(s, (count, 1), h_pre, Rows::one_of(d_a), None, out),
                    Carry::Mixed(g) => {
                        for (i, from) in streams.clone().enumerate() {
                            for to in 0..n {
                                h_res_t[i * n + to] = m[2 * n + orientation.index(n, to, from)];
                            }
                        }
                        let g = g.at(t).channels(part.channel, part.len);
                        rows::mix_add(s, (count, n), &h_res_t, g, Some((h_pre, d_a)), out);
                    }
                    Carry::Whole(g) => {
                        for i in 0..count {
                            let g = g.at(t).one(first + i).channels(part.channel, part.len);
                            rows::mix_add(s, (1, 1), &[1.0], g, Some((&h_pre[i..], d_a)), out.from(i));
                        }
                    }
                }
            }
        }
    }
}
