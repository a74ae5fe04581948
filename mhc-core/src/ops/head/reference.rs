//! `head` and its gradient, the plain way.

use crate::{Dims, Real, ops::project};

/// `out [T, C]`, `z [T, n]`, `inv_rms [T]`.
pub fn forward<R: Real>(
    d: &Dims,
    rms_eps: f64,
    pre_eps: f64,
    x: &[R],
    phi: &[R],
    scale: &[R],
    bias: &[R],
) -> (Vec<R>, Vec<R>, Vec<R>) {
    let (n, c) = (d.streams, d.channels);
    let (z, inv_rms) = project::forward(d.row(), rms_eps, x, phi, &[]);
    let mut out = vec![R::zero(); d.tokens * c];
    for t in 0..d.tokens {
        for i in 0..n {
            let h = (scale[0] * z[t * n + i] + bias[i]).sigmoid() + R::c(pre_eps);
            for k in 0..c {
                out[t * c + k] += h * x[(t * n + i) * c + k];
            }
        }
    }
    (out, z, inv_rms)
}

/// What [`backward`] finds.
#[derive(Clone, Debug)]
pub struct Gradient<R> {
    /// `d_x [T, n, C]`.
    pub x: Vec<R>,
    /// `d_phi [n, K]`.
    pub phi: Vec<R>,
    /// `d_scale [1]`.
    pub scale: Vec<R>,
    /// `d_bias [n]`.
    pub bias: Vec<R>,
}

/// The gradient for the upstream `g [T, C]`, with the `z` and `inv_rms` that [`forward`] returned.
pub fn backward<R: Real>(
    d: &Dims,
    pre_eps: f64,
    (x, phi, scale, bias): (&[R], &[R], &[R], &[R]),
    z: &[R],
    inv_rms: &[R],
    g: &[R],
) -> Gradient<R> {
    let (n, c) = (d.streams, d.channels);
    let mut d_z = Vec::with_capacity(z.len());
    let (mut d_scale, mut d_bias) = (R::zero(), vec![R::zero(); n]);
    let mut direct = Vec::with_capacity(x.len());
    for t in 0..d.tokens {
        let g = &g[t * c..][..c];
        for i in 0..n {
            let e = t * n + i;
            let logit = scale[0] * z[e] + bias[i];
            let s = logit.sigmoid();
            let d_h: R = g.iter().zip(&x[e * c..][..c]).map(|(&g, &x)| g * x).sum();
            // σ' = σ(t)·σ(-t): 1 - σ would lose the digits of a small one.
            let d_t = d_h * s * (-logit).sigmoid();
            d_scale += d_t * z[e];
            d_bias[i] += d_t;
            d_z.push(scale[0] * d_t);
            direct.extend(g.iter().map(|&g| (s + R::c(pre_eps)) * g));
        }
    }
    let through = project::backward(d.row(), x, phi, &[], z, inv_rms, &d_z);
    let d_x = direct.into_iter().zip(through.x).map(|(a, b)| a + b).collect();
    Gradient { x: d_x, phi: through.phi, scale: vec![d_scale], bias: d_bias }
}
