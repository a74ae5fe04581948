//! Assembly for AMDGCN as clang writes it: the same instructions as in the machine code, before they are encoded, with the metadata that
//! the runtime reads.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use super::{Mix, Resources};

/// One entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Bytes of its parameter.
    pub parameter: u32,
    /// What it takes.
    pub resources: Resources,
    /// Every instruction in it, by name; those that write back or invalidate caches with how far they reach: `buffer_inv sc1`.
    pub instructions: BTreeSet<String>,
}

/// The entries, by name.
pub fn parse(assembly: &str) -> Result<Vec<Kernel>> {
    let (code, metadata) = assembly.split_once(".amdgpu_metadata").context("assembly without metadata")?;
    let mut kernels = metadata_of(metadata)?;
    // The entry that a line belongs to, and whether its code has ended: what clang says about it follows.
    let (mut current, mut ended) = (String::new(), false);
    for line in code.lines() {
        let label = line.split_once(':').map(|(label, _)| label).filter(|_| !line.starts_with(['\t', ' ', ';']));
        if let Some(label) = label {
            if label.starts_with(".Lfunc_end") {
                ended = true;
            } else if kernels.contains_key(label) {
                (current, ended) = (label.into(), false);
            }
        }
        let Some(kernel) = kernels.get_mut(&current) else { continue };
        if let Some(waves) = line.strip_prefix("; Occupancy:").filter(|_| ended) {
            kernel.resources.waves = waves.trim().parse().with_context(|| line.to_string())?;
        }
        let instruction = line.strip_prefix('\t').map_or("", |l| l.split(';').next().unwrap_or_default().trim());
        if !ended && !instruction.is_empty() && !instruction.starts_with('.') {
            count(kernel, instruction);
        }
    }
    let empty = kernels.values().find(|k| k.instructions.is_empty() || k.resources.waves == 0);
    ensure!(empty.is_none(), "no code or no occupancy of {empty:?}");
    Ok(kernels.into_values().collect())
}

/// The list `amdhsa.kernels`: each kernel's fields behind four columns, the first of them behind a dash.
fn metadata_of(metadata: &str) -> Result<BTreeMap<String, Kernel>> {
    let list = metadata.split_once("amdhsa.kernels:").context("metadata without kernels")?.1;
    // Other lists follow.
    let list = list.split_once("\namdhsa.").map_or(list, |(list, _)| list);
    let mut kernels = BTreeMap::new();
    for text in list.split("\n  - ").skip(1) {
        let lines = text.lines().map(|line| line.strip_prefix("    ").unwrap_or(line));
        let fields = lines.filter_map(|line| line.strip_prefix('.')?.split_once(':'));
        let fields: BTreeMap<&str, &str> = fields.map(|(name, value)| (name, value.trim())).collect();
        let number = |name: &str| -> Result<u32> {
            let value = fields.get(name).with_context(|| format!("no {name} in\n{text}"))?;
            value.parse().with_context(|| format!("{name}: {value}"))
        };
        let name = fields.get("name").context("an entry without a name")?.to_string();
        // The first argument is the entry's own; behind it are those that the runtime adds.
        let size = text.lines().find_map(|line| line.trim().strip_prefix(".size:"));
        let size = size.with_context(|| format!("{name} has no arguments"))?;
        let parameter = size.trim().parse().with_context(|| format!("the size of {name}'s parameter"))?;
        let resources = Resources {
            vgprs: number("vgpr_count")?,
            sgprs: number("sgpr_count")?,
            lds: number("group_segment_fixed_size")?,
            scratch: number("private_segment_fixed_size")?,
            spills: number("vgpr_spill_count")?,
            threads: number("max_flat_workgroup_size")?,
            ..Resources::default()
        };
        kernels.insert(name.clone(), Kernel { name, parameter, resources, instructions: BTreeSet::new() });
    }
    Ok(kernels)
}

