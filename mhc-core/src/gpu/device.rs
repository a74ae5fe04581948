//! The one device that every GPU backend shares: kernels from plans, over a [`GpuDriver`].

use core::fmt;
use std::{
    collections::{
        HashMap,
        hash_map::Entry::{Occupied, Vacant},
    },
    panic::resume_unwind,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock},
    thread,
};

use super::{Arg, Entry, Fallback, GpuCaps, GpuDriver, GpuQueue, Launch, Plan};
use crate::{DType, DevPtr, Device, DeviceInfo, Dims, Error, Kernel, Problem, RawStream, RawView, Result, Support};

/// The most problems whose kernels are remembered. A kernel is cheap to make again (its functions stay loaded), so that forgetting all
/// of them now and then is cheaper than keeping books.
const MAX_KERNELS: usize = 4096;

/// A GPU. Prepares a problem by planning it, loading the images of its launches and looking up their entry points, once each.
pub struct GpuDevice<D: GpuDriver> {
    shared: Arc<Shared<D>>,
    kernels: RwLock<Kernels>,
}

/// What kernels keep alive.
struct Shared<D: GpuDriver> {
    // Before the driver, so that functions and modules go first.
    images: Mutex<HashMap<(&'static str, DType), Loaded<D>>>,
    driver: D,
    caps: GpuCaps,
}

struct Loaded<D: GpuDriver> {
    functions: HashMap<Entry, D::Function>,
    module: D::Module,
}

/// Kernels by operator and sizes; those that differ in attributes only are told apart by comparison, as attributes have no hash.
#[derive(Default)]
struct Kernels {
    by_size: HashMap<(&'static str, Dims, DType), Vec<Prepared>>,
    count: usize,
}

type Prepared = (Problem, Arc<dyn Kernel>);

impl Kernels {
    fn get(&self, p: &Problem) -> Option<Arc<dyn Kernel>> {
        let same_size = self.by_size.get(&(p.op.desc().name, p.dims, p.act))?;
        same_size.iter().find(|(q, _)| q.op == p.op).map(|(_, k)| k.clone())
    }

    fn insert(&mut self, p: &Problem, kernel: Arc<dyn Kernel>) {
        if self.count >= MAX_KERNELS {
            *self = Self::default();
        }
        self.count += 1;
        self.by_size.entry((p.op.desc().name, p.dims, p.act)).or_default().push((p.clone(), kernel));
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<D: GpuDriver> GpuDevice<D> {
    /// A device over a driver. [`Error::Unsupported`] if the driver does not say what plans depend on.
    pub fn new(driver: D) -> Result<Self> {
        let info = driver.info();
        let caps = info.caps.clone().ok_or_else(|| {
            let why = "its driver does not report its capabilities".into();
            Error::Unsupported { op: "device", device: info.id.to_string(), why }
        })?;
        let shared = Shared { images: Mutex::default(), driver, caps };
        Ok(Self { shared: Arc::new(shared), kernels: RwLock::default() })
    }

    /// The driver.
    pub fn driver(&self) -> &D {
        &self.shared.driver
    }

    /// A plan with the functions of its launches.
    pub(super) fn prepare(&self, plan: Plan) -> Result<GpuKernel<D>> {
        let Plan { launches, workspace, fallback } = plan;
        let steps = self.shared.steps(&launches)?;
        let otherwise = fallback.map(|plan| Otherwise { plan, steps: OnceLock::new() });
        Ok(GpuKernel { shared: self.shared.clone(), steps, otherwise, workspace })
    }
}

impl<D: GpuDriver> Shared<D> {
    fn steps(&self, launches: &[Launch]) -> Result<Vec<Step<D>>> {
        launches.iter().filter(|launch| !launch.grid.contains(&0)).map(|launch| self.step(launch.clone())).collect()
    }

    fn step(&self, mut launch: Launch) -> Result<Step<D>> {
        let function = self.function(&launch)?;
        if launch.resident {
            launch.grid[0] = launch.grid[0].min(self.driver.resident(function, &launch)?);
        }
        Ok(Step { function, launch })
    }

    fn function(&self, launch: &Launch) -> Result<D::Function> {
        let entry = || launch.entry.name(self.caps.wave);
        if launch.cells() > Launch::MAX_CELLS {
            let log = format!("{} cells of arguments, but at most {} are possible", launch.cells(), Launch::MAX_CELLS);
            return Err(Error::Compile { entry: entry(), arch: self.caps.arch.clone(), log });
        }
        let (source, dtype) = (launch.source, launch.entry.dtype);
        let mut images = lock(&self.images);
        let loaded = match images.entry((source, dtype)) {
            Occupied(loaded) => loaded.into_mut(),
            Vacant(place) => {
                place.insert(Loaded { functions: HashMap::new(), module: self.driver.load(source, dtype)? })
            }
        };
        if let Some(f) = loaded.functions.get(&launch.entry) {
            return Ok(*f);
        }
        let f = self.driver.function(&loaded.module, &entry())?;
        loaded.functions.insert(launch.entry, f);
        Ok(f)
    }
}

impl<D: GpuDriver> fmt::Debug for GpuDevice<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GpuDevice({:?})", self.shared.driver)
    }
}

impl<D: GpuDriver> Device for GpuDevice<D> {
    fn info(&self) -> &DeviceInfo {
        self.shared.driver.info()
    }

