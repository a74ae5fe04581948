//! `sinkhorn_log`: Sinkhorn on potentials in the log domain with a temperature (tokenbender's projection).

mod plan;
mod reference;

pub use plan::SOURCE;
pub use reference::{backward, forward};

use super::sinkhorn::dims;
use crate::{AnyOp, Axis::*, Case, Dims, Error, Fill, Inputs, Level, Op, OpDesc, Outputs, Real, Result, Slot};

/// `P = n·exp(Z + u + v)` with `Z = logits / tau` and u, v the potentials that make rows, then columns, sum to one, `iters` times.
///
/// Rows are those of memory: rows first, whatever they mean.
#[derive(Clone, Debug, PartialEq)]
pub struct SinkhornLog {
    /// Iterations; each updates u, then v.
    pub iters: u32,
    /// Temperature.
    pub tau: f64,
}

impl Default for SinkhornLog {
    fn default() -> Self {
        Self { iters: 10, tau: 0.05 }
    }
}

impl Op for SinkhornLog {
    const DESC: OpDesc = OpDesc {
        name: "sinkhorn_log",
        formula: "h_res[t] = n exp(Z + u + v), Z = logits / tau; u_i = -ln n - lse_j(Z_ij + v_j), v_j = -ln n - lse_i(Z_ij + u_i), iters times",
        slots: &[
            Slot::coeff("logits", &[T, N, N]).fill(Fill::Normal { std: 1.0 }),
            Slot::coeff("h_res", &[T, N, N]).out(),
        ],
    };

    fn check(&self) -> Result<()> {
        check(Self::DESC.name, self.iters, self.tau)
    }

    fn plan(&self, d: &Dims, _: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::forward(self, d, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let n = d.streams;
        let matrices = x.get("logits").chunks_exact(n * n);
        Outputs::one("h_res", matrices.flat_map(|l| forward(self.iters, self.tau, n, l)).collect())
    }

    fn tag(&self) -> String {
        tag(self.iters, self.tau)
    }

    fn cases(level: Level) -> Vec<Case> {
        Case::spread(FORMS.map(|(iters, tau)| SinkhornLog { iters, tau }), &dims(level))
    }
}

/// The gradient of [`SinkhornLog`], exact at any number of iterations.
#[derive(Clone, Debug, PartialEq)]
pub struct SinkhornLogBwd {
    /// As in forward.
    pub iters: u32,
    /// As in forward.
    pub tau: f64,
}

impl Op for SinkhornLogBwd {
    const DESC: OpDesc = OpDesc {
        name: "sinkhorn_log_bwd",
        formula: "dZ = d_h_res * h_res, du and dv its row and column sums; each update backwards: dZ -= W * dv, du -= W dv with W = softmax of the update; d_logits = dZ / tau",
        slots: &[
            Slot::coeff("logits", &[T, N, N]).fill(Fill::Normal { std: 1.0 }),
            Slot::coeff("d_h_res", &[T, N, N]),
            Slot::coeff("d_logits", &[T, N, N]).out(),
        ],
    };

    fn check(&self) -> Result<()> {
        check(Self::DESC.name, self.iters, self.tau)
    }

    fn plan(&self, d: &Dims, _: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::backward(self, d, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let n = d.streams;
        let matrices = x.get("logits").chunks_exact(n * n).zip(x.get("d_h_res").chunks_exact(n * n));
        let d_logits = matrices.flat_map(|(l, g)| backward(self.iters, self.tau, n, l, g)).collect();
        Outputs::one("d_logits", d_logits)
    }

    fn forward(&self) -> Option<AnyOp> {
        Some(SinkhornLog { iters: self.iters, tau: self.tau }.into())
    }

    fn tag(&self) -> String {
        tag(self.iters, self.tau)
    }

    fn cases(level: Level) -> Vec<Case> {
        Case::spread(FORMS.map(|(iters, tau)| SinkhornLogBwd { iters, tau }), &dims(level))
    }
}

const FORMS: [(u32, f64); 5] = [(10, 0.5), (10, 0.05), (1, 1.0), (2, 0.5), (20, 1.0)];

fn tag(iters: u32, tau: f64) -> String {
    format!("it{iters}-tau{tau:e}")
}

fn check(op: &'static str, iters: u32, tau: f64) -> Result<()> {
    if !(1..=1000).contains(&iters) {
        return Err(Error::Attribute { op, attr: "iters", want: "1..=1000", got: iters.to_string() });
    }
    if !(tau.is_finite() && tau > 0.0) {
        return Err(Error::Attribute { op, attr: "tau", want: "finite and positive", got: tau.to_string() });
    }
    Ok(())
}
