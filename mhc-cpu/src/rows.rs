//! What is done to the rows of one token: mixing streams, dot products, sums. Every operator is made of these.
//!
//! Accumulation is f32; the order depends on lengths alone, so results are the same whatever the thread or the neighbours.

mod convert;
mod norm;

pub(crate) use convert::{convert, narrow, widen};
pub(crate) use norm::{inv_rms, rms_norm_bwd, scale, scale_in_place, sum_squares};

use crate::{
    call::Rows,
    simd::{Lane, Simd},
};

/// How many of `rows` rows the next pass over the channels takes: four outputs over four inputs keep 16 sums in registers.
#[inline(always)]
fn group(rows: usize) -> usize {
    match rows {
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

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
    shape: (usize, usize),
    w: &[f32],
    a: Rows<'_, E>,
    pb: Option<(&[f32], &[E])>,
    out: Rows<'_, O>,
) {
    // SAFETY: the caller's promise is the callee's.
    unsafe { mix_add(s, shape, w, a, pb, out) }
}

/// [`mix`] where `b` has an element type of its own.
///
/// # Safety
/// As [`mix`].
#[inline(always)]
pub(crate) unsafe fn mix_add<S: Simd, E: Lane, B: Lane, O: Lane>(
    s: S,
    (outs, ins): (usize, usize),
    w: &[f32],
    a: Rows<'_, E>,
    pb: Option<(&[f32], &[B])>,
    out: Rows<'_, O>,
) {
    debug_assert!(w.len() >= outs * ins);
    s.outlined(
        #[inline(always)]
        // SAFETY: the caller's promise; the groups cover `outs` rows.
        || unsafe {
            let mut i = 0;
            if (outs, ins) == (4, 4) {
                mix_4x4(s, w, a, pb, out);
                i = 4;
            } else if (outs, ins) == (1, 4) && pb.is_none() {
                aggregate_4(s, w, a, out);
                i = 1;
            }
            while i < outs {
                let rows = group(outs - i);
                match rows {
                    4 => mix_group::<S, E, B, O, 4>(s, ins, w, a, pb, out, i),
                    2 => mix_group::<S, E, B, O, 2>(s, ins, w, a, pb, out, i),
                    _ => mix_group::<S, E, B, O, 1>(s, ins, w, a, pb, out, i),
                }
                i += rows;
            }
            if out.streamed() {
                s.fence();
            }
        },
    );
}

/// [`mix_add`] for n = 4, the weights in registers.
#[inline(always)]
unsafe fn mix_4x4<S: Simd, E: Lane, B: Lane, O: Lane>(
    s: S,
    w: &[f32],
    a: Rows<'_, E>,
    pb: Option<(&[f32], &[B])>,
    out: Rows<'_, O>,
) {
    let mut wv = [s.zero(); 16];
    for (v, &w) in wv.iter_mut().zip(w) {
        *v = s.splat(w);
    }
    let mut pv = [s.zero(); 4];
    for (v, &p) in pv.iter_mut().zip(pb.map_or(&[][..], |(p, _)| p)) {
        *v = s.splat(p);
    }
    vectors(
        s,
        out.len(),
        #[inline(always)]
        // SAFETY: `vectors` stays inside the rows; there are four of each by the caller's promise.
        |c, n, full| unsafe {
            let mut acc = [s.zero(); 4];
            if let Some((_, b)) = pb {
                let b = load(s, b.as_ptr().add(c), n, full);
                for i in 0..4 {
                    acc[i] = s.mul(pv[i], b);
                }
            }
            for j in 0..4 {
                let v = load(s, a.ptr(j, c), n, full);
                for i in 0..4 {
                    acc[i] = s.fma(wv[i * 4 + j], v, acc[i]);
                }
            }
            for i in 0..4 {
                put(s, out, (i, c), acc[i], n, full);
            }
        },
    );
}

/// [`mix_add`] of four rows to one, weights and addresses in registers.
#[inline(always)]
unsafe fn aggregate_4<S: Simd, E: Lane, O: Lane>(s: S, w: &[f32], a: Rows<'_, E>, out: Rows<'_, O>) {
    let (mut wv, mut rows) = ([s.zero(); 4], [core::ptr::null(); 4]);
    for j in 0..4 {
        wv[j] = s.splat(w[j]);
        // SAFETY: there are four rows by the caller's promise.
        rows[j] = unsafe { a.ptr(j, 0).cast_const() };
    }
    let mut c = 0;
    if E::DTYPE == O::DTYPE {
        // Each channel by itself, so that the order within a pair does not matter as long as both types have the same.
        while c + 2 * S::LANES <= out.len() {
            let mut acc = [s.zero(); 2];
            // SAFETY: two vectors are left of every row; rows of streamed operands are aligned to 64 bytes, and `c` is a multiple of
            // twice the lanes.
            unsafe {
                for j in 0..4 {
                    let pair = E::load_pair(s, rows[j].add(c));
                    acc[0] = s.fma(wv[j], pair[0], acc[0]);
                    acc[1] = s.fma(wv[j], pair[1], acc[1]);
                }
                O::store_pair(s, out.ptr(0, c), acc, out.streamed());
            }
            c += 2 * S::LANES;
        }
    }
    vectors(
        s,
        out.len() - c,
        #[inline(always)]
        // SAFETY: `vectors` stays inside what is left of the rows.
        |k, n, full| unsafe {
            let mut acc = s.zero();
            for j in 0..4 {
                acc = s.fma(wv[j], load(s, rows[j].add(c + k), n, full), acc);
            }
            put(s, out, (0, c + k), acc, n, full);
        },
    );
}

/// Rows `i..i + G` of [`mix_add`].
#[inline(always)]
unsafe fn mix_group<S: Simd, E: Lane, B: Lane, O: Lane, const G: usize>(
    s: S,
    ins: usize,
    w: &[f32],
    a: Rows<'_, E>,
    pb: Option<(&[f32], &[B])>,
    out: Rows<'_, O>,
    i: usize,
) {
    vectors(
        s,
        out.len(),
        #[inline(always)]
        // SAFETY: `vectors` stays inside the rows; rows and weights are in range by the caller's promise.
        |c, n, full| unsafe {
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
                put(s, out, (i + g, c), acc[g], n, full);
            }
        },
    );
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
    s.outlined(
        #[inline(always)]
        || {
            let mut i = 0;
            while i < na {
                let gi = group(na - i);
                let mut j = 0;
                while j < m {
                    let gj = group(m - j);
                    let at = (i, j);
                    // SAFETY: the tile is in range.
                    unsafe {
                        match (gi, gj) {
                            (4, 4) => dot_tile::<S, A, B, 4, 4>(s, a, b, at, m, out),
                            (4, 2) => dot_tile::<S, A, B, 4, 2>(s, a, b, at, m, out),
                            (4, _) => dot_tile::<S, A, B, 4, 1>(s, a, b, at, m, out),
                            (2, 4) => dot_tile::<S, A, B, 2, 4>(s, a, b, at, m, out),
                            (2, 2) => dot_tile::<S, A, B, 2, 2>(s, a, b, at, m, out),
                            (2, _) => dot_tile::<S, A, B, 2, 1>(s, a, b, at, m, out),
                            (_, 4) => dot_tile::<S, A, B, 1, 4>(s, a, b, at, m, out),
                            (_, 2) => dot_tile::<S, A, B, 1, 2>(s, a, b, at, m, out),
                            _ => dot_tile::<S, A, B, 1, 1>(s, a, b, at, m, out),
                        }
                    }
                    j += gj;
                }
                i += gi;
            }
        },
    );
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
    let mut acc = [[s.zero(); J]; I];
    vectors(
        s,
        a.len(),
        #[inline(always)]
        // SAFETY: `vectors` stays inside the rows, which are in range by the caller's promise.
        |c, n, full| unsafe {
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
        },
    );
    for r in 0..I {
        for q in 0..J {
            out[(i + r) * m + j + q] = s.sum(acc[r][q]);
        }
    }
}

