//! The one place where operands are checked. Backends trust it.

use crate::{DeviceId, Dims, Error, Layout, MAX_STREAMS, Problem, RawView, Result, Role, Slot, View, ViewMut};

/// The views in slot order, absent slots `None`, or the first thing that is wrong with them. Nothing is written.
pub fn operands(p: &Problem, device: DeviceId, ins: &[View<'_>], outs: &[ViewMut<'_>]) -> Result<Vec<Option<RawView>>> {
    let op = p.op.desc().name;
    problem(p)?;
    let (mut ins, mut outs) = (ins.iter().map(|v| *v.raw()), outs.iter().map(|v| *v.raw()));
    let mut views = Vec::with_capacity(p.op.desc().slots.len());
    for slot in p.op.desc().slots {
        if !p.op.has(slot.name) {
            views.push(None);
            continue;
        }
        let next = if slot.role == Role::In { ins.next() } else { outs.next() };
        let view = next.ok_or_else(|| missing(op, slot, &p.dims))?;
        operand(op, slot, &view, p, device)?;
        views.push(Some(view));
    }
    if let Some(extra) = ins.next().or(outs.next()) {
        let want = "no more operands".into();
        return Err(Error::Shape { op, slot: "(extra)", want, got: format!("{:?}", extra.layout) });
    }
    overlaps(p, &views)?;
    Ok(views)
}

/// Attributes and sizes, without operands.
pub fn problem(p: &Problem) -> Result<()> {
    let (op, d) = (p.op.desc().name, &p.dims);
    let attribute = |attr, want, got: usize| Err(Error::Attribute { op, attr, want, got: got.to_string() });
    if !(1..=MAX_STREAMS).contains(&d.streams) {
        return attribute("n", "1..=32", d.streams);
    }
    if d.channels == 0 {
        return attribute("C", "at least 1", 0);
    }
    if d.layers == 0 {
        return attribute("L", "at least 1", 0);
    }
    p.op.check()?;
    for slot in p.slots() {
        let bytes = slot.axes.iter().try_fold(slot.dtype(p.act).size(), |b, a| b.checked_mul(a.len(d)));
        if bytes.is_none_or(|b| b > isize::MAX as usize) {
            let want = "no larger than the address space".into();
            return Err(Error::Shape { op, slot: slot.name, want, got: format!("{:?}", slot.shape(d)) });
        }
    }
    Ok(())
}

fn missing(op: &'static str, slot: &Slot, d: &Dims) -> Error {
    Error::Shape { op, slot: slot.name, want: format!("{:?}", slot.shape(d)), got: "no operand".into() }
}

fn operand(op: &'static str, slot: &Slot, view: &RawView, p: &Problem, device: DeviceId) -> Result<()> {
    let (slot_name, layout) = (slot.name, &view.layout);
    let shape = slot.shape(&p.dims);
    if layout.shape() != shape {
        let want = format!("{shape:?} ({slot})");
        return Err(Error::Shape { op, slot: slot_name, want, got: format!("{layout:?}") });
    }
    let want = slot.dtype(p.act);
    if view.dtype != want {
        return Err(Error::DType { op, slot: slot_name, want, got: view.dtype });
    }
    if view.device != device {
        let (want, got) = (device.to_string(), view.device.to_string());
        return Err(Error::WrongDevice { op, slot: slot_name, want, got });
    }
    let wrong = |why: String| Err(Error::Layout { op, slot: slot_name, why });
    if layout.elements() == 0 {
        return Ok(());
    }
    if !layout.last_contiguous() {
        return wrong(format!("must have a contiguous last axis, but has strides {:?}", layout.strides()));
    }
    if view.ptr.0 == 0 {
        return wrong("is a null pointer".into());
    }
    if !view.ptr.0.is_multiple_of(want.size() as u64) {
        return wrong(format!("must be aligned to {} bytes, but is at {:#x}", want.size(), view.ptr.0));
    }
    if slot.role != Role::In && !layout.is_injective() {
        return wrong(format!("is written, so its elements must not overlap; it is {layout:?}"));
    }
    Ok(())
}

fn overlaps(p: &Problem, views: &[Option<RawView>]) -> Result<()> {
    let slots = p.op.desc().slots;
    let present = || slots.iter().zip(views).filter_map(|(s, v)| v.as_ref().map(|v| (s, v)));
    for (i, (out, a)) in present().enumerate().filter(|(_, (s, _))| s.role != Role::In) {
        for (other, b) in present().enumerate().filter(|(j, (s, _))| s.role == Role::In || *j < i).map(|(_, sv)| sv) {
            if overlap(a, b) {
                let why = format!("overlaps operand `{}`; outputs need memory of their own", other.name);
                return Err(Error::Layout { op: p.op.desc().name, slot: out.name, why });
            }
        }
    }
    Ok(())
}

/// Whether two views may share an element. Exact for contiguous views and for slices of rows of one matrix; else it compares extents.
fn overlap(a: &RawView, b: &RawView) -> bool {
    if a.layout.elements() == 0 || b.layout.elements() == 0 {
        return false;
    }
    let bytes = |v: &RawView, l: &Layout| (l.extent() * v.dtype.size()) as u64;
    let (a0, b0) = (a.ptr.0, b.ptr.0);
    if a0 + bytes(a, &a.layout) <= b0 || b0 + bytes(b, &b.layout) <= a0 {
        return false;
    }
    let step = |v: &RawView| (v.layout.stride(0) * v.dtype.size()) as u64;
    let row = |v: &RawView| {
        Layout::strided(&v.layout.shape()[1..], &v.layout.strides()[1..]).map_or(u64::MAX, |l| bytes(v, &l))
    };
    if a.layout.shape().len() < 2 || b.layout.shape().len() < 2 || step(a) != step(b) || step(a) == 0 {
        return true;
    }
    // Rows of both repeat every `step` bytes: they are apart if they are apart within one step, whichever comes first.
    let (wa, wb, s) = (row(a), row(b), step(a));
    let between = (b0.wrapping_sub(a0) as i64).rem_euclid(s as i64) as u64;
    wa > s || wb > s || !(between >= wa && between + wb <= s)
}
