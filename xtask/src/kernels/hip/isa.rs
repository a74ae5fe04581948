//! Rules about machine code, `mhc-hip/kernels/isa.txt`: which instructions a kernel must have, and which it must not.

use anyhow::{Context, Result, ensure};

use super::assembly::Kernel;

/// The table.
#[derive(Debug)]
pub struct Rules(Vec<Rule>);

/// One line: of kernels on targets. Names are patterns: a star stands for any letters, and alternatives have a bar between them.
#[derive(Debug)]
struct Rule {
    kernels: String,
    targets: String,
    /// The most vector registers of a lane.
    vgprs: Option<u32>,
    /// The most bytes of shared memory of a block.
    lds: Option<u32>,
    /// Each of these must occur.
    must: Vec<String>,
    /// None of these may.
    never: Vec<String>,
    /// Where it stands.
    line: usize,
}

impl Rules {
    /// Six columns; a dash is nothing, a tilde a space, and `#` begins a comment.
    pub fn read(text: &str) -> Result<Self> {
        let mut rules = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let columns: Vec<&str> = text.split('#').next().unwrap_or_default().split_whitespace().collect();
            let &[kernels, targets, vgprs, lds, must, never] = &columns[..] else {
                ensure!(columns.is_empty(), "line {line} has {} columns instead of 6", columns.len());
                continue;
            };
            let number = |text: &str| match text {
                "-" => Ok(None),
                _ => text.parse().map(Some).with_context(|| format!("line {line}: {text}")),
            };
            let list = |text: &str| text.split(',').filter(|t| *t != "-").map(|t| t.replace('~', " ")).collect();
            let (kernels, targets) = (kernels.into(), targets.into());
            let (vgprs, lds) = (number(vgprs)?, number(lds)?);
            rules.push(Rule { kernels, targets, vgprs, lds, must: list(must), never: list(never), line });
        }
        ensure!(!rules.is_empty(), "no rules");
        Ok(Self(rules))
    }

    /// What an entry does against the rules, in words.
    pub fn broken(&self, kernel: &Kernel, target: &str) -> Vec<String> {
        // mhc_post_fwd__bf16_n4_w64
        let name = kernel.name.strip_prefix("mhc_").unwrap_or(&kernel.name);
        let rules = self.0.iter().filter(|r| any(&r.kernels, name) && any(&r.targets, target));
        rules
            .flat_map(|rule| {
                rule.broken(kernel)
                    .into_iter()
                    .map(|what| format!("{} for {target}: {what} (isa.txt, line {})", kernel.name, rule.line))
            })
            .collect()
    }
}

impl Rule {
    fn broken(&self, kernel: &Kernel) -> Vec<String> {
        let has = |pattern: &String| kernel.instructions.iter().find(|i| any(pattern, i));
        let taken = &kernel.resources;
        let limits = [("registers", taken.vgprs, self.vgprs), ("bytes of LDS", taken.lds, self.lds)];
        let over = limits.into_iter().filter_map(|(what, has, most)| {
            most.filter(|most| has > *most).map(|most| format!("{has} {what}, but at most {most} may be"))
        });
        let missing = self.must.iter().filter(|p| has(p).is_none()).map(|p| format!("there is no {p}"));
        let found = self.never.iter().filter_map(has).map(|i| format!("there is {i}"));
        over.chain(missing).chain(found).collect()
    }
}

/// Whether a text is what one of the alternatives says.
fn any(pattern: &str, text: &str) -> bool {
    pattern.split('|').any(|p| matches(p, text))
}

fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            let mut ends = rest.char_indices().map(|(i, _)| i).chain([rest.len()]);
            ends.any(|i| matches(tail, &rest[i..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{super::assembly, *};

    fn table() -> Rules {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mhc-hip/kernels/isa.txt");
        Rules::read(&std::fs::read_to_string(file).unwrap()).unwrap()
    }

    /// An entry with these instructions.
    fn kernel(name: &str, code: &str) -> Kernel {
        let text = assembly::tests::ASSEMBLY.replace("mhc_a", &format!("mhc_{name}__bf16_n4_w64"));
        let (head, rest) = text.split_once("; %bb.0:\n").unwrap();
        let tail = rest.split_once(".Lfunc_end0:").unwrap().1;
        let code = code.replace("; ", "\n\t");
        assembly::parse(&format!("{head}; %bb.0:\n\t{code}\n.Lfunc_end0:{tail}")).unwrap().remove(0)
    }

    #[test]
    fn stars_and_bars() {
        assert!(
            matches("global_load_*x4", "global_load_dwordx4") && !matches("global_load_*x4", "global_load_dwordx2")
        );
        assert!(matches("*", "") && matches("a*b*", "a-b-") && !matches("a*b", "a-b-"));
        assert!(any("x|v_mfma*", "v_mfma_f32_16x16x4_f32") && !any("x|v_wmma*", "v_mfma"));
        assert!(Rules::read("a b\n").is_err() && Rules::read("# nothing\n").is_err());
    }

    /// A stream kernel that keeps every rule, and one fault after the other.
    #[test]
    fn every_planted_fault_is_found() {
        let good =
            "global_load_dwordx4 v[0:3], v4, s[0:1]; v_add_f32_e32 v0, v1, v2; global_store_dwordx4 v4, v[0:3], s[0:1]";
        let said = |target: &str, name: &str, code: &str| table().broken(&kernel(name, code), target);
        assert_eq!(said("gfx942", "post_fwd", good), [""; 0]);
        assert_eq!(said("gfx942", "head_gates", "global_load_dword v0, v1, s[0:1]"), [""; 0], "no stream");
        let fault = |target: &str, name: &str, code: &str, what: &str| {
            let broken = said(target, name, code);
            assert!(broken.iter().any(|b| b.contains(what)), "{what}: {broken:?}");
        };
        let with = |more: &str| format!("{good}; {more}");
        fault("gfx942", "post_fwd", &good.replace("load_dwordx4", "load_dword"), "there is no global_load_");
        fault("gfx942", "post_fwd", &good.replace("store_dwordx4", "store_short"), "there is no global_store_");
        fault("gfx942", "post_fwd", &with("scratch_load_dword v0, off, s32"), "there is scratch_load_dword");
        fault("gfx942", "post_fwd", &with("global_atomic_add_f32 v0, v1, s[0:1]"), "there is global_atomic_add_f32");
        fault("gfx950", "post_bwd", &with("ds_bpermute_b32 v0, v1, v2"), "there is ds_bpermute_b32");
        fault("gfx942", "project_fwd_tiles_32", good, "there is no v_mfma");
        fault("gfx1100", "project_fwd_tiles_32", good, "there is no v_wmma");
    }

    /// A kernel whose blocks hand data to each other is to be written down with the fences that it needs.
    #[test]
    fn a_missing_fence_is_found() {
        let rules = Rules::read("grid_sum* gfx94* - - buffer_wbl2~sc1,buffer_inv~sc1 -\n").unwrap();
        let broken = |code: &str| rules.broken(&kernel("grid_sum", code), "gfx942");
        assert_eq!(broken("buffer_wbl2 sc1; buffer_inv sc1; s_endpgm"), [""; 0]);
        assert!(broken("buffer_wbl2 sc1; s_endpgm")[0].contains("there is no buffer_inv sc1"));
        assert!(broken("buffer_wbl2 sc0; buffer_inv sc1; s_endpgm")[0].contains("there is no buffer_wbl2 sc1"));
    }

    #[test]
    fn registers_and_shared_memory_have_ceilings() {
        let mut kernel = kernel("head_gates", "s_endpgm");
        let broken = |kernel: &Kernel, target| table().broken(kernel, target);
        assert_eq!(broken(&kernel, "gfx942"), [""; 0]);
        kernel.resources.vgprs = 257;
        assert!(broken(&kernel, "gfx942")[0].contains("257 registers"));
        kernel.resources.vgprs = 64;
        kernel.resources.lds = (64 << 10) + 4;
        assert!(broken(&kernel, "gfx942")[0].contains("65540 bytes of LDS"));
        assert_eq!(broken(&kernel, "gfx950"), [""; 0], "which has 160 KiB");
    }
}
