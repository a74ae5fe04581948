//! Every convention in which implementations of mHC differ, each with a name. Nothing is chosen silently.
//!
//! Rows and columns are always those of the mathematical `H_res[to][from]`, whatever the [`Orientation`] in memory:
//! a row collects what one output stream receives, a column what one input stream gives away.

use crate::{Error, Result};

/// How the n·n block of the coefficients lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Orientation {
    /// `H_res[to][from]`: the paper, mHC.cu, Liger.
    ToFrom,
    /// `comb[from][to]`, the transpose: DeepSeek, TileKernels, AITER, lucidrains.
    #[default]
    FromTo,
}

impl Orientation {
    /// Position in the n·n block of the weight with which stream `from` enters stream `to`.
    #[inline(always)]
    pub const fn index(self, n: usize, to: usize, from: usize) -> usize {
        match self {
            Self::ToFrom => to * n + from,
            Self::FromTo => from * n + to,
        }
    }
}

/// The matrix that Sinkhorn's iterations start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Start {
    /// `exp(logits)`. Computed with the maximum taken out and the first ε scaled by the same factor, which changes nothing but the range.
    Exp,
    /// `exp(logits - max)`, the maximum taken along the first half-step's lines and held constant; ε applies to the shifted numbers.
    ExpShifted,
    /// Softmax along the first half-step's lines, plus ε where [`Eps::Added`]; it counts as the first half-step.
    #[default]
    Softmax,
}

/// Which half-step comes first in each iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Order {
    /// Columns, then rows (the paper, DeepSeek): row sums are exact at the end.
    #[default]
    ColumnsFirst,
    /// Rows, then columns (mHC.cu, Liger, lucidrains): column sums are exact at the end.
    RowsFirst,
}

/// Where ε enters the division by a sum s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Eps {
    /// Divide by s.
    None,
    /// Divide by s + ε.
    Added(f64),
    /// Divide by s where s > ε, and leave the line as it is elsewhere.
    Threshold(f64),
    /// Divide by max(s, ε).
    Clamp(f64),
}

impl Eps {
    /// ε, or 0 where there is none.
    pub const fn value(self) -> f64 {
        match self {
            Eps::None => 0.0,
            Eps::Added(e) | Eps::Threshold(e) | Eps::Clamp(e) => e,
        }
    }

    /// The ε that is added, 0 in the other modes.
    pub const fn added(self) -> f64 {
        match self {
            Eps::Added(e) => e,
            _ => 0.0,
        }
    }

    /// `none`, `add`, `threshold`, `clamp`.
    pub const fn name(self) -> &'static str {
        match self {
            Eps::None => "none",
            Eps::Added(_) => "add",
            Eps::Threshold(_) => "threshold",
            Eps::Clamp(_) => "clamp",
        }
    }
}

/// One form of the Sinkhorn projection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SinkhornForm {
    /// What the iterations start from.
    pub start: Start,
    /// Which half-step comes first.
    pub order: Order,
    /// Where ε enters.
    pub eps: Eps,
    /// Pairs of half-steps, at least 1.
    pub iters: u32,
}

impl SinkhornForm {
    /// [`Error::Attribute`] unless ε is finite and not negative and there are 1..=1000 iterations.
    pub fn check(&self, op: &'static str) -> Result<()> {
        check_eps(op, "sinkhorn.eps", self.eps.value())?;
        if !(1..=1000).contains(&self.iters) {
            let got = self.iters.to_string();
            return Err(Error::Attribute { op, attr: "sinkhorn.iters", want: "1..=1000", got });
        }
        Ok(())
    }

    /// A short name for case ids: `softmax-cols-add1e-6-it20`.
    pub fn tag(&self) -> String {
        let start = match self.start {
            Start::Exp => "exp",
            Start::ExpShifted => "expmax",
            Start::Softmax => "softmax",
        };
        let order = match self.order {
            Order::ColumnsFirst => "cols",
            Order::RowsFirst => "rows",
        };
        let eps = match self.eps {
            Eps::None => "none".into(),
            e => format!("{}{:e}", e.name(), e.value()),
        };
        format!("{start}-{order}-{eps}-it{}", self.iters)
    }
}

/// Every convention of an mHC layer in one value. The default is [`Numerics::deepseek_v4`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Numerics {
    /// How logits become a doubly stochastic H_res.
    pub sinkhorn: SinkhornForm,
    /// How the n·n block lies in memory, in `mixes`, in `phi` and in `bias`.
    pub orientation: Orientation,
    /// ε under the root of the projection's RMSNorm: ρ = (Σx²/(n·C) + ε)^(-1/2).
    pub rms_eps: f64,
    /// H_pre = σ(·) + pre_eps.
    pub pre_eps: f64,
    /// H_post = post_mult · σ(·).
    pub post_mult: f64,
}

