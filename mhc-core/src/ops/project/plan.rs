//! How a GPU runs `project` and its gradient; also those of `pre`, `head` and the layers.

use super::{Project, ProjectBwd};
use crate::{
    DType, Dims, Op, OpDesc, Orientation,
    gpu::{self, Args, Entry, GpuCaps, Launch, Plan, Ref, Scratch, Source},
};

/// The device source.
pub const SOURCE: Source = Source {
    name: "project",
    text: include_str!("kernel.cuh"),
    entries: || {
        let mut entries = Entry::all(&["project_fwd", "project_bwd_x", "project_bwd_x_f32", "project_bwd_phi"], &[0]);
        let plain = ["project_fwd_finish", "project_bwd_tokens", "project_bwd_weights"];
        entries.extend(Entry::all_f32(&plain, &[0]));
        entries
    },
};

/// Threads of a block.
const THREADS: u32 = 256;

/// The kernels' tiles: tokens, columns, channels at a time, channels of a tile of d_x and d_phi.
const TOKENS: usize = 64;
const COLUMNS: usize = 32;
const DEPTH: usize = 32;
const CHANNELS: usize = 64;

/// Channels of a range of K in forward, so that few tokens are spread over many blocks.
const RANGE: usize = 1024;

/// Scratch that the ranges of tokens may take in the gradient of phi.
const PARTS: usize = 128 << 20;

/// A tuned kernel that stands in for `project_fwd`.
struct MmaForward {
    kernel: &'static str,
    /// Columns of a block.
    columns: usize,
    /// Tokens of a block's tile.
    tokens: usize,
    /// Threads of a block.
    threads: u32,
    /// Bytes of phi that a block keeps, at most: what leaves room for as many waves as hide the memory's latency.
    shared: usize,
    /// How often a block fills it for a range of K: more than once only where many columns would make ranges so short that the parts weigh
    /// more than x.
    fills: usize,
    /// The same where columns come in groups, which are many blocks by themselves.
    grouped: usize,
    /// Bytes of a number of phi, for bf16 streams and for the others: two bf16, two tf32 or one f32.
    phi: [usize; 2],
    /// Blocks that a multiprocessor has room for, each with its part of phi for as many tiles as there are.
    resident: usize,
}

/// On NVIDIA's tensor cores, by the columns that they serve; the last takes more in groups.
const MMA: [MmaForward; 3] = {
    let base = MmaForward {
        kernel: "",
        columns: 0,
        tokens: 128,
        threads: 128,
        shared: 0,
        fills: 1,
        grouped: 1,
        phi: [4, 8],
        resident: 4,
    };
    [
        MmaForward { kernel: "project_fwd_mma_8", columns: 8, shared: 64 << 10, ..base },
        MmaForward { kernel: "project_fwd_mma_24", columns: 24, shared: 96 << 10, ..base },
        MmaForward { kernel: "project_fwd_mma_80", columns: 80, tokens: 64, shared: 80 << 10, grouped: 4, ..base },
    ]
};

/// On AMD's matrix units, in the same way. 64 KiB are all the shared memory of a compute unit of CDNA 3.
const TILES: [MmaForward; 3] = {
    let base = MmaForward {
        kernel: "",
        columns: 0,
        tokens: 128,
        threads: 256,
        shared: 64 << 10,
        fills: 1,
        grouped: 1,
        phi: [4, 4],
        resident: 1,
    };
    [
        MmaForward { kernel: "project_fwd_tiles_16", columns: 16, resident: 2, ..base },
        MmaForward { kernel: "project_fwd_tiles_32", columns: 32, ..base },
        MmaForward { kernel: "project_fwd_tiles_80", columns: 80, fills: 4, grouped: 4, ..base },
    ]
};

