//! What the compiler says about each entry, and how much of a multiprocessor it may have.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What one entry takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of registers that did not fit and are written to memory.
    pub spill_stores: u32,
    /// Bytes of those that are read back.
    pub spill_loads: u32,
    /// Bytes of a thread's stack: arrays that are indexed at run time, and spills.
    pub stack: u32,
    /// Bytes of static shared memory of a block.
    pub shared: u32,
    /// The most threads of a block.
    #[serde(default)]
    pub threads: u32,
    /// The blocks that are to run on a multiprocessor at a time; 0 where the source leaves that to the compiler.
    #[serde(default)]
    pub blocks: u32,
}

/// Registers of a multiprocessor, and the most that a thread can have.
const REGISTERS: u32 = 65536;
const MOST: u32 = 255;
/// The most registers of a thread where the source does not say how many blocks are to run at a time: they let a multiprocessor hold 16
/// warps, which it takes to keep its memory busy.
const UNDECLARED: u32 = 128;

/// Bytes that a thread of these kernels may have in memory on some architecture: what does not fit into registers is read between tiles or
/// rows, not for each element. `project_bwd_mma` takes all 255 and moves 2.97 TB/s on an H200; on Hopper it has 4 bytes, the others none.
/// `pre_norm_cluster_7` and `pre_cluster_7`, in f16 alone, keep 168 words of phi a thread in registers; `project_fwd_mma_8` needs its 12 in
/// f16 for sm_120.
const ALLOWED: &[(&str, u32)] = &[
    ("project_bwd_mma", 68),
    ("project_fwd_mma_8", 12),
    ("layer_bwd", 40),
    ("pre_norm_cluster_7", 8),
    ("pre_cluster_7", 8),
];

impl Resources {
    /// The registers that a thread may have.
    pub fn budget(&self) -> u32 {
        match self.blocks * self.threads {
            0 => UNDECLARED,
            threads => (REGISTERS / threads).min(MOST),
        }
    }

    /// In what the entry of this name goes beyond what it may take.
    pub fn excess(&self, name: &str) -> Option<String> {
        let Self { registers, spill_stores, spill_loads, threads, blocks, .. } = *self;
        let kernel = ALLOWED.iter().find(|(kernel, ..)| name.starts_with(&format!("mhc_{kernel}_")));
        if spill_stores.max(spill_loads) > kernel.map_or(0, |(_, bytes)| *bytes) {
            return Some(format!("{spill_stores} bytes of registers spilled, {spill_loads} read back"));
        }
        let declared = if blocks == 0 { String::new() } else { format!(" for {blocks} blocks of {threads} threads") };
        (registers > self.budget()).then(|| format!("{registers} registers of {}{declared}", self.budget()))
    }
}

/// The entries in the log of `--ptxas-options=-v`.
pub fn parse(log: &str) -> Result<BTreeMap<String, Resources>> {
    let mut entries: BTreeMap<String, Resources> = BTreeMap::new();
    let mut current = None;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Function properties for ") {
            current = Some(rest.trim().to_string());
            entries.entry(rest.trim().into()).or_default();
        }
        let Some(entry) = current.as_ref().and_then(|name| entries.get_mut(name)) else { continue };
        if line.contains("bytes spill stores") {
            entry.stack = before(line, "bytes stack frame")?;
            entry.spill_stores = before(line, "bytes spill stores")?;
            entry.spill_loads = before(line, "bytes spill loads")?;
        }
        if line.contains(" registers") {
            entry.registers = before(line, "registers")?;
            entry.shared = if line.contains("bytes smem") { before(line, "bytes smem")? } else { 0 };
        }
    }
    Ok(entries)
}

/// The number in front of `words`.
fn before(line: &str, words: &str) -> Result<u32> {
    let number = line.split(words).next().and_then(|head| head.split_whitespace().next_back());
    number.and_then(|n| n.parse().ok()).with_context(|| format!("no number before `{words}` in `{line}`"))
}

