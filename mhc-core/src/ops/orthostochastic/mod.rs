//! `orthostochastic`: the squares of a nearly orthogonal matrix, found by Newton-Schulz iteration (tokenbender's projection).

mod plan;
mod reference;

pub use plan::SOURCE;
pub use reference::{backward, forward};

use super::sinkhorn::dims;
use crate::{AnyOp, Axis::*, Case, Dims, Error, Fill, Inputs, Level, Op, OpDesc, Outputs, Real, Result, Slot};

/// Added to the Frobenius norm before dividing by it.
pub const EPS: f64 = 1e-7;

/// `X = logits / (‖logits‖_F + 1e-7)`; for each (a, b, c): `A = X·X^T`, `X ← a·X + (b·A + c·A²)·X`; `H = X∘X`.
///
/// As nearly doubly stochastic as the last X is orthogonal: with [`FIXED`](Self::FIXED) a few percent off, with
/// [`SCHEDULE`](Self::SCHEDULE) about 1e-3.
#[derive(Clone, Debug, PartialEq)]
pub struct Orthostochastic {
    /// (a, b, c) of every step.
    pub coeffs: Vec<[f64; 3]>,
}

impl Orthostochastic {
    /// The same step five times.
    pub const FIXED: [[f64; 3]; 5] = [[3.0, -3.2, 1.2]; 5];
    /// Eight steps that converge from any singular values that matter.
    pub const SCHEDULE: [[f64; 3]; 8] = [
        [7.2086, -15.5131, 9.0178],
        [3.9623, -2.5813, 0.4542],
        [3.9466, -2.5765, 0.4544],
        [3.8991, -2.5671, 0.4566],
        [3.7186, -2.5308, 0.4653],
        [3.1390, -2.3073, 0.4733],
        [2.1715, -1.5246, 0.3885],
        [1.8648, -1.2224, 0.3577],
    ];
}

impl Default for Orthostochastic {
    fn default() -> Self {
        Self { coeffs: Self::SCHEDULE.to_vec() }
    }
}

impl Op for Orthostochastic {
    const DESC: OpDesc = OpDesc {
        name: "orthostochastic",
        formula: "h_res[t] = X * X elementwise; X = logits / (|logits|_F + 1e-7), then X = a X + (b A + c A A) X with A = X X^T for every (a, b, c)",
        slots: &[
            Slot::coeff("logits", &[T, N, N]).fill(Fill::Normal { std: 1.0 }),
            Slot::coeff("h_res", &[T, N, N]).out(),
        ],
    };

    fn check(&self) -> Result<()> {
        check(Self::DESC.name, &self.coeffs)
    }

    fn plan(&self, d: &Dims, _: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        plan::forward(self, d, caps)
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let n = d.streams;
        let matrices = x.get("logits").chunks_exact(n * n);
        Outputs::one("h_res", matrices.flat_map(|l| forward(&self.coeffs, n, l)).collect())
    }

    fn tag(&self) -> String {
        tag(&self.coeffs)
    }

    fn cases(level: Level) -> Vec<Case> {
        Case::spread(forms().map(|coeffs| Orthostochastic { coeffs }), &dims(level))
    }
}

/// The gradient of [`Orthostochastic`], exact for the steps that were taken.
#[derive(Clone, Debug, PartialEq)]
pub struct OrthostochasticBwd {
    /// As in forward.
    pub coeffs: Vec<[f64; 3]>,
}

impl Op for OrthostochasticBwd {
    const DESC: OpDesc = OpDesc {
        name: "orthostochastic_bwd",
        formula: "G = 2 X * d_h_res; each step backwards: dB = G X^T, dA = b dB + c (dB A + A dB), G = a G + B G + (dA + dA^T) X; d_logits through the norm",
        slots: &[
            Slot::coeff("logits", &[T, N, N]).fill(Fill::Normal { std: 1.0 }),
            Slot::coeff("d_h_res", &[T, N, N]),
            Slot::coeff("d_logits", &[T, N, N]).out(),
        ],
    };

    fn check(&self) -> Result<()> {
        check(Self::DESC.name, &self.coeffs)
    }

    fn plan(&self, d: &Dims, _: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        plan::backward(self, d, caps)
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let n = d.streams;
        let matrices = x.get("logits").chunks_exact(n * n).zip(x.get("d_h_res").chunks_exact(n * n));
        Outputs::one("d_logits", matrices.flat_map(|(l, g)| backward(&self.coeffs, n, l, g)).collect())
    }

    fn forward(&self) -> Option<AnyOp> {
        Some(Orthostochastic { coeffs: self.coeffs.clone() }.into())
    }

    fn tag(&self) -> String {
        tag(&self.coeffs)
    }

    fn cases(level: Level) -> Vec<Case> {
        Case::spread(forms().map(|coeffs| OrthostochasticBwd { coeffs }), &dims(level))
    }
}

fn forms() -> impl Iterator<Item = Vec<[f64; 3]>> {
    [Orthostochastic::SCHEDULE.to_vec(), Orthostochastic::FIXED.to_vec(), vec![[1.5, -0.5, 0.0]]].into_iter()
}

fn tag(coeffs: &[[f64; 3]]) -> String {
    match coeffs {
        c if c == Orthostochastic::SCHEDULE => "schedule".into(),
        c if c == Orthostochastic::FIXED => "fixed".into(),
        c => {
            let steps: Vec<_> = c.iter().map(|[a, b, c]| format!("{a}_{b}_{c}")).collect();
            steps.join("-")
        }
    }
}

fn check(op: &'static str, coeffs: &[[f64; 3]]) -> Result<()> {
    let wrong = |want, got| Err(Error::Attribute { op, attr: "coeffs", want, got });
    if coeffs.is_empty() {
        return wrong("at least one step", "none".into());
    }
    match coeffs.iter().flatten().find(|c| !c.is_finite()) {
        Some(c) => wrong("finite", c.to_string()),
        None => Ok(()),
    }
}
