//! `head`: the gated collapse of n streams to one, behind the last layer (DeepSeek-V4's `hc_head`).

mod plan;
mod reference;

pub use plan::SOURCE;
pub use reference::{Gradient, backward, forward};

use super::project::{PHI, flops};
use crate::numerics::check_eps;
use crate::{AnyOp, Axis::*, Case, Cost, DType, Dims, Inputs, Level, Op, OpDesc, Outputs, Real, Result, Slot};
use crate::{op::every_operand_once, stream_dims};

/// `out = Σ_i H_i·x_i`, `H = σ(scale·z + bias) + pre_eps`, `z = ρ·φx`, `ρ = (Σx²/K + rms_eps)^(-1/2)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// ε under the root of the projection's RMSNorm.
    pub rms_eps: f64,
    /// Added to every weight.
    pub pre_eps: f64,
    /// Whether to write z and ρ for backward.
    pub save: bool,
}

impl Op for Head {
    const DESC: OpDesc = OpDesc {
        name: "head",
        formula: "out[t,c] = sum_i (sigmoid(scale z[t,i] + bias[i]) + pre_eps) x[t,i,c]; z[t,i] = inv_rms[t] sum_k phi[i,k] x[t,k]; inv_rms[t] = (sum_k x[t,k]^2 / K + rms_eps)^(-1/2)",
        slots: &[
            Slot::stream("x", &[T, N, C]),
            Slot::coeff("phi", &[N, K]).fill(PHI),
            Slot::coeff("scale", &[Lit(1)]),
            Slot::coeff("bias", &[N]),
            Slot::stream("out", &[T, C]).out(),
            Slot::coeff("z", &[T, N]).saved(),
            Slot::coeff("inv_rms", &[T]).saved(),
        ],
    };

    fn has(&self, slot: &str) -> bool {
        !matches!(slot, "z" | "inv_rms") || self.save
    }

    fn check(&self) -> Result<()> {
        check_eps(Self::DESC.name, "rms_eps", self.rms_eps)?;
        check_eps(Self::DESC.name, "pre_eps", self.pre_eps)
    }

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::forward(self, d, act, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let [x, phi, scale, bias] = ["x", "phi", "scale", "bias"].map(|slot| x.get(slot));
        let (out, z, inv_rms) = forward(d, self.rms_eps, self.pre_eps, x, phi, scale, bias);
        let out = Outputs::one("out", out);
        if self.save { out.and("z", z).and("inv_rms", inv_rms) } else { out }
    }

    fn cost(&self, d: &Dims, act: DType) -> Cost {
        Cost { flops: flops(d, d.streams), ..every_operand_once(self, d, act) }
    }

    fn tag(&self) -> String {
        format!("rms{:e}-pre{:e}{}", self.rms_eps, self.pre_eps, if self.save { "-save" } else { "" })
    }

    fn cases(level: Level) -> Vec<Case> {
        let ops = [(1e-6, 1e-6, true), (1e-5, 0.0, false)];
        let ops = ops.map(|(rms_eps, pre_eps, save)| Head { rms_eps, pre_eps, save });
        Case::spread(ops, &stream_dims(level))
    }
}

/// The gradient of [`Head`].
#[derive(Clone, Debug, PartialEq)]
pub struct HeadBwd {
    /// As in forward.
    pub rms_eps: f64,
    /// As in forward.
    pub pre_eps: f64,
}

impl Op for HeadBwd {
    const DESC: OpDesc = OpDesc {
        name: "head_bwd",
        formula: "d_t_i = <d_out, x_i> s_i (1 - s_i), s = sigmoid(scale z + bias); d_scale = sum d_t z; d_bias = sum_t d_t; d_z = scale d_t; d_x_i = (s_i + pre_eps) d_out + (inv_rms phi^T d_z - x <d_z, z> inv_rms^2 / K)_i; d_phi = sum_t inv_rms d_z x^T",
        slots: &[
            Slot::stream("x", &[T, N, C]),
            Slot::coeff("phi", &[N, K]).fill(PHI),
            Slot::coeff("scale", &[Lit(1)]),
            Slot::coeff("bias", &[N]),
            Slot::coeff("z", &[T, N]),
            Slot::coeff("inv_rms", &[T]),
            Slot::stream("d_out", &[T, C]),
            Slot::stream("d_x", &[T, N, C]).out(),
            Slot::coeff("d_phi", &[N, K]).out(),
            Slot::coeff("d_scale", &[Lit(1)]).out(),
            Slot::coeff("d_bias", &[N]).out(),
        ],
    };

    fn check(&self) -> Result<()> {
        check_eps(Self::DESC.name, "rms_eps", self.rms_eps)?;
        check_eps(Self::DESC.name, "pre_eps", self.pre_eps)
    }

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::backward(self, d, act, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let [x_, phi, scale, bias] = ["x", "phi", "scale", "bias"].map(|slot| x.get(slot));
        let g = backward(d, self.pre_eps, (x_, phi, scale, bias), x.get("z"), x.get("inv_rms"), x.get("d_out"));
        Outputs::one("d_x", g.x).and("d_phi", g.phi).and("d_scale", g.scale).and("d_bias", g.bias)
    }

    fn forward(&self) -> Option<AnyOp> {
        Some(Head { rms_eps: self.rms_eps, pre_eps: self.pre_eps, save: true }.into())
    }

    fn cost(&self, d: &Dims, act: DType) -> Cost {
        Cost { flops: 2 * flops(d, d.streams), ..every_operand_once(self, d, act) }
    }

    fn tag(&self) -> String {
        format!("rms{:e}-pre{:e}", self.rms_eps, self.pre_eps)
    }

    fn cases(level: Level) -> Vec<Case> {
        let ops = [(1e-6, 1e-6), (1e-5, 0.0)].map(|(rms_eps, pre_eps)| HeadBwd { rms_eps, pre_eps });
        Case::spread(ops, &stream_dims(level))
    }
}
