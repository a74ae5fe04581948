//! `collapse`: ends the residual streams as their sum or mean.

mod reference;

pub use reference::{backward, forward};

use super::expand::plan::plan;
use crate::{AnyOp, Axis::*, Case, Dims, Inputs, Level, Op, OpDesc, Outputs, Real, Slot, stream_dims};

/// `h = Σ_i x_i`, or the mean over the streams.
///
/// `x [T, n, C]` and `h [T, C]` have the streams' type; summed in f32 in the order of i. Moves (n + 1)·T·C elements; saves nothing.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Collapse {
    /// Whether to divide by n.
    pub mean: bool,
}

/// What every stream counts.
pub const fn weight(mean: bool, streams: usize) -> f64 {
    if mean { 1.0 / streams as f64 } else { 1.0 }
}

fn tag(mean: bool) -> String {
    if mean { "mean" } else { "sum" }.into()
}

impl Op for Collapse {
    const DESC: OpDesc = OpDesc {
        name: "collapse",
        formula: "h[t,c] = sum_i x[t,i,c], divided by n for the mean",
        slots: &[Slot::stream("x", &[T, N, C]), Slot::stream("h", &[T, C]).out()],
    };

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan(
            "collapse_fwd",
            &Self::DESC,
            crate::gpu::Args::new(&Self::DESC).streams(&["x"]).rows(&["h"]),
            weight(self.mean, d.streams),
            d,
            act,
            caps,
        ))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        Outputs::one("h", forward(d, self.mean, x.get("x")))
    }

    fn tag(&self) -> String {
        tag(self.mean)
    }

    fn cases(level: Level) -> Vec<Case> {
        Case::spread([true, false].map(|mean| Collapse { mean }), &stream_dims(level))
    }
}

/// The gradient of [`Collapse`]: every stream gets d_h, divided by n for the mean.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct CollapseBwd {
    /// As in forward.
    pub mean: bool,
}

impl Op for CollapseBwd {
    const DESC: OpDesc = OpDesc {
        name: "collapse_bwd",
        formula: "d_x[t,i,c] = d_h[t,c], divided by n for the mean",
        slots: &[Slot::stream("d_h", &[T, C]), Slot::stream("d_x", &[T, N, C]).out()],
    };

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan(
            "expand_fwd",
            &Self::DESC,
            crate::gpu::Args::new(&Self::DESC).rows(&["d_h"]).streams(&["d_x"]),
            weight(self.mean, d.streams),
            d,
            act,
            caps,
        ))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        Outputs::one("d_x", backward(d, self.mean, x.get("d_h")))
    }

    fn forward(&self) -> Option<AnyOp> {
        Some(Collapse { mean: self.mean }.into())
    }

    fn tag(&self) -> String {
        tag(self.mean)
    }

    fn cases(level: Level) -> Vec<Case> {
        Case::spread([true, false].map(|mean| CollapseBwd { mean }), &stream_dims(level))
    }
}
