//! The projection `z = ρ·(φ ⊙ w)·x` of token rows and its gradient: what `project`, `pre`, `head`, `post_pre` and `dynamic_layer` share.
//!
//! It is the one part of mHC that is bound by arithmetic: 24 multiplications per element of x for n = 4. The rest of the file tree
//! is about keeping the FMA units fed:
//!
//! - `forward`: phi is packed once a launch, norm weight folded in, as `[block of K][group of columns][vector][column][lane]`, so that
//!   a register tile of 4 tokens × 6 columns reads one stream of memory (the rows of phi, a power of two apart, would share the sets
//!   of L1). Blocks of K are outermost: a slice of phi comes to L1 once per 16 tokens, x from memory once, and the 16 rows are still
//!   in L2 when the caller comes back to aggregate them.
//! - `direct`: up to 16 tokens read phi where it lies, columns shared out over the threads; packing would cost more than the product.
//! - `backward`: blocks of channels, all streams of them, over all tokens.
//!
//! A number's order of summation follows from n, C and the instruction set alone — sums of a block of K per lane, blocks in order,
//! then lanes — so that a token's result does not depend on T, on its neighbours, or on which of the two forward paths was taken.

mod backward;
mod direct;
mod forward;

pub(crate) use backward::{Backward, Direct, NoDirect};

use core::{mem::MaybeUninit, ops::Range};

use mhc_core::Dims;

use crate::{
    call::{Call, Rows},
    simd::{Lane, Simd},
};

/// Tokens of one block of the forward pass: the rows of x and phi's panel share an L2 of 1 to 2 MB.
pub(crate) const TOKENS: usize = 16;

/// Tokens of a register tile.
const ROWS: usize = 4;

/// Vectors of one block along K: 6 columns of phi are 12 KB of L1, four rows of x 8 KB.
const BLOCK: usize = 32;

/// The most columns, those of n = 32.
const MAX_COLUMNS: usize = 32 * 34;

/// One projection: operands and sizes.
#[derive(Clone, Copy)]
pub(crate) struct Projection<'a, E> {
    /// `x [T, n, C]`.
    pub x: Rows<'a, E>,
    /// `phi [P, K]`.
    pub phi: Rows<'a, f32>,
    /// The norm weight `[K]`.
    pub weight: Option<&'a [f32]>,
    /// ε under the root.
    pub rms_eps: f32,
    /// Sizes.
    pub shape: Shape,
}

/// Sizes of a projection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// n.
    pub streams: usize,
    /// C.
    pub channels: usize,
    /// P, the rows of phi.
    pub columns: usize,
}

/// One block of K: part of one stream's channels.
#[derive(Clone, Copy)]
struct Block {
    stream: usize,
    /// First channel.
    channel: usize,
    /// Channels.
    len: usize,
    /// Vectors before this one, in K.
    before: usize,
    /// Vectors, the last one possibly partial.
    vectors: usize,
}

impl Shape {
    /// The sizes of the projection to all n(n+2) coefficients.
    pub fn mixes(d: &Dims) -> Self {
        Self { streams: d.streams, channels: d.channels, columns: d.mix() }
    }

    /// K.
    pub fn row(&self) -> usize {
        self.streams * self.channels
    }

    /// Bytes of scratch of the forward pass, enough for every instruction set.
    pub fn workspace(&self, tokens: usize) -> usize {
        if tokens <= TOKENS {
            return TOKENS * self.columns * size_of::<f32>();
        }
        self.streams * self.channels.next_multiple_of(16) * self.columns.next_multiple_of(12) * size_of::<f32>()
    }

    /// Columns of a register tile: the width that pads least, 6 before 4. Eight lanes come with 16 registers, enough for 3.
    fn width(&self, lanes: usize) -> usize {
        match lanes {
            8 => 3,
            _ if self.columns.next_multiple_of(6) <= self.columns.next_multiple_of(4) => 6,
            _ => 4,
        }
    }

