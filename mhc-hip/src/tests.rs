//! The device over a runtime that is not there.

use std::collections::BTreeSet;

use mhc_core::{
    Backend, DType, Dims, Error, Missing, Problem, RawStream, Result, Stream, Tensor,
    gpu::{Event, GpuDevice, GpuDriver, Graph, Pinned, copy, images::Image},
    ops::Post,
};
use std::sync::Arc;

use crate::{
    Hip,
    api::Code,
    driver::HipDriver,
    fake::{self, DEVICE, INJECTED, State, state},
    images::elf_object,
    probe,
};

/// True on every machine: whatever is there, the backend answers in words, and opening what is not there names it.
#[test]
fn answers_without_a_runtime_or_a_device() {
    let probe = Hip.probe();
    assert!(probe.to_string().starts_with("hip: "), "{probe}");
    let error = Hip.open(99).unwrap_err().to_string();
    assert!(error.contains("no usable device for `hip:99`"), "{error}");
    assert_eq!(probe.found.is_ok(), probe.found.is_ok_and(|devices| !devices.is_empty()), "no empty list");
}

/// A Zstandard frame of one block that is not compressed.
fn frame(bytes: &[u8]) -> &'static [u8] {
    let len = bytes.len() as u32;
    let block = (len << 3 | 1).to_le_bytes();
    let head = [&[0x28, 0xb5, 0x2f, 0xfd, 0xa0][..], &len.to_le_bytes(), &block[..3]].concat();
    Vec::leak([&head, bytes].concat())
}

/// The image of `post`, which is all that these tests load.
fn images(object: &[u8]) -> &'static [Image] {
    let (bytes, data) = (object.len(), frame(object));
    Vec::leak(vec![Image { source: "post", dtype: "bf16", target: "gfx942", offset: 0, bytes, data }])
}

fn device() -> Result<Arc<GpuDevice<HipDriver>>> {
    let driver = HipDriver::new(fake::api(), DEVICE as u32, images(&elf_object("gfx942")))?;
    Ok(Arc::new(GpuDevice::new(driver)?))
}

/// Everything a user can make the runtime do.
fn everything() -> Result<()> {
    let device = device()?;
    let stream = Stream::new(device.clone())?;
    let d = Dims::new(9, 4, 64);
    let p = Problem::new(Post::default(), d, DType::Bf16);
    let kernel = stream.prepare(&p)?;
    // SAFETY: the fake runtime touches no operand.
    let launch = || unsafe { kernel.launch(stream.raw(), &[None; 4], mhc_core::DevPtr::NULL) };
    let (start, end) = (Event::new(&stream)?, Event::new(&stream)?);
    start.record(&stream)?;
    launch()?;
    end.record(&stream)?;
    assert_eq!(end.elapsed_ms(&start)?, 0.5);
    end.hold(&stream)?;
    let mut t = Tensor::zeros(&stream, DType::F32, &[3])?;
    t.write(&[0; 12])?;
    t.read()?;
    copy(&stream, &Tensor::empty(&stream, DType::F32, &[3])?.view(), &mut t.view_mut())?;
    let mut pinned = Pinned::new(&stream, 12)?;
    // SAFETY: the fake runtime copies nothing.
    unsafe {
        pinned.upload(mhc_core::DevPtr(4096), &stream)?;
        pinned.download(mhc_core::DevPtr(4096), &stream)?;
    }
    let late = Tensor::empty(&stream, DType::F32, &[5])?;
    let mut graph = Graph::capture(&stream, || {
        drop(late);
        launch()
    })?;
    // SAFETY: as above.
    unsafe { graph.replay(&stream)? };
    // SAFETY: the default stream is always there.
    let foreign = unsafe { Stream::foreign(device.clone(), RawStream(0)) };
    drop(Tensor::empty(&foreign, DType::F32, &[7])?);
    let mut resident =
        mhc_core::gpu::Launch::new("post", mhc_core::gpu::Entry::new("post_fwd", DType::Bf16, 4), 9999, 64, Vec::new());
    resident.resident = true;
    let module = device.driver().load("post", DType::Bf16)?;
    let f = device.driver().function(&module, "entry")?;
    assert_eq!(device.driver().resident(f, &resident)?, 2 * 304);
    stream.sync()
}

/// Calls that give something back. Nobody can do anything about their failure, which therefore is no error.
const RELEASES: &[&str] = &[
    "module_unload",
    "stream_destroy",
    "graph_destroy",
    "graph_exec_destroy",
    "event_destroy",
    "free",
    "free_async",
    "free_host",
    "pool_destroy",
];

/// Calls by which a pool is tried out; where one fails, there is no pool.
const TRIED: &[&str] = &["device_attribute", "pool_create", "pool_set", "pool_alloc", "free_async"];

/// Runs everything, with the call of a number failing; what that call was and what became of it.
fn run(pools: bool, fail: Option<(usize, Code)>) -> (&'static str, Result<()>, State) {
    fake::reset(pools, fail);
    let result = everything();
    let state = state(core::mem::take);
    let call = fail.map_or("", |(number, _)| state.calls[number]);
    (call, result, state)
}

