//! `project`: RMSNorm of a token's flattened row and its projection to the logits' space (arXiv 2512.24880, eq. 5, 7).

pub(super) mod plan;
mod reference;

pub use plan::SOURCE;
pub use reference::{Gradient, backward, forward};

use crate::numerics::check_eps;
use crate::{AnyOp, Axis::*, Case, Cost, DType, Dims, Fill, Inputs, Level, Op, OpDesc, Outputs, Real, Result, Slot};
use crate::{op::every_operand_once, stream_dims};

/// How tests draw projections: at `1 / sqrt(K)` the logits would be of order 1 for one token; this is of that order for every K.
pub(crate) const PHI: Fill = Fill::Normal { std: 0.1 };

/// How tests draw norm weights: around 1, as trained ones are.
pub(crate) const WEIGHT: Fill = Fill::Uniform { lo: 0.5, hi: 1.5 };

/// `z = ρ·(φ ⊙ norm_weight)·x`, `ρ = (Σx²/K + rms_eps)^(-1/2)`, for the flattened row x of each token: K = n·C.
///
/// The division by the root mean square is moved behind the product, as in the paper. `inv_rms` is ρ, for backward.
#[derive(Clone, Debug, PartialEq)]
pub struct Project {
    /// ε under the root.
    pub rms_eps: f64,
    /// Whether there is an RMSNorm weight, which is folded into phi.
    pub norm_weight: bool,
}

impl Op for Project {
    const DESC: OpDesc = OpDesc {
        name: "project",
        formula: "z[t,j] = inv_rms[t] sum_k phi[j,k] norm_weight[k] x[t,k]; inv_rms[t] = (sum_k x[t,k]^2 / K + rms_eps)^(-1/2)",
        slots: &[
            Slot::stream("x", &[T, N, C]),
            Slot::coeff("phi", &[Mix, K]).fill(PHI),
            Slot::coeff("norm_weight", &[K]).fill(WEIGHT),
            Slot::coeff("z", &[T, Mix]).out(),
            Slot::coeff("inv_rms", &[T]).saved(),
        ],
    };

    fn has(&self, slot: &str) -> bool {
        slot != "norm_weight" || self.norm_weight
    }

    fn check(&self) -> Result<()> {
        check_eps(Self::DESC.name, "rms_eps", self.rms_eps)
    }

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::forward(self, d, act, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let (z, inv_rms) = forward(d.row(), self.rms_eps, x.get("x"), x.get("phi"), x.get("norm_weight"));
        Outputs::one("z", z).and("inv_rms", inv_rms)
    }

    fn cost(&self, d: &Dims, act: DType) -> Cost {
        Cost { flops: flops(d, d.mix()), ..every_operand_once(self, d, act) }
    }

    fn tag(&self) -> String {
        tag(self.rms_eps, self.norm_weight)
    }

    fn cases(level: Level) -> Vec<Case> {
        let ops = attributes().map(|(rms_eps, norm_weight)| Project { rms_eps, norm_weight });
        Case::spread(ops, &stream_dims(level))
    }
}

/// The gradient of [`Project`].
///
/// `d_p = ρ·d_z`, `d_x = (φ ⊙ w)ᵀ·d_p − x·(Σ_j d_z_j·z_j)·ρ²/K`, `d_φ = Σ_t d_p·xᵀ ⊙ w`, `d_w = Σ_rows (Σ_t d_p·xᵀ) ⊙ φ`.
#[derive(Clone, Debug, PartialEq)]
pub struct ProjectBwd {
    /// As in forward.
    pub rms_eps: f64,
    /// As in forward.
    pub norm_weight: bool,
}

impl Op for ProjectBwd {
    const DESC: OpDesc = OpDesc {
        name: "project_bwd",
        formula: "d_x = inv_rms (phi * norm_weight)^T d_z - x <d_z, z> inv_rms^2 / K; d_phi = norm_weight * sum_t inv_rms d_z x^T; d_norm_weight = sum_j phi_j * (sum_t inv_rms d_z x^T)_j",
        slots: &[
            Slot::stream("x", &[T, N, C]),
            Slot::coeff("phi", &[Mix, K]).fill(PHI),
            Slot::coeff("norm_weight", &[K]).fill(WEIGHT),
            Slot::coeff("z", &[T, Mix]),
            Slot::coeff("inv_rms", &[T]),
            Slot::coeff("d_z", &[T, Mix]),
            Slot::stream("d_x", &[T, N, C]).out(),
            Slot::coeff("d_phi", &[Mix, K]).out(),
            Slot::coeff("d_norm_weight", &[K]).out(),
        ],
    };

    fn has(&self, slot: &str) -> bool {
        !matches!(slot, "norm_weight" | "d_norm_weight") || self.norm_weight
    }

    fn check(&self) -> Result<()> {
        check_eps(Self::DESC.name, "rms_eps", self.rms_eps)
    }

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::backward(self, d, act, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let [phi, weight, z, inv_rms, d_z] = ["phi", "norm_weight", "z", "inv_rms", "d_z"].map(|slot| x.get(slot));
        let g = backward(d.row(), x.get("x"), phi, weight, z, inv_rms, d_z);
        let out = Outputs::one("d_x", g.x).and("d_phi", g.phi);
        if self.norm_weight { out.and("d_norm_weight", g.weight) } else { out }
    }

    fn forward(&self) -> Option<AnyOp> {
        Some(Project { rms_eps: self.rms_eps, norm_weight: self.norm_weight }.into())
    }

    fn cost(&self, d: &Dims, act: DType) -> Cost {
        Cost { flops: 2 * flops(d, d.mix()), ..every_operand_once(self, d, act) }
    }

    fn tag(&self) -> String {
        tag(self.rms_eps, self.norm_weight)
    }

    fn cases(level: Level) -> Vec<Case> {
        let ops = attributes().map(|(rms_eps, norm_weight)| ProjectBwd { rms_eps, norm_weight });
        Case::spread(ops, &stream_dims(level))
    }
}

/// Operations of a projection to `columns` numbers a token.
pub(crate) fn flops(d: &Dims, columns: usize) -> u64 {
    2 * (d.tokens * d.row() * columns) as u64
}

fn attributes() -> impl Iterator<Item = (f64, bool)> {
    [(1e-6, false), (1e-5, true)].into_iter()
}

fn tag(rms_eps: f64, norm_weight: bool) -> String {
    format!("rms{rms_eps:e}{}", if norm_weight { "-weight" } else { "" })
}
