//! `cargo xtask test`: every operator proven right on every device that is there.

mod record;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use mhc_core::{AnyOp, DeviceInfo};
use mhc_tests::machine;
use xshell::cmd;

pub use record::{Conformance, Run};

use crate::{
    devices::Which,
    home::Home,
    programs,
    sim::{self, Choice},
};

/// Prove every operator right on every device that is there
///
/// Runs the unit tests, the adjoint proofs, the properties and the conformance harness. With `--op` only the harness and the proofs
/// of that operator.
#[derive(clap::Args)]
pub struct Args {
    /// Devices to test; one asked for by name that is not there is an error
    #[arg(long, value_enum, default_value_t = Which::All)]
    backend: Which,
    /// One operator and its gradient, such as `post`
    #[arg(long)]
    op: Option<String>,
    /// How much is run
    #[arg(long, value_enum, default_value_t = Level::Smoke)]
    level: Level,
    /// Count what passes and fails on the backend's first device, and keep the counts in this file (JSON); a run takes the place of an
    /// earlier one of its kind. Only the test programs that know devices are run, one after the other
    #[arg(long, value_name = "FILE", requires = "backend")]
    save: Option<PathBuf>,
    /// With `--save` or `--sim`: only these programs; repeatable
    #[arg(long, value_name = "NAME")]
    program: Vec<String>,
    /// With `--save` or `--sim`: only cases whose names contain this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// With `--save`: run programs under this, such as `compute-sanitizer --tool memcheck --error-exitcode 9`
    #[arg(long, value_name = "COMMAND", requires = "save", allow_hyphen_values = true)]
    under: Option<String>,
    #[command(flatten)]
    sim: Choice,
}

/// [`mhc_core::Level`] on the command line.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    /// Small shapes, every attribute once: seconds
    Smoke,
    /// Odd and model shapes: minutes
    Full,
    /// Everything, with more seeds: as long as it takes
    Soak,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Full => "full",
            Self::Soak => "soak",
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    if !args.sim.here()? {
        return Ok(());
    }
    if sim::simulated().is_some() && args.backend != Which::Hip {
        bail!("what is simulated is an AMD GPU: --sim goes with --backend hip");
    }
    let probes = args.backend.probe()?;
    for probe in &probes {
        match probe.found {
            Ok(_) => println!("testing {probe}"),
            Err(_) => println!("not testing {probe}"),
        }
    }
    let home = Home::find()?;
    if args.save.is_some() || sim::simulated().is_some() {
        let device = match probes.as_slice() {
            [probe] => probe.found.as_ref().ok().and_then(|devices| devices.first()),
            _ => None,
        };
        let device = device.context("--save is for one backend: name it with --backend")?;
        return one_by_one(args, &home, args.save.as_deref(), device);
    }
    let shell = home.shell()?;
    shell.set_var("MHC_TEST_BACKEND", args.backend.name());
    shell.set_var("MHC_TEST_LEVEL", args.level.name());
    if let Some(op) = &args.op {
        check_op(op)?;
        shell.set_var("MHC_TEST_OP", op);
    }
    match &home {
        Home::Checkout(_) => {
            let packages: &[&str] = match args.op {
                Some(_) => &["--package", "mhc-tests"],
                None => &["--workspace"],
            };
            cmd!(shell, "cargo test --release {packages...}").run()?;
        }
        Home::Bundle(root) => {
            for program in programs::bundled_tests(root)? {
                cmd!(shell, "{program}").run()?;
            }
        }
    }
    Ok(())
}

/// The programs that test what the backend's devices do, in the order in which they tell most.
const PROGRAMS: &[&str] = &["conformance", "gpu", "properties"];

/// Runs programs one after the other and keeps what they say, in a file if there is one; everything is run, whatever fails.
fn one_by_one(args: &Args, home: &Home, file: Option<&Path>, device: &DeviceInfo) -> Result<()> {
    if let Some(op) = &args.op {
        check_op(op)?;
    }
    let driver = machine::driver(device).unwrap_or_default();
    let mut record = Conformance::of(file, &named(device), &driver)?;
    let programs = match home {
        Home::Checkout(_) => programs::tests(home)?,
        Home::Bundle(root) => {
            programs::bundled_tests(root)?.into_iter().map(|p| Ok((name(&p)?, p))).collect::<Result<_>>()?
        }
    };
    let wanted: Vec<&str> = match args.program.as_slice() {
        [] => PROGRAMS.to_vec(),
        names => names.iter().map(String::as_str).collect(),
    };
    let mut variables =
        vec![("MHC_TEST_BACKEND", args.backend.name().to_string()), ("MHC_TEST_LEVEL", args.level.name().into())];
    variables.extend(args.op.clone().map(|op| ("MHC_TEST_OP", op)));
    let mut failed = Vec::new();
    for wanted in wanted {
        let program = programs.iter().find(|(name, _)| name == wanted);
        let (name, path) = program.with_context(|| format!("there is no test program `{wanted}`"))?;
        println!("\n== {name}");
        let run = Run {
            op: args.op.clone(),
            filter: args.filter.clone(),
            under: args.under.clone(),
            ..Run::now(name, args.level.name(), home)
        };
        let run = run.measure(path, &[], &variables)?;
        if !run.clean || run.failed > 0 {
            failed.push(name.as_str());
        }
        record.add(run);
        // After each: a run that is cut off leaves what was found.
        if let Some(file) = file {
            record.save(file)?;
        }
    }
    print!("\n{}", record.markdown());
    if failed.is_empty() { Ok(()) } else { bail!("failures in {}", failed.join(", ")) }
}

/// The device as records name it.
pub fn named(device: &DeviceInfo) -> String {
    match sim::simulated() {
        // One record is of all GPUs that are simulated; each of its runs says which.
        Some(_) => "AMD GPUs, simulated".into(),
        None => device.name.clone(),
    }
}

fn name(program: &Path) -> Result<String> {
    Ok(program.file_name().context("a program has a name")?.to_string_lossy().into_owned())
}

/// An error with the names there are, if there is no operator called `name`.
pub fn check_op(name: &str) -> Result<()> {
    let names: Vec<_> = AnyOp::all_descs().iter().map(|d| d.name).collect();
    if names.contains(&name) {
        return Ok(());
    }
    bail!("there is no operator `{name}`; there are {}", names.join(", "))
}
