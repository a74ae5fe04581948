//! `cargo xtask bench`: how fast every operator is, beside the fastest that the machine can copy.

mod criterion;
mod gpu;
mod peers;
mod predict;
mod roofline;
mod tables;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use mhc_ops::Probe;
use mhc_tests::bench::{self, record::Record};

pub use roofline::draw as roofline;
pub use tables::{highlights, markdown};

use crate::{devices::Which, home::Home, programs, report, test};

/// Time every operator, in µs, GB/s and percent of the bandwidth with which the device copies
///
/// On the CPU times are medians of criterion's, on operands larger in sum than the caches where the operator is bound by memory. On a GPU
/// they are medians of replays of a graph between two events of the device, once with other memory written before each (out of the
/// cache) and once back to back (in the cache). Bytes count every operand once. Operands are random.
#[derive(clap::Args)]
pub struct Args {
    /// Devices to time; one asked for by name that is not there is an error
    #[arg(long, value_enum, default_value_t = Which::All)]
    backend: Which,
    /// What is timed
    #[arg(long, value_enum, default_value_t = Suite::Ops)]
    suite: Suite,
    /// One operator and its gradient, such as `post`, or whole sub-layers: `sub_layer`
    #[arg(long, conflicts_with = "suite")]
    op: Option<String>,
    /// Time spent on each measurement on the CPU
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Replays of which each time on a GPU is the median
    #[arg(long, default_value_t = 40)]
    samples: usize,
    /// Measure nothing: show the record that `--save`, or the bench program on another machine, wrote to this file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["suite", "op", "once"])]
    show: Option<PathBuf>,
    /// Write the record as JSON here, and as a table beside it (`.md`)
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Compare with the record in this file
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Times of other implementations, as the scripts that time them print them, to stand beside ours in the record; repeatable
    #[arg(long, value_name = "FILE")]
    peers: Vec<PathBuf>,
    /// Print the record as JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Run everything once, to see that it runs; times are not taken
    #[arg(long, conflicts_with_all = ["save", "against", "json"])]
    once: bool,
    /// Measure nothing: estimate from the committed machine code's counts what an MI300X would take (with `--backend hip`)
    #[arg(long, conflicts_with_all = ["suite", "op", "show", "save", "against", "peers", "json", "once"])]
    predict: bool,
}

/// A list of benches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Every operator at the shapes of models
    Ops,
    /// The work whose speed on a processor and on a Hopper GPU was agreed on, with its limits
    Bars,
    /// Work whose times were published for AMD's GPUs
    Amd,
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Self::Ops => "ops",
            Self::Bars => "bars",
            Self::Amd => "amd",
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    if args.predict {
        return match args.backend {
            Which::Hip => predict::run(&Home::find()?),
            _ => bail!("only times on AMD's GPUs are estimated: `--backend hip --predict`"),
        };
    }
    if !(args.seconds > 0.0 && args.seconds.is_finite()) || args.samples == 0 {
        bail!("--seconds and --samples must be above 0");
    }
    if let Some(op) = args.op.as_deref().filter(|op| *op != bench::SUB_LAYER) {
        test::check_op(op)?;
    }
    let old = args.against.as_ref().map(Record::load).transpose()?;
    let mut record = match &args.show {
        Some(file) => Record::load(file)?,
        None => match measure(args)? {
            Some(record) => record,
            None => return Ok(()),
        },
    };
    for file in &args.peers {
        record.peers.extend(peers::load(file)?);
    }
    if let Some(file) = &args.save {
        record.save(file)?;
        let table = file.with_extension("md");
        fs::write(&table, tables::markdown(&record)).with_context(|| table.display().to_string())?;
        eprintln!("wrote {} and {}", file.display(), table.display());
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&record)?);
    } else {
        show(&record, old.as_ref());
    }
    match record.failed.len() {
        0 => Ok(()),
        failed => bail!("{failed} benches failed"),
    }
}

fn show(record: &Record, old: Option<&Record>) {
    let columns = tables::Columns::new(record, old);
    println!("{}", report::table(&columns.header(), columns.words(), columns.rows()));
    println!("{}", tables::devices(record));
    if let Some((header, rows)) = tables::ratios(record) {
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        println!("\n{}\n{}", report::table(&header, 1, rows), tables::elsewhere(record));
    }
    record.failed.iter().for_each(|f| println!("{} on {} could not be timed: {}", f.id, f.device, f.why));
}

/// Everything that was asked for; `None` where it was only to run once.
fn measure(args: &Args) -> Result<Option<Record>> {
    let probes = args.backend.probe()?;
    let (cpus, gpus): (Vec<Probe>, Vec<Probe>) = probes.into_iter().partition(|p| p.backend == "cpu");
    let cpus = if args.suite == Suite::Amd { Vec::new() } else { cpus };
    for probe in cpus.iter().chain(&gpus) {
        let timed = if probe.found.is_ok() { "timing" } else { "not timing" };
        eprintln!("{timed} {probe}");
    }
    let gpus: Vec<_> = gpus.into_iter().filter(|p| p.found.is_ok()).collect();
    if cpus.is_empty() && gpus.is_empty() {
        bail!("nothing to time: `--suite {}` is for GPUs", args.suite.name());
    }
    let home = Home::find()?;
    let mut record = Record::new(home.commit());
    let mut ran = 0;
    if !cpus.is_empty() {
        let (measured, names) = on_cpu(args, &home, &cpus)?;
        ran += names;
        measured.into_iter().for_each(|m| record.extend(m));
    }
    if !gpus.is_empty() {
        let program = programs::bench(&home, "gpu")?;
        for probe in &gpus {
            let measured = gpu::measure(&home, &program, args, probe.backend)?;
            ran += measured.rows.len();
            record.extend(measured);
        }
    }
    if !args.once {
        return Ok(Some(record));
    }
    if let Some(failed) = record.failed.first() {
        bail!("{} benches failed, the first {}: {}", record.failed.len(), failed.id, failed.why);
    }
    println!("{ran} benches ran once");
    Ok(None)
}

/// The CPU's times by criterion, unless it is all only to run once, and how many benches there are.
fn on_cpu(args: &Args, home: &Home, probes: &[Probe]) -> Result<(Option<Record>, usize)> {
    let program = programs::bench(home, "ops")?;
    let folder = home.scratch("criterion")?;
    let mut run = criterion::Run::new(&program, &folder);
    run.variable("MHC_TEST_BACKEND", "cpu");
    run.variable("MHC_BENCH_SUITE", args.suite.name());
    run.variable("MHC_TEST_OP", args.op.as_deref().unwrap_or_default());
    run.variable("MHC_BENCH_SECONDS", &args.seconds.to_string());
    let names = run.names()?;
    if names.is_empty() {
        bail!("nothing to time");
    }
    if args.once {
        run.once(names.len())?;
        return Ok((None, names.len()));
    }
    let times = run.times(&names)?;
    let suite = bench::on_cpu(Some(args.suite.name()), args.op.as_deref())?;
    let record = criterion::record(home.commit(), probes, &times, &suite)?;
    Ok((Some(record), names.len()))
}
