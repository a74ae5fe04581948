//! `orthostochastic` and `orthostochastic_bwd`: a matrix per lane, products of n×n matrices of vectors.

use core::ops::Range;

use mhc_core::{
    DType, Dims,
    ops::{Orthostochastic, OrthostochasticBwd, orthostochastic::EPS},
};

use super::CpuOp;
use crate::{
    call::Call,
    lanes::{Blocks, MAX_LANES, gather, load, scatter, store},
    simd::{Simd, SimdFn},
};

/// Matrices of scratch in forward: X, its successor, A, B.
const FORWARD: usize = 4;

/// Matrices of scratch in backward besides every X: logits, G, its successor, A, B, dB, dA.
const BACKWARD: usize = 7;

fn matrix_len(n: usize) -> usize {
    n * n * MAX_LANES
}

impl CpuOp for Orthostochastic {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        Blocks::of(d.tokens).count() * FORWARD * matrix_len(d.streams) * size_of::<f32>()
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        let blocks = Blocks::of(c.d.tokens);
        c.blocks(blocks.count(), |b| c.simd(Forward { c, coeffs: &self.coeffs, tokens: blocks.tokens(b), b }));
    }
}

struct Forward<'a> {
    c: &'a Call<'a>,
    coeffs: &'a [[f64; 3]],
    tokens: Range<usize>,
    b: usize,
}

impl SimdFn for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Forward { c, coeffs, tokens, b } = self;
        let n = c.d.streams;
        let (logits, h_res) = (c.rows::<f32>("logits"), c.rows::<f32>("h_res"));
        let mut t = tokens.start;
        while t < tokens.end {
            let count = (tokens.end - t).min(S::LANES);
            // SAFETY: `t + lane` is in range for `lane < count`, and each token is one block's alone, as is part `b` of the scratch.
            unsafe {
                let scratch = c.scratch::<f32>(0, b, FORWARD * matrix_len(n)).as_mut_ptr();
                let at = |i| scratch.add(i * matrix_len(n));
                let (mut x, mut next, gram, poly) = (at(0), at(1), at(2), at(3));
                gather(s, count, (n, n), (n, 1), |lane, i| logits.at(t + lane).ptr(i, 0), x);
                let q = s.div(s.splat(1.0), s.add(norm(s, n, x), s.splat(EPS as f32)));
                combine(s, n, q, x, s.zero(), x, x);
                for k in coeffs {
                    step(s, n, k, x, gram, poly, next);
                    (x, next) = (next, x);
                }
                for i in 0..n * n {
                    store(s, x, i, s.mul(load(s, x, i), load(s, x, i)));
                }
                scatter(s, count, (n, n), (n, 1), x, |lane, i| h_res.at(t + lane).ptr(i, 0));
            }
            t += count;
        }
    }
}

impl CpuOp for OrthostochasticBwd {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        let matrices = self.coeffs.len() + 1 + BACKWARD;
        Blocks::of(d.tokens).count() * matrices * matrix_len(d.streams) * size_of::<f32>()
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        let blocks = Blocks::of(c.d.tokens);
        c.blocks(blocks.count(), |b| c.simd(Backward { c, coeffs: &self.coeffs, tokens: blocks.tokens(b), b }));
    }
}

struct Backward<'a> {
    c: &'a Call<'a>,
    coeffs: &'a [[f64; 3]],
    tokens: Range<usize>,
    b: usize,
}

impl SimdFn for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Backward { c, coeffs, tokens, b } = self;
        let (n, steps, len) = (c.d.streams, coeffs.len(), matrix_len(c.d.streams));
        let (logits, d_h_res) = (c.rows::<f32>("logits"), c.rows::<f32>("d_h_res"));
        let d_logits = c.rows::<f32>("d_logits");
        let one = s.splat(1.0);
        let mut t = tokens.start;
        while t < tokens.end {
            let count = (tokens.end - t).min(S::LANES);
            // SAFETY: `t + lane` is in range for `lane < count`, and each token is one block's alone, as is part `b` of the scratch.
            unsafe {
                let scratch = c.scratch::<f32>(0, b, (steps + 1 + BACKWARD) * len).as_mut_ptr();
                let at = |i| scratch.add(i * len);
                let (l, mut g, mut next) = (at(steps + 1), at(steps + 2), at(steps + 3));
                let (gram, poly, d_poly, d_gram) = (at(steps + 4), at(steps + 5), at(steps + 6), at(steps + 7));
                gather(s, count, (n, n), (n, 1), |lane, i| logits.at(t + lane).ptr(i, 0), l);
                gather(s, count, (n, n), (n, 1), |lane, i| d_h_res.at(t + lane).ptr(i, 0), g);
                let norm = norm(s, n, l);
                let q = s.div(one, s.add(norm, s.splat(EPS as f32)));
                combine(s, n, q, l, s.zero(), l, at(0));
                for (k, abc) in coeffs.iter().enumerate() {
                    step(s, n, abc, at(k), gram, poly, at(k + 1));
                }
                for i in 0..n * n {
                    let twice = s.mul(s.splat(2.0), load(s, at(steps), i));
                    store(s, g, i, s.mul(twice, load(s, g, i)));
                }
                for (k, abc) in coeffs.iter().enumerate().rev() {
                    let [a, b, c] = abc.map(|v| s.splat(v as f32));
                    let x = at(k);
                    polynomial(s, n, abc, x, gram, poly);
                    product(s, n, (g, n, 1), (x, 1, n), d_poly);
                    // d_gram = b·dB + c·(dB·A + A·dB), with `next` for the products.
                    product(s, n, (d_poly, n, 1), (gram, n, 1), next);
                    combine(s, n, b, d_poly, c, next, d_gram);
                    product(s, n, (gram, n, 1), (d_poly, n, 1), next);
                    combine(s, n, one, d_gram, c, next, d_gram);
                    // G ← a·G + B·G + (dA + dA^T)·X, with `d_poly` for the products.
                    product(s, n, (poly, n, 1), (g, n, 1), next);
                    combine(s, n, a, g, one, next, next);
                    product(s, n, (d_gram, n, 1), (x, n, 1), d_poly);
                    combine(s, n, one, next, one, d_poly, next);
                    product(s, n, (d_gram, 1, n), (x, n, 1), d_poly);
                    combine(s, n, one, next, one, d_poly, next);
                    (g, next) = (next, g);
                }
                let mut along = s.zero();
                for i in 0..n * n {
                    along = s.fma(load(s, g, i), load(s, l, i), along);
                }
                let along = s.mul(along, s.mul(q, q));
                let along = s.select_gt(norm, s.zero(), s.div(s.sub(s.zero(), along), norm), s.zero());
                combine(s, n, q, g, along, l, g);
                scatter(s, count, (n, n), (n, 1), g, |lane, i| d_logits.at(t + lane).ptr(i, 0));
            }
            t += count;
        }
    }
}

