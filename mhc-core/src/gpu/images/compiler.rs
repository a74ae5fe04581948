//! Run-time compilers. NVRTC and hiprtc have the same functions under different names, and are asked for the same things.

use core::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr,
};
use std::ffi::CString;

use super::{Cache, Found};
use crate::{DType, gpu::Source};

/// A result of the compiler; 0 is success.
pub type Code = c_int;

/// A program of the compiler.
pub type Program = *mut c_void;

type Strings = *const *const c_char;

/// A compiler's functions, which are those of a library that is never unloaded.
#[derive(Clone, Copy, Debug)]
pub struct Compiler {
    /// What its functions' names begin with: `nvrtc`, `hiprtc`.
    pub name: &'static str,
    /// `GetErrorString`.
    pub error_string: unsafe extern "C" fn(Code) -> *const c_char,
    /// `CreateProgram`: source, its name, headers' number, texts and names.
    pub create: unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, Strings, Strings) -> Code,
    /// `DestroyProgram`.
    pub destroy: unsafe extern "C" fn(*mut Program) -> Code,
    /// `CompileProgram`: number of options and options.
    pub compile: unsafe extern "C" fn(Program, c_int, Strings) -> Code,
    /// `GetProgramLog`.
    pub log: Output,
}

/// Something that a compiler gives: a function for its size, and one that copies it.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// The second function's name without the compiler's, for messages.
    pub name: &'static str,
    /// Writes the number of bytes.
    pub size: unsafe extern "C" fn(Program, *mut usize) -> Code,
    /// Writes the bytes.
    pub get: unsafe extern "C" fn(Program, *mut c_char) -> Code,
}

/// What is compiled: a text, and the files that it may include.
#[derive(Clone, Copy, Debug)]
pub struct Unit<'a> {
    /// Its name in messages.
    pub name: &'a str,
    /// Its text.
    pub text: &'a str,
    /// Name and text of each file.
    pub headers: &'a [(&'a str, &'a str)],
}

/// Ends a program.
struct Job<'a> {
    compiler: &'a Compiler,
    program: Program,
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `create`, and ended only here.
        unsafe { (self.compiler.destroy)(&mut self.program) };
    }
}

impl Compiler {
    /// Compiles a unit; gives the outputs asked for, in order, and what the compiler said. The error has that, too.
    ///
    /// # Safety
    /// The functions, those of `outputs` as well, are a compiler's that takes what their types say and is still loaded.
    pub unsafe fn run(
        &self,
        unit: Unit<'_>,
        options: &[String],
        outputs: &[Output],
    ) -> Result<(Vec<Vec<u8>>, String), String> {
        let text =
            |s: &str| CString::new(s).map_err(|_| format!("{}: a zero byte in the text or an option", unit.name));
        let names = unit.headers.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>, _>>()?;
        let texts = unit.headers.iter().map(|(_, t)| text(t)).collect::<Result<Vec<_>, _>>()?;
        let options = options.iter().map(|o| text(o)).collect::<Result<Vec<_>, _>>()?;
        let pointers = |list: &[CString]| list.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (name_pointers, text_pointers, option_pointers) = (pointers(&names), pointers(&texts), pointers(&options));
        let (source, name) = (text(unit.text)?, text(unit.name)?);
        let mut program = ptr::null_mut();
        // SAFETY: zero-terminated strings and arrays of as many as is said, all alive to the end of the call, which copies them.
        let code = unsafe {
            let (texts, names) = (text_pointers.as_ptr(), name_pointers.as_ptr());
            (self.create)(&mut program, source.as_ptr(), name.as_ptr(), unit.headers.len() as c_int, texts, names)
        };
        self.check(code, "CreateProgram")?;
        let job = Job { compiler: self, program };
        // SAFETY: as above; the program was just made.
        let code = unsafe { (self.compile)(job.program, option_pointers.len() as c_int, option_pointers.as_ptr()) };
        let log = self.output(&job, &self.log)?;
        let log = String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n']).to_string();
        self.check(code, "CompileProgram").map_err(|e| format!("{e}\n{log}"))?;
        let outputs = outputs.iter().map(|o| self.output(&job, o)).collect::<Result<_, _>>()?;
        Ok((outputs, log))
    }

    fn output(&self, job: &Job<'_>, output: &Output) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: a live program and a place for the size.
        self.check(unsafe { (output.size)(job.program, &mut bytes) }, output.name)?;
        let mut data = vec![0u8; bytes];
        // SAFETY: room for as many bytes as the compiler just asked for.
        self.check(unsafe { (output.get)(job.program, data.as_mut_ptr().cast()) }, output.name)?;
        Ok(data)
    }

    fn check(&self, code: Code, call: &str) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: takes any code, and returns a string that lives as long as the library, or null.
        let said = unsafe { (self.error_string)(code) };
        // SAFETY: as just said, if it is not null.
        let said = if said.is_null() { "".into() } else { unsafe { CStr::from_ptr(said) }.to_string_lossy() };
        Err(format!("{}{call} failed with {said} ({code})", self.name))
    }
}

/// An image that a compiler can make while a program runs.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The compiler with its version, for messages and for the cache: `NVRTC 12.9`.
    pub compiler: String,
    /// What it compiles for, as [`Image::target`](super::Image::target).
    pub target: String,
    /// The device source.
    pub source: &'static Source,
    /// The element type of its entries.
    pub dtype: DType,
    /// Lanes of a wave.
    pub wave: u32,
    /// The compiler's options.
    pub options: Vec<String>,
    /// The files that the source includes, names and texts.
    pub headers: Vec<(&'static str, &'static str)>,
}

impl Recipe {
    /// What `compile` makes of it, or has made before.
    pub fn make(
        &self,
        cache: &Cache,
        compile: impl FnOnce(Unit<'_>, &[String]) -> Result<Vec<u8>, String>,
    ) -> Result<Found, String> {
        let name = format!("{} for {}", self.compiler, self.target);
        let text = self.source.translation_unit(self.dtype, self.wave);
        let mut content = vec![name.as_str(), env!("CARGO_PKG_VERSION"), &text];
        content.extend(self.options.iter().map(String::as_str));
        content.extend(self.headers.iter().flat_map(|(name, text)| [*name, *text]));
        let key = Cache::key(&content);
        if let Some(image) = cache.get(&key) {
            return Ok(Found { name: format!("{name}, from the cache"), target: self.target.clone(), image });
        }
        let unit = Unit { name: &format!("{}.cu", self.source.name), text: &text, headers: &self.headers };
        let image = compile(unit, &self.options).map_err(|e| format!("{name}: {e}"))?;
        cache.put(&key, &image);
        Ok(Found { name, target: self.target.clone(), image })
    }
}
