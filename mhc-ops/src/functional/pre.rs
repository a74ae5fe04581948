//! `pre`, alone and together with what stands in front of it or behind.

operator! {
    /// Everything in front of a sub-layer in one operator, x read once: [`project`](super::project()), [`coefficients`](super::coefficients())
    /// and [`aggregate`](super::aggregate()) (arXiv 2512.24880, eqs. 7 to 9 and the aggregate of eq. 3), with an RMSNorm of the aggregate,
    /// `layer_input = li·r ⊙ w`, where the attributes want it.
    ///
    /// Saved for backward: `z` and `inv_rms` of the projection, and `li_inv_rms` = r. Moves (n+1)·T·C stream elements, 4·n(n+2)·K bytes of
    /// phi and 4·T·n(n+2) bytes of mixes, with `save` 4·T·(n(n+2) + 2) more.
    pre, pre_into: Pre
    PreIn { x: stream "T, n, C", phi: coeff "n(n+2), K", alpha: coeff "3", bias: coeff "n(n+2)", norm_weight: maybe_coeff "K", w: maybe_coeff "C" }
    PreOut { layer_input: stream "T, C", mixes: coeff "T, n(n+2)", z: maybe_coeff "T, n(n+2)", inv_rms: maybe_coeff "T", li_inv_rms: maybe_coeff "T" }
}

operator! {
    /// The gradient of [`pre`]. With `carry` it also adds `H_resᵀ·d_x_next`, the term that [`post_bwd`](super::post_bwd()) then leaves out, so that
    /// d_x is written once and rounded once.
    ///
    /// Moves (2n+1)·T·C stream elements, with `carry` n·T·C more, 8·n(n+2)·K bytes of phi and d_phi, and 4·T·(2·n(n+2) + 1) bytes. Sums over
    /// tokens are taken in an order fixed by the sizes alone.
    pre_bwd, pre_bwd_into: PreBwd
    PreBwdIn { x: stream "T, n, C", phi: coeff "n(n+2), K", alpha: coeff "3", bias: coeff "n(n+2)", norm_weight: maybe_coeff "K", w: maybe_coeff "C", z: coeff "T, n(n+2)", inv_rms: coeff "T", li_inv_rms: maybe_coeff "T", d_layer_input: stream "T, C", d_mixes: coeff "T, n(n+2)", d_x_next: maybe_stream "T, n, C" }
    PreBwdOut { d_x: stream "T, n, C", d_phi: coeff "n(n+2), K", d_alpha: coeff "3", d_bias: coeff "n(n+2)", d_norm_weight: maybe_coeff "K", d_w: maybe_coeff "C" }
}

operator! {
    /// [`post`](super::post()) of one sub-layer and [`pre`] of the next in one operator, x_next kept on chip between them. `pre` reads x_next as
    /// stored, so that the results are those of the two operators.
    ///
    /// Moves (2n+2)·T·C stream elements, 4·n(n+2)·K bytes of phi and 8·T·n(n+2) bytes of mixes, with `save` 4·T·(n(n+2) + 2) more.
    post_pre, post_pre_into: PostPre
    PostPreIn { x: stream "T, n, C", y: stream "T, C", mixes: coeff "T, n(n+2)", phi: coeff "n(n+2), K", alpha: coeff "3", bias: coeff "n(n+2)", norm_weight: maybe_coeff "K", w: maybe_coeff "C" }
    PostPreOut { x_next: stream "T, n, C", layer_input: stream "T, C", mixes_next: coeff "T, n(n+2)", z: maybe_coeff "T, n(n+2)", inv_rms: maybe_coeff "T", li_inv_rms: maybe_coeff "T" }
}

operator! {
    /// The gradient of [`post_pre`]. `d_x_next` is the gradient of x_next from its other readers; `d_mixes` has its H_pre part zero.
    ///
    /// Moves (4n+3)·T·C stream elements, 8·n(n+2)·K bytes of phi and d_phi, and 4·T·(4·n(n+2) + 1) bytes. Sums over tokens are taken in an order
    /// fixed by the sizes alone.
    post_pre_bwd, post_pre_bwd_into: PostPreBwd
    PostPreBwdIn { x: stream "T, n, C", y: stream "T, C", mixes: coeff "T, n(n+2)", x_next: stream "T, n, C", phi: coeff "n(n+2), K", alpha: coeff "3", bias: coeff "n(n+2)", norm_weight: maybe_coeff "K", w: maybe_coeff "C", z: coeff "T, n(n+2)", inv_rms: coeff "T", li_inv_rms: maybe_coeff "T", d_x_next: stream "T, n, C", d_layer_input: stream "T, C", d_mixes_next: coeff "T, n(n+2)" }
    PostPreBwdOut { d_x: stream "T, n, C", d_y: stream "T, C", d_mixes: coeff "T, n(n+2)", d_phi: coeff "n(n+2), K", d_alpha: coeff "3", d_bias: coeff "n(n+2)", d_norm_weight: maybe_coeff "K", d_w: maybe_coeff "C" }
}

operator! {
    /// mHC.cu's dynamic layer: [`pre`] with an RMSNorm of the aggregate and [`post`](super::post()) of its result,
    /// `out_i = Σ_j H_res[i,j]·x_j + H_post[i]·(li·r ⊙ w)`, the coefficients of each token from its own projection.
    ///
    /// Saved for backward: `z` and `inv_rms`. Moves 2·T·n·C stream elements and 4·n(n+2)·K bytes of phi, with `save` 4·T·(n(n+2) + 1) more.
    dynamic_layer, dynamic_layer_into: DynamicLayer
    DynamicLayerIn { x: stream "T, n, C", w: coeff "C", phi: coeff "n(n+2), K", alpha: coeff "3", bias: coeff "n(n+2)" }
    DynamicLayerOut { out: stream "T, n, C", z: maybe_coeff "T, n(n+2)", inv_rms: maybe_coeff "T" }
}

operator! {
    /// The gradient of [`dynamic_layer`].
    ///
    /// Moves 3·T·n·C stream elements, 8·n(n+2)·K bytes of phi and d_phi and 4·T·(n(n+2) + 1) bytes. Sums over tokens are taken in an order fixed
    /// by the sizes alone.
    dynamic_layer_bwd, dynamic_layer_bwd_into: DynamicLayerBwd
    DynamicLayerBwdIn { x: stream "T, n, C", w: coeff "C", phi: coeff "n(n+2), K", alpha: coeff "3", bias: coeff "n(n+2)", z: coeff "T, n(n+2)", inv_rms: coeff "T", d_out: stream "T, n, C" }
    DynamicLayerBwdOut { d_x: stream "T, n, C", d_w: coeff "C", d_phi: coeff "n(n+2), K", d_alpha: coeff "3", d_bias: coeff "n(n+2)" }
}
