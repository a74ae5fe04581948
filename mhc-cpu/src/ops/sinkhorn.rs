//! `sinkhorn`, `sinkhorn_log` and their gradients: a matrix per lane through [`Projection`].
//!
//! `sinkhorn_log` is the same function as `sinkhorn` of `logits / tau` with start exp, rows of memory first and no ε: with `a = e^u`
//! and `b = e^v` its updates are `a ← (1/n) / (E·b)`, `b ← (1/n) / (E^T·a)`, and the n's cancel in `P = n·a·E·b`.

use core::ops::Range;

use mhc_core::{
    DType, Dims, Eps, Order, Orientation, SinkhornForm, Start,
    ops::{Sinkhorn, SinkhornBwd, SinkhornLog, SinkhornLogBwd},
};

use super::CpuOp;
use crate::{
    call::{Call, Rows},
    lanes::{Blocks, gather, load, scatter, store},
    simd::{Simd, SimdFn},
    sinkhorn::{Projection, TOGETHER},
};

impl CpuOp for Sinkhorn {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        forward_bytes(d.tokens, &Projection::new(&self.form, self.orientation, d.streams))
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        forward(c, Projection::new(&self.form, self.orientation, c.d.streams), 1.0);
    }
}

impl CpuOp for SinkhornBwd {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        backward_bytes(d.tokens, &Projection::new(&self.form, self.orientation, d.streams))
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        backward(c, Projection::new(&self.form, self.orientation, c.d.streams), 1.0);
    }
}

impl CpuOp for SinkhornLog {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        forward_bytes(d.tokens, &rows_of_memory_first(self.iters, d.streams))
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        forward(c, rows_of_memory_first(self.iters, c.d.streams), self.tau as f32);
    }
}

impl CpuOp for SinkhornLogBwd {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        backward_bytes(d.tokens, &rows_of_memory_first(self.iters, d.streams))
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        backward(c, rows_of_memory_first(self.iters, c.d.streams), self.tau as f32);
    }
}

fn rows_of_memory_first(iters: u32, n: usize) -> Projection {
    let form = SinkhornForm { start: Start::Exp, order: Order::RowsFirst, eps: Eps::None, iters };
    Projection::new(&form, Orientation::ToFrom, n)
}

fn forward_bytes(tokens: usize, projection: &Projection) -> usize {
    Blocks::of(tokens).count() * TOGETHER * projection.group_len() * size_of::<f32>()
}

fn backward_bytes(tokens: usize, projection: &Projection) -> usize {
    Blocks::of(tokens).count() * (2 * projection.group_len() + projection.trace_len()) * size_of::<f32>()
}

fn forward(c: &Call<'_>, projection: Projection, tau: f32) {
    let blocks = Blocks::of(c.d.tokens);
    c.blocks(blocks.count(), |b| c.simd(Forward { c, projection, tau, tokens: blocks.tokens(b), b }));
}

fn backward(c: &Call<'_>, projection: Projection, tau: f32) {
    let blocks = Blocks::of(c.d.tokens);
    c.blocks(blocks.count(), |b| c.simd(Backward { c, projection, tau, tokens: blocks.tokens(b), b }));
}

/// Divides a group by tau.
#[inline(always)]
unsafe fn scale<S: Simd>(s: S, n: usize, tau: f32, group: *mut f32) {
    if tau != 1.0 {
        for i in 0..n * n {
            // SAFETY: the caller's promise: a group has n² vectors.
            unsafe { store(s, group, i, s.div(load(s, group, i), s.splat(tau))) };
        }
    }
}

struct Forward<'a> {
    c: &'a Call<'a>,
    projection: Projection,
    tau: f32,
    tokens: Range<usize>,
    b: usize,
}

impl SimdFn for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Forward { c, projection, tau, tokens, b } = self;
        let (n, strides, group) = (c.d.streams, projection.strides(), projection.group_len());
        let (logits, h_res): (Rows<'_, f32>, Rows<'_, f32>) = (c.rows("logits"), c.rows("h_res"));
        let mut t = tokens.start;
        while t < tokens.end {
            let here = t..(t + TOGETHER * S::LANES).min(tokens.end);
            let groups = here.len().div_ceil(S::LANES);
            // SAFETY: `t + lane` is in range for `lane < count`, and each token is one block's alone, as is part `b` of the scratch.
            unsafe {
                let e = c.scratch::<f32>(0, b, TOGETHER * group).as_mut_ptr();
                for (i, t) in here.clone().step_by(S::LANES).enumerate() {
                    let (e, count) = (e.add(i * group), (here.end - t).min(S::LANES));
                    gather(s, count, (n, n), strides, |lane, i| logits.at(t + lane).ptr(i, 0), e);
                    scale(s, n, tau, e);
                }
                projection.forward(s, e, groups);
                for (i, t) in here.clone().step_by(S::LANES).enumerate() {
                    let (e, count) = (e.add(i * group), (here.end - t).min(S::LANES));
                    scatter(s, count, (n, n), strides, e, |lane, i| h_res.at(t + lane).ptr(i, 0));
                }
            }
            t = here.end;
        }
    }
}

struct Backward<'a> {
    c: &'a Call<'a>,
    projection: Projection,
    tau: f32,
    tokens: Range<usize>,
    b: usize,
}

impl SimdFn for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Backward { c, projection, tau, tokens, b } = self;
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
                scale(s, n, tau, e);
                projection.backward(s, e, g, trace);
                scale(s, n, tau, g);
                scatter(s, count, (n, n), strides, g, |lane, i| d_logits.at(t + lane).ptr(i, 0));
            }
            t += count;
        }
    }
}
