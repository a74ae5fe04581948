//! What is compiled, for which architectures, and how.

use mhc_core::{
    DType,
    gpu::{Entry, HEADERS, Source},
    ops,
};

/// What a tuned kernel uses: CDNA's products of matrices, of f32 and of bf16.
const MFMA: &str = "mfma";
/// RDNA's, of 16-bit numbers.
const WMMA: &str = "wmma";

const PROJECT_FWD: [&str; 3] = ["project_fwd_tiles_16", "project_fwd_tiles_32", "project_fwd_tiles_80"];

/// Sources that use what not every device has; `arch` of their entries says what. Plans find their kernels by name in
/// [`GpuCaps::tuned`](mhc_core::gpu::GpuCaps::tuned).
///
/// RDNA multiplies 16-bit numbers alone, so that its kernels are for bf16 streams: what is f32 becomes the sum of two or three numbers,
/// see the sources. f16 streams would want φ as f16, whose range is too small, and f32 streams more products than plain arithmetic takes.
const TUNED: &[Source] = &[
    Source {
        name: "project_fwd_mfma",
        text: include_str!("../../kernels/project_fwd_tiles.cuh"),
        entries: || using(MFMA, Entry::all(&PROJECT_FWD, &[0])),
    },
    Source {
        name: "project_fwd_wmma",
        text: include_str!("../../kernels/project_fwd_tiles.cuh"),
        entries: || using(WMMA, PROJECT_FWD.map(|kernel| Entry::new(kernel, DType::Bf16, 0)).to_vec()),
    },
    Source {
        name: "project_bwd_mfma",
        text: include_str!("../../kernels/project_bwd_tiles.cuh"),
        entries: || {
            let mut entries = Entry::all(&["project_bwd_tiles"], &[2, 4]);
            let wide = Entry::all(&["project_bwd_tiles_f32"], &[2, 4]);
            entries.extend(wide.into_iter().filter(|e| e.dtype != DType::F32));
            using(MFMA, entries)
        },
    },
    Source {
        name: "project_bwd_wmma",
        text: include_str!("../../kernels/project_bwd_wmma.cuh"),
        entries: || {
            let entries = Entry::all(&["project_bwd_tiles", "project_bwd_tiles_f32"], &[2, 4]);
            using(WMMA, entries.into_iter().filter(|e| e.dtype == DType::Bf16).collect())
        },
    },
];

fn using(arch: &'static str, entries: Vec<Entry>) -> Vec<Entry> {
    entries.into_iter().map(|e| Entry { arch, ..e }).collect()
}

/// The files that the tuned sources include besides those of all GPUs.
const TUNED_HEADERS: &[(&str, &str)] = &[
    ("matrix.cuh", include_str!("../../kernels/matrix.cuh")),
    ("project_d_x.cuh", include_str!("../../kernels/project_d_x.cuh")),
];

/// Every device source: the portable ones, and the tuned ones.
pub fn sources() -> impl Iterator<Item = &'static Source> {
    ops::SOURCES.iter().chain(TUNED)
}

/// The files that a source includes, by the name it uses, and their texts.
pub fn headers(source: &Source) -> Vec<(&'static str, &'static str)> {
    source.headers(&[HEADERS, TUNED_HEADERS].concat())
}

/// Whether a source runs on a target: portable ones on all, the others on those that are known to have what they use.
fn runs(source: &Source, target: &str) -> bool {
    let known = PORTABLE.contains(&target) || generic(target).is_some();
    match (source.entries)().first().map_or("", |e| e.arch) {
        MFMA => known && wave(target) == 64,
        WMMA => known && wave(target) == 32,
        _ => true,
    }
}

/// Architectures with images of their own, then the generic ones, which serve those of their family that have none.
const PORTABLE: [&str; 11] = [
    "gfx90a",
    "gfx942",
    "gfx950",
    "gfx1100",
    "gfx1101",
    "gfx1102",
    "gfx1200",
    "gfx1201",
    "gfx9-4-generic",
    "gfx11-generic",
    "gfx12-generic",
];

/// What a source is compiled for, as the compiler names it.
pub fn targets(source: &Source) -> Vec<String> {
    PORTABLE.into_iter().filter(|target| runs(source, target)).map(String::from).collect()
}

