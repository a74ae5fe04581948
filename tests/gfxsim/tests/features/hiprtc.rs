//! AMD's run-time compiler, which needs no GPU.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    sync::{Mutex, PoisonError},
};

use libloading::Library;

const NAMES: [&str; 3] = ["libhiprtc.so.7", "libhiprtc.so.6", "libhiprtc.so"];

/// It compiles one program at a time: its LLVM is not made for more.
static ONE: Mutex<()> = Mutex::new(());

type Program = *mut c_void;
type Name = *const c_char;

/// The library, which stays loaded: LLVM does not survive being loaded twice.
pub struct Hiprtc(Library);

impl Hiprtc {
    /// Nothing, if there is none.
    pub fn find() -> Option<Self> {
        // SAFETY: loading runs the initialisers of AMD's library, which is what this is for.
        NAMES.iter().find_map(|name| unsafe { Library::new(*name) }.ok()).map(Self)
    }

    /// Keeps the library from being unloaded.
    pub fn keep(self) -> &'static Self {
        Box::leak(Box::new(self))
    }

    /// The code object of a source, or what the compiler says.
    pub fn compile(&self, source: &str, arch: &str) -> Result<Vec<u8>, String> {
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let source = CString::new(source).map_err(|e| e.to_string())?;
        let options = [format!("--offload-arch={arch}"), "-O3".into(), "-std=c++17".into()]
            .map(|o| CString::new(o).unwrap_or_default());
        let options = options.each_ref().map(|o| o.as_ptr());
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: hiprtc's header declares these functions with these types in every version; strings are terminated, places are large
        // enough, and the program is used between its creation and its end.
        unsafe {
            let create: Creates = self.function(b"hiprtcCreateProgram")?;
            let compile: Compiles = self.function(b"hiprtcCompileProgram")?;
            let destroy: Destroys = self.function(b"hiprtcDestroyProgram")?;
            let status =
                create(&mut program, source.as_ptr(), c"features.hip".as_ptr(), 0, std::ptr::null(), std::ptr::null());
            if status != 0 {
                return Err(format!("hiprtcCreateProgram: {status}"));
            }
            let status = compile(program, options.len() as c_int, options.as_ptr());
            let result = if status == 0 {
                self.read(program, b"hiprtcGetCodeSize", b"hiprtcGetCode")
            } else {
                let log = self.read(program, b"hiprtcGetProgramLogSize", b"hiprtcGetProgramLog")?;
                let log = CStr::from_bytes_until_nul(&log).unwrap_or_default();
                Err(log.to_string_lossy().into_owned())
            };
            destroy(&mut program);
            result
        }
    }

    /// # Safety
    /// The symbol is a function of type `T`.
    unsafe fn function<T: Copy>(&self, name: &[u8]) -> Result<T, String> {
        // SAFETY: the caller's promise.
        unsafe { self.0.get::<T>(name) }.map(|f| *f).map_err(|e| e.to_string())
    }

    /// # Safety
    /// The program exists, and the symbols are the pair of functions for a text's size and the text.
    unsafe fn read(&self, program: Program, size: &[u8], text: &[u8]) -> Result<Vec<u8>, String> {
        // SAFETY: the caller's promise; the buffer has the size that was asked for.
        unsafe {
            let (size, text): (Sizes, Reads) = (self.function(size)?, self.function(text)?);
            let mut bytes = 0;
            size(program, &mut bytes);
            let mut out = vec![0u8; bytes];
            text(program, out.as_mut_ptr().cast());
            Ok(out)
        }
    }
}

type Creates = unsafe extern "C" fn(*mut Program, Name, Name, c_int, *const Name, *const Name) -> c_int;
type Compiles = unsafe extern "C" fn(Program, c_int, *const Name) -> c_int;
type Destroys = unsafe extern "C" fn(*mut Program) -> c_int;
type Sizes = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Reads = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