fn count(kernel: &mut Kernel, instruction: &str) {
    let (name, operands) = instruction.split_once([' ', '\t']).unwrap_or((instruction, ""));
    let is = |prefixes: &[&str]| prefixes.iter().any(|p| name.starts_with(p));
    let mix: &mut Mix = &mut kernel.resources.mix;
    if is(&["v_mfma", "v_wmma"]) {
        mix.matrix += 1;
    } else if is(&["v_"]) {
        mix.vector += 1;
    } else if is(&["s_"]) {
        mix.scalar += 1;
    } else if is(&["ds_"]) {
        mix.local += 1;
    } else if is(&["global_load", "global_store", "flat_", "buffer_load", "buffer_store", "scratch_"]) {
        mix.memory += 1;
        mix.wide += u32::from(name.ends_with("x4") || name.ends_with("b128"));
    }
    let reaches = is(&["buffer_wb", "buffer_inv", "buffer_gl", "global_wb", "global_inv"]);
    let text = if reaches { format!("{name} {}", operands.trim()) } else { name.into() };
    kernel.instructions.insert(text.trim().into());
}

/// Assembly for `code` as that for another target of its family that runs the same instructions.
pub fn retarget(assembly: &str, code: &str, target: &str, version: u32) -> Result<String> {
    const VERSION: &str = ".amdhsa_code_object_version ";
    let mut named = 0;
    let mut out = String::with_capacity(assembly.len());
    for line in assembly.lines() {
        if line.trim_start().starts_with(VERSION) {
            named += 1;
            out += &format!("\t{VERSION}{version}");
        } else if line.contains(".amdgcn_target ") || line.starts_with("amdhsa.target:") {
            named += 1;
            out += &line.replace(&format!("--{code}"), &format!("--{target}"));
        } else {
            out += line;
        }
        out.push('\n');
    }
    ensure!(named == 3, "{named} lines name the target or the version instead of 3");
    Ok(out)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub const ASSEMBLY: &str = "\t.amdgcn_target \"amdgcn-amd-amdhsa--gfx11-generic\"
\t.amdhsa_code_object_version 6
mhc_a:                      ; @mhc_a
; %bb.0:
\ts_load_b128 s[0:3], s[4:5], 0x20
\tglobal_load_b128 v[0:3], v4, s[0:1] offset:16
\tv_dual_add_f32 v0, v1, v2 :: v_dual_mov_b32 v3, 0
.LBB0_1:                                ; %loop
\tv_wmma_f32_16x16x16_bf16 v[0:7], v[8:15], v[16:23], v[0:7]
\tds_load_b32 v0, v1
\tbuffer_wbl2 sc1
\tglobal_store_b32 v4, v0, s[0:1]
\ts_endpgm
.Lfunc_end0:
\t.size\tmhc_a, .Lfunc_end0-mhc_a
; Occupancy: 10
\t.amdgpu_metadata
---
amdhsa.kernels:
  - .args:
      - .offset:         0
        .size:           72
        .value_kind:     by_value
      - .offset:         72
        .size:           4
    .group_segment_fixed_size: 512
    .max_flat_workgroup_size: 256
    .name:           mhc_a
    .private_segment_fixed_size: 0
    .sgpr_count:     20
    .vgpr_count:     26
    .vgpr_spill_count: 0
amdhsa.target:   amdgcn-amd-amdhsa--gfx11-generic
amdhsa.version:
  - 1
  - 2
";

    #[test]
    fn reads_what_an_entry_takes_and_does() {
        let kernels = parse(ASSEMBLY).unwrap();
        let mix = Mix { vector: 1, matrix: 1, scalar: 2, memory: 2, wide: 1, local: 1 };
        let resources =
            Resources { vgprs: 26, sgprs: 20, lds: 512, scratch: 0, spills: 0, threads: 256, waves: 10, mix };
        assert_eq!(kernels.len(), 1);
        assert_eq!((kernels[0].name.as_str(), kernels[0].parameter), ("mhc_a", 72));
        assert_eq!(kernels[0].resources, resources);
        assert!(kernels[0].instructions.contains("buffer_wbl2 sc1"), "{:?}", kernels[0].instructions);
        assert!(parse(&ASSEMBLY.replace("; Occupancy: 10\n", "")).is_err(), "what is not read is an error");
    }

    #[test]
    fn only_the_target_and_the_version_change() {
        let other = retarget(ASSEMBLY, "gfx11-generic", "gfx1101", 5).unwrap();
        assert_eq!(other.matches("gfx1101").count(), 2);
        assert!(!other.contains("generic") && other.contains(".amdhsa_code_object_version 5\n"));
        assert_eq!(parse(&other).unwrap(), parse(ASSEMBLY).unwrap());
        assert!(retarget("", "gfx11-generic", "gfx1101", 5).is_err());
    }
}
