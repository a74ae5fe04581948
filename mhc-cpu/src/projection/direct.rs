//! Up to [`TOKENS`] tokens: phi where it lies, its columns shared out over the threads.

use super::{BLOCK, Block, Projection, ROWS, Step, TOKENS, squares};
use crate::{
    call::{Call, Rows},
    rows,
    simd::{Lane, Simd, SimdFn},
};

/// Columns of one task and of its register tile.
const COLUMNS: usize = 6;

impl<E: Lane> Projection<'_, E> {
    /// See [`Projection::run`].
    ///
    /// # Safety
    /// As there.
    pub(super) unsafe fn direct(&self, c: &Call<'_>, step: &impl Step) {
        let (tokens, columns) = (c.d.tokens, self.shape.columns);
        step.before(0..tokens);
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
        step.after(0..tokens, z, &rho[..tokens]);
    }
}

/// The sums of [`COLUMNS`] columns for every token.
struct Group<'a, E> {
    p: &'a Projection<'a, E>,
    tokens: usize,
    first: usize,
    sums: Rows<'a, f32>,
}

impl<E: Lane> SimdFn for Group<'_, E> {
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

impl<E: Lane> Group<'_, E> {
    /// Tokens `t..t + R`.
    ///
    /// # Safety
    /// They are in range.
    #[inline(always)]
    unsafe fn rows<S: Simd, const R: usize>(&self, s: S, t: usize) {
        let Group { p, first, .. } = *self;
        let shape = p.shape;
        let mut total = [[s.zero(); COLUMNS]; R];
        for b in 0..shape.blocks(S::LANES) {
            let block = shape.block(S::LANES, b);
            let k = block.stream * shape.channels + block.channel;
            let (mut x, mut phi) = ([core::ptr::null::<E>(); R], [core::ptr::null::<f32>(); COLUMNS]);
            // SAFETY: token, stream and channel are in range; columns beyond the last repeat it and are not used.
            unsafe {
                for r in 0..R {
                    x[r] = p.x.at(t + r).ptr(block.stream, block.channel);
                }
                for q in 0..COLUMNS {
                    phi[q] = p.phi.ptr((first + q).min(shape.columns - 1), k);
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
/// Every pointer is readable for `block.len` elements.
#[inline(always)]
unsafe fn tile<S: Simd, E: Lane, const R: usize>(
    s: S,
    x: [*const E; R],
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
                xv[r] = rows::load(s, x[r].add(at), n, full);
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
struct Rms<'a, E> {
    p: &'a Projection<'a, E>,
    rho: &'a mut [f32],
}

impl<E: Lane> SimdFn for Rms<'_, E> {
    type Output = ();
    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let shape = self.p.shape;
        for (t, rho) in self.rho.iter_mut().enumerate() {
            let mut sum = [0.0f32; BLOCK];
            for b in 0..shape.blocks(S::LANES) {
                let block = shape.block(S::LANES, b);
                // SAFETY: token, stream and channel are in range; a vector has fewer lanes than `sum`.
                unsafe {
                    squares(
                        s,
                        [self.p.x.at(t).ptr(block.stream, block.channel).cast_const()],
                        block,
                        [sum.as_mut_ptr()],
                        None,
                    )
                };
            }
            // SAFETY: as above.
            *rho = rows::inv_rms(s.sum(unsafe { s.load_f32(sum.as_ptr()) }), shape.row(), self.p.rms_eps);
        }
    }
}
