//! `expand` and its gradient, the plain way.

use crate::{Dims, Real};

/// `x [T, n, C]`.
pub fn forward<R: Real>(d: &Dims, h: &[R]) -> Vec<R> {
    h.chunks(d.channels).flat_map(|h| h.repeat(d.streams)).collect()
}

/// `d_h [T, C]` for the upstream gradient `g [T, n, C]`.
pub fn backward<R: Real>(d: &Dims, g: &[R]) -> Vec<R> {
    let (n, c) = (d.streams, d.channels);
    (0..d.tokens * c).map(|e| (0..n).map(|i| g[(e / c * n + i) * c + e % c]).sum()).collect()
}
