//! The gradient: `d_x = φᵀ·d_p − shrink·x + direct terms` and `d_φ = Σ_t d_p·xᵀ`.
//!
//! A task is a block of channels, of all streams, over a chunk of tokens. It keeps its slice of phi and of d_phi in L2, takes its part
//! of x once, 16 tokens at a time, and uses it for both products. Channels come first because that needs no partial sums; only where
//! they make too few tasks are the tokens cut as well, by the problem's size alone, and the partial d_phi are added in order.

use core::ops::Range;

use super::{Buffer, LINE, Projection, Shape, Streams, by_rows};
use crate::{
    call::{Call, Rows},
    rows,
    simd::{Simd, SimdFn, prefetch_l2},
};

/// Tokens taken at a time.
const TOKENS: usize = 16;
/// Tokens of a register tile of d_x.
const ROWS: usize = 4;
/// Channels of a task: pieces of rows that are worth fetching, slices of phi and d_phi that fit into L2.
const CHANNELS: usize = 512;
/// Numbers from one row of such a slice or buffer to the next: an odd number of cache lines. Rows a power of two apart would share a few
/// sets of L1. (17.8 to 17.5 ms for `pre_bwd` in f32 at T = 2048, n = 4, C = 2048. Tried there and rejected: 32 tokens at a time, 1024
/// channels, asking for the rows that the direct parts will read, d_x written tile by tile: all slower, or lost in the noise.)
const PITCH: usize = CHANNELS + LINE / size_of::<f32>();
/// Streams whose direct parts are found together, so that each stream of what is mixed back is read once.
const STREAMS: usize = 4;
/// Tasks wanted.
const TASKS: usize = 32;
/// Tokens that are worth a partial d_phi.
const MIN_CHUNK: usize = 128;
/// Bytes of partial d_phi that are acceptable.
const MAX_PARTIALS: usize = 32 << 20;

/// The part of x's gradient that does not come through the projection. Implementations bring themselves to vectors.
pub(crate) trait Direct: Sync {
    /// Leaves in `out` what all streams of a block of tokens have in common, as [`Part`] says.
    fn shared(&self, part: &Part, out: &mut [f32]) {
        let _ = (part, out);
    }

    /// Leaves in `out`, behind each other, the parts of the gradients of some streams, at most [`STREAMS`]; `shared` is what
    /// [`shared`](Self::shared) left.
    fn streams(&self, part: &Part, streams: Range<usize>, shared: &[f32], out: &mut [f32]) {
        let _ = (part, streams, shared);
        out.fill(0.0);
    }
}

/// No direct part.
pub(crate) struct NoDirect;
impl Direct for NoDirect {}

/// Part of a block of tokens. Buffers for it have [`PITCH`] numbers for each of its tokens.
#[derive(Clone)]
pub(crate) struct Part {
    /// Which tokens, at most [`TOKENS`].
    pub tokens: Range<usize>,
    /// First channel.
    pub channel: usize,
    /// Channels, at most [`CHANNELS`].
    pub len: usize,
}

impl Part {
    /// What a buffer holds of token number `row` of the block.
    pub fn row<'a>(&self, buffer: &'a [f32], row: usize) -> &'a [f32] {
        &buffer[row * PITCH..][..self.len]
    }

    /// What a buffer for several streams holds of token number `row` of the block: a row of `len` channels for each stream.
    ///
    /// # Safety
    /// Nothing else uses the buffer meanwhile, which has room for every stream that is used.
    pub unsafe fn rows<'a>(&self, buffer: *mut f32, row: usize) -> Rows<'a, f32> {
        // SAFETY: the caller's promise.
        unsafe { Rows::at_address(buffer.add(row * PITCH), TOKENS * PITCH, self.len) }
    }

    /// Calls `f` with every token and the offset of its numbers in a buffer.
    #[inline(always)]
    pub fn for_each(&self, mut f: impl FnMut(usize, usize)) {
        for (row, t) in self.tokens.clone().enumerate() {
            f(t, row * PITCH);
        }
    }
}

/// Where the parts of the scratch begin, in numbers; d_p is the first.
#[derive(Clone, Copy)]
struct Scratch {
    shrink: usize,
    phi: usize,
    partials: usize,
    end: usize,
}

