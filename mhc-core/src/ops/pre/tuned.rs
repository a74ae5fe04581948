//! `pre`, alone or after `post`, in one pass over the streams, where the device brings the kernels: clusters of blocks that keep phi in
//! registers, or for few tokens two launches that spread phi over the whole device and give the same bits.

use super::plan::Operator;
use crate::{
    DType, Dims, Orientation,
    gpu::{self, Arg, Args, Entry, GpuCaps, Launch, Ref, Scratch},
    ops::coefficients::plan::{self as coefficients, Params},
};

/// Tokens of a tile, threads of a block and of one for f32, warps of it that multiply.
const TILE: usize = 16;
const THREADS: u32 = 384;
const THREADS_F32: u32 = 512;
const WARPS: usize = 8;

/// The most tokens that take the kernels for few.
const FEW: usize = 64;

/// Channels of a block of the second kernel for few, and its threads.
const PART: usize = 1024;
const FINISH: u32 = 160;

/// Kernels by how many blocks of 32 of the n·C/R channels of a block they keep in each of 8 warps.
type Kernels = [(usize, &'static str)];

/// `pre` alone; for 4 streams of bf16, which are the most, one more.
const PRE: &Kernels = &[(4, "pre_cluster_4"), (5, "pre_cluster_5"), (7, "pre_cluster_7")];
const PRE_BF16: &Kernels = &[(2, "pre_cluster_2"), (4, "pre_cluster_4"), (5, "pre_cluster_5"), (7, "pre_cluster_7")];

/// `pre` for 4 streams of f32, and the channels of a block of it of which five slots fit.
const PRE_F32: &Kernels = &[(4, "pre_cluster_f32")];
const PART_F32: usize = 160;

/// Two streams have so few columns that more blocks of channels fit.
const PRE_2: &Kernels = &[(4, "pre_cluster_4"), (7, "pre_cluster_7")];

/// `pre` with an RMSNorm of the aggregate.
const PRE_NORM: &Kernels = &[(4, "pre_norm_cluster_4"), (5, "pre_norm_cluster_5"), (7, "pre_norm_cluster_7")];

/// `pre` after `post`, whose weights leave registers for fewer blocks.
const POST_PRE: &Kernels = &[(2, "post_pre_cluster_2"), (4, "post_pre_cluster_4"), (5, "post_pre_cluster_5")];

/// The operands of `post` in `post_pre`, besides its result, which is the streams that are projected.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Before {
    /// How the n·n block of `mixes` lies.
    pub orientation: Orientation,
    /// Slots of `[T, n, C]`, `[T, C]` and `[T, n(n+2)]`.
    pub slots: [&'static str; 3],
}

/// How the channels are split: what decides the order of every sum.
struct Split {
    /// Blocks of a cluster, and the channels of each.
    ranks: usize,
    part: usize,
    /// Blocks of 32 channels of a warp, and the kernel that is made for as many.
    blocks: usize,
    kernel: &'static str,
}

impl Split {
    fn new(d: &Dims, act: DType, post: bool, norm: bool) -> Option<Self> {
        let kernels = match (post, norm) {
            (false, false) if act == DType::F32 => PRE_F32,
            _ if act == DType::F32 => return None,
            (true, false) => POST_PRE,
            (false, true) => PRE_NORM,
            (false, false) if d.streams == 2 => PRE_2,
            (false, false) if act == DType::Bf16 => PRE_BF16,
            (false, false) => PRE,
            (true, true) => return None,
        };
        // The fewest blocks: more would leave multiprocessors idle, as clusters do not cross the chip's partitions. Of f32, the fewest that
        // have five slots, where any have: two or three cost more.
        let few = if act == DType::F32 { PART_F32 } else { usize::MAX };
        [few, usize::MAX].into_iter().flat_map(|most| [4, 8, 16].map(|ranks| (most, ranks))).find_map(
            |(most, ranks)| {
                let part = d.channels / ranks;
                let whole = part > 0 && part <= most && d.channels.is_multiple_of(row(act) * ranks);
                let &(blocks, kernel) = kernels.iter().find(|(blocks, _)| part * d.streams <= 32 * WARPS * blocks)?;
                whole.then_some(Self { ranks, part, blocks, kernel })
            },
        )
    }
}

/// Channels of a row of 128 bytes, which a block has a whole number of.
fn row(act: DType) -> usize {
    128 / act.size()
}

/// Floats of a token's partial sums: the columns, the sum of squares, and 3 to fill 16 bytes.
fn sums(d: &Dims) -> usize {
    d.mix() + 4
}

/// One call.
struct Call<'a> {
    op: &'a Operator<'a>,
    before: Option<&'a Before>,
    d: &'a Dims,
    act: DType,
    split: Split,
    /// Where z and ρ go.
    z: Ref,
    inv_rms: Ref,
    weight: Ref,
}

/// The launches, if the device and the sizes allow them.
pub(in crate::ops) fn launches(
    op: &Operator<'_>,
    before: Option<&Before>,
    d: &Dims,
    act: DType,
    caps: &GpuCaps,
    save: bool,
    scratch: &mut Scratch,
) -> Option<Vec<Launch>> {
    let Ref::Slot(x, _) = op.x else { return None };
    if before.is_none()
        && let Some(wide) = wide::launches(op, x, d, act, caps, save, scratch)
    {
        return Some(wide);
    }
    let split = Split::new(d, act, before.is_some(), op.rms_norm.is_some())?;
    let kernel = caps.tuned(split.kernel, act, d.streams)?;
    let z = if save { Ref::rows("z") } else { scratch.rows(d.tokens, d.mix()) };
    let inv_rms = Ref::pointer("inv_rms").if_there(save);
    let weight = Ref::pointer("norm_weight").if_there(op.norm_weight);
    let call = Call { op, before, d, act, split, z, inv_rms, weight };
    if let Some(few) = call.few(caps, scratch) {
        return Some(few);
    }
    Some(vec![call.cluster(kernel, x, caps, save)?])
}

impl Call<'_> {
    fn cluster(&self, (source, entry): (&'static str, Entry), x: &str, caps: &GpuCaps, save: bool) -> Option<Launch> {
        let Self { op, d, .. } = self;
        let Split { ranks, part, blocks, .. } = self.split;
        // 8 slots hide every latency.
        let fits =
            |&slots: &usize| self.shared(slots) <= caps.shared_per_block as usize && self.has_room_for_phi(slots);
        let slots = (2..=8).rev().find(fits)?;
        // Tiles between the products and the mix of a tile: two hide the exchange, one leaves a slot more for what is on its way. Which is
        // worth more was measured.
        let behind = if slots > 3 && blocks != 5 { 2 } else { 1 };
        let Params { alpha, bias, .. } = Params::SLOTS;
        let args = Args::new(op.desc);
        // One copy brings all that a block has of 16-bit types, and a row of f32.
        let channels = if self.act == DType::F32 { row(self.act) } else { part };
        let args = match self.before {
            Some(Before { slots: [x, y, _], .. }) => args.tile(x, TILE, channels).tile(y, TILE, channels),
            None => args.tile(x, TILE, channels).u64(&[0; Arg::MAP_CELLS]),
        };
        let args = args.at(&[Ref::rows("phi"), self.weight, alpha, bias]);
        let args = args.at(&[Ref::rows("layer_input"), op.mixes, self.z, self.inv_rms]);
        let args = args.u64(&[d.tokens]).u32(&[d.channels, slots, behind]);
        let args = coefficients::with_numerics(args, op.numerics).f32(&[op.numerics.rms_eps]);
        let [_, mixes, x_next] = self.post_operands();
        let args = args.at(&[mixes, x_next]).u32(&[self.mix_order()]);
        let norm = op.rms_norm.is_some();
        let args = args.at(&[Ref::pointer("w").if_there(norm), Ref::pointer("li_inv_rms").if_there(norm && save)]);
        let args = args.f32(&[op.rms_norm.unwrap_or(0.0)]).build();
        let threads = if self.act == DType::F32 { THREADS_F32 } else { THREADS };
        let launch = Launch::new(source, entry, gpu::blocks(d.tokens.div_ceil(TILE) * ranks), threads, args);
        let shared = self.shared(slots) as u32;
        Some(Launch { cluster: [ranks as u32, 1, 1], shared, resident: true, ..launch })
    }

    /// Buffers of partial sums.
    fn buffers(&self) -> usize {
        if self.act == DType::F32 { 1 } else { 2 }
    }

    /// Bytes of a slot's rows.
    fn row_bytes(&self) -> usize {
        let rows = self.d.streams + usize::from(self.before.is_some());
        self.split.part * rows * TILE * self.act.size()
    }

    /// Bytes of a warp's sums of a tile.
    fn sum_bytes(&self) -> usize {
        TILE * sums(self.d) * 4
    }

    /// Bytes of shared memory of a block with so many slots; the kernel's `Layout`.
    fn shared(&self, slots: usize) -> usize {
        let (sums, barriers) = (self.sum_bytes(), 5 * 8);
        let (norms, w) = if self.op.rms_norm.is_some() { (16 * 2 * TILE * 4, self.split.part * 4) } else { (0, 0) };
        let scales = if self.act == DType::F16 { WARPS * 24 * 4 } else { 0 };
        let slot = self.row_bytes() + sums + TILE * 16 + norms + barriers;
        1024 + slots * slot + self.buffers() * (WARPS * sums + 2 * 8) + w + scales + 2 * 896 + 8
    }

    /// Whether φ and its weight, which come through the slots and the partial sums behind them, fit there; the kernel's `Layout`.
    fn has_room_for_phi(&self, slots: usize) -> bool {
        let room = slots * self.row_bytes() + self.buffers() * WARPS * self.sum_bytes();
        self.d.streams * (self.d.mix() + 1) * (self.split.part * 4 + 32) <= room
    }

    /// Few tokens: the sums of each warp of the clusters by a block of their own, then the rest by a block a token and 1024 channels.
    fn few(&self, caps: &GpuCaps, scratch: &mut Scratch) -> Option<Vec<Launch>> {
        let Self { op, d, .. } = self;
        let Split { ranks, part, blocks, .. } = self.split;
        let (products, finish) = match self.before {
            Some(_) => ("post_pre_few_products", "post_pre_few_finish"),
            None => ("pre_few_products", "pre_few_finish"),
        };
        let find = |kernel| caps.tuned(kernel, self.act, d.streams);
        let (products, finish) =
            find(products).zip(find(finish)).filter(|_| d.tokens <= FEW && op.rms_norm.is_none())?;
        let units = scratch.pointer(d.tokens * ranks * WARPS * sums(d));
        let [y, mixes, x_next] = self.post_operands();
        let x = self.before.map_or(op.x, |before| Ref::streams(before.slots[0]));
        let args = Args::new(op.desc).at(&[x, Ref::rows("phi"), self.weight, units]).u64(&[d.tokens]);
        let args = args.u32(&[d.channels, blocks, part, usize::from(blocks > 5)]);
        let args = args.at(&[y, mixes, x_next]).u32(&[self.mix_order()]).build();
        let rows = if d.tokens <= 32 { 32 } else { 64 };
        let (width, sets, before) =
            if self.before.is_some() { (blocks * 32, 5, d.mix() * 4) } else { (blocks * 32, 1, 0) };
        let shared = (d.mix() + 1) * (width * 4 + 32) + rows * (sets * (width * 2 + 16) + before);
        let grid = [gpu::blocks(ranks * WARPS), gpu::blocks(d.tokens.div_ceil(rows)), 1];
        let (source, entry) = products;
        let products = Launch { grid, shared: shared as u32, ..Launch::new(source, entry, 1, 6 * rows as u32, args) };

        let Params { alpha, bias, .. } = Params::SLOTS;
        let args = Args::new(op.desc).at(&[
            units,
            op.x,
            alpha,
            bias,
            Ref::rows("layer_input"),
            op.mixes,
            self.z,
            self.inv_rms,
        ]);
        let args = args.u64(&[d.tokens]).u32(&[d.channels, ranks]);
        let args = coefficients::with_numerics(args, op.numerics).f32(&[op.numerics.rms_eps]).build();
        let (source, entry) = finish;
        let finish = Launch::new(source, entry, gpu::blocks(d.channels.div_ceil(PART)), FINISH, args);
        Some(vec![products, Launch { overlap: true, ..finish.across(gpu::blocks(d.tokens)) }])
    }

    /// y, the coefficients and the result of `post`, where there is one.
    fn post_operands(&self) -> [Ref; 3] {
        match self.before {
            Some(Before { slots: [_, y, mixes], .. }) => [Ref::rows(y), Ref::rows(mixes), self.op.x],
            None => [Ref::Absent(1), Ref::Absent(1), Ref::Absent(2)],
        }
    }

    /// 1 where the n·n block of `mixes` lies by the stream that a weight is from.
    fn mix_order(&self) -> usize {
        usize::from(self.before.is_some_and(|b| b.orientation == Orientation::FromTo))
    }
}

/// `pre` for 8 streams of bf16, where the device brings the kernel: blocks that wait for each other through memory, each with a slice of
/// phi, read x from memory once; the matrices take a launch of their own.
mod wide {
    use super::{Operator, Params, coefficients};
    use crate::{
        DType, Dims,
        gpu::{self, Args, GpuCaps, Launch, Ref, Scratch},
    };

    /// Threads of a block, tokens of a tile, tiles whose sums a team has room for, stages of the ring; the kernel's.
    const THREADS: u32 = 640;
    const TILE: usize = 64;
    const KEPT: usize = 2;
    const STAGES: usize = 3;

    /// Channels of a line: what a copy brings of each token. Lines of a slice at most.
    const LINE: usize = 64;
    const WIDTH: usize = 8;

    /// Slices that the kernel can add up. The fewest are best: their sums pass through the second cache.
    const SLICES: [usize; 3] = [64, 96, 128];

    /// The launches, if the device and the sizes allow them.
    pub(super) fn launches(
        op: &Operator<'_>,
        x: &str,
        d: &Dims,
        act: DType,
        caps: &GpuCaps,
        save: bool,
        scratch: &mut Scratch,
    ) -> Option<Vec<Launch>> {
        let (source, kernel) = caps.tuned("pre_wide", act, d.streams)?;
        let (_, start) = caps.tuned("pre_wide_start", act, d.streams)?;
        let (lines, units) = (d.streams * d.channels / LINE, caps.units as usize);
        let fits = |slices: &usize| lines <= slices * WIDTH && lines.is_multiple_of(*slices) && *slices <= units;
        let slices = SLICES.into_iter().find(fits)?;
        let width = lines / slices;
        let shared = shared(d.mix(), width);
        let whole = lines > 0 && d.channels.is_multiple_of(LINE);
        if !whole || op.rms_norm.is_some() || shared > caps.shared_per_block as usize {
            return None;
        }
        let teams = (units / slices).min(d.tokens.div_ceil(TILE));
        let (desc, mix) = (op.desc, d.mix());
        let z = if save { Ref::rows("z") } else { scratch.rows(d.tokens, mix) };
        let sums = scratch.pointer(teams * KEPT * TILE * slices * (mix + 4));
        let count = 2 * d.tokens.div_ceil(TILE);
        let counts = scratch.pointer(count);
        let args = Args::new(desc).at(&[counts]).u64(&[count]).build();
        let start = Launch::new(source, start, gpu::blocks(count.div_ceil(256)), 256, args);
        let Params { alpha, bias, .. } = Params::SLOTS;
        let args = Args::new(desc).stream_tile(x, TILE, LINE).at(&[op.x, Ref::rows("phi")]);
        let args = args.at(&[Ref::pointer("norm_weight").if_there(op.norm_weight), alpha, bias]);
        let args = args.at(&[Ref::rows("layer_input"), z, Ref::pointer("inv_rms").if_there(save), sums, counts]);
        let args = args.u64(&[d.tokens]).u32(&[d.channels, slices, width]);
        let args = args.f32(&[op.numerics.pre_eps, op.numerics.rms_eps]).build();
        let products = Launch::new(source, kernel, gpu::blocks(slices * teams), THREADS, args);
        let matrices = coefficients::forward_launch(desc, op.numerics, d, caps, &Params::SLOTS, (z, op.mixes));
        Some(vec![start, Launch { shared: shared as u32, cooperative: true, ..products }, matrices])
    }

    /// Bytes of dynamic shared memory of a block: φ, stages, sums and barriers; the kernel's `Block`.
    fn shared(columns: usize, width: usize) -> usize {
        let barriers = 8 * (2 * STAGES + 5 + 2 * KEPT);
        1024 + width * 2 * columns * 128 + STAGES * TILE * 128 + TILE * (columns + 4) * 4 + barriers
    }
}