/// What the gradient of mixing and distributing reads and writes for one token.
pub(crate) struct MixBwd<'a, X, Y, G, DX, DY> {
    /// The streams, n rows.
    pub x: Rows<'a, X>,
    /// The sub-layer's output.
    pub y: &'a [Y],
    /// The upstream gradient, n rows.
    pub g: Rows<'a, G>,
    /// H_res transposed, `[from][to]`; only read where `d_x` is wanted.
    pub h_res_t: &'a [f32],
    /// H_post.
    pub h_post: &'a [f32],
    /// Where `H_res^T g` goes, n rows, if it is wanted.
    pub d_x: Option<Rows<'a, DX>>,
    /// Where `Σ_i H_post[i]·g_i` goes, one row.
    pub d_y: Rows<'a, DY>,
}

/// The gradient of `x'_i = Σ_j H_res[i,j]·x_j + H_post[i]·y`: writes the rows of `a`, `d_h_post[i] = ⟨g_i, y⟩` and, as `[to][from]`,
/// `d_h_res[i,j] = ⟨g_i, x_j⟩`.
///
/// For n = 4 everything is done in one pass over the channels; else each part takes its own, over rows in cache.
///
/// # Safety
/// The rows of `a` have the same length, and there are as many as it says; nothing else writes or reads those that are written.
#[inline(always)]
pub(crate) unsafe fn mix_bwd<S: Simd, X: Lane, Y: Lane, G: Lane, DX: Lane, DY: Lane>(
    s: S,
    n: usize,
    a: &MixBwd<'_, X, Y, G, DX, DY>,
    d_h_post: &mut [f32],
    d_h_res: &mut [f32],
) {
    // SAFETY: the caller's promise is the callees'.
    unsafe {
        if n == 4 {
            s.outlined(
                #[inline(always)]
                || mix_bwd_4(s, a, d_h_post, d_h_res),
            );
            if a.d_x.is_some_and(|d_x| d_x.streamed()) {
                s.fence();
            }
            return;
        }
        mix(s, (1, n), a.h_post, a.g, None, a.d_y);
        if let Some(d_x) = a.d_x {
            mix(s, (n, n), a.h_res_t, a.g, None, d_x);
        }
        dots(s, (n, 1), a.g, Rows::one_of(a.y), d_h_post);
        dots(s, (n, n), a.g, a.x, d_h_res);
    }
}

