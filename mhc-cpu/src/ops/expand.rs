//! `expand` and `expand_bwd`: copies of a row, and the sum of rows.

use core::ops::Range;

use mhc_core::ops::{Expand, ExpandBwd};

use super::{CpuOp, collapse::Weighted};
use crate::{
    call::{Call, by_dtype},
    simd::Lane,
};

/// Tokens of one block.
const GRAIN: usize = 16;

/// `out[t, i] = row[t]` for every stream i.
///
/// # Safety
/// `row` and `out` name operands `[T, C]` and `[T, n, C]` of a validated call whose streams are `E`; `out` is written by nobody else.
pub(super) unsafe fn copies<E: Lane>(c: &Call<'_>, row: &str, out: &str) {
    let (row, out) = (c.rows::<E>(row), c.rows::<E>(out));
    c.tokens(GRAIN, |tokens: Range<usize>| {
        for t in tokens {
            for i in 0..c.d.streams {
                // SAFETY: `t` and `i` are in range, and each token is one block's alone.
                unsafe { out.at(t).row_mut(i).copy_from_slice(row.row(t)) };
            }
        }
    });
}

impl CpuOp for Expand {
    unsafe fn launch(&self, c: &Call<'_>) {
        // SAFETY: the description's shapes.
        by_dtype!(c.act, E => unsafe { copies::<E>(c, "h", "x") });
    }
}

impl CpuOp for ExpandBwd {
    unsafe fn launch(&self, c: &Call<'_>) {
        let n = c.d.streams;
        by_dtype!(c.act, E => c.tokens(GRAIN, |tokens| {
            c.simd(Weighted { shape: (1, n), weight: 1.0, from: c.rows::<E>("d_x"), to: c.rows::<E>("d_h"), tokens });
        }));
    }
}
