//! Device memory that was freed and may be used again: who may use it, and how large it is. Pure, so that it is tested without a device.

use std::collections::{HashMap, HashSet};

use mhc_core::{DevPtr, RawStream};

/// The smallest block.
const LEAST: usize = 512;

/// The size of the block that serves so many bytes: one of eight between a power of two and the next, so that at most an eighth is
/// unused and blocks of similar sizes are one kind. `None` beyond what a number holds.
pub(crate) fn size(bytes: usize) -> Option<usize> {
    let bytes = bytes.max(LEAST);
    bytes.checked_next_multiple_of((1 << bytes.ilog2()) / 8)
}

/// Blocks that were allocated from the device. What a stream frees is used again by that stream, whose work is done in order, and by
/// others once that work is known to be done.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    /// The size of every block in use.
    used: HashMap<DevPtr, usize>,
    /// Free blocks by size and by the stream that freed them; `None` where no work on them can be left.
    free: HashMap<(Option<RawStream>, usize), Vec<DevPtr>>,
    /// Streams whose end is known here.
    own: HashSet<RawStream>,
}

impl Blocks {
    /// A stream begins, which will [end](Blocks::end).
    pub fn begin(&mut self, s: RawStream) {
        self.own.insert(s);
    }

    /// A stream has ended and its work is done: what it freed is anybody's.
    pub fn end(&mut self, s: RawStream) {
        self.own.remove(&s);
        let sizes: Vec<usize> = self.free.keys().filter(|(of, _)| *of == Some(s)).map(|(_, size)| *size).collect();
        for size in sizes {
            let blocks = self.free.remove(&(Some(s), size)).unwrap_or_default();
            self.free.entry((None, size)).or_default().extend(blocks);
        }
    }

    /// Whether what the stream frees may wait for the stream to use it again. A stream of somebody else may end without a word, and its
    /// name be given to another one; only the default stream stays.
    pub fn keeps(&self, s: RawStream) -> bool {
        s == RawStream(0) || self.own.contains(&s)
    }

    /// A free block of just this size, for a stream.
    pub fn take(&mut self, size: usize, s: RawStream) -> Option<DevPtr> {
        let found = [Some(s), None].into_iter().find_map(|of| self.free.get_mut(&(of, size))?.pop());
        if let Some(p) = found {
            self.used.insert(p, size);
        }
        found
    }

    /// A block of this size that was just allocated from the device.
    pub fn add(&mut self, p: DevPtr, size: usize) {
        self.used.insert(p, size);
    }

    /// A block is free: for the stream that still may work on it, or for anybody. False if it was not in use.
    pub fn give(&mut self, p: DevPtr, s: Option<RawStream>) -> bool {
        let size = self.used.remove(&p);
        if let Some(size) = size {
            self.free.entry((s, size)).or_default().push(p);
        }
        size.is_some()
    }

    /// All that is free, which is forgotten.
    pub fn drain(&mut self) -> Vec<DevPtr> {
        self.free.drain().flat_map(|(_, blocks)| blocks).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: RawStream = RawStream(10);
    const B: RawStream = RawStream(20);

    #[test]
    fn sizes_waste_an_eighth_at_most() {
        assert_eq!(
            [1, 512, 513, 1000, 1 << 20].map(size),
            [Some(512), Some(512), Some(576), Some(1024), Some(1 << 20)]
        );
        assert_eq!(size(usize::MAX), None);
        for bytes in (1..1_000_000).step_by(997) {
            let size = size(bytes).unwrap();
            assert!(size >= bytes && (bytes < LEAST || size - bytes <= bytes / 8), "{bytes}: {size}");
        }
    }

    #[test]
    fn a_stream_uses_again_what_it_freed_and_others_do_not() {
        let mut blocks = Blocks::default();
        blocks.begin(A);
        assert!(blocks.keeps(A) && blocks.keeps(RawStream(0)) && !blocks.keeps(B));
        blocks.add(DevPtr(4096), 512);
        assert!(blocks.give(DevPtr(4096), Some(A)));
        assert!(!blocks.give(DevPtr(4096), Some(A)), "free already");
        assert_eq!(blocks.take(512, B), None);
        assert_eq!(blocks.take(576, A), None);
        assert_eq!(blocks.take(512, A), Some(DevPtr(4096)));
        assert_eq!(blocks.take(512, A), None, "in use");
    }

    #[test]
    fn what_an_ended_stream_freed_is_anybodys() {
        let mut blocks = Blocks::default();
        blocks.begin(A);
        blocks.add(DevPtr(4096), 512);
        blocks.give(DevPtr(4096), Some(A));
        blocks.end(A);
        assert!(!blocks.keeps(A));
        assert_eq!(blocks.take(512, B), Some(DevPtr(4096)));
        blocks.give(DevPtr(4096), None);
        assert_eq!(blocks.drain(), [DevPtr(4096)]);
        assert_eq!(blocks.take(512, B), None, "drained");
    }
}