/// How the gradient of a projection is cut up.
#[derive(Clone, Copy)]
struct Cut {
    blocks: usize,
    chunks: usize,
    tokens: usize,
}

impl Cut {
    fn new(shape: &Shape, tokens: usize) -> Self {
        let blocks = shape.channels.div_ceil(CHANNELS);
        let bytes = (shape.columns * shape.row() * size_of::<f32>()).max(1);
        let most = (tokens / MIN_CHUNK).min(MAX_PARTIALS / bytes).max(1);
        let chunks = (TASKS / blocks).clamp(1, most);
        Self { blocks, chunks, tokens: tokens.div_ceil(chunks).next_multiple_of(TOKENS) }
    }
}

impl Shape {
    fn backward_scratch(&self, tokens: usize) -> Scratch {
        let cut = Cut::new(self, tokens);
        let slices = cut.blocks * PITCH * self.streams * self.columns;
        let shrink = tokens * self.columns;
        // Vectors must not cross cache lines.
        let phi = (shrink + tokens).next_multiple_of(LINE / size_of::<f32>());
        let partials = phi + slices;
        Scratch { shrink, phi, partials, end: partials + cut.chunks * slices }
    }

    /// Bytes of scratch of the gradient.
    pub fn backward_workspace(&self, tokens: usize) -> usize {
        self.backward_scratch(tokens).end * size_of::<f32>()
    }
}

/// The gradient of one projection.
pub(crate) struct Backward<'a> {
    /// What forward had.
    pub p: Projection<'a>,
    /// `d_x [T, n, C]`.
    pub d_x: Streams<'a>,
    /// `d_phi [P, K]`.
    pub d_phi: Rows<'a, f32>,
    /// `d_norm_weight [K]`, where there is a weight.
    pub d_weight: Option<Rows<'a, f32>>,
    /// Where its scratch begins, in bytes.
    pub scratch: usize,
}

/// Where [`Backward::run`] wants the gradient of the logits: `d_p = ρ·d_z`, and `shrink = Σ_j d_z_j·z_j·ρ²/K`.
#[derive(Clone, Copy)]
pub(crate) struct Upstream<'a> {
    /// `[T, P]`; callers put `d_z` there, and then call [`scale`](Self::scale).
    pub d_p: Rows<'a, f32>,
    shrink: Rows<'a, f32>,
}

impl Upstream<'_> {
    /// Makes of token `t`'s `d_z` what is wanted.
    ///
    /// # Safety
    /// `t` is in range, and no one else uses its rows.
    pub unsafe fn scale(&self, shape: &Shape, t: usize, z: &[f32], rho: f32) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut dot = 0.0;
            for (d, z) in self.d_p.row_mut(t).iter_mut().zip(z) {
                dot += *d * z;
                *d *= rho;
            }
            *self.shrink.ptr(0, t) = dot * rho * rho / shape.row() as f32;
        }
    }
}

