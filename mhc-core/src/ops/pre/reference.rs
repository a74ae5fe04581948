//! `pre` and its gradient: the references of its parts, one after the other.

use crate::{
    Dims, Numerics, Real,
    ops::{aggregate, coefficients, project, rms_norm},
};

/// What `pre` reads.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a, R> {
    /// `x [T, n, C]`.
    pub x: &'a [R],
    /// `phi [n(n+2), K]`.
    pub phi: &'a [R],
    /// `alpha [3]`.
    pub alpha: &'a [R],
    /// `bias [n(n+2)]`.
    pub bias: &'a [R],
    /// `norm_weight [K]`, or empty.
    pub norm_weight: &'a [R],
    /// `w [C]`, or empty.
    pub w: &'a [R],
}

/// What [`forward`] finds.
#[derive(Clone, Debug)]
pub struct Forward<R> {
    /// `layer_input [T, C]`.
    pub layer_input: Vec<R>,
    /// `mixes [T, n(n+2)]`.
    pub mixes: Vec<R>,
    /// `z [T, n(n+2)]`.
    pub z: Vec<R>,
    /// `inv_rms [T]`.
    pub inv_rms: Vec<R>,
    /// `li_inv_rms [T]`, empty without RMSNorm of the aggregate.
    pub li_inv_rms: Vec<R>,
}

/// The forward pass; `rms_norm` is the ε of an RMSNorm of the aggregate.
pub fn forward<R: Real>(d: &Dims, numerics: &Numerics, rms_norm: Option<f64>, o: Operands<'_, R>) -> Forward<R> {
    let (z, inv_rms) = project::forward(d.row(), numerics.rms_eps, o.x, o.phi, o.norm_weight);
    let mixes = coefficients::forward(d, numerics, &z, o.alpha, o.bias);
    let layer_input = aggregate::forward(d, o.x, &mixes);
    match rms_norm {
        None => Forward { layer_input, mixes, z, inv_rms, li_inv_rms: Vec::new() },
        Some(eps) => {
            let r = rms_norm::inv_rms(d.channels, eps, &layer_input);
            let layer_input = rms_norm::forward(d.channels, &layer_input, o.w, &r);
            Forward { layer_input, mixes, z, inv_rms, li_inv_rms: r }
        }
    }
}

/// What [`forward`] saved.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a, R> {
    /// `z [T, n(n+2)]`.
    pub z: &'a [R],
    /// `inv_rms [T]`.
    pub inv_rms: &'a [R],
    /// `li_inv_rms [T]`, empty without RMSNorm of the aggregate.
    pub li_inv_rms: &'a [R],
}

/// What [`backward`] finds.
#[derive(Clone, Debug)]
pub struct Gradient<R> {
    /// `d_x [T, n, C]`.
    pub x: Vec<R>,
    /// `d_phi [n(n+2), K]`.
    pub phi: Vec<R>,
    /// `d_alpha [3]`.
    pub alpha: Vec<R>,
    /// `d_bias [n(n+2)]`.
    pub bias: Vec<R>,
    /// `d_norm_weight [K]`, or empty.
    pub norm_weight: Vec<R>,
    /// `d_w [C]`, or empty.
    pub w: Vec<R>,
}

/// The gradient for the upstream `d_layer_input [T, C]` and `d_mixes [T, n(n+2)]`.
pub fn backward<R: Real>(
    d: &Dims,
    numerics: &Numerics,
    o: Operands<'_, R>,
    saved: Saved<'_, R>,
    d_layer_input: &[R],
    d_mixes: &[R],
) -> Gradient<R> {
    let mixes = coefficients::forward(d, numerics, saved.z, o.alpha, o.bias);
    let (d_aggregate, d_w) = if o.w.is_empty() {
        (d_layer_input.to_vec(), Vec::new())
    } else {
        rms_norm::backward(d.channels, &aggregate::forward(d, o.x, &mixes), o.w, saved.li_inv_rms, d_layer_input)
    };
    let (through_aggregate, d_h) = aggregate::backward(d, o.x, &mixes, &d_aggregate);
    let d_mixes: Vec<R> = d_mixes.iter().zip(&d_h).map(|(&a, &b)| a + b).collect();
    let (d_z, d_alpha, d_bias) = coefficients::backward(d, numerics, saved.z, o.alpha, o.bias, &d_mixes);
    let g = project::backward(d.row(), o.x, o.phi, o.norm_weight, saved.z, saved.inv_rms, &d_z);
    let d_x = through_aggregate.iter().zip(&g.x).map(|(&a, &b)| a + b).collect();
    Gradient { x: d_x, phi: g.phi, alpha: d_alpha, bias: d_bias, norm_weight: g.weight, w: d_w }
}
