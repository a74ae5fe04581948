//! `recompute`: the residuals and layer inputs of L sub-layers from the first residual and what is cheap to keep (arXiv 2512.24880,
//! section 4.3.2).

mod plan;
mod reference;

pub use plan::SOURCE;
pub use reference::{backward, forward};

use crate::{
    AnyOp, Axis::*, Case, Cost, DType, Dims, Inputs, Level, Op, OpDesc, Orientation, Outputs, Real, Slot, stream_dims,
};

/// `x_0 = x`, `layer_inputs[l] = H_pre[l] x_l`, `residuals[l] = x_{l+1} = H_res[l] x_l + H_post[l] y[l]`.
///
/// `x [T, n, C]`, `y [L, T, C]`, `layer_inputs [L, T, C]` and `residuals [L, T, n, C]` have the streams' type, `mixes [L, T, n(n+2)]` is
/// f32. Each `x_{l+1}` is rounded to the streams' type before it is used again, so that the result is, bit for bit, what `aggregate`
/// and `post` gave layer by layer. Every operand moves once: a token's row stays in cache through all L sub-layers.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Recompute {
    /// How the n·n block of `mixes` lies in memory.
    pub orientation: Orientation,
}

/// Every size with three sub-layers, and one with a single one.
fn dims(level: Level) -> Vec<Dims> {
    let mut dims: Vec<_> = stream_dims(level).into_iter().map(|d| d.layers(3)).collect();
    dims.insert(1, Dims::new(6, 4, 40));
    dims
}

impl Op for Recompute {
    const DESC: OpDesc = OpDesc {
        name: "recompute",
        formula: "x_0 = x; layer_inputs[l] = sum_i H_pre[l,i] x_l[i]; residuals[l,i] = x_{l+1}[i] = sum_j H_res[l,i,j] x_l[j] + H_post[l,i] y[l]",
        slots: &[
            Slot::stream("x", &[T, N, C]),
            Slot::coeff("mixes", &[L, T, Mix]),
            Slot::stream("y", &[L, T, C]),
            Slot::stream("layer_inputs", &[L, T, C]).out(),
            Slot::stream("residuals", &[L, T, N, C]).out(),
        ],
    };

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::forward(self, d, act, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let stored = x.get("residuals");
        let (layer_inputs, residuals) = forward(d, self.orientation, x.get("x"), x.get("mixes"), x.get("y"), stored);
        Outputs::one("layer_inputs", layer_inputs).and("residuals", residuals)
    }

    fn rereads(&self) -> &'static [&'static str] {
        &["residuals"]
    }

    fn tag(&self) -> String {
        format!("{:?}", self.orientation).to_lowercase()
    }

    fn cases(level: Level) -> Vec<Case> {
        let ops = [Orientation::FromTo, Orientation::ToFrom].map(|orientation| Recompute { orientation });
        Case::spread(ops, &dims(level))
    }
}

/// The gradient of [`Recompute`], last sub-layer first: with `G_l` the gradient of `x_{l+1}` from everything after it and
/// `d_residuals[l]`, `post`'s gradient gives `d_y[l]`, `d_mixes[l]` and the mixing part of `G_{l-1}`, to which
/// `H_pre[l]^T d_layer_inputs[l]` is added.
///
/// The gradient is carried in f32 from the last sub-layer to the first. Every operand moves once; every token stands alone.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct RecomputeBwd {
    /// As in forward.
    pub orientation: Orientation,
}

impl Op for RecomputeBwd {
    const DESC: OpDesc = OpDesc {
        name: "recompute_bwd",
        formula: "G_l = d_residuals[l] + H_res[l+1]^T G_{l+1} + H_pre[l+1] d_layer_inputs[l+1]; d_x = G_{-1}; d_y[l] = sum_i H_post[l,i] G_l[i]; \
                  d_H_pre[l,i] = <d_layer_inputs[l], x_l[i]>; d_H_post[l,i] = <G_l[i], y[l]>; d_H_res[l,i,j] = <G_l[i], x_l[j]>",
        slots: &[
            Slot::stream("x", &[T, N, C]),
            Slot::coeff("mixes", &[L, T, Mix]),
            Slot::stream("y", &[L, T, C]),
            Slot::stream("residuals", &[L, T, N, C]),
            Slot::stream("d_layer_inputs", &[L, T, C]),
            Slot::stream("d_residuals", &[L, T, N, C]),
            Slot::stream("d_x", &[T, N, C]).out(),
            Slot::coeff("d_mixes", &[L, T, Mix]).out(),
            Slot::stream("d_y", &[L, T, C]).out(),
        ],
    };

    fn plan(&self, d: &Dims, act: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::backward(self, d, act, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let (d_x, d_mixes, d_y) = backward(
            d,
            self.orientation,
            x.get("x"),
            x.get("mixes"),
            x.get("y"),
            x.get("residuals"),
            x.get("d_layer_inputs"),
            x.get("d_residuals"),
        );
        Outputs::one("d_x", d_x).and("d_mixes", d_mixes).and("d_y", d_y)
    }

    fn forward(&self) -> Option<AnyOp> {
        Some(Recompute { orientation: self.orientation }.into())
    }

    /// Every operand once, but for the last residual, which no gradient depends on.
    fn cost(&self, d: &Dims, act: DType) -> Cost {
        let elements = |s: &Slot| s.len(d) - if s.name == "residuals" { d.tokens * d.row() } else { 0 };
        Cost { bytes: Self::DESC.slots.iter().map(|s| (elements(s) * s.dtype(act).size()) as u64).sum(), flops: 0 }
    }

    fn tag(&self) -> String {
        format!("{:?}", self.orientation).to_lowercase()
    }

    fn cases(level: Level) -> Vec<Case> {
        let ops = [Orientation::FromTo, Orientation::ToFrom].map(|orientation| RecomputeBwd { orientation });
        Case::spread(ops, &dims(level))
    }
}
