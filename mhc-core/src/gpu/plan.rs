//! Launch plans: pure data, made without a device, so that every decision can be tested on any machine.

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
}

/// The launches of one call, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Launches.
    pub launches: Vec<Launch>,
    /// Bytes of scratch.
    pub workspace: usize,
}

/// One launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The operator folder whose device source holds the entry.
    pub source: &'static str,
    /// Entry point.
    pub entry: String,
    /// Compile-time constants.
    pub defines: Vec<(&'static str, String)>,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Arguments.
    pub args: Vec<Arg>,
}

/// One kernel argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// The address of a slot.
    Slot(usize),
    /// The distance between neighbours along an axis of a slot, in elements, as 64 bits.
    Stride(usize, usize),
    /// Scratch at this byte offset.
    Workspace(usize),
    /// A number.
    U32(u32),
    /// A large number.
    U64(u64),
    /// A real number.
    F32(f32),
}
