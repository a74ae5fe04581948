//! What every typed function does: sizes from shapes, outputs allocated, operands passed on in the order of the description.

use mhc_core::{
    AnyOp, Axis, DType, DTypeRule, Dims, Error, Layout, OpDesc, Problem, RawView, Result, Role, Slot, Stream, Tensor,
    View, ViewMut, validate,
};

/// One call of an operator, its sizes inferred from its inputs.
pub(crate) struct Call<'a> {
    stream: &'a Stream,
    problem: Problem,
    ins: Vec<View<'a>>,
    /// Whether a matrix [n, n] stands for a batch of one, so that outputs are [n, n] too.
    single: bool,
}

impl<'a> Call<'a> {
    /// Infers the sizes. `ins` holds the inputs in the order of the description. [`Error::Shape`] where an operand has too few or too
    /// many axes, or is missing, or is there without being wanted; [`Error::Attribute`] and [`Error::Shape`] of [`validate::problem`].
    pub fn new(stream: &'a Stream, op: AnyOp, ins: &[Option<View<'a>>]) -> Result<Self> {
        let desc = op.desc();
        let slots = || desc.slots.iter().filter(|s| s.role == Role::In);
        debug_assert_eq!(slots().count(), ins.len(), "{}", desc.name);
        let mut present = Vec::with_capacity(ins.len());
        let mut single = false;
        for (slot, view) in slots().zip(ins) {
            if let Some(view) = expect(&op, slot, *view, |v| v.raw().layout)? {
                let layout = batch_of_one(slot, view.raw().layout);
                single |= layout.is_some();
                // SAFETY: the layout covers the same elements.
                let view = layout.map_or(view, |layout| unsafe { View::from_raw(RawView { layout, ..*view.raw() }) });
                present.push((slot, view));
            }
        }
        let dims = dims(desc, &present)?;
        let stream_slot = present.iter().find(|(s, _)| s.dtype == DTypeRule::Stream);
        let act = stream_slot.map_or(DType::F32, |(_, v)| v.raw().dtype);
        let problem = Problem { op, dims, act };
        validate::problem(&problem)?;
        Ok(Self { stream, problem, ins: present.into_iter().map(|(_, v)| v).collect(), single })
    }

    /// Memory for an output that is always there.
    pub fn alloc(&self, name: &str) -> Result<Tensor> {
        let slot = self.problem.op.desc().slots.iter().find(|s| s.name == name);
        let shape = slot.map(|s| s.shape(&self.problem.dims)).unwrap_or_default();
        let dtype = slot.map_or(DType::F32, |s| s.dtype(self.problem.act));
        let batch = slot.is_some_and(|s| self.single && s.axes == MATRICES);
        Tensor::empty(self.stream, dtype, if batch { &shape[1..] } else { &shape })
    }

    /// Memory for an output that the attributes may leave out.
    pub fn alloc_maybe(&self, name: &str) -> Result<Option<Tensor>> {
        if self.problem.op.has(name) { self.alloc(name).map(Some) } else { Ok(None) }
    }

    /// Runs the operator. `outs` holds outputs and saved tensors in the order of the description.
    pub fn run<'o>(&self, outs: impl IntoIterator<Item = Option<ViewMut<'o>>>) -> Result<()> {
        let op = &self.problem.op;
        let mut present = Vec::new();
        for (slot, view) in op.desc().slots.iter().filter(|s| s.role != Role::In).zip(outs) {
            if let Some(view) = expect(op, slot, view, |v| v.raw().layout)? {
                let layout = batch_of_one(slot, view.raw().layout).unwrap_or(view.raw().layout);
                // SAFETY: the layout covers the same elements, and the view that is replaced is gone.
                present.push(unsafe { ViewMut::from_raw(RawView { layout, ..*view.raw() }) });
            }
        }
        self.stream.run(&self.problem, &self.ins, &mut present)
    }
}

/// The axes of a batch of matrices, for which a single matrix may stand.
const MATRICES: &[Axis] = &[Axis::T, Axis::N, Axis::N];

/// The layout [1, n, n] of a matrix [n, n] where a batch is wanted.
fn batch_of_one(slot: &Slot, layout: Layout) -> Option<Layout> {
    let (&[rows, columns], &[step, one]) = (layout.shape(), layout.strides()) else { return None };
    if slot.axes != MATRICES {
        return None;
    }
    Layout::strided(&[1, rows, columns], &[0, step, one])
}

/// The operand, if the attributes want it; an error if that is not what came.
fn expect<V>(op: &AnyOp, slot: &Slot, view: Option<V>, layout: impl Fn(&V) -> Layout) -> Result<Option<V>> {
    let got = match (&view, op.has(slot.name)) {
        (Some(_), true) | (None, false) => return Ok(view),
        (Some(view), false) => format!("{:?}", layout(view)),
        (None, true) => "no operand".into(),
    };
    let want = if view.is_some() { "absent with these attributes".into() } else { axes(slot) };
    Err(Error::Shape { op: op.desc().name, slot: slot.name, want, got })
}

/// `[T, n, C]`.
fn axes(slot: &Slot) -> String {
    format!("[{}]", slot.axes.iter().map(Axis::to_string).collect::<Vec<_>>().join(", "))
}

/// Sizes from shapes. An axis that several operands have is taken from the first; the validator then finds the one that differs.
fn dims(desc: &'static OpDesc, present: &[(&'static Slot, View<'_>)]) -> Result<Dims> {
    let wrong = |slot: &Slot, view: &View<'_>| Error::Shape {
        op: desc.name,
        slot: desc.slots.iter().find(|s| s.name == slot.name).map_or("", |s| s.name),
        want: axes(slot),
        got: format!("{:?}", view.raw().layout),
    };
    let (mut tokens, mut streams, mut channels, mut layers) = (None, None, None, None);
    for (slot, view) in present {
        if view.raw().layout.shape().len() != slot.axes.len() {
            return Err(wrong(slot, view));
        }
        for (axis, &len) in slot.axes.iter().zip(view.raw().layout.shape()) {
            let place = match axis {
                Axis::T => &mut tokens,
                Axis::N => &mut streams,
                Axis::C => &mut channels,
                Axis::L => &mut layers,
                Axis::Mix | Axis::K | Axis::Lit(_) => continue,
            };
            place.get_or_insert(len);
        }
    }
    let find = |axis| present.iter().find_map(|(s, v)| s.axes.iter().position(|a| *a == axis).map(|i| (s, v, i)));
    if let (None, Some((slot, view, at))) = (streams, find(Axis::Mix)) {
        let mix = view.raw().layout.shape()[at];
        // n(n+2) = (n+1)² - 1
        let n = (mix + 1).isqrt() - 1;
        streams = Some(n).filter(|n| n * (n + 2) == mix);
        if streams.is_none() {
            return Err(wrong(slot, view));
        }
    }
    let streams = streams.unwrap_or(1);
    if let (None, Some((_, view, at))) = (channels, find(Axis::K)) {
        channels = Some(view.raw().layout.shape()[at] / streams.max(1));
    }
    Ok(Dims { tokens: tokens.unwrap_or(1), streams, channels: channels.unwrap_or(1), layers: layers.unwrap_or(1) })
}