/// [`mix_bwd`] for n = 4.
#[inline(always)]
unsafe fn mix_bwd_4<S: Simd, X: Lane, Y: Lane, G: Lane, DX: Lane, DY: Lane>(
    s: S,
    a: &MixBwd<'_, X, Y, G, DX, DY>,
    d_h_post: &mut [f32],
    d_h_res: &mut [f32],
) {
    let (w, p) = (a.h_res_t, a.h_post);
    debug_assert!((a.d_x.is_none() || w.len() >= 16) && p.len() >= 4);
    let mut dots_x = [s.zero(); 16];
    let mut dots_y = [s.zero(); 4];
    vectors(
        s,
        a.y.len(),
        #[inline(always)]
        // SAFETY: `vectors` stays inside the rows; there are four of each, and 16 and 4 weights, by the caller's promise.
        |c, n, full| unsafe {
            let mut g = [s.zero(); 4];
            let y = load(s, a.y.as_ptr().add(c), n, full);
            let mut d_y = s.zero();
            for i in 0..4 {
                g[i] = load(s, a.g.ptr(i, c), n, full);
                dots_y[i] = s.fma(g[i], y, dots_y[i]);
                d_y = s.fma(s.splat(*p.get_unchecked(i)), g[i], d_y);
            }
            store(s, a.d_y.ptr(0, c), d_y, n, full);
            for j in 0..4 {
                let x = load(s, a.x.ptr(j, c), n, full);
                for i in 0..4 {
                    dots_x[i * 4 + j] = s.fma(g[i], x, dots_x[i * 4 + j]);
                }
                if let Some(d_x) = a.d_x {
                    let mut v = s.zero();
                    for i in 0..4 {
                        v = s.fma(s.splat(*w.get_unchecked(j * 4 + i)), g[i], v);
                    }
                    put(s, d_x, (j, c), v, n, full);
                }
            }
        },
    );
    for i in 0..4 {
        d_h_post[i] = s.sum(dots_y[i]);
        for j in 0..4 {
            d_h_res[i * 4 + j] = s.sum(dots_x[i * 4 + j]);
        }
    }
}

/// `out_i = a_i + p_i·b  (+ plus_i)` for `rows` rows.
///
/// # Safety
/// `a`, `out` and `plus`, if given, have `rows` rows of the length of `b`, `p` has `rows` weights; nothing else writes or reads `out`
/// meanwhile, but `out` may be `a`.
#[inline(always)]
pub(crate) unsafe fn add_outer<S: Simd, B: Lane, P: Lane, O: Lane>(
    s: S,
    rows: usize,
    a: Rows<'_, f32>,
    (p, b): (&[f32], &[B]),
    plus: Option<Rows<'_, P>>,
    out: Rows<'_, O>,
) {
    for i in 0..rows {
        let p = s.splat(p[i]);
        vectors(
            s,
            b.len(),
            #[inline(always)]
            // SAFETY: `vectors` stays inside the rows, of which there are enough by the caller's promise.
            |c, n, full| unsafe {
                let mut v = s.fma(p, load(s, b.as_ptr().add(c), n, full), load(s, a.ptr(i, c), n, full));
                if let Some(plus) = plus {
                    v = s.add(v, load(s, plus.ptr(i, c), n, full));
                }
                store(s, out.ptr(i, c), v, n, full);
            },
        );
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

/// [`store`] to a row of an operand, past the caches if it is [`streamed`](Rows::streamed).
///
/// # Safety
/// Row and column are in range, and `n <= LANES` elements of the row follow.
#[inline(always)]
unsafe fn put<S: Simd, E: Lane>(s: S, out: Rows<'_, E>, (i, c): (usize, usize), v: S::V, n: usize, full: bool) {
    // SAFETY: the caller's promise; rows of streamed operands are aligned to 64 bytes, and `c` is a multiple of the lanes.
    unsafe {
        let p = out.ptr(i, c);
        if full && out.streamed() { E::stream(s, p, v) } else { store(s, p, v, n, full) }
    }
}
