//! Runs a problem on a device in memory that is watched: every operand lies inside a larger allocation, and nothing but the
//! elements of the outputs may change.

use anyhow::{Result, anyhow, bail, ensure};
use mhc_core::{DType, Layout, Problem, RawView, Slot, Stream, Tensor, View, ViewMut, validate};

/// How operands lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Row-major without gaps, aligned to 256 bytes.
    Packed,
    /// Row-major with odd gaps after each row and each outer axis, starting one element off.
    Padded,
    /// Outer axes in the opposite order, with gaps, starting three elements off: of `x [T, n, C]`, all tokens of one stream together.
    Permuted,
    /// Packed, but an input whose first axis repeats one row lies there once, with a stride of 0.
    Repeated,
}

/// Where scratch comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scratch {
    /// The stream's own, with whatever is left in it.
    Stream,
    /// Just the bytes that the kernel states, watched, filled before.
    Watched,
}

/// How a problem is run.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Where operands lie.
    pub placement: Placement,
    /// The byte that outputs, gaps, guards and watched scratch are filled with before: `0xff` makes NaN in every type.
    pub fill: u8,
    /// Where scratch comes from.
    pub scratch: Scratch,
}

impl How {
    /// Packed, filled with NaN, through [`Stream::run`].
    pub const PLAIN: How = How { placement: Placement::Packed, fill: 0xff, scratch: Scratch::Stream };
    /// Packed, filled with a finite number, in watched scratch.
    pub const PACKED: How = How { placement: Placement::Packed, fill: 0x2a, scratch: Scratch::Watched };
    /// With gaps, filled with a finite number, in watched scratch.
    pub const PADDED: How = How { placement: Placement::Padded, fill: 0x2a, scratch: Scratch::Watched };
    /// With permuted axes, filled with NaN, in watched scratch.
    pub const PERMUTED: How = How { placement: Placement::Permuted, fill: 0xff, scratch: Scratch::Watched };
}

/// Guard bytes on either side; a multiple of every alignment.
const GUARD: usize = 256;

impl Placement {
    /// The layout of a shape and the position of its first element.
    pub fn layout(self, shape: &[usize]) -> Result<(Layout, usize)> {
        let (gap, start) = match self {
            Placement::Packed | Placement::Repeated => (0, 0),
            Placement::Padded => (3, 1),
            Placement::Permuted => (5, 3),
        };
        let outer = shape.len().saturating_sub(1);
        let mut strides = vec![1; shape.len()];
        let mut step = shape.last().copied().unwrap_or(1).max(1) + gap;
        let mut axes: Vec<usize> = (0..outer).rev().collect();
        if self == Placement::Permuted {
            axes.reverse();
        }
        for axis in axes {
            strides[axis] = step;
            step = step * shape[axis].max(1) + gap;
        }
        match Layout::strided(shape, &strides) {
            Some(layout) => Ok((layout, start)),
            None => bail!("no layout for shape {shape:?}"),
        }
    }
}

/// The layout with a stride of 0 along the first axis, if all rows along it are the same.
fn repeated(layout: Layout, values: &[f64]) -> Result<Layout> {
    let (shape, mut strides) = (layout.shape(), layout.strides().to_vec());
    let row = values.len() / shape[0].max(1);
    if shape.len() < 2 || shape[0] < 2 || values[..values.len() - row] != values[row..] {
        return Ok(layout);
    }
    strides[0] = 0;
    Layout::strided(shape, &strides).ok_or_else(|| anyhow!("no layout for shape {shape:?}"))
}

/// Device memory with something in it and a record of what was put there.
pub struct Watched {
    memory: Tensor,
    image: Vec<u8>,
    first: usize,
    layout: Layout,
    dtype: DType,
}

