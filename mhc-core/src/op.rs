//! The trait that every operator implements, and what a problem, a case and a tolerance are.

use core::fmt;

use crate::{
    AnyOp, DType, DTypeRule, Dims, Error, OpDesc, Real, Result, Slot,
    gpu::{GpuCaps, Plan},
};

/// A stateless operator: attributes, a description, the truth in float64, and what backends and tests need to know.
///
/// A backward operator's operands are named after its forward's: it reads the forward's operands under their own names, the
/// upstream gradient of output `y` as `d_y`, and writes the gradient of input `x` as `d_x`. The adjoint proof, the goldens and
/// the conformance cases rest on these names.
pub trait Op: Clone + fmt::Debug + PartialEq + Send + Sync + Into<AnyOp> {
    /// Name, formula and slots.
    const DESC: OpDesc;

    /// Whether the slot is there with these attributes. Absent slots are left out of the operands.
    fn has(&self, slot: &str) -> bool {
        let _ = slot;
        true
    }

    /// [`Error::Attribute`] where an attribute is out of range.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// The outputs, computed in the plainest way that is right. Never called on operands that were not checked.
    fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R>;

    /// For a backward operator, the forward operator it differentiates, with everything saved.
    fn forward(&self) -> Option<AnyOp> {
        None
    }

    /// Outputs that the operator reads back as it stored them, rounded, to compute the others (`post_pre` projects the stored `x_next`).
    /// The reference takes them through [`Inputs::stored`], so that the harness can hand it a device's own: rounding jumps, and two
    /// right implementations may land on either side.
    fn rereads(&self) -> &'static [&'static str] {
        &[]
    }

    /// How a GPU runs it.
    fn plan(&self, d: &Dims, act: DType, caps: &GpuCaps) -> Result<Plan> {
        let _ = (d, act);
        let why = "not yet implemented for this operator".into();
        Err(Error::Unsupported { op: Self::DESC.name, device: caps.arch.clone(), why })
    }

    /// Bytes that must move and operations that must be done: every operand once.
    fn cost(&self, d: &Dims, act: DType) -> Cost {
        every_operand_once(self, d, act)
    }

    /// How far a device may be from the truth.
    fn tolerance(&self) -> Tolerance {
        Tolerance::default()
    }

    /// Attributes in the case id; empty where there is nothing to tell apart.
    fn tag(&self) -> String {
        String::new()
    }

    /// Problems that conformance runs on every device, in every element type.
    fn cases(level: Level) -> Vec<Case>;
}

/// The bytes of every operand, once, and no operations.
pub(crate) fn every_operand_once<O: Op>(op: &O, d: &Dims, act: DType) -> Cost {
    let slots = O::DESC.slots.iter().filter(|s| op.has(s.name));
    Cost { bytes: slots.map(|s| (s.len(d) * s.dtype(act).size()) as u64).sum(), flops: 0 }
}

/// The work of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Bytes read and written, each operand once.
    pub bytes: u64,
    /// Floating-point operations, where they matter for speed; else 0.
    pub flops: u64,
}

/// How far a device's output may be from the float64 reference.
///
/// The baseline is the same reference run in plain f32 on the same rounded operands, its result rounded to the output's type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Multiple of the baseline's largest error that is allowed.
    pub baseline: f64,
    /// Allowed besides, relative to the output's largest magnitude, in units of the f32 spacing.
    pub floor_ulps: f64,
    /// Allowed error energy relative to the output's energy, above the baseline's own.
    pub nmse: f64,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { baseline: 2.0, floor_ulps: 8.0, nmse: 1e-11 }
    }
}

/// How much is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Small shapes, every attribute once: seconds.
    Smoke,
    /// Odd and model shapes: minutes.
    Full,
    /// Everything, with more seeds: as long as it takes.
    Soak,
}

/// An operator at certain sizes and stream type: what a device supports or not, and what it prepares a kernel for.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The operator.
    pub op: AnyOp,
    /// Sizes.
    pub dims: Dims,
    /// Element type of the streams.
    pub act: DType,
}

impl Problem {
    /// An operator at certain sizes.
    pub fn new(op: impl Into<AnyOp>, dims: Dims, act: DType) -> Self {
        Self { op: op.into(), dims, act }
    }

    /// The slots that are there, in the order in which operands are passed.
    pub fn slots(&self) -> impl Iterator<Item = &'static Slot> + '_ {
        self.op.desc().slots.iter().filter(|s| self.op.has(s.name))
    }

