//! `recompute` and its gradient: `aggregate` and `post`, layer by layer.

use crate::{
    Dims, Orientation, Real,
    ops::{aggregate, post},
};

/// `layer_inputs [L, T, C]` and `residuals [L, T, n, C]`. Where residuals are given as they were `stored`, each layer starts from those.
pub fn forward<R: Real>(
    d: &Dims,
    orientation: Orientation,
    x: &[R],
    mixes: &[R],
    y: &[R],
    stored: &[R],
) -> (Vec<R>, Vec<R>) {
    let (mut layer_inputs, mut residuals) = (Vec::with_capacity(y.len()), Vec::new());
    for l in 0..d.layers {
        let before = if stored.is_empty() { &residuals } else { stored };
        let (x, mixes, y) = (layer_start(d, l, x, before), layer(d, l, mixes), layer(d, l, y));
        layer_inputs.extend(aggregate::forward(d, x, mixes));
        let next = post::forward(d, orientation, x, y, mixes);
        residuals.extend(next);
    }
    (layer_inputs, residuals)
}

/// `d_x [T, n, C]`, `d_mixes [L, T, n(n+2)]` and `d_y [L, T, C]`.
pub fn backward<R: Real>(
    d: &Dims,
    orientation: Orientation,
    x: &[R],
    mixes: &[R],
    y: &[R],
    residuals: &[R],
    d_layer_inputs: &[R],
    d_residuals: &[R],
) -> (Vec<R>, Vec<R>, Vec<R>) {
    let (mut d_mixes, mut d_y) = (vec![R::zero(); mixes.len()], vec![R::zero(); y.len()]);
    let mut carried = vec![R::zero(); x.len()];
    for l in (0..d.layers).rev() {
        let (x, m, y) = (layer_start(d, l, x, residuals), layer(d, l, mixes), layer(d, l, y));
        let g = sum(&carried, layer(d, l, d_residuals));
        let (d_x, d_y_l, d_post) = post::backward(d, orientation, x, y, m, &g);
        let (d_x_pre, d_pre) = aggregate::backward(d, x, m, layer(d, l, d_layer_inputs));
        carried = sum(&d_x, &d_x_pre);
        d_y[l * y.len()..][..y.len()].copy_from_slice(&d_y_l);
        d_mixes[l * m.len()..][..m.len()].copy_from_slice(&sum(&d_post, &d_pre));
    }
    (carried, d_mixes, d_y)
}

/// Layer `l` of an operand with L of them.
fn layer<'a, R>(d: &Dims, l: usize, all: &'a [R]) -> &'a [R] {
    let len = all.len() / d.layers;
    &all[l * len..][..len]
}

/// The streams that layer `l` starts from.
fn layer_start<'a, R>(d: &Dims, l: usize, x: &'a [R], residuals: &'a [R]) -> &'a [R] {
    let len = d.tokens * d.row();
    if l == 0 { x } else { &residuals[(l - 1) * len..][..len] }
}

fn sum<R: Real>(a: &[R], b: &[R]) -> Vec<R> {
    a.iter().zip(b).map(|(&a, &b)| a + b).collect()
}
