//! `static_layer` and `static_layer_bwd`: coefficients once, then a token at a time, its rows in L1.

use core::{marker::PhantomData, ops::Range};

use mhc_core::{
    DType, Dims, Numerics,
    ops::{StaticLayer, StaticLayerBwd},
};

use super::{
    CpuOp,
    post::{MAX_NN, oriented},
};
use crate::{
    call::{Call, Rows, by_dtype},
    coeffs::{Coeffs, scratch_len},
    reduce::Partition,
    rows,
    simd::{Lane, Simd, SimdFn},
};

/// The largest n(n+2).
const MAX_MIX: usize = 32 * 34;

/// The raw logits `[h_pre n | h_post n | h_res n·n]` behind each other, as `coefficients` takes them.
fn logits(c: &Call<'_>) -> [f32; MAX_MIX] {
    let n = c.d.streams;
    let mut logits = [0.0; MAX_MIX];
    let (h_pre, h_post, h_res) = (c.rows("h_pre"), c.rows("h_post"), c.rows("h_res"));
    // SAFETY: the vectors have one row of n, the matrix has n.
    unsafe {
        logits[..n].copy_from_slice(h_pre.row(0));
        logits[n..2 * n].copy_from_slice(h_post.row(0));
        (0..n).for_each(|i| logits[(2 + i) * n..][..n].copy_from_slice(h_res.row(i)));
    }
    logits
}

/// `coefficients` of one row: alpha is 1 and the bias 0.
fn coeffs<'a>(c: &Call<'_>, numerics: &'a Numerics) -> Coeffs<'a> {
    let n = c.d.streams;
    Coeffs { n, numerics, alpha: &[1.0; 3], bias: &[0.0; MAX_MIX][..n * (n + 2)] }
}

/// Activated coefficients of every token: `[H_pre n | H_post n | H_res n·n]`, and H_res both ways round.
struct Activated {
    mixes: [f32; MAX_MIX],
    /// `[to][from]`
    h_res: [f32; MAX_NN],
    /// `[from][to]`
    h_res_t: [f32; MAX_NN],
}

struct Activate<'a> {
    c: &'a Call<'a>,
    numerics: &'a Numerics,
    /// Where in the scratch that of [`Coeffs`] begins.
    offset: usize,
}

impl SimdFn for Activate<'_> {
    type Output = Activated;
    #[inline(always)]
    fn call<S: Simd>(self, s: S) -> Activated {
        let Activate { c, numerics, offset } = self;
        let (n, mix) = (c.d.streams, c.d.mix());
        let logits = logits(c);
        let mut mixes = [0.0; MAX_MIX];
        // SAFETY: the operator's workspace ends with the scratch; one row goes in and one comes out.
        unsafe {
            let out = Rows::over(&mut mixes[..mix], mix);
            let scratch = c.scratch(offset, 0, scratch_len(n, numerics));
            coeffs(c, numerics).forward(s, Rows::one_of(&logits[..mix]), out, 0..1, scratch);
        }
        let (mut h_res, mut h_res_t) = ([0.0; MAX_NN], [0.0; MAX_NN]);
        oriented(numerics.orientation, n, &mixes[2 * n..], &mut h_res, false);
        oriented(numerics.orientation, n, &mixes[2 * n..], &mut h_res_t, true);
        Activated { mixes, h_res, h_res_t }
    }
}

/// Bytes of scratch: `len` f32 for every block, then those of the coefficients.
fn workspace(d: &Dims, numerics: &Numerics, len: usize) -> usize {
    Partition::of(d.tokens).bytes(len) + scratch_len(d.streams, numerics) * size_of::<f32>()
}

impl CpuOp for StaticLayer {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        workspace(d, &self.numerics, d.channels)
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        let (partition, norm_eps) = (Partition::of(c.d.tokens), self.norm_eps as f32);
        let h = &c.simd(Activate { c, numerics: &self.numerics, offset: partition.bytes(c.d.channels) });
        // SAFETY: `workspace` has made room for one row of f32 for every block.
        unsafe {
            by_dtype!(c.act, E => partition.for_each(c, c.d.channels, |tokens, y| {
                c.simd(Forward::<E> { c, h, norm_eps, tokens, y, e: PhantomData });
            }));
        }
    }
}

struct Forward<'a, E> {
    c: &'a Call<'a>,
    h: &'a Activated,
    norm_eps: f32,
    tokens: Range<usize>,
    /// The aggregate, then what is distributed.
    y: &'a mut [f32],
    e: PhantomData<E>,
}

impl<E: Lane> SimdFn for Forward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Forward { c, h, y, .. } = self;
        let (n, channels) = (c.d.streams, c.d.channels);
        let (x, w, out) = (c.rows::<E>("x"), c.rows::<f32>("w"), c.outputs::<E>("out"));
        for t in self.tokens {
            // SAFETY: `t` is in range, its rows have the shapes of the description, each token is one block's alone, as is `y`.
            unsafe {
                let x = x.at(t);
                rows::mix(s, (1, n), &h.mixes[..n], x, None, Rows::over(y, channels));
                let r = rows::inv_rms(rows::sum_squares(s, y), channels, self.norm_eps);
                rows::scale_in_place(s, r, w.row(0), y);
                rows::mix_add(s, (n, n), &h.h_res, x, Some((&h.mixes[n..2 * n], &*y)), out.at(t));
            }
        }
    }
}