/// How an entry may be launched, as the assembly says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of its parameter.
    pub parameter: u32,
    /// As in [`Resources`].
    pub threads: u32,
    /// As in [`Resources`].
    pub blocks: u32,
}

/// The entries of NVIDIA's assembly.
pub fn bounds(ptx: &str) -> BTreeMap<String, Bounds> {
    let mut entries: BTreeMap<String, Bounds> = BTreeMap::new();
    let mut current = None;
    for line in ptx.lines().map(str::trim) {
        // .visible .entry mhc_post_fwd__bf16_n4_w32(
        if let Some((_, name)) = line.split_once(".entry ") {
            current = Some(name.trim_end_matches('(').to_string());
        }
        let Some(name) = &current else { continue };
        let entry = entries.entry(name.clone()).or_default();
        let first = |rest: &str| rest.split([',', ']']).next().and_then(|n| n.trim().parse().ok()).unwrap_or(0);
        // .param .align 8 .b8 mhc_post_fwd__bf16_n4_w32_param_0[136]
        if let Some((_, size)) = line.split_once("_param_0[").filter(|_| line.starts_with(".param")) {
            entry.parameter = first(size);
        } else if let Some(threads) = line.strip_prefix(".maxntid") {
            entry.threads = first(threads);
        } else if let Some(blocks) = line.strip_prefix(".minnctapersm") {
            entry.blocks = first(blocks);
        } else if line == "{" {
            current = None;
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_registers_spills_and_shared_memory() {
        let log = "ptxas info    : 0 bytes gmem\n\
                   ptxas info    : Compiling entry function 'a' for 'sm_90'\n\
                   ptxas info    : Function properties for a\n    \
                   24 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads\n\
                   ptxas info    : Used 40 registers, used 1 barriers, 24 bytes cumulative stack size, 4224 bytes smem\n\
                   ptxas info    : Compile time = 3.000 ms\n\
                   ptxas info    : Compiling entry function 'b' for 'sm_90'\n\
                   ptxas info    : Function properties for b\n    \
                   0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
                   ptxas info    : Used 255 registers, used 0 barriers\n";
        let entries = parse(log).unwrap();
        assert_eq!(
            entries["a"],
            Resources {
                registers: 40,
                spill_stores: 12,
                spill_loads: 16,
                stack: 24,
                shared: 4224,
                ..Default::default()
            }
        );
        assert_eq!(entries["b"], Resources { registers: 255, ..Default::default() });
    }

    #[test]
    fn reads_bounds() {
        let ptx = ".visible .entry a(\n\t.param .align 8 .b8 a_param_0[136]\n)\n.maxntid 256, 1, 1\n.minnctapersm 2\n{\n\
                   ld.param.u64 %rd1, [a_param_0];\n}\n\
                   .visible .entry b(\n\t.param .align 8 .b8 b_param_0[8]\n)\n.maxntid 64, 1, 1\n{\n}\n";
        let a = Bounds { parameter: 136, threads: 256, blocks: 2 };
        let b = Bounds { parameter: 8, threads: 64, blocks: 0 };
        assert_eq!(bounds(ptx), BTreeMap::from([("a".to_string(), a), ("b".to_string(), b)]));
    }

    #[test]
    fn an_entry_may_have_what_it_declares() {
        let entry = |registers, threads, blocks| Resources { registers, threads, blocks, ..Default::default() };
        assert_eq!(entry(128, 256, 0).excess("a"), None);
        assert_eq!(entry(129, 256, 0).excess("a").unwrap(), "129 registers of 128");
        assert_eq!(entry(168, 384, 1).excess("a"), None);
        assert_eq!(entry(171, 384, 1).excess("a").unwrap(), "171 registers of 170 for 1 blocks of 384 threads");
        assert_eq!(entry(255, 64, 1).excess("a"), None, "no thread can have more");
        let spilled = Resources { spill_stores: 8, spill_loads: 4, ..entry(40, 256, 1) };
        assert_eq!(spilled.excess("a").unwrap(), "8 bytes of registers spilled, 4 read back");
    }
}
