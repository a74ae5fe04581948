//! What a dispatch moves and executes, counted exactly: what a kernel asks memory for, without any cache in between.

use std::sync::{Mutex, PoisonError};

use crate::inst::Class;

/// Bytes of what memory is moved in.
pub const LINE: u64 = 128;

/// Counts of one dispatch, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// Bytes that lanes read from global memory.
    pub read_bytes: u64,
    /// Lines of 128 bytes that those are in, counted anew for each instruction of each wave.
    pub read_lines: u64,
    /// Bytes that lanes wrote to global memory.
    pub written_bytes: u64,
    /// Their lines.
    pub written_lines: u64,
    /// Bytes of global memory that atomics changed.
    pub atomic_bytes: u64,
    /// Instructions of the scalar unit.
    pub scalar: u64,
    /// Instructions of the vector unit.
    pub vector: u64,
    /// Of the matrix unit.
    pub matrix: u64,
    /// Of global memory and scratch.
    pub memory: u64,
    /// Of the workgroup's memory.
    pub lds: u64,
    /// Waves that were started.
    pub waves: u64,
    /// Dispatches.
    pub dispatches: u64,
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Atomic,
}

impl Counters {
    pub fn add(&mut self, other: &Self) {
        self.read_bytes += other.read_bytes;
        self.read_lines += other.read_lines;
        self.written_bytes += other.written_bytes;
        self.written_lines += other.written_lines;
        self.atomic_bytes += other.atomic_bytes;
        self.scalar += other.scalar;
        self.vector += other.vector;
        self.matrix += other.matrix;
        self.memory += other.memory;
        self.lds += other.lds;
        self.waves += other.waves;
        self.dispatches += other.dispatches;
    }

    /// All instructions.
    pub fn instructions(&self) -> u64 {
        self.scalar + self.vector + self.matrix + self.memory + self.lds
    }

    #[inline]
    pub fn count(&mut self, class: Class) {
        match class {
            Class::Scalar => self.scalar += 1,
            Class::Vector => self.vector += 1,
            Class::Matrix => self.matrix += 1,
            Class::Memory => self.memory += 1,
            Class::Lds => self.lds += 1,
        }
    }

    /// An instruction's access of `size` bytes at each address of the mask.
    pub fn access(&mut self, kind: Kind, addresses: &[u64; 64], mask: u64, size: u64) {
        let bytes = u64::from(mask.count_ones()) * size;
        match kind {
            Kind::Read => {
                self.read_bytes += bytes;
                self.read_lines += lines(addresses, mask, size);
            }
            Kind::Write => {
                self.written_bytes += bytes;
                self.written_lines += lines(addresses, mask, size);
            }
            Kind::Atomic => self.atomic_bytes += bytes,
        }
    }
}

/// How many lines an access touches.
fn lines(addresses: &[u64; 64], mask: u64, size: u64) -> u64 {
    let (mut touched, mut count) = ([0u64; 128], 0);
    let mut ascending = true;
    for l in crate::memory::lanes_of(mask) {
        for line in addresses[l] / LINE..=(addresses[l] + size - 1) / LINE {
            let last = if count == 0 { None } else { Some(touched[count - 1]) };
            if last == Some(line) || count == touched.len() {
                continue;
            }
            ascending &= last.is_none_or(|last| last < line);
            touched[count] = line;
            count += 1;
        }
    }
    let touched = &mut touched[..count];
    if ascending {
        return count as u64;
    }
    touched.sort_unstable();
    1 + touched.windows(2).filter(|w| w[0] != w[1]).count() as u64
}

/// Everything that was dispatched since the counts were last taken.
static TOTAL: Mutex<Counters> = Mutex::new(Counters {
    read_bytes: 0,
    read_lines: 0,
    written_bytes: 0,
    written_lines: 0,
    atomic_bytes: 0,
    scalar: 0,
    vector: 0,
    matrix: 0,
    memory: 0,
    lds: 0,
    waves: 0,
    dispatches: 0,
});

/// Adds a dispatch.
pub fn record(counters: &Counters) {
    TOTAL.lock().unwrap_or_else(PoisonError::into_inner).add(counters);
}

/// Everything that was dispatched since the last call.
pub fn take() -> Counters {
    std::mem::take(&mut *TOTAL.lock().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_once_for_each_instruction() {
        let addresses = |f: fn(u64) -> u64| std::array::from_fn(|l| f(l as u64));
        assert_eq!(lines(&addresses(|l| 1024 + 16 * l), !0, 16), 8);
        assert_eq!(lines(&addresses(|l| 1028 + 16 * l), !0, 16), 9);
        assert_eq!(lines(&addresses(|_| 4), !0, 4), 1);
        assert_eq!(lines(&addresses(|l| 128 * (63 - l)), !0, 4), 64);
        assert_eq!(lines(&addresses(|l| 126 + 256 * l), !0, 4), 128);
        assert_eq!(lines(&addresses(|l| 128 * l), 0b1001, 4), 2);
    }

    #[test]
    fn bytes_are_those_of_lanes_that_take_part() {
        let mut counters = Counters::default();
        counters.access(Kind::Read, &[0; 64], 0xff, 4);
        counters.access(Kind::Write, &[256; 64], 1, 16);
        counters.access(Kind::Atomic, &[256; 64], 3, 8);
        assert_eq!((counters.read_bytes, counters.written_bytes, counters.atomic_bytes), (32, 16, 16));
        assert_eq!((counters.read_lines, counters.written_lines), (1, 1));
    }
}
