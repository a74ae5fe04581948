//! AMD's own disassembler, in the library that every ROCm has.

use std::ffi::{CStr, CString, c_char, c_void};

use libloading::Library;

/// Names of the library, newest first.
const NAMES: [&str; 3] = ["libamd_comgr.so.3", "libamd_comgr.so.2", "libamd_comgr.so"];

type ReadMemory = unsafe extern "C" fn(u64, *mut c_char, u64, *mut c_void) -> u64;
type TakeText = unsafe extern "C" fn(*const c_char, *mut c_void);
type TakeAddress = unsafe extern "C" fn(u64, *mut c_void);
type Create = unsafe extern "C" fn(*const c_char, ReadMemory, TakeText, TakeAddress, *mut u64) -> i32;
type Disassemble = unsafe extern "C" fn(u64, u64, *mut c_void, *mut u64) -> i32;

/// A disassembler for one architecture.
pub struct Disassembler {
    handle: u64,
    disassemble: Disassemble,
}

/// One instruction being read.
struct Request<'a> {
    address: u64,
    bytes: &'a [u8],
    text: String,
}

impl Disassembler {
    /// An error says what is missing.
    pub fn new(arch: &str) -> Result<Self, String> {
        // SAFETY: loading runs the initialisers of AMD's library, which is what this is for.
        let library = NAMES.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
        let library = library.ok_or_else(|| format!("none of {} was found", NAMES.join(", ")))?;
        // SAFETY: comgr's header declares both functions with these types in every version.
        let (create, disassemble) = unsafe {
            let create = library.get::<Create>(b"amd_comgr_create_disassembly_info");
            let disassemble = library.get::<Disassemble>(b"amd_comgr_disassemble_instruction");
            (*create.map_err(|e| e.to_string())?, *disassemble.map_err(|e| e.to_string())?)
        };
        // A second load of LLVM in one process aborts it: this one is never undone.
        std::mem::forget(library);
        let isa = CString::new(format!("amdgcn-amd-amdhsa--{arch}")).map_err(|e| e.to_string())?;
        let mut handle = 0;
        // SAFETY: the callbacks are functions that take what comgr passes, and the string is terminated.
        let status = unsafe { create(isa.as_ptr(), read_memory, take_text, take_address, &mut handle) };
        if status == 0 { Ok(Self { handle, disassemble }) } else { Err(format!("comgr does not know {arch}")) }
    }

    /// The first instruction of `bytes`, which lie at `address`, and its size. Not for two threads at a time.
    pub fn first(&mut self, bytes: &[u8], address: u64) -> Result<(String, u64), String> {
        let mut request = Request { address, bytes, text: String::new() };
        let mut size = 0;
        // SAFETY: the callbacks get this request, which outlives the call, and nothing else has it meanwhile.
        let status = unsafe { (self.disassemble)(self.handle, address, (&raw mut request).cast(), &raw mut size) };
        if status == 0 {
            Ok((request.text, size))
        } else {
            Err(format!("no instruction: {:02x?}", &bytes[..bytes.len().min(8)]))
        }
    }
}

unsafe extern "C" fn read_memory(from: u64, to: *mut c_char, size: u64, request: *mut c_void) -> u64 {
    // SAFETY: `first` passed a request that it still holds.
    let request = unsafe { &*request.cast::<Request<'_>>() };
    let Some(bytes) = from.checked_sub(request.address).and_then(|at| request.bytes.get(at as usize..)) else {
        return 0;
    };
    let count = bytes.len().min(size as usize);
    // SAFETY: comgr's buffer has `size` bytes, of which these are no more.
    unsafe { to.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), count) };
    count as u64
}

unsafe extern "C" fn take_text(text: *const c_char, request: *mut c_void) {
    // SAFETY: `first` passed a request that it does not touch meanwhile; comgr's text is terminated.
    unsafe { (*request.cast::<Request<'_>>()).text = CStr::from_ptr(text).to_string_lossy().into_owned() };
}

/// Targets of branches are read from the instruction's own text.
unsafe extern "C" fn take_address(_: u64, _: *mut c_void) {}
