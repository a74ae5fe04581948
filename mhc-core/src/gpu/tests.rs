//! The shared device over a driver that is not there.

use std::{collections::HashSet, sync::Arc};

use super::{
    Arg, Entry, Event, Fallback, GpuCaps, GpuDevice, Graph, Launch, Pinned, Plan, TileStreams, copy,
    fake::{Fake, State},
};
use crate::{
    AnyOp, DType, DevPtr, Device, DeviceId, Dims, Error, Kernel, Layout, Level, Problem, RawStream, RawView, Result,
    Stream, Tensor,
    ops::{Post, SOURCES},
};

fn device() -> (Fake, Arc<GpuDevice<Fake>>) {
    let fake = Fake::new();
    let device = GpuDevice::new(fake.clone()).unwrap();
    (fake, Arc::new(device))
}

/// What `post` loads: its entry over vectors. The one for operands that do not lie as that wants is for when there are some.
const POST_ENTRIES: usize = 1;

fn post(tokens: usize) -> Problem {
    Problem::new(Post::default(), Dims::new(tokens, 4, 64), DType::Bf16)
}

/// Runs `post` on fresh tensors.
fn run_post(stream: &Stream, p: &Problem) -> Result<()> {
    let d = p.dims;
    let mut x_next = Tensor::empty(stream, p.act, &[d.tokens, d.streams, d.channels])?;
    let x = Tensor::empty(stream, p.act, &[d.tokens, d.streams, d.channels])?;
    let y = Tensor::empty(stream, p.act, &[d.tokens, d.channels])?;
    let mixes = Tensor::empty(stream, DType::F32, &[d.tokens, d.mix()])?;
    stream.run(p, &[x.view(), y.view(), mixes.view()], &mut [x_next.view_mut()])
}

#[test]
fn loads_each_image_once_whatever_the_sizes() {
    let (fake, device) = device();
    let stream = Stream::new(device).unwrap();
    for tokens in [3, 3, 17, 0, 1] {
        run_post(&stream, &post(tokens)).unwrap();
    }
    assert_eq!((fake.count("load"), fake.count("function"), fake.count("launch")), (1, POST_ENTRIES, 4));
}

#[test]
fn threads_share_what_is_loaded() {
    let (fake, device) = device();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let stream = Stream::new(device.clone()).unwrap();
            scope.spawn(move || (1..50).for_each(|tokens| run_post(&stream, &post(tokens)).unwrap()));
        }
    });
    assert_eq!((fake.count("load"), fake.count("function"), fake.count("launch")), (1, POST_ENTRIES, 4 * 49));
}

#[test]
fn remembers_a_bounded_number_of_problems() {
    let (fake, device) = device();
    for tokens in 1..10_000 {
        device.kernel(&post(tokens)).unwrap();
    }
    assert_eq!(fake.count("function"), POST_ENTRIES);
    let (a, b) = (device.kernel(&post(9_999)).unwrap(), device.kernel(&post(9_999)).unwrap());
    assert!(Arc::ptr_eq(&a, &b), "the same problem is not planned again");
}

#[test]
fn a_kernel_keeps_its_module() {
    let (fake, device) = device();
    let kernel = device.kernel(&post(5)).unwrap();
    drop(device);
    // SAFETY: the fake driver touches no operand.
    unsafe { kernel.launch(RawStream(0), &[None; 4], DevPtr::NULL).unwrap() };
    drop(kernel);
    assert!(fake.state().alive.is_empty());
}

#[test]
fn launching_makes_no_other_call() {
    let (fake, device) = device();
    let stream = Stream::new(device).unwrap();
    let p = post(9);
    let kernel = stream.prepare(&p).unwrap();
    let before = fake.state().calls.len();
    // SAFETY: the fake driver touches no operand.
    unsafe { kernel.launch(stream.raw(), &[None; 4], DevPtr::NULL).unwrap() };
    let calls = fake.state().calls[before..].to_vec();
    assert_eq!(calls.len(), 1);
    assert!(calls[0].starts_with("launch "), "{calls:?}");
}