impl MmaForward {
    /// The kernel that serves so many columns, of those that the device brings.
    fn find(act: DType, caps: &GpuCaps, columns: usize) -> Option<(&'static Self, (&'static str, Entry))> {
        [&MMA, &TILES].into_iter().find_map(|family| {
            let tuned = family.iter().find(|m| columns <= m.columns).unwrap_or(&family[family.len() - 1]);
            Some((tuned, caps.tuned(tuned.kernel, act, 0)?))
        })
    }

    fn phi_bytes(&self, act: DType) -> usize {
        self.phi[usize::from(act != DType::Bf16)]
    }

    /// Channels whose phi is kept at a time: a power of two, so that they are made of whole units of 128.
    fn kept(&self, act: DType) -> usize {
        let most = self.shared / (self.columns * self.phi_bytes(act));
        (1 << most.ilog2()).min(512)
    }

    fn fills(&self, columns: usize) -> usize {
        if columns > self.columns { self.grouped } else { self.fills }
    }

    /// Channels of a range of K.
    fn range(&self, act: DType, columns: usize) -> usize {
        self.fills(columns) * self.kept(act)
    }

    /// Blocks for tiles of tokens, groups of columns, and ranges.
    fn grid(&self, d: &Dims, caps: &GpuCaps, columns: usize, ranges: usize) -> [u32; 3] {
        let groups = columns.div_ceil(self.columns);
        let (tiles, all) = (d.tokens.div_ceil(self.tokens), self.resident * caps.units as usize);
        // Who fills again for every tile has nothing to keep from one to the next.
        let keeps = self.fills(columns) == self.fills;
        let blocks = if keeps { tiles.min(all.div_ceil(ranges * groups)) } else { tiles };
        [gpu::blocks(blocks), gpu::blocks(groups), gpu::blocks(ranges)]
    }
}

/// Where the operands of a projection are.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Operands {
    /// `[T, n, C]`
    pub x: Ref,
    /// `[columns, K]`
    pub phi: Ref,
    /// `[K]` or absent.
    pub weight: Ref,
    /// `[T, columns]`
    pub z: Ref,
    /// `[T]`
    pub inv_rms: Ref,
    /// Rows of phi.
    pub columns: usize,
}

impl Operands {
    /// The slots of the names that every operator uses.
    pub(in crate::ops) fn slots(columns: usize, norm_weight: bool) -> Self {
        Self {
            x: Ref::streams("x"),
            phi: Ref::rows("phi"),
            weight: Ref::pointer("norm_weight").if_there(norm_weight),
            z: Ref::rows("z"),
            inv_rms: Ref::pointer("inv_rms"),
            columns,
        }
    }
}

/// `z` and `inv_rms`.
pub(in crate::ops) fn forward_launches(
    desc: &'static OpDesc,
    rms_eps: f64,
    d: &Dims,
    act: DType,
    caps: &GpuCaps,
    o: &Operands,
    scratch: &mut Scratch,
) -> Vec<Launch> {
    // A lane has 8 neighbours of a row, which must be of one stream.
    let whole = d.channels.is_multiple_of(8);
    let tuned = MmaForward::find(act, caps, o.columns).filter(|_| whole);
    // A range is of K and the columns alone: a token's sum must not depend on the others. Many columns are many blocks by themselves.
    let (steps, each) = match &tuned {
        Some((mma, _)) => (d.row().div_ceil(DEPTH), mma.range(act, o.columns) / DEPTH),
        None if o.columns > 128 => (d.streams * d.channels.div_ceil(DEPTH), 4 * RANGE / DEPTH),
        None => (d.streams * d.channels.div_ceil(DEPTH), RANGE / DEPTH),
    };
    let ranges = steps.div_ceil(each);
    let parts = scratch.pointer(ranges * d.tokens * o.columns);
    let squares = scratch.pointer(ranges * d.tokens);
    let args = Args::new(desc).at(&[o.x, o.phi, o.weight, parts, squares]).dims(d).u32(&[o.columns, each]).build();
    let products = match tuned {
        Some((mma, (source, entry))) => {
            let shared = (mma.kept(act) * mma.columns * mma.phi_bytes(act)) as u32;
            let grid = mma.grid(d, caps, o.columns, ranges);
            Launch { grid, shared, ..Launch::new(source, entry, 1, mma.threads, args) }
        }
        None => {
            let blocks = gpu::blocks(d.tokens.div_ceil(TOKENS));
            let mut products = Launch::new("project", Entry::new("project_fwd", act, 0), blocks, THREADS, args);
            products.grid = [blocks, gpu::blocks(o.columns.div_ceil(COLUMNS)), gpu::blocks(ranges)];
            products
        }
    };

    let args = Args::new(desc).at(&[parts, squares, o.z, o.inv_rms]).u64(&[d.tokens]);
    let args = args.u32(&[o.columns, ranges]).f32(&[d.row() as f64, rms_eps]).build();
    let blocks = gpu::blocks((d.tokens * o.columns).div_ceil(THREADS as usize));
    vec![products, Launch::new("project", Entry::new("project_fwd_finish", DType::F32, 0), blocks, THREADS, args)]
}

