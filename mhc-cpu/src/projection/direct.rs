//! Up to [`TOKENS`] tokens: phi where it lies, its columns shared out over the threads.

use super::{BLOCK, Block, Buffer, MAX_LANES, Projection, ROWS, Step, TOKENS, Tokens};
use crate::{
    call::{Call, Rows},
    rows,
    simd::{Simd, SimdFn},
};

/// Columns of one task and of its register tile.
const COLUMNS: usize = 6;

impl Projection<'_> {
    /// See [`Projection::run`].
    ///
    /// # Safety
    /// As there.
    pub(super) unsafe fn direct(&self, c: &Call<'_>, step: &dyn Step) {
        let (tokens, columns) = (c.d.tokens, self.shape.columns);
        let all = Tokens { range: 0..tokens, chunk: 0 };
        step.before(&all);
        // SAFETY: the scratch has room for TOKENS rows; the tasks write different columns of it, and are done when it is read.
        let sums = unsafe { Rows::over(c.scratch::<f32>(0, 0, tokens * columns), columns) };
        c.blocks(columns.div_ceil(COLUMNS), |group| c.simd(Group { p: self, tokens, first: group * COLUMNS, sums }));
        let mut rho = [0.0; TOKENS];
        c.simd(Rms { p: self, rho: &mut rho[..tokens] });
        // SAFETY: as above; `sums` is not used any more.
        let z = unsafe { c.scratch::<f32>(0, 0, tokens * columns) };
        for (t, z) in z.chunks_exact_mut(columns).enumerate() {
            z.iter_mut().for_each(|z| *z *= rho[t]);
        }
        step.after(&all, z, &rho[..tokens]);
    }
}

/// The sums of [`COLUMNS`] columns for every token.
struct Group<'a> {
    p: &'a Projection<'a>,
    tokens: usize,
    first: usize,
    sums: Rows<'a, f32>,
}

impl SimdFn for Group<'_> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let mut t = 0;
        while t < self.tokens {
            // SAFETY: the rows are in range.
            unsafe {
                if t + ROWS <= self.tokens {
                    self.rows::<S, ROWS>(s, t);
                    t += ROWS;
                } else {
                    self.rows::<S, 1>(s, t);
                    t += 1;
                }
            }
        }
    }
}

impl Group<'_> {
    /// Tokens `t..t + R`.
    ///
    /// # Safety
    /// They are in range.
    #[inline(always)]
    unsafe fn rows<S: Simd, const R: usize>(&self, s: S, t: usize) {
        let Group { p, first, .. } = *self;
        let shape = p.shape;
        let mut total = [[s.zero(); COLUMNS]; R];
        let mut staged = Buffer::<{ ROWS * BLOCK * MAX_LANES }>::new();
        let staged = staged.as_mut_ptr();
        for b in 0..shape.blocks(S::LANES) {
            let block = shape.block(S::LANES, b);
            let k = block.stream * shape.channels + block.channel;
            let (mut x, mut phi) = ([core::ptr::null(); R], [core::ptr::null(); COLUMNS]);
            // SAFETY: token, stream and channel are in range; columns beyond the last repeat it and are not used.
            unsafe {
                for r in 0..R {
                    let channels = (block.stream, block.channel, block.len);
                    (x[r], _) = p.x.widened(s, t + r, channels, staged.add(r * BLOCK * S::LANES));
                }
                for q in 0..COLUMNS {
                    phi[q] = p.phi.ptr((first + q).min(shape.columns - 1), k).cast_const();
                }
                let weight = p.weight.map(|w| w.as_ptr().add(k));
                let acc = tile(s, x, phi, weight, block);
                for r in 0..R {
                    for q in 0..COLUMNS {
                        total[r][q] = s.add(total[r][q], acc[r][q]);
                    }
                }
            }
        }
        for r in 0..R {
            for q in 0..COLUMNS.min(shape.columns - first) {
                // SAFETY: the row has `columns` numbers, and this task's are its own.
                unsafe { *self.sums.ptr(t + r, first + q) = s.sum(total[r][q]) };
            }
        }
    }
}

/// `acc[r][q] = Σ_v x_r[v]·phi_q[v]`, in the order of the packed tile.
///
/// # Safety
/// The rows of x are readable for whole vectors, every other pointer for `block.len` elements.
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize>(
    s: S,
    x: [*const f32; R],
    phi: [*const f32; COLUMNS],
    weight: Option<*const f32>,
    block: Block,
) -> [[S::V; COLUMNS]; R] {
    let mut acc = [[s.zero(); COLUMNS]; R];
    for v in 0..block.vectors {
        let (at, left) = (v * S::LANES, block.len - v * S::LANES);
        let (n, full) = (left.min(S::LANES), left >= S::LANES);
        // SAFETY: the vector begins before the block's end, and loads no more than what is left.
        unsafe {
            let mut xv = [s.zero(); R];
            for r in 0..R {
                xv[r] = s.load_f32(x[r].add(at));
            }
            for q in 0..COLUMNS {
                let mut w = rows::load(s, phi[q].add(at), n, full);
                if let Some(weight) = weight {
                    w = s.mul(w, rows::load(s, weight.add(at), n, full));
                }
                for r in 0..R {
                    acc[r][q] = s.fma(xv[r], w, acc[r][q]);
                }
            }
        }
    }
    acc
}

/// ρ of every token.
struct Rms<'a> {
    p: &'a Projection<'a>,
    rho: &'a mut [f32],
}

impl SimdFn for Rms<'_> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let shape = self.p.shape;
        let mut staged = Buffer::<{ BLOCK * MAX_LANES }>::new();
        for (t, rho) in self.rho.iter_mut().enumerate() {
            let mut sum = s.zero();
            for b in 0..shape.blocks(S::LANES) {
                let Block { stream, channel, len, .. } = shape.block(S::LANES, b);
                // SAFETY: token, stream and channels are in range; `staged` has BLOCK vectors.
                let (_, squares) = unsafe { self.p.x.widened(s, t, (stream, channel, len), staged.as_mut_ptr()) };
                sum = s.add(sum, squares);
            }
            *rho = rows::inv_rms(s.sum(sum), shape.row(), self.p.rms_eps);
        }
    }
}
