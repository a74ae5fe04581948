//! `sinkhorn`: logits to doubly stochastic matrices (arXiv 2512.24880, eq. 9), in every form that is in use.

pub(super) mod plan;
mod reference;

pub use plan::SOURCE;
pub use reference::{backward, forward};

use crate::{
    AnyOp, Axis::*, Case, Dims, Eps, Fill, Inputs, Level, Numerics, Op, OpDesc, Order, Orientation, Outputs, Real,
    Result, SinkhornForm, Slot, Start,
};

/// `H_res = Sinkhorn(logits)`: rows and columns of `H_res[to][from]` divided by their sums in turn, `form.iters` times.
///
/// Every token has a matrix of its own and every result is the same whatever its neighbours. Finite for logits of any size.
#[derive(Clone, Debug, PartialEq)]
pub struct Sinkhorn {
    /// Start, order, ε and number of iterations.
    pub form: SinkhornForm,
    /// How the matrices lie in memory, logits and results alike.
    pub orientation: Orientation,
}

impl Default for Sinkhorn {
    fn default() -> Self {
        let Numerics { sinkhorn: form, orientation, .. } = Numerics::default();
        Self { form, orientation }
    }
}

impl Op for Sinkhorn {
    const DESC: OpDesc = OpDesc {
        name: "sinkhorn",
        formula: "h_res[t] = (rows . columns)^iters exp(logits[t]), each half-step Y = X / (line sums of X)",
        slots: &[
            Slot::coeff("logits", &[T, N, N]).fill(Fill::Normal { std: 2.0 }),
            Slot::coeff("h_res", &[T, N, N]).out(),
        ],
    };

    fn check(&self) -> Result<()> {
        self.form.check(Self::DESC.name)
    }

    fn plan(&self, d: &Dims, _: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::forward(self, d, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let n = d.streams;
        let matrices = x.get("logits").chunks_exact(n * n);
        Outputs::one("h_res", matrices.flat_map(|l| forward(&self.form, self.orientation, n, l)).collect())
    }

    fn tag(&self) -> String {
        tag(&self.form, self.orientation)
    }

    fn cases(level: Level) -> Vec<Case> {
        Case::spread(forms(level).map(|(form, orientation)| Sinkhorn { form, orientation }), &dims(level))
    }
}

/// The gradient of [`Sinkhorn`], exact for every form: half-steps are recomputed from the logits and walked backwards.
#[derive(Clone, Debug, PartialEq)]
pub struct SinkhornBwd {
    /// As in forward.
    pub form: SinkhornForm,
    /// As in forward.
    pub orientation: Orientation,
}

impl Op for SinkhornBwd {
    const DESC: OpDesc = OpDesc {
        name: "sinkhorn_bwd",
        formula: "G = d_h_res * h_res; for each half-step backwards G -= Y * (line sums of G); d_logits = G",
        slots: &[
            Slot::coeff("logits", &[T, N, N]).fill(Fill::Normal { std: 2.0 }),
            Slot::coeff("d_h_res", &[T, N, N]),
            Slot::coeff("d_logits", &[T, N, N]).out(),
        ],
    };

    fn check(&self) -> Result<()> {
        self.form.check(Self::DESC.name)
    }

    fn plan(&self, d: &Dims, _: crate::DType, caps: &crate::gpu::GpuCaps) -> crate::Result<crate::gpu::Plan> {
        Ok(plan::backward(self, d, caps))
    }

    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
        let n = d.streams;
        let matrices = x.get("logits").chunks_exact(n * n).zip(x.get("d_h_res").chunks_exact(n * n));
        let d_logits = matrices.flat_map(|(l, g)| backward(&self.form, self.orientation, n, l, g)).collect();
        Outputs::one("d_logits", d_logits)
    }

    fn forward(&self) -> Option<AnyOp> {
        Some(Sinkhorn { form: self.form, orientation: self.orientation }.into())
    }

    fn tag(&self) -> String {
        tag(&self.form, self.orientation)
    }

    fn cases(level: Level) -> Vec<Case> {
        Case::spread(forms(level).map(|(form, orientation)| SinkhornBwd { form, orientation }), &dims(level))
    }
}

fn tag(form: &SinkhornForm, orientation: Orientation) -> String {
    format!("{}-{orientation:?}", form.tag()).to_lowercase()
}

/// The default, every preset, and, above smoke, every combination of start, order and ε at 1, 2 and 3 iterations.
fn forms(level: Level) -> impl Iterator<Item = (SinkhornForm, Orientation)> {
    let presets = Numerics::PRESETS.map(|(_, p)| (p.sinkhorn, p.orientation));
    let first = (Numerics::default().sinkhorn, Numerics::default().orientation);
    let iters: &[u32] = if level == Level::Smoke { &[2] } else { &[1, 2, 3] };
    let all = iters.iter().flat_map(move |&iters| {
        [Start::Exp, Start::ExpShifted, Start::Softmax].into_iter().flat_map(move |start| {
            [Order::ColumnsFirst, Order::RowsFirst].into_iter().flat_map(move |order| {
                let eps = [Eps::None, Eps::Added(1e-5), Eps::Threshold(0.5), Eps::Clamp(0.5)];
                eps.map(|eps| (SinkhornForm { start, order, eps, iters }, Orientation::ToFrom))
            })
        })
    });
    core::iter::once(first).chain(presets.into_iter().filter(move |p| *p != first)).chain(all)
}

/// Numbers and sizes of matrices: odd ones first. Also for the other projections.
pub(crate) fn dims(level: Level) -> Vec<Dims> {
    let mut dims = vec![(37, 4), (5, 3), (3, 1), (19, 2), (0, 4), (3, 32), (17, 8)];
    if level >= Level::Full {
        dims.extend([(2048, 4), (1, 4), (16, 4), (9, 5), (33, 6), (18, 7), (5, 16), (4, 17), (2, 31)]);
    }
    if level >= Level::Soak {
        dims.extend((1..=32).map(|n| (23, n)));
    }
    dims.into_iter().map(|(tokens, n)| Dims::new(tokens, n, 1)).collect()
}
