//! A conformance device that runs the device sources' real AMD machine code on a simulated GPU, without AMD's runtime: `sim:gfx942`.
//!
//! Where the HIP backend runs on a simulated GPU, everything around the kernels is AMD's. Here it is this file's: memory is the process's,
//! a launch is done when the call returns. Machine code is the package's; where a mistake is planted, an entry is compiled by AMD's hiprtc
//! when it is first wanted. That is the way to gfx90a, which AMD's runtime cannot be brought up on; to faults that are errors, of the very byte that a kernel must not touch; to exact counts of
//! what each launch moves; and to kernels with a mistake planted in their sources.
//!
//! Wants AMD's compiler and disassembler in the loader's path: `cargo xtask sim` knows how.

use std::{
    collections::HashMap,
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mhc_core::{
    DType, DevPtr, DeviceId, DeviceInfo, Error, RawStream, Result,
    gpu::{GpuCaps, GpuDevice, GpuDriver, GpuQueue, Launch, RawEvent, RawGraph, Source},
};
use mhc_gfxsim::{
    arch::Arch,
    compiler::Hiprtc,
    direct::{Direct, Kernel, Object, Work},
    traffic::Counters,
};
use mhc_hip::images;

/// A mistake in a device source: some text of it, and what stands there instead.
#[derive(Clone, Copy, Debug)]
pub struct Plant {
    /// `post` or `reduce.cuh`.
    pub file: &'static str,
    /// Must be found just once, so that the mistake is what it is said to be.
    pub text: &'static str,
    /// What stands in its place.
    pub instead: &'static str,
}

/// What a device has moved and executed, launch by launch.
pub type Log = Arc<Mutex<Vec<(String, Counters)>>>;

/// Whether AMD's compiler and disassembler are there; what is missing, if not.
pub fn available() -> Result<(), String> {
    Hiprtc::find().ok_or("AMD's run-time compiler is not there")?;
    Direct::new(Arch::Gfx942, 1).map(|_| ())
}

/// A simulated GPU, with a mistake in its device code if one is planted, and what it will have moved.
pub fn open(arch: Arch, plant: Option<Plant>) -> Result<(GpuDevice<SimDriver>, Log)> {
    let log = Log::default();
    let device = GpuDevice::new(SimDriver::new(arch, plant, log.clone())?)?;
    Ok((device, log))
}

/// The simulated GPU and its memory.
pub struct SimDriver {
    info: DeviceInfo,
    gpu: Direct,
    compiler: &'static Hiprtc,
    plant: Option<Plant>,
    memory: Mutex<HashMap<u64, Block>>,
    /// Entries that were asked for.
    objects: Mutex<HashMap<String, (Arc<Object>, Kernel)>>,
    log: Log,
}

/// Memory in use.
struct Block {
    lines: Box<[Line]>,
    bytes: usize,
}

/// What memory is aligned to.
#[derive(Clone)]
#[repr(align(256))]
struct Line(#[allow(dead_code)] [u8; 256]);

/// An entry.
#[derive(Clone, Debug)]
pub struct Entry(String);

/// A source of one element type, and its embedded machine code; without that, nothing is compiled before an entry is wanted.
pub struct Module(&'static Source, Option<Arc<Object>>);

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(call: &'static str, e: impl fmt::Display) -> Error {
    Error::Driver { call, code: 0, name: e.to_string() }
}

impl SimDriver {
    fn new(arch: Arch, plant: Option<Plant>, log: Log) -> Result<Self> {
        let compiler = Hiprtc::find().ok_or_else(|| failed("open", "AMD's run-time compiler is not there"))?;
        let name = arch.name();
        let caps = GpuCaps {
            arch: name.into(),
            wave: arch.wave() as u32,
            units: 4,
            shared_per_block: 64 << 10,
            max_threads: 1024,
            tuned: images::tuned(name),
        };
        let ordinal = Arch::ALL.iter().position(|a| *a == arch).unwrap_or_default() as u32;
        let info = DeviceInfo {
            id: DeviceId { backend: "sim", ordinal },
            name: format!("{name}, simulated without AMD's runtime"),
            arch: name.into(),
            memory: None,
            caps: Some(caps),
            notes: Vec::new(),
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let gpu = Direct::new(arch, threads).map_err(|e| failed("open", e))?;
        let (memory, objects) = (Mutex::default(), Mutex::default());
        Ok(Self { info, gpu, compiler, plant, memory, objects, log })
    }

    /// What stands in a file once the mistake is planted.
    fn planted(&self, file: &str, text: &str) -> Result<String> {
        let Some(plant) = self.plant.filter(|p| p.file == file) else { return Ok(text.into()) };
        match text.matches(plant.text).count() {
            1 => Ok(text.replace(plant.text, plant.instead)),
            found => Err(failed("plant", format!("`{}` stands {found} times in {file}, not once", plant.text))),
        }
    }

    fn compile(&self, source: &'static Source, name: &str) -> Result<(Arc<Object>, Kernel)> {
        let wave = self.info.caps.as_ref().map_or(64, |c| c.wave);
        let entries = (source.entries)();
        let Some(e) = entries.iter().find(|e| e.name(wave) == name) else {
            return Err(failed("function", format!("{} has no entry {name}", source.name)));
        };
        let text = self.planted(source.name, source.text)?;
        let unit = format!("{text}\nMHC_KERNEL_{}({name}, {}, {})\n", e.kernel, e.dtype, e.streams);
        let headers = images::headers(source);
        let headers = headers.iter().map(|(file, text)| Ok((*file, self.planted(file, text)?)));
        let headers = headers.collect::<Result<Vec<_>>>()?;
        let headers: Vec<_> = headers.iter().map(|(file, text)| (*file, text.as_str())).collect();
        let compiled = self.compiler.compile(&unit, &headers, &images::options(&self.info.arch));
        let wrong = |log| Error::Compile { entry: name.into(), arch: self.info.arch.clone(), log };
        let object = Object::load(&compiled.map_err(wrong)?).map_err(wrong)?;
        let kernel = object.kernel(name).ok_or_else(|| wrong("it is not in the code object".into()))?;
        Ok((Arc::new(object), kernel))
    }

    /// The place of bytes that a caller promises are there.
    fn place(p: DevPtr) -> *mut u8 {
        p.0 as usize as *mut u8
    }

    fn ranges(&self) -> Vec<Range<u64>> {
        lock(&self.memory).iter().map(|(start, block)| *start..start + block.bytes as u64).collect()
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl fmt::Debug for SimDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.info.name)
    }
}

// SAFETY: memory is boxes of lines of 256 bytes, aligned to as much and handed out once; objects of entries stay to the end.
unsafe impl GpuDriver for SimDriver {
    type Module = Module;
    type Function = &'static Entry;

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn load(&self, source: &'static str, dtype: DType) -> Result<Module> {
        let found = images::sources().find(|s| s.name == source);
        let found = found.ok_or_else(|| failed("load", format!("no source called {source}")))?;
        let image = images::embedded(source, dtype, &self.info.arch).filter(|_| self.plant.is_none());
        let object = image.map(|image| Object::load(&image.unpack()?)).transpose().map_err(|e| failed("load", e))?;
        Ok(Module(found, object.map(Arc::new)))
    }

    fn function(&self, module: &Module, entry: &str) -> Result<&'static Entry> {
        let code = match &module.1 {
            Some(object) => {
                let kernel = object.kernel(entry);
                (object.clone(), kernel.ok_or_else(|| failed("function", format!("no entry {entry} in its image")))?)
            }
            None => self.compile(module.0, entry)?,
        };
        lock(&self.objects).insert(entry.into(), code);
        // Names of entries are few, and functions are copied like handles of a driver.
        Ok(Box::leak(Box::new(Entry(entry.into()))))
    }

    unsafe fn launch(&self, f: &'static Entry, launch: &Launch, _: RawStream, cells: &mut [u64]) -> Result<()> {
        let (object, kernel) =
            lock(&self.objects).get(&f.0).cloned().ok_or_else(|| failed("launch", format!("{} is gone", f.0)))?;
        let work = Work {
            object: &object,
            kernel,
            groups: launch.grid,
            items: launch.block,
            shared: launch.shared,
            arguments: &cells[..launch.cells()],
        };
        // SAFETY: the ranges are this device's memory, whose users wait for each other as streams promise: a call ends with its work.
        let counted = unsafe { self.gpu.launch(&work, &self.ranges()) };
        let counted = counted.map_err(|fault| failed("launch", format!("{}: {}", f.0, fault.0)))?;
        lock(&self.log).push((f.0.clone(), counted));
        Ok(())
    }

    fn create_stream(&self) -> Result<RawStream> {
        Ok(RawStream(1))
    }
    unsafe fn destroy_stream(&self, _: RawStream) {}
    fn sync(&self, _: RawStream) -> Result<()> {
        Ok(())
    }

    fn alloc(&self, bytes: usize, _: RawStream) -> Result<DevPtr> {
        let mut lines = vec![Line([0xcd; 256]); bytes.div_ceil(256).max(1)].into_boxed_slice();
        let start = lines.as_mut_ptr() as u64;
        lock(&self.memory).insert(start, Block { lines, bytes });
        Ok(DevPtr(start))
    }
    unsafe fn free(&self, p: DevPtr, _: RawStream) {
        drop(lock(&self.memory).remove(&p.0).map(|block| block.lines));
    }
}

/// What direct launches have no use for.
fn absent<T>(call: &'static str) -> Result<T> {
    Err(failed(call, "this device has memory, copies and launches, and nothing beyond"))
}

// SAFETY: nothing is pinned, and every copy is done when the call returns.
unsafe impl GpuQueue for SimDriver {
    fn alloc_pinned(&self, _: usize) -> Result<*mut u8> {
        absent("alloc_pinned")
    }
    unsafe fn free_pinned(&self, _: *mut u8) {}

    unsafe fn upload(&self, dst: DevPtr, src: *const u8, bytes: usize, _: RawStream) -> Result<()> {
        // SAFETY: the caller's promise; host and device memory are different blocks.
        unsafe { Self::place(dst).copy_from_nonoverlapping(src, bytes) };
        Ok(())
    }
    unsafe fn download(&self, dst: *mut u8, src: DevPtr, bytes: usize, _: RawStream) -> Result<()> {
        // SAFETY: as in `upload`.
        unsafe { dst.copy_from_nonoverlapping(Self::place(src), bytes) };
        Ok(())
    }
    unsafe fn copy(&self, dst: DevPtr, src: DevPtr, bytes: usize, _: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { Self::place(dst).copy_from_nonoverlapping(Self::place(src), bytes) };
        Ok(())
    }

    fn create_event(&self) -> Result<RawEvent> {
        absent("create_event")
    }
    unsafe fn destroy_event(&self, _: RawEvent) {}
    fn record(&self, _: RawEvent, _: RawStream) -> Result<()> {
        absent("record")
    }
    fn wait(&self, _: RawStream, _: RawEvent) -> Result<()> {
        absent("wait")
    }
    fn elapsed_ms(&self, _: RawEvent, _: RawEvent) -> Result<f32> {
        absent("elapsed_ms")
    }
    fn begin_capture(&self, _: RawStream) -> Result<()> {
        absent("begin_capture")
    }
    fn end_capture(&self, _: RawStream) -> Result<RawGraph> {
        absent("end_capture")
    }
    unsafe fn replay(&self, _: RawGraph, _: RawStream) -> Result<()> {
        absent("replay")
    }
    unsafe fn destroy_graph(&self, _: RawGraph) {}
}
