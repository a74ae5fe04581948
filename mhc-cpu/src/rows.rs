//! What is done to the rows of one token: mixing streams, dot products, sums. Every operator is made of these.
//!
//! Accumulation is f32; the order depends on lengths alone, so results are the same whatever the thread or the neighbours.

use crate::{
    call::Rows,
    simd::{Lane, Simd},
};

/// `out_i = Σ_j w[i·m + j]·a_j  (+ p_i·b)` for `outs` rows over `ins` rows: mixing, aggregation and their transposes.
///
/// Output rows are taken four at a time, so that each input is loaded `outs / 4` times.
///
/// # Safety
/// `a` has `ins` rows and `out` has `outs` rows of the same length, `w` has `outs·ins` weights; with `p`, `outs` of it, `b` is a row of
/// that length. Nothing else writes or reads `out` meanwhile.
#[inline(always)]
pub(crate) unsafe fn mix<S: Simd, E: Lane, O: Lane>(
    s: S,
    (outs, ins): (usize, usize),
    w: &[f32],
    a: Rows<'_, E>,
    pb: Option<(&[f32], &[E])>,
    out: Rows<'_, O>,
) {
    debug_assert!(w.len() >= outs * ins);
    // SAFETY: the caller's promise; the groups cover `outs` rows.
    unsafe {
        if (outs, ins) == (4, 4) {
            return mix_group::<S, E, O, 4, 4>(s, ins, w, a, pb, out, 0);
        }
        let mut i = 0;
        while i + 4 <= outs {
            mix_group::<S, E, O, 4, 0>(s, ins, w, a, pb, out, i);
            i += 4;
        }
        while i < outs {
            mix_group::<S, E, O, 1, 0>(s, ins, w, a, pb, out, i);
            i += 1;
        }
    }
}

/// Rows `i..i + G` of [`mix`]; `M` is the number of inputs where it is known at compile time, else 0.
#[inline(always)]
unsafe fn mix_group<S: Simd, E: Lane, O: Lane, const G: usize, const M: usize>(
    s: S,
    ins: usize,
    w: &[f32],
    a: Rows<'_, E>,
    pb: Option<(&[f32], &[E])>,
    out: Rows<'_, O>,
    i: usize,
) {
    let ins = if M > 0 { M } else { ins };
    let len = out.len();
    let mut c = 0;
    while c < len {
        let n = (len - c).min(S::LANES);
        let full = n == S::LANES;
        // SAFETY: `c + n <= len`, rows and weights are in range by the caller's promise.
        unsafe {
            let mut acc = [s.zero(); G];
            if let Some((p, b)) = pb {
                let b = load(s, b.as_ptr().add(c), n, full);
                for g in 0..G {
                    acc[g] = s.mul(s.splat(*p.get_unchecked(i + g)), b);
                }
            }
            for j in 0..ins {
                let v = load(s, a.ptr(j, c), n, full);
                for g in 0..G {
                    acc[g] = s.fma(s.splat(*w.get_unchecked((i + g) * ins + j)), v, acc[g]);
                }
            }
            for g in 0..G {
                store(s, out.ptr(i + g, c), acc[g], n, full);
            }
        }
        c += n;
    }
}

/// `out[i·m + j] = ⟨a_i, b_j⟩` for `na` rows and `m` rows.
///
/// # Safety
/// `a` has `na` rows and `b` has `m` rows of the same length; `out` has room for `na·m`.
#[inline(always)]
pub(crate) unsafe fn dots<S: Simd, A: Lane, B: Lane>(
    s: S,
    (na, m): (usize, usize),
    a: Rows<'_, A>,
    b: Rows<'_, B>,
    out: &mut [f32],
) {
    let mut i = 0;
    while i < na {
        let gi = (na - i).min(4);
        let mut j = 0;
        while j < m {
            let gj = (m - j).min(4);
            // SAFETY: the tile is in range.
            unsafe {
                match (gi, gj) {
                    (4, 4) => dot_tile::<S, A, B, 4, 4>(s, a, b, (i, j), m, out),
                    (4, _) => (0..gj).for_each(
                        #[inline(always)]
                        |q| dot_tile::<S, A, B, 4, 1>(s, a, b, (i, j + q), m, out),
                    ),
                    (_, 4) => (0..gi).for_each(
                        #[inline(always)]
                        |r| dot_tile::<S, A, B, 1, 4>(s, a, b, (i + r, j), m, out),
                    ),
                    _ => (0..gi * gj).for_each(
                        #[inline(always)]
                        |t| dot_tile::<S, A, B, 1, 1>(s, a, b, (i + t / gj, j + t % gj), m, out),
                    ),
                }
            }
            j += gj;
        }
        i += gi;
    }
}

