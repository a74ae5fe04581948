//! `dynamic_layer` and its gradient: the references of its parts, one after the other.

use crate::{
    Dims, Numerics, Real,
    ops::{aggregate, coefficients, post, pre, project, rms_norm},
};

/// `x, w, phi, alpha, bias`.
type Operands<'a, R> = (&'a [R], &'a [R], &'a [R], &'a [R], &'a [R]);

/// `out [T, n, C]`, `z [T, n(n+2)]`, `inv_rms [T]`.
pub fn forward<R: Real>(
    d: &Dims,
    numerics: &Numerics,
    norm_eps: f64,
    (x, w, phi, alpha, bias): Operands<'_, R>,
) -> (Vec<R>, Vec<R>, Vec<R>) {
    let operands = pre::Operands { x, phi, alpha, bias, norm_weight: &[], w };
    let f = pre::forward(d, numerics, Some(norm_eps), operands);
    (post::forward(d, numerics.orientation, x, &f.layer_input, &f.mixes), f.z, f.inv_rms)
}

/// What [`backward`] finds.
#[derive(Clone, Debug)]
pub struct Gradient<R> {
    /// `d_x [T, n, C]`.
    pub x: Vec<R>,
    /// `d_w [C]`.
    pub w: Vec<R>,
    /// `d_phi [n(n+2), K]`.
    pub phi: Vec<R>,
    /// `d_alpha [3]`.
    pub alpha: Vec<R>,
    /// `d_bias [n(n+2)]`.
    pub bias: Vec<R>,
}

/// The gradient for the upstream `g [T, n, C]`, with the `z` and `inv_rms` that [`forward`] returned.
pub fn backward<R: Real>(
    d: &Dims,
    numerics: &Numerics,
    norm_eps: f64,
    (x, w, phi, alpha, bias): Operands<'_, R>,
    (z, inv_rms): (&[R], &[R]),
    g: &[R],
) -> Gradient<R> {
    let mixes = coefficients::forward(d, numerics, z, alpha, bias);
    let a = aggregate::forward(d, x, &mixes);
    let r = rms_norm::inv_rms(d.channels, norm_eps, &a);
    let y = rms_norm::forward(d.channels, &a, w, &r);
    let (carried, d_y, mut d_mixes) = post::backward(d, numerics.orientation, x, &y, &mixes, g);
    let (d_a, d_w) = rms_norm::backward(d.channels, &a, w, &r, &d_y);
    let (through_aggregate, d_h) = aggregate::backward(d, x, &mixes, &d_a);
    d_mixes.iter_mut().zip(d_h).for_each(|(sum, v)| *sum += v);
    let (d_z, d_alpha, d_bias) = coefficients::backward(d, numerics, z, alpha, bias, &d_mixes);
    let through = project::backward(d.row(), x, phi, &[], z, inv_rms, &d_z);
    let d_x = carried.into_iter().zip(through_aggregate).zip(through.x).map(|((a, b), c)| a + b + c).collect();
    Gradient { x: d_x, w: d_w, phi: through.phi, alpha: d_alpha, bias: d_bias }
}
