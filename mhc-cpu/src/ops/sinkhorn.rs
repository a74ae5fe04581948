//! `sinkhorn` and `sinkhorn_bwd`: a matrix per lane through [`Projection`].

use core::ops::Range;

use mhc_core::{
    DType, Dims,
    ops::{Sinkhorn, SinkhornBwd},
};

use super::CpuOp;
use crate::{
    call::{Call, Rows},
    lanes::{gather, scatter},
    reduce::Partition,
    simd::{Simd, SimdFn},
    sinkhorn::Projection,
};

impl CpuOp for Sinkhorn {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        let projection = Projection::new(&self.form, self.orientation, d.streams);
        Partition::of(d.tokens).bytes(projection.group_len())
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        let projection = Projection::new(&self.form, self.orientation, c.d.streams);
        let partition = Partition::of(c.d.tokens);
        let run = |b| c.simd(Forward { c, projection, tokens: partition.tokens(b), b });
        c.blocks(partition.blocks(), run);
    }
}

struct Forward<'a> {
    c: &'a Call<'a>,
    projection: Projection,
    tokens: Range<usize>,
    b: usize,
}

impl SimdFn for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Forward { c, projection, tokens, b } = self;
        let (n, strides) = (c.d.streams, projection.strides());
        let (logits, h_res): (Rows<'_, f32>, Rows<'_, f32>) = (c.rows("logits"), c.rows("h_res"));
        let mut t = tokens.start;
        while t < tokens.end {
            let count = (tokens.end - t).min(S::LANES);
            // SAFETY: `t + lane` is in range for `lane < count`, and each token is one block's alone, as is part `b` of the scratch.
            unsafe {
                let e = c.scratch::<f32>(0, b, projection.group_len()).as_mut_ptr();
                gather(s, count, (n, n), strides, |lane, i| logits.at(t + lane).ptr(i, 0), e);
                projection.forward(s, e);
                scatter(s, count, (n, n), strides, e, |lane, i| h_res.at(t + lane).ptr(i, 0));
            }
            t += count;
        }
    }
}

impl CpuOp for SinkhornBwd {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        let projection = Projection::new(&self.form, self.orientation, d.streams);
        Partition::of(d.tokens).bytes(2 * projection.group_len() + projection.trace_len())
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        let projection = Projection::new(&self.form, self.orientation, c.d.streams);
        let partition = Partition::of(c.d.tokens);
        let run = |b| c.simd(Backward { c, projection, tokens: partition.tokens(b), b });
        c.blocks(partition.blocks(), run);
    }
}

struct Backward<'a> {
    c: &'a Call<'a>,
    projection: Projection,
    tokens: Range<usize>,
    b: usize,
}

impl SimdFn for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Backward { c, projection, tokens, b } = self;
        let (n, strides, group) = (c.d.streams, projection.strides(), projection.group_len());
        let (logits, d_h_res) = (c.rows::<f32>("logits"), c.rows::<f32>("d_h_res"));
        let d_logits = c.rows::<f32>("d_logits");
        let mut t = tokens.start;
        while t < tokens.end {
            let count = (tokens.end - t).min(S::LANES);
            // SAFETY: `t + lane` is in range for `lane < count`, and each token is one block's alone, as is part `b` of the scratch.
            unsafe {
                let scratch = c.scratch::<f32>(0, b, 2 * group + projection.trace_len());
                let (groups, trace) = scratch.split_at_mut(2 * group);
                let (e, g) = groups.split_at_mut(group);
                let (e, g) = (e.as_mut_ptr(), g.as_mut_ptr());
                gather(s, count, (n, n), strides, |lane, i| logits.at(t + lane).ptr(i, 0), e);
                gather(s, count, (n, n), strides, |lane, i| d_h_res.at(t + lane).ptr(i, 0), g);
                projection.backward(s, e, g, trace);
                scatter(s, count, (n, n), strides, g, |lane, i| d_logits.at(t + lane).ptr(i, 0));
            }
            t += count;
        }
    }
}
