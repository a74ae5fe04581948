//! `post` and its gradient, the plain way.

use crate::{Dims, Orientation, Real};

/// `x_next [T, n, C]`.
pub fn forward<R: Real>(d: &Dims, orientation: Orientation, x: &[R], y: &[R], mixes: &[R]) -> Vec<R> {
    let (n, c, mix) = (d.streams, d.channels, d.mix());
    let mut x_next = Vec::with_capacity(x.len());
    for t in 0..d.tokens {
        let m = &mixes[t * mix..][..mix];
        for i in 0..n {
            for k in 0..c {
                let mixed: R = (0..n).map(|j| m[2 * n + orientation.index(n, i, j)] * x[(t * n + j) * c + k]).sum();
                x_next.push(mixed + m[n + i] * y[t * c + k]);
            }
        }
    }
    x_next
}

/// `d_x [T, n, C]`, `d_y [T, C]`, `d_mixes [T, n(n+2)]` for the upstream gradient `g [T, n, C]`.
pub fn backward<R: Real>(
    d: &Dims,
    orientation: Orientation,
    x: &[R],
    y: &[R],
    mixes: &[R],
    g: &[R],
) -> (Vec<R>, Vec<R>, Vec<R>) {
    let (n, c, mix) = (d.streams, d.channels, d.mix());
    let mut d_x = vec![R::zero(); x.len()];
    let mut d_y = vec![R::zero(); y.len()];
    let mut d_mixes = vec![R::zero(); mixes.len()];
    for t in 0..d.tokens {
        let (m, d_m) = (&mixes[t * mix..][..mix], &mut d_mixes[t * mix..][..mix]);
        for i in 0..n {
            for k in 0..c {
                let g = g[(t * n + i) * c + k];
                d_y[t * c + k] += m[n + i] * g;
                d_m[n + i] += y[t * c + k] * g;
                for j in 0..n {
                    let e = 2 * n + orientation.index(n, i, j);
                    d_x[(t * n + j) * c + k] += m[e] * g;
                    d_m[e] += x[(t * n + j) * c + k] * g;
                }
            }
        }
    }
    (d_x, d_y, d_mixes)
}
