//! The gradient: `d_x = φᵀ·d_p − shrink·x + direct terms` and `d_φ = Σ_t d_p·xᵀ`.
//!
//! A task is a block of channels, of all streams, over a chunk of tokens. It keeps its slice of phi and of d_phi in L2, takes its part
//! of x once, 16 tokens at a time, and uses it for both products. Channels come first because that needs no partial sums; only where
//! they make too few tasks are the tokens cut as well, by the problem's size alone, and the partial d_phi are added in order.

use super::{Buffer, Projection, Shape};
use crate::{
    call::{Call, Rows},
    rows,
    simd::{Lane, Simd, SimdFn, prefetch},
};

/// Tokens taken at a time.
const TOKENS: usize = 16;
/// Tokens of a register tile of d_x.
const ROWS: usize = 4;
/// Channels of a task.
const CHANNELS: usize = 256;
/// Tasks wanted.
const TASKS: usize = 32;
/// Tokens that are worth a partial d_phi.
const MIN_CHUNK: usize = 128;
/// Bytes of partial d_phi that are acceptable.
const MAX_PARTIALS: usize = 32 << 20;

/// The part of x's gradient that does not come through the projection.
pub(crate) trait Direct: Sync {
    /// Leaves in `shared` what all streams of a token have in common, channels `c .. c + len`.
    ///
    /// # Safety
    /// Token and channels are in range; `shared` has room for `len` rounded up to whole vectors.
    unsafe fn shared<S: Simd>(&self, s: S, t: usize, c: usize, len: usize, shared: *mut f32) {
        let _ = (s, t, c, len, shared);
    }

    /// The term for stream `i`, `n` channels from `c` on; `shared` is what [`shared`](Self::shared) left for them.
    ///
    /// # Safety
    /// Token, stream and channels are in range.
    unsafe fn term<S: Simd>(&self, s: S, t: usize, i: usize, c: usize, n: usize, shared: *const f32) -> S::V {
        let _ = (t, i, c, n, shared);
        s.zero()
    }
}

/// No direct part.
pub(crate) struct NoDirect;
impl Direct for NoDirect {}

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
        let slices = cut.blocks * CHANNELS * self.streams * self.columns;
        let shrink = tokens * self.columns;
        let phi = shrink + tokens;
        let partials = phi + slices;
        Scratch { shrink, phi, partials, end: partials + cut.chunks * slices }
    }

    /// Bytes of scratch of the gradient.
    pub fn backward_workspace(&self, tokens: usize) -> usize {
        self.backward_scratch(tokens).end * size_of::<f32>()
    }
}

/// The gradient of one projection.
pub(crate) struct Backward<'a, E, O> {
    /// What forward had.
    pub p: Projection<'a, E>,
    /// `d_x [T, n, C]`.
    pub d_x: Rows<'a, O>,
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
    d_p: Rows<'a, f32>,
    shrink: Rows<'a, f32>,
}

impl Upstream<'_> {
    /// Puts down token `t`'s.
    ///
    /// # Safety
    /// `t` is in range, and no one else uses its rows.
    pub unsafe fn set(&self, shape: &Shape, t: usize, z: &[f32], rho: f32, d_z: &[f32]) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut dot = 0.0;
            for ((to, z), d_z) in self.d_p.row_mut(t).iter_mut().zip(z).zip(d_z) {
                *to = rho * d_z;
                dot += d_z * z;
            }
            *self.shrink.ptr(0, t) = dot * rho * rho / shape.row() as f32;
        }
    }
}

impl<E: Lane, O: Lane> Backward<'_, E, O> {
    /// The upstream gradient, to be set for every token before [`run`](Self::run).
    ///
    /// # Safety
    /// The scratch of `c` has [`Shape::backward_workspace`] bytes from `scratch` on, a multiple of 4, that nothing else uses.
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
    pub unsafe fn run(&self, c: &Call<'_>, direct: &impl Direct) {
        let shape = self.p.shape;
        let (cut, at) = (Cut::new(&shape, c.d.tokens), shape.backward_scratch(c.d.tokens));
        let slice = CHANNELS * shape.streams * shape.columns;
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
                c.simd(Fold { p: &self.p, block, stream, to: phi.ptr(block, stream * CHANNELS * shape.columns) });
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

/// Copies a block's part of `φ ⊙ w` to `[P][CHANNELS]`, padded with zeros.
struct Fold<'a, E> {
    p: &'a Projection<'a, E>,
    block: usize,
    stream: usize,
    to: *mut f32,
}

