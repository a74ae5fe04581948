//! Arguments of a launch, in the shapes that device sources take them.

use super::{Arg, GpuCaps, Launch, TileStreams};
use crate::{DType, Dims, OpDesc};

/// Collects the arguments of a launch by the names of slots, in the order of the fields of the kernel's struct.
#[derive(Clone, Debug)]
pub struct Args {
    desc: &'static OpDesc,
    args: Vec<Arg>,
}

impl Args {
    /// No arguments yet.
    pub fn new(desc: &'static OpDesc) -> Self {
        Self { desc, args: Vec::new() }
    }

    /// Slots as the device's `Streams`: an address and two strides each.
    pub fn streams(self, slots: &[&str]) -> Self {
        self.slots(slots, 2)
    }

    /// Slots as the device's `Rows`: an address and one stride each.
    pub fn rows(self, slots: &[&str]) -> Self {
        self.slots(slots, 1)
    }

    /// Slots as plain pointers.
    pub fn pointers(self, slots: &[&str]) -> Self {
        self.slots(slots, 0)
    }

    fn slots(mut self, slots: &[&str], strides: usize) -> Self {
        for name in slots {
            let slot = self.desc.index(name);
            debug_assert!(slot.is_some(), "{} has no slot {name}", self.desc.name);
            let slot = slot.unwrap_or(usize::MAX);
            self.args.push(Arg::Slot(slot));
            self.args.extend((0..strides).map(|axis| Arg::Stride(slot, axis)));
        }
        self
    }

    /// Operands wherever they are.
    pub fn at(mut self, refs: &[Ref]) -> Self {
        for r in refs {
            self = match *r {
                Ref::Slot(name, strides) => self.slots(&[name], strides),
                Ref::Scratch(offset, strides, count) => {
                    let strides = strides.into_iter().take(count).map(|s| Arg::U64(s as u64));
                    self.more([Arg::Workspace(offset)].into_iter().chain(strides))
                }
                Ref::Absent(strides) => self.more(vec![Arg::U64(0); 1 + strides]),
            };
        }
        self
    }

    /// A slot as the device's `TensorMap`, in tiles of so many tokens and channels of every stream.
    pub fn tile(self, slot: &str, tokens: usize, channels: usize) -> Self {
        self.tile_of(slot, tokens, channels, TileStreams::All)
    }

    /// The same of one stream.
    pub fn stream_tile(self, slot: &str, tokens: usize, channels: usize) -> Self {
        self.tile_of(slot, tokens, channels, TileStreams::One)
    }

    fn tile_of(self, slot: &str, tokens: usize, channels: usize, streams: TileStreams) -> Self {
        let slot = self.desc.index(slot).unwrap_or(usize::MAX);
        self.more([Arg::Tile { slot, tokens: tokens as u32, channels: channels as u32, streams }])
    }

    /// Sizes.
    pub fn u64(self, values: &[usize]) -> Self {
        self.more(values.iter().map(|&v| Arg::U64(v as u64)))
    }

    /// Small sizes and flags.
    pub fn u32(self, values: &[usize]) -> Self {
        self.more(values.iter().map(|&v| Arg::U32(u32::try_from(v).unwrap_or(u32::MAX))))
    }

    /// Real numbers.
    pub fn f32(self, values: &[f64]) -> Self {
        self.more(values.iter().map(|&v| Arg::F32(v as f32)))
    }

    /// T, n and C, as nearly every kernel takes them.
    pub fn dims(self, d: &Dims) -> Self {
        self.u64(&[d.tokens]).u32(&[d.streams, d.channels])
    }

    fn more(mut self, args: impl IntoIterator<Item = Arg>) -> Self {
        self.args.extend(args);
        self
    }

    /// The arguments.
    pub fn build(self) -> Vec<Arg> {
        self.args
    }
}

/// An operand of a kernel: a slot, scratch memory, or nothing. Lets a kernel serve operators that keep the same thing in different places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ref {
    /// A slot, passed with this many strides.
    Slot(&'static str, usize),
    /// Scratch memory at a byte offset, with strides in elements, of which so many are passed.
    Scratch(usize, [usize; 2], usize),
    /// A null pointer with this many strides.
    Absent(usize),
}

impl Ref {
    /// `[T, n, C]`: passed as `Streams`.
    pub const fn streams(slot: &'static str) -> Self {
        Self::Slot(slot, 2)
    }

    /// `[T, C]`: passed as `Rows`.
    pub const fn rows(slot: &'static str) -> Self {
        Self::Slot(slot, 1)
    }

    /// `[C]`: passed as a plain pointer.
    pub const fn pointer(slot: &'static str) -> Self {
        Self::Slot(slot, 0)
    }

    /// The slot if it is there.
    pub const fn if_there(self, there: bool) -> Self {
        match self {
            Self::Slot(_, strides) | Self::Absent(strides) | Self::Scratch(_, _, strides) if !there => {
                Self::Absent(strides)
            }
            other => other,
        }
    }
}

/// Lays out the scratch memory of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scratch {
    bytes: usize,
}

impl Scratch {
    /// Room for `elements` of `size` bytes, aligned to 256 bytes; its offset.
    pub fn take(&mut self, elements: usize, size: usize) -> usize {
        let offset = self.bytes;
        self.bytes = (offset + elements * size).next_multiple_of(256);
        offset
    }

    /// f32s as a plain pointer.
    pub fn pointer(&mut self, elements: usize) -> Ref {
        Ref::Scratch(self.take(elements, 4), [0; 2], 0)
    }

    /// f32s as rows behind each other.
    pub fn rows(&mut self, rows: usize, row: usize) -> Ref {
        Ref::Scratch(self.take(rows * row, 4), [row, 0], 1)
    }

    /// Bytes taken.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Blocks along an axis of a grid: one for each piece of work, as many as a launch may have whatever the size of a block, of which AMD
/// counts the threads in 32 bits; kernels go on where more is left.
pub fn blocks(work: usize) -> u32 {
    const MOST: u32 = u32::MAX / 1024;
    u32::try_from(work).unwrap_or(MOST).min(MOST)
}

/// Threads of a block that runs along `channels` elements of `dtype` in 16 bytes a thread: whole waves, at most `most`.
pub fn threads(channels: usize, dtype: DType, caps: &GpuCaps, most: u32) -> u32 {
    let vectors = channels.div_ceil(16 / dtype.size());
    let wave = caps.wave as usize;
    let most = most.min(caps.max_threads);
    u32::try_from(vectors.div_ceil(wave) * wave).unwrap_or(most).clamp(caps.wave, most)
}

impl Launch {
    /// The same launch with a second axis of blocks.
    pub fn across(mut self, blocks: u32) -> Self {
        self.grid[1] = blocks;
        self
    }
}
