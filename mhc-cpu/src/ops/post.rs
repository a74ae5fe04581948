//! `post` and `post_bwd`: one pass over the streams, a token at a time, its rows in L1.

use core::{marker::PhantomData, ops::Range};

use mhc_core::{
    Orientation,
    ops::{Post, PostBwd},
};

use super::CpuOp;
use crate::{
    call::{Call, Rows, by_dtype},
    rows,
    simd::{Lane, Simd, SimdFn},
};

/// Tokens of one block: enough to hide the cost of handing it to a thread, few enough to balance.
const GRAIN: usize = 16;

/// The largest n·n.
pub(crate) const MAX_NN: usize = 32 * 32;

/// Copies the n·n block `from` to `to` as `[to][from]`, or, `transposed`, as `[from][to]`, whatever its orientation in memory.
#[inline(always)]
pub(crate) fn oriented(orientation: Orientation, n: usize, from: &[f32], to: &mut [f32], transposed: bool) {
    if (orientation == Orientation::ToFrom) != transposed {
        to[..n * n].copy_from_slice(&from[..n * n]);
    } else {
        for i in 0..n {
            for j in 0..n {
                to[i * n + j] = from[j * n + i];
            }
        }
    }
}

/// `x_next_i = Σ_j H_res[i,j]·x_j + H_post[i]·y` of one token, from its `mixes`.
///
/// # Safety
/// `x` and `x_next` have n rows of `y`'s length; nothing else uses those of `x_next`.
#[inline(always)]
pub(super) unsafe fn token<S: Simd, E: Lane, Y: Lane>(
    s: S,
    (orientation, n): (Orientation, usize),
    mixes: &[f32],
    x: Rows<'_, E>,
    y: &[Y],
    x_next: Rows<'_, E>,
) {
    let mut h = [0.0; MAX_NN];
    oriented(orientation, n, &mixes[2 * n..], &mut h, false);
    // SAFETY: the caller's promise is the callee's.
    unsafe { rows::mix_add(s, (n, n), &h, x, Some((&mixes[n..2 * n], y)), x_next) };
}

impl CpuOp for Post {
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
        let (x, y, mixes, x_next) = (c.rows::<E>("x"), c.rows::<E>("y"), c.rows("mixes"), c.outputs::<E>("x_next"));
        for t in self.tokens {
            // SAFETY: `t` is in range, its rows have the shapes of the description, and each token is one block's alone.
            unsafe { token(s, (self.orientation, n), mixes.row(t), x.at(t), y.row(t), x_next.at(t)) };
        }
    }
}

impl CpuOp for PostBwd {
    unsafe fn launch(&self, c: &Call<'_>) {
        let orientation = self.orientation;
        by_dtype!(c.act, E => c.tokens(GRAIN, |tokens| c.simd(Backward::<E> { c, orientation, tokens, e: PhantomData })));
    }
}

struct Backward<'a, E> {
    c: &'a Call<'a>,
    orientation: Orientation,
    tokens: Range<usize>,
    e: PhantomData<E>,
}

impl<E: Lane> SimdFn for Backward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let (c, n) = (self.c, self.c.d.streams);
        let (x, y, g) = (c.rows::<E>("x"), c.rows::<E>("y"), c.rows::<E>("d_x_next"));
        let (d_x, d_y) = (c.outputs::<E>("d_x"), c.rows::<E>("d_y"));
        let (mixes, d_mixes) = (c.rows("mixes"), c.rows("d_mixes"));
        let (mut h_res_t, mut d_h_res) = ([0.0; MAX_NN], [0.0; MAX_NN]);
        for t in self.tokens {
            // SAFETY: `t` is in range, its rows have the shapes of the description, and each token is one block's alone.
            unsafe {
                let (m, d_m) = (mixes.row(t), d_mixes.row_mut(t));
                oriented(self.orientation, n, &m[2 * n..], &mut h_res_t, true);
                let token = rows::MixBwd {
                    x: x.at(t),
                    y: y.row(t),
                    g: g.at(t),
                    h_res_t: &h_res_t,
                    h_post: &m[n..2 * n],
                    d_x: c.has("d_x").then(|| d_x.at(t)),
                    d_y: d_y.one(t),
                };
                d_m[..n].fill(0.0);
                rows::mix_bwd(s, n, &token, &mut d_m[n..2 * n], &mut d_h_res);
                oriented(self.orientation, n, &d_h_res, &mut d_m[2 * n..], false);
            }
        }
    }
}
