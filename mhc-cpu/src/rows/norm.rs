//! RMSNorm of a row and its gradient.

use super::{load, store, vectors};
use crate::simd::{Lane, Simd};

/// Σ v² of a row.
#[inline(always)]
pub(crate) fn sum_squares<S: Simd, E: Lane>(s: S, a: &[E]) -> f32 {
    // Four chains, so that an addition need not wait for the one before.
    let (mut acc, mut c) = ([s.zero(); 4], 0);
    while c + 4 * S::LANES <= a.len() {
        for (k, acc) in acc.iter_mut().enumerate() {
            // SAFETY: four vectors from `c` on are inside the row.
            let v = unsafe { E::load(s, a.as_ptr().add(c + k * S::LANES)) };
            *acc = s.fma(v, v, *acc);
        }
        c += 4 * S::LANES;
    }
    vectors(
        s,
        a.len() - c,
        #[inline(always)]
        |k, n, full| {
            // SAFETY: `vectors` stays inside the rest of the row.
            let v = unsafe { load(s, a.as_ptr().add(c + k), n, full) };
            acc[0] = s.fma(v, v, acc[0]);
        },
    );
    s.sum(s.add(s.add(acc[0], acc[1]), s.add(acc[2], acc[3])))
}

/// `(sum/len + eps)^(-1/2)`.
#[inline(always)]
pub(crate) fn inv_rms(sum: f32, len: usize, eps: f32) -> f32 {
    1.0 / (sum / len as f32 + eps).sqrt()
}

/// `y = w ⊙ r·x`.
///
/// # Safety
/// All rows have the same length.
#[inline(always)]
pub(crate) unsafe fn scale<S: Simd, E: Lane, O: Lane>(s: S, r: f32, w: &[f32], x: &[E], y: &mut [O]) {
    debug_assert!(w.len() == x.len() && x.len() == y.len());
    let (rv, y) = (s.splat(r), y.as_mut_ptr());
    vectors(
        s,
        x.len(),
        #[inline(always)]
        // SAFETY: `vectors` stays inside the rows.
        |c, n, full| unsafe {
            let v = s.mul(rv, load(s, x.as_ptr().add(c), n, full));
            store(s, y.add(c), s.mul(v, load(s, w.as_ptr().add(c), n, full)), n, full);
        },
    );
}

/// `y = w ⊙ r·y`.
///
/// # Safety
/// Both rows have the same length.
#[inline(always)]
pub(crate) unsafe fn scale_in_place<S: Simd>(s: S, r: f32, w: &[f32], y: &mut [f32]) {
    debug_assert_eq!(w.len(), y.len());
    let (rv, len, y) = (s.splat(r), y.len(), y.as_mut_ptr());
    vectors(
        s,
        len,
        #[inline(always)]
        // SAFETY: `vectors` stays inside the rows.
        |c, n, full| unsafe {
            let v = s.mul(rv, load(s, y.add(c), n, full));
            store(s, y.add(c), s.mul(v, load(s, w.as_ptr().add(c), n, full)), n, full);
        },
    );
}

/// The gradient of `y = w ⊙ r·x` with `r = inv_rms(x)` for the upstream gradient `g`: writes `d_x = r·w⊙g - x·pull` and adds
/// `r·g⊙x` to `d_w`. Returns `pull = r³·⟨w⊙g, x⟩/len`.
///
/// # Safety
/// All rows have the same length.
#[inline(always)]
pub(crate) unsafe fn rms_norm_bwd<S: Simd, E: Lane, G: Lane, O: Lane>(
    s: S,
    r: f32,
    w: &[f32],
    x: &[E],
    g: &[G],
    d_x: &mut [O],
    d_w: &mut [f32],
) -> f32 {
    let len = x.len();
    debug_assert!([w.len(), g.len(), d_x.len(), d_w.len()].iter().all(|&l| l == len));
    let (w, x, g, d_x, d_w) = (w.as_ptr(), x.as_ptr(), g.as_ptr(), d_x.as_mut_ptr(), d_w.as_mut_ptr());
    let mut acc = s.zero();
    vectors(
        s,
        len,
        #[inline(always)]
        // SAFETY: `vectors` stays inside the rows.
        |c, n, full| unsafe {
            let (x, g) = (load(s, x.add(c), n, full), load(s, g.add(c), n, full));
            acc = s.fma(s.mul(load(s, w.add(c), n, full), g), x, acc);
        },
    );
    let pull = r * r * r * s.sum(acc) / len as f32;
    let (r_v, pull_v) = (s.splat(r), s.splat(-pull));
    vectors(
        s,
        len,
        #[inline(always)]
        // SAFETY: `vectors` stays inside the rows.
        |c, n, full| unsafe {
            let (x, g) = (load(s, x.add(c), n, full), s.mul(r_v, load(s, g.add(c), n, full)));
            let dx = s.fma(x, pull_v, s.mul(load(s, w.add(c), n, full), g));
            let dw = s.fma(g, x, load(s, d_w.add(c), n, full));
            store(s, d_x.add(c), dx, n, full);
            store(s, d_w.add(c), dw, n, full);
        },
    );
    pull
}
