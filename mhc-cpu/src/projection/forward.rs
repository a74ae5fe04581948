//! More than [`TOKENS`] tokens: packed phi, register tiles.

use core::ops::Range;

use super::{BLOCK, Buffer, Chunks, LINE, MAX_COLUMNS, MAX_LANES, Projection, ROWS, Shape, Step, TOKENS, Tokens};
use crate::{
    call::{Call, Rows},
    rows,
    simd::{Simd, SimdFn, prefetch_l2},
};

/// Columns whose sums are kept at once; a multiple of every tile width.
const PANEL: usize = 96;

impl Projection<'_> {
    /// See [`Projection::run`].
    ///
    /// # Safety
    /// As there.
    pub(super) unsafe fn packed(&self, c: &Call<'_>, step: &dyn Step) {
        let Projection { phi, weight, shape, .. } = *self;
        let panel = Panel(c.scratch.cast::<f32>());
        // SAFETY: each block of K is one task's alone, and the scratch has the packed panel's size.
        c.blocks(c.simd(Blocks(shape)), |b| c.simd(Pack { shape, phi, weight, b, panel }));
        let chunks = Chunks::of(c.d.tokens);
        c.blocks(chunks.count(), |chunk| {
            let (mut z, mut rho) = (Buffer::<{ TOKENS * MAX_COLUMNS }>::new(), [0.0; TOKENS]);
            let all = chunks.tokens(chunk);
            for first in all.clone().step_by(TOKENS) {
                let tokens = Tokens { range: first..(first + TOKENS).min(all.end), chunk };
                let z = z.zeros(tokens.range.len() * shape.columns);
                let rho = &mut rho[..tokens.range.len()];
                step.before(&tokens);
                c.simd(Product { p: self, step, panel, tokens: tokens.range.clone(), z, rho });
                step.after(&tokens, z, rho);
            }
        });
    }
}

/// The packed phi.
#[derive(Clone, Copy)]
struct Panel(*mut f32);

// SAFETY: `packed` gives every task of the packing its own part, and only reads afterwards.
unsafe impl Send for Panel {}
// SAFETY: as `Send`.
unsafe impl Sync for Panel {}

/// How many blocks K has on this instruction set.
struct Blocks(Shape);

impl SimdFn for Blocks {
    type Output = usize;
    #[inline(always)]
    fn call<S: Simd>(self, _: S) -> usize {
        self.0.blocks(S::LANES)
    }
}

/// Packs block `b` of K: `[group][vector][column][lane]`, columns beyond the last as zeros.
struct Pack<'a> {
    shape: Shape,
    phi: Rows<'a, f32>,
    weight: Option<&'a [f32]>,
    b: usize,
    panel: Panel,
}

impl SimdFn for Pack<'_> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let Pack { shape, phi, weight, b, panel } = self;
        let (block, width) = (shape.block(S::LANES, b), shape.width(S::LANES));
        let columns = shape.columns.next_multiple_of(width);
        let k = block.stream * shape.channels + block.channel;
        for j in 0..columns {
            let (group, q) = (j / width, j % width);
            for v in 0..block.vectors {
                let left = block.len - v * S::LANES;
                let (n, full) = (left.min(S::LANES), left >= S::LANES);
                let at = block.before * columns + (group * block.vectors + v) * width + q;
                // SAFETY: the vector begins within the block of row j, and the panel holds `columns` vectors for each of K's.
                unsafe {
                    let mut value = s.zero();
                    if j < shape.columns {
                        value = rows::load(s, phi.ptr(j, k + v * S::LANES), n, full);
                        if let Some(w) = weight {
                            value = s.mul(value, rows::load(s, w.as_ptr().add(k + v * S::LANES), n, full));
                        }
                    }
                    s.store_f32(panel.0.add(at * S::LANES), value);
                }
            }
        }
    }
}

/// Projects a block of tokens.
struct Product<'a> {
    p: &'a Projection<'a>,
    step: &'a dyn Step,
    panel: Panel,
    tokens: Range<usize>,
    z: &'a mut [f32],
    rho: &'a mut [f32],
}

impl SimdFn for Product<'_> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        // The first comparison is one of constants, so that of the widths only those that occur are compiled.
        if S::LANES == 8 {
            self.width::<S, 3>(s);
        } else if self.p.shape.width(S::LANES) == 6 {
            self.width::<S, 6>(s);
        } else {
            self.width::<S, 4>(s);
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    fn width<S: Simd, const Q: usize>(self, s: S) {
        let Product { p, step, panel, tokens, z, rho } = self;
        let (shape, columns) = (p.shape, p.shape.columns);
        let mut sums = Buffer::<{ TOKENS * PANEL * MAX_LANES }>::new();
        let mut square_sums = Buffer::<{ TOKENS * MAX_LANES }>::new();
        for first in (0..columns).step_by(PANEL) {
            let here = (columns - first).min(PANEL);
            let groups = first / Q..(first + here).div_ceil(Q);
            let sums = sums.zeros(TOKENS * groups.len() * Q * S::LANES);
            let square_sums = square_sums.zeros(TOKENS * S::LANES);
            for b in 0..shape.blocks(S::LANES) {
                // SAFETY: block and groups are in range; `sums` has room for the groups of every row.
                unsafe { block::<S, Q>(s, (p, step), panel, tokens.clone(), b, groups.clone(), sums, square_sums) };
            }
            for t in 0..tokens.len() {
                // SAFETY: each row has its sums of squares, and of every column.
                unsafe {
                    rho[t] =
                        rows::inv_rms(s.sum(s.load_f32(square_sums[t * S::LANES..].as_ptr())), shape.row(), p.rms_eps);
                    for j in 0..here {
                        let sum = &sums[(t * groups.len() * Q + j) * S::LANES..][..S::LANES];
                        z[t * columns + first + j] = rho[t] * s.sum(s.load_f32(sum.as_ptr()));
                    }
                }
            }
        }
    }
}

