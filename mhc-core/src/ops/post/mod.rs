//! `post`: mixes the streams and distributes a sub-layer's output over them (arXiv 2512.24880, eq. 3).

pub(super) mod plan;
mod reference;

pub use plan::{BACKWARD, SOURCE};
pub use reference::{backward, forward};

use crate::{
    AnyOp,
    Axis::*,
    Case, DType, Dims, Inputs, Level, Op, OpDesc, Orientation, Outputs, Real, Result, Slot,
    gpu::{GpuCaps, Plan},
    stream_dims,
};

/// `x'_i = Σ_j H_res[i,j]·x_j + H_post[i]·y`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Post {
    /// How the n·n block of `mixes` lies in memory.
    pub orientation: Orientation,
}

impl Op for Post {
    const DESC: OpDesc = OpDesc {
        name: "post",
        formula: "x_next[t,i,c] = sum_j H_res[t,i,j] x[t,j,c] + H_post[t,i] y[t,c]",
        slots: &[
            Slot::stream("x", &[T, N, C]),
            Slot::stream("y", &[T, C]),
            Slot::coeff("mixes", &[T, Mix]),
            Slot::stream("x_next", &[T, N, C]).out(),
        ],
    };

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        Outputs::one("x_next", forward(d, self.orientation, x.get("x"), x.get("y"), x.get("mixes")))
    }

    fn plan(&self, d: &Dims, act: DType, caps: &GpuCaps) -> Result<Plan> {
        Ok(plan::forward(self, d, act, caps))
    }

    fn tag(&self) -> String {
        format!("{:?}", self.orientation).to_lowercase()
    }

    fn cases(level: Level) -> Vec<Case> {
        let ops = [Orientation::FromTo, Orientation::ToFrom].map(|orientation| Post { orientation });
        Case::spread(ops, &stream_dims(level))
    }
}

/// The gradient of [`Post`]. The `pre` part of `d_mixes` is written as zero, so that it can go to `pre_bwd` as it is.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct PostBwd {
    /// As in forward.
    pub orientation: Orientation,
    /// Whether to write `d_x = H_res^T d_x_next`. Without it, the pass that computes the rest of x's gradient adds the term itself
    /// (`pre_bwd` with `carry`), which saves one write and one read of the streams.
    pub d_x: bool,
}

impl Op for PostBwd {
    const DESC: OpDesc = OpDesc {
        name: "post_bwd",
        formula: "d_x_j = sum_i H_res[i,j] g_i; d_y = sum_i H_post[i] g_i; d_H_post[i] = <g_i, y>; d_H_res[i,j] = <g_i, x_j>, with g = d_x_next",
        slots: &[
            Slot::stream("x", &[T, N, C]),
            Slot::stream("y", &[T, C]),
            Slot::coeff("mixes", &[T, Mix]),
            Slot::stream("d_x_next", &[T, N, C]),
            Slot::stream("d_x", &[T, N, C]).out(),
            Slot::stream("d_y", &[T, C]).out(),
            Slot::coeff("d_mixes", &[T, Mix]).out(),
        ],
    };

    fn has(&self, slot: &str) -> bool {
        slot != "d_x" || self.d_x
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let (d_x, d_y, d_mixes) =
            backward(d, self.orientation, x.get("x"), x.get("y"), x.get("mixes"), x.get("d_x_next"));
        let out = Outputs::one("d_y", d_y).and("d_mixes", d_mixes);
        if self.d_x { out.and("d_x", d_x) } else { out }
    }

    fn forward(&self) -> Option<AnyOp> {
        Some(Post { orientation: self.orientation }.into())
    }

    fn plan(&self, d: &Dims, act: DType, caps: &GpuCaps) -> Result<Plan> {
        Ok(plan::backward(self, d, act, caps))
    }

    fn tag(&self) -> String {
        let d_x = if self.d_x { "" } else { "-no_d_x" };
        format!("{:?}{d_x}", self.orientation).to_lowercase()
    }

    fn cases(level: Level) -> Vec<Case> {
        let both = [Orientation::FromTo, Orientation::ToFrom];
        let ops = [true, false].iter().flat_map(|&d_x| both.map(|orientation| PostBwd { orientation, d_x }));
        Case::spread(ops, &stream_dims(level))
    }
}