    fn support(&self, p: &Problem) -> Support {
        match p.op.plan(&p.dims, p.act, &self.shared.caps) {
            Ok(_) => Support::Yes,
            Err(Error::Unsupported { why, .. }) => Support::No(why),
            Err(e) => Support::No(e.to_string()),
        }
    }

    fn kernel(&self, p: &Problem) -> Result<Arc<dyn Kernel>> {
        if let Some(kernel) = self.kernels.read().unwrap_or_else(PoisonError::into_inner).get(p) {
            return Ok(kernel);
        }
        let kernel: Arc<dyn Kernel> = Arc::new(self.prepare(p.op.plan(&p.dims, p.act, &self.shared.caps)?)?);
        self.kernels.write().unwrap_or_else(PoisonError::into_inner).insert(p, kernel.clone());
        Ok(kernel)
    }

    fn create_stream(&self) -> Result<RawStream> {
        self.driver().create_stream()
    }

    unsafe fn destroy_stream(&self, s: RawStream) {
        // SAFETY: the caller's promise.
        unsafe { self.driver().destroy_stream(s) }
    }

    fn sync(&self, s: RawStream) -> Result<()> {
        self.driver().sync(s)
    }

    fn alloc(&self, bytes: usize, s: RawStream) -> Result<DevPtr> {
        self.driver().alloc(bytes, s)
    }

    unsafe fn free(&self, p: DevPtr, _: usize, s: RawStream) {
        // SAFETY: the caller's promise.
        unsafe { self.driver().free(p, s) }
    }

    unsafe fn upload(&self, dst: DevPtr, src: &[u8], s: RawStream) -> Result<()> {
        // SAFETY: `dst` by the caller's promise; `src` is borrowed until the copy is done, which the next line waits for.
        unsafe { self.driver().upload(dst, src.as_ptr(), src.len(), s)? };
        self.driver().sync(s)
    }

    unsafe fn download(&self, dst: &mut [u8], src: DevPtr, s: RawStream) -> Result<()> {
        // SAFETY: as `upload`.
        unsafe { self.driver().download(dst.as_mut_ptr(), src, dst.len(), s)? };
        self.driver().sync(s)
    }

    fn queue(&self) -> Option<&dyn GpuQueue> {
        Some(self.driver())
    }
}

struct Step<D: GpuDriver> {
    launch: Launch,
    function: D::Function,
}

/// A planned problem with its functions looked up.
pub(super) struct GpuKernel<D: GpuDriver> {
    shared: Arc<Shared<D>>,
    steps: Vec<Step<D>>,
    otherwise: Option<Otherwise<D>>,
    workspace: usize,
}

/// A [`Fallback`] whose images are loaded once an operand wants them: most never do, and unpacking is what a first call takes longest for.
struct Otherwise<D: GpuDriver> {
    plan: Fallback,
    steps: OnceLock<Vec<Step<D>>>,
}

impl<D: GpuDriver> Otherwise<D> {
    fn is_wanted(&self, slots: &[Option<RawView>]) -> bool {
        !self.plan.vectors.iter().all(|&slot| view(slots, slot).is_none_or(|v| is_vector_aligned(&v)))
    }