    /// Blocks of K.
    fn blocks(&self, lanes: usize) -> usize {
        self.streams * self.channels.div_ceil(BLOCK * lanes)
    }

    /// Block `b` of K.
    fn block(&self, lanes: usize, b: usize) -> Block {
        let per_stream = self.channels.div_ceil(BLOCK * lanes);
        let (stream, channel) = (b / per_stream, b % per_stream * BLOCK * lanes);
        let len = (self.channels - channel).min(BLOCK * lanes);
        let before = stream * self.channels.div_ceil(lanes) + channel / lanes;
        Block { stream, channel, len, before, vectors: len.div_ceil(lanes) }
    }
}

/// What a caller does with a block of tokens before and after its projection. Implementations bring themselves to vectors.
pub(crate) trait Step: Sync {
    /// Called before the block's rows of x are read.
    fn before(&self, tokens: Range<usize>) {
        let _ = tokens;
    }

    /// Called with the block's `z [tokens, P]` and `inv_rms [tokens]`, its rows of x still in cache.
    fn after(&self, tokens: Range<usize>, z: &mut [f32], inv_rms: &[f32]);
}

impl<E: Lane> Projection<'_, E> {
    /// Projects every token, in blocks of [`TOKENS`].
    ///
    /// # Safety
    /// The operands have the stated sizes for the tokens of `c`, the scratch of `c` begins with [`Shape::workspace`] bytes that
    /// nothing else uses, and no one but `step` writes x meanwhile.
    pub unsafe fn run(&self, c: &Call<'_>, step: &impl Step) {
        let tokens = c.d.tokens;
        // SAFETY: the caller's promise is the callees'.
        unsafe {
            match tokens {
                0 => {}
                1..=TOKENS => self.direct(c, step),
                _ => self.packed(c, step),
            }
        }
    }
}

/// A buffer on the stack of which only the part in use is touched.
pub(crate) struct Buffer<const N: usize>(MaybeUninit<[f32; N]>);

impl<const N: usize> Buffer<N> {
    pub fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// The first `len` numbers, as zeros.
    #[inline(always)]
    pub fn zeros(&mut self, len: usize) -> &mut [f32] {
        assert!(len <= N);
        let p = self.0.as_mut_ptr().cast::<f32>();
        // SAFETY: in bounds, just asserted; initialised before the reference is made.
        unsafe {
            p.write_bytes(0, len);
            core::slice::from_raw_parts_mut(p, len)
        }
    }
}

/// Adds the squares of a block's channels to `sums`, one vector a row, and where `staged` is given leaves the rows there as f32, each
/// padded with zeros to whole vectors, [`BLOCK`] vectors apart.
///
/// # Safety
/// Every pointer of `x` is readable for `block.len` elements; `sums` holds a vector a row, `staged` [`BLOCK`] vectors a row.
#[inline(always)]
unsafe fn squares<S: Simd, E: Lane, const R: usize>(
    s: S,
    x: [*const E; R],
    block: Block,
    sums: [*mut f32; R],
    staged: Option<*mut f32>,
) {
    let mut acc = [[s.zero(); 2]; R];
    for v in 0..block.vectors {
        let left = block.len - v * S::LANES;
        for r in 0..R {
            // SAFETY: the vector begins before the block's end, and loads no more than what is left.
            unsafe {
                let value = crate::rows::load(s, x[r].add(v * S::LANES), left.min(S::LANES), left >= S::LANES);
                acc[r][v % 2] = s.fma(value, value, acc[r][v % 2]);
                if let Some(staged) = staged {
                    s.store_f32(staged.add((r * BLOCK + v) * S::LANES), value);
                }
            }
        }
    }
    for r in 0..R {
        // SAFETY: `sums[r]` holds a vector.
        unsafe { s.store_f32(sums[r], s.add(s.load_f32(sums[r]), s.add(acc[r][0], acc[r][1]))) };
    }
}
