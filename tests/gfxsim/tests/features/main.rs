//! One kernel for each feature of the hardware, compiled by AMD's own compiler and run on every GPU that is simulated, against a model in
//! Rust. Where AMD's libraries are not there (`cargo xtask sim setup` unpacks them), every case is reported as ignored, by name.

#![allow(clippy::print_stderr)] // a test program talks to its user

use std::{ops::Range, sync::OnceLock};

use libtest_mimic::{Arguments, Failed, Trial};
use mhc_gfxsim::{
    arch::Arch,
    compiler::Hiprtc,
    direct::{Direct, Object, Work},
    traffic::Counters,
};

mod models;

use models::{Expected, Feature, GROUP};

const KERNELS: &str = include_str!("kernels.hip");

/// A word that stands where nobody wrote: what registers, or the workgroup's memory, begin with.
const JUNK: [u32; 2] = [0xdead_beef, 0xcdcd_cdcd];

/// One GPU with the kernels compiled for it.
struct Bench {
    gpu: Direct,
    object: Object,
}

fn main() {
    let arguments = Arguments::from_args();
    let compiler = Hiprtc::find();
    let there = compiler.is_some() && Direct::new(Arch::Gfx942, 1).is_ok();
    if !there {
        eprintln!("AMD's compiler or disassembler is not there: all cases are ignored; see `cargo xtask sim setup`");
    }
    static BENCHES: [OnceLock<Result<Bench, String>>; 4] = [const { OnceLock::new() }; 4];
    let mut trials = Vec::new();
    for (arch, bench) in Arch::ALL.into_iter().zip(&BENCHES) {
        let get = move || {
            let compiler = compiler.ok_or("no compiler")?;
            bench.get_or_init(|| Bench::new(arch, compiler)).as_ref().map_err(Clone::clone)
        };
        for feature in models::all(arch.name()) {
            let name = format!("{}/{}", arch.name(), feature.name);
            let run = move || get()?.check(&feature).map_err(Failed::from);
            trials.push(Trial::test(name, run).with_ignored_flag(!there));
        }
        let name = |what: &str| format!("{}/{what}", arch.name());
        let counted = move || get()?.counts_traffic().map_err(Failed::from);
        trials.push(Trial::test(name("counts_traffic"), counted).with_ignored_flag(!there));
        let complete = move || get()?.every_kernel_has_a_model(arch).map_err(Failed::from);
        trials.push(Trial::test(name("every_kernel_has_a_model"), complete).with_ignored_flag(!there));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// Where a buffer lies.
fn range(buffer: &mut [u32]) -> Range<u64> {
    let start = buffer.as_mut_ptr() as u64;
    start..start + size_of_val(buffer) as u64
}

impl Bench {
    fn new(arch: Arch, compiler: &Hiprtc) -> Result<Self, String> {
        let options = [format!("--offload-arch={}", arch.name()), "-O3".into(), "-std=c++17".into()];
        let code = compiler.compile(KERNELS, &[], &options)?;
        Ok(Self { gpu: Direct::new(arch, 2)?, object: Object::load(&code)? })
    }

    fn run(&self, feature: &Feature) -> Result<(Vec<u32>, Counters), String> {
        let (mut input, mut output) = (feature.input.clone(), vec![0u32; feature.output]);
        let arguments = [input.as_ptr() as u64, output.as_mut_ptr() as u64, feature.n.into()];
        let work = Work {
            kernel: self.object.kernel(feature.name).ok_or("no such kernel")?,
            object: &self.object,
            groups: [feature.groups, 1, 1],
            items: [GROUP as u32, 1, 1],
            shared: 0,
            arguments: &arguments,
        };
        let ranges = [range(&mut input), range(&mut output)];
        // SAFETY: both buffers live until the launch is done, and nothing else touches them.
        let counters = unsafe { self.gpu.launch(&work, &ranges) }.map_err(|fault| fault.0)?;
        Ok((output, counters))
    }

    fn check(&self, feature: &Feature) -> Result<(), String> {
        let ran = self.run(feature);
        match &feature.expected {
            Expected::Fault(words) => match ran {
                Err(fault) if fault.contains(words) => Ok(()),
                Err(fault) => Err(format!("`{fault}` does not say `{words}`")),
                Ok(_) => Err("the mistake went unnoticed".into()),
            },
            Expected::Junk => match ran?.0.iter().any(|word| JUNK.contains(word)) {
                true => Ok(()),
                false => Err("what nobody had written did not show".into()),
            },
            Expected::Words(expected) => {
                let (output, _) = ran?;
                let wrong = |(_, (a, b)): &(usize, (&u32, &u32))| a != b;
                match output.iter().zip(expected).enumerate().find(wrong) {
                    None => Ok(()),
                    Some((at, (got, want))) => Err(format!("word {at} is {got:#x}, not {want:#x}")),
                }
            }
            Expected::Near(expected, tolerance) => {
                let (output, _) = ran?;
                let values = output.iter().map(|bits| f64::from(f32::from_bits(*bits)));
                let wrong = |(_, (got, want)): &(usize, (f64, &f32))| {
                    let want = f64::from(**want);
                    got.is_nan() || (got - want).abs() > tolerance * want.abs().max(1e-3)
                };
                match values.zip(expected).enumerate().find(wrong) {
                    None => Ok(()),
                    Some((at, (got, want))) => Err(format!("number {at} is {got}, not {want}")),
                }
            }
        }
    }

    /// A copy of 4 KiB by 16 bytes an item reads and writes each of 32 lines once, by two instructions of each wave.
    fn counts_traffic(&self) -> Result<(), String> {
        let bytes = 16 * GROUP as u64;
        let feature = Feature {
            name: "copied_by_vectors",
            input: vec![7; 4 * GROUP],
            n: 0,
            groups: 1,
            output: 4 * GROUP,
            expected: Expected::Junk,
        };
        let (_, c) = self.run(&feature)?;
        if c.written_bytes != bytes || c.read_bytes != bytes || c.scalar_bytes == 0 || c.atomic_bytes != 0 {
            return Err(format!("not {bytes} bytes read and written: {c:?}"));
        }
        // A buffer need not begin with a line; then each wave's accesses, and the whole, touch one more.
        let lines = bytes / 128;
        let each = lines..=lines + c.waves;
        if !each.contains(&c.written_lines) || !each.contains(&c.read_lines) {
            return Err(format!("not {lines} lines: {c:?}"));
        }
        // And the arguments.
        if !(2 * lines + 1..=2 * lines + 4).contains(&c.different_lines) {
            return Err(format!("not {lines} lines on either side: {c:?}"));
        }
        Ok(())
    }

    fn every_kernel_has_a_model(&self, arch: Arch) -> Result<(), String> {
        let models = models::all(arch.name());
        match self.object.kernels().find(|kernel| models.iter().all(|m| m.name != *kernel)) {
            None => Ok(()),
            Some(kernel) => Err(format!("`{kernel}` has no model")),
        }
    }
}