/// What a block of tokens keeps in backward, one behind the other: the sums of d_w and of the gradient of the activated coefficients,
/// H_res as `[to][from]`; then three rows for the token at hand.
fn kept(d: &Dims) -> usize {
    4 * d.channels + d.mix()
}

impl CpuOp for StaticLayerBwd {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        workspace(d, &self.numerics, kept(d))
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        let (partition, kept, norm_eps) = (Partition::of(c.d.tokens), kept(&c.d), self.norm_eps as f32);
        let offset = partition.bytes(kept);
        let h = &c.simd(Activate { c, numerics: &self.numerics, offset });
        let (channels, mix) = (c.d.channels, c.d.mix());
        let mut d_activated = [0.0; MAX_MIX];
        // SAFETY: `workspace` has made room for what each block keeps.
        unsafe {
            by_dtype!(c.act, E => partition.for_each(c, kept, |tokens, kept| {
                c.simd(Backward::<E> { c, h, norm_eps, tokens, kept, e: PhantomData });
            }));
            partition.sum(c, kept, 0, 1, c.rows("d_w"));
            partition.sum(c, kept, channels, 1, Rows::over(&mut d_activated[..mix], mix));
        }
        c.simd(ActivateBwd { c, numerics: &self.numerics, offset, d_activated: &d_activated });
    }
}

struct Backward<'a, E> {
    c: &'a Call<'a>,
    h: &'a Activated,
    norm_eps: f32,
    tokens: Range<usize>,
    kept: &'a mut [f32],
    e: PhantomData<E>,
}

impl<E: Lane> SimdFn for Backward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Backward { c, h, .. } = self;
        let (n, channels) = (c.d.streams, c.d.channels);
        let (x, w, g, d_x) = (c.rows::<E>("x"), c.rows::<f32>("w"), c.rows::<E>("d_out"), c.outputs::<E>("d_x"));
        let (d_w, kept) = self.kept.split_at_mut(channels);
        let (d_h, kept) = kept.split_at_mut(c.d.mix());
        let (layer_input, kept) = kept.split_at_mut(channels);
        let (y, d_y) = kept.split_at_mut(channels);
        let mut d_token = [0.0; MAX_MIX];
        for t in self.tokens {
            // SAFETY: `t` is in range, its rows have the shapes of the description, each token is one block's alone, as is all it keeps.
            unsafe {
                let (x, g, w) = (x.at(t), g.at(t), w.row(0));
                rows::mix(s, (1, n), &h.mixes[..n], x, None, Rows::over(layer_input, channels));
                let r = rows::inv_rms(rows::sum_squares(s, layer_input), channels, self.norm_eps);
                rows::scale(s, r, w, layer_input, y);
                let (d_pre, d_rest) = d_token.split_at_mut(n);
                let (d_post, d_res) = d_rest.split_at_mut(n);
                let token = rows::MixBwd {
                    x,
                    y,
                    g,
                    h_res_t: &h.h_res_t,
                    h_post: &h.mixes[n..2 * n],
                    d_x: None::<Rows<'_, E>>,
                    d_y: Rows::over(d_y, channels),
                };
                rows::mix_bwd(s, n, &token, d_post, d_res);
                // From here on `y` holds d_li.
                rows::rms_norm_bwd(s, r, w, layer_input, d_y, y, d_w);
                rows::dots(s, (n, 1), x, Rows::one_of(y), d_pre);
                rows::mix_add(s, (n, n), &h.h_res_t, g, Some((&h.mixes[..n], &*y)), d_x.at(t));
            }
            d_h.iter_mut().zip(&d_token).for_each(|(sum, v)| *sum += v);
        }
    }
}

/// From the gradient of the activated coefficients to that of the logits, once.
struct ActivateBwd<'a> {
    c: &'a Call<'a>,
    numerics: &'a Numerics,
    offset: usize,
    d_activated: &'a [f32; MAX_MIX],
}

impl SimdFn for ActivateBwd<'_> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let ActivateBwd { c, numerics, offset, d_activated } = self;
        let (n, mix) = (c.d.streams, c.d.mix());
        let mut d_mixes = *d_activated;
        oriented(numerics.orientation, n, &d_activated[2 * n..], &mut d_mixes[2 * n..], false);
        let (logits, mut d_logits, mut sums) = (logits(c), [0.0; MAX_MIX], [0.0; 3 + MAX_MIX]);
        let (d_h_pre, d_h_post, d_h_res) = (c.rows("d_h_pre"), c.rows("d_h_post"), c.rows("d_h_res"));
        // SAFETY: the operator's workspace ends with the scratch; one row goes in and one comes out, as one row of n, another, and n
        // of them, which nobody else writes.
        unsafe {
            let (z, d_mixes) = (Rows::one_of(&logits[..mix]), Rows::one_of(&d_mixes[..mix]));
            let scratch = c.scratch(offset, 0, scratch_len(n, numerics));
            let d_z = Rows::over(&mut d_logits[..mix], mix);
            coeffs(c, numerics).backward(s, z, d_mixes, d_z, 0..1, scratch, &mut sums[..3 + mix]);
            d_h_pre.row_mut(0).copy_from_slice(&d_logits[..n]);
            d_h_post.row_mut(0).copy_from_slice(&d_logits[n..2 * n]);
            for i in 0..n {
                d_h_res.row_mut(i).copy_from_slice(&d_logits[(2 + i) * n..][..n]);
            }
        }
    }
}
