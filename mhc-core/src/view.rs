//! Borrowed operands: a device address, a layout and an element type.

use core::{fmt, marker::PhantomData};

use crate::{DType, Element, Error, Result};

/// An address in a device's memory; for the CPU, a host address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct DevPtr(pub u64);

impl DevPtr {
    /// The address of nothing: operands without elements.
    pub const NULL: DevPtr = DevPtr(0);

    /// The address `bytes` further on.
    pub const fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// The largest number of axes of an operand.
pub const MAX_RANK: usize = 4;

/// Shape and strides, in elements, outermost axis first.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    rank: u8,
    len: [usize; MAX_RANK],
    stride: [usize; MAX_RANK],
}

impl Layout {
    /// Row-major without gaps. `None` if there are more than [`MAX_RANK`] axes or the size overflows.
    pub fn contiguous(shape: &[usize]) -> Option<Self> {
        let mut strides = [0; MAX_RANK];
        let mut step = 1usize;
        for axis in (0..shape.len().min(MAX_RANK)).rev() {
            strides[axis] = step;
            step = step.checked_mul(shape[axis].max(1))?;
        }
        Self::strided(shape, strides.get(..shape.len())?)
    }

    /// Any strides. `None` if the ranks differ or exceed [`MAX_RANK`].
    pub fn strided(shape: &[usize], strides: &[usize]) -> Option<Self> {
        if shape.len() != strides.len() || shape.len() > MAX_RANK {
            return None;
        }
        let mut layout = Self { rank: shape.len() as u8, len: [1; MAX_RANK], stride: [0; MAX_RANK] };
        layout.len[..shape.len()].copy_from_slice(shape);
        layout.stride[..shape.len()].copy_from_slice(strides);
        layout.extent_checked()?;
        Some(layout)
    }

    /// Lengths of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.len[..self.rank as usize]
    }

    /// Distances between neighbours along each axis.
    pub fn strides(&self) -> &[usize] {
        &self.stride[..self.rank as usize]
    }

    /// The distance between neighbours along `axis`; 0 for an axis that is not there.
    pub fn stride(&self, axis: usize) -> usize {
        self.strides().get(axis).copied().unwrap_or(0)
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape().iter().product()
    }

    /// From the first element to one past the last, in elements.
    pub fn extent(&self) -> usize {
        self.extent_checked().unwrap_or(usize::MAX)
    }

    fn extent_checked(&self) -> Option<usize> {
        if self.shape().contains(&0) {
            return Some(0);
        }
        let mut last = 0usize;
        for (len, stride) in self.shape().iter().zip(self.strides()) {
            last = last.checked_add((len - 1).checked_mul(*stride)?)?;
        }
        last.checked_add(1)
    }

    /// Whether the last axis has neighbours next to each other, as every operator wants.
    pub fn last_contiguous(&self) -> bool {
        match (self.shape().last(), self.strides().last()) {
            (Some(&len), Some(&stride)) => len <= 1 || stride == 1,
            _ => true,
        }
    }

    /// Whether elements follow each other without gaps in row-major order.
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1;
        self.shape().iter().zip(self.strides()).rev().all(|(&len, &stride)| {
            let fits = len <= 1 || stride == step;
            step *= len.max(1);
            fits
        })
    }

    /// Whether no two indices share an element, as every output needs.
    pub fn is_injective(&self) -> bool {
        let mut axes: Vec<_> =
            self.shape().iter().zip(self.strides()).filter(|(len, _)| **len > 1).map(|(l, s)| (*s, *l)).collect();
        axes.sort_unstable();
        let mut extent = 1;
        axes.iter().all(|&(stride, len)| {
            let apart = stride >= extent;
            extent += (len - 1) * stride;
            apart
        })
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.shape())?;
        if self.is_contiguous() { Ok(()) } else { write!(f, " with strides {:?}", self.strides()) }
    }
}

/// An operand as a kernel sees it.
#[derive(Clone, Copy, Debug)]
pub struct RawView {
    /// Address of the first element.
    pub ptr: DevPtr,
    /// Shape and strides.
    pub layout: Layout,
    /// Element type.
    pub dtype: DType,
    /// Where the memory is: the [`id`](crate::DeviceInfo::id) of its device.
    pub device: DeviceId,
}

/// Names one device of this process: `cpu`, `cuda:0`, `hip:1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId {
    /// `cpu`, `cuda`, `hip`.
    pub backend: &'static str,
    /// Which of its devices.
    pub ordinal: u32,
}

impl DeviceId {
    /// The host.
    pub const CPU: DeviceId = DeviceId { backend: "cpu", ordinal: 0 };
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.backend == "cpu" { f.write_str("cpu") } else { write!(f, "{}:{}", self.backend, self.ordinal) }
    }
}

/// A borrowed operand that is read.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    raw: RawView,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> View<'a> {
    /// Borrows device memory.
    ///
    /// # Safety
    /// Every element of `raw.layout` must be readable on `raw.device` for `'a`, aligned to its type, and not written meanwhile
    /// by anything that is not ordered against the streams the view is used on.
    pub const unsafe fn from_raw(raw: RawView) -> Self {
        Self { raw, memory: PhantomData }
    }

    /// Borrows host memory, row-major. [`Error::Shape`] if `data` does not have just the elements of `shape`.
    pub fn from_slice<E: Element>(data: &'a [E], shape: &[usize]) -> Result<Self> {
        let layout = host_layout(data.len(), shape)?;
        let ptr = DevPtr(data.as_ptr() as u64);
        // SAFETY: `layout` is contiguous with `data.len()` elements, and the borrow lasts for 'a.
        Ok(unsafe { Self::from_raw(RawView { ptr, layout, dtype: E::DTYPE, device: DeviceId::CPU }) })
    }

    /// What the kernel sees.
    pub const fn raw(&self) -> &RawView {
        &self.raw
    }
}

/// A borrowed operand that is written.
#[derive(Debug)]
pub struct ViewMut<'a> {
    raw: RawView,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> ViewMut<'a> {
    /// Borrows device memory for writing.
    ///
    /// # Safety
    /// As [`View::from_raw`], and no other view that is used at the same time may reach the same elements.
    pub const unsafe fn from_raw(raw: RawView) -> Self {
        Self { raw, memory: PhantomData }
    }

    /// Borrows host memory for writing, row-major. [`Error::Shape`] if `data` does not have just the elements of `shape`.
    pub fn from_slice<E: Element>(data: &'a mut [E], shape: &[usize]) -> Result<Self> {
        let layout = host_layout(data.len(), shape)?;
        let ptr = DevPtr(data.as_mut_ptr() as u64);
        // SAFETY: `layout` is contiguous with `data.len()` elements, and the exclusive borrow lasts for 'a.
        Ok(unsafe { Self::from_raw(RawView { ptr, layout, dtype: E::DTYPE, device: DeviceId::CPU }) })
    }

    /// What the kernel sees.
    pub const fn raw(&self) -> &RawView {
        &self.raw
    }
}

fn host_layout(elements: usize, shape: &[usize]) -> Result<Layout> {
    let wrong = || Error::Shape {
        op: "view",
        slot: "data",
        want: format!("{shape:?}, at most {MAX_RANK} axes"),
        got: format!("{elements} elements"),
    };
    let layout = Layout::contiguous(shape).ok_or_else(wrong)?;
    if layout.elements() == elements { Ok(layout) } else { Err(wrong()) }
}