impl<E: Lane> SimdFn for Fold<'_, E> {
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
                    s.store_f32(self.to.add(j * CHANNELS + at), value);
                }
            }
        }
    }
}

/// A block of channels over a chunk of tokens.
struct Slice<'a, E, O, D> {
    b: &'a Backward<'a, E, O>,
    direct: &'a D,
    upstream: Upstream<'a>,
    block: usize,
    tokens: core::ops::Range<usize>,
    /// Phi's slice and the partial d_phi, `[n][P][CHANNELS]`.
    slices: (*const f32, &'a mut [f32]),
}

impl<E: Lane, O: Lane, D: Direct> SimdFn for Slice<'_, E, O, D> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        // Eight lanes come with 16 registers, more or fewer with 32.
        if S::LANES == 8 { self.tiles::<S, 2, 4>(s) } else { self.tiles::<S, 4, 6>(s) }
    }
}

impl<E: Lane, O: Lane, D: Direct> Slice<'_, E, O, D> {
    /// With tiles of `V` vectors along the channels, for [`ROWS`] tokens or `Q` columns.
    #[inline(always)]
    fn tiles<S: Simd, const V: usize, const Q: usize>(self, s: S) {
        let Slice { b, direct, upstream, block, tokens, slices: (phi, d_phi) } = self;
        let (shape, x) = (b.p.shape, b.p.x);
        let (c, len) = (block * CHANNELS, channels(&shape, block));
        let groups = len.div_ceil(V * S::LANES);
        let (mut staged, mut shared) = (Buffer::<{ TOKENS * CHANNELS }>::new(), Buffer::<{ TOKENS * CHANNELS }>::new());
        let (staged, shared) = (staged.zeros(TOKENS * CHANNELS), shared.zeros(TOKENS * CHANNELS));
        d_phi.fill(0.0);
        for first in tokens.clone().step_by(TOKENS) {
            let here = first..(first + TOKENS).min(tokens.end);
            // SAFETY: tokens, streams and channels are in range; the buffers have CHANNELS numbers a token, the slices a column.
            unsafe {
                for (row, t) in here.clone().enumerate() {
                    direct.shared(s, t, c, len, shared.as_mut_ptr().add(row * CHANNELS));
                }
                for i in 0..shape.streams {
                    stage(s, x, here.clone(), (i, c, len), staged);
                    let slice = i * shape.columns * CHANNELS;
                    let next = if i + 1 < shape.streams { (first, i + 1) } else { (first + TOKENS, 0) };
                    let ahead =
                        |row: usize| x.at((next.0 + row).min(tokens.end - 1)).ptr(next.1, c).cast_const().cast();
                    for g in 0..groups {
                        for j in (0..shape.columns).step_by(Q) {
                            let to = d_phi.as_mut_ptr().add(slice + j * CHANNELS + g * V * S::LANES);
                            let d_p = upstream.d_p;
                            let from = staged.as_ptr().add(g * V * S::LANES);
                            if j + Q <= shape.columns {
                                phi_tile::<S, V, Q>(
                                    s,
                                    from,
                                    d_p,
                                    here.clone(),
                                    j,
                                    to,
                                    (g * V * S::LANES * size_of::<E>(), &ahead),
                                );
                            } else {
                                for j in j..shape.columns {
                                    let to = d_phi.as_mut_ptr().add(slice + j * CHANNELS + g * V * S::LANES);
                                    phi_tile::<S, V, 1>(
                                        s,
                                        from,
                                        d_p,
                                        here.clone(),
                                        j,
                                        to,
                                        (g * V * S::LANES * size_of::<E>(), &ahead),
                                    );
                                }
                            }
                        }
                        for row in (0..here.len()).step_by(ROWS) {
                            let at = (row, g * V * S::LANES, len);
                            b.x_tile::<S, V, D>(
                                s,
                                direct,
                                upstream,
                                here.clone(),
                                (i, c),
                                at,
                                phi.add(slice),
                                staged,
                                shared,
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Leaves channels `c .. c + len` of stream `i` of a block of tokens in `staged`, as f32, padded with zeros to whole vectors.
///
/// # Safety
/// Tokens, stream and channels are in range; `staged` has [`CHANNELS`] numbers a token.
#[inline(always)]
unsafe fn stage<S: Simd, E: Lane>(
    s: S,
    x: Rows<'_, E>,
    tokens: core::ops::Range<usize>,
    (i, c, len): (usize, usize, usize),
    staged: &mut [f32],
) {
    for (row, t) in tokens.enumerate() {
        // SAFETY: the row has `len` channels from `c` on; whole vectors fit into CHANNELS.
        unsafe { rows::widen(s, x.at(t).ptr(i, c), len, staged.as_mut_ptr().add(row * CHANNELS)) };
    }
}

/// `d_phi[j + q][v] += Σ_t d_p[t][j + q]·x[t][v]`.
///
/// # Safety
/// Tokens and columns are in range; `x` has [`CHANNELS`] numbers a token and `d_phi` a column, `V` vectors of them readable.
#[inline(always)]
unsafe fn phi_tile<S: Simd, const V: usize, const Q: usize>(
    s: S,
    x: *const f32,
    d_p: Rows<'_, f32>,
    tokens: core::ops::Range<usize>,
    j: usize,
    d_phi: *mut f32,
    (offset, ahead): (usize, &impl Fn(usize) -> *const u8),
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[s.zero(); V]; Q];
        for q in 0..Q {
            for v in 0..V {
                acc[q][v] = s.load_f32(d_phi.add(q * CHANNELS + v * S::LANES));
            }
        }
        for (row, t) in tokens.enumerate() {
            prefetch(ahead(row).wrapping_add(offset));
            let weights = d_p.ptr(t, j);
            let mut xv = [s.zero(); V];
            for v in 0..V {
                xv[v] = s.load_f32(x.add(row * CHANNELS + v * S::LANES));
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
                s.store_f32(d_phi.add(q * CHANNELS + v * S::LANES), acc[q][v]);
            }
        }
    }
}

impl<E: Lane, O: Lane> Backward<'_, E, O> {
    /// d_x of [`ROWS`] tokens from row `row` of the block on, `V` vectors of stream `i` from `at` channels behind `c` on.
    ///
    /// # Safety
    /// As the caller's.
    #[inline(always)]
    unsafe fn x_tile<S: Simd, const V: usize, D: Direct>(
        &self,
        s: S,
        direct: &D,
        upstream: Upstream<'_>,
        tokens: core::ops::Range<usize>,
        (i, c): (usize, usize),
        (row, at, len): (usize, usize, usize),
        phi: *const f32,
        staged: &[f32],
        shared: &[f32],
    ) {
        let rows_here = (tokens.len() - row).min(ROWS);
        // SAFETY: rows beyond the last repeat it and are not stored; columns and vectors are in range.
        unsafe {
            let mut d_p = [core::ptr::null(); ROWS];
            for r in 0..ROWS {
                d_p[r] = upstream.d_p.ptr(tokens.start + row + r.min(rows_here - 1), 0).cast_const();
            }
            let mut acc = [[s.zero(); V]; ROWS];
            for j in 0..self.p.shape.columns {
                let mut w = [s.zero(); V];
                for v in 0..V {
                    w[v] = s.load_f32(phi.add(j * CHANNELS + at + v * S::LANES));
                }
                for r in 0..ROWS {
                    let d_p = s.splat(*d_p[r].add(j));
                    for v in 0..V {
                        acc[r][v] = s.fma(d_p, w[v], acc[r][v]);
                    }
                }
            }
            for r in 0..rows_here {
                let t = tokens.start + row + r;
                let shrink = s.splat(-*upstream.shrink.ptr(0, t));
                for v in 0..V {
                    let channel = at + v * S::LANES;
                    if channel < len {
                        let (n, full) = ((len - channel).min(S::LANES), len - channel >= S::LANES);
                        let local = (row + r) * CHANNELS + channel;
                        let x = s.load_f32(staged.as_ptr().add(local));
                        let term = direct.term(s, t, i, c + channel, n, shared.as_ptr().add(local));
                        let d_x = s.add(s.fma(shrink, x, acc[r][v]), term);
                        rows::store(s, self.d_x.at(t).ptr(i, c + channel), d_x, n, full);
                    }
                }
            }
        }
    }
}

/// Adds the partial d_phi of a block and stream in order, and takes the norm weight out again.
struct Finish<'a, E, O> {
    b: &'a Backward<'a, E, O>,
    cut: Cut,
    block: usize,
    stream: usize,
    partials: Rows<'a, f32>,
}

impl<E: Lane, O: Lane> SimdFn for Finish<'_, E, O> {
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
                        let from =
                            partials.ptr(chunk * cut.blocks + block, (stream * shape.columns + j) * CHANNELS + at);
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
