//! Views of parts of tensors.

use mhc_core::{Error, Layout, RawView, Result, Tensor, View, ViewMut};

fn layout(shape: &[usize], strides: &[usize]) -> Result<Layout> {
    Layout::strided(shape, strides).ok_or_else(|| Error::Shape {
        op: "layer",
        slot: "view",
        want: "sizes that fit the address space".into(),
        got: format!("{shape:?}"),
    })
}

/// The row `row [1, m]` as the row of every token, `[T, m]`.
pub(super) fn every_token(row: &Tensor, tokens: usize) -> Result<View<'_>> {
    let view = row.view();
    let m = row.shape().last().copied().unwrap_or(1);
    let layout = layout(&[tokens, m], &[0, 1])?;
    // SAFETY: every row of the layout is the tensor's only one.
    Ok(unsafe { View::from_raw(RawView { layout, ..*view.raw() }) })
}

/// The three parts `[n]`, `[n]`, `[n, n]` of a vector `[n(n+2)]`.
pub(super) fn parts(packed: &Tensor, n: usize) -> Result<[View<'_>; 3]> {
    let view = packed.view();
    let (gate, square) = (layout(&[n], &[1])?, layout(&[n, n], &[n, 1])?);
    let part = |at: usize, layout| {
        let ptr = view.raw().ptr.offset(at * packed.dtype().size());
        // SAFETY: n + n + n·n elements, which `packed` has, end to end.
        unsafe { View::from_raw(RawView { ptr, layout, ..*view.raw() }) }
    };
    Ok([part(0, gate), part(n, gate), part(2 * n, square)])
}

/// [`parts`], to be written.
pub(super) fn parts_mut(packed: &mut Tensor, n: usize) -> Result<[ViewMut<'_>; 3]> {
    let size = packed.dtype().size();
    let raw = *packed.view_mut().raw();
    let (gate, square) = (layout(&[n], &[1])?, layout(&[n, n], &[n, 1])?);
    let part = |at: usize, layout| {
        // SAFETY: as in `parts`; the three do not overlap, and the exclusive borrow of `packed` is theirs.
        unsafe { ViewMut::from_raw(RawView { ptr: raw.ptr.offset(at * size), layout, ..raw }) }
    };
    Ok([part(0, gate), part(n, gate), part(2 * n, square)])
}

/// The two terms `[T, ...shape]` of sums: `terms` is `[T, 2, ...]` with as many elements behind.
pub(super) fn terms_mut<'a>(terms: &'a mut Tensor, shape: &[usize]) -> Result<[ViewMut<'a>; 2]> {
    let size = terms.dtype().size();
    let raw = *terms.view_mut().raw();
    let row: usize = shape[1..].iter().product();
    let mut strides = vec![2 * row; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis] = shape[axis + 1..].iter().product();
    }
    let layout = layout(shape, &strides)?;
    // SAFETY: token t's terms are the elements from 2t·row and from (2t+1)·row on, `row` each: inside `terms` and apart from each other.
    let term =
        |at: usize| unsafe { ViewMut::from_raw(RawView { ptr: raw.ptr.offset(at * row * size), layout, ..raw }) };
    Ok([term(0), term(1)])
}
