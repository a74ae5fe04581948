//! A conformance device that runs the GPUs' portable source on the host: `emu:32` and `emu:64`, for waves of 32 and 64 lanes.
//!
//! `tests/emu` holds the other half: a process (`server.cpp`) that runs the threads of a block as fibers under ASan and UBSan, and the
//! names that `prelude.cuh` wants (`emu.hpp`). Entries are compiled when they are first wanted, by `CXX` or `g++`, and kept under
//! `target/emu` by the hash of everything that they are made of. Nothing but these tests needs a C++ compiler.

use std::{
    collections::BTreeMap,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    io::{BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, PoisonError},
};

mod queue;

use mhc_core::{
    DType, DevPtr, DeviceId, DeviceInfo, Error, RawStream, Result,
    gpu::{GpuCaps, GpuDevice, GpuDriver, Launch, includes},
    ops::SOURCES,
};
use queue::{Queue, Work};

/// The repository: device sources are read from there, so that a kernel can be worked on without building anything else.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O1",
    "-g",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-DMHC_EMU",
];

/// An emulated device with waves of `wave` lanes.
pub fn open(wave: u32) -> Result<GpuDevice<EmuDriver>> {
    GpuDevice::new(EmuDriver::new(wave)?)
}

/// The process that plays the device, and what is known about it.
pub struct EmuDriver {
    info: DeviceInfo,
    builder: Builder,
    server: Mutex<Server>,
    queue: Queue,
}

/// Makes programs and images.
struct Builder {
    wave: u32,
    folder: PathBuf,
}

/// An image: nothing is loaded before an entry is wanted.
#[derive(Debug)]
pub struct Module(&'static mhc_core::gpu::Source);

struct Server {
    process: Child,
    to: BufWriter<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing to do about either failure.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn failed(call: &'static str, e: impl fmt::Display) -> Error {
    Error::Driver { call, code: 0, name: e.to_string() }
}

impl Server {
    fn send(&mut self, command: u8, words: &[u64], data: &[u8]) -> std::io::Result<()> {
        self.to.write_all(&u64::from(command).to_le_bytes())?;
        for w in words {
            self.to.write_all(&w.to_le_bytes())?;
        }
        self.to.write_all(data)?;
        self.to.flush()
    }

    fn word(&mut self) -> std::io::Result<u64> {
        let mut w = [0; 8];
        self.from.read_exact(&mut w)?;
        Ok(u64::from_le_bytes(w))
    }
}

impl EmuDriver {
    fn new(wave: u32) -> Result<Self> {
        let builder = Builder::new(wave)?;
        let server = builder.build("server", &read("tests/emu/server.cpp")?, &["-rdynamic"], &["-ldl"])?;
        let mut process = Command::new(server)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .env("ASAN_OPTIONS", "detect_leaks=0:abort_on_error=0:allocator_may_return_null=1")
            .spawn()
            .map_err(|e| failed("start the emulator", e))?;
        let (Some(to), Some(from)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(failed("start the emulator", "no pipes"));
        };
        let server = Mutex::new(Server { process, to: BufWriter::new(to), from: BufReader::new(from) });
        // As small as the smallest device that is served, so that no plan leans on more.
        let caps = GpuCaps {
            arch: "emu".into(),
            wave,
            units: 4,
            shared_per_block: 64 << 10,
            max_threads: 1024,
            tuned: Vec::new(),
        };
        let info = DeviceInfo {
            id: DeviceId { backend: "emu", ordinal: wave },
            name: format!("host emulator, wave {wave}"),
            arch: caps.arch.clone(),
            memory: None,
            caps: Some(caps),
            notes: Vec::new(),
        };
        Ok(Self { info, builder, server, queue: Queue::default() })
    }

    fn talk<T>(&self, call: &'static str, f: impl FnOnce(&mut Server) -> std::io::Result<T>) -> Result<T> {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut server).map_err(|e| failed(call, format!("the emulator stopped (its report is on stderr): {e}")))
    }

    /// Does the work, or keeps it for later if the stream is being captured.
    fn enqueue(&self, s: RawStream, work: Work) -> Result<()> {
        if self.queue.keep(s, &work) { Ok(()) } else { self.work(&work) }
    }

    fn work(&self, work: &Work) -> Result<()> {
        let done = |s: &mut Server| {
            s.send(work.command, &work.words, &[])?;
            s.word()
        };
        self.talk("work", done).map(|_| ())
    }
}

impl fmt::Debug for EmuDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EmuDriver(wave {})", self.builder.wave)
    }
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(Path::new(ROOT).join(path))
        .map_err(|e| failed("read a device source", format!("{path}: {e}")))
}

/// The files that a text includes, directly or through others, as they are now.
fn included(text: &str) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut names: Vec<String> = includes(text).map(String::from).collect();
    while let Some(name) = names.pop() {
        if found.contains_key(&name) {
            continue;
        }
        let folder = if name == "emu.hpp" { "tests/emu" } else { "mhc-core/device" };
        let text = read(&format!("{folder}/{name}"))?;
        names.extend(includes(&text).map(String::from));
        found.insert(name, text);
    }
    Ok(found)
}

