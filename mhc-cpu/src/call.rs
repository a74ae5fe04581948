//! A validated launch: operands by name, scratch, and parallel loops over blocks of tokens.

use core::{marker::PhantomData, ops::Range};

use mhc_core::{DType, Dims, Element, OpDesc, RawView};
use rayon::prelude::*;

use crate::simd::{Level, SimdFn};

/// Bytes from which an output is taken to be too large for the next operator to find it in cache.
///
/// `post` at T = 2048, n = 4, C = 2048, 2 threads of a busy Xeon with AVX-512, next to a copy of as many bytes: in f32 143 % of its speed
/// with streamed stores, 89 % with plain ones; in bf16 117 % and 71 %. Fetching lines ahead, for reading or writing, gained less.
const STREAMED: usize = 16 << 20;

/// What an operator's CPU kernel is given.
pub(crate) struct Call<'a> {
    /// Sizes.
    pub d: Dims,
    /// Element type of the streams.
    pub act: DType,
    pub(crate) desc: &'static OpDesc,
    pub(crate) slots: &'a [Option<RawView>],
    pub(crate) scratch: *mut u8,
    pub(crate) level: Level,
    pub(crate) threads: usize,
}

// SAFETY: the operands of a launch may be used from any thread; who writes where is settled by the kernels, each of which
// gives every block of tokens its own rows.
unsafe impl Sync for Call<'_> {}
// SAFETY: as `Sync`; `scratch` is plain memory.
unsafe impl Send for Call<'_> {}

impl Call<'_> {
    /// Whether the slot called `name` is there.
    pub fn has(&self, name: &str) -> bool {
        self.view(name).is_some()
    }

    fn view(&self, name: &str) -> Option<&RawView> {
        debug_assert!(self.desc.index(name).is_some(), "{} has no slot {name}", self.desc.name);
        self.slots[self.desc.index(name)?].as_ref()
    }

    /// The operand called `name`; one without elements if it is absent.
    pub fn rows<E: Element>(&self, name: &str) -> Rows<'_, E> {
        let Some(v) = self.view(name) else {
            return Rows {
                ptr: core::ptr::dangling_mut(),
                strides: [0; 3],
                row: 0,
                streamed: false,
                memory: PhantomData,
            };
        };
        debug_assert_eq!(v.dtype, E::DTYPE, "{} {name}", self.desc.name);
        let (shape, strides) = (v.layout.shape(), v.layout.strides());
        let outer = strides.len().saturating_sub(1);
        let mut s = [0; 3];
        s[..outer].copy_from_slice(&strides[..outer]);
        Rows {
            ptr: v.ptr.0 as *mut E,
            strides: s,
            row: shape.last().copied().unwrap_or(1),
            streamed: false,
            memory: PhantomData,
        }
    }

    /// The operand of one axis called `name`, if it is there.
    pub fn weight(&self, name: &str) -> Option<&[f32]> {
        // SAFETY: an operand of one axis is one row; inputs are not written during a launch.
        self.has(name).then(|| unsafe { self.rows::<f32>(name).row(0) })
    }

    /// The output called `name`, which the launch does not read back: written past the caches if it is large, so that its lines need not
    /// be read first and push nothing out. By size alone, and with the same bits.
    pub fn outputs<E: Element>(&self, name: &str) -> Rows<'_, E> {
        let rows = self.rows::<E>(name);
        let bytes = self.view(name).map_or(0, |v| v.layout.elements() * size_of::<E>());
        let aligned = [0, rows.strides[0], rows.strides[1], rows.strides[2]]
            .iter()
            .all(|s| (rows.ptr as usize + s * size_of::<E>()).is_multiple_of(64));
        Rows { streamed: bytes >= STREAMED && aligned, ..rows }
    }

    /// Part `index` of the scratch memory, `len` elements each, all parts behind each other from `offset` bytes on.
    ///
    /// # Safety
    /// The operator's `workspace` covers `offset + (index + 1) * len * size_of::<E>()`, `offset` is aligned, and no other reference
    /// to this part is alive.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn scratch<E: Element>(&self, offset: usize, index: usize, len: usize) -> &mut [E] {
        // SAFETY: in bounds and exclusive by the caller's promise; any bits are a value of `E`.
        unsafe { core::slice::from_raw_parts_mut(self.scratch.add(offset).cast::<E>().add(index * len), len) }
    }

    /// Runs a kernel on the device's instruction set.
    #[inline]
    pub fn simd<F: SimdFn>(&self, f: F) -> F::Output {
        // SAFETY: `CpuDevice` only takes available levels.
        unsafe { self.level.run(f) }
    }

    /// Calls `f` once for each of `blocks`, in parallel. What a block computes must depend on its number alone, never on the thread.
    pub fn blocks(&self, blocks: usize, f: impl Fn(usize) + Sync) {
        self.blocks_of(blocks, &f);
    }

    /// [`blocks`](Self::blocks), compiled once.
    fn blocks_of(&self, blocks: usize, f: &(dyn Fn(usize) + Sync)) {
        if blocks <= 1 || self.threads == 1 {
            (0..blocks).for_each(f);
        } else {
            (0..blocks).into_par_iter().with_max_len(1).for_each(f);
        }
    }

    /// Calls `f` for ranges of `grain` tokens, in parallel.
    pub fn tokens(&self, grain: usize, f: impl Fn(Range<usize>) + Sync) {
        let tokens = self.d.tokens;
        self.blocks(tokens.div_ceil(grain), |b| f(b * grain..((b + 1) * grain).min(tokens)));
    }
}

