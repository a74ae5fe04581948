//! Operators that project a token's whole row: the mapping's projection and the gated collapse.

operator! {
    /// The normalised projection of every token's row of K = n·C elements (arXiv 2512.24880, eq. 7): `z = ρ·(phi ⊙ norm_weight)·vec(x)` with
    /// `ρ = (Σ x²/K + rms_eps)^(-1/2)`, the division after the product.
    ///
    /// `inv_rms` is ρ. Moves T·n·C stream elements, 4·n(n+2)·K bytes of phi and 4·T·(n(n+2) + 1) bytes. phi enters with all its mantissa
    /// on the CPU and with at least 16 bits of it on tensor cores.
    project, project_into: Project
    ProjectIn { x: stream "T, n, C", phi: coeff "n(n+2), K", norm_weight: maybe_coeff "K" }
    ProjectOut { z: coeff "T, n(n+2)", inv_rms: coeff "T" }
}

operator! {
    /// The gradient of [`project`]: `d_x = ρ·phiᵀ·d_z − x·ρ²·⟨d_z, z⟩/K`, `d_phi = Σ_t ρ·d_z·xᵀ` and, with a norm weight, the gradient of the
    /// product distributed over both.
    ///
    /// Moves 2·T·n·C stream elements, 8·n(n+2)·K bytes of phi and d_phi and 4·T·(2·n(n+2) + 1) bytes. Sums over tokens are taken in an order
    /// fixed by the sizes alone.
    project_bwd, project_bwd_into: ProjectBwd
    ProjectBwdIn { x: stream "T, n, C", phi: coeff "n(n+2), K", norm_weight: maybe_coeff "K", z: coeff "T, n(n+2)", inv_rms: coeff "T", d_z: coeff "T, n(n+2)" }
    ProjectBwdOut { d_x: stream "T, n, C", d_phi: coeff "n(n+2), K", d_norm_weight: maybe_coeff "K" }
}

operator! {
    /// The gated collapse to one stream in front of a model's head: `out = Σ_i (σ(scale·z_i + bias_i) + pre_eps)·x_i` with
    /// `z = ρ·phi·vec(x)` and ρ as in [`project`].
    ///
    /// Moves (n+1)·T·C stream elements and 4·n·K bytes of phi, with `save` 4·T·(n+1) more.
    head, head_into: Head
    HeadIn { x: stream "T, n, C", phi: coeff "n, K", scale: coeff "1", bias: coeff "n" }
    HeadOut { out: stream "T, C", z: maybe_coeff "T, n", inv_rms: maybe_coeff "T" }
}

operator! {
    /// The gradient of [`head`].
    ///
    /// Moves (2n+1)·T·C stream elements, 8·n·K bytes of phi and d_phi and 4·T·(n+1) bytes. Sums over tokens are taken in an order fixed by the
    /// sizes alone.
    head_bwd, head_bwd_into: HeadBwd
    HeadBwdIn { x: stream "T, n, C", phi: coeff "n, K", scale: coeff "1", bias: coeff "n", z: coeff "T, n", inv_rms: coeff "T", d_out: stream "T, C" }
    HeadBwdOut { d_x: stream "T, n, C", d_phi: coeff "n, K", d_scale: coeff "1", d_bias: coeff "n" }
}
