//! Where the runtime is looked for.

use std::path::PathBuf;

/// File names, newest first. Version 5 exports another property structure, but its plain name still serves.
const NAMES: [&str; 3] = if cfg!(windows) {
    ["amdhip64_7.dll", "amdhip64_6.dll", "amdhip64.dll"]
} else {
    ["libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so"]
};

/// What the environment says about where ROCm is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Search {
    /// `MHC_HIP_LIBRARY`: this file and no other.
    pub library: Option<PathBuf>,
    /// `ROCM_PATH`, `HIP_PATH`: installations that come before the loader's own search.
    pub roots: Vec<PathBuf>,
}

impl Search {
    /// Reads the environment. Empty variables count as unset.
    pub fn from_env() -> Self {
        let path = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        Self {
            library: path("MHC_HIP_LIBRARY"),
            roots: ["ROCM_PATH", "HIP_PATH"].into_iter().filter_map(path).collect(),
        }
    }

    /// Every file to try, in order. A library that was named is tried alone: falling back silently would answer for another one.
    pub fn candidates(&self) -> Vec<PathBuf> {
        if let Some(library) = &self.library {
            return vec![library.clone()];
        }
        let in_root = |root: PathBuf| NAMES.map(|name| root.join(if cfg!(windows) { "bin" } else { "lib" }).join(name));
        let mut list: Vec<PathBuf> = self.roots.iter().cloned().flat_map(in_root).collect();
        list.extend(NAMES.map(PathBuf::from));
        if !cfg!(windows) {
            list.extend(in_root("/opt/rocm".into()));
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_library_is_tried_alone() {
        let search = Search { library: Some("/a/libamdhip64.so".into()), roots: vec!["/b".into()] };
        assert_eq!(search.candidates(), [PathBuf::from("/a/libamdhip64.so")]);
    }

    #[test]
    #[cfg(not(windows))]
    fn named_installations_come_first_then_the_loader_then_the_default_place() {
        let list = Search { library: None, roots: vec!["/b".into()] }.candidates();
        let at = |p: &str| list.iter().position(|c| c.as_os_str() == p).unwrap();
        assert!(at("/b/lib/libamdhip64.so.7") < at("/b/lib/libamdhip64.so.6"));
        assert!(at("/b/lib/libamdhip64.so") < at("libamdhip64.so.7"));
        assert!(at("libamdhip64.so") < at("/opt/rocm/lib/libamdhip64.so.7"));
    }
}
