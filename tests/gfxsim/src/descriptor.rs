//! A kernel's descriptor: how many registers its waves have, and what is in them when they begin.

use crate::{
    dispatch::Launch,
    inst::{ACCUMULATORS, scalar},
    memory::{Fault, Memory},
    wave::{JUNK, Wave},
};

/// Bytes of a descriptor.
const SIZE: u64 = 64;
/// Where its fields lie.
mod at {
    pub const ENTRY: u64 = 16;
    pub const RSRC3: u64 = 44;
    pub const RSRC1: u64 = 48;
    pub const RSRC2: u64 = 52;
    pub const PROPERTIES: u64 = 56;
    pub const PRELOAD: u64 = 58;
}
/// Code that loads arguments in advance stands before the entry of kernels that have them in registers already.
const PRELOAD_CODE: u64 = 256;

/// What was read of it.
#[derive(Clone, Debug)]
pub struct Descriptor {
    /// Where waves begin.
    entry: u64,
    /// 32 or 64.
    pub width: usize,
    rsrc2: u32,
    properties: u32,
    /// Arguments that are in registers from the start.
    preloaded: Vec<u32>,
    /// Vector registers, and accumulators behind them.
    vectors: usize,
    accumulators: usize,
}

fn word(memory: &Memory, address: u64) -> Result<u32, Fault> {
    let window = memory.window(address, 4);
    let place = window.as_ref().and_then(|w| w.get(address, 4));
    let place = place.ok_or_else(|| Fault(format!("memory fault: nothing at {address:#x}, where a kernel was")))?;
    // SAFETY: the window holds these four bytes.
    Ok(unsafe { place.cast::<u32>().read_unaligned() })
}

impl Descriptor {
    pub fn read(memory: &Memory, launch: &Launch) -> Result<Self, Fault> {
        if memory.window(launch.descriptor, SIZE).is_none() {
            return Err(Fault(format!("memory fault: no kernel at {:#x}", launch.descriptor)));
        }
        let field = |offset| word(memory, launch.descriptor + offset);
        let entry = u64::from(field(at::ENTRY)?) | u64::from(field(at::ENTRY + 4)?) << 32;
        let (rsrc1, rsrc3, preload) = (field(at::RSRC1)?, field(at::RSRC3)?, field(at::PRELOAD)? & 0xffff);
        let properties = field(at::PROPERTIES)?;
        let width = if properties >> 10 & 1 == 1 { 32 } else { 64 };
        let (count, offset) = (u64::from(preload & 127), u64::from(preload >> 7));
        let argument = |k| word(memory, launch.arguments + 4 * (offset + k));
        // Registers are given out in eights. On CDNA accumulators are the upper part of the same file.
        let all = 8 * (rsrc1 as usize % 64 + 1);
        let vectors = if width == 64 { 4 * (rsrc3 as usize % 64 + 1) } else { all };
        Ok(Self {
            entry: launch.descriptor.wrapping_add(entry),
            width,
            rsrc2: field(at::RSRC2)?,
            properties,
            preloaded: (0..count).map(argument).collect::<Result<_, _>>()?,
            vectors: vectors.min(256),
            accumulators: all.saturating_sub(vectors).min(256),
        })
    }

    /// Puts a wave at the start: the first of its lanes is work item `first` of workgroup `id`.
    pub fn start(&self, wave: &mut Wave<'_>, launch: &Launch, id: [u32; 3], first: usize) {
        let behind = ACCUMULATORS as usize;
        wave.vectors[..self.vectors].fill([JUNK; 64]);
        wave.vectors[behind..behind + self.accumulators].fill([JUNK; 64]);
        wave.scalars.fill(JUNK);
        self.scalars(wave, launch, id);
        let [x, y, z] = launch.group.map(|n| n as usize);
        let lanes = self.width.min(x * y * z - first);
        wave.set_exec(if lanes == 64 { !0 } else { (1 << lanes) - 1 });
        for lane in 0..lanes {
            let item = first + lane;
            wave.vectors[0][lane] = ((item % x) | (item / x % y) << 10 | (item / (x * y)) << 20) as u32;
        }
        wave.pc = if self.preloaded.is_empty() { self.entry } else { self.entry + PRELOAD_CODE };
    }

    /// What the launch hands over in scalar registers, in the order of the bits that ask for it.
    fn scalars(&self, wave: &mut Wave<'_>, launch: &Launch, id: [u32; 3]) {
        const SCRATCH_RESOURCE: u32 = 0x5c5c_5c5c;
        let pair = |v: u64| vec![v as u32, (v >> 32) as u32];
        let asked = [
            vec![SCRATCH_RESOURCE; 4],
            pair(launch.packet),
            pair(0), // queue
            pair(launch.arguments),
            pair(0), // number of the dispatch
            pair(0), // flat scratch
            vec![launch.scratch],
        ];
        let asked = asked.into_iter().enumerate().filter(|(bit, _)| self.properties >> bit & 1 == 1);
        let user = asked.flat_map(|(_, values)| values).chain(self.preloaded.iter().copied());
        for (register, value) in user.enumerate() {
            wave.scalars[register] = value;
        }
        let mut next = (self.rsrc2 >> 1 & 31) as usize;
        for (bit, value) in [(7, id[0]), (8, id[1]), (9, id[2]), (10, 0), (0, 0)] {
            if self.rsrc2 >> bit & 1 == 1 {
                wave.scalars[next] = value;
                next += 1;
            }
        }
        for named in [scalar::M0, scalar::FLAT_SCRATCH, scalar::FLAT_SCRATCH + 1, scalar::VCC, scalar::VCC + 1] {
            wave.scalars[named as usize] = 0;
        }
        wave.scalars[scalar::EXEC as usize + 1] = 0;
    }
}