/// `next = a·X + B·X`.
///
/// # Safety
/// Every pointer holds n² vectors of its own.
#[inline(always)]
unsafe fn step<S: Simd>(s: S, n: usize, abc: &[f64; 3], x: *const f32, gram: *mut f32, poly: *mut f32, next: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        polynomial(s, n, abc, x, gram, poly);
        product(s, n, (poly, n, 1), (x, n, 1), next);
        combine(s, n, s.splat(abc[0] as f32), x, s.splat(1.0), next, next);
    }
}

/// `A = X·X^T` and `B = b·A + c·A²`.
///
/// # Safety
/// As [`step`].
#[inline(always)]
unsafe fn polynomial<S: Simd>(s: S, n: usize, abc: &[f64; 3], x: *const f32, gram: *mut f32, poly: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        product(s, n, (x, n, 1), (x, 1, n), gram);
        product(s, n, (gram, n, 1), (gram, n, 1), poly);
        combine(s, n, s.splat(abc[1] as f32), gram, s.splat(abc[2] as f32), poly, poly);
    }
}

/// `‖x‖_F`.
///
/// # Safety
/// `x` holds n² vectors.
#[inline(always)]
unsafe fn norm<S: Simd>(s: S, n: usize, x: *const f32) -> S::V {
    let mut squares = s.zero();
    for i in 0..n * n {
        // SAFETY: the caller's promise.
        let v = unsafe { load(s, x, i) };
        squares = s.fma(v, v, squares);
    }
    s.sqrt(squares)
}

/// `out = p·a + q·b`, elementwise; `out` may be `a` or `b`.
///
/// # Safety
/// Every pointer holds n² vectors.
#[inline(always)]
unsafe fn combine<S: Simd>(s: S, n: usize, p: S::V, a: *const f32, q: S::V, b: *const f32, out: *mut f32) {
    for i in 0..n * n {
        // SAFETY: the caller's promise.
        unsafe { store(s, out, i, s.fma(p, load(s, a, i), s.mul(q, load(s, b, i)))) };
    }
}

/// `out = a·b`, each operand with its distance between rows and between columns.
///
/// # Safety
/// Every pointer holds n² vectors, distances are n and 1 in either order, and `out` is neither operand.
#[inline(always)]
unsafe fn product<S: Simd>(
    s: S,
    n: usize,
    a: (*const f32, usize, usize),
    b: (*const f32, usize, usize),
    out: *mut f32,
) {
    for i in 0..n {
        let mut j = 0;
        // SAFETY: the caller's promise; groups of columns cover n.
        unsafe {
            while j + 4 <= n {
                product_of::<S, 4>(s, n, a, b, out, i, j);
                j += 4;
            }
            while j < n {
                product_of::<S, 1>(s, n, a, b, out, i, j);
                j += 1;
            }
        }
    }
}

/// `G` columns of row `i` of [`product`].
///
/// # Safety
/// As [`product`], and `j + G <= n`.
#[inline(always)]
unsafe fn product_of<S: Simd, const G: usize>(
    s: S,
    n: usize,
    (a, ai, ak): (*const f32, usize, usize),
    (b, bk, bj): (*const f32, usize, usize),
    out: *mut f32,
    i: usize,
    j: usize,
) {
    let mut acc = [s.zero(); G];
    // SAFETY: `i`, `j + q` and `k` are below n.
    unsafe {
        for k in 0..n {
            let v = load(s, a, i * ai + k * ak);
            for q in 0..G {
                acc[q] = s.fma(v, load(s, b, k * bk + (j + q) * bj), acc[q]);
            }
        }
        for q in 0..G {
            store(s, out, i * n + j + q, acc[q]);
        }
    }
}