/// What the gradient of x takes besides, `H_pre·d_li` and `H_res^T·d_x_next`, and where it goes.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Besides {
    /// `[T, n(n+2)]`
    pub mixes: Ref,
    /// `[T, C]` of the streams' type.
    pub d_li: Ref,
    /// `[T, C]` of f32.
    pub d_li_f32: Ref,
    /// `[T, n, C]`
    pub d_x_next: Ref,
    /// How the n·n block of `mixes` lies; `None`: H_res is the identity.
    pub mixing: Option<Orientation>,
    /// `[T, n, C]`: where d_x goes, and whether that is f32.
    pub d_x: (Ref, bool),
}

impl Besides {
    /// Nothing, and d_x in the slot of that name.
    pub(in crate::ops) const NONE: Self = Self {
        mixes: Ref::Absent(1),
        d_li: Ref::Absent(1),
        d_li_f32: Ref::Absent(1),
        d_x_next: Ref::Absent(2),
        mixing: None,
        d_x: (Ref::streams("d_x"), false),
    };

    /// The arguments that kernels take of it, from d_x on.
    fn args(&self, args: Args, d: &Dims, columns: usize) -> Args {
        let mixing = match self.mixing {
            Some(Orientation::ToFrom) => 0,
            Some(Orientation::FromTo) => 1,
            None => 2,
        };
        let args = args.at(&[self.d_x.0, self.mixes, self.d_li, self.d_li_f32, self.d_x_next]);
        args.dims(d).u32(&[columns, mixing])
    }
}

/// The gradients of x, phi and the weight for `d_z`; `d_phi` and `d_norm_weight` are slots of that name.
pub(in crate::ops) fn backward_launches(
    desc: &'static OpDesc,
    d: &Dims,
    act: DType,
    caps: &GpuCaps,
    o: &Operands,
    d_z: Ref,
    besides: &Besides,
    scratch: &mut Scratch,
) -> Vec<Launch> {
    let p = scratch.pointer(d.tokens * o.columns);
    let shrink = scratch.pointer(d.tokens);
    let args = Args::new(desc).at(&[o.z, o.inv_rms, d_z, p, shrink]).u64(&[d.tokens]);
    let args = args.u32(&[o.columns]).f32(&[d.row() as f64]).build();
    let entry = Entry::new("project_bwd_tokens", DType::F32, 0);
    let mut launches = vec![Launch::new("project", entry, gpu::blocks(d.tokens.div_ceil(4)), THREADS, args)];
    launches.extend(product_launches(desc, d, act, caps, o, (p, shrink), besides, scratch));
    launches
}

/// The same for what is left of `d_z` after the first launch: `p [T, P]` and `shrink [T]`.
pub(in crate::ops) fn product_launches(
    desc: &'static OpDesc,
    d: &Dims,
    act: DType,
    caps: &GpuCaps,
    o: &Operands,
    (p, shrink): (Ref, Ref),
    besides: &Besides,
    scratch: &mut Scratch,
) -> Vec<Launch> {
    let (products, parts, ranges) = match MmaBackward::find(d, act, caps, o, besides) {
        Some(tuned) => tuned.launch(desc, d, o, besides, (p, shrink), scratch),
        None => products(desc, d, act, o, besides, (p, shrink), scratch),
    };

    let weighted = matches!(o.weight, Ref::Slot(..));
    let args = Args::new(desc).at(&[parts, o.phi, o.weight, Ref::rows("d_phi")]);
    let args = args.at(&[Ref::pointer("d_norm_weight").if_there(weighted)]).u64(&[d.row()]);
    let args = args.u32(&[o.columns, ranges]).build();
    let blocks = gpu::blocks(d.row().div_ceil(THREADS as usize));
    let weights = Launch::new("project", Entry::new("project_bwd_weights", DType::F32, 0), blocks, THREADS, args);
    let weights = weights.across(if weighted { 1 } else { gpu::blocks(o.columns).min(65535) });
    [products, vec![weights]].concat()
}

