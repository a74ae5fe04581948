//! The functions of AMD's runtime, declared by hand and resolved at run time. Error codes are plain integers, so that a code that a
//! newer runtime invents is a value like any other.

use core::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

use libloading::Library;
use mhc_core::{Error, Missing, Result, gpu::vendor::Handle};

use crate::{
    library::{Search, symbol},
    memory::PoolProperties,
};

/// A result of the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Code(pub c_int);

impl Code {
    pub const SUCCESS: Code = Code(0);
    pub const OUT_OF_MEMORY: Code = Code(2);
    pub const NO_DEVICE: Code = Code(100);
    /// What hipInit of ROCm 5 says where there is no device.
    pub const INVALID_DEVICE: Code = Code(101);
    pub const INVALID_IMAGE: Code = Code(200);
    pub const NO_BINARY: Code = Code(209);
    pub const LAUNCH_FAILURE: Code = Code(719);

    /// What a code means for whoever sees it, where the runtime's own words do not say it.
    fn meaning(self) -> Option<&'static str> {
        Some(match self {
            Self::NO_DEVICE => {
                "the runtime sees no AMD GPU: the amdgpu driver must be loaded, this user must be allowed to open /dev/kfd (groups render \
                 and video), and HIP_VISIBLE_DEVICES must leave one"
            }
            Self::INVALID_DEVICE => "there is no device of this number",
            Self::INVALID_IMAGE => "the image is damaged or no code object",
            Self::NO_BINARY => "the image has no code for this GPU's architecture",
            Self::LAUNCH_FAILURE => {
                "the kernel did not start or did not end well: blocks of more threads than it was compiled for, or an access that is not \
                 allowed"
            }
            _ => return None,
        })
    }
}

/// Numbers of hipDeviceAttribute_t, the same in HIP 5 to 7.
pub(crate) mod attribute {
    use core::ffi::c_int;
    pub const MAX_THREADS_PER_BLOCK: c_int = 56;
    pub const MULTIPROCESSOR_COUNT: c_int = 63;
    pub const MAX_SHARED_MEMORY_PER_BLOCK: c_int = 74;
    pub const MEMORY_POOLS_SUPPORTED: c_int = 88;
}

/// Numbers of other enumerations.
pub(crate) mod constant {
    use core::ffi::{c_int, c_uint};
    /// hipStreamNonBlocking: does not wait for the default stream, nor it for this.
    pub const NON_BLOCKING: c_uint = 1;
    /// hipStreamCaptureModeThreadLocal: other threads may go on allocating and loading.
    pub const THREAD_LOCAL: c_int = 1;
    /// hipHostMallocPortable: pinned for every device of the process.
    pub const PORTABLE: c_uint = 1;
    /// hipMemPoolAttrReleaseThreshold.
    pub const RELEASE_THRESHOLD: c_int = 4;
    /// hipMemAllocationTypePinned: memory that stays where it is.
    pub const PINNED: c_int = 1;
    /// hipMemLocationTypeDevice.
    pub const ON_DEVICE: c_int = 1;
}

/// Where hipDeviceProp_t keeps the architecture's name: since HIP 6, and before.
const ARCH: usize = 1160;
pub(crate) const ARCH_BEFORE_6: usize = 396;

pub(crate) type Text = unsafe extern "C" fn(Code) -> *const c_char;
pub(crate) type Properties = unsafe extern "C" fn(*mut c_void, c_int) -> Code;