/// Two launches that take everything an argument can be.
fn handmade() -> Plan {
    let entry = |kernel| Entry::new(kernel, DType::F32, 4);
    let args = vec![
        Arg::Slot(0),
        Arg::Stride(0, 0),
        Arg::Stride(0, 1),
        Arg::Slot(1),
        Arg::Stride(1, 0),
        Arg::Workspace(512),
        Arg::U32(7),
        Arg::U64(1 << 40),
        Arg::F32(1.5),
    ];
    let fast = Launch { overlap: true, ..Launch::new("post", entry("fast"), 3, 64, args.clone()) };
    let empty = Launch::new("post", entry("empty"), 0, 64, args.clone());
    let slow = Launch::new("post", entry("slow"), 3, 64, args);
    Plan {
        launches: vec![fast, empty],
        workspace: 1024,
        fallback: Some(Fallback { vectors: vec![0, 1], launches: vec![slow] }),
    }
}

fn view(address: u64, shape: &[usize], strides: &[usize]) -> Option<RawView> {
    let layout = Layout::strided(shape, strides).unwrap();
    Some(RawView { ptr: DevPtr(address), layout, dtype: DType::Bf16, device: DeviceId { backend: "fake", ordinal: 0 } })
}

fn launch_handmade(slots: &[Option<RawView>]) -> (String, Vec<u64>) {
    let (fake, device) = device();
    let kernel = device.prepare(handmade()).unwrap();
    assert_eq!(kernel.workspace(), 1024);
    // SAFETY: the fake driver touches no operand.
    unsafe { kernel.launch(RawStream(0), slots, DevPtr(4096)).unwrap() };
    let state = fake.state();
    let calls: Vec<_> = state.calls.iter().filter(|c| c.starts_with("launch ")).cloned().collect();
    let State { cells, .. } = &*state;
    assert_eq!((calls.len(), cells.len()), (1, 1), "the empty launch is left out");
    (calls[0].clone(), cells[0].clone())
}

#[test]
fn arguments_are_cells_in_order() {
    let (_, cells) = launch_handmade(&[view(0x1000, &[5, 2, 8], &[64, 24, 1]), None]);
    let f32_bits = u64::from(1.5f32.to_bits());
    assert_eq!(cells, [0x1000, 64, 24, 0, 0, 4096 + 512, 7, 1 << 40, f32_bits]);
}

#[test]
fn falls_back_where_rows_are_not_at_multiples_of_16_bytes() {
    let aligned = view(0x1000, &[5, 2, 8], &[64, 24, 1]);
    let kernel = |slots: &[Option<RawView>]| launch_handmade(slots).0.contains("\"fast\"");
    assert!(kernel(&[aligned, aligned]));
    assert!(kernel(&[aligned, None]), "absent operands do not count");
    assert!(kernel(&[aligned, view(0x1000, &[1, 2, 8], &[3, 8, 1])]), "strides of single rows do not count");
    assert!(!kernel(&[view(0x1002, &[5, 2, 8], &[64, 24, 1]), aligned]), "address");
    assert!(!kernel(&[aligned, view(0x1000, &[5, 2, 8], &[64, 12, 1])]), "stride");
}

#[test]
fn what_it_falls_back_on_is_loaded_when_it_is_wanted() {
    let (fake, device) = device();
    let mut plan = handmade();
    plan.fallback.as_mut().unwrap().launches[0].source = "project";
    let kernel = device.prepare(plan).unwrap();
    let stream = Stream::new(device).unwrap();
    let launch = |address| {
        let x = view(address, &[5, 2, 8], &[64, 24, 1]);
        // SAFETY: the fake driver touches no operand.
        unsafe { kernel.launch(stream.raw(), &[x, x], DevPtr(4096)) }
    };
    launch(0x1000).unwrap();
    assert_eq!((fake.count("load"), fake.count("launch")), (1, 1));
    let next = fake.state().calls.len();
    fake.state().fail = Some(next);
    assert!(launch(0x1002).is_err());
    // The driver refuses to load on the thread that records.
    Graph::capture(&stream, || launch(0x1002)).unwrap();
    launch(0x1002).unwrap();
    assert_eq!((fake.count("load"), fake.count("launch")), (3, 3), "once, but for the one that failed");
}

