//! Gradients of parameters: sums over all tokens that come out the same whatever the threads do.
//!
//! Tokens are cut into blocks by their number alone. Every block sums its tokens in their order, in f32, into scratch of its own; then
//! the blocks are added in their order, in f64. With at most [`MAX_BLOCKS`] blocks, scratch is bounded; with at least
//! [`GRAIN`] tokens in each, writing and reading it is small beside the streams.

use core::ops::Range;

use crate::{
    call::{Call, Rows},
    simd::{Simd, SimdFn},
};

const MAX_BLOCKS: usize = 256;
const GRAIN: usize = 32;

/// Elements that one task adds over all blocks.
const COLUMNS: usize = 512;

/// How T tokens are cut into blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Partition {
    tokens: usize,
    grain: usize,
}

impl Partition {
    /// The blocks for T tokens.
    pub fn of(tokens: usize) -> Self {
        Self { tokens, grain: tokens.div_ceil(MAX_BLOCKS).max(GRAIN) }
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.tokens.div_ceil(self.grain)
    }

    /// The tokens of a block.
    pub fn tokens(&self, block: usize) -> Range<usize> {
        block * self.grain..((block + 1) * self.grain).min(self.tokens)
    }

    /// Bytes of scratch for `len` partial sums per block.
    pub fn bytes(&self, len: usize) -> usize {
        self.blocks() * len * size_of::<f32>()
    }

    /// Calls `f` with every block's tokens and its `len` partial sums, cleared, in parallel.
    ///
    /// # Safety
    /// The scratch has [`bytes`](Self::bytes) of `len` at its start, and nothing else uses them meanwhile.
    pub unsafe fn for_each(&self, c: &Call<'_>, len: usize, f: impl Fn(Range<usize>, &mut [f32]) + Sync) {
        c.blocks(self.blocks(), |b| {
            // SAFETY: the caller vouches for the scratch; part `b` is this block's alone.
            let partial = unsafe { c.scratch::<f32>(0, b, len) };
            partial.fill(0.0);
            f(self.tokens(b), partial);
        });
    }

    /// Writes the sums over all blocks of elements `from..from + out.len()` of the `len` partial sums, row after row of `out`.
    ///
    /// # Safety
    /// [`for_each`](Self::for_each) has run with the same `len`, and the elements are among them; nothing else refers to `out`.
    pub unsafe fn sum(&self, c: &Call<'_>, len: usize, from: usize, rows: usize, out: Rows<'_, f32>) {
        let per_row = out.len().div_ceil(COLUMNS);
        c.blocks(rows * per_row, |task| {
            let (row, first) = (task / per_row, task % per_row * COLUMNS);
            let columns = first..(first + COLUMNS).min(out.len());
            let offset = from + row * out.len() + columns.start;
            // SAFETY: the columns are part of the row and this task's alone; the scratch is only read now.
            unsafe {
                let out = core::slice::from_raw_parts_mut(out.ptr(row, columns.start), columns.len());
                let partials = c.scratch::<f32>(0, 0, 0).as_ptr();
                c.simd(Sum { partials: partials.add(offset), blocks: self.blocks(), len, out });
            }
        });
    }
}

struct Sum<'a> {
    partials: *const f32,
    blocks: usize,
    len: usize,
    out: &'a mut [f32],
}

impl SimdFn for Sum<'_> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, _: S) {
        let mut sums = [0f64; COLUMNS];
        let width = self.out.len();
        for b in 0..self.blocks {
            // SAFETY: `Partition::sum` hands over a column range of every block's partial sums.
            let partial = unsafe { core::slice::from_raw_parts(self.partials.add(b * self.len), width) };
            for (sum, &v) in sums.iter_mut().zip(partial) {
                *sum += f64::from(v);
            }
        }
        for (out, sum) in self.out.iter_mut().zip(sums) {
            *out = sum as f32;
        }
    }
}
