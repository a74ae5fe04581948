//! `pre`, alone or after `post`, in one launch and one pass over the streams, where the device brings the kernel: clusters of blocks
//! that keep phi in registers.

use super::plan::Operator;
use crate::{
    DType, Dims, Orientation,
    gpu::{self, Arg, Args, GpuCaps, Launch, Ref, Scratch},
    ops::coefficients::plan::{self as coefficients, Params},
};

/// Tokens of a tile, threads of a block.
const TILE: usize = 16;
const THREADS: u32 = 384;

/// Kernels by how many blocks of 32 of the 4·C/R channels of a block they keep in each of 8 warps.
type Kernels = [(usize, &'static str)];

/// `pre` alone.
const PRE: &Kernels = &[(2, "pre_cluster_2"), (4, "pre_cluster_4"), (5, "pre_cluster_5"), (7, "pre_cluster_7")];

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

/// Blocks of a cluster, channels of a block, the kernel.
fn split(channels: usize, kernels: &Kernels) -> Option<(usize, usize, &'static str)> {
    // The fewest blocks: more would leave multiprocessors idle, as clusters do not cross the chip's partitions.
    [4, 8, 16].into_iter().find_map(|ranks| {
        let part = channels / ranks;
        let whole = part > 0 && channels.is_multiple_of(64 * ranks);
        let kernel = kernels.iter().find(|(blocks, _)| part <= 64 * blocks)?;
        whole.then_some((ranks, part, kernel.1))
    })
}

/// Bytes of shared memory with so many slots; the kernel's `Layout`.
fn shared(part: usize, rows: usize, slots: usize) -> usize {
    let (sums, barriers) = (TILE * 28 * 4, 4 * 8);
    1024 + slots * (part * rows * TILE * 2 + sums + TILE * 16 + barriers) + 2 * 8 * sums + 2 * 896 + 4 * 8
}

/// The launch, if the device and the sizes allow it.
pub(in crate::ops) fn launch(
    op: &Operator<'_>,
    before: Option<&Before>,
    d: &Dims,
    act: DType,
    caps: &GpuCaps,
    save: bool,
    scratch: &mut Scratch,
) -> Option<Launch> {
    let (kernels, rows) = if before.is_some() { (POST_PRE, 5) } else { (PRE, 4) };
    let (ranks, part, kernel) = split(d.channels, kernels)?;
    let (source, entry) = caps.tuned(kernel, act, d.streams).filter(|_| op.rms_norm.is_none())?;
    let Ref::Slot(x, _) = op.x else { return None };
    // 8 slots hide every latency.
    let slots = (2..=8).rev().find(|&slots| shared(part, rows, slots) <= caps.shared_per_block as usize)?;
    let z = if save { Ref::rows("z") } else { scratch.rows(d.tokens, d.mix()) };
    let Params { alpha, bias, .. } = Params::SLOTS;
    let weight = Ref::pointer("norm_weight").if_there(op.norm_weight);
    let args = Args::new(op.desc);
    let args = match before {
        Some(Before { slots: [x, y, _], .. }) => args.tile(x, TILE, part).tile(y, TILE, part),
        None => args.tile(x, TILE, part).u64(&[0; Arg::MAP_CELLS]),
    };
    let args = args.at(&[Ref::rows("phi"), weight, alpha, bias]);
    let args = args.at(&[Ref::rows("layer_input"), op.mixes, z, Ref::pointer("inv_rms").if_there(save)]);
    let args = args.u64(&[d.tokens]).u32(&[d.channels, slots]);
    let args = coefficients::with_numerics(args, op.numerics).f32(&[op.numerics.rms_eps]);
    let (mixes, x_next) = match before {
        Some(Before { slots: [.., mixes], .. }) => (Ref::rows(mixes), op.x),
        None => (Ref::Absent(1), Ref::Absent(2)),
    };
    let from_to = before.is_some_and(|b| b.orientation == Orientation::FromTo);
    let args = args.at(&[mixes, x_next]).u32(&[usize::from(from_to)]).build();
    let blocks = gpu::blocks(d.tokens.div_ceil(TILE) * ranks);
    let launch = Launch::new(source, entry, blocks, THREADS, args);
    Some(Launch { cluster: [ranks as u32, 1, 1], shared: shared(part, rows, slots) as u32, resident: true, ..launch })
}
