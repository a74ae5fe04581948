//! `static_layer` and its gradient: the operators that it is made of, one after the other, every token with the same coefficients.

use crate::{
    Dims, Numerics, Real,
    ops::{aggregate, coefficients, post, rms_norm},
};

/// `out [T, n, C]`; `logits` is `[h_pre n | h_post n | h_res n·n]`.
pub fn forward<R: Real>(d: &Dims, numerics: &Numerics, norm_eps: f64, x: &[R], w: &[R], logits: &[R]) -> Vec<R> {
    let mixes = mixes(numerics, d, logits).repeat(d.tokens);
    let layer_input = aggregate::forward(d, x, &mixes);
    let inv_rms = rms_norm::inv_rms(d.channels, norm_eps, &layer_input);
    let y = rms_norm::forward(d.channels, &layer_input, w, &inv_rms);
    post::forward(d, numerics.orientation, x, &y, &mixes)
}

/// `d_x [T, n, C]`, `d_w [C]` and the gradient of `logits` for the upstream gradient `g [T, n, C]`.
pub fn backward<R: Real>(
    d: &Dims,
    numerics: &Numerics,
    norm_eps: f64,
    x: &[R],
    w: &[R],
    logits: &[R],
    g: &[R],
) -> (Vec<R>, Vec<R>, Vec<R>) {
    let mixes = mixes(numerics, d, logits).repeat(d.tokens);
    let layer_input = aggregate::forward(d, x, &mixes);
    let inv_rms = rms_norm::inv_rms(d.channels, norm_eps, &layer_input);
    let y = rms_norm::forward(d.channels, &layer_input, w, &inv_rms);

    let (d_x_post, d_y, d_mixes_post) = post::backward(d, numerics.orientation, x, &y, &mixes, g);
    let (d_layer_input, d_w) = rms_norm::backward(d.channels, &layer_input, w, &inv_rms, &d_y);
    let (d_x_pre, d_mixes_pre) = aggregate::backward(d, x, &mixes, &d_layer_input);

    let d_x = d_x_post.iter().zip(&d_x_pre).map(|(&a, &b)| a + b).collect();
    let mut d_coefficients = vec![R::zero(); d.mix()];
    for (e, (&a, &b)) in d_mixes_post.iter().zip(&d_mixes_pre).enumerate() {
        d_coefficients[e % d.mix()] += a + b;
    }
    let (alpha, bias) = (vec![R::one(); 3], vec![R::zero(); d.mix()]);
    let (d_logits, _, _) =
        coefficients::backward(&Dims { tokens: 1, ..*d }, numerics, logits, &alpha, &bias, &d_coefficients);
    (d_x, d_w, d_logits)
}

/// One token's coefficients.
fn mixes<R: Real>(numerics: &Numerics, d: &Dims, logits: &[R]) -> Vec<R> {
    let (alpha, bias) = (vec![R::one(); 3], vec![R::zero(); d.mix()]);
    coefficients::forward(&Dims { tokens: 1, ..*d }, numerics, logits, &alpha, &bias)
}