impl Default for Numerics {
    fn default() -> Self {
        Self::deepseek_v4()
    }
}

impl Numerics {
    /// arXiv 2512.24880, equations 7-9: exp, columns then rows, no ε, 20 iterations. The paper leaves the RMSNorm's ε open; 1e-6 here.
    pub const fn paper() -> Self {
        Self {
            sinkhorn: SinkhornForm { start: Start::Exp, order: Order::ColumnsFirst, eps: Eps::None, iters: 20 },
            orientation: Orientation::ToFrom,
            rms_eps: 1e-6,
            pre_eps: 0.0,
            post_mult: 2.0,
        }
    }

    /// DeepSeek-V4 and TileKernels: softmax + ε, every denominator + ε, `comb[from][to]`, H_pre + 1e-6, H_post = 2σ.
    pub const fn deepseek_v4() -> Self {
        Self {
            sinkhorn: SinkhornForm {
                start: Start::Softmax,
                order: Order::ColumnsFirst,
                eps: Eps::Added(1e-6),
                iters: 20,
            },
            orientation: Orientation::FromTo,
            rms_eps: 1e-6,
            pre_eps: 1e-6,
            post_mult: 2.0,
        }
    }

    /// mHC.cu's kernels: exp, rows then columns, a line is divided only where its sum exceeds 1e-5. Its PyTorch baseline adds ε instead:
    /// set `sinkhorn.eps` to [`Eps::Added`] to compare with that.
    pub const fn mhc_cu() -> Self {
        Self {
            sinkhorn: SinkhornForm { start: Start::Exp, order: Order::RowsFirst, eps: Eps::Threshold(1e-5), iters: 20 },
            orientation: Orientation::ToFrom,
            rms_eps: 1e-5,
            pre_eps: 0.0,
            post_mult: 2.0,
        }
    }

    /// Liger-Kernel: softmax over a row + ε, then columns, `H_res[to][from]`, no ε on H_pre.
    pub const fn liger() -> Self {
        Self {
            sinkhorn: SinkhornForm { start: Start::Softmax, order: Order::RowsFirst, eps: Eps::Added(1e-6), iters: 20 },
            orientation: Orientation::ToFrom,
            rms_eps: 1e-6,
            pre_eps: 0.0,
            post_mult: 2.0,
        }
    }

    /// lucidrains/hyper-connections: `alpha[source][target]`, exp of logits less their maximum over sources, sums over sources first,
    /// then over targets, each clamped at 1e-12.
    pub const fn lucidrains() -> Self {
        Self {
            sinkhorn: SinkhornForm {
                start: Start::ExpShifted,
                order: Order::RowsFirst,
                eps: Eps::Clamp(1e-12),
                iters: 20,
            },
            orientation: Orientation::FromTo,
            rms_eps: 1e-6,
            pre_eps: 0.0,
            post_mult: 2.0,
        }
    }

    /// Every preset with its name.
    pub const PRESETS: [(&'static str, Numerics); 5] = [
        ("paper", Self::paper()),
        ("deepseek_v4", Self::deepseek_v4()),
        ("mhc_cu", Self::mhc_cu()),
        ("liger", Self::liger()),
        ("lucidrains", Self::lucidrains()),
    ];

    /// The preset called `name`, if there is one.
    pub fn preset(name: &str) -> Option<Self> {
        Self::PRESETS.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
    }

    /// [`Error::Attribute`] unless every number is finite, every ε is not negative and post_mult is positive.
    pub fn check(&self, op: &'static str) -> Result<()> {
        self.sinkhorn.check(op)?;
        check_eps(op, "rms_eps", self.rms_eps)?;
        check_eps(op, "pre_eps", self.pre_eps)?;
        if !(self.post_mult.is_finite() && self.post_mult > 0.0) {
            let got = self.post_mult.to_string();
            return Err(Error::Attribute { op, attr: "post_mult", want: "finite and positive", got });
        }
        Ok(())
    }

    /// A short name for case ids: the preset's, or the conventions spelled out.
    pub fn tag(&self) -> String {
        match Self::PRESETS.iter().find(|(_, v)| v == self) {
            Some((name, _)) => (*name).into(),
            None => format!(
                "{}-{:?}-rms{:e}-pre{:e}-post{}",
                self.sinkhorn.tag(),
                self.orientation,
                self.rms_eps,
                self.pre_eps,
                self.post_mult
            ),
        }
    }
}

/// [`Error::Attribute`] unless `eps` is finite and not negative.
pub fn check_eps(op: &'static str, attr: &'static str, eps: f64) -> Result<()> {
    if eps.is_finite() && eps >= 0.0 {
        Ok(())
    } else {
        Err(Error::Attribute { op, attr, want: "finite and not negative", got: eps.to_string() })
    }
}
