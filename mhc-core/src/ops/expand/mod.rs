//! `expand`: starts the residual streams as n copies of the embedding.

pub(super) mod plan;
mod reference;

pub use plan::SOURCE;
pub use reference::{backward, forward};

use crate::{AnyOp, Axis::*, Case, Dims, Inputs, Level, Op, OpDesc, Outputs, Real, Slot, stream_dims};

/// `x_i = h` for every stream i.
///
/// `h [T, C]` and `x [T, n, C]` have the streams' type; a copy, exact in every type. Moves (n + 1)·T·C elements; saves nothing.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Expand;

impl Op for Expand {
    const DESC: OpDesc = OpDesc {
        name: "expand",
        formula: "x[t,i,c] = h[t,c]",
        slots: &[Slot::stream("h", &[T, C]), Slot::stream("x", &[T, N, C]).out()],
    };

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::plan(
            "expand_fwd",
            &Self::DESC,
            crate::gpu::Args::new(&Self::DESC).rows(&["h"]).streams(&["x"]),
            1.0,
            d,
            act,
            caps,
        ))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        Outputs::one("x", forward(d, x.get("h")))
    }

    fn cases(level: Level) -> Vec<Case> {
        Case::cross([Expand], &stream_dims(level))
    }
}

/// The gradient of [`Expand`]: `d_h = Σ_i d_x_i`, summed in f32 in the order of i.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct ExpandBwd;

impl Op for ExpandBwd {
    const DESC: OpDesc = OpDesc {
        name: "expand_bwd",
        formula: "d_h[t,c] = sum_i d_x[t,i,c]",
        slots: &[Slot::stream("d_x", &[T, N, C]), Slot::stream("d_h", &[T, C]).out()],
    };

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::plan(
            "collapse_fwd",
            &Self::DESC,
            crate::gpu::Args::new(&Self::DESC).streams(&["d_x"]).rows(&["d_h"]),
            1.0,
            d,
            act,
            caps,
        ))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        Outputs::one("d_h", backward(d, x.get("d_x")))
    }

    fn forward(&self) -> Option<AnyOp> {
        Some(Expand.into())
    }

    fn cases(level: Level) -> Vec<Case> {
        Case::cross([ExpandBwd], &stream_dims(level))
    }
}