/// d_x and the parts of phi's gradient for `p` and `shrink`; where the parts are, and how many.
fn products(
    desc: &'static OpDesc,
    d: &Dims,
    act: DType,
    o: &Operands,
    besides: &Besides,
    (p, shrink): (Ref, Ref),
    scratch: &mut Scratch,
) -> (Vec<Launch>, Ref, usize) {
    let tiles = gpu::blocks(d.streams * d.channels.div_ceil(CHANNELS));
    let kernel = if besides.d_x.1 { "project_bwd_x_f32" } else { "project_bwd_x" };
    let args = besides.args(Args::new(desc).at(&[o.x, o.phi, o.weight, p, shrink]), d, o.columns).build();
    let d_x = Launch::new("project", Entry::new(kernel, act, 0), tiles, THREADS, args);
    let d_x = d_x.across(gpu::blocks(d.tokens.div_ceil(TOKENS)).min(65535));

    let phi = o.columns * d.row();
    let ranges = d.tokens.div_ceil(256).min(16).min(most_parts(phi));
    let parts = scratch.pointer(ranges * phi);
    let args = Args::new(desc).at(&[o.x, p, parts]).dims(d).u32(&[o.columns]).build();
    let mut d_phi = Launch::new("project", Entry::new("project_bwd_phi", act, 0), tiles, THREADS, args);
    d_phi.grid = [tiles, gpu::blocks(o.columns.div_ceil(COLUMNS)), gpu::blocks(ranges)];
    (vec![d_x, d_phi], parts, ranges)
}

/// Ranges of tokens whose parts of a gradient of `phi` elements fit in scratch.
fn most_parts(phi: usize) -> usize {
    (PARTS / (4 * phi)).max(1)
}

/// A tuned kernel that stands in for both `project_bwd_x` and `project_bwd_phi`: its source and entry, and how it is launched.
struct MmaBackward {
    found: (&'static str, Entry),
    /// Waves of a block: each has its own channels, of all streams or of one, and its own range of tokens. 1 where a block's waves share a
    /// range; what is said of waves here is said of blocks then.
    waves: usize,
    /// Threads of a block.
    threads: u32,
    /// Bytes of shared memory of a wave.
    bytes: usize,
    /// Waves for a range of tokens.
    groups: usize,
    /// Waves that run at the same time on the largest device. A constant, as the order of sums over tokens follows from it.
    resident: usize,
}

impl MmaBackward {
    /// Tokens that a range is a multiple of, and tokens that make a range worth its part of the sum.
    const STEP: usize = 16;
    const LEAST: usize = 64;

    fn find(d: &Dims, act: DType, caps: &GpuCaps, o: &Operands, besides: &Besides) -> Option<Self> {
        let wide = besides.d_x.1 && act != DType::F32;
        let [mma, tiles] = match wide {
            true => ["project_bwd_mma_f32", "project_bwd_tiles_f32"],
            false => ["project_bwd_mma", "project_bwd_tiles"],
        };
        if o.columns != d.mix() || d.tokens == 0 {
            return None;
        }
        let tuned = |kernel| caps.tuned(kernel, act, d.streams);
        tuned(mma).and_then(|found| Self::tensor_cores(d, act, caps, found)).or_else(|| {
            tuned(tiles).map(|found| if caps.wave == 64 { Self::cdna(d, found) } else { Self::rdna(d, found) })
        })
    }

