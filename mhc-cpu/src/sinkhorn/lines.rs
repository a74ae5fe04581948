//! Sums and updates along the lines of a group of matrices, four lines side by side.

use crate::{
    lanes::{load, store},
    simd::Simd,
};

/// Adds to `q_l` the sums over k of `E[l, k]·x_k`.
///
/// # Safety
/// `e` holds n² vectors; `line` and `step` are n and 1 in either order.
#[inline(always)]
pub(super) unsafe fn sums<S: Simd, const N: usize, const M: usize>(
    s: S,
    n: usize,
    e: *const f32,
    lines: (usize, usize),
    x: &[S::V; M],
    q: &mut [S::V; M],
) {
    // SAFETY: the caller's promise; groups of lines cover n.
    unsafe {
        if N > 0 {
            return sums_of::<S, N, M>(s, n, e, lines, x, q, 0);
        }
        let mut l = 0;
        while l + 4 <= n {
            sums_of::<S, 4, M>(s, n, e, lines, x, q, l);
            l += 4;
        }
        while l < n {
            sums_of::<S, 1, M>(s, n, e, lines, x, q, l);
            l += 1;
        }
    }
}

/// `G` lines of [`sums`], side by side.
#[inline(always)]
unsafe fn sums_of<S: Simd, const G: usize, const M: usize>(
    s: S,
    n: usize,
    e: *const f32,
    (line, step): (usize, usize),
    x: &[S::V; M],
    q: &mut [S::V; M],
    l: usize,
) {
    let mut acc = [s.zero(); G];
    acc.copy_from_slice(&q[l..l + G]);
    for k in 0..n {
        for i in 0..G {
            // SAFETY: line `l + i` and element `k` are below n.
            acc[i] = s.fma(unsafe { load(s, e, (l + i) * line + k * step) }, x[k], acc[i]);
        }
    }
    q[l..l + G].copy_from_slice(&acc);
}

/// `G[l, k] += own_l·E[l, k]·other_k·Σ_k G[l, k]`.
///
/// # Safety
/// `e` and `g` hold n² vectors; `lines` is as in [`sums`].
#[inline(always)]
pub(super) unsafe fn step_back<S: Simd, const N: usize, const M: usize>(
    s: S,
    n: usize,
    e: *const f32,
    g: *mut f32,
    lines: (usize, usize),
    own: &[S::V; M],
    other: &[S::V; M],
) {
    // SAFETY: the caller's promise; groups of lines cover n.
    unsafe {
        if N > 0 {
            return step_back_of::<S, N, M>(s, n, e, g, lines, own, other, 0);
        }
        let mut l = 0;
        while l + 4 <= n {
            step_back_of::<S, 4, M>(s, n, e, g, lines, own, other, l);
            l += 4;
        }
        while l < n {
            step_back_of::<S, 1, M>(s, n, e, g, lines, own, other, l);
            l += 1;
        }
    }
}

/// `G` lines of [`step_back`], side by side.
#[inline(always)]
unsafe fn step_back_of<S: Simd, const G: usize, const M: usize>(
    s: S,
    n: usize,
    e: *const f32,
    g: *mut f32,
    (line, step): (usize, usize),
    own: &[S::V; M],
    other: &[S::V; M],
    l: usize,
) {
    let mut sum = [s.zero(); G];
    // SAFETY: line `l + i` and element `k` are below n.
    unsafe {
        for k in 0..n {
            for i in 0..G {
                sum[i] = s.add(sum[i], load(s, g, (l + i) * line + k * step));
            }
        }
        for i in 0..G {
            sum[i] = s.mul(own[l + i], sum[i]);
        }
        for k in 0..n {
            for i in 0..G {
                let at = (l + i) * line + k * step;
                let y = s.mul(load(s, e, at), other[k]);
                store(s, g, at, s.fma(y, sum[i], load(s, g, at)));
            }
        }
    }
}