impl Backward<'_> {
    /// The upstream gradient, to be set for every token before [`run`](Self::run).
    ///
    /// # Safety
    /// The scratch of `c` has [`Shape::backward_workspace`] bytes from `scratch` on, a multiple of 64, that nothing else uses.
    pub unsafe fn upstream<'c>(&self, c: &'c Call<'_>) -> Upstream<'c> {
        let (shape, tokens) = (self.p.shape, c.d.tokens);
        let at = shape.backward_scratch(tokens);
        // SAFETY: in bounds by the caller's promise.
        unsafe {
            Upstream {
                d_p: Rows::over(c.scratch(self.scratch, 0, tokens * shape.columns), shape.columns),
                shrink: Rows::over(c.scratch(self.scratch + at.shrink * size_of::<f32>(), 0, tokens), tokens),
            }
        }
    }

    /// Computes `d_x`, `d_phi` and `d_weight`.
    ///
    /// # Safety
    /// As [`upstream`](Self::upstream), which was set for every token; the operands have the stated sizes for the tokens of `c`.
    pub unsafe fn run(&self, c: &Call<'_>, direct: &dyn Direct) {
        let shape = self.p.shape;
        let (cut, at) = (Cut::new(&shape, c.d.tokens), shape.backward_scratch(c.d.tokens));
        let slice = PITCH * shape.streams * shape.columns;
        // SAFETY: the parts lie in the scratch, and every task below has its own slice of what it writes.
        unsafe {
            let upstream = self.upstream(c);
            let phi = Rows::over(c.scratch(self.scratch + at.phi * size_of::<f32>(), 0, cut.blocks * slice), slice);
            let partials = Rows::over(
                c.scratch(self.scratch + at.partials * size_of::<f32>(), 0, cut.chunks * cut.blocks * slice),
                slice,
            );
            c.blocks(cut.blocks * shape.streams, |b| {
                let (block, stream) = (b / shape.streams, b % shape.streams);
                c.simd(Fold { p: &self.p, block, stream, to: phi.ptr(block, stream * PITCH * shape.columns) });
            });
            c.blocks(cut.blocks * cut.chunks, |task| {
                let (block, chunk) = (task % cut.blocks, task / cut.blocks);
                let tokens = (chunk * cut.tokens).min(c.d.tokens)..((chunk + 1) * cut.tokens).min(c.d.tokens);
                let slices = (phi.ptr(block, 0).cast_const(), partials.row_mut(task));
                c.simd(Slice { b: self, direct, upstream, block, tokens, slices });
            });
            c.blocks(cut.blocks * shape.streams, |b| {
                let (block, stream) = (b / shape.streams, b % shape.streams);
                c.simd(Finish { b: self, cut, block, stream, partials });
            });
        }
    }
}

/// Channels of a block.
fn channels(shape: &Shape, block: usize) -> usize {
    (shape.channels - block * CHANNELS).min(CHANNELS)
}

/// Copies a block's part of `φ ⊙ w` to `[P][PITCH]`, padded with zeros.
struct Fold<'a> {
    p: &'a Projection<'a>,
    block: usize,
    stream: usize,
    to: *mut f32,
}

impl SimdFn for Fold<'_> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let (shape, len) = (self.p.shape, channels(&self.p.shape, self.block));
        let k = self.stream * shape.channels + self.block * CHANNELS;
        for j in 0..shape.columns {
            for v in 0..CHANNELS / S::LANES {
                let (at, left) = (v * S::LANES, len.saturating_sub(v * S::LANES));
                let (n, full) = (left.min(S::LANES), left >= S::LANES);
                // SAFETY: no more is loaded than what is left of the row; `to` has CHANNELS numbers a column.
                unsafe {
                    let mut value = s.zero();
                    if n > 0 {
                        value = rows::load(s, self.p.phi.ptr(j, k + at), n, full);
                        if let Some(w) = self.p.weight {
                            value = s.mul(value, rows::load(s, w.as_ptr().add(k + at), n, full));
                        }
                    }
                    s.store_f32(self.to.add(j * PITCH + at), value);
                }
            }
        }
    }
}

/// A block of channels over a chunk of tokens.
struct Slice<'a> {
    b: &'a Backward<'a>,
    direct: &'a dyn Direct,
    upstream: Upstream<'a>,
    block: usize,
    tokens: Range<usize>,
    /// Phi's slice and the partial d_phi, `[n][P][PITCH]`.
    slices: (*const f32, &'a mut [f32]),
}

impl SimdFn for Slice<'_> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        // Eight lanes come with 16 registers, more or fewer with 32.
        if S::LANES == 8 { self.tiles::<S, 2, 4>(s) } else { self.tiles::<S, 4, 6>(s) }
    }
}

