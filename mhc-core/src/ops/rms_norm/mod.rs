//! `rms_norm`: divides every token by the root of its mean square, and scales its channels.

mod plan;
mod reference;

pub use plan::SOURCE;
pub use reference::{backward, forward, inv_rms};

use crate::{
    AnyOp, Axis::*, Case, Dims, Inputs, Level, Op, OpDesc, Outputs, Real, Result, Slot, numerics::check_eps,
    stream_dims,
};

/// `y = w ⊙ x·r`, `r = (mean x² + ε)^(-1/2)`: RMSNorm over the channels of a token.
///
/// `x, y [T, C]` have the streams' type, `w [C]` and the saved `inv_rms [T]` are f32, as are all sums. Moves 2·T·C stream elements;
/// n plays no part. [`Error::Attribute`](crate::Error::Attribute) unless ε is finite and not negative.
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNorm {
    /// ε under the root.
    pub eps: f64,
    /// Whether to write `inv_rms`, the r of every token, for backward.
    pub save: bool,
}

/// Cases do not repeat sizes that differ in n alone, which the operator does not see.
fn dims(level: Level) -> Vec<Dims> {
    stream_dims(level).into_iter().map(|d| Dims { streams: 1, ..d }).collect()
}

impl Op for RmsNorm {
    const DESC: OpDesc = OpDesc {
        name: "rms_norm",
        formula: "y[t,c] = w[c] x[t,c] inv_rms[t], inv_rms[t] = (mean_c x[t,c]^2 + eps)^(-1/2)",
        slots: &[
            Slot::stream("x", &[T, C]),
            Slot::coeff("w", &[C]),
            Slot::stream("y", &[T, C]).out(),
            Slot::coeff("inv_rms", &[T]).saved(),
        ],
    };

    fn has(&self, slot: &str) -> bool {
        slot != "inv_rms" || self.save
    }

    fn check(&self) -> Result<()> {
        check_eps(Self::DESC.name, "eps", self.eps)
    }

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::forward(self, d, act, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let inv_rms = inv_rms(d.channels, self.eps, x.get("x"));
        let out = Outputs::one("y", forward(d.channels, x.get("x"), x.get("w"), &inv_rms));
        if self.save { out.and("inv_rms", inv_rms) } else { out }
    }

    fn tag(&self) -> String {
        format!("eps{:e}{}", self.eps, if self.save { "-save" } else { "" })
    }

    fn cases(level: Level) -> Vec<Case> {
        let ops = [(1e-6, true), (1e-5, false)].map(|(eps, save)| RmsNorm { eps, save });
        Case::spread(ops, &dims(level))
    }
}

/// The gradient of [`RmsNorm`], from the saved `inv_rms`.
///
/// Reads x and d_y once and writes d_x. `d_w` is summed per block of tokens, whose number depends on T alone, and the blocks in
/// their order, so it is the same on every run and with any number of threads.
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNormBwd {
    /// As in forward, where r has absorbed it; not used again.
    pub eps: f64,
}

impl Op for RmsNormBwd {
    const DESC: OpDesc = OpDesc {
        name: "rms_norm_bwd",
        formula: "d_x = r (w d_y) - x r^3 mean_c(w d_y x); d_w[c] = sum_t r d_y[t,c] x[t,c], with r = inv_rms",
        slots: &[
            Slot::stream("x", &[T, C]),
            Slot::coeff("w", &[C]),
            Slot::coeff("inv_rms", &[T]),
            Slot::stream("d_y", &[T, C]),
            Slot::stream("d_x", &[T, C]).out(),
            Slot::coeff("d_w", &[C]).out(),
        ],
    };

    fn check(&self) -> Result<()> {
        check_eps(Self::DESC.name, "eps", self.eps)
    }

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::backward(d, act, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let (d_x, d_w) = backward(d.channels, x.get("x"), x.get("w"), x.get("inv_rms"), x.get("d_y"));
        Outputs::one("d_x", d_x).and("d_w", d_w)
    }

    fn forward(&self) -> Option<AnyOp> {
        Some(RmsNorm { eps: self.eps, save: true }.into())
    }

    fn tag(&self) -> String {
        format!("eps{:e}", self.eps)
    }

    fn cases(level: Level) -> Vec<Case> {
        // With one channel and a small ε the two terms of d_x cancel to the last bits, and there is nothing to compare.
        let (one, many): (Vec<_>, Vec<_>) = dims(level).into_iter().partition(|d| d.channels == 1);
        let mut cases = Case::cross([RmsNormBwd { eps: 1e-6 }], &many);
        cases.extend(Case::cross([RmsNormBwd { eps: 0.5 }], &one));
        cases
    }
}
