//! `collapse` and its gradient, the plain way: those of `expand` the other way round, scaled.

use super::weight;
use crate::{Dims, Real, ops::expand};

/// `h [T, C]`.
pub fn forward<R: Real>(d: &Dims, mean: bool, x: &[R]) -> Vec<R> {
    let w = R::c(weight(mean, d.streams));
    expand::backward(d, x).into_iter().map(|v| w * v).collect()
}

/// `d_x [T, n, C]` for the upstream gradient `g [T, C]`.
pub fn backward<R: Real>(d: &Dims, mean: bool, g: &[R]) -> Vec<R> {
    let w = R::c(weight(mean, d.streams));
    expand::forward(d, g).into_iter().map(|v| w * v).collect()
}
