//! Owned device memory with a shape.

use core::fmt;

use crate::{DType, DevPtr, Element, Error, Layout, MAX_RANK, RawView, Result, Stream, View, ViewMut};

/// Row-major device memory, allocated and freed in the order of a stream.
pub struct Tensor {
    stream: Stream,
    ptr: DevPtr,
    layout: Layout,
    dtype: DType,
}

impl Tensor {
    /// Memory with arbitrary contents. [`Error::OutOfMemory`] if there is not enough, [`Error::Shape`] for more than four axes.
    pub fn empty(stream: &Stream, dtype: DType, shape: &[usize]) -> Result<Self> {
        let bad = || Error::Shape {
            op: "tensor",
            slot: "shape",
            want: format!("at most {MAX_RANK} axes that fit the address space"),
            got: format!("{shape:?}"),
        };
        let layout = Layout::contiguous(shape).ok_or_else(bad)?;
        let bytes =
            layout.elements().checked_mul(dtype.size()).filter(|b| *b <= isize::MAX as usize).ok_or_else(bad)?;
        let ptr = if bytes == 0 { DevPtr::NULL } else { stream.device().alloc(bytes, stream.raw())? };
        Ok(Self { stream: stream.clone(), ptr, layout, dtype })
    }

    /// A copy of host data. [`Error::Shape`] if `data` does not have just the elements of `shape`.
    pub fn from_slice<E: Element>(stream: &Stream, shape: &[usize], data: &[E]) -> Result<Self> {
        Self::from_bytes(stream, E::DTYPE, shape, bytemuck::must_cast_slice(data))
    }

    /// A copy of host data, rounded to `dtype`.
    pub fn from_f64(stream: &Stream, dtype: DType, shape: &[usize], data: &[f64]) -> Result<Self> {
        Self::from_bytes(stream, dtype, shape, &dtype.encode(data))
    }

    /// A copy of little-endian host data.
    pub fn from_bytes(stream: &Stream, dtype: DType, shape: &[usize], data: &[u8]) -> Result<Self> {
        let mut t = Self::empty(stream, dtype, shape)?;
        t.write(data)?;
        Ok(t)
    }

    /// Memory filled with zeros.
    pub fn zeros(stream: &Stream, dtype: DType, shape: &[usize]) -> Result<Self> {
        let mut t = Self::empty(stream, dtype, shape)?;
        t.write(&vec![0; t.bytes()])?;
        Ok(t)
    }

    /// Overwrites the contents. [`Error::Shape`] if the sizes differ.
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        if data.len() != self.bytes() {
            let (want, got) = (format!("{:?} {}", self.layout, self.dtype), format!("{} bytes", data.len()));
            return Err(Error::Shape { op: "tensor", slot: "data", want, got });
        }
        if data.is_empty() {
            return Ok(());
        }
        // SAFETY: `ptr` has `bytes()` bytes on the stream's device.
        unsafe { self.stream.device().upload(self.ptr, data, self.stream.raw()) }
    }

    /// The contents, once everything run on the stream so far is done.
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut data = vec![0; self.bytes()];
        if !data.is_empty() {
            // SAFETY: `ptr` has `bytes()` bytes on the stream's device.
            unsafe { self.stream.device().download(&mut data, self.ptr, self.stream.raw())? };
        }
        Ok(data)
    }

    /// The contents as `E`. [`Error::DType`] if that is not the element type.
    pub fn to_vec<E: Element>(&self) -> Result<Vec<E>> {
        if E::DTYPE != self.dtype {
            return Err(Error::DType { op: "tensor", slot: "data", want: E::DTYPE, got: self.dtype });
        }
        Ok(bytemuck::allocation::pod_collect_to_vec(&self.read()?))
    }

    /// The contents, widened.
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        Ok(self.dtype.decode(&self.read()?))
    }

    /// Lengths of the axes.
    pub fn shape(&self) -> &[usize] {
        self.layout.shape()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The stream it was allocated on.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Size of the contents.
    pub fn bytes(&self) -> usize {
        self.layout.elements() * self.dtype.size()
    }

    fn raw(&self) -> RawView {
        RawView { ptr: self.ptr, layout: self.layout, dtype: self.dtype, device: self.stream.id() }
    }

    /// Borrows it as an input.
    pub fn view(&self) -> View<'_> {
        // SAFETY: the memory is this tensor's until it is dropped; the borrow keeps it.
        unsafe { View::from_raw(self.raw()) }
    }

    /// Borrows it as an output.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        // SAFETY: as `view`, and the borrow is exclusive.
        unsafe { ViewMut::from_raw(self.raw()) }
    }

    /// Borrows it as an input of another shape with the same number of elements. [`Error::Shape`] otherwise.
    pub fn view_as(&self, shape: &[usize]) -> Result<View<'_>> {
        let layout = self.reshaped(shape)?;
        // SAFETY: as `view`; the new layout covers the same elements.
        Ok(unsafe { View::from_raw(RawView { layout, ..self.raw() }) })
    }

    /// Borrows it as an output of another shape with the same number of elements. [`Error::Shape`] otherwise.
    pub fn view_mut_as(&mut self, shape: &[usize]) -> Result<ViewMut<'_>> {
        let layout = self.reshaped(shape)?;
        // SAFETY: as `view_mut`; the new layout covers the same elements.
        Ok(unsafe { ViewMut::from_raw(RawView { layout, ..self.raw() }) })
    }

    fn reshaped(&self, shape: &[usize]) -> Result<Layout> {
        Layout::contiguous(shape).filter(|l| l.elements() == self.layout.elements()).ok_or_else(|| Error::Shape {
            op: "tensor",
            slot: "view",
            want: format!("{} elements", self.layout.elements()),
            got: format!("{shape:?}"),
        })
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        if self.bytes() > 0 {
            // SAFETY: allocated in `empty` with this size; nothing borrows it any more.
            unsafe { self.stream.device().free(self.ptr, self.bytes(), self.stream.raw()) };
        }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {:?} on {})", self.dtype, self.layout, self.stream.id())
    }
}
