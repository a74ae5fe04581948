//! The functions of NVIDIA's driver, resolved at run time. Types and constants are cudarc's; the functions are not, because cudarc panics
//! where one is missing, returns codes as an enum that a newer driver's code is not a value of, and picks names by the toolkit of the
//! machine that builds. Here a code is an integer, and every name is one that drivers from CUDA 12.0 on have.

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::{path::PathBuf, sync::OnceLock};

use cudarc::driver::sys::{CUlaunchConfig, CUtensorMap};
use libloading::Library;
use mhc_core::{Error, Missing, Result, gpu::vendor::Handle};

use crate::memory::PoolProperties;

/// A result of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Code(pub c_int);

impl Code {
    pub const OUT_OF_MEMORY: Code = Code(2);
    pub const NO_DEVICE: Code = Code(100);
}

/// The oldest driver: CUDA 12.0 (525), the first that loads machine code of the compiler that the images are built with.
const OLDEST: c_int = 12_000;

macro_rules! api {
    ($($field:ident = $symbol:literal ( $($argument:ty),* );)*) => {
        /// The loaded driver.
        pub(crate) struct Api {
            $(pub $field: unsafe extern "system" fn($($argument),*) -> Code,)*
        }

        impl Api {
            fn bind(library: &Library, path: &str) -> Result<Self, Missing> {
                Ok(Self {
                    $($field: {
                        // SAFETY: NVIDIA's header declares the function with these types in every version from 12.0 on; the library is
                        // never unloaded, so that the address stays good.
                        let found = unsafe { library.get::<unsafe extern "system" fn($($argument),*) -> Code>($symbol.as_bytes()) };
                        *found.map_err(|_| Missing::Symbol { library: path.into(), symbol: $symbol.into() })?
                    },)*
                })
            }
        }
    };
}

api! {
    init = "cuInit"(c_uint);
    driver_version = "cuDriverGetVersion"(*mut c_int);
    error_name = "cuGetErrorName"(Code, *mut *const c_char);
    error_string = "cuGetErrorString"(Code, *mut *const c_char);
    device_count = "cuDeviceGetCount"(*mut c_int);
    device_get = "cuDeviceGet"(*mut c_int, c_int);
    device_name = "cuDeviceGetName"(*mut c_char, c_int, c_int);
    device_attribute = "cuDeviceGetAttribute"(*mut c_int, c_int, c_int);
    device_memory = "cuDeviceTotalMem_v2"(*mut usize, c_int);
    context_retain = "cuDevicePrimaryCtxRetain"(*mut Handle, c_int);
    context_release = "cuDevicePrimaryCtxRelease_v2"(c_int);
    context_current = "cuCtxGetCurrent"(*mut Handle);
    context_push = "cuCtxPushCurrent_v2"(Handle);
    context_pop = "cuCtxPopCurrent_v2"(*mut Handle);
    module_load = "cuModuleLoadDataEx"(*mut Handle, *const c_void, c_uint, *mut c_int, *mut Handle);
    module_unload = "cuModuleUnload"(Handle);
    module_function = "cuModuleGetFunction"(*mut Handle, Handle, *const c_char);
    function_attribute = "cuFuncGetAttribute"(*mut c_int, c_int, Handle);
    function_set = "cuFuncSetAttribute"(Handle, c_int, c_int);
    launch = "cuLaunchKernelEx"(*const CUlaunchConfig, Handle, *mut Handle, *mut Handle);
    active_clusters = "cuOccupancyMaxActiveClusters"(*mut c_int, Handle, *const CUlaunchConfig);
    active_blocks = "cuOccupancyMaxActiveBlocksPerMultiprocessor"(*mut c_int, Handle, c_int, usize);
    tensor_map = "cuTensorMapEncodeTiled"(
        *mut CUtensorMap, c_uint, c_uint, *mut c_void, *const u64, *const u64, *const c_uint, *const c_uint, c_uint, c_uint, c_uint, c_uint
    );
    stream_create = "cuStreamCreate"(*mut Handle, c_uint);
    stream_destroy = "cuStreamDestroy_v2"(Handle);
    stream_sync = "cuStreamSynchronize"(Handle);
    stream_wait = "cuStreamWaitEvent"(Handle, Handle, c_uint);
    stream_capturing = "cuStreamIsCapturing"(Handle, *mut c_int);
    capture_begin = "cuStreamBeginCapture_v2"(Handle, c_int);
    capture_end = "cuStreamEndCapture"(Handle, *mut Handle);
    graph_instantiate = "cuGraphInstantiateWithFlags"(*mut Handle, Handle, u64);
    graph_destroy = "cuGraphDestroy"(Handle);
    graph_launch = "cuGraphLaunch"(Handle, Handle);
    graph_exec_destroy = "cuGraphExecDestroy"(Handle);
    event_create = "cuEventCreate"(*mut Handle, c_uint);
    event_destroy = "cuEventDestroy_v2"(Handle);
    event_record = "cuEventRecord"(Handle, Handle);
    event_sync = "cuEventSynchronize"(Handle);
    event_elapsed = "cuEventElapsedTime"(*mut f32, Handle, Handle);
    pool_create = "cuMemPoolCreate"(*mut Handle, *const PoolProperties);
    pool_destroy = "cuMemPoolDestroy"(Handle);
    pool_set = "cuMemPoolSetAttribute"(Handle, c_int, *mut c_void);
    pool_trim = "cuMemPoolTrimTo"(Handle, usize);
    pool_alloc = "cuMemAllocFromPoolAsync"(*mut u64, usize, Handle, Handle);
    free_async = "cuMemFreeAsync"(u64, Handle);
    alloc = "cuMemAlloc_v2"(*mut u64, usize);
    free = "cuMemFree_v2"(u64);
    alloc_host = "cuMemHostAlloc"(*mut Handle, usize, c_uint);
    free_host = "cuMemFreeHost"(Handle);
    upload = "cuMemcpyHtoDAsync_v2"(u64, *const c_void, usize, Handle);
    download = "cuMemcpyDtoHAsync_v2"(*mut c_void, u64, usize, Handle);
    copy = "cuMemcpyDtoDAsync_v2"(u64, u64, usize, Handle);
}

