//! Rows from one element type to another.

use super::{load, put, store, vectors};
use crate::{
    call::Rows,
    simd::{Lane, Simd},
};

/// Copies `len` elements to `to` as f32, padded with zeros to whole vectors.
///
/// # Safety
/// `from` is readable for `len` elements, `to` is writable for as many, rounded up to whole vectors.
#[inline(always)]
pub(crate) unsafe fn widen<S: Simd, E: Lane>(s: S, from: *const E, len: usize, to: *mut f32) {
    vectors(
        s,
        len,
        #[inline(always)]
        // SAFETY: `vectors` stays inside the row.
        |c, n, full| unsafe { s.store_f32(to.add(c), load(s, from.add(c), n, full)) },
    );
}

/// Rounds `from` to row `i` of `to`, `c` channels behind its start, a multiple of the lanes; past the caches if it is streamed.
///
/// # Safety
/// The row has `len` channels from there on; `from` is readable for as many, rounded up to whole vectors.
#[inline(always)]
pub(crate) unsafe fn narrow<S: Simd, E: Lane>(
    s: S,
    from: *const f32,
    len: usize,
    to: Rows<'_, E>,
    (i, c): (usize, usize),
) {
    vectors(
        s,
        len,
        #[inline(always)]
        // SAFETY: `vectors` stays inside the row.
        |k, n, full| unsafe { put(s, to, (i, c + k), s.load_f32(from.add(k)), n, full) },
    );
}

/// `y = x`, in another element type.
///
/// # Safety
/// Both rows have the same length.
#[inline(always)]
pub(crate) unsafe fn convert<S: Simd, E: Lane, O: Lane>(s: S, x: &[E], y: &mut [O]) {
    debug_assert_eq!(x.len(), y.len());
    let (len, y) = (y.len(), y.as_mut_ptr());
    vectors(
        s,
        len,
        #[inline(always)]
        // SAFETY: `vectors` stays inside the rows.
        |c, n, full| unsafe { store(s, y.add(c), load(s, x.as_ptr().add(c), n, full), n, full) },
    );
}