#[test]
fn tiles_and_resident_blocks_are_asked_of_the_driver() {
    let (fake, device) = device();
    let tile = Arg::Tile { slot: 0, tokens: 16, channels: 64, streams: TileStreams::One };
    let args = vec![tile, Arg::U32(5)];
    let launch = |blocks| {
        let launch = Launch::new("post", Entry::new("post_fwd", DType::F32, 4), blocks, 32, args.clone());
        Launch { resident: true, ..launch }
    };
    let kernel = device.prepare(Plan::new(vec![launch(1), launch(9)], 0)).unwrap();
    // SAFETY: the fake driver touches no operand.
    unsafe { kernel.launch(RawStream(0), &[view(0x1000, &[5, 8], &[8, 1])], DevPtr::NULL).unwrap() };
    // SAFETY: as above.
    unsafe { kernel.launch(RawStream(0), &[None], DevPtr::NULL).unwrap() };
    let state = fake.state();
    let cells = |map| [vec![map; 16], vec![5]].concat();
    assert_eq!(
        state.cells,
        [cells(0x1000), cells(0x1000), cells(0), cells(0)],
        "what follows an absent tile stays in its place"
    );
    let grids = state.calls.iter().filter(|c| c.starts_with("launch ")).map(|c| c.rsplit_once('[').unwrap().1);
    assert_eq!(grids.take(2).collect::<Vec<_>>(), ["1, 1, 1]", "2, 1, 1]"], "never more than run at once");
}

/// Everything a user can make the driver do.
fn everything(device: Arc<dyn Device>) -> Result<()> {
    let stream = Stream::new(device)?;
    let p = post(6);
    stream.prepare(&p)?;
    let (start, end) = (Event::new(&stream)?, Event::new(&stream)?);
    start.record(&stream)?;
    run_post(&stream, &p)?;
    end.record(&stream)?;
    assert_eq!(end.elapsed_ms(&start)?, 512.0);
    end.hold(&stream)?;
    let mut t = Tensor::zeros(&stream, DType::F32, &[3])?;
    t.write(&[0; 12])?;
    t.read()?;
    copy(&stream, &Tensor::empty(&stream, DType::F32, &[3])?.view(), &mut t.view_mut())?;
    let mut pinned = Pinned::new(&stream, 12)?;
    assert_eq!(*pinned, [0; 12]);
    // SAFETY: the fake driver copies nothing.
    unsafe {
        pinned.upload(DevPtr(256), &stream)?;
        pinned.download(DevPtr(256), &stream)?;
    }
    let kernel = stream.prepare(&p)?;
    // SAFETY: the fake driver touches no operand.
    let mut graph = Graph::capture(&stream, || unsafe { kernel.launch(stream.raw(), &[None; 4], DevPtr::NULL) })?;
    // SAFETY: as above.
    unsafe { graph.replay(&stream)? };
    stream.sync()
}

#[test]
fn every_failing_call_is_reported_and_nothing_leaks() {
    let (fake, dev) = device();
    everything(dev).unwrap();
    let calls = fake.state().calls.clone();
    assert!(fake.state().alive.is_empty(), "{:?}", fake.state().alive);
    for (number, call) in calls.iter().enumerate() {
        let (fake, dev) = device();
        fake.state().fail = Some(number);
        let error = everything(dev).unwrap_err();
        let Error::Driver { call: failed, code: 999, .. } = error else { panic!("{call}: {error}") };
        assert_eq!(Some(failed), call.split(' ').next());
        assert!(fake.state().alive.is_empty(), "after {call} failed: {:?}", fake.state().alive);
    }
    let kinds: HashSet<_> = calls.iter().filter_map(|c| c.split(' ').next()).collect();
    assert_eq!(kinds.len(), 17, "a call of the driver is not covered: {kinds:?}");
}