impl Watched {
    /// Memory full of `fill` with room for a layout whose last axis has no gaps, its first element at element `start` behind the guard.
    pub fn new(stream: &Stream, dtype: DType, layout: Layout, start: usize, fill: u8) -> Result<Self> {
        let first = GUARD + start * dtype.size();
        let bytes = (first + layout.extent() * dtype.size() + GUARD).next_multiple_of(2);
        let image = vec![fill; bytes];
        let memory = Tensor::from_bytes(stream, DType::F16, &[bytes / 2], &image)?;
        Ok(Self { memory, image, first, layout, dtype })
    }

    /// Memory with the elements `values` at the places of the layout and `fill` elsewhere.
    pub fn with(stream: &Stream, dtype: DType, at: (Layout, usize), fill: u8, values: &[f64]) -> Result<Self> {
        let mut this = Self::new(stream, dtype, at.0, at.1, fill)?;
        ensure!(values.len() == at.0.elements(), "{} values for {:?}", values.len(), at.0);
        let data = dtype.encode(values);
        for (at, from) in this.rows().zip(data.chunks(this.row_bytes().max(1))) {
            this.image[at..][..from.len()].copy_from_slice(from);
        }
        this.memory.write(&this.image)?;
        Ok(this)
    }

    /// What a kernel sees.
    pub fn view(&self) -> RawView {
        let memory = *self.memory.view().raw();
        RawView { ptr: memory.ptr.offset(self.first), layout: self.layout, dtype: self.dtype, device: memory.device }
    }

    /// An error if any byte changed.
    pub fn unchanged(&self) -> Result<()> {
        self.same(&self.memory.read()?)
    }

    /// The elements as row-major bytes. An error if any byte outside of them changed.
    pub fn elements(&self) -> Result<Vec<u8>> {
        let mut now = self.memory.read()?;
        let bytes = self.row_bytes();
        let mut elements = Vec::with_capacity(self.layout.elements() * self.dtype.size());
        for at in self.rows() {
            elements.extend_from_slice(&now[at..][..bytes]);
            now[at..][..bytes].copy_from_slice(&self.image[at..][..bytes]);
        }
        self.same(&now)?;
        Ok(elements)
    }

    /// Bytes of a row along the last axis, which has no gaps.
    fn row_bytes(&self) -> usize {
        self.layout.shape().last().copied().unwrap_or(1) * self.dtype.size()
    }

    /// Where rows begin, row-major, in bytes from the start of the memory.
    fn rows(&self) -> impl Iterator<Item = usize> + use<> {
        let (layout, first, size) = (self.layout, self.first, self.dtype.size());
        let outer = layout.shape().len().saturating_sub(1);
        let rows = if layout.elements() == 0 { 0 } else { layout.shape()[..outer].iter().product() };
        (0..rows).map(move |row| {
            let mut rest = row;
            let axes = layout.shape()[..outer].iter().zip(layout.strides()).rev();
            let element = axes.fold(0, |at, (&len, &stride)| {
                let step = rest % len;
                rest /= len;
                at + step * stride
            });
            first + element * size
        })
    }

    fn same(&self, now: &[u8]) -> Result<()> {
        if now == self.image {
            return Ok(());
        }
        let Some(at) = now.iter().zip(&self.image).position(|(a, b)| a != b) else { return Ok(()) };
        let changed = now.iter().zip(&self.image).filter(|(a, b)| a != b).count();
        let from_first = at as isize - self.first as isize;
        bail!("{changed} bytes were written where nothing may be, the first {from_first} bytes from the first element")
    }
}

