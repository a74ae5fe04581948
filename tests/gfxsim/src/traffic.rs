//! What a dispatch moves and executes, counted exactly: what a kernel asks memory for, without any cache in between.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crate::{inst::Class, memory::lanes_of};

/// Bytes of what memory is moved in.
pub const LINE: u64 = 128;

/// Counts of one dispatch, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// Bytes of global memory that vector loads read, each byte once for an instruction however many lanes want it.
    pub read_bytes: u64,
    /// Lines of 128 bytes that those are in, counted anew for each instruction.
    pub read_lines: u64,
    /// Bytes that stores wrote, counted alike.
    pub written_bytes: u64,
    /// Their lines.
    pub written_lines: u64,
    /// Bytes that scalar loads read: arguments and what is the same for all lanes, from a cache of its own.
    pub scalar_bytes: u64,
    /// Bytes that atomics changed.
    pub atomic_bytes: u64,
    /// Different lines that were read and written: what a cache that forgets nothing would move. Of direct launches alone.
    pub different_lines: u64,
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
    /// Nothing yet.
    pub const ZERO: Self = Self {
        read_bytes: 0,
        read_lines: 0,
        written_bytes: 0,
        written_lines: 0,
        scalar_bytes: 0,
        atomic_bytes: 0,
        different_lines: 0,
        scalar: 0,
        vector: 0,
        matrix: 0,
        memory: 0,
        lds: 0,
        waves: 0,
        dispatches: 0,
    };

    pub fn add(&mut self, other: &Self) {
        self.read_bytes += other.read_bytes;
        self.read_lines += other.read_lines;
        self.written_bytes += other.written_bytes;
        self.written_lines += other.written_lines;
        self.scalar_bytes += other.scalar_bytes;
        self.atomic_bytes += other.atomic_bytes;
        self.different_lines += other.different_lines;
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
        let (bytes, lines) = extent(addresses, mask, size);
        match kind {
            Kind::Read => (self.read_bytes, self.read_lines) = (self.read_bytes + bytes, self.read_lines + lines),
            Kind::Write => {
                (self.written_bytes, self.written_lines) = (self.written_bytes + bytes, self.written_lines + lines);
            }
            Kind::Atomic => self.atomic_bytes += u64::from(mask.count_ones()) * size,
        }
    }
}

/// How many bytes and how many lines an access touches, each counted once.
fn extent(addresses: &[u64; 64], mask: u64, size: u64) -> (u64, u64) {
    let mut sorted = [0; 64];
    let mut count = 0;
    for l in lanes_of(mask) {
        sorted[count] = addresses[l];
        count += 1;
    }
    let sorted = &mut sorted[..count];
    if !sorted.is_sorted() {
        sorted.sort_unstable();
    }
    let (mut bytes, mut lines) = (0, 0);
    // The first byte and the first line that were not yet counted.
    let (mut byte, mut line) = (0, 0);
    for address in sorted.iter() {
        let end = address + size;
        bytes += end.saturating_sub(byte.max(*address));
        byte = byte.max(end);
        let behind = end.div_ceil(LINE);
        lines += behind.saturating_sub(line.max(address / LINE));
        line = line.max(behind);
    }
    (bytes, lines)
}

/// The lines that a dispatch reads, and those that it writes: a bit for each of 64 neighbours.
#[derive(Clone, Debug, Default)]
pub struct Touched {
    lines: [HashMap<u64, u64>; 2],
}

impl Touched {
    /// An access as [`Counters::access`] counts it.
    pub fn access(&mut self, kind: Kind, addresses: &[u64; 64], mask: u64, size: u64) {
        let lines = &mut self.lines[usize::from(kind != Kind::Read)];
        for l in lanes_of(mask) {
            for line in addresses[l] / LINE..(addresses[l] + size).div_ceil(LINE) {
                *lines.entry(line / 64).or_default() |= 1 << (line % 64);
            }
        }
    }

    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.lines.iter_mut().zip(&other.lines) {
            theirs.iter().for_each(|(group, bits)| *mine.entry(*group).or_default() |= bits);
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.lines.iter().flat_map(HashMap::values).map(|bits| u64::from(bits.count_ones())).sum()
    }
}

/// Everything that was dispatched since the counts were last taken.
static TOTAL: Mutex<Counters> = Mutex::new(Counters::ZERO);

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
    fn bytes_and_lines_are_counted_once_for_each_instruction() {
        let addresses = |f: fn(u64) -> u64| std::array::from_fn(|l| f(l as u64));
        assert_eq!(extent(&addresses(|l| 1024 + 16 * l), !0, 16), (1024, 8));
        assert_eq!(extent(&addresses(|l| 1028 + 16 * l), !0, 16), (1024, 9));
        assert_eq!(extent(&addresses(|_| 4), !0, 4), (4, 1));
        assert_eq!(extent(&addresses(|l| 128 * (63 - l)), !0, 4), (256, 64));
        assert_eq!(extent(&addresses(|l| 126 + 256 * l), !0, 4), (256, 128));
        assert_eq!(extent(&addresses(|l| 128 * l), 0b1001, 4), (8, 2));
        assert_eq!(extent(&addresses(|l| 4 * l), !0, 16), (64 * 4 + 12, 3), "overlapping");
        assert_eq!(extent(&[0; 64], 0, 4), (0, 0));
    }

    #[test]
    fn atomics_count_for_every_lane() {
        let mut counters = Counters::default();
        counters.access(Kind::Read, &[0; 64], 0xff, 4);
        counters.access(Kind::Write, &[256; 64], 1, 16);
        counters.access(Kind::Atomic, &[256; 64], 3, 8);
        assert_eq!((counters.read_bytes, counters.written_bytes, counters.atomic_bytes), (4, 16, 16));
    }

    #[test]
    fn a_dispatch_touches_a_line_once_to_read_and_once_to_write() {
        let (mut a, mut b) = (Touched::default(), Touched::default());
        a.access(Kind::Read, &[100; 64], 1, 64);
        a.access(Kind::Write, &[0; 64], 1, 4);
        b.access(Kind::Read, &[128; 64], 1, 4);
        a.add(&b);
        assert_eq!(a.count(), 3);
    }
}
