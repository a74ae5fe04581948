//! The functions of AMD's runtime, declared by hand and resolved at run time. Error codes are plain integers, so that a code that a
//! newer runtime invents is a value like any other.

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};

use libloading::Library;
use mhc_core::Missing;

use crate::library::Search;

/// A result of the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Code(pub c_int);

impl Code {
    pub const SUCCESS: Code = Code(0);
    pub const NO_DEVICE: Code = Code(100);
    /// What hipInit of ROCm 5 says where there is no device.
    pub const INVALID_DEVICE: Code = Code(101);
}

/// Numbers of hipDeviceAttribute_t, the same in HIP 5 to 7.
pub(crate) mod attribute {
    use core::ffi::c_int;
    pub const MAX_THREADS_PER_BLOCK: c_int = 56;
    pub const MULTIPROCESSOR_COUNT: c_int = 63;
    pub const MAX_SHARED_MEMORY_PER_BLOCK: c_int = 74;
    pub const WARP_SIZE: c_int = 87;
}

type Properties = unsafe extern "C" fn(*mut c_void, c_int) -> Code;

macro_rules! api {
    ($($field:ident = $symbol:literal ( $($argument:ty),* ) -> $result:ty;)*) => {
        /// The loaded runtime.
        #[derive(Debug)]
        pub(crate) struct Api {
            $(pub $field: unsafe extern "C" fn($($argument),*) -> $result,)*
            /// hipGetDeviceProperties in the version that is there, and where in its structure the architecture's name begins.
            pub properties: (Properties, usize),
            /// The file it was loaded from.
            pub path: String,
        }

        impl Api {
            fn bind(library: &Library, path: String) -> Result<Self, Missing> {
                Ok(Self {
                    $($field: symbol(library, &path, $symbol)?,)*
                    properties: match symbol(library, &path, "hipGetDevicePropertiesR0600") {
                        Ok(function) => (function, 1160),
                        Err(_) => (symbol(library, &path, "hipGetDeviceProperties")?, 396),
                    },
                    path,
                })
            }
        }
    };
}

api! {
    init = "hipInit"(c_uint) -> Code;
    runtime_version = "hipRuntimeGetVersion"(*mut c_int) -> Code;
    device_count = "hipGetDeviceCount"(*mut c_int) -> Code;
    device_name = "hipDeviceGetName"(*mut c_char, c_int, c_int) -> Code;
    device_attribute = "hipDeviceGetAttribute"(*mut c_int, c_int, c_int) -> Code;
    total_memory = "hipDeviceTotalMem"(*mut usize, c_int) -> Code;
    error_name = "hipGetErrorName"(Code) -> *const c_char;
}

fn symbol<T: Copy>(library: &Library, path: &str, name: &str) -> Result<T, Missing> {
    // SAFETY: the runtime's header declares these functions with the types written above, in every version from 5 to 7; the library
    // is never unloaded, so the address stays good.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found.map(|f| *f).map_err(|_| Missing::Symbol { library: path.into(), symbol: name.into() })
}

impl Api {
    /// The first library of the list that opens. [`Missing::Library`] with what each one said, [`Missing::Symbol`] if it is not HIP.
    pub fn load(search: &Search) -> Result<Self, Missing> {
        let mut tried = Vec::new();
        for path in search.candidates() {
            // SAFETY: loading runs the library's initialisers, which is what a program that asks for HIP wants.
            match unsafe { Library::new(&path) } {
                Ok(library) => {
                    let api = Self::bind(&library, path.display().to_string());
                    // Unloading a ROCm library and loading it again aborts the process, whether or not its functions were all there.
                    core::mem::forget(library);
                    return api;
                }
                Err(_) => tried.push(path.display().to_string()),
            }
        }
        let hint = if search.library.is_some() {
            "MHC_HIP_LIBRARY names it and nothing else is tried"
        } else {
            "install AMD's driver and HIP runtime (ROCm 6 or 7), or set ROCM_PATH or MHC_HIP_LIBRARY"
        };
        Err(Missing::Library { tried, hint })
    }

    /// The runtime's name for a code, with its number.
    pub fn name(&self, code: Code) -> String {
        // SAFETY: takes any code; returns a string that lives as long as the library, or null.
        let name = unsafe { (self.error_name)(code) };
        if name.is_null() {
            return format!("error {}", code.0);
        }
        // SAFETY: not null, and terminated as the header says.
        format!("{} ({})", unsafe { CStr::from_ptr(name) }.to_string_lossy(), code.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_library_that_is_not_there_is_the_only_one_tried() {
        let search = Search { library: Some("/nowhere/libamdhip64.so".into()), roots: vec!["/opt/rocm".into()] };
        let missing = Api::load(&search).unwrap_err();
        let said = missing.to_string();
        assert!(said.contains("none of /nowhere/libamdhip64.so was found"), "{said}");
        assert!(said.contains("MHC_HIP_LIBRARY"), "{said}");
    }

    /// The C library is a library without HIP's functions on every Linux.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_library_that_is_not_hip_is_told_by_its_first_missing_function() {
        let search = Search { library: Some("libc.so.6".into()), roots: Vec::new() };
        let missing = Api::load(&search).unwrap_err();
        assert_eq!(missing, Missing::Symbol { library: "libc.so.6".into(), symbol: "hipInit".into() });
    }
}