impl Api {
    /// The driver of this process, loaded and initialised once; a failure is remembered too.
    pub fn get() -> Result<&'static Api, Missing> {
        static API: OnceLock<Result<Api, Missing>> = OnceLock::new();
        API.get_or_init(|| Self::load(&candidates())).as_ref().map_err(Clone::clone)
    }

    fn load(paths: &[PathBuf]) -> Result<Self, Missing> {
        for path in paths {
            // SAFETY: loading runs the library's initialisers, which is what a program that asks for CUDA wants.
            let Ok(library) = (unsafe { Library::new(path) }) else { continue };
            let api = Self::bind(&library, &path.display().to_string());
            core::mem::forget(library);
            let api = api?;
            api.initialise()?;
            return Ok(api);
        }
        let tried = paths.iter().map(|p| p.display().to_string()).collect();
        Err(Missing::Library { tried, hint: "install the NVIDIA driver (no CUDA toolkit is needed)" })
    }

    fn initialise(&self) -> Result<(), Missing> {
        // SAFETY: takes no address.
        match unsafe { (self.init)(0) } {
            Code(0) => {}
            Code::NO_DEVICE => return Err(Missing::NoDevice { said: self.name(Code::NO_DEVICE) }),
            code => return Err(Missing::Driver { said: format!("cuInit: {}", self.name(code)) }),
        }
        let version = self.version().map_err(|e| Missing::Driver { said: e.to_string() })?;
        if version < OLDEST {
            let said =
                format!("it knows CUDA {} at most, but 12.0 (driver 525) is needed: update it", decimal(version));
            return Err(Missing::Driver { said });
        }
        Ok(())
    }

    /// The newest CUDA that the driver knows: 12090 for 12.9.
    pub fn version(&self) -> Result<c_int> {
        let mut version = 0;
        // SAFETY: a place for one int.
        self.check("cuDriverGetVersion", unsafe { (self.driver_version)(&mut version) })?;
        Ok(version)
    }

    /// The driver's name for a code and its explanation: `CUDA_ERROR_INVALID_VALUE: invalid argument`.
    pub fn name(&self, code: Code) -> String {
        let text = |get: unsafe extern "system" fn(Code, *mut *const c_char) -> Code| {
            let mut text = core::ptr::null();
            // SAFETY: takes any code and a place for an address.
            let known = unsafe { get(code, &mut text) } == Code(0) && !text.is_null();
            // SAFETY: a string that lives as long as the library.
            known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        match (text(self.error_name), text(self.error_string)) {
            (Some(name), Some(meaning)) => format!("{name}: {meaning}"),
            (Some(name), None) => name,
            _ => "a code that the driver has no name for".into(),
        }
    }

    /// [`Error::Driver`] if the code is not success.
    #[inline]
    pub fn check(&self, call: &'static str, code: Code) -> Result<()> {
        if code == Code(0) { Ok(()) } else { Err(self.error(call, code)) }
    }

    #[cold]
    fn error(&self, call: &'static str, code: Code) -> Error {
        Error::Driver { call, code: code.0, name: self.name(code) }
    }
}

/// `12.9` for 12090.
pub(crate) fn decimal(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Where the driver may be: what `MHC_CUDA_LIBRARY` names and nothing else, or what the system's loader finds.
fn candidates() -> Vec<PathBuf> {
    if let Some(path) = std::env::var_os("MHC_CUDA_LIBRARY").filter(|p| !p.is_empty()) {
        return vec![path.into()];
    }
    let names: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };
    names.iter().map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_driver_names_what_was_tried() {
        let Err(Missing::Library { tried, .. }) = Api::load(&["/nowhere/libcuda.so".into()]) else { panic!() };
        assert_eq!(tried, ["/nowhere/libcuda.so"]);
    }

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn another_library_is_not_taken_for_the_driver() {
        let Err(Missing::Symbol { library, symbol }) = Api::load(&["libm.so.6".into()]) else { panic!() };
        assert_eq!((library.as_str(), symbol.as_str()), ("libm.so.6", "cuInit"));
    }

    #[test]
    fn versions_are_decimals() {
        assert_eq!((decimal(12_090), decimal(13_000)), ("12.9".into(), "13.0".into()));
    }
}
