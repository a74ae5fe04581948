//! A token per lane: rows of a group of tokens to vectors of one element each, and back.

use core::ops::Range;

use crate::simd::Simd;

/// Lanes of the widest vector; lengths of scratch are for these.
pub(crate) const MAX_LANES: usize = 16;

/// The largest number of blocks, each of which has scratch of its own.
const MAX_BLOCKS: usize = 64;

/// Tokens that a block has at least, if there are as many.
const GRAIN: usize = 64;

/// How T tokens are cut into blocks: by their number alone, at multiples of [`MAX_LANES`], so that only the last vector is ragged.
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    tokens: usize,
    grain: usize,
}

impl Blocks {
    pub fn of(tokens: usize) -> Self {
        Self { tokens, grain: tokens.div_ceil(MAX_BLOCKS).max(GRAIN).next_multiple_of(MAX_LANES) }
    }

    /// Number of blocks.
    pub fn count(&self) -> usize {
        self.tokens.div_ceil(self.grain)
    }

    /// The tokens of block `b`.
    pub fn tokens(&self, b: usize) -> Range<usize> {
        b * self.grain..((b + 1) * self.grain).min(self.tokens)
    }
}

/// Which vectors the elements of a matrix are, row after row: found by additions, since a division for each would take as long as
/// the transposition.
struct Walk {
    columns: usize,
    strides: (usize, usize),
    /// Vector of the row's first element.
    row: usize,
    /// Elements of the row that are still to come.
    left: usize,
    /// Vector of the next element.
    at: usize,
}

impl Walk {
    #[inline(always)]
    fn new(columns: usize, strides: (usize, usize)) -> Self {
        Self { columns, strides, row: 0, left: columns, at: 0 }
    }

    /// The vector of the next element.
    #[inline(always)]
    fn step(&mut self) -> usize {
        let at = self.at;
        self.left -= 1;
        self.at += self.strides.1;
        if self.left == 0 {
            self.row += self.strides.0;
            (self.left, self.at) = (self.columns, self.row);
        }
        at
    }
}

/// Reads element (i, j) of every token, at `rows(lane, i) + j`, into vector `i·si + j·sj`. Lanes from `count` on become 0.
///
/// # Safety
/// For `lane < count` and `i` below the first of `shape`, `rows(lane, i)` is readable for the second of `shape`; `to` holds the vectors.
#[inline(always)]
pub(crate) unsafe fn gather<S: Simd>(
    s: S,
    count: usize,
    shape: (usize, usize),
    (si, sj): (usize, usize),
    rows: impl Fn(usize, usize) -> *const f32,
    to: *mut f32,
) {
    if count == S::LANES && dense(shape, rows(0, 0), || rows(0, 1)) {
        let mut m = [s.zero(); 16];
        let mut walk = Walk::new(shape.1, (si, sj));
        let tiles = shape.0 * shape.1 / S::LANES;
        // SAFETY: the caller's promise; without gaps, tile after tile of a token is one piece.
        unsafe {
            for e in (0..tiles).map(|tile| tile * S::LANES) {
                for lane in 0..S::LANES {
                    m[lane] = s.load_f32(rows(lane, 0).add(e));
                }
                s.transpose(&mut m);
                for k in 0..S::LANES {
                    store(s, to, walk.step(), m[k]);
                }
            }
            for e in tiles * S::LANES..shape.0 * shape.1 {
                let to = to.add(walk.step() * S::LANES);
                for lane in 0..S::LANES {
                    *to.add(lane) = *rows(lane, 0).add(e);
                }
            }
        }
        return;
    }
    for lane in 0..S::LANES {
        for i in 0..shape.0 {
            // SAFETY: the caller's promise; `lane < LANES`.
            unsafe {
                let to = to.add(i * si * S::LANES + lane);
                if lane < count {
                    let row = rows(lane, i);
                    for j in 0..shape.1 {
                        *to.add(j * sj * S::LANES) = *row.add(j);
                    }
                } else {
                    for j in 0..shape.1 {
                        *to.add(j * sj * S::LANES) = 0.0;
                    }
                }
            }
        }
    }
}

/// The inverse of [`gather`].
///
/// # Safety
/// As [`gather`], with `rows(lane, i)` writable by no one else.
#[inline(always)]
pub(crate) unsafe fn scatter<S: Simd>(
    s: S,
    count: usize,
    shape: (usize, usize),
    (si, sj): (usize, usize),
    from: *const f32,
    rows: impl Fn(usize, usize) -> *mut f32,
) {
    if count == S::LANES && dense(shape, rows(0, 0), || rows(0, 1).cast_const()) {
        let mut m = [s.zero(); 16];
        let mut walk = Walk::new(shape.1, (si, sj));
        let tiles = shape.0 * shape.1 / S::LANES;
        // SAFETY: the caller's promise; without gaps, tile after tile of a token is one piece.
        unsafe {
            for e in (0..tiles).map(|tile| tile * S::LANES) {
                for k in 0..S::LANES {
                    m[k] = load(s, from, walk.step());
                }
                s.transpose(&mut m);
                for lane in 0..S::LANES {
                    s.store_f32(rows(lane, 0).add(e), m[lane]);
                }
            }
            for e in tiles * S::LANES..shape.0 * shape.1 {
                let from = from.add(walk.step() * S::LANES);
                for lane in 0..S::LANES {
                    *rows(lane, 0).add(e) = *from.add(lane);
                }
            }
        }
        return;
    }
    for lane in 0..count {
        for i in 0..shape.0 {
            // SAFETY: the caller's promise; `lane < LANES`.
            unsafe {
                let (from, row) = (from.add(i * si * S::LANES + lane), rows(lane, i));
                for j in 0..shape.1 {
                    *row.add(j) = *from.add(j * sj * S::LANES);
                }
            }
        }
    }
}

/// Whether the rows of a token follow each other without gaps.
#[inline(always)]
fn dense(shape: (usize, usize), first: *const f32, second: impl Fn() -> *const f32) -> bool {
    shape.0 == 1 || second() == first.wrapping_add(shape.1)
}

/// Vector `i` of a group.
///
/// # Safety
/// `p` holds it.
#[inline(always)]
pub(crate) unsafe fn load<S: Simd>(s: S, p: *const f32, i: usize) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { s.load_f32(p.add(i * S::LANES)) }
}

/// The inverse of [`load`].
///
/// # Safety
/// `p` has room for it.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd>(s: S, p: *mut f32, i: usize, v: S::V) {
    // SAFETY: the caller's promise.
    unsafe { s.store_f32(p.add(i * S::LANES), v) }
}