/// The lanes of a wave, as the device sources choose them: 64 on gfx9, 32 on whatever came later.
pub fn wave(target: &str) -> u32 {
    let number = target.strip_prefix("gfx").unwrap_or(target);
    let family = number.split('-').next().unwrap_or(number);
    // gfx942 and gfx9-4-generic, but not gfx1100: a number ends with the minor version and the stepping, one digit each.
    if family.starts_with('9') && family.len() <= 3 { 64 } else { 32 }
}

/// The generic target that serves an architecture.
pub fn generic(arch: &str) -> Option<&'static str> {
    Some(match arch {
        "gfx940" | "gfx941" | "gfx942" | "gfx950" => "gfx9-4-generic",
        _ if arch.starts_with("gfx110") || arch.starts_with("gfx115") => "gfx11-generic",
        _ if arch.starts_with("gfx120") => "gfx12-generic",
        _ => return None,
    })
}

/// The target whose code an architecture is given, where that of its family does the same: clang 22 writes for gfx942 what it writes
/// for gfx9-4-generic, byte for byte, and of gfx11 and gfx12 the generic targets leave out nothing that is used here.
pub fn code(target: &str) -> &str {
    match target {
        "gfx950" => target,
        _ => generic(target).unwrap_or(target),
    }
}

/// The family whose images are packed together.
pub fn family(target: &str) -> &'static str {
    match wave(target) {
        64 => "gfx9",
        _ if target.starts_with("gfx11") => "gfx11",
        _ => "gfx12",
    }
}

/// The version of the code object, which runtimes must know: 5 since ROCm 5.6; generic targets came with 6.
pub fn object_version(target: &str) -> u32 {
    if target.ends_with("-generic") { 6 } else { 5 }
}

/// The entries of the tuned sources that run on an architecture, with their sources.
pub fn tuned(arch: &str) -> Vec<(&'static str, Entry)> {
    let some = TUNED.iter().filter(|source| runs(source, arch));
    some.flat_map(|s| (s.entries)().into_iter().map(|e| (s.name, e))).collect()
}

/// The compiler's options for a target, which clang and hiprtc share. Products and sums of one expression are fused where it is written,
/// not wherever the optimiser sees them: the same source gives the same bits in every kernel it is a part of.
pub fn options(target: &str) -> Vec<String> {
    let architecture = format!("--offload-arch={target}");
    [&architecture, "-std=c++17", "-O3", "-ffp-contract=on"].map(String::from).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_are_those_of_the_family() {
        let wide = PORTABLE.into_iter().filter(|target| wave(target) == 64).collect::<Vec<_>>();
        assert_eq!(wide, ["gfx90a", "gfx942", "gfx950", "gfx9-4-generic"]);
        assert_eq!((wave("gfx1030"), wave("gfx908")), (32, 64));
    }

    #[test]
    fn tuned_kernels_are_for_those_who_have_what_they_use() {
        let has = |arch, kernel| tuned(arch).iter().any(|(_, e)| e.kernel == kernel);
        for arch in ["gfx90a", "gfx942", "gfx950"] {
            assert!(has(arch, "project_fwd_tiles_32") && has(arch, "project_bwd_tiles_f32"), "{arch}");
        }
        for arch in ["gfx1100", "gfx1151", "gfx1201"] {
            assert!(has(arch, "project_fwd_tiles_32") && has(arch, "project_bwd_tiles_f32"), "{arch}");
            assert!(tuned(arch).iter().all(|(_, e)| e.dtype == DType::Bf16), "{arch}");
        }
        for arch in ["gfx908", "gfx1030", "gfx1250"] {
            assert!(tuned(arch).is_empty(), "{arch}");
        }
    }

    #[test]
    fn generic_targets_are_compiled() {
        for target in PORTABLE.iter().filter_map(|arch| generic(arch)) {
            assert!(PORTABLE.contains(&target), "{target}");
        }
        for target in PORTABLE {
            assert!(PORTABLE.contains(&code(target)), "{target}");
            assert_eq!((wave(code(target)), family(code(target))), (wave(target), family(target)), "{target}");
        }
        assert_eq!((code("gfx1101"), code("gfx950"), code("gfx90a")), ("gfx11-generic", "gfx950", "gfx90a"));
        assert_eq!(generic("gfx1151"), Some("gfx11-generic"));
        assert_eq!([generic("gfx90a"), generic("gfx1250"), generic("gfx1030")], [None; 3]);
    }
}
