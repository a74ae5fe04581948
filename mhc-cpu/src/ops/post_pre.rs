//! `post_pre` and `post_pre_bwd`: `post` writes the rows of 16 tokens, `pre` takes them from cache.

use core::{marker::PhantomData, ops::Range};

use mhc_core::{
    DType, Dims, Orientation,
    ops::{PostPre, PostPreBwd},
};

use super::{
    CpuOp,
    post::{self, MAX_NN, oriented},
    pre::{self, Half},
    pre_bwd::{self, Carry, Half as HalfBwd},
};
use crate::{
    call::{Call, Rows, by_dtype},
    projection::{Step, Streams, Tokens},
    rows,
    simd::{Lane, Simd, SimdFn},
};

impl CpuOp for PostPre {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        pre::workspace(d, &self.numerics)
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        let p = pre::projection(c, &self.numerics, c.weight("norm_weight"), Streams::of(c, "x_next"));
        by_dtype!(c.act, E => {
            let (x, mixes, layer_input) = (c.rows::<E>("x_next"), c.rows("mixes_next"), c.outputs("layer_input"));
            let half = Half { c, numerics: &self.numerics, rms_norm: self.rms_norm, x, mixes, layer_input };
            // SAFETY: the operands were validated, the scratch has the parts of `workspace`, and only `before` writes x_next.
            unsafe { p.run(c, &Both(half)) };
        });
    }
}

struct Both<'a, E>(Half<'a, E>);

impl<E: Lane> Step for Both<'_, E> {
    fn before(&self, tokens: &Tokens) {
        self.0.c.simd(Post { half: &self.0, tokens: tokens.range.clone() });
    }

    fn written(&self, t: usize) -> (*const u8, usize) {
        self.0.written(t)
    }

    fn after(&self, tokens: &Tokens, z: &mut [f32], inv_rms: &[f32]) {
        self.0.after(tokens, z, inv_rms);
    }
}

/// The `post` half of a block.
struct Post<'a, 'b, E> {
    half: &'a Half<'b, E>,
    tokens: Range<usize>,
}

impl<E: Lane> SimdFn for Post<'_, '_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Half { c, numerics, x: x_next, .. } = self.half;
        let (x, y, mixes) = (c.rows::<E>("x"), c.rows::<E>("y"), c.rows("mixes"));
        for t in self.tokens {
            // SAFETY: `t` is in range, its rows have the shapes of the description, and each token is one block's alone.
            unsafe {
                let attributes = (numerics.orientation, c.d.streams);
                post::token(s, attributes, mixes.row(t), x.at(t), y.row(t), x_next.at(t));
            }
        }
    }
}

/// Tokens of one block of the `post` half of backward.
const GRAIN: usize = 16;

impl CpuOp for PostPreBwd {
    /// That of `pre_bwd`, and the whole gradient of x_next in f32.
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        pre_bwd::workspace(d, &self.numerics) + d.tokens * d.row() * size_of::<f32>()
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        let PostPreBwd { numerics, rms_norm, .. } = self;
        by_dtype!(c.act, E => {
            // SAFETY: the operands were validated; the gradient of x_next has its own part of the scratch.
            unsafe {
                let offset = pre_bwd::workspace(&c.d, numerics);
                let g = Rows::over(c.scratch::<f32>(offset, 0, c.d.tokens * c.d.row()), c.d.channels).tokens(c.d.streams);
                let half = HalfBwd {
                    c,
                    numerics,
                    rms_norm: rms_norm.is_some(),
                    x: c.rows::<E>("x_next"),
                    streams: Streams::of(c, "x_next"),
                    d_x: Streams::F32(g),
                    d_mixes: c.rows("d_mixes_next"),
                    carry: Carry::Whole(c.rows::<E>("d_x_next")),
                };
                half.run();
                c.tokens(GRAIN, |tokens| c.simd(PostBackward::<E> { c, orientation: numerics.orientation, g, tokens, e: PhantomData }));
            }
        });
    }
}

/// The `post` half of backward.
struct PostBackward<'a, E> {
    c: &'a Call<'a>,
    orientation: Orientation,
    /// The gradient of x_next.
    g: Rows<'a, f32>,
    tokens: Range<usize>,
    e: PhantomData<E>,
}

impl<E: Lane> SimdFn for PostBackward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let PostBackward { c, orientation, g, .. } = self;
        let n = c.d.streams;
        let (x, y, mixes) = (c.rows::<E>("x"), c.rows::<E>("y"), c.rows("mixes"));
        let (d_x, d_y, d_mixes) = (c.outputs::<E>("d_x"), c.rows::<E>("d_y"), c.rows("d_mixes"));
        let (mut h_res_t, mut d_h_res) = ([0.0; MAX_NN], [0.0; MAX_NN]);
        for t in self.tokens {
            // SAFETY: `t` is in range, its rows have the shapes of the description, and each token is one block's alone.
            unsafe {
                let (m, d_m, g) = (mixes.row(t), d_mixes.row_mut(t), g.at(t));
                oriented(orientation, n, &m[2 * n..], &mut h_res_t, true);
                let h_post = &m[n..2 * n];
                let (d_x, d_y) = (Some(d_x.at(t)), d_y.one(t));
                let token = rows::MixBwd { x: x.at(t), y: y.row(t), g, h_res_t: &h_res_t, h_post, d_x, d_y };
                d_m[..n].fill(0.0);
                rows::mix_bwd(s, n, &token, &mut d_m[n..2 * n], &mut d_h_res);
                oriented(orientation, n, &d_h_res, &mut d_m[2 * n..], false);
            }
        }
    }
}
