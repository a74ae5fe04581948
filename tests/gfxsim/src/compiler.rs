//! AMD's run-time compiler, which needs no GPU.
//!
//! The HIP backend has its own way to it, with a cache behind; this one is for direct launches.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    sync::{Mutex, OnceLock, PoisonError},
};

use libloading::Library;

const NAMES: [&str; 3] = ["libhiprtc.so.7", "libhiprtc.so.6", "libhiprtc.so"];

/// It compiles one program at a time: its LLVM is not made for more.
static ONE: Mutex<()> = Mutex::new(());

type Program = *mut c_void;
type Name = *const c_char;

/// The library. LLVM does not survive being loaded twice.
pub struct Hiprtc(Library);

impl Hiprtc {
    /// Nothing, if there is none. It stays loaded.
    pub fn find() -> Option<&'static Self> {
        static FOUND: OnceLock<Option<Hiprtc>> = OnceLock::new();
        // SAFETY: loading runs the initialisers of AMD's library, which is what this is for.
        let load = || NAMES.iter().find_map(|name| unsafe { Library::new(*name) }.ok()).map(Hiprtc);
        FOUND.get_or_init(load).as_ref()
    }

    /// The code object of a source that includes files of these names and texts, or what the compiler says.
    pub fn compile(&self, source: &str, headers: &[(&str, &str)], options: &[String]) -> Result<Vec<u8>, String> {
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let terminated = |text: &str| CString::new(text).map_err(|e| e.to_string());
        let source = terminated(source)?;
        let names = headers.iter().map(|(name, _)| terminated(name)).collect::<Result<Vec<_>, _>>()?;
        let texts = headers.iter().map(|(_, text)| terminated(text)).collect::<Result<Vec<_>, _>>()?;
        let options = options.iter().map(|o| terminated(o)).collect::<Result<Vec<_>, _>>()?;
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (texts, names, options) = (pointers(&texts), pointers(&names), pointers(&options));
        let count = headers.len() as c_int;
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: hiprtc's header declares these functions with these types in every version; strings are terminated, places are large
        // enough, and the program is used between its creation and its end.
        unsafe {
            let create: Creates = self.function(b"hiprtcCreateProgram")?;
            let compile: Compiles = self.function(b"hiprtcCompileProgram")?;
            let destroy: Destroys = self.function(b"hiprtcDestroyProgram")?;
            let name = c"kernels.hip".as_ptr();
            let status = create(&mut program, source.as_ptr(), name, count, texts.as_ptr(), names.as_ptr());
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
