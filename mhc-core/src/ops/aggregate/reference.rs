//! `aggregate` and its gradient, the plain way.

use crate::{Dims, Real};

/// `layer_input [T, C]`.
pub fn forward<R: Real>(d: &Dims, x: &[R], mixes: &[R]) -> Vec<R> {
    let (n, c, mix) = (d.streams, d.channels, d.mix());
    let mut layer_input = Vec::with_capacity(d.tokens * c);
    for t in 0..d.tokens {
        layer_input.extend((0..c).map(|k| (0..n).map(|i| mixes[t * mix + i] * x[(t * n + i) * c + k]).sum::<R>()));
    }
    layer_input
}

/// `d_x [T, n, C]` and `d_mixes [T, n(n+2)]` for the upstream gradient `g [T, C]`.
pub fn backward<R: Real>(d: &Dims, x: &[R], mixes: &[R], g: &[R]) -> (Vec<R>, Vec<R>) {
    let (n, c, mix) = (d.streams, d.channels, d.mix());
    let mut d_x = Vec::with_capacity(x.len());
    let mut d_mixes = vec![R::zero(); mixes.len()];
    for t in 0..d.tokens {
        for i in 0..n {
            for k in 0..c {
                d_x.push(mixes[t * mix + i] * g[t * c + k]);
                d_mixes[t * mix + i] += g[t * c + k] * x[(t * n + i) * c + k];
            }
        }
    }
    (d_x, d_mixes)
}