    fn steps(&self, shared: &Shared<D>) -> Result<&[Step<D>]> {
        if let Some(steps) = self.steps.get() {
            return Ok(steps);
        }
        let load = || shared.steps(&self.plan.launches);
        // By a thread of its own, because the caller's may be recording a stream's work and is not allowed to load anything then.
        let steps = thread::scope(|scope| match thread::Builder::new().spawn_scoped(scope, load) {
            Ok(loader) => loader.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => load(),
        })?;
        Ok(self.steps.get_or_init(|| steps))
    }
}

impl<D: GpuDriver> fmt::Debug for GpuKernel<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.steps.iter().map(|s| &s.launch)).finish()
    }
}

impl<D: GpuDriver> Kernel for GpuKernel<D> {
    fn workspace(&self) -> usize {
        self.workspace
    }

    unsafe fn launch(&self, s: RawStream, slots: &[Option<RawView>], workspace: DevPtr) -> Result<()> {
        let steps = match &self.otherwise {
            Some(otherwise) if otherwise.is_wanted(slots) => otherwise.steps(&self.shared)?,
            _ => &self.steps,
        };
        for Step { launch, function } in steps {
            let mut cells = [0u64; Launch::MAX_CELLS];
            let mut next = 0;
            for arg in &launch.args {
                let end = next + arg.cells();
                match *arg {
                    Arg::Tile { slot, tokens, channels, streams } => {
                        if let Some(view) = view(slots, slot) {
                            let map = self.shared.driver.tensor_map(&view, tokens, channels, streams)?;
                            cells[next..end].copy_from_slice(&map);
                        }
                    }
                    ref plain => cells[next] = value(plain, slots, workspace),
                }
                next = end;
            }
            // SAFETY: the entry's parameter has one field of 8 bytes per argument, which is checked when images are built, and there are
            // never more arguments than cells; addresses are good by the caller's promise.
            unsafe { self.shared.driver.launch(*function, launch, s, &mut cells)? };
        }
        Ok(())
    }
}

fn view(slots: &[Option<RawView>], slot: usize) -> Option<RawView> {
    slots.get(slot).copied().flatten()
}

fn value(arg: &Arg, slots: &[Option<RawView>], workspace: DevPtr) -> u64 {
    match *arg {
        Arg::Slot(slot) => view(slots, slot).map_or(0, |v| v.ptr.0),
        Arg::Stride(slot, axis) => view(slots, slot).map_or(0, |v| v.layout.stride(axis) as u64),
        Arg::Workspace(bytes) => workspace.offset(bytes).0,
        Arg::U32(v) => v.into(),
        Arg::U64(v) => v,
        Arg::F32(v) => v.to_bits().into(),
        // Not one cell.
        Arg::Tile { .. } => 0,
    }
}

/// Whether the first element of every row lies at a multiple of 16 bytes.
fn is_vector_aligned(view: &RawView) -> bool {
    const VECTOR: u64 = 16;
    let (shape, strides) = (view.layout.shape(), view.layout.strides());
    let outer = shape.len().saturating_sub(1);
    let steps = shape[..outer].iter().zip(strides).filter(|(len, _)| **len > 1).map(|(_, stride)| *stride);
    let aligned = |bytes: u64| bytes.is_multiple_of(VECTOR);
    aligned(view.ptr.0) && steps.map(|s| (s * view.dtype.size()) as u64).all(aligned)
}

#[cfg(target_endian = "big")]
compile_error!("arguments are passed in cells of 64 bits, of which narrow ones take the first bytes");
