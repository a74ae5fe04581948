//! `pre` in one launch and one pass over the streams, where the device brings the kernel: clusters of blocks that keep phi in registers.

use super::plan::Operator;
use crate::{
    DType, Dims,
    gpu::{self, Args, GpuCaps, Launch, Ref, Scratch},
    ops::coefficients::plan::{self as coefficients, Params},
};

/// Tokens of a tile, threads of a block.
const TILE: usize = 16;
const THREADS: u32 = 384;

/// How channels are split: the kernel keeps up to so many blocks of 32 of the 4·C/R channels of a block in each of its 8 warps.
const KERNELS: [(usize, &str); 4] =
    [(2, "pre_cluster_2"), (4, "pre_cluster_4"), (5, "pre_cluster_5"), (7, "pre_cluster_7")];

/// Blocks of a cluster, channels of a block, the kernel.
fn split(channels: usize) -> Option<(usize, usize, &'static str)> {
    // The fewest blocks: more would leave multiprocessors idle, as clusters do not cross the chip's partitions.
    [4, 8, 16].into_iter().find_map(|ranks| {
        let part = channels / ranks;
        let whole = part > 0 && channels.is_multiple_of(64 * ranks);
        let kernel = KERNELS.iter().find(|(blocks, _)| part <= 64 * blocks)?;
        whole.then_some((ranks, part, kernel.1))
    })
}

/// Bytes of shared memory with so many slots; the kernel's `Layout`.
fn shared(part: usize, slots: usize) -> usize {
    let (sums, barriers) = (TILE * 28 * 4, 4 * 8);
    1024 + slots * (part * 4 * TILE * 2 + sums + TILE * 16 + barriers) + 2 * 8 * sums + 3 * 896
}

/// The launch, if the device and the sizes allow it.
pub(super) fn launch(
    op: &Operator<'_>,
    d: &Dims,
    act: DType,
    caps: &GpuCaps,
    save: bool,
    scratch: &mut Scratch,
) -> Option<Launch> {
    let (ranks, part, kernel) = split(d.channels)?;
    let (source, entry) = caps.tuned(kernel, act, d.streams).filter(|_| op.rms_norm.is_none())?;
    let Ref::Slot(x, _) = op.x else { return None };
    // 8 slots hide every latency.
    let slots = (2..=8).rev().find(|&slots| shared(part, slots) <= caps.shared_per_block as usize)?;
    let z = if save { Ref::rows("z") } else { scratch.rows(d.tokens, d.mix()) };
    let Params { alpha, bias, .. } = Params::SLOTS;
    let weight = Ref::pointer("norm_weight").if_there(op.norm_weight);
    let args = Args::new(op.desc).tile(x, TILE, part).at(&[Ref::rows("phi"), weight, alpha, bias]);
    let args = args.at(&[Ref::rows("layer_input"), op.mixes, z, Ref::pointer("inv_rms").if_there(save)]);
    let args = args.u64(&[d.tokens]).u32(&[d.channels, slots]);
    let args = coefficients::with_numerics(args, op.numerics).f32(&[op.numerics.rms_eps]).build();
    let blocks = gpu::blocks(d.tokens.div_ceil(TILE) * ranks);
    let launch = Launch::new(source, entry, blocks, THREADS, args);
    Some(Launch { cluster: [ranks as u32, 1, 1], shared: shared(part, slots) as u32, resident: true, ..launch })
}