/// Adds block `b` of K to the sums of a block of tokens.
///
/// # Safety
/// `tokens`, `b` and `groups` are in range; `sums` is `[TOKENS][groups][Q][LANES]`.
#[inline(always)]
unsafe fn block<S: Simd, const Q: usize>(
    s: S,
    (p, step): (&Projection<'_>, &dyn Step),
    panel: Panel,
    tokens: Range<usize>,
    b: usize,
    groups: Range<usize>,
    sums: &mut [f32],
    square_sums: &mut [f32],
) {
    let (shape, columns) = (p.shape, p.shape.columns.next_multiple_of(Q));
    let block = shape.block(S::LANES, b);
    let (last, first_row) = (p.tokens - 1, tokens.start);
    // The next block of K of the same rows, or the first one of the next rows.
    let blocks = shape.blocks(S::LANES);
    let wrap = b + 1 == blocks;
    let (next, next_row) =
        (shape.block(S::LANES, if wrap { 0 } else { b + 1 }), if wrap { first_row + TOKENS } else { first_row });
    let mut staged = Buffer::<{ ROWS * BLOCK * MAX_LANES }>::new();
    let staged = staged.as_mut_ptr();
    for t in (0..tokens.len()).step_by(ROWS) {
        let mut x = [core::ptr::null(); ROWS];
        let mut ahead = [Ahead::new(s, p.x.size()); ROWS];
        for r in 0..ROWS {
            // Rows beyond the last are computed from the last, and not used.
            let row = first_row + (t + r).min(tokens.len() - 1);
            let square_sum = square_sums[(t + r) * S::LANES..][..S::LANES].as_mut_ptr();
            // SAFETY: token, stream and channels are in range; `staged` has BLOCK vectors a row, `square_sum` one.
            unsafe {
                let (channels, to) = ((block.stream, block.channel, block.len), staged.add(r * BLOCK * S::LANES));
                let (row_x, squares) = p.x.widened(s, row, channels, to);
                x[r] = row_x;
                s.store_f32(square_sum, s.add(s.load_f32(square_sum), squares));
                ahead[r].row = p.x.address((next_row + t + r).min(last), next.stream, next.channel);
            }
            // The block's share of the row that is written in the end, while the products leave memory idle: `pre` in bf16 at T = 2048,
            // n = 4, C = 2048 on 2 threads with AVX-512 took 4.44 ms and takes 4.13, fastest of 60 in turns.
            let (written, bytes) = step.written(row);
            let share = bytes.div_ceil(blocks);
            for at in (b * share..bytes.min((b + 1) * share)).step_by(LINE) {
                prefetch_l2(written.wrapping_add(at));
            }
        }
        // SAFETY: pointers as above; the panel's slice of this block and group has `block.vectors` times Q vectors.
        unsafe {
            for g in groups.clone() {
                let slice = (block.before * columns + g * block.vectors * Q) * S::LANES;
                let acc = tile::<S, Q>(s, x, panel.0.add(slice), block.vectors, ahead[g % ROWS]);
                for r in 0..ROWS {
                    let row = ((t + r) * groups.len() + g - groups.start) * Q;
                    for q in 0..Q {
                        let sum = sums.as_mut_ptr().add((row + q) * S::LANES);
                        s.store_f32(sum, s.add(s.load_f32(sum), acc[r][q]));
                    }
                }
            }
        }
    }
}

/// What a tile asks for while it multiplies, one row of x a group of columns: the rows of the next block of K, to L2. The hardware
/// fetches ahead within a page, and a block of K ends before it has seen much of one.
#[derive(Clone, Copy)]
struct Ahead {
    row: *const u8,
    /// Bytes a vector.
    step: usize,
    /// Set bits of the vectors that begin within a cache line: a line is asked for once.
    within: usize,
}

impl Ahead {
    /// Nothing yet, for rows of elements of `size` bytes.
    fn new<S: Simd>(_: S, size: usize) -> Self {
        let step = S::LANES * size;
        Self { row: core::ptr::null(), step, within: (LINE / step).max(1) - 1 }
    }
}

/// The register tile: `acc[r][q] = Σ_v x_r[v]·phi[v][q]`.
///
/// # Safety
/// Every row of `x` is readable for `vectors` vectors, `phi` for Q times as many.
#[inline(always)]
unsafe fn tile<S: Simd, const Q: usize>(
    s: S,
    x: [*const f32; ROWS],
    phi: *const f32,
    vectors: usize,
    ahead: Ahead,
) -> [[S::V; Q]; ROWS] {
    let mut acc = [[s.zero(); Q]; ROWS];
    let (mut phi, mut at) = (phi, 0);
    for v in 0..vectors {
        if v & ahead.within == 0 {
            prefetch_l2(ahead.row.wrapping_add(v.wrapping_mul(ahead.step)));
        }
        // SAFETY: `v < vectors`.
        unsafe {
            let mut xv = [s.zero(); ROWS];
            for r in 0..ROWS {
                xv[r] = s.load_f32(x[r].add(at));
            }
            for q in 0..Q {
                let w = s.load_f32(phi.add(q * S::LANES));
                for r in 0..ROWS {
                    acc[r][q] = s.fma(xv[r], w, acc[r][q]);
                }
            }
            phi = phi.add(Q * S::LANES);
        }
        at = at.wrapping_add(S::LANES);
    }
    acc
}
