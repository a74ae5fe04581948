//! Kernels without AMD's runtime: a code object in this process's memory, launched on buffers of it. For GPUs that the runtime cannot be
//! brought up on, and for tests, which get a fault where a kernel leaves its buffers by one byte.

use std::{collections::BTreeMap, ops::Range};

use crate::{
    arch::Arch,
    code::Code,
    dispatch::{self, Launch},
    memory::{Fault, Memory},
    traffic::Counters,
};

/// A simulated GPU with nothing loaded.
pub struct Direct {
    arch: Arch,
    code: Code,
    threads: usize,
}

/// A loaded code object.
pub struct Object {
    image: Vec<u64>,
    /// Where kernels' descriptors lie in the image.
    kernels: BTreeMap<String, usize>,
}

/// A kernel of an object: where its descriptor lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(usize);

/// A kernel's launch.
pub struct Work<'a> {
    pub object: &'a Object,
    pub kernel: Kernel,
    /// Workgroups each way.
    pub groups: [u32; 3],
    /// Work items of one.
    pub items: [u32; 3],
    /// Bytes of the workgroup's memory beyond those that the kernel states.
    pub shared: u32,
    /// Addresses and numbers, 8 bytes each.
    pub arguments: &'a [u64],
}

/// What the runtime tells a kernel behind its own arguments: 256 bytes, of which workgroups and work items come first.
const IMPLICIT_WORDS: usize = 32;

impl Direct {
    /// An error says what is missing.
    pub fn new(arch: Arch, threads: usize) -> Result<Self, String> {
        Ok(Self { arch, code: Code::new(arch.name())?, threads })
    }

    /// Runs a kernel to its end. It may touch its object, its arguments and the ranges of memory, and nothing else.
    ///
    /// # Safety
    /// The ranges are memory of this process that nothing else touches meanwhile.
    pub unsafe fn launch(&self, work: &Work<'_>, ranges: &[Range<u64>]) -> Result<Counters, Fault> {
        let Kernel(at) = work.kernel;
        let start = work.object.image.as_ptr() as u64;
        let fixed = |offset: usize| (work.object.image[(at + offset) / 8] >> (8 * ((at + offset) % 8))) as u32;
        let grid: [u32; 3] = std::array::from_fn(|k| work.groups[k] * work.items[k]);
        let [x, y, z] = work.items;
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let mut arguments = work.arguments.to_vec();
        arguments.extend([pair(work.groups[0], work.groups[1]), pair(work.groups[2], x | y << 16), pair(z, 0)]);
        arguments.resize(work.arguments.len() + IMPLICIT_WORDS, 0);
        // The packet's first words tell a kernel the sizes of the launch, too.
        let packet = [2, x | y << 16, z, grid[0], grid[1], grid[2], 0, 0];
        let around = |address: u64, bytes: usize| address..address + bytes as u64;
        let mut ranges = ranges.to_vec();
        ranges.extend([
            around(start, 8 * work.object.image.len()),
            around(arguments.as_ptr() as u64, size_of_val(&*arguments)),
            around(packet.as_ptr() as u64, size_of_val(&packet)),
        ]);
        let launch = Launch {
            group: work.items,
            grid,
            lds: fixed(0) + work.shared,
            scratch: fixed(4),
            descriptor: start + at as u64,
            arguments: arguments.as_ptr() as u64,
            packet: packet.as_ptr() as u64,
            tracked: true,
        };
        dispatch::run(self.arch, &self.code, &Memory::exact(ranges), &launch, self.threads)
    }
}

/// Fields of an ELF file that are read here.
mod elf {
    pub const MAGIC: [u8; 4] = *b"\x7fELF";
    pub const PROGRAM_OFFSET: usize = 32;
    pub const SECTION_OFFSET: usize = 40;
    pub const PROGRAM_COUNT: usize = 56;
    pub const SECTION_COUNT: usize = 60;
    pub const PROGRAM_SIZE: usize = 56;
    pub const SECTION_SIZE: usize = 64;
    pub const SYMBOL_SIZE: usize = 24;
    pub const LOAD: u32 = 1;
    pub const DYNAMIC_SYMBOLS: u32 = 11;
}

impl Object {
    /// Puts the segments where they belong. AMD's code objects for these GPUs are position-independent and have nothing to relocate.
    pub fn load(file: &[u8]) -> Result<Self, String> {
        Self::read(file).ok_or_else(|| "no code object".into())
    }

    fn read(file: &[u8]) -> Option<Self> {
        if file.get(..4)? != elf::MAGIC {
            return None;
        }
        let long = |at: usize| Some(u64::from_le_bytes(*file.get(at..)?.first_chunk()?) as usize);
        let word = |at: usize| Some(u32::from_le_bytes(*file.get(at..)?.first_chunk()?));
        let short = |at: usize| Some(usize::from(u16::from_le_bytes(*file.get(at..)?.first_chunk()?)));
        let mut segments = Vec::new();
        for k in 0..short(elf::PROGRAM_COUNT)? {
            let at = long(elf::PROGRAM_OFFSET)? + k * elf::PROGRAM_SIZE;
            if word(at)? == elf::LOAD {
                let (offset, address, size, extent) = (long(at + 8)?, long(at + 16)?, long(at + 32)?, long(at + 40)?);
                segments.push((address, file.get(offset..offset + size)?, extent));
            }
        }
        let end = segments.iter().map(|(address, _, extent)| address + extent).max()?;
        let mut bytes = vec![0; end.next_multiple_of(8)];
        for (address, data, _) in segments {
            bytes.get_mut(address..address + data.len())?.copy_from_slice(data);
        }
        let mut kernels = BTreeMap::new();
        for k in 0..short(elf::SECTION_COUNT)? {
            let at = long(elf::SECTION_OFFSET)? + k * elf::SECTION_SIZE;
            if word(at + 4)? != elf::DYNAMIC_SYMBOLS {
                continue;
            }
            let (symbols, size, names) = (long(at + 24)?, long(at + 32)?, word(at + 40)? as usize);
            let names = long(long(elf::SECTION_OFFSET)? + names * elf::SECTION_SIZE + 24)?;
            for symbol in (symbols..symbols + size).step_by(elf::SYMBOL_SIZE) {
                let name = file.get(names + word(symbol)? as usize..)?.split(|b| *b == 0).next()?;
                if let Some(kernel) = std::str::from_utf8(name).ok()?.strip_suffix(".kd") {
                    kernels.insert(kernel.to_string(), long(symbol + 8)?);
                }
            }
        }
        let words = bytes.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w));
        Some(Self { image: words.collect(), kernels })
    }

    /// A kernel by its name.
    pub fn kernel(&self, name: &str) -> Option<Kernel> {
        self.kernels.get(name).copied().map(Kernel)
    }

    /// The kernels' names.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.kernels.keys().map(String::as_str)
    }
}