/// The operands of one run, in watched memory: one entry per slot, `None` where it is absent.
pub struct Arena {
    slots: Vec<Option<(&'static Slot, Watched)>>,
}

impl Arena {
    /// Places inputs and makes room for outputs.
    pub fn new(stream: &Stream, p: &Problem, operands: &[Vec<f64>], placement: Placement, fill: u8) -> Result<Self> {
        let place = |(slot, values): (&'static Slot, &Vec<f64>)| {
            if !p.op.has(slot.name) {
                return Ok(None);
            }
            let (mut layout, start) = placement.layout(&slot.shape(&p.dims))?;
            if placement == Placement::Repeated && slot.is_input() {
                layout = repeated(layout, values)?;
            }
            let dtype = slot.dtype(p.act);
            let memory = if slot.is_input() {
                Watched::with(stream, dtype, (layout, start), fill, values)?
            } else {
                Watched::new(stream, dtype, layout, start, fill)?
            };
            Ok(Some((slot, memory)))
        };
        let slots = p.op.desc().slots.iter().zip(operands).map(place).collect::<Result<_>>()?;
        Ok(Self { slots })
    }

    /// Views of inputs and of outputs, as [`Stream::run`] takes them.
    pub fn views(&mut self) -> (Vec<View<'_>>, Vec<ViewMut<'_>>) {
        let (mut ins, mut outs) = (Vec::new(), Vec::new());
        for (slot, memory) in self.slots.iter().flatten() {
            // SAFETY: `Watched` allocated room for the whole layout, each operand has an allocation of its own, and the borrow of
            // `self` keeps all of them.
            unsafe {
                if slot.is_input() {
                    ins.push(View::from_raw(memory.view()));
                } else {
                    outs.push(ViewMut::from_raw(memory.view()));
                }
            }
        }
        (ins, outs)
    }

    /// The outputs, one entry per slot, as row-major bytes. An error if anything else changed.
    pub fn outputs(&self) -> Result<Vec<Vec<u8>>> {
        let output = |slot: &Option<(&'static Slot, Watched)>| {
            let Some((slot, memory)) = slot else { return Ok(Vec::new()) };
            let read = if slot.is_input() { memory.unchanged().map(|()| Vec::new()) } else { memory.elements() };
            read.map_err(|e| e.context(format!("around `{}`", slot.name)))
        };
        self.slots.iter().map(output).collect()
    }

    /// An error if anything was written at all.
    pub fn untouched(&self) -> Result<()> {
        self.slots.iter().flatten().try_for_each(|(slot, memory)| {
            memory.unchanged().map_err(|e| e.context(format!("operand `{}`", slot.name)))
        })
    }
}

/// Runs the problem and gives its outputs, one entry per slot, as row-major bytes. An error if the device refuses, fails, or writes
/// anywhere but in the elements of the outputs and in its scratch.
pub fn run(stream: &Stream, p: &Problem, operands: &[Vec<f64>], how: How) -> Result<Vec<Vec<u8>>> {
    let mut arena = Arena::new(stream, p, operands, how.placement, how.fill)?;
    let (ins, mut outs) = arena.views();
    match how.scratch {
        Scratch::Stream => stream.run(p, &ins, &mut outs)?,
        Scratch::Watched => {
            let kernel = stream.device().kernel(p)?;
            let bytes = kernel.workspace();
            let Some(layout) = Layout::contiguous(&[bytes.div_ceil(2)]) else { bail!("{bytes} bytes of scratch") };
            let scratch = Watched::new(stream, DType::F16, layout, 0, how.fill)?;
            let views = validate::operands(p, stream.id(), &ins, &outs)?;
            // SAFETY: the views were just validated for the kernel's problem; the scratch has the size it states, and both
            // outlive the wait below.
            unsafe { kernel.launch(stream.raw(), &views, scratch.view().ptr)? };
            stream.sync()?;
            scratch.elements().map_err(|e| e.context(format!("around the {bytes} bytes of scratch")))?;
        }
    }
    stream.sync()?;
    arena.outputs()
}

/// Outputs as [`run`] gives them, widened.
pub fn decode(p: &Problem, outputs: &[Vec<u8>]) -> Vec<Vec<f64>> {
    p.op.desc().slots.iter().zip(outputs).map(|(slot, bytes)| slot.dtype(p.act).decode(bytes)).collect()
}
