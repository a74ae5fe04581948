//! AMD's run-time compiler, where it is there: for devices that no embedded image suits.

use core::{
    ffi::{c_char, c_int},
    fmt,
};
use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use libloading::Library;
use mhc_core::{
    Missing,
    gpu::images::{Code, Compiler, Output, Program, Unit},
};

use crate::library::{Search, symbol};

/// A compiler that was loaded. It is never unloaded.
#[derive(Clone)]
pub(crate) struct Hiprtc {
    compiler: Compiler,
    code: Output,
    path: PathBuf,
}

impl Hiprtc {
    /// The compiler of this process: what `MHC_HIPRTC` names and nothing else; else the library of its own that HIP has since version 6,
    /// or the runtime, whose part it was before.
    pub fn find() -> Result<&'static Self, Missing> {
        static FOUND: OnceLock<Result<Hiprtc, Missing>> = OnceLock::new();
        FOUND.get_or_init(|| Self::load(&Search::from_env().compilers())).as_ref().map_err(Clone::clone)
    }

    fn load(paths: &[PathBuf]) -> Result<Self, Missing> {
        let mut lacking = None;
        for path in paths {
            // SAFETY: loading runs the library's initialisers, which is what a program that asks for hiprtc wants.
            let Ok(library) = (unsafe { Library::new(path) }) else { continue };
            let bound = Self::bind(&library, path);
            // As the runtime, it does not survive being loaded twice.
            core::mem::forget(library);
            match bound {
                Ok(found) => return Ok(found),
                Err(missing) => lacking = lacking.or(Some(missing)),
            }
        }
        let tried = paths.iter().map(|p| p.display().to_string()).collect();
        Err(lacking.unwrap_or(Missing::Library {
            tried,
            hint: "install hiprtc (a part of ROCm) or set MHC_HIPRTC to its file",
        }))
    }

    fn bind(library: &Library, path: &Path) -> Result<Self, Missing> {
        let file = path.display().to_string();
        type Strings = *const *const c_char;
        macro_rules! find {
            ($name:literal: $($argument:ty),* => $result:ty) => {
                // SAFETY: hiprtc's header declares the function with this type in every version from 5 to 7; the library stays.
                unsafe { symbol::<unsafe extern "C" fn($($argument),*) -> $result>(library, &file, $name) }?
            };
        }
        let log = Output {
            name: "GetProgramLog",
            size: find!("hiprtcGetProgramLogSize": Program, *mut usize => Code),
            get: find!("hiprtcGetProgramLog": Program, *mut c_char => Code),
        };
        let code = Output {
            name: "GetCode",
            size: find!("hiprtcGetCodeSize": Program, *mut usize => Code),
            get: find!("hiprtcGetCode": Program, *mut c_char => Code),
        };
        let compiler = Compiler {
            name: "hiprtc",
            error_string: find!("hiprtcGetErrorString": Code => *const c_char),
            create: find!("hiprtcCreateProgram": *mut Program, *const c_char, *const c_char, c_int, Strings, Strings => Code),
            destroy: find!("hiprtcDestroyProgram": *mut Program => Code),
            compile: find!("hiprtcCompileProgram": Program, c_int, Strings => Code),
            log,
        };
        Ok(Self { compiler, code, path: path.into() })
    }

    /// Compiles a unit into a code object. The error has the compiler's words.
    pub fn compile(&self, unit: Unit<'_>, options: &[String]) -> Result<Vec<u8>, String> {
        // SAFETY: the functions have the types of hiprtc's header, and the library stays.
        let (mut made, _) = unsafe { self.compiler.run(unit, options, &[self.code])? };
        Ok(made.pop().unwrap_or_default())
    }
}

impl fmt::Debug for Hiprtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hiprtc from {}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_named() {
        let missing = Hiprtc::load(&["/nowhere/libhiprtc.so".into()]).unwrap_err();
        let Missing::Library { tried, .. } = missing else { panic!("{missing}") };
        assert_eq!(tried, ["/nowhere/libhiprtc.so"]);
    }

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn another_library_is_not_taken_for_the_compiler() {
        let missing = Hiprtc::load(&["libm.so.6".into()]).unwrap_err();
        assert!(matches!(&missing, Missing::Symbol { symbol, .. } if symbol.starts_with("hiprtc")), "{missing}");
    }
}