macro_rules! api {
    ($($field:ident = $symbol:ident ( $($argument:ty),* );)*) => {
        /// The loaded runtime.
        #[derive(Debug)]
        pub(crate) struct Api {
            $(pub $field: unsafe extern "C" fn($($argument),*) -> Code,)*
            pub error_name: Text,
            pub error_string: Text,
            /// hipGetDeviceProperties in the version that is there, and where in its structure the architecture's name begins.
            pub properties: (Properties, usize),
            /// The file it was loaded from.
            pub path: String,
        }

        impl Api {
            fn bind(library: &Library, path: String) -> Result<Self, Missing> {
                // SAFETY: the runtime's header declares these functions with the types written here, in every version from 5 to 7; the
                // library is never unloaded.
                unsafe {
                    Ok(Self {
                        $($field: symbol(library, &path, stringify!($symbol))?,)*
                        error_name: symbol(library, &path, "hipGetErrorName")?,
                        error_string: symbol(library, &path, "hipGetErrorString")?,
                        properties: match symbol(library, &path, "hipGetDevicePropertiesR0600") {
                            Ok(function) => (function, ARCH),
                            Err(_) => (symbol(library, &path, "hipGetDeviceProperties")?, ARCH_BEFORE_6),
                        },
                        path,
                    })
                }
            }
        }

        #[cfg(test)]
        pub(crate) const FIELDS: &[&str] = &[$(stringify!($field)),*];

        /// Every function with the sizes of its result and arguments, as declared here and as hip-sys declares them.
        #[cfg(test)]
        pub(crate) fn signatures() -> Vec<(&'static str, Vec<usize>, Vec<usize>)> {
            vec![$((
                stringify!($symbol),
                crate::abi::sizes(|api: Api| api.$field),
                crate::abi::sizes(|_: Api| hip_sys::hiprt::$symbol as unsafe extern "C" fn($(crate::abi::any!($argument)),*) -> _),
            ),)*]
        }
    };
}

api! {
    init = hipInit(c_uint);
    runtime_version = hipRuntimeGetVersion(*mut c_int);
    device_count = hipGetDeviceCount(*mut c_int);
    device_name = hipDeviceGetName(*mut c_char, c_int, c_int);
    device_attribute = hipDeviceGetAttribute(*mut c_int, c_int, c_int);
    total_memory = hipDeviceTotalMem(*mut usize, c_int);
    current_device = hipGetDevice(*mut c_int);
    set_device = hipSetDevice(c_int);
    module_load = hipModuleLoadData(*mut Handle, *const c_void);
    module_unload = hipModuleUnload(Handle);
    module_function = hipModuleGetFunction(*mut Handle, Handle, *const c_char);
    active_blocks = hipModuleOccupancyMaxActiveBlocksPerMultiprocessor(*mut c_int, Handle, c_int, usize);
    launch = hipModuleLaunchKernel(
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut Handle, *mut Handle
    );
    stream_create = hipStreamCreateWithFlags(*mut Handle, c_uint);
    stream_destroy = hipStreamDestroy(Handle);
    stream_sync = hipStreamSynchronize(Handle);
    stream_wait = hipStreamWaitEvent(Handle, Handle, c_uint);
    stream_capturing = hipStreamIsCapturing(Handle, *mut c_int);
    capture_begin = hipStreamBeginCapture(Handle, c_int);
    capture_end = hipStreamEndCapture(Handle, *mut Handle);
    graph_instantiate = hipGraphInstantiateWithFlags(*mut Handle, Handle, c_ulonglong);
    graph_destroy = hipGraphDestroy(Handle);
    graph_launch = hipGraphLaunch(Handle, Handle);
    graph_exec_destroy = hipGraphExecDestroy(Handle);
    event_create = hipEventCreateWithFlags(*mut Handle, c_uint);
    event_destroy = hipEventDestroy(Handle);
    event_record = hipEventRecord(Handle, Handle);
    event_sync = hipEventSynchronize(Handle);
    event_elapsed = hipEventElapsedTime(*mut f32, Handle, Handle);
    alloc = hipMalloc(*mut Handle, usize);
    free = hipFree(Handle);
    pool_create = hipMemPoolCreate(*mut Handle, *const PoolProperties);
    pool_destroy = hipMemPoolDestroy(Handle);
    pool_set = hipMemPoolSetAttribute(Handle, c_int, *mut c_void);
    pool_trim = hipMemPoolTrimTo(Handle, usize);
    pool_alloc = hipMallocFromPoolAsync(*mut Handle, usize, Handle, Handle);
    free_async = hipFreeAsync(Handle, Handle);
    alloc_host = hipHostMalloc(*mut Handle, usize, c_uint);
    free_host = hipHostFree(Handle);
    upload = hipMemcpyHtoDAsync(Handle, *const c_void, usize, Handle);
    download = hipMemcpyDtoHAsync(*mut c_void, Handle, usize, Handle);
    copy = hipMemcpyDtoDAsync(Handle, Handle, usize, Handle);
}

