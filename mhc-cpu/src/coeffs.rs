//! Mixing coefficients of many tokens: what `pre`, `post_pre`, the layers and `coefficients` itself are made of.

use core::ops::Range;

use mhc_core::Numerics;

use crate::{
    call::Rows,
    lanes::{MAX_LANES, gather, load, scatter, store},
    simd::Simd,
    sinkhorn::Projection,
};

/// f32s of scratch that [`Coeffs`]' functions need, for any number of tokens.
pub(crate) fn scratch_len(n: usize, numerics: &Numerics) -> usize {
    let groups = 3 * n * (n + 2) * MAX_LANES;
    groups + Projection::new(&numerics.sinkhorn, numerics.orientation, n).trace_len()
}

/// The parameters of `coefficients`.
#[derive(Clone, Copy)]
pub(crate) struct Coeffs<'a> {
    pub n: usize,
    pub numerics: &'a Numerics,
    /// `[3]`: of H_pre, H_post, H_res.
    pub alpha: &'a [f32],
    /// `[n(n+2)]`
    pub bias: &'a [f32],
}

impl Coeffs<'_> {
    /// `mixes` from `z` for some tokens. What a token gets does not depend on which others are in the range; ranges of a multiple of 16
    /// tokens fill the vectors. The rows of `mixes` may be those of `z`.
    ///
    /// # Safety
    /// `z` and `mixes` have the tokens as rows of n(n+2), `scratch` has [`scratch_len`] elements; no one else writes these rows.
    #[inline(always)]
    pub unsafe fn forward<S: Simd>(
        &self,
        s: S,
        z: Rows<'_, f32>,
        mixes: Rows<'_, f32>,
        tokens: Range<usize>,
        scratch: &mut [f32],
    ) {
        debug_assert!(scratch.len() >= scratch_len(self.n, self.numerics));
        let projection = Projection::new(&self.numerics.sinkhorn, self.numerics.orientation, self.n);
        let (mix, gates) = (self.n * (self.n + 2), 2 * self.n);
        let group = scratch.as_mut_ptr();
        let mut t = tokens.start;
        while t < tokens.end {
            let count = (tokens.end - t).min(S::LANES);
            // SAFETY: `t + lane` is in range for `lane < count`; the scratch begins with room for n(n+2) vectors.
            unsafe {
                self.gather(s, count, &projection, z, t, group);
                for e in 0..mix {
                    store(s, group, e, self.logit(s, &projection, e, load(s, group, e)));
                }
                for e in 0..gates {
                    let sigmoid = s.sigmoid(load(s, group, e));
                    let h = if e < self.n {
                        s.add(sigmoid, s.splat(self.numerics.pre_eps as f32))
                    } else {
                        s.mul(sigmoid, s.splat(self.numerics.post_mult as f32))
                    };
                    store(s, group, e, h);
                }
                projection.forward(s, group.add(gates * S::LANES), 1);
                self.scatter(s, count, &projection, group, mixes, t);
            }
            t += count;
        }
    }

    /// `d_z` from `z` and `d_mixes` for some tokens; adds their `[d_alpha 3 | d_bias n(n+2)]` to `sums`, group after group: the sums are
    /// the same whenever the ranges handed over are. The rows of `d_z` may be those of `z` or `d_mixes`.
    ///
    /// # Safety
    /// As [`forward`](Self::forward), and `sums` has 3 + n(n+2) elements.
    #[inline(always)]
    pub unsafe fn backward<S: Simd>(
        &self,
        s: S,
        z: Rows<'_, f32>,
        d_mixes: Rows<'_, f32>,
        d_z: Rows<'_, f32>,
        tokens: Range<usize>,
        scratch: &mut [f32],
        sums: &mut [f32],
    ) {
        debug_assert!(scratch.len() >= scratch_len(self.n, self.numerics) && sums.len() >= 3 + self.bias.len());
        let projection = Projection::new(&self.numerics.sinkhorn, self.numerics.orientation, self.n);
        let (mix, gates) = (self.n * (self.n + 2), 2 * self.n);
        let (groups, trace) = scratch.split_at_mut(3 * mix * MAX_LANES);
        let z_group = groups.as_mut_ptr();
        let mut t = tokens.start;
        while t < tokens.end {
            let count = (tokens.end - t).min(S::LANES);
            // SAFETY: `t + lane` is in range for `lane < count`; the scratch begins with three groups of n(n+2) vectors.
            unsafe {
                let (logits, g) = (z_group.add(mix * MAX_LANES), z_group.add(2 * mix * MAX_LANES));
                self.gather(s, count, &projection, z, t, z_group);
                self.gather(s, count, &projection, d_mixes, t, g);
                for e in 0..mix {
                    store(s, logits, e, self.logit(s, &projection, e, load(s, z_group, e)));
                }
                for e in 0..gates {
                    let (logit, d) = (load(s, logits, e), load(s, g, e));
                    // σ' = σ(t)·σ(-t): 1 - σ would lose the digits of a small one.
                    let slope = s.mul(s.sigmoid(logit), s.sigmoid(s.sub(s.zero(), logit)));
                    let d = if e < self.n { d } else { s.mul(d, s.splat(self.numerics.post_mult as f32)) };
                    store(s, g, e, s.mul(d, slope));
                }
                projection.backward(s, logits.add(gates * S::LANES), g.add(gates * S::LANES), trace);
                self.reduce(s, &projection, z_group, g, sums);
                self.scatter(s, count, &projection, g, d_z, t);
            }
            t += count;
        }
    }

    /// Adds a group to the sums and replaces its d_t by `d_z = alpha·d_t`.
    #[inline(always)]
    unsafe fn reduce<S: Simd>(&self, s: S, projection: &Projection, z: *const f32, g: *mut f32, sums: &mut [f32]) {
        let n = self.n;
        let mut from = 0;
        for (a, len) in [n, n, n * n].into_iter().enumerate() {
            let mut d_alpha = s.zero();
            for e in from..from + len {
                // SAFETY: `e` is below n(n+2).
                unsafe {
                    let d_t = load(s, g, e);
                    d_alpha = s.fma(d_t, load(s, z, e), d_alpha);
                    sums[3 + self.in_memory(projection, e)] += s.sum(d_t);
                    store(s, g, e, s.mul(d_t, s.splat(self.alpha[a])));
                }
            }
            sums[a] += s.sum(d_alpha);
            from += len;
        }
    }

    /// `alpha·z + bias` for element `e` of a group.
    #[inline(always)]
    fn logit<S: Simd>(&self, s: S, projection: &Projection, e: usize, z: S::V) -> S::V {
        let bias = self.bias[self.in_memory(projection, e)];
        s.fma(s.splat(self.alpha[(e / self.n).min(2)]), z, s.splat(bias))
    }

    /// Where element `e` of a group is in a row of memory.
    #[inline(always)]
    fn in_memory(&self, projection: &Projection, e: usize) -> usize {
        let n = self.n;
        if e < 2 * n || projection.strides().1 == 1 { e } else { 2 * n + (e - 2 * n) % n * n + (e - 2 * n) / n }
    }

    #[inline(always)]
    unsafe fn gather<S: Simd>(
        &self,
        s: S,
        count: usize,
        projection: &Projection,
        from: Rows<'_, f32>,
        t: usize,
        group: *mut f32,
    ) {
        let (n, gates) = (self.n, 2 * self.n);
        // SAFETY: the caller's promise: rows `t..t + count` are there, and the group has n(n+2) vectors.
        unsafe {
            gather(s, count, (1, gates), (0, 1), |lane, _| from.ptr(t + lane, 0), group);
            let block = |lane, i| from.ptr(t + lane, gates + i * n).cast_const();
            gather(s, count, (n, n), projection.strides(), block, group.add(gates * S::LANES));
        }
    }

    #[inline(always)]
    unsafe fn scatter<S: Simd>(
        &self,
        s: S,
        count: usize,
        projection: &Projection,
        group: *const f32,
        to: Rows<'_, f32>,
        t: usize,
    ) {
        let (n, gates) = (self.n, 2 * self.n);
        // SAFETY: the caller's promise: rows `t..t + count` are there and ours, and the group has n(n+2) vectors.
        unsafe {
            scatter(s, count, (1, gates), (0, 1), group, |lane, _| to.ptr(t + lane, 0));
            let block = |lane, i| to.ptr(t + lane, gates + i * n);
            scatter(s, count, (n, n), projection.strides(), group.add(gates * S::LANES), block);
        }
    }
}