/// An operand as rows along its last, contiguous axis.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, E> {
    ptr: *mut E,
    strides: [usize; 3],
    row: usize,
    streamed: bool,
    memory: PhantomData<&'a E>,
}

// SAFETY: only hands out references through unsafe functions whose callers settle who writes where.
unsafe impl<E> Sync for Rows<'_, E> {}
// SAFETY: as `Sync`.
unsafe impl<E> Send for Rows<'_, E> {}

impl<'a, E: Element> Rows<'a, E> {
    /// Row `a` of an operand of two axes, or the only row of one.
    ///
    /// # Safety
    /// `a` is in range and no one writes the row meanwhile.
    #[inline(always)]
    pub unsafe fn row(&self, a: usize) -> &'a [E] {
        // SAFETY: validated views cover their shape.
        unsafe { core::slice::from_raw_parts(self.ptr.add(a * self.strides[0]), self.row) }
    }

    /// Row `a` for writing.
    ///
    /// # Safety
    /// `a` is in range, the operand is an output, and no other reference to the row is alive.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row_mut(&self, a: usize) -> &'a mut [E] {
        // SAFETY: validated views cover their shape; exclusive by the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.ptr.add(a * self.strides[0]), self.row) }
    }

    /// The operand at a fixed first index: of `x [T, n, C]`, the n rows of one token.
    ///
    /// # Safety
    /// `a` is in range.
    #[inline(always)]
    pub unsafe fn at(&self, a: usize) -> Rows<'a, E> {
        let [s0, s1, s2] = self.strides;
        // SAFETY: in range by the caller's promise.
        Rows { ptr: unsafe { self.ptr.add(a * s0) }, strides: [s1, s2, 0], ..*self }
    }

    /// Rows of `row` elements, `stride` apart.
    ///
    /// # Safety
    /// Those that are used are readable, and writable if they are written, for `'a`.
    pub unsafe fn at_address(ptr: *mut E, stride: usize, row: usize) -> Self {
        Rows { ptr, strides: [stride, 0, 0], row, streamed: false, memory: PhantomData }
    }

    /// The rows from row `a` on.
    ///
    /// # Safety
    /// `a` is in range.
    #[inline(always)]
    pub unsafe fn from(&self, a: usize) -> Rows<'a, E> {
        // SAFETY: in range by the caller's promise.
        Rows { ptr: unsafe { self.ptr.add(a * self.strides[0]) }, ..*self }
    }

    /// Row `a` of an operand of two axes as an operand of one row.
    ///
    /// # Safety
    /// `a` is in range.
    #[inline(always)]
    pub unsafe fn one(&self, a: usize) -> Rows<'a, E> {
        // SAFETY: in range by the caller's promise.
        Rows { ptr: unsafe { self.ptr.add(a * self.strides[0]) }, strides: [0; 3], ..*self }
    }

    /// Rows over memory of one's own, `row` elements each, without gaps.
    pub fn over(memory: &'a mut [E], row: usize) -> Self {
        Rows { ptr: memory.as_mut_ptr(), strides: [row, 0, 0], row, streamed: false, memory: PhantomData }
    }

    /// A row of one's own as an operand that is only read.
    #[inline(always)]
    pub fn one_of(row: &'a [E]) -> Self {
        Rows { ptr: row.as_ptr().cast_mut(), strides: [0; 3], row: row.len(), streamed: false, memory: PhantomData }
    }

    /// Whether to write it past the caches; then every row is aligned to 64 bytes.
    #[inline(always)]
    pub fn streamed(&self) -> bool {
        self.streamed
    }

    /// The same rows, `n` of them a token: `[T·n, C]` as `[T, n, C]`.
    pub fn tokens(&self, n: usize) -> Self {
        let row = self.strides[0];
        Rows { strides: [n * row, row, 0], ..*self }
    }

    /// Channels `c .. c + len` of every row; a plain operand, not a streamed one.
    ///
    /// # Safety
    /// They are in range.
    #[inline(always)]
    pub unsafe fn channels(&self, c: usize, len: usize) -> Self {
        // SAFETY: in range by the caller's promise.
        Rows { ptr: unsafe { self.ptr.add(c) }, row: len, streamed: false, ..*self }
    }

    /// Elements of a row.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.row
    }

    /// Address of element `c` of row `a`.
    ///
    /// # Safety
    /// In range; see [`row`](Self::row) and [`row_mut`](Self::row_mut) for what may be done with it.
    #[inline(always)]
    pub unsafe fn ptr(&self, a: usize, c: usize) -> *mut E {
        // SAFETY: in range by the caller's promise.
        unsafe { self.ptr.add(a * self.strides[0] + c) }
    }
}

/// Runs the block with `$e` standing for the Rust type of a stream element type.
macro_rules! by_dtype {
    ($dtype:expr, $e:ident => $body:expr) => {
        match $dtype {
            mhc_core::DType::F32 => {
                type $e = f32;
                $body
            }
            mhc_core::DType::Bf16 => {
                type $e = mhc_core::bf16;
                $body
            }
            mhc_core::DType::F16 => {
                type $e = mhc_core::f16;
                $body
            }
        }
    };
}
pub(crate) use by_dtype;