    /// NVIDIA's: 32 channels of all streams; 8 warps on each of 132 multiprocessors.
    fn tensor_cores(d: &Dims, act: DType, caps: &GpuCaps, found: (&'static str, Entry)) -> Option<Self> {
        const CHANNELS: usize = 32;
        // As the kernel lays it out: fragments of phi, x and d_x_next, d_li, p twice, coefficients.
        let (n, columns, tokens) = (d.streams, d.mix().next_multiple_of(8), 32 / act.size());
        let rows = tokens * CHANNELS;
        let bytes = 128 * n * columns + 2 * n * rows * act.size() + 4 * rows + 8 * tokens * columns + 112 * tokens;
        let waves = (caps.shared_per_block as usize / bytes).min(4);
        let (threads, groups) = (32 * waves as u32, d.channels.div_ceil(CHANNELS));
        (waves > 0).then_some(Self { found, waves, threads, bytes, groups, resident: 1056 })
    }

    /// AMD's CDNA: 128 channels of one stream; 2 waves on each SIMD of 304 compute units.
    fn cdna(d: &Dims, found: (&'static str, Entry)) -> Self {
        const CHANNELS: usize = 128;
        let groups = d.channels.div_ceil(CHANNELS) * d.streams;
        Self { found, waves: 4, threads: 256, bytes: 0, groups, resident: 2432 }
    }

    /// AMD's RDNA: a block of 8 waves, each with 64 channels of one stream; one block to each of 96 compute units.
    fn rdna(d: &Dims, found: (&'static str, Entry)) -> Self {
        const CHANNELS: usize = 64;
        let groups = (d.channels.div_ceil(CHANNELS) * d.streams).div_ceil(8);
        Self { found, waves: 1, threads: 256, bytes: 0, groups, resident: 96 }
    }

    /// Ranges of tokens, and tokens of a range: as many as keep all waves busy for a whole number of turns, nearly.
    fn ranges(&self, d: &Dims, phi: usize) -> (usize, usize) {
        let whole = |turns: &usize| turns * self.resident / self.groups;
        let idle = |turns: &usize| (turns * self.resident - whole(turns) * self.groups) * 16 / (turns * self.resident);
        let turns = (1..=3).filter(|t| whole(t) > 0).min_by_key(idle);
        let ranges = turns.map_or(1, |t| whole(&t)).min(d.tokens.div_ceil(Self::LEAST)).min(most_parts(phi)).max(1);
        let range = d.tokens.div_ceil(ranges).next_multiple_of(Self::STEP);
        (d.tokens.div_ceil(range), range)
    }

    /// As [`products`].
    fn launch(
        &self,
        desc: &'static OpDesc,
        d: &Dims,
        o: &Operands,
        besides: &Besides,
        (p, shrink): (Ref, Ref),
        scratch: &mut Scratch,
    ) -> (Vec<Launch>, Ref, usize) {
        let phi = o.columns * d.row();
        let (ranges, range) = self.ranges(d, phi);
        let parts = scratch.pointer(ranges * phi);
        let args = besides.args(Args::new(desc).at(&[o.x, o.phi, o.weight, p, shrink]), d, o.columns);
        let args = args.at(&[parts]).u32(&[ranges, range]).build();
        let blocks = gpu::blocks((ranges * self.groups).div_ceil(self.waves));
        let (source, entry) = self.found;
        let launch = Launch::new(source, entry, blocks, self.threads, args);
        (vec![Launch { shared: (self.waves * self.bytes) as u32, ..launch }], parts, ranges)
    }
}

pub(super) fn forward(op: &Project, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let desc = &Project::DESC;
    let operands = Operands::slots(d.mix(), op.norm_weight);
    Plan::tuned(desc, d, act, caps, |caps, scratch| {
        forward_launches(desc, op.rms_eps, d, act, caps, &operands, scratch)
    })
}

pub(super) fn backward(op: &ProjectBwd, d: &Dims, act: DType, caps: &GpuCaps) -> Plan {
    let (d_z, desc) = (Ref::rows("d_z"), &ProjectBwd::DESC);
    let operands = Operands::slots(d.mix(), op.norm_weight);
    Plan::tuned(desc, d, act, caps, |caps, scratch| {
        backward_launches(desc, d, act, caps, &operands, d_z, &Besides::NONE, scratch)
    })
}