impl Builder {
    fn new(wave: u32) -> Result<Self> {
        let folder = Path::new(ROOT).join("target/emu").join(format!("w{wave}"));
        std::fs::create_dir_all(&folder).map_err(|e| failed("create target/emu", e))?;
        Ok(Self { wave, folder })
    }

    /// Compiles `text` unless that was done before, and gives the path of the result.
    fn build(&self, name: &str, text: &str, before: &[&str], after: &[&str]) -> Result<PathBuf> {
        let mut hash = DefaultHasher::new();
        (included(text)?, text, FLAGS, before).hash(&mut hash);
        let built = self.folder.join(format!("{name}-{:016x}", hash.finish()));
        if built.exists() {
            return Ok(built);
        }
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
        let (source, unfinished) = (built.with_extension("cpp"), built.with_extension(std::process::id().to_string()));
        std::fs::write(&source, text).map_err(|e| failed("write a source", e))?;
        let mut command = Command::new(&compiler);
        command.args(FLAGS).arg(format!("-DMHC_WAVE={}", self.wave));
        command.args(["mhc-core/device", "tests/emu"].map(|folder| format!("-I{ROOT}/{folder}")));
        command.args(before).arg("-o").arg(&unfinished).arg(&source).args(after);
        let compile =
            |log: String| Error::Compile { entry: name.into(), arch: format!("emu, wave {}", self.wave), log };
        let output = command.output().map_err(|e| compile(format!("{compiler}: {e}")))?;
        if !output.status.success() || !output.stderr.is_empty() {
            return Err(compile(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        std::fs::rename(&unfinished, &built).map_err(|e| failed("keep an image", e))?;
        Ok(built)
    }
}

// SAFETY: the server's memory is aligned to 256 bytes and handed out once; every call waits until it is done, under one lock.
unsafe impl GpuDriver for EmuDriver {
    type Module = Module;
    type Function = u64;

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn load(&self, source: &'static str, _: DType) -> Result<Module> {
        let found = SOURCES.iter().find(|s| s.name == source);
        found.map(Module).ok_or_else(|| failed("load", format!("no source called {source}")))
    }

    fn function(&self, module: &Module, entry: &str) -> Result<u64> {
        let entries = (module.0.entries)();
        let Some(e) = entries.iter().find(|e| e.name(self.builder.wave) == entry) else {
            return Err(failed("function", format!("{} has no entry {entry}", module.0.name)));
        };
        // A gradient that is compiled apart is in its operator's file.
        let name = module.0.name.trim_end_matches("_bwd");
        let text = read(&format!("mhc-core/src/ops/{name}/kernel.cuh"))
            .or_else(|_| read(&format!("mhc-core/device/{name}.cuh")))?;
        let unit = format!("{text}\nMHC_KERNEL_{}({entry}, {}, {})\n", e.kernel, e.dtype, e.streams);
        let path = self.builder.build(entry, &unit, &["-fPIC", "-shared"], &[])?;
        let path = path.to_string_lossy();
        let found = self.talk("function", |s| {
            s.send(b'e', &[path.len() as u64], path.as_bytes())?;
            s.to.write_all(&(entry.len() as u64).to_le_bytes())?;
            s.to.write_all(entry.as_bytes())?;
            s.to.flush()?;
            s.word()
        })?;
        if found == 0 { Err(failed("function", format!("{entry} did not load"))) } else { Ok(found) }
    }

    unsafe fn launch(&self, f: u64, launch: &Launch, s: RawStream, cells: &mut [u64]) -> Result<()> {
        let ([x, y, z], [threads, ..]) = (launch.grid, launch.block);
        let head = [x, y, z, threads, launch.shared].map(u64::from);
        let cells = &cells[..launch.cells()];
        let words: Vec<u64> =
            [f].into_iter().chain(head).chain([cells.len() as u64]).chain(cells.iter().copied()).collect();
        self.enqueue(s, Work { command: b'l', words })
    }

    fn create_stream(&self) -> Result<RawStream> {
        Ok(RawStream(self.queue.number()))
    }
    unsafe fn destroy_stream(&self, _: RawStream) {}
    fn sync(&self, s: RawStream) -> Result<()> {
        self.queue.allowed("sync", s)
    }

    fn alloc(&self, bytes: usize, s: RawStream) -> Result<DevPtr> {
        self.queue.allowed("alloc", s)?;
        let p = self.talk("alloc", |s| {
            s.send(b'a', &[bytes as u64], &[])?;
            s.word()
        })?;
        if p == 0 { Err(Error::OutOfMemory { device: self.info.id.to_string(), bytes }) } else { Ok(DevPtr(p)) }
    }
    unsafe fn free(&self, p: DevPtr, _: RawStream) {
        // A server that has stopped has freed everything.
        let _ = self.talk("free", |s| s.send(b'f', &[p.0], &[]));
    }
}
