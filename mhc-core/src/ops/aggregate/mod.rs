//! `aggregate`: the sub-layer's input, a weighted sum of the streams (arXiv 2512.24880, eq. 3).

pub(super) mod plan;
mod reference;

pub use plan::SOURCE;
pub use reference::{backward, forward};

use crate::{AnyOp, Axis::*, Case, Dims, Inputs, Level, Op, OpDesc, Outputs, Real, Slot, stream_dims};

/// `layer_input = Σ_i H_pre[i]·x_i`.
///
/// `x [T, n, C]` and `layer_input [T, C]` have the streams' type; of `mixes [T, n(n+2)]`, f32, only the first n are read. Summed in f32.
/// Moves (n + 1)·T·C elements; saves nothing.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Aggregate;

impl Op for Aggregate {
    const DESC: OpDesc = OpDesc {
        name: "aggregate",
        formula: "layer_input[t,c] = sum_i H_pre[t,i] x[t,i,c]",
        slots: &[
            Slot::stream("x", &[T, N, C]),
            Slot::coeff("mixes", &[T, Mix]),
            Slot::stream("layer_input", &[T, C]).out(),
        ],
    };

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::forward(d, act, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        Outputs::one("layer_input", forward(d, x.get("x"), x.get("mixes")))
    }

    fn cases(level: Level) -> Vec<Case> {
        Case::cross([Aggregate], &stream_dims(level))
    }
}

/// The gradient of [`Aggregate`]: `d_x_i = H_pre[i]·g`, `d_H_pre[i] = ⟨g, x_i⟩` with g = d_layer_input.
///
/// The post and comb parts of `d_mixes` are written as zero. Reads x and g once and writes d_x; every token stands alone.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct AggregateBwd;

impl Op for AggregateBwd {
    const DESC: OpDesc = OpDesc {
        name: "aggregate_bwd",
        formula: "d_x[t,i,c] = H_pre[t,i] g[t,c]; d_H_pre[t,i] = sum_c g[t,c] x[t,i,c], with g = d_layer_input",
        slots: &[
            Slot::stream("x", &[T, N, C]),
            Slot::coeff("mixes", &[T, Mix]),
            Slot::stream("d_layer_input", &[T, C]),
            Slot::stream("d_x", &[T, N, C]).out(),
            Slot::coeff("d_mixes", &[T, Mix]).out(),
        ],
    };

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::backward(d, act, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let (d_x, d_mixes) = backward(d, x.get("x"), x.get("mixes"), x.get("d_layer_input"));
        Outputs::one("d_x", d_x).and("d_mixes", d_mixes)
    }

    fn forward(&self) -> Option<AnyOp> {
        Some(Aggregate.into())
    }

    fn cases(level: Level) -> Vec<Case> {
        Case::cross([AggregateBwd], &stream_dims(level))
    }
}