impl Api {
    /// The runtime of this process: loaded once, never unloaded (ROCm's libraries do not survive being loaded twice). A failure is
    /// remembered too.
    pub fn get() -> Result<&'static Api, Missing> {
        static API: OnceLock<Result<Api, Missing>> = OnceLock::new();
        API.get_or_init(|| Self::load(&Search::from_env())).as_ref().map_err(Clone::clone)
    }

    /// The first library of the list that opens. [`Missing::Library`] with all that were tried, [`Missing::Symbol`] if it is not HIP.
    fn load(search: &Search) -> Result<Self, Missing> {
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
                // That it is not there needs no words; why a file that is there does not open (a library that it needs) does.
                Err(e) if path.is_file() => tried.push(format!("{} ({e})", path.display())),
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

    /// The runtime's name for a code and what it means: `hipErrorInvalidImage: the image is damaged or no code object`.
    pub fn name(&self, code: Code) -> String {
        let text = |get: Text| {
            // SAFETY: takes any code.
            let text = unsafe { get(code) };
            // SAFETY: a string that lives as long as the library, or null.
            (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        let name = text(self.error_name).unwrap_or_else(|| "a code that the runtime has no name for".into());
        match code.meaning().map(String::from).or_else(|| text(self.error_string)) {
            Some(meaning) => format!("{name}: {meaning}"),
            None => name,
        }
    }

    /// [`Error::Driver`] if the code is not success.
    #[inline]
    pub fn check(&self, call: &'static str, code: Code) -> Result<()> {
        if code == Code::SUCCESS { Ok(()) } else { Err(self.error(call, code)) }
    }

    #[cold]
    fn error(&self, call: &'static str, code: Code) -> Error {
        Error::Driver { call, code: code.0, name: self.name(code) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_library_that_is_not_there_is_the_only_one_tried() {
        let library = Some("/nowhere/libamdhip64.so".into());
        let search = Search { library, roots: vec!["/opt/rocm".into()], ..Search::default() };
        let missing = Api::load(&search).unwrap_err();
        let said = missing.to_string();
        assert!(said.contains("none of /nowhere/libamdhip64.so was found"), "{said}");
        assert!(said.contains("MHC_HIP_LIBRARY"), "{said}");
    }

    #[test]
    fn a_file_that_does_not_open_says_why() {
        let file = std::env::temp_dir().join(format!("mhc-hip-no-library-{}", std::process::id()));
        std::fs::write(&file, "no library").unwrap();
        let missing = Api::load(&Search { library: Some(file.clone()), ..Search::default() }).unwrap_err();
        std::fs::remove_file(&file).unwrap();
        let Missing::Library { tried, .. } = missing else { panic!("{missing}") };
        assert!(tried[0].starts_with(&format!("{} (", file.display())), "{tried:?}");
    }

    /// The C library is a library without HIP's functions on every Linux.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_library_that_is_not_hip_is_told_by_its_first_missing_function() {
        let search = Search { library: Some("libc.so.6".into()), ..Search::default() };
        let missing = Api::load(&search).unwrap_err();
        assert_eq!(missing, Missing::Symbol { library: "libc.so.6".into(), symbol: "hipInit".into() });
    }
}