#[test]
fn copies_are_of_the_same_kind_on_one_device() {
    let (fake, dev) = device();
    let stream = Stream::new(dev).unwrap();
    let make = |dtype, shape: &[usize]| Tensor::empty(&stream, dtype, shape).unwrap();
    let from = make(DType::F32, &[2, 3]);
    let message = |to: &mut Tensor| copy(&stream, &from.view(), &mut to.view_mut()).map_err(|e| e.to_string());
    assert_eq!(message(&mut make(DType::F32, &[2, 3])), Ok(()));
    assert_eq!(fake.count("copy"), 1);
    assert!(matches!(message(&mut make(DType::F32, &[3, 2])), Err(e) if e.contains("shape")));
    assert!(matches!(message(&mut make(DType::Bf16, &[2, 3])), Err(e) if e.contains("f32")));
    let mut host = [0f32; 6];
    let mut to = crate::ViewMut::from_slice(&mut host, &[2, 3]).unwrap();
    assert!(matches!(copy(&stream, &from.view(), &mut to), Err(Error::WrongDevice { slot: "to", .. })));
    let gaps = RawView { layout: Layout::strided(&[2, 3], &[4, 1]).unwrap(), ..*from.view().raw() };
    // SAFETY: the fake driver touches no operand.
    let gaps = unsafe { crate::View::from_raw(gaps) };
    let error = copy(&stream, &gaps, &mut make(DType::F32, &[2, 3]).view_mut());
    assert!(matches!(error, Err(Error::Layout { slot: "from", .. })));
    copy(&stream, &make(DType::F32, &[0]).view(), &mut make(DType::F32, &[0]).view_mut()).unwrap();
    assert_eq!(fake.count("copy"), 1, "nothing else was copied");
}

#[test]
fn a_failed_load_is_tried_again() {
    let (fake, device) = device();
    fake.state().fail = Some(0);
    assert!(device.kernel(&post(2)).is_err());
    device.kernel(&post(2)).unwrap();
    assert_eq!(fake.count("load"), 2);
}

#[test]
fn a_capture_ends_when_its_closure_fails_or_panics() {
    let (fake, device) = device();
    let stream = Stream::new(device).unwrap();
    let wrong = Error::Checkpoint("stop".into());
    assert!(matches!(Graph::capture(&stream, || Err(wrong)), Err(Error::Checkpoint(_))));
    let panicked =
        std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| Graph::capture(&stream, || panic!("stop"))));
    assert!(panicked.is_err());
    drop(stream);
    assert!(fake.state().alive.is_empty(), "{:?}", fake.state().alive);
}

#[test]
fn graphs_and_events_stay_on_their_device() {
    let (_, device) = device();
    let stream = Stream::new(device).unwrap();
    let event = Event::new(&stream).unwrap();
    let cpu = Stream::new(Arc::new(Cpu::new())).unwrap();
    assert!(matches!(event.record(&cpu), Err(Error::WrongDevice { .. })));
    assert!(matches!(Event::new(&cpu), Err(Error::Unsupported { .. })));
    assert!(matches!(Pinned::new(&cpu, 1), Err(Error::Unsupported { .. })));
    assert!(matches!(Graph::capture(&cpu, || Ok(())), Err(Error::Unsupported { .. })));
}

/// A device without a queue.
#[derive(Debug)]
struct Cpu(crate::DeviceInfo);

impl Cpu {
    fn new() -> Self {
        let info = crate::DeviceInfo {
            id: DeviceId::CPU,
            name: String::new(),
            arch: String::new(),
            memory: None,
            caps: None,
            notes: vec![],
        };
        Self(info)
    }
}

