//! Fused groups: `pre`, `post_pre`, whole layers, and recomputation over depth.

operator! {
    /// mHC.cu's static layer, one set of coefficients for all tokens: `H_pre = σ(h_pre) + pre_eps`, `H_post = post_mult·σ(h_post)`,
    /// `H_res = Sinkhorn(h_res)`, `out_i = Σ_j H_res[i,j]·x_j + H_post[i]·(li·r ⊙ w)` with `li = Σ_i H_pre[i]·x_i` and
    /// `r = (Σ_c li²/C + norm_eps)^(-1/2)`.
    ///
    /// Nothing is saved. Moves 2·T·n·C stream elements.
    static_layer, static_layer_into: StaticLayer
    StaticLayerIn { x: stream "T, n, C", w: coeff "C", h_pre: coeff "n", h_post: coeff "n", h_res: coeff "n, n" }
    StaticLayerOut { out: stream "T, n, C" }
}

operator! {
    /// The gradient of [`static_layer`], which computes the forward of every token again.
    ///
    /// Moves 3·T·n·C stream elements. Sums over tokens are taken in an order fixed by the sizes alone.
    static_layer_bwd, static_layer_bwd_into: StaticLayerBwd
    StaticLayerBwdIn { x: stream "T, n, C", w: coeff "C", h_pre: coeff "n", h_post: coeff "n", h_res: coeff "n, n", d_out: stream "T, n, C" }
    StaticLayerBwdOut { d_x: stream "T, n, C", d_w: coeff "C", d_h_pre: coeff "n", d_h_post: coeff "n", d_h_res: coeff "n, n" }
}

operator! {
    /// What a forward over L sub-layers did not keep, from the first residual, the coefficients and the sub-layers' outputs:
    /// `layer_inputs[l] = Σ_i H_pre[i]·x_l,i` and `x_(l+1) = residuals[l] = H_res·x_l + H_post ⊗ y[l]`, with `x_0 = x`; rounded to the streams'
    /// type between sub-layers, as the forward did.
    ///
    /// Moves T·n·C + L·(2 + n)·T·C stream elements and 4·L·T·n(n+2) bytes of coefficients.
    recompute, recompute_into: Recompute
    RecomputeIn { x: stream "T, n, C", mixes: coeff "L, T, n(n+2)", y: stream "L, T, C" }
    RecomputeOut { layer_inputs: stream "L, T, C", residuals: stream "L, T, n, C" }
}

operator! {
    /// The gradient of [`recompute`].
    ///
    /// Moves 2·(1 + L)·T·n·C + 3·L·T·C stream elements and 8·L·T·n(n+2) bytes of coefficients.
    recompute_bwd, recompute_bwd_into: RecomputeBwd
    RecomputeBwdIn { x: stream "T, n, C", mixes: coeff "L, T, n(n+2)", y: stream "L, T, C", residuals: stream "L, T, n, C", d_layer_inputs: stream "L, T, C", d_residuals: stream "L, T, n, C" }
    RecomputeBwdOut { d_x: stream "T, n, C", d_mixes: coeff "L, T, n(n+2)", d_y: stream "L, T, C" }
}
