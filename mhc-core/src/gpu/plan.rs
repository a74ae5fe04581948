//! Launch plans: pure data, made without a device, so that every decision can be tested on any machine.

use super::{Entry, Scratch};
use crate::{Axis, DType, Dims, OpDesc, Slot};

/// What plans depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuCaps {
    /// `sm_90`, `gfx942`.
    pub arch: String,
    /// Lanes that run together: 32, or 64 on CDNA.
    pub wave: u32,
    /// Multiprocessors or compute units.
    pub units: u32,
    /// Bytes of shared memory that one block may have.
    pub shared_per_block: u32,
    /// Threads that one block may have.
    pub max_threads: u32,
    /// Kernels that the backend brings for this device besides the portable ones, each with its source. Plans look here by the
    /// kernel's name and know nothing of the device otherwise.
    pub tuned: Vec<(&'static str, Entry)>,
}

impl GpuCaps {
    /// The tuned kernel of this name that is made for just these streams, or for any if `streams` is 0, and its source.
    pub fn tuned(&self, kernel: &str, dtype: DType, streams: usize) -> Option<(&'static str, Entry)> {
        let serves = |e: &Entry| e.kernel == kernel && e.dtype == dtype && e.streams as usize == streams;
        self.tuned.iter().find(|(_, entry)| serves(entry)).copied()
    }

    /// The device without its tuned kernels.
    pub fn portable(&self) -> Self {
        Self { tuned: Vec::new(), ..self.clone() }
    }
}

/// The launches of one call, in order.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Plan {
    /// Launches. None where there is nothing to do, as for T = 0.
    pub launches: Vec<Launch>,
    /// Bytes of scratch, for the launches and for the fallback's.
    pub workspace: usize,
    /// What to launch instead where operands do not lie as `launches` wants them. `None`: `launches` takes every layout.
    pub fallback: Option<Fallback>,
}

impl Plan {
    /// Launches that take every layout, and the bytes of scratch that they need. Launches without blocks are left out.
    pub fn new(mut launches: Vec<Launch>, workspace: usize) -> Self {
        launches.retain(|l| !l.grid.contains(&0));
        Self { launches, workspace, fallback: None }
    }
}

impl Plan {
    /// Launches of kernels that come in two forms (see [`Entry::any`]): the vector forms where the channels of every operand suit them.
    pub fn in_vectors(desc: &OpDesc, d: &Dims, act: DType, launches: Vec<Launch>, workspace: usize) -> Self {
        let any = |l: &Launch| Launch { entry: l.entry.any(), ..l.clone() };
        let others = Self::new(launches.iter().map(any).collect(), workspace);
        Self::new(launches, workspace).or_any(desc, d, act, others)
    }

    /// What `make` plans with the device's tuned kernels where the rows of every operand suit vectors, and with the portable ones, in
    /// their other form, where they do not.
    pub fn tuned(
        desc: &OpDesc,
        d: &Dims,
        act: DType,
        caps: &GpuCaps,
        make: impl Fn(&GpuCaps, &mut Scratch) -> Vec<Launch>,
    ) -> Self {
        let plan = |caps: &GpuCaps| {
            let mut scratch = Scratch::default();
            let launches = make(caps, &mut scratch);
            Self::new(launches, scratch.bytes())
        };
        let mut others = plan(&caps.portable());
        others.launches.iter_mut().for_each(|l| l.entry = l.entry.any());
        plan(caps).or_any(desc, d, act, others)
    }

    /// This plan where rows are made of vectors, else the other.
    fn or_any(self, desc: &OpDesc, d: &Dims, act: DType, others: Self) -> Self {
        if !(d.channels * act.size()).is_multiple_of(16) {
            return others;
        }
        let in_rows = |s: &Slot| matches!(s.axes.last(), Some(Axis::C | Axis::K));
        let slots = desc.slots.iter().enumerate();
        let vectors = slots.filter(|(_, s)| in_rows(s)).map(|(i, _)| i).collect();
        let workspace = self.workspace.max(others.workspace);
        Self { workspace, fallback: Some(Fallback { vectors, launches: others.launches }), ..self }
    }
}

/// The other way to run a plan. Validation lets through any address that suits the element type and any outer stride, but vector
/// and bulk copies need multiples of 16 bytes; which is the case is known only when the operands are.
#[derive(Clone, Debug, PartialEq)]
pub struct Fallback {
    /// Slots whose address and outer strides must be multiples of 16 bytes for [`Plan::launches`]; absent slots do not count.
    pub vectors: Vec<usize>,
    /// The launches for everything else.
    pub launches: Vec<Launch>,
}

/// One launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The [`Source`](super::Source) that has the entry.
    pub source: &'static str,
    /// Entry point.
    pub entry: Entry,
    /// Blocks; nothing is launched where an axis has none.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Blocks of a cluster, which run at the same time and see each other's shared memory; `[1, 1, 1]` is no cluster.
    pub cluster: [u32; 3],
    /// Whether all blocks must run at the same time, so that they may wait for each other.
    pub cooperative: bool,
    /// Whether the launch may begin while the one before it in the stream ends (programmatic dependent launch). The kernel must then
    /// wait by itself before it touches anything that others write. Ignored where the device has no such thing.
    pub overlap: bool,
    /// Whether blocks go from work to work until all is done, so that no more are launched along x than run at the same time.
    pub resident: bool,
    /// Arguments, in all at most [`Launch::MAX_CELLS`] cells of 8 bytes: the fields of the one struct that the entry takes.
    pub args: Vec<Arg>,
}

impl Launch {
    /// The most cells that a launch may have.
    pub const MAX_CELLS: usize = 128;

    /// Cells that the arguments take.
    pub fn cells(&self) -> usize {
        self.args.iter().map(Arg::cells).sum()
    }

    /// A plain launch along one axis, without dynamic shared memory.
    pub fn new(source: &'static str, entry: Entry, blocks: u32, threads: u32, args: Vec<Arg>) -> Self {
        Self {
            source,
            entry,
            grid: [blocks, 1, 1],
            block: [threads, 1, 1],
            shared: 0,
            cluster: [1; 3],
            cooperative: false,
            overlap: false,
            resident: false,
            args,
        }
    }
}

/// One kernel argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// The address of a slot; null where it is absent.
    Slot(usize),
    /// The distance between neighbours along an axis of a slot, in elements, as 64 bits; 0 where it is absent.
    Stride(usize, usize),
    /// The address of the scratch memory at this byte offset.
    Workspace(usize),
    /// A number.
    U32(u32),
    /// A large number.
    U64(u64),
    /// A real number.
    F32(f32),
    /// How tensor copies find tiles of a slot `[T, n, C]` or `[T, C]`: 16 cells, of which the first is a multiple of 8 in number.
    Tile {
        /// The slot.
        slot: usize,
        /// Tokens of a tile.
        tokens: u32,
        /// Channels of a tile: a multiple of 64, or 32 in f32.
        channels: u32,
        /// Streams of a tile: all that the slot has, or one.
        streams: TileStreams,
    },
}

/// The streams of a tile of tensor copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TileStreams {
    /// Every stream of the slot.
    All,
    /// One at a time.
    One,
}

impl Arg {
    /// Cells of a tensor map.
    pub const MAP_CELLS: usize = 16;

    /// How many cells it takes.
    pub fn cells(&self) -> usize {
        if matches!(self, Self::Tile { .. }) { Self::MAP_CELLS } else { 1 }
    }
}
