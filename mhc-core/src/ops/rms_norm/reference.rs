//! RMSNorm and its gradient, the plain way, for rows of `len` elements behind each other.

use crate::Real;

/// `(mean x² + ε)^(-1/2)` of every row.
pub fn inv_rms<R: Real>(len: usize, eps: f64, x: &[R]) -> Vec<R> {
    let mean = |row: &[R]| row.iter().map(|&v| v * v).sum::<R>() / R::c(len as f64);
    x.chunks(len).map(|row| R::one() / (mean(row) + R::c(eps)).sqrt()).collect()
}

/// `w ⊙ x·inv_rms`.
pub fn forward<R: Real>(len: usize, x: &[R], w: &[R], inv_rms: &[R]) -> Vec<R> {
    x.iter().enumerate().map(|(i, &v)| v * inv_rms[i / len] * w[i % len]).collect()
}

/// `d_x` and `d_w` for the upstream gradient `g` of the rows.
pub fn backward<R: Real>(len: usize, x: &[R], w: &[R], inv_rms: &[R], g: &[R]) -> (Vec<R>, Vec<R>) {
    let mut d_x = Vec::with_capacity(x.len());
    let mut d_w = vec![R::zero(); len];
    for ((x, g), &r) in x.chunks(len).zip(g.chunks(len)).zip(inv_rms) {
        let along_x: R = (0..len).map(|k| w[k] * g[k] * x[k]).sum();
        let pull = r * r * r * along_x / R::c(len as f64);
        for k in 0..len {
            d_x.push(r * w[k] * g[k] - x[k] * pull);
            d_w[k] += r * g[k] * x[k];
        }
    }
    (d_x, d_w)
}
