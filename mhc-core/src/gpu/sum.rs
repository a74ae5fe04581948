//! The second pass of weight gradients: adding partial sums in a fixed order.

use super::{Args, Entry, Launch, Ref, Source, blocks};
use crate::{DType, OpDesc};

/// The device source.
pub const SUM: Source =
    Source { name: "sum", text: include_str!("../../device/sum.cuh"), entries: || Entry::all_f32(&["sum_rows"], &[0]) };

/// Threads of a block, which takes 32 columns.
const THREADS: u32 = 512;

/// Ranges that tokens are summed in before the ranges are added: of T alone, enough to fill a device and few enough to add.
pub fn ranges(tokens: usize) -> usize {
    tokens.div_ceil(32).min(64)
}

/// Adds `rows` rows of `count` numbers each, one behind the other at `parts`, into `out`.
pub fn sum_rows(desc: &'static OpDesc, parts: Ref, out: Ref, rows: usize, count: usize) -> Launch {
    let args = Args::new(desc).at(&[parts, out]).u64(&[count]).u32(&[rows, count]).build();
    Launch::new("sum", Entry::new("sum_rows", DType::F32, 0), blocks(count.div_ceil(32)), THREADS, args)
}
