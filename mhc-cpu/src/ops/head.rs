//! `head` and `head_bwd`.

use core::ops::Range;

use mhc_core::{
    DType, Dims,
    ops::{Head, HeadBwd},
};

use super::{CpuOp, project::store};
use crate::{
    call::{Call, Rows, by_dtype},
    projection::{Backward, Direct, Projection, Shape, Step},
    reduce::Partition,
    rows,
    simd::{Lane, Simd, SimdFn},
};

const MAX_STREAMS: usize = mhc_core::MAX_STREAMS;

fn shape(d: &Dims) -> Shape {
    Shape { streams: d.streams, channels: d.channels, columns: d.streams }
}

/// `σ(scale·z + bias)`.
#[inline(always)]
fn sigmoids(scale: f32, bias: &[f32], z: &[f32], out: &mut [f32; MAX_STREAMS]) {
    for (out, (z, bias)) in out.iter_mut().zip(z.iter().zip(bias)) {
        *out = 1.0 / (1.0 + (-(scale * z + bias)).exp());
    }
}

impl CpuOp for Head {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        shape(d).workspace(d.tokens)
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        by_dtype!(c.act, E => {
            let p = Projection { x: c.rows::<E>("x"), phi: c.rows("phi"), weight: None, rms_eps: self.rms_eps as f32, shape: shape(&c.d) };
            // SAFETY: the operands were validated, and the scratch is all the projection's.
            unsafe { p.run(c, &Collapse { c, pre_eps: self.pre_eps as f32, x: p.x, out: c.rows::<E>("out") }) }
        });
    }
}

/// Adds up the streams of a block.
struct Collapse<'a, E> {
    c: &'a Call<'a>,
    pre_eps: f32,
    x: Rows<'a, E>,
    out: Rows<'a, E>,
}

impl<E: Lane> Step for Collapse<'_, E> {
    fn after(&self, tokens: Range<usize>, z: &mut [f32], inv_rms: &[f32]) {
        if self.c.has("z") {
            // SAFETY: each block of tokens has its own rows.
            unsafe { store(self.c.rows("z"), self.c.rows("inv_rms"), tokens.clone(), z, inv_rms) };
        }
        self.c.simd(Weighted { step: self, tokens, z });
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
            let (scale, bias) = (c.rows::<f32>("scale").row(0)[0], c.rows("bias").row(0));
            for (t, z) in self.tokens.zip(self.z.chunks_exact(n)) {
                let mut h = [0.0; MAX_STREAMS];
                sigmoids(scale, bias, z, &mut h);
                h.iter_mut().for_each(|h| *h += pre_eps);
                rows::mix(s, (1, n), &h[..n], x.at(t), None, out.one(t));
            }
        }
    }
}

/// Bytes of the partial sums of `[d_scale | d_bias n]`, behind which the rest of the gradient's scratch begins.
fn sums(d: &Dims) -> usize {
    Partition::of(d.tokens).bytes(1 + d.streams)
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
        let (n, partition) = (c.d.streams, Partition::of(c.d.tokens));
        by_dtype!(c.act, E => {
            let p = Projection { x: c.rows::<E>("x"), phi: c.rows("phi"), weight: None, rms_eps: self.rms_eps as f32, shape: shape(&c.d) };
            let b = Backward { p, d_x: c.rows::<E>("d_x"), d_phi: c.rows("d_phi"), d_weight: None, scratch: sums(&c.d) };
            // SAFETY: the operands were validated; the three parts of the scratch lie behind each other, and a token's rows are its
            // block's alone.
            unsafe {
                let h = Rows::over(c.scratch(weights(&c.d), 0, c.d.tokens * n), n);
                partition.for_each(c, 1 + n, |tokens, sums| c.simd(Logits { b: &b, c, pre_eps: self.pre_eps as f32, h, tokens, sums }));
                partition.sum(c, 1 + n, 0, 1, c.rows("d_scale"));
                partition.sum(c, 1 + n, 1, 1, c.rows("d_bias"));
                b.run(c, &Gate { h, d_out: c.rows::<E>("d_out") });
            }
        });
    }
}

/// From the gradient of the output to that of z, for a block of tokens.
struct Logits<'a, E> {
    b: &'a Backward<'a, E, E>,
    c: &'a Call<'a>,
    pre_eps: f32,
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
        let Logits { b, c, pre_eps, h, tokens, sums } = self;
        let (n, z, inv_rms, d_out) = (c.d.streams, c.rows::<f32>("z"), c.rows::<f32>("inv_rms"), c.rows::<E>("d_out"));
        // SAFETY: parameters have one row; each block of tokens has its own rows.
        unsafe {
            let (scale, bias) = (c.rows::<f32>("scale").row(0)[0], c.rows("bias").row(0));
            let upstream = b.upstream(c);
            for t in tokens {
                let (z, mut sigma, mut d_h, mut d_z) =
                    (z.row(t), [0.0; MAX_STREAMS], [0.0; MAX_STREAMS], [0.0; MAX_STREAMS]);
                sigmoids(scale, bias, z, &mut sigma);
                rows::dots(s, (n, 1), b.p.x.at(t), d_out.one(t), &mut d_h);
                for i in 0..n {
                    let d_t = d_h[i] * sigma[i] * (1.0 - sigma[i]);
                    sums[0] += d_t * z[i];
                    sums[1 + i] += d_t;
                    d_z[i] = scale * d_t;
                    *h.ptr(t, i) = sigma[i] + pre_eps;
                }
                upstream.set(&b.p.shape, t, z, *inv_rms.ptr(0, t), &d_z[..n]);
            }
        }
    }
}

/// What x gets from the output directly: `H_i·d_out`.
struct Gate<'a, E> {
    h: Rows<'a, f32>,
    d_out: Rows<'a, E>,
}

impl<E: Lane> Direct for Gate<'_, E> {
    #[inline(always)]
    unsafe fn shared<S: Simd>(&self, s: S, t: usize, c: usize, len: usize, shared: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { rows::widen(s, self.d_out.ptr(t, c), len, shared) };
    }

    #[inline(always)]
    unsafe fn term<S: Simd>(&self, s: S, t: usize, i: usize, _: usize, _: usize, shared: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.mul(s.splat(*self.h.ptr(t, i)), s.load_f32(shared)) }
    }
}
