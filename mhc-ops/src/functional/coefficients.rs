//! Operators that make coefficients: the projections onto doubly stochastic matrices, and the packed coefficients of a token.
//!
//! Those on matrices take batches `[T, n, n]`, and single matrices `[n, n]`, for which they return single matrices.

operator! {
    /// Sinkhorn–Knopp: logits to a doubly stochastic H_res by normalising columns and rows in turn,
    /// `M_0 = exp(logits)`, `M_t = rows(columns(M_(t-1)))` (arXiv 2512.24880, eq. 9). Start, order and ε are those of
    /// [`SinkhornForm`](mhc_core::SinkhornForm).
    ///
    /// Moves 8·T·n² bytes.
    sinkhorn, sinkhorn_into: Sinkhorn
    SinkhornIn { logits: coeff "T, n, n" }
    SinkhornOut { h_res: coeff "T, n, n" }
}

operator! {
    /// The exact gradient of [`sinkhorn`] at its finite number of iterations: every half-step `Y = X/s` backwards,
    /// `d_X = (d_Y − Σ d_Y ⊙ Y)/s`. The forward is computed again from the logits; nothing else is saved.
    ///
    /// Moves 12·T·n² bytes.
    sinkhorn_bwd, sinkhorn_bwd_into: SinkhornBwd
    SinkhornBwdIn { logits: coeff "T, n, n", d_h_res: coeff "T, n, n" }
    SinkhornBwdOut { d_logits: coeff "T, n, n" }
}

operator! {
    /// Sinkhorn in the log domain with a temperature, rows first: `u = −lse_j(Z + v) − log n`, `v = −lse_i(Z + u) − log n` with
    /// `Z = logits/tau`, and `h_res = n·exp(Z + u + v)`.
    ///
    /// Moves 8·T·n² bytes.
    sinkhorn_log, sinkhorn_log_into: SinkhornLog
    SinkhornLogIn { logits: coeff "T, n, n" }
    SinkhornLogOut { h_res: coeff "T, n, n" }
}

operator! {
    /// The exact gradient of [`sinkhorn_log`] at its finite number of iterations; the forward is computed again from the logits.
    ///
    /// Moves 12·T·n² bytes.
    sinkhorn_log_bwd, sinkhorn_log_bwd_into: SinkhornLogBwd
    SinkhornLogBwdIn { logits: coeff "T, n, n", d_h_res: coeff "T, n, n" }
    SinkhornLogBwdOut { d_logits: coeff "T, n, n" }
}

operator! {
    /// The squares of an orthogonal matrix's entries: `X = logits/‖logits‖_F`, then a step `X ← aX + (bA + cA²)X` with `A = XXᵀ` for every
    /// triple (a, b, c) of the schedule (Newton–Schulz), and `h_res = X ⊙ X`.
    ///
    /// Moves 8·T·n² bytes.
    orthostochastic, orthostochastic_into: Orthostochastic
    OrthostochasticIn { logits: coeff "T, n, n" }
    OrthostochasticOut { h_res: coeff "T, n, n" }
}

operator! {
    /// The exact gradient of [`orthostochastic`]; the forward is computed again from the logits.
    ///
    /// Moves 12·T·n² bytes.
    orthostochastic_bwd, orthostochastic_bwd_into: OrthostochasticBwd
    OrthostochasticBwdIn { logits: coeff "T, n, n", d_h_res: coeff "T, n, n" }
    OrthostochasticBwdOut { d_logits: coeff "T, n, n" }
}

operator! {
    /// The activated coefficients of every token (arXiv 2512.24880, eq. 8), with `t = alpha ⊙ z + bias`, one alpha for each part:
    /// `H_pre = σ(t_pre) + pre_eps`, `H_post = post_mult·σ(t_post)`, `H_res = Sinkhorn(t_res)`, packed as `mixes`.
    ///
    /// Moves 8·T·n(n+2) bytes.
    coefficients, coefficients_into: Coefficients
    CoefficientsIn { z: coeff "T, n(n+2)", alpha: coeff "3", bias: coeff "n(n+2)" }
    CoefficientsOut { mixes: coeff "T, n(n+2)" }
}

operator! {
    /// The gradient of [`coefficients`], exact through Sinkhorn: `d_z = alpha ⊙ d_t`, `d_bias = Σ_t d_t`, and `d_alpha` sums `d_t ⊙ z` over
    /// tokens and over a part.
    ///
    /// Moves 12·T·n(n+2) bytes. Sums over tokens are taken in an order fixed by T alone.
    coefficients_bwd, coefficients_bwd_into: CoefficientsBwd
    CoefficientsBwdIn { z: coeff "T, n(n+2)", alpha: coeff "3", bias: coeff "n(n+2)", d_mixes: coeff "T, n(n+2)" }
    CoefficientsBwdOut { d_z: coeff "T, n(n+2)", d_alpha: coeff "3", d_bias: coeff "n(n+2)" }
}
