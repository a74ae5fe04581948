//! `coefficients` and its gradient, the plain way.

use crate::{Dims, Numerics, Real, ops::sinkhorn};

/// `mixes [T, n(n+2)]`.
pub fn forward<R: Real>(d: &Dims, numerics: &Numerics, z: &[R], alpha: &[R], bias: &[R]) -> Vec<R> {
    let (n, mix) = (d.streams, d.mix());
    let mut mixes = Vec::with_capacity(z.len());
    for z in z.chunks_exact(mix) {
        let t = logits(n, z, alpha, bias);
        mixes.extend(t[..n].iter().map(|t| t.sigmoid() + R::c(numerics.pre_eps)));
        mixes.extend(t[n..2 * n].iter().map(|t| R::c(numerics.post_mult) * t.sigmoid()));
        mixes.extend(sinkhorn::forward(&numerics.sinkhorn, numerics.orientation, n, &t[2 * n..]));
    }
    mixes
}

/// `d_z [T, n(n+2)]`, `d_alpha [3]`, `d_bias [n(n+2)]` for the gradient `d_mixes [T, n(n+2)]`.
pub fn backward<R: Real>(
    d: &Dims,
    numerics: &Numerics,
    z: &[R],
    alpha: &[R],
    bias: &[R],
    d_mixes: &[R],
) -> (Vec<R>, Vec<R>, Vec<R>) {
    let (n, mix) = (d.streams, d.mix());
    let mut d_z = Vec::with_capacity(z.len());
    let mut d_alpha = vec![R::zero(); 3];
    let mut d_bias = vec![R::zero(); mix];
    for (z, d_m) in z.chunks_exact(mix).zip(d_mixes.chunks_exact(mix)) {
        let t = logits(n, z, alpha, bias);
        let mult = [R::one(), R::c(numerics.post_mult)];
        // σ' = σ(t)·σ(-t): 1 - σ would lose the digits of a small one.
        let mut d_t: Vec<R> = (0..2 * n).map(|e| d_m[e] * mult[e / n] * t[e].sigmoid() * (-t[e]).sigmoid()).collect();
        d_t.extend(sinkhorn::backward(&numerics.sinkhorn, numerics.orientation, n, &t[2 * n..], &d_m[2 * n..]));
        for (e, &d_t) in d_t.iter().enumerate() {
            d_z.push(alpha[group(n, e)] * d_t);
            d_alpha[group(n, e)] += d_t * z[e];
            d_bias[e] += d_t;
        }
    }
    (d_z, d_alpha, d_bias)
}

/// `t = alpha·z + bias`.
fn logits<R: Real>(n: usize, z: &[R], alpha: &[R], bias: &[R]) -> Vec<R> {
    z.iter().enumerate().map(|(e, &z)| alpha[group(n, e)] * z + bias[e]).collect()
}

/// Which alpha scales coefficient `e`: 0 for H_pre, 1 for H_post, 2 for H_res.
fn group(n: usize, e: usize) -> usize {
    (e / n).min(2)
}
