//! What addresses mean: allocations of the runtime, pinned memory of the process, the workgroup's and a lane's own memory.

use std::{fs, ops::Range, sync::OnceLock};

use crate::{
    inst::Space,
    text::{LDS_APERTURE, SCRATCH_APERTURE},
    wave::Wave,
};

/// Why a dispatch could not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(pub String);

/// The global memory that a dispatch may touch.
pub struct Memory {
    /// What is added to a device address to get this process's.
    base: usize,
    /// Device addresses, in order.
    ranges: Vec<Range<u64>>,
    /// What the process maps for reading and writing: the interface does not tell which of it the runtime has pinned.
    host: OnceLock<Vec<Range<u64>>>,
}

/// A range of addresses that may be touched, and what is added to them.
#[derive(Clone, Debug, Default)]
pub struct Window {
    range: Range<u64>,
    base: usize,
}

impl Window {
    /// The place of `size` bytes at `address`, if all of them are inside.
    #[inline]
    pub fn get(&self, address: u64, size: u64) -> Option<*mut u8> {
        let inside = address >= self.range.start && address.checked_add(size)? <= self.range.end;
        inside.then(|| self.base.wrapping_add(address as usize) as *mut u8)
    }

    /// The bytes from `address` to the end.
    pub fn left(&self, address: u64) -> u64 {
        self.range.end.saturating_sub(address)
    }
}

impl Memory {
    /// Allocations, as device addresses that `base` is added to.
    pub fn new(base: usize, mut ranges: Vec<Range<u64>>) -> Self {
        ranges.sort_by_key(|r| r.start);
        Self { base, ranges, host: OnceLock::new() }
    }

    /// These ranges of the process and nothing else.
    pub fn exact(ranges: Vec<Range<u64>>) -> Self {
        Self { host: OnceLock::from(Vec::new()), ..Self::new(0, ranges) }
    }

    /// The allocation, or else the pinned memory, around `size` bytes at `address`.
    pub fn window(&self, address: u64, size: u64) -> Option<Window> {
        let around = |ranges: &[Range<u64>]| {
            let k = ranges.partition_point(|r| r.start <= address).checked_sub(1)?;
            (address.checked_add(size)? <= ranges[k].end).then(|| ranges[k].clone())
        };
        if let Some(range) = around(&self.ranges) {
            return Some(Window { range, base: self.base });
        }
        // Pinned memory has the process's own addresses, which are far above those that the runtime gives to a model's GPU.
        if address <= 1 << 40 {
            return None;
        }
        Some(Window { range: around(self.host.get_or_init(mapped))?, base: 0 })
    }
}

/// What this process maps for reading and writing.
fn mapped() -> Vec<Range<u64>> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let range = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let address = |digits| u64::from_str_radix(digits, 16).ok();
        rest.starts_with("rw").then_some(address(start)?..address(end)?)
    };
    maps.lines().filter_map(range).collect()
}

/// One place for each lane; those of lanes that take no part mean nothing.
pub type Places = [*mut u8; 64];

impl Wave<'_> {
    /// The place of `size` bytes of global memory; a fault, and nothing, if no allocation holds all of them.
    pub fn global(&mut self, address: u64, size: u64) -> Option<*mut u8> {
        if let Some(place) = self.window.get(address, size) {
            return Some(place);
        }
        let Some(window) = self.memory.window(address, size) else {
            self.fault(format!("memory fault: {size} bytes at {address:#x} are in no allocation"));
            return None;
        };
        self.window = window;
        self.window.get(address, size)
    }

    fn lds(&mut self, address: u64, size: u64) -> Option<*mut u8> {
        if address + size > self.lds.len() as u64 {
            let all = self.lds.len();
            self.fault(format!("memory fault: {size} bytes of LDS at {address}, the workgroup has {all}"));
            return None;
        }
        // SAFETY: just checked to lie inside.
        Some(unsafe { self.lds.as_mut_ptr().add(address as usize) })
    }

    fn scratch(&mut self, lane: usize, address: u64, size: u64) -> Option<*mut u8> {
        let each = self.scratch.len() / 64;
        if address + size > each as u64 {
            self.fault(format!("memory fault: {size} bytes of scratch at {address}, a lane has {each}"));
            return None;
        }
        // SAFETY: just checked to lie inside the lane's part.
        Some(unsafe { self.scratch.as_mut_ptr().add(lane * each + address as usize) })
    }

    fn place(&mut self, space: Space, lane: usize, address: u64, size: u64) -> Option<*mut u8> {
        const UPPER: u64 = !0 << 32;
        match space {
            Space::Global => self.global(address, size),
            Space::Lds => self.lds(address, size),
            Space::Scratch => self.scratch(lane, address, size),
            Space::Flat if address & UPPER == LDS_APERTURE => self.lds(address & !UPPER, size),
            Space::Flat if address & UPPER == SCRATCH_APERTURE => self.scratch(lane, address & !UPPER, size),
            Space::Flat => self.global(address, size),
        }
    }

    /// Where the lanes of `mask` find `size` bytes each.
    pub fn places(&mut self, space: Space, addresses: &[u64; 64], mask: u64, size: u64) -> Option<Places> {
        let mut places = [std::ptr::null_mut(); 64];
        if mask == 0 {
            return Some(places);
        }
        if space == Space::Global {
            let (mut low, mut high) = (u64::MAX, 0);
            for l in 0..64 {
                let active = mask >> l & 1 == 1;
                low = low.min(if active { addresses[l] } else { u64::MAX });
                high = high.max(if active { addresses[l] } else { 0 });
            }
            // Most often all lanes are in one allocation, and one look is enough.
            if self.window.get(low, 1).is_some() && self.window.get(high, size).is_some() {
                let base = self.window.base;
                for l in 0..64 {
                    places[l] = base.wrapping_add(addresses[l] as usize) as *mut u8;
                }
                return Some(places);
            }
        }
        for l in lanes_of(mask) {
            places[l] = self.place(space, l, addresses[l], size)?;
        }
        Some(places)
    }
}

/// The lanes of a mask, in order.
pub fn lanes_of(mask: u64) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let lane = left.trailing_zeros() as usize;
        left &= left.wrapping_sub(1);
        (lane < 64).then_some(lane)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_must_lie_in_one_allocation() {
        let memory = Memory::new(0x1000, vec![200..300, 100..200]);
        let window = memory.window(100, 100).unwrap();
        assert_eq!(window.get(199, 1), Some((0x1000 + 199) as *mut u8));
        assert!(window.get(199, 2).is_none() && window.get(99, 1).is_none() && window.get(u64::MAX, 2).is_none());
        assert!(memory.window(199, 2).is_none() && memory.window(99, 1).is_none() && memory.window(300, 1).is_none());
        assert_eq!(window.left(150), 50);
    }

    #[test]
    fn the_lanes_of_a_mask_come_in_order() {
        assert_eq!(lanes_of(1 << 63 | 0b101).collect::<Vec<_>>(), [0, 2, 63]);
        assert_eq!(lanes_of(0).count(), 0);
        assert_eq!(lanes_of(!0).count(), 64);
    }
}
