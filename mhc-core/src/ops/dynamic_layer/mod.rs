//! `dynamic_layer`: mHC.cu's whole layer with coefficients computed from the streams (arXiv 2512.24880, eq. 3 and 7-9, with the
//! sub-layer an RMSNorm).

mod plan;
mod reference;
mod tuned;

pub use reference::{Gradient, backward, forward};

use super::project::{PHI, WEIGHT, flops};
use crate::numerics::check_eps;
use crate::{
    AnyOp, Axis::*, Case, Cost, DType, Dims, Inputs, Level, Numerics, Op, OpDesc, Outputs, Real, Result, Slot,
};
use crate::{op::every_operand_once, stream_dims};

/// `mixes = coefficients(project(x))`; `a = Σ_i H_pre_i·x_i`; `y = w ⊙ a·(mean a² + norm_eps)^(-1/2)`; `out_i = Σ_j H_res[i,j]·x_j + H_post_i·y`.
///
/// a and y stay in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct DynamicLayer {
    /// Every convention.
    pub numerics: Numerics,
    /// ε of the RMSNorm inside.
    pub norm_eps: f64,
    /// Whether to write z and ρ for backward.
    pub save: bool,
}

impl Op for DynamicLayer {
    const DESC: OpDesc = OpDesc {
        name: "dynamic_layer",
        formula: "mixes = coefficients(project(x)); a = sum_i H_pre[i] x_i; y = w * a / sqrt(mean a^2 + norm_eps); out_i = sum_j H_res[i,j] x_j + H_post[i] y",
        slots: &[
            Slot::stream("x", &[T, N, C]),
            Slot::coeff("w", &[C]).fill(WEIGHT),
            Slot::coeff("phi", &[Mix, K]).fill(PHI),
            Slot::coeff("alpha", &[Lit(3)]),
            Slot::coeff("bias", &[Mix]),
            Slot::stream("out", &[T, N, C]).out(),
            Slot::coeff("z", &[T, Mix]).saved(),
            Slot::coeff("inv_rms", &[T]).saved(),
        ],
    };

    fn has(&self, slot: &str) -> bool {
        !matches!(slot, "z" | "inv_rms") || self.save
    }

    fn check(&self) -> Result<()> {
        self.numerics.check(Self::DESC.name)?;
        check_eps(Self::DESC.name, "norm_eps", self.norm_eps)
    }

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::forward(self, d, act, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let [x_, w, phi, alpha, bias] = ["x", "w", "phi", "alpha", "bias"].map(|slot| x.get(slot));
        let (out, z, inv_rms) = forward(d, &self.numerics, self.norm_eps, (x_, w, phi, alpha, bias));
        let out = Outputs::one("out", out);
        if self.save { out.and("z", z).and("inv_rms", inv_rms) } else { out }
    }

    fn cost(&self, d: &Dims, act: DType) -> Cost {
        Cost { flops: flops(d, d.mix()), ..every_operand_once(self, d, act) }
    }

    fn tag(&self) -> String {
        format!("{}-norm{:e}{}", self.numerics.tag(), self.norm_eps, if self.save { "-save" } else { "" })
    }

    fn cases(level: Level) -> Vec<Case> {
        let ops = attributes().map(|(numerics, norm_eps)| {
            let save = numerics != Numerics::paper();
            DynamicLayer { numerics, norm_eps, save }
        });
        Case::spread(ops, &stream_dims(level))
    }
}

/// The gradient of [`DynamicLayer`]; all but z and ρ is recomputed.
#[derive(Clone, Debug, PartialEq)]
pub struct DynamicLayerBwd {
    /// As in forward.
    pub numerics: Numerics,
    /// As in forward.
    pub norm_eps: f64,
}

impl Op for DynamicLayerBwd {
    const DESC: OpDesc = OpDesc {
        name: "dynamic_layer_bwd",
        formula: "d_y, d_H_post, d_H_res = post_bwd(d_out); d_a, d_w = rms_norm_bwd(d_y); d_H_pre_i = <d_a, x_i>; d_z, d_alpha, d_bias = coefficients_bwd; d_x_i = sum_k H_res[k,i] d_out_k + H_pre_i d_a + project_bwd",
        slots: &[
            Slot::stream("x", &[T, N, C]),
            Slot::coeff("w", &[C]).fill(WEIGHT),
            Slot::coeff("phi", &[Mix, K]).fill(PHI),
            Slot::coeff("alpha", &[Lit(3)]),
            Slot::coeff("bias", &[Mix]),
            Slot::coeff("z", &[T, Mix]),
            Slot::coeff("inv_rms", &[T]),
            Slot::stream("d_out", &[T, N, C]),
            Slot::stream("d_x", &[T, N, C]).out(),
            Slot::coeff("d_w", &[C]).out(),
            Slot::coeff("d_phi", &[Mix, K]).out(),
            Slot::coeff("d_alpha", &[Lit(3)]).out(),
            Slot::coeff("d_bias", &[Mix]).out(),
        ],
    };

    fn check(&self) -> Result<()> {
        self.numerics.check(Self::DESC.name)?;
        check_eps(Self::DESC.name, "norm_eps", self.norm_eps)
    }

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::backward(self, d, act, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let [x_, w, phi, alpha, bias] = ["x", "w", "phi", "alpha", "bias"].map(|slot| x.get(slot));
        let saved = (x.get("z"), x.get("inv_rms"));
        let g = backward(d, &self.numerics, self.norm_eps, (x_, w, phi, alpha, bias), saved, x.get("d_out"));
        let out = Outputs::one("d_x", g.x).and("d_w", g.w).and("d_phi", g.phi);
        out.and("d_alpha", g.alpha).and("d_bias", g.bias)
    }

    fn forward(&self) -> Option<AnyOp> {
        Some(DynamicLayer { numerics: self.numerics, norm_eps: self.norm_eps, save: true }.into())
    }

    fn cost(&self, d: &Dims, act: DType) -> Cost {
        Cost { flops: 2 * flops(d, d.mix()), ..every_operand_once(self, d, act) }
    }

    fn tag(&self) -> String {
        format!("{}-norm{:e}", self.numerics.tag(), self.norm_eps)
    }

    fn cases(level: Level) -> Vec<Case> {
        let ops = attributes().map(|(numerics, norm_eps)| DynamicLayerBwd { numerics, norm_eps });
        Case::spread(ops, &stream_dims(level))
    }
}

/// mHC.cu's own convention first.
fn attributes() -> impl Iterator<Item = (Numerics, f64)> {
    [(Numerics::mhc_cu(), 1e-5), (Numerics::deepseek_v4(), 1e-6), (Numerics::paper(), 1e-6)].into_iter()
}