impl Slice<'_> {
    /// With tiles of `V` vectors along the channels, for [`ROWS`] tokens or `Q` columns.
    #[inline(always)]
    fn tiles<S: Simd, const V: usize, const Q: usize>(self, s: S) {
        let Slice { b, direct, upstream, block, tokens, slices: (phi, d_phi) } = self;
        let (shape, x) = (b.p.shape, b.p.x);
        let (channel, len) = (block * CHANNELS, channels(&shape, block));
        let (mut staged, mut shared) = (Buffer::<{ TOKENS * PITCH }>::new(), Buffer::<{ TOKENS * PITCH }>::new());
        let (staged, shared) = (staged.zeros(TOKENS * PITCH), shared.zeros(TOKENS * PITCH));
        let mut d_x = Buffer::<{ STREAMS * TOKENS * PITCH }>::new();
        let d_x = d_x.zeros(STREAMS * TOKENS * PITCH);
        d_phi.fill(0.0);
        for first in tokens.clone().step_by(TOKENS) {
            let part = Part { tokens: first..(first + TOKENS).min(tokens.end), channel, len };
            direct.shared(&part, shared);
            for i in 0..shape.streams {
                let group = i / STREAMS * STREAMS;
                if i == group {
                    direct.streams(&part, i..shape.streams.min(i + STREAMS), shared, d_x);
                }
                let d_x = d_x[(i - group) * TOKENS * PITCH..][..TOKENS * PITCH].as_mut_ptr();
                let slice = i * shape.columns * PITCH;
                // The part of x that is wanted next: the next stream's, or the first one's of the next tokens.
                let (next, stream) = if i + 1 < shape.streams { (first, i + 1) } else { (first + TOKENS, 0) };
                let mut ahead = [core::ptr::null(); TOKENS];
                // SAFETY: tokens, stream and channels are in range; the buffers have CHANNELS numbers a token, the slices a column.
                unsafe {
                    part.for_each(
                        #[inline(always)]
                        |t, at| by_rows!(x, x => rows::widen(s, x.at(t).ptr(i, channel), len, staged.as_mut_ptr().add(at))),
                    );
                    for (row, p) in ahead.iter_mut().enumerate() {
                        *p = x.address((next + row).min(tokens.end - 1), stream, channel);
                    }
                    for at in (0..len).step_by(V * S::LANES) {
                        let d_phi = d_phi.as_mut_ptr().add(slice + at);
                        let (from, d_p) = (staged.as_ptr().add(at), upstream.d_p);
                        let mut j = 0;
                        while j + Q <= shape.columns {
                            // Every group of columns asks for another line of what the vectors cover.
                            let offset = at * x.size() + j / Q * LINE;
                            phi_tile::<S, V, Q>(s, from, d_p, &part, j, d_phi.add(j * PITCH), (&ahead, offset));
                            j += Q;
                        }
                        while j < shape.columns {
                            let offset = at * x.size();
                            phi_tile::<S, V, 1>(s, from, d_p, &part, j, d_phi.add(j * PITCH), (&ahead, offset));
                            j += 1;
                        }
                        for row in (0..part.tokens.len()).step_by(ROWS) {
                            let rows = first + row..part.tokens.end.min(first + row + ROWS);
                            let columns = (phi.add(slice + at), shape.columns);
                            let at = row * PITCH + at;
                            x_tile::<S, V>(s, upstream, rows, columns, staged.as_ptr().add(at), d_x.add(at));
                        }
                    }
                    part.for_each(
                        #[inline(always)]
                        |t, at| b.d_x.put(s, t, (i, channel, len), d_x.add(at)),
                    );
                }
            }
        }
        s.fence();
    }
}

/// `d_phi[j + q][v] += Σ_t d_p[t][j + q]·x[t][v]`, while it asks for the lines `offset` behind
/// `ahead`.
///
/// # Safety
/// Tokens and columns are in range; `x` has [`PITCH`] numbers a token and `d_phi` a column, `V` vectors of them readable.
#[inline(always)]
unsafe fn phi_tile<S: Simd, const V: usize, const Q: usize>(
    s: S,
    x: *const f32,
    d_p: Rows<'_, f32>,
    part: &Part,
    j: usize,
    d_phi: *mut f32,
    (ahead, offset): (&[*const u8; TOKENS], usize),
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[s.zero(); V]; Q];
        for q in 0..Q {
            for v in 0..V {
                acc[q][v] = s.load_f32(d_phi.add(q * PITCH + v * S::LANES));
            }
        }
        let (weights, stride) = (d_p.ptr(part.tokens.start, j).cast_const(), d_p.len());
        for row in 0..part.tokens.len() {
            prefetch_l2(ahead.get_unchecked(row).wrapping_add(offset));
            let weights = weights.wrapping_add(row.wrapping_mul(stride));
            let mut xv = [s.zero(); V];
            for v in 0..V {
                xv[v] = s.load_f32(x.add(row * PITCH + v * S::LANES));
            }
            for q in 0..Q {
                let w = s.splat(*weights.add(q));
                for v in 0..V {
                    acc[q][v] = s.fma(w, xv[v], acc[q][v]);
                }
            }
        }
        for q in 0..Q {
            for v in 0..V {
                s.store_f32(d_phi.add(q * PITCH + v * S::LANES), acc[q][v]);
            }
        }
    }
}

