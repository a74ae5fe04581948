//! What is compiled, for which architectures, and how.

use mhc_core::{
    gpu::{Entry, HEADERS, Source},
    ops,
};

/// Every device source: the portable ones.
pub fn sources() -> impl Iterator<Item = &'static Source> {
    ops::SOURCES.iter()
}

/// The files that a source includes, by the name it uses, and their texts.
pub fn headers(source: &Source) -> Vec<(&'static str, &'static str)> {
    source.headers(HEADERS)
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
pub fn targets(_: &Source) -> Vec<String> {
    PORTABLE.map(String::from).to_vec()
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

/// The entries of the tuned sources that run on an architecture, with their sources.
pub fn tuned(_: &str) -> Vec<(&'static str, Entry)> {
    Vec::new()
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
    fn generic_targets_are_compiled() {
        for target in PORTABLE.iter().filter_map(|arch| generic(arch)) {
            assert!(PORTABLE.contains(&target), "{target}");
        }
        assert_eq!(generic("gfx1151"), Some("gfx11-generic"));
        assert_eq!([generic("gfx90a"), generic("gfx1250"), generic("gfx1030")], [None; 3]);
    }
}
