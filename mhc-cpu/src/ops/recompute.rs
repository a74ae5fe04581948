//! `recompute` and `recompute_bwd`: a token at a time through all sub-layers, its row in cache.

use core::{marker::PhantomData, ops::Range};

use mhc_core::{
    DType, Dims, Orientation,
    ops::{Recompute, RecomputeBwd},
};

use super::{
    CpuOp,
    post::{MAX_NN, oriented},
};
use crate::{
    call::{Call, Rows, by_dtype},
    reduce::Partition,
    rows,
    simd::{Lane, Simd, SimdFn},
};

/// Tokens of one block.
const GRAIN: usize = 8;

/// The streams of token `t` in front of sub-layer `l`.
///
/// # Safety
/// `t` and `l` are in range.
#[inline(always)]
unsafe fn streams<'a, E: Lane>(x: Rows<'a, E>, residuals: Rows<'a, E>, l: usize, t: usize) -> Rows<'a, E> {
    // SAFETY: the caller's promise.
    unsafe { if l == 0 { x.at(t) } else { residuals.at(l - 1).at(t) } }
}

impl CpuOp for Recompute {
    unsafe fn launch(&self, c: &Call<'_>) {
        let orientation = self.orientation;
        by_dtype!(c.act, E => c.tokens(GRAIN, |tokens| c.simd(Forward::<E> { c, orientation, tokens, e: PhantomData })));
    }
}

struct Forward<'a, E> {
    c: &'a Call<'a>,
    orientation: Orientation,
    tokens: Range<usize>,
    e: PhantomData<E>,
}

impl<E: Lane> SimdFn for Forward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let (c, n) = (self.c, self.c.d.streams);
        let (x, y, mixes) = (c.rows::<E>("x"), c.rows::<E>("y"), c.rows("mixes"));
        let (layer_inputs, residuals) = (c.rows::<E>("layer_inputs"), c.rows::<E>("residuals"));
        let mut h_res = [0.0; MAX_NN];
        for t in self.tokens {
            for l in 0..c.d.layers {
                // SAFETY: `t` and `l` are in range, their rows have the shapes of the description, each token is one block's alone,
                // and the streams in front of a sub-layer are not those that it writes.
                unsafe {
                    let (x, m) = (streams(x, residuals, l, t), mixes.at(l).row(t));
                    rows::mix(s, (1, n), &m[..n], x, None, layer_inputs.at(l).one(t));
                    oriented(self.orientation, n, &m[2 * n..], &mut h_res, false);
                    let y = Some((&m[n..2 * n], y.at(l).row(t)));
                    rows::mix(s, (n, n), &h_res, x, y, residuals.at(l).at(t));
                }
            }
        }
    }
}

/// The gradient that is carried, before and after a sub-layer, in f32.
fn carried(d: &Dims) -> usize {
    2 * d.row()
}

impl CpuOp for RecomputeBwd {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        Partition::of(d.tokens).bytes(carried(d))
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        let orientation = self.orientation;
        // SAFETY: `workspace` has made room for what each block carries.
        unsafe {
            by_dtype!(c.act, E => Partition::of(c.d.tokens).for_each(c, carried(&c.d), |tokens, carried| {
                c.simd(Backward::<E> { c, orientation, tokens, carried, e: PhantomData });
            }));
        }
    }
}

struct Backward<'a, E> {
    c: &'a Call<'a>,
    orientation: Orientation,
    tokens: Range<usize>,
    carried: &'a mut [f32],
    e: PhantomData<E>,
}

impl<E: Lane> SimdFn for Backward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let (c, n, last) = (self.c, self.c.d.streams, self.c.d.layers - 1);
        let (x, y, residuals) = (c.rows::<E>("x"), c.rows::<E>("y"), c.rows::<E>("residuals"));
        let (d_layer_inputs, d_residuals) = (c.rows::<E>("d_layer_inputs"), c.rows::<E>("d_residuals"));
        let (d_x, d_y) = (c.rows::<E>("d_x"), c.rows::<E>("d_y"));
        let (mixes, d_mixes) = (c.rows("mixes"), c.rows("d_mixes"));
        let (mut h_res_t, mut d_h_res) = ([0.0; MAX_NN], [0.0; MAX_NN]);
        let (g, next) = self.carried.split_at_mut(c.d.row());
        let (mut g, mut next) = (Rows::over(g, c.d.channels), Rows::over(next, c.d.channels));
        for t in self.tokens {
            // SAFETY: `t` and every `l` are in range, their rows have the shapes of the description, and each token is one block's
            // alone, as is what the block carries; `g` and `next` are apart.
            unsafe {
                for i in 0..n {
                    rows::convert(s, d_residuals.at(last).at(t).row(i), g.row_mut(i));
                }
                for l in (0..=last).rev() {
                    let (m, d_m) = (mixes.at(l).row(t), d_mixes.at(l).row_mut(t));
                    let (x, d_layer_input) = (streams(x, residuals, l, t), d_layer_inputs.at(l).row(t));
                    oriented(self.orientation, n, &m[2 * n..], &mut h_res_t, true);
                    let sub_layer = rows::MixBwd {
                        x,
                        y: y.at(l).row(t),
                        g,
                        h_res_t: &h_res_t,
                        h_post: &m[n..2 * n],
                        d_x: Some(next),
                        d_y: d_y.at(l).one(t),
                    };
                    rows::mix_bwd(s, n, &sub_layer, &mut d_m[n..2 * n], &mut d_h_res);
                    oriented(self.orientation, n, &d_h_res, &mut d_m[2 * n..], false);
                    rows::dots(s, (n, 1), x, Rows::one_of(d_layer_input), d_m);
                    let aggregate = (&m[..n], d_layer_input);
                    if l > 0 {
                        rows::add_outer(s, n, next, aggregate, Some(d_residuals.at(l - 1).at(t)), next);
                        (g, next) = (next, g);
                    } else {
                        rows::add_outer(s, n, next, aggregate, None::<Rows<'_, E>>, d_x.at(t));
                    }
                }
            }
        }
    }
}
