//! NVIDIA's run-time compiler, where it is there: `cargo xtask kernels` builds the embedded images with it, and a program may compile
//! for a device that none of them suits. Nothing needs it to run.

use core::{
    ffi::{c_char, c_int},
    fmt,
};
use std::path::{Path, PathBuf};

use libloading::Library;
pub use mhc_core::gpu::images::Unit;
use mhc_core::{
    Missing,
    gpu::images::{Code, Compiler, Output, Program},
};

/// A compiler that was loaded. It is never unloaded.
#[derive(Clone, Copy)]
pub struct Nvrtc {
    api: &'static Api,
}

/// What the compiler makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Machine code of one architecture.
    Cubin,
    /// NVIDIA's assembly, which a driver compiles for any architecture that is not older.
    Ptx,
}

/// A compiled unit.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The image.
    pub image: Vec<u8>,
    /// NVIDIA's assembly on the way to machine code, or the image itself: it says how each entry may be launched.
    pub assembly: String,
    /// Warnings, and with `--ptxas-options=-v` the resources of each entry.
    pub log: String,
}

macro_rules! api {
    ($($field:ident = $symbol:literal ( $($argument:ty),* ) -> $result:ty;)*) => {
        struct Api {
            $($field: unsafe extern "C" fn($($argument),*) -> $result,)*
            version: (c_int, c_int),
            path: PathBuf,
        }

        impl Api {
            fn bind(library: &Library, path: &Path) -> Result<Self, Missing> {
                $(
                    // SAFETY: NVRTC's header declares the function with this type, in every version from 11.1 on; the library is
                    // never unloaded, so that the address stays good.
                    let $field = unsafe { library.get::<unsafe extern "C" fn($($argument),*) -> $result>($symbol.as_bytes()) };
                    let $field = *$field.map_err(|_| Missing::Symbol {
                        library: path.display().to_string(),
                        symbol: $symbol.into(),
                    })?;
                )*
                Ok(Self { $($field,)* version: (0, 0), path: path.into() })
            }
        }
    };
}

api! {
    version_of = "nvrtcVersion"(*mut c_int, *mut c_int) -> Code;
    error_string = "nvrtcGetErrorString"(Code) -> *const c_char;
    create = "nvrtcCreateProgram"(*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> Code;
    destroy = "nvrtcDestroyProgram"(*mut Program) -> Code;
    compile = "nvrtcCompileProgram"(Program, c_int, *const *const c_char) -> Code;
    log_size = "nvrtcGetProgramLogSize"(Program, *mut usize) -> Code;
    log = "nvrtcGetProgramLog"(Program, *mut c_char) -> Code;
    ptx_size = "nvrtcGetPTXSize"(Program, *mut usize) -> Code;
    ptx = "nvrtcGetPTX"(Program, *mut c_char) -> Code;
    cubin_size = "nvrtcGetCUBINSize"(Program, *mut usize) -> Code;
    cubin = "nvrtcGetCUBIN"(Program, *mut c_char) -> Code;
}

impl Nvrtc {
    /// Loads the compiler from a file. [`Missing::Library`] or [`Missing::Symbol`] if it is not one.
    pub fn load(path: &Path) -> Result<Self, Missing> {
        Self::load_any(&[path.into()], "MHC_NVRTC names it and nothing else is tried")
    }

    /// Loads the compiler that `MHC_NVRTC` names, or else the first that the system's loader finds.
    pub fn find() -> Result<Self, Missing> {
        if let Some(path) = std::env::var_os("MHC_NVRTC").filter(|p| !p.is_empty()) {
            return Self::load(Path::new(&path));
        }
        let names: &[&str] = if cfg!(windows) {
            &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]
        } else {
            &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
        };
        let mut paths: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
        if let Some(home) = std::env::var_os("CUDA_HOME").or_else(|| std::env::var_os("CUDA_PATH")) {
            paths.extend(
                names.iter().map(|name| Path::new(&home).join(if cfg!(windows) { "bin" } else { "lib64" }).join(name)),
            );
        }
        Self::load_any(&paths, "install NVRTC (a part of the CUDA toolkit) or set MHC_NVRTC to its file")
    }

    fn load_any(paths: &[PathBuf], hint: &'static str) -> Result<Self, Missing> {
        for path in paths {
            load_builtins(path);
            // SAFETY: loading runs the library's initialisers, which is what a program that asks for NVRTC wants.
            let Ok(library) = (unsafe { Library::new(path) }) else { continue };
            let mut api = Api::bind(&library, path)?;
            core::mem::forget(library);
            // SAFETY: two places for ints.
            let code = unsafe { (api.version_of)(&mut api.version.0, &mut api.version.1) };
            if code != 0 {
                return Err(Missing::Driver { said: format!("nvrtcVersion failed with {code}") });
            }
            return Ok(Self { api: Box::leak(Box::new(api)) });
        }
        Err(Missing::Library { tried: paths.iter().map(|p| p.display().to_string()).collect(), hint })
    }

    /// Major and minor version: 12.9.
    pub fn version(&self) -> (i32, i32) {
        self.api.version
    }

    /// Compiles a unit. The error is the compiler's log.
    pub fn compile(&self, unit: Unit<'_>, options: &[String], format: Format) -> Result<Compiled, String> {
        let api = self.api;
        let log = Output { name: "GetProgramLog", size: api.log_size, get: api.log };
        let (name, error_string) = ("nvrtc", api.error_string);
        let compiler =
            Compiler { name, error_string, create: api.create, destroy: api.destroy, compile: api.compile, log };
        let ptx = Output { name: "GetPTX", size: api.ptx_size, get: api.ptx };
        let cubin = Output { name: "GetCUBIN", size: api.cubin_size, get: api.cubin };
        let outputs: &[Output] = if format == Format::Cubin { &[ptx, cubin] } else { &[ptx] };
        // SAFETY: the functions have the types of NVRTC's header, and the library stays.
        let (mut made, log) = unsafe { compiler.run(unit, options, outputs)? };
        let assembly = made.first().map(|ptx| String::from_utf8_lossy(ptx).trim_end_matches('\0').to_string());
        Ok(Compiled { image: made.pop().unwrap_or_default(), assembly: assembly.unwrap_or_default(), log })
    }
}

impl fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NVRTC {}.{} from {}", self.api.version.0, self.api.version.1, self.api.path.display())
    }
}

/// Loads the compiler's second library from the same folder, because that of CUDA 13.0 does not look for it there by itself.
fn load_builtins(nvrtc: &Path) {
    let Some(folder) = nvrtc.parent().filter(|p| p.is_absolute()) else { return };
    let Ok(files) = std::fs::read_dir(folder) else { return };
    for file in files.flatten() {
        if file.file_name().to_string_lossy().starts_with("libnvrtc-builtins.so") {
            // SAFETY: part of the compiler, which the caller wants; without functions that run when it is loaded.
            if let Ok(library) = unsafe { Library::new(file.path()) } {
                core::mem::forget(library);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_named() {
        let Err(Missing::Library { tried, .. }) = Nvrtc::load(Path::new("/nowhere/libnvrtc.so")) else { panic!() };
        assert_eq!(tried, ["/nowhere/libnvrtc.so"]);
    }

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn another_library_is_not_taken_for_the_compiler() {
        let error = Nvrtc::load(Path::new("libm.so.6")).unwrap_err();
        assert!(matches!(error, Missing::Symbol { symbol, .. } if symbol == "nvrtcVersion"));
    }
}
