//! What the assembler says about each entry.

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

/// The bytes of each entry's parameter, from NVIDIA's assembly.
pub fn parameter_bytes(ptx: &str) -> BTreeMap<String, u32> {
    let mut sizes = BTreeMap::new();
    for line in ptx.lines() {
        // .param .align 8 .b8 mhc_post_fwd__bf16_n4_w32_param_0[136]
        let Some((name, size)) = line.split_once("_param_0[") else { continue };
        if line.trim_start().starts_with(".param")
            && let (Some(name), Some(size)) = (name.split_whitespace().next_back(), size.split(']').next())
            && let Ok(size) = size.parse()
        {
            sizes.insert(name.into(), size);
        }
    }
    sizes
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
            Resources { registers: 40, spill_stores: 12, spill_loads: 16, stack: 24, shared: 4224 }
        );
        assert_eq!(entries["b"], Resources { registers: 255, ..Default::default() });
    }

    #[test]
    fn reads_parameters() {
        let ptx = ".visible .entry a(\n\t.param .align 8 .b8 a_param_0[136]\n)\n{\nld.param.u64 %rd1, [a_param_0];\n}";
        assert_eq!(parameter_bytes(ptx), BTreeMap::from([("a".to_string(), 136)]));
    }
}
