//! Where AMD's libraries are looked for.

use std::path::{Path, PathBuf};

use libloading::Library;
use mhc_core::Missing;

/// What the environment says about where ROCm is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Search {
    /// `MHC_HIP_LIBRARY`: this file and no other.
    pub library: Option<PathBuf>,
    /// `MHC_HIPRTC`: this file and no other.
    pub compiler: Option<PathBuf>,
    /// `ROCM_PATH`, `HIP_PATH`: installations that come before the loader's own search.
    pub roots: Vec<PathBuf>,
    /// Where ROCm may be although nothing says so, after the loader's own search.
    pub usual: Vec<PathBuf>,
}

/// Versions by which libraries are asked for, the newest that was seen first. Folders are looked through for newer ones.
const VERSIONS: [u32; 2] = [7, 6];

/// What a library's files are called.
struct Files {
    /// `libamdhip64.so`.
    plain: &'static str,
    /// With a version: `libamdhip64.so.7`.
    versioned: fn(u32) -> String,
}

const RUNTIME: Files = if cfg!(windows) {
    Files { plain: "amdhip64.dll", versioned: |v| format!("amdhip64_{v}.dll") }
} else {
    Files { plain: "libamdhip64.so", versioned: |v| format!("libamdhip64.so.{v}") }
};

const COMPILER: Files = if cfg!(windows) {
    Files { plain: "hiprtc.dll", versioned: |v| format!("hiprtc{v:02}00.dll") }
} else {
    Files { plain: "libhiprtc.so", versioned: |v| format!("libhiprtc.so.{v}") }
};

impl Files {
    fn names(&self) -> impl Iterator<Item = PathBuf> {
        let versioned = VERSIONS.into_iter().map(self.versioned).map(PathBuf::from);
        versioned.chain([self.plain.into()])
    }

    /// The files to try in a folder of libraries: every version that is there, the newest first, and the plain name.
    fn within(&self, folder: &Path) -> Vec<PathBuf> {
        let version = |file: std::fs::DirEntry| {
            let name = file.file_name().into_string().ok()?;
            name.strip_prefix(self.plain)?.strip_prefix('.')?.parse::<u32>().ok()
        };
        let mut versions: Vec<u32> =
            std::fs::read_dir(folder).into_iter().flatten().flatten().filter_map(version).collect();
        versions.extend(VERSIONS);
        versions.sort_unstable_by(|a, b| b.cmp(a));
        versions.dedup();
        let versioned = versions.into_iter().map(|v| folder.join((self.versioned)(v)));
        versioned.chain([folder.join(self.plain)]).collect()
    }
}

impl Search {
    /// Reads the environment. Empty variables count as unset.
    pub fn from_env() -> Self {
        let path = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        Self {
            library: path("MHC_HIP_LIBRARY"),
            compiler: path("MHC_HIPRTC"),
            roots: ["ROCM_PATH", "HIP_PATH"].into_iter().filter_map(path).collect(),
            usual: if cfg!(windows) { Vec::new() } else { usual(path("VIRTUAL_ENV").as_deref()) },
        }
    }

    /// Every file to try for the runtime, in order. A library that was named is tried alone: falling back silently would answer for
    /// another one.
    pub fn candidates(&self) -> Vec<PathBuf> {
        self.library.clone().map_or_else(|| self.everywhere(&RUNTIME), |named| vec![named])
    }

    /// Every file to try for the compiler: one that was named alone; else those beside a runtime that was named, those of every place,
    /// and the runtime itself, which had the compiler before HIP 7.
    pub fn compilers(&self) -> Vec<PathBuf> {
        if let Some(named) = &self.compiler {
            return vec![named.clone()];
        }
        let beside = self.library.as_deref().and_then(Path::parent).filter(|p| p.is_absolute());
        let mut list = beside.map_or_else(Vec::new, |folder| COMPILER.within(folder));
        list.extend(self.everywhere(&COMPILER));
        list.extend(self.candidates());
        list
    }

    fn everywhere(&self, files: &Files) -> Vec<PathBuf> {
        let in_root = |root: &PathBuf| files.within(&root.join(if cfg!(windows) { "bin" } else { "lib" }));
        let named = self.roots.iter().flat_map(in_root);
        named.chain(files.names()).chain(self.usual.iter().flat_map(in_root)).collect()
    }
}

/// AMD's own place, and the Python package of the virtual environment that is active.
fn usual(environment: Option<&Path>) -> Vec<PathBuf> {
    let pythons = environment.map(|e| std::fs::read_dir(e.join("lib"))).into_iter().flatten().flatten().flatten();
    let packages = pythons.map(|python| python.path().join("site-packages/_rocm_sdk_core"));
    [PathBuf::from("/opt/rocm")].into_iter().chain(packages.filter(|p| p.is_dir())).collect()
}

/// A function of a library.
///
/// # Safety
/// `T` is the type of a function pointer, and the function of this name has that type. The library is never unloaded.
pub(crate) unsafe fn symbol<T: Copy>(library: &Library, path: &str, name: &str) -> Result<T, Missing> {
    // SAFETY: the caller's promise.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found.map(|f| *f).map_err(|_| Missing::Symbol { library: path.into(), symbol: name.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_library_is_tried_alone() {
        let search = Search {
            library: Some("/a/libamdhip64.so".into()),
            compiler: Some("/a/libhiprtc.so".into()),
            roots: vec!["/b".into()],
            usual: vec!["/c".into()],
        };
        assert_eq!(search.candidates(), [PathBuf::from("/a/libamdhip64.so")]);
        assert_eq!(search.compilers(), [PathBuf::from("/a/libhiprtc.so")]);
    }

    #[test]
    #[cfg(not(windows))]
    fn named_installations_come_first_then_the_loader_then_the_usual_place() {
        let search = Search { roots: vec!["/b".into()], usual: vec!["/c".into()], ..Search::default() };
        let list = search.candidates();
        let at = |p: &str| list.iter().position(|c| c.as_os_str() == p).unwrap();
        assert!(at("/b/lib/libamdhip64.so.7") < at("/b/lib/libamdhip64.so.6"));
        assert!(at("/b/lib/libamdhip64.so") < at("libamdhip64.so.7"));
        assert!(at("libamdhip64.so") < at("/c/lib/libamdhip64.so.7"));
    }

    #[test]
    #[cfg(not(windows))]
    fn the_compiler_is_looked_for_beside_the_runtime_and_at_last_in_it() {
        let search = Search { library: Some("/a/libamdhip64.so.6".into()), ..Search::default() };
        let list = search.compilers();
        assert_eq!(list.first(), Some(&"/a/libhiprtc.so.7".into()));
        assert_eq!(list.last(), Some(&"/a/libamdhip64.so.6".into()));
    }

    #[test]
    #[cfg(not(windows))]
    fn versions_newer_than_this_are_found_in_folders() {
        let folder = std::env::temp_dir().join(format!("mhc-hip-test-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["libamdhip64.so.10", "libamdhip64.so.10.1.0", "libamdhip64.so.7", "libamdhip64.so.text"] {
            std::fs::write(folder.join(name), "").unwrap();
        }
        let names: Vec<_> = RUNTIME.within(&folder).iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        std::fs::remove_dir_all(folder).unwrap();
        assert_eq!(names, ["libamdhip64.so.10", "libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so"]);
    }
}
