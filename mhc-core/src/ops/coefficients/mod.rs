//! `coefficients`: the projected row of a token to its mixing coefficients (arXiv 2512.24880, eq. 7 and 8).

pub(super) mod plan;
mod reference;

pub use plan::SOURCE;
pub use reference::{backward, forward};

use super::sinkhorn::dims;
use crate::{AnyOp, Axis::*, Case, Dims, Inputs, Level, Numerics, Op, OpDesc, Outputs, Real, Result, Slot};

/// With `t = alpha·z + bias`: `H_pre = σ(t_pre) + pre_eps`, `H_post = post_mult·σ(t_post)`, `H_res = Sinkhorn(t_res)`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Coefficients {
    /// Every convention; `rms_eps` is not used here.
    pub numerics: Numerics,
}

impl Op for Coefficients {
    const DESC: OpDesc = OpDesc {
        name: "coefficients",
        formula: "t = alpha z + bias; mixes = [sigmoid(t_pre) + pre_eps | post_mult sigmoid(t_post) | Sinkhorn(t_res)]",
        slots: &[
            Slot::coeff("z", &[T, Mix]),
            Slot::coeff("alpha", &[Lit(3)]),
            Slot::coeff("bias", &[Mix]),
            Slot::coeff("mixes", &[T, Mix]).out(),
        ],
    };

    fn check(&self) -> Result<()> {
        self.numerics.check(Self::DESC.name)
    }

    fn plan(&self, d: &Dims, _: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::forward(self, d, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        Outputs::one("mixes", forward(d, &self.numerics, x.get("z"), x.get("alpha"), x.get("bias")))
    }

    fn tag(&self) -> String {
        self.numerics.tag()
    }

    fn cases(level: Level) -> Vec<Case> {
        Case::spread(numerics().map(|numerics| Coefficients { numerics }), &dims(level))
    }
}

/// The gradient of [`Coefficients`]; everything is recomputed from `z`. `d_alpha` and `d_bias` are sums over tokens in an order that
/// depends on T alone.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct CoefficientsBwd {
    /// As in forward.
    pub numerics: Numerics,
}

impl Op for CoefficientsBwd {
    const DESC: OpDesc = OpDesc {
        name: "coefficients_bwd",
        formula: "d_t = [d_pre sigmoid' | post_mult d_post sigmoid' | Sinkhorn^T(d_res)]; d_z = alpha d_t; d_alpha = sum_t <d_t, z> by group; d_bias = sum_t d_t",
        slots: &[
            Slot::coeff("z", &[T, Mix]),
            Slot::coeff("alpha", &[Lit(3)]),
            Slot::coeff("bias", &[Mix]),
            Slot::coeff("d_mixes", &[T, Mix]),
            Slot::coeff("d_z", &[T, Mix]).out(),
            Slot::coeff("d_alpha", &[Lit(3)]).out(),
            Slot::coeff("d_bias", &[Mix]).out(),
        ],
    };

    fn check(&self) -> Result<()> {
        self.numerics.check(Self::DESC.name)
    }

    fn plan(&self, d: &Dims, _: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::backward(self, d, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let (d_z, d_alpha, d_bias) =
            backward(d, &self.numerics, x.get("z"), x.get("alpha"), x.get("bias"), x.get("d_mixes"));
        Outputs::one("d_z", d_z).and("d_alpha", d_alpha).and("d_bias", d_bias)
    }

    fn forward(&self) -> Option<AnyOp> {
        Some(Coefficients { numerics: self.numerics }.into())
    }

    fn tag(&self) -> String {
        self.numerics.tag()
    }

    fn cases(level: Level) -> Vec<Case> {
        Case::spread(numerics().map(|numerics| CoefficientsBwd { numerics }), &dims(level))
    }
}

/// The default first, then the other presets.
fn numerics() -> impl Iterator<Item = Numerics> {
    let others = Numerics::PRESETS.into_iter().map(|(_, p)| p).filter(|p| *p != Numerics::default());
    core::iter::once(Numerics::default()).chain(others)
}