#[inline(always)]
unsafe fn dot_tile<S: Simd, A: Lane, B: Lane, const I: usize, const J: usize>(
    s: S,
    a: Rows<'_, A>,
    b: Rows<'_, B>,
    (i, j): (usize, usize),
    m: usize,
    out: &mut [f32],
) {
    let len = a.len();
    let mut acc = [[s.zero(); J]; I];
    let mut c = 0;
    while c < len {
        let n = (len - c).min(S::LANES);
        let full = n == S::LANES;
        // SAFETY: `c + n <= len`, rows are in range by the caller's promise.
        unsafe {
            let mut bv = [s.zero(); J];
            for q in 0..J {
                bv[q] = load(s, b.ptr(j + q, c), n, full);
            }
            for r in 0..I {
                let av = load(s, a.ptr(i + r, c), n, full);
                for q in 0..J {
                    acc[r][q] = s.fma(av, bv[q], acc[r][q]);
                }
            }
        }
        c += n;
    }
    for r in 0..I {
        for q in 0..J {
            out[(i + r) * m + j + q] = s.sum(acc[r][q]);
        }
    }
}

/// Calls `f` with the offset of every vector of a row of `len` elements, the number of its elements, and whether it is a full one.
#[inline(always)]
pub(crate) fn vectors<S: Simd>(_: S, len: usize, mut f: impl FnMut(usize, usize, bool)) {
    let mut c = 0;
    while c + S::LANES <= len {
        f(c, S::LANES, true);
        c += S::LANES;
    }
    if c < len {
        f(c, len - c, false);
    }
}

/// Σ v² of a row.
#[inline(always)]
pub(crate) fn sum_squares<S: Simd, E: Lane>(s: S, a: &[E]) -> f32 {
    let mut acc = [s.zero(); 4];
    vectors(
        s,
        a.len(),
        #[inline(always)]
        |c, n, full| {
            // SAFETY: `vectors` stays inside the row.
            let v = unsafe { load(s, a.as_ptr().add(c), n, full) };
            // Four chains, so that one addition need not wait for the one before; the moves cost nothing.
            acc.rotate_left(1);
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

/// The gradient of `y = w ⊙ r·x` with `r = inv_rms(x)` for the upstream gradient `g`: writes `d_x = r·w⊙g - x·r³·⟨w⊙g, x⟩/len` and adds
/// `r·g⊙x` to `d_w`.
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
) {
    let len = x.len();
    debug_assert!([w.len(), g.len(), d_x.len(), d_w.len()].iter().all(|&l| l == len));
    let (w, x, g, d_x, d_w) = (w.as_ptr(), x.as_ptr(), g.as_ptr(), d_x.as_mut_ptr(), d_w.as_mut_ptr());
    let mut acc = [s.zero(); 2];
    vectors(
        s,
        len,
        #[inline(always)]
        // SAFETY: `vectors` stays inside the rows.
        |c, n, full| unsafe {
            let (x, g) = (load(s, x.add(c), n, full), load(s, g.add(c), n, full));
            acc.rotate_left(1);
            acc[0] = s.fma(s.mul(load(s, w.add(c), n, full), g), x, acc[0]);
        },
    );
    let along_x = s.sum(s.add(acc[0], acc[1]));
    let (r_v, pull) = (s.splat(r), s.splat(-r * r * r * along_x / len as f32));
    vectors(
        s,
        len,
        #[inline(always)]
        // SAFETY: `vectors` stays inside the rows.
        |c, n, full| unsafe {
            let (x, g) = (load(s, x.add(c), n, full), s.mul(r_v, load(s, g.add(c), n, full)));
            let dx = s.fma(x, pull, s.mul(load(s, w.add(c), n, full), g));
            let dw = s.fma(g, x, load(s, d_w.add(c), n, full));
            store(s, d_x.add(c), dx, n, full);
            store(s, d_w.add(c), dw, n, full);
        },
    );
}

/// A vector of `n` elements; `full` says that `n == LANES`, so that the compiler sees it.
///
/// # Safety
/// `p` is readable for `n <= LANES` elements.
#[inline(always)]
pub(crate) unsafe fn load<S: Simd, E: Lane>(s: S, p: *const E, n: usize, full: bool) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { if full { E::load(s, p) } else { E::load_n(s, p, n) } }
}

/// The inverse of [`load`].
///
/// # Safety
/// `p` is writable for `n <= LANES` elements.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd, E: Lane>(s: S, p: *mut E, v: S::V, n: usize, full: bool) {
    // SAFETY: the caller's promise.
    unsafe { if full { E::store(s, p, v) } else { E::store_n(s, p, v, n) } }
}