/// Adds to d_x, `V` vectors of [`ROWS`] tokens or what is left of them, what comes through the projection.
///
/// # Safety
/// Tokens are in range; `x` and `d_x` have [`PITCH`] numbers a token, `phi` for each of its `columns`, V vectors of them in use.
#[inline(always)]
unsafe fn x_tile<S: Simd, const V: usize>(
    s: S,
    upstream: Upstream<'_>,
    tokens: Range<usize>,
    (phi, columns): (*const f32, usize),
    x: *const f32,
    d_x: *mut f32,
) {
    // SAFETY: rows beyond the last repeat it and are not stored; columns and vectors are in range.
    unsafe {
        let mut d_p = [core::ptr::null(); ROWS];
        for r in 0..ROWS {
            d_p[r] = upstream.d_p.ptr((tokens.start + r).min(tokens.end - 1), 0).cast_const();
        }
        let mut acc = [[s.zero(); V]; ROWS];
        for r in 0..ROWS {
            for v in 0..V {
                acc[r][v] = s.load_f32(d_x.add(r * PITCH + v * S::LANES));
            }
        }
        for j in 0..columns {
            let mut w = [s.zero(); V];
            for v in 0..V {
                w[v] = s.load_f32(phi.add(j * PITCH + v * S::LANES));
            }
            for r in 0..ROWS {
                let d_p = s.splat(*d_p[r].add(j));
                for v in 0..V {
                    acc[r][v] = s.fma(d_p, w[v], acc[r][v]);
                }
            }
        }
        for r in 0..ROWS {
            let t = tokens.start + r;
            if t < tokens.end {
                let shrink = s.splat(-*upstream.shrink.ptr(0, t));
                for v in 0..V {
                    let at = r * PITCH + v * S::LANES;
                    s.store_f32(d_x.add(at), s.fma(shrink, s.load_f32(x.add(at)), acc[r][v]));
                }
            }
        }
    }
}

/// Adds the partial d_phi of a block and stream in order, and takes the norm weight out again.
struct Finish<'a> {
    b: &'a Backward<'a>,
    cut: Cut,
    block: usize,
    stream: usize,
    partials: Rows<'a, f32>,
}

impl SimdFn for Finish<'_> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Finish { b, cut, block, stream, partials } = self;
        let (shape, len) = (b.p.shape, channels(&b.p.shape, block));
        let k = stream * shape.channels + block * CHANNELS;
        for at in (0..len).step_by(S::LANES) {
            let (n, full) = ((len - at).min(S::LANES), len - at >= S::LANES);
            // SAFETY: no more is loaded or stored than what is left of the rows; the partials have CHANNELS numbers a column.
            unsafe {
                let weight = b.p.weight.map(|w| rows::load(s, w.as_ptr().add(k + at), n, full));
                let mut d_weight = s.zero();
                for j in 0..shape.columns {
                    let mut sum = s.zero();
                    for chunk in 0..cut.chunks {
                        let from = partials.ptr(chunk * cut.blocks + block, (stream * shape.columns + j) * PITCH + at);
                        sum = s.add(sum, s.load_f32(from));
                    }
                    if let Some(weight) = weight {
                        d_weight = s.fma(sum, rows::load(s, b.p.phi.ptr(j, k + at), n, full), d_weight);
                        sum = s.mul(sum, weight);
                    }
                    rows::store(s, b.d_phi.ptr(j, k + at), sum, n, full);
                }
                if let Some(to) = b.d_weight {
                    rows::store(s, to.ptr(0, k + at), d_weight, n, full);
                }
            }
        }
    }
}
