//! Operators over streams: norm, expand, collapse, aggregate, post.

operator! {
    /// RMSNorm of every token: `y = x·ρ ⊙ w` with `ρ = (Σ_c x²/C + eps)^(-1/2)`.
    ///
    /// `inv_rms` is ρ, saved for backward. Moves 2·T·C stream elements and 4·C bytes of w, with `save` 4·T more.
    rms_norm, rms_norm_into: RmsNorm
    RmsNormIn { x: stream "T, C", w: coeff "C" }
    RmsNormOut { y: stream "T, C", inv_rms: maybe_coeff "T" }
}

operator! {
    /// The gradient of [`rms_norm`]: `d_x = ρ·(g − x·ρ²·⟨g, x⟩/C)` with `g = d_y ⊙ w`, and `d_w = Σ_t d_y·x·ρ`.
    ///
    /// Moves 3·T·C stream elements and 4·(T + 2·C) bytes. `d_w` is summed over tokens in an order fixed by T alone.
    rms_norm_bwd, rms_norm_bwd_into: RmsNormBwd
    RmsNormBwdIn { x: stream "T, C", w: coeff "C", inv_rms: coeff "T", d_y: stream "T, C" }
    RmsNormBwdOut { d_x: stream "T, C", d_w: coeff "C" }
}

operator! {
    /// The embedding to streams: `x_i = h` for every stream i, as arXiv 2512.24880 starts its residual.
    ///
    /// Moves (n+1)·T·C stream elements.
    expand, expand_into: Expand
    ExpandIn { h: stream "T, C" }
    ExpandOut { x: stream "T, n, C" }
}

operator! {
    /// The gradient of [`expand`]: `d_h = Σ_i d_x_i`.
    ///
    /// Moves (n+1)·T·C stream elements.
    expand_bwd, expand_bwd_into: ExpandBwd
    ExpandBwdIn { d_x: stream "T, n, C" }
    ExpandBwdOut { d_h: stream "T, C" }
}

operator! {
    /// The streams to one: `h = Σ_i x_i`, or their mean.
    ///
    /// Moves (n+1)·T·C stream elements.
    collapse, collapse_into: Collapse
    CollapseIn { x: stream "T, n, C" }
    CollapseOut { h: stream "T, C" }
}

operator! {
    /// The gradient of [`collapse`]: `d_x_i = d_h`, or `d_h/n` of the mean.
    ///
    /// Moves (n+1)·T·C stream elements.
    collapse_bwd, collapse_bwd_into: CollapseBwd
    CollapseBwdIn { d_h: stream "T, C" }
    CollapseBwdOut { d_x: stream "T, n, C" }
}

operator! {
    /// The sub-layer's input: `layer_input = Σ_i H_pre[i]·x_i` (arXiv 2512.24880, eq. 3).
    ///
    /// Moves (n+1)·T·C stream elements and the 4·T·n bytes of H_pre.
    aggregate, aggregate_into: Aggregate
    AggregateIn { x: stream "T, n, C", mixes: coeff "T, n(n+2)" }
    AggregateOut { layer_input: stream "T, C" }
}

operator! {
    /// The gradient of [`aggregate`]: `d_x_i = H_pre[i]·g` and `d_H_pre[i] = ⟨g, x_i⟩` with `g = d_layer_input`; the other parts of `d_mixes`
    /// are written as zero.
    ///
    /// Moves (2n+1)·T·C stream elements and 4·T·(n + n(n+2)) bytes.
    aggregate_bwd, aggregate_bwd_into: AggregateBwd
    AggregateBwdIn { x: stream "T, n, C", mixes: coeff "T, n(n+2)", d_layer_input: stream "T, C" }
    AggregateBwdOut { d_x: stream "T, n, C", d_mixes: coeff "T, n(n+2)" }
}

operator! {
    /// Mixes the streams and distributes the sub-layer's output: `x_next_i = Σ_j H_res[i,j]·x_j + H_post[i]·y` (arXiv 2512.24880, eq. 3).
    ///
    /// Moves (2n+1)·T·C stream elements and 4·T·n(n+1) bytes of coefficients.
    post, post_into: Post
    PostIn { x: stream "T, n, C", y: stream "T, C", mixes: coeff "T, n(n+2)" }
    PostOut { x_next: stream "T, n, C" }
}

operator! {
    /// The gradient of [`post`], with `g = d_x_next`: `d_y = Σ_i H_post[i]·g_i`, `d_H_post[i] = ⟨g_i, y⟩`, `d_H_res[i,j] = ⟨g_i, x_j⟩` and,
    /// where the attributes want it, `d_x_j = Σ_i H_res[i,j]·g_i`. The H_pre part of `d_mixes` is written as zero, so that it can go to
    /// [`pre_bwd`](super::pre_bwd) as it is.
    ///
    /// Moves (2n+2)·T·C stream elements, with `d_x` n·T·C more, and 4·T·2n(n+1) bytes of coefficients.
    post_bwd, post_bwd_into: PostBwd
    PostBwdIn { x: stream "T, n, C", y: stream "T, C", mixes: coeff "T, n(n+2)", d_x_next: stream "T, n, C" }
    PostBwdOut { d_x: maybe_stream "T, n, C", d_y: stream "T, C", d_mixes: coeff "T, n(n+2)" }
}
