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

pub(crate) use backward::{Backward, Direct, NoDirect, Part, Upstream};

use core::{mem::MaybeUninit, ops::Range};

use mhc_core::{DType, Dims, bf16, f16};

use crate::{
    call::{Call, Rows},
    rows,
    simd::{Lane, Simd},
};

/// Tokens of one block of the forward pass: the rows of x and phi's panel share an L2 of 1 to 2 MB.
pub(crate) const TOKENS: usize = 16;

/// The most chunks that blocks are handed out in, so that callers can have scratch for each.
const MAX_CHUNKS: usize = 64;

/// Tokens of a register tile.
const ROWS: usize = 4;

/// Vectors of one block along K: 6 columns of phi are 12 KB of L1, four rows of x 8 KB.
const BLOCK: usize = 32;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Lanes of the widest vectors.
const MAX_LANES: usize = 16;

/// The most columns, those of n = 32.
const MAX_COLUMNS: usize = 32 * 34;

/// One projection: operands and sizes.
#[derive(Clone, Copy)]
pub(crate) struct Projection<'a> {
    /// `x [T, n, C]`.
    pub x: Streams<'a>,
    /// `phi [P, K]`.
    pub phi: Rows<'a, f32>,
    /// The norm weight `[K]`.
    pub weight: Option<&'a [f32]>,
    /// ε under the root.
    pub rms_eps: f32,
    /// Sizes.
    pub shape: Shape,
    /// T.
    pub tokens: usize,
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

/// The chunks of whole blocks that T tokens are handed out in: a task each, at most [`MAX_CHUNKS`].
#[derive(Clone, Copy)]
pub(crate) struct Chunks {
    tokens: usize,
    len: usize,
}

impl Chunks {
    /// For T tokens.
    pub fn of(tokens: usize) -> Self {
        Self { tokens, len: tokens.div_ceil(MAX_CHUNKS).next_multiple_of(TOKENS).max(TOKENS) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.tokens.div_ceil(self.len)
    }

    /// The tokens of one.
    fn tokens(&self, chunk: usize) -> Range<usize> {
        chunk * self.len..((chunk + 1) * self.len).min(self.tokens)
    }
}

/// At most [`TOKENS`] tokens.
#[derive(Clone)]
pub(crate) struct Tokens {
    /// Which.
    pub range: Range<usize>,
    /// The chunk they are part of; its blocks follow each other on one thread.
    pub chunk: usize,
}

/// What a caller does with a block of tokens before and after its projection. Implementations bring themselves to vectors.
pub(crate) trait Step: Sync {
    /// Called before the block's rows of x are read.
    fn before(&self, tokens: &Tokens) {
        let _ = tokens;
    }

    /// The row that [`after`](Self::after) writes for token `t`, as its address and bytes, where that is better fetched beforehand.
    fn written(&self, t: usize) -> (*const u8, usize) {
        let _ = t;
        (core::ptr::null(), 0)
    }

    /// Called with the block's `z [tokens, P]`, which may be overwritten, and `inv_rms [tokens]`, its rows of x still in cache.
    fn after(&self, tokens: &Tokens, z: &mut [f32], inv_rms: &[f32]);
}

impl Projection<'_> {
    /// Projects every token, in blocks of [`TOKENS`].
    ///
    /// # Safety
    /// The operands have the stated sizes for the tokens of `c`, the scratch of `c` begins with [`Shape::workspace`] bytes that
    /// nothing else uses, and no one but `step` writes x meanwhile.
    pub unsafe fn run(&self, c: &Call<'_>, step: &dyn Step) {
        // SAFETY: the caller's promise is the callees'.
        unsafe {
            match self.tokens {
                0 => {}
                1..=TOKENS => self.direct(c, step),
                _ => self.packed(c, step),
            }
        }
    }
}

/// A buffer on the stack, of which only the part in use is touched. Aligned, since vectors that cross cache lines load at half the speed.
#[repr(align(64))]
pub(crate) struct Buffer<const N: usize>(MaybeUninit<[f32; N]>);

impl<const N: usize> Buffer<N> {
    pub const fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// Its address; the contents are arbitrary.
    #[inline(always)]
    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }

    /// The first `len` numbers, as zeros.
    #[inline(always)]
    pub fn zeros(&mut self, len: usize) -> &mut [f32] {
        assert!(len <= N);
        let p = self.as_mut_ptr();
        // SAFETY: in bounds, just asserted; initialised before the reference is made.
        unsafe {
            p.write_bytes(0, len);
            core::slice::from_raw_parts_mut(p, len)
        }
    }
}