    /// Whether any operand has the streams' type; where none has, one type is enough to test.
    pub fn has_streams(&self) -> bool {
        self.slots().any(|s| s.dtype == DTypeRule::Stream)
    }
}

impl fmt::Display for Problem {
    /// `post.fwd/bf16/T17.n4.C130`, with the attributes in front of the sizes where they matter.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.op.desc().name;
        match name.strip_suffix("_bwd") {
            Some(name) => write!(f, "{name}.bwd/{}/", self.act)?,
            None => write!(f, "{name}.fwd/{}/", self.act)?,
        }
        let tag = self.op.tag();
        if !tag.is_empty() {
            write!(f, "{tag}/")?;
        }
        write!(f, "{}", self.dims)
    }
}

/// A problem without the element type, which the harness chooses.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The operator.
    pub op: AnyOp,
    /// Sizes.
    pub dims: Dims,
}

impl Case {
    /// Every operator at every size.
    pub fn cross<O: Op>(ops: impl IntoIterator<Item = O>, dims: &[Dims]) -> Vec<Case> {
        let cross = |op: O| dims.iter().map(move |&dims| Case { op: op.clone().into(), dims });
        ops.into_iter().flat_map(cross).collect()
    }

    /// The first operator at every size and the others at the first three: attributes seldom interact with sizes.
    pub fn spread<O: Op>(ops: impl IntoIterator<Item = O>, dims: &[Dims]) -> Vec<Case> {
        let mut ops = ops.into_iter();
        let mut cases = Case::cross(ops.next(), dims);
        cases.extend(Case::cross(ops, &dims[..dims.len().min(3)]));
        cases
    }
}

/// Sizes for the cases of operators over streams: odd ones first, then those of models.
pub fn stream_dims(level: Level) -> Vec<Dims> {
    let mut dims = vec![
        Dims::new(17, 4, 130),
        Dims::new(5, 3, 33),
        Dims::new(7, 1, 64),
        Dims::new(3, 2, 1),
        Dims::new(0, 4, 16),
        Dims::new(2, 8, 96),
        Dims::new(2, 32, 24),
        Dims::new(37, 4, 256),
    ];
    if level >= Level::Full {
        dims.extend([
            Dims::new(1, 4, 4096),
            Dims::new(64, 4, 1280),
            Dims::new(33, 5, 257),
            Dims::new(9, 6, 128),
            Dims::new(19, 7, 40),
            Dims::new(6, 16, 320),
            Dims::new(3, 17, 20),
            Dims::new(130, 2, 512),
        ]);
    }
    if level >= Level::Soak {
        dims.extend([
            Dims::new(512, 4, 2560),
            Dims::new(1025, 4, 1280),
            Dims::new(16, 32, 1280),
            Dims::new(96, 8, 1280),
        ]);
    }
    dims
}

/// The operands that a reference reads.
#[derive(Debug)]
pub struct Inputs<'a, R> {
    desc: &'static OpDesc,
    tensors: &'a [Vec<R>],
}

impl<'a, R> Inputs<'a, R> {
    /// `tensors` holds one entry per slot of `desc`, empty where the slot is absent or written; those of [`Op::rereads`] may be given.
    pub fn new(desc: &'static OpDesc, tensors: &'a [Vec<R>]) -> Self {
        debug_assert_eq!(desc.slots.len(), tensors.len());
        Self { desc, tensors }
    }

    /// The operand called `name`, row-major; empty if it is absent.
    pub fn get(&self, name: &str) -> &'a [R] {
        debug_assert!(self.desc.index(name).is_some(), "{} has no slot {name}", self.desc.name);
        self.desc.index(name).map_or(&[], |i| &self.tensors[i])
    }

    /// The output called `name` as it was stored, if it is given; else `computed`.
    pub fn stored<'b>(&'b self, name: &str, computed: &'b [R]) -> &'b [R] {
        let given = self.get(name);
        if given.is_empty() { computed } else { given }
    }
}

/// The operands that a reference computed, by name, row-major.
#[derive(Clone, Debug)]
pub struct Outputs<R>(pub Vec<(&'static str, Vec<R>)>);

impl<R> Outputs<R> {
    /// One output.
    pub fn one(name: &'static str, data: Vec<R>) -> Self {
        Self(vec![(name, data)])
    }

    /// One more output.
    pub fn and(mut self, name: &'static str, data: Vec<R>) -> Self {
        self.0.push((name, data));
        self
    }

    /// The output called `name`.
    pub fn get(&self, name: &str) -> Option<&[R]> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_slice())
    }
}
