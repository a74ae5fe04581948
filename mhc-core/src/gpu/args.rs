//! Arguments of a launch, in the shapes that device sources take them.

use super::{Arg, GpuCaps, Launch};
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

    /// Scratch memory at these byte offsets, as plain pointers.
    pub fn workspace(self, offsets: &[usize]) -> Self {
        self.more(offsets.iter().map(|&o| Arg::Workspace(o)))
    }

    /// Scratch memory as the device's `Rows`.
    pub fn workspace_rows(self, offset: usize, step: usize) -> Self {
        self.more([Arg::Workspace(offset), Arg::U64(step as u64)])
    }

    /// Scratch memory as the device's `Streams`.
    pub fn workspace_streams(self, offset: usize, token: usize, stream: usize) -> Self {
        self.more([Arg::Workspace(offset), Arg::U64(token as u64), Arg::U64(stream as u64)])
    }

    /// Operands that are not there: null pointers with `strides` strides each.
    pub fn absent(self, count: usize, strides: usize) -> Self {
        self.more(vec![Arg::U64(0); count * (1 + strides)])
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

/// Blocks along the first axis of a grid: one for each piece of work, as many as a launch may have; kernels go on where more is left.
pub fn blocks(work: usize) -> u32 {
    u32::try_from(work).unwrap_or(u32::MAX).min(i32::MAX as u32)
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