/// `[T, n, C]` of any element type. The products work on f32, so that they are compiled once and not for every type; rows of other
/// types are widened to a few KB of stack, which costs less than widening them in registers once for every group of columns.
#[derive(Clone, Copy)]
pub(crate) enum Streams<'a> {
    F32(Rows<'a, f32>),
    Bf16(Rows<'a, bf16>),
    F16(Rows<'a, f16>),
}

/// Runs the block with `$rows` standing for the rows of a [`Streams`].
macro_rules! by_rows {
    ($streams:expr, $rows:ident => $body:expr) => {
        match $streams {
            Streams::F32($rows) => $body,
            Streams::Bf16($rows) => $body,
            Streams::F16($rows) => $body,
        }
    };
}

use by_rows;

impl<'a> Streams<'a> {
    /// The operand called `name`, of the streams' element type.
    pub fn of(c: &'a Call<'_>, name: &str) -> Self {
        match c.act {
            DType::F32 => Self::F32(c.rows(name)),
            DType::Bf16 => Self::Bf16(c.rows(name)),
            DType::F16 => Self::F16(c.rows(name)),
        }
    }

    /// The output called `name`, which the launch does not read back.
    pub fn outputs(c: &'a Call<'_>, name: &str) -> Self {
        match c.act {
            DType::F32 => Self::F32(c.outputs(name)),
            DType::Bf16 => Self::Bf16(c.outputs(name)),
            DType::F16 => Self::F16(c.outputs(name)),
        }
    }

    /// Address of an element.
    ///
    /// # Safety
    /// Token, stream and channel are in range.
    #[inline(always)]
    unsafe fn address(&self, t: usize, i: usize, c: usize) -> *const u8 {
        // SAFETY: the caller's promise.
        unsafe { by_rows!(self, x => x.at(t).ptr(i, c).cast_const().cast()) }
    }

    /// Bytes of an element.
    #[inline(always)]
    fn size(&self) -> usize {
        if matches!(self, Self::F32(_)) { 4 } else { 2 }
    }

    /// `len` channels of a row as f32, padded with zeros to whole vectors: where they are, if that is so already, else in `staged`.
    /// And their squares, summed lane by lane; nothing is computed for a caller that ignores them.
    ///
    /// # Safety
    /// Token, stream and channels are in range; `staged` is writable for `len` numbers, rounded up to whole vectors.
    #[inline(always)]
    unsafe fn widened<S: Simd>(
        &self,
        s: S,
        t: usize,
        (i, c, len): (usize, usize, usize),
        staged: *mut f32,
    ) -> (*const f32, S::V) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::F32(x) if len.is_multiple_of(S::LANES) => {
                    let x = x.at(t).ptr(i, c).cast_const();
                    (x, squares(s, x, len, None))
                }
                _ => (staged, by_rows!(self, x => squares(s, x.at(t).ptr(i, c), len, Some(staged)))),
            }
        }
    }

    /// Rounds `len` channels to the element type; `c` is a multiple of the lanes.
    ///
    /// # Safety
    /// Token, stream and channels are in range and no one else's; `from` is readable for `len` numbers, rounded up to whole vectors.
    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, t: usize, (i, c, len): (usize, usize, usize), from: *const f32) {
        // SAFETY: the caller's promise.
        unsafe { by_rows!(self, x => rows::narrow(s, from, len, x.at(t), (i, c))) }
    }
}

/// The squares of `len` elements, summed lane by lane. The elements go to `to` as they pass, padded with zeros to whole vectors.
///
/// # Safety
/// `from` is readable for `len` elements, `to` is writable for as many, rounded up to whole vectors.
#[inline(always)]
unsafe fn squares<S: Simd, E: Lane>(s: S, from: *const E, len: usize, to: Option<*mut f32>) -> S::V {
    // Two sums, in turns and by name: picked by a number that is known only at run time, they would not stay in registers.
    let (mut even, mut odd) = (s.zero(), s.zero());
    let mut at = 0;
    // SAFETY: no more is taken than what is left of the row.
    unsafe {
        while len - at >= 2 * S::LANES {
            even = square(s, from, at, (S::LANES, true), to, even);
            odd = square(s, from, at + S::LANES, (S::LANES, true), to, odd);
            at += 2 * S::LANES;
        }
        let n = (len - at).min(S::LANES);
        if n > 0 {
            even = square(s, from, at, (n, n == S::LANES), to, even);
        }
        if len - at > n {
            odd = square(s, from, at + n, (len - at - n, false), to, odd);
        }
    }
    s.add(even, odd)
}

/// The step of [`squares`]: a vector of `n` elements, `at` elements on.
///
/// # Safety
/// As there; there are as many elements.
#[inline(always)]
unsafe fn square<S: Simd, E: Lane>(
    s: S,
    from: *const E,
    at: usize,
    (n, full): (usize, bool),
    to: Option<*mut f32>,
    sum: S::V,
) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let value = rows::load(s, from.add(at), n, full);
        if let Some(to) = to {
            s.store_f32(to.add(at), value);
        }
        s.fma(value, value, sum)
    }
}