#[test]
fn every_failing_call_is_reported_and_nothing_leaks() {
    let mut covered = BTreeSet::new();
    for pools in [false, true] {
        let (_, result, good) = run(pools, None);
        result.unwrap();
        assert!(good.alive.is_empty() && good.wrong.is_empty(), "{:?} {:?}", good.alive, good.wrong);
        assert_eq!(good.device, 0, "the thread has its device back");
        covered.extend(good.calls.iter().copied());
        let syncs_at_the_end = good.calls.iter().rposition(|c| *c == "stream_destroy").unwrap();
        for number in 0..good.calls.len() {
            let (call, result, state) = run(pools, Some((number, INJECTED)));
            let what = format!("call {number}, {call}, pools {pools}: {result:?}");
            let released = RELEASES.contains(&call);
            // What could not be given back is still there, and nothing else.
            assert!(state.alive.len() <= usize::from(released), "{what}: {:?}", state.alive);
            match result {
                Err(Error::Driver { code: 999, .. }) => assert!(!released, "{what}"),
                // In the words of what was to be done with it.
                Err(Error::Compile { log, .. }) => {
                    assert!(
                        ["module_load", "module_function", "current_device", "set_device"].contains(&call),
                        "{what}"
                    );
                    assert!(log.contains("(999)") && log.contains("hipErrorOfTheFake: injected"), "{what}: {log}");
                }
                Err(e) => panic!("{what}: {e}"),
                Ok(()) => {
                    let tolerated = released
                        || TRIED.contains(&call)
                        // Binding for a release, whether a stream that is freed to is captured, and waiting for one that ends.
                        || ["current_device", "set_device", "stream_capturing"].contains(&call)
                        || (call == "stream_sync" && number + 8 > syncs_at_the_end);
                    assert!(tolerated, "{what}: nobody noticed");
                }
            }
        }
    }
    let all: BTreeSet<&str> = crate::api::FIELDS.iter().copied().collect();
    let find_only = ["init", "device_count", "pool_trim"];
    let missing: Vec<_> = all.difference(&covered).filter(|f| !find_only.contains(f)).collect();
    assert!(missing.is_empty(), "functions that no test lets fail: {missing:?}");
}

/// An allocation that fails is tried again after what is free was given back, and then is out of memory.
#[test]
fn memory_that_is_free_is_given_back_before_there_is_none() {
    for (pools, first, trim) in [(false, "alloc", "free"), (true, "pool_alloc", "pool_trim")] {
        fake::reset(pools, None);
        let device = device().unwrap();
        let stream = Stream::new(device).unwrap();
        drop(Tensor::empty(&stream, DType::F32, &[1000]).unwrap());
        let before = state(|s| {
            // After the question whether the stream is captured, in which the device is bound.
            let at = s.calls.len() + 6;
            s.fail = Some((at, Code::OUT_OF_MEMORY));
            s.calls.len()
        });
        let again = Tensor::empty(&stream, DType::F32, &[5000]);
        let calls = state(|s| s.calls[before..].to_vec());
        let at = |name| calls.iter().position(|c| *c == name).unwrap_or_else(|| panic!("no {name} in {calls:?}"));
        assert!(at(first) < at(trim) && calls.iter().filter(|c| **c == first).count() == 2, "{calls:?}");
        drop(again.unwrap());
    }
    fake::reset(false, None);
    let stream = Stream::new(device().unwrap()).unwrap();
    let error = stream.device().alloc(usize::MAX, stream.raw()).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { bytes: usize::MAX, .. }), "{error}");
}

/// What a stream freed goes to itself at once, and to others only after it has ended.
#[test]
fn blocks_are_used_again_without_asking_the_runtime() {
    fake::reset(false, None);
    let device = device().unwrap();
    let (a, b) = (Stream::new(device.clone()).unwrap(), Stream::new(device.clone()).unwrap());
    let address = |stream: &Stream| Tensor::empty(stream, DType::F32, &[100]).unwrap().view().raw().ptr;
    let first = address(&a);
    assert_eq!(address(&a), first);
    assert_ne!(address(&b), first);
    drop(a);
    assert!([address(&b), address(&Stream::new(device).unwrap())].contains(&first));
    assert_eq!(state(|s| s.calls.iter().filter(|c| **c == "alloc").count()), 2);
}

/// Of an image that is not whole, or of another architecture, the runtime sees nothing: it would end the process.
#[test]
fn damaged_images_do_not_reach_the_runtime() {
    let whole = elf_object("gfx942");
    let cut = &whole[..whole.len() - 1];
    for (object, words) in
        [(cut, "cut off"), (&[7; 4096], "no ELF file"), (&elf_object("gfx1100")[..], "for gfx1100, not for gfx942")]
    {
        fake::reset(false, None);
        let driver = HipDriver::new(fake::api(), DEVICE as u32, images(object)).unwrap();
        let error = driver.load("post", DType::Bf16).unwrap_err().to_string();
        assert!(error.contains("embedded gfx942") && error.contains(words), "{error}");
        assert!(error.contains("gfx9-4-generic") && error.contains("hiprtc"), "all that was tried: {error}");
        assert!(!state(|s| s.calls.contains(&"module_load")), "{words}");
    }
}

/// Errors that users meet are told apart in words.
#[test]
fn codes_have_meanings() {
    let api = fake::api();
    let words = [(100, "/dev/kfd"), (101, "no device of this number"), (200, "damaged"), (209, "architecture")];
    for (code, words) in words.into_iter().chain([(719, "did not start"), (1, "injected")]) {
        let said = api.name(Code(code));
        assert!(said.starts_with("hipErrorOfTheFake: ") && said.contains(words), "{code}: {said}");
    }
    for (code, none) in [(100, true), (101, true), (999, false)] {
        fake::reset(false, Some((0, Code(code))));
        let missing = probe::find(api).unwrap_err();
        assert_eq!(matches!(missing, Missing::NoDevice { .. }), none, "{missing}");
    }
}