impl Device for Cpu {
    fn info(&self) -> &crate::DeviceInfo {
        &self.0
    }
    fn support(&self, _: &Problem) -> crate::Support {
        crate::Support::Yes
    }
    fn kernel(&self, _: &Problem) -> Result<Arc<dyn Kernel>> {
        Err(Error::Checkpoint("none".into()))
    }
    fn create_stream(&self) -> Result<RawStream> {
        Ok(RawStream(0))
    }
    unsafe fn destroy_stream(&self, _: RawStream) {}
    fn sync(&self, _: RawStream) -> Result<()> {
        Ok(())
    }
    fn alloc(&self, bytes: usize, _: RawStream) -> Result<DevPtr> {
        Err(Error::OutOfMemory { device: "cpu".into(), bytes })
    }
    unsafe fn free(&self, _: DevPtr, _: usize, _: RawStream) {}
    unsafe fn upload(&self, _: DevPtr, _: &[u8], _: RawStream) -> Result<()> {
        Ok(())
    }
    unsafe fn download(&self, _: &mut [u8], _: DevPtr, _: RawStream) -> Result<()> {
        Ok(())
    }
}

/// What every vendor's devices look like to a plan, one per wave size and size of shared memory.
fn all_caps() -> Vec<GpuCaps> {
    let caps = |arch: &str, wave, units, shared_per_block| GpuCaps {
        arch: arch.into(),
        wave,
        units,
        shared_per_block,
        max_threads: 1024,
        tuned: Vec::new(),
    };
    vec![
        caps("sm_80", 32, 108, 166_912),
        caps("sm_86", 32, 84, 101_376),
        caps("sm_90", 32, 132, 232_448),
        caps("sm_120", 32, 170, 101_376),
        caps("gfx942", 64, 304, 65_536),
        caps("gfx1100", 32, 96, 65_536),
    ]
}

#[test]
fn every_plan_launches_what_is_compiled_within_the_limits() {
    let entries: HashSet<_> = SOURCES.iter().flat_map(|s| (s.entries)().into_iter().map(|e| (s.name, e))).collect();
    let mut planned = 0;
    for case in AnyOp::all_cases(Level::Soak) {
        for (act, caps) in DType::ALL.into_iter().flat_map(|act| all_caps().into_iter().map(move |c| (act, c))) {
            let slots = case.op.desc().slots.len();
            let plan = match case.op.plan(&case.dims, act, &caps) {
                Err(Error::Unsupported { .. }) => continue,
                plan => plan.unwrap(),
            };
            planned += 1;
            let fallback = plan.fallback.iter().flat_map(|f| &f.launches);
            for l in plan.launches.iter().chain(fallback).filter(|l| !l.grid.contains(&0)) {
                let what = format!("{} {:?} {act} {}: {l:?}", case.op.desc().name, case.dims, caps.arch);
                assert!(!l.entry.arch.is_empty() || entries.contains(&(l.source, l.entry)), "not compiled: {what}");
                let threads = l.block.iter().product::<u32>();
                assert!(l.grid[0].checked_mul(threads).is_some(), "AMD counts threads in 32 bits: {what}");
                assert!(l.grid[1] <= 65535 && l.grid[2] <= 65535, "{what}");
                assert!((1..=caps.max_threads).contains(&threads) && threads.is_multiple_of(caps.wave), "{what}");
                assert!(l.shared <= caps.shared_per_block && l.cells() <= Launch::MAX_CELLS, "{what}");
                for arg in &l.args {
                    match *arg {
                        Arg::Slot(slot) | Arg::Stride(slot, _) => assert!(slot < slots, "{what}"),
                        // What has no elements, as partial sums for T = 0, may begin where the scratch ends.
                        Arg::Workspace(offset) => assert!(offset <= plan.workspace, "{what}"),
                        _ => {}
                    }
                }
            }
        }
    }
    assert!(planned > 0);
}
