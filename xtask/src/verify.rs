//! `cargo xtask verify`: everything that a first run on somebody's GPU is to show, in one report.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use mhc_tests::{bench::record::Record, machine};

use crate::{
    bench,
    devices::Which,
    home::Home,
    sim::{self, Choice},
    test::Conformance,
};

/// Prove a backend right on this machine, time it, and write one report to paste
///
/// Runs the self-tests, the conformance harness, what holds of GPUs besides (the same bits on every stream and in every batch, graphs,
/// faults), and the benches of all suites, with published times of other implementations beside ours. Everything is run, whatever fails.
#[derive(clap::Args)]
pub struct Args {
    /// The backend
    #[arg(long, value_enum, default_value_t = Which::Hip)]
    backend: Which,
    /// How much conformance: `smoke`, `full` or `soak`; `full` unless the GPU is simulated
    #[arg(long)]
    level: Option<String>,
    /// The report
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    sim: Choice,
}

/// Test programs that know devices.
const PROGRAMS: [&str; 3] = ["conformance", "gpu", "properties"];
/// Suites of benches.
const SUITES: [&str; 3] = ["ops", "bars", "amd"];
/// Published times on AMD's GPUs.
const PEERS: &str = "tests/records/peers-mi308x.json";

pub fn run(args: &Args) -> Result<()> {
    if !args.sim.here()? {
        return Ok(());
    }
    let home = Home::find()?;
    let folder = home.scratch("verify")?;
    let backend = args.backend.name();
    let probe = args.backend.probe()?.into_iter().next().context("one backend is verified: name it")?;
    let mut report = Report { text: heading(&home, &probe.to_string()), failed: Vec::new() };
    let simulated = sim::simulated().is_some();
    let level = args.level.clone().unwrap_or(if simulated { "smoke" } else { "full" }.into());

    let said = report.step("self-tests", own().arg("doctor"))?;
    report.part("Self-tests", &format!("```text\n{}\n```", said.trim()));

    let record = folder.join("conformance.json");
    let mut test = own();
    test.args(["test", "--backend", backend, "--level", &level, "--save"]).arg(&record);
    PROGRAMS.iter().for_each(|program| {
        test.args(["--program", program]);
    });
    report.step("conformance", &mut test)?;
    if record.is_file() {
        report.part("Conformance and determinism", &Conformance::load(&record)?.markdown());
    }
    for suite in SUITES {
        let file = folder.join(format!("{suite}.json"));
        let mut times = own();
        times.args(["bench", "--backend", backend, "--suite", suite]);
        match simulated {
            true => times.arg("--once"),
            false => times.arg("--save").arg(&file).arg("--peers").arg(home.root().join(PEERS)),
        };
        let said = report.step(suite, &mut times)?;
        let shown = match file.is_file() {
            true => bench::markdown(&Record::load(&file)?),
            false => format!("Run once, at small sizes: {}", said.lines().last().unwrap_or("nothing ran")),
        };
        report.part(&format!("Benches: {suite}"), &shown);
    }
    let file = args.out.clone().unwrap_or_else(|| home.output("verify").join(format!("verify-{backend}.md")));
    report.write(&file)
}

fn heading(home: &Home, probe: &str) -> String {
    let mut text = String::from("# Report of `cargo xtask verify`\n\n");
    if let Some(gpu) = sim::simulated() {
        let _ = writeln!(
            text,
            "**Simulated {gpu}: what is right here is right by AMD's own runtime and compiler on a model of the GPU. No time in this report \
             means anything.**\n"
        );
    }
    let commit = home.commit().unwrap_or_else(|| "unknown".into());
    let _ = writeln!(text, "* {}, {}\n* commit {commit}\n* {probe}\n", machine::name(), machine::today());
    text
}

/// This tool, as it was started.
fn own() -> Command {
    let program = std::env::args().next().unwrap_or_default();
    let words = sim::words(Path::new(&program));
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

/// What has been found so far.
struct Report {
    text: String,
    failed: Vec<String>,
}

impl Report {
    /// Runs a part, and gives what it said. That it failed is kept, and the next part is run.
    fn step(&mut self, name: &str, command: &mut Command) -> Result<String> {
        println!("== {name}");
        let out = command.stderr(std::process::Stdio::inherit()).output().with_context(|| name.to_string())?;
        if !out.status.success() {
            println!("   failed ({})", out.status);
            self.failed.push(name.into());
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    fn part(&mut self, title: &str, text: &str) {
        let _ = writeln!(self.text, "## {title}\n\n{}\n", text.trim());
    }

    fn write(mut self, file: &Path) -> Result<()> {
        let verdict = match self.failed.as_slice() {
            [] => "Everything passed.".into(),
            failed => format!("FAILED: {}.", failed.join(", ")),
        };
        let _ = writeln!(self.text, "## Verdict\n\n{verdict}");
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(file, &self.text).with_context(|| file.display().to_string())?;
        println!("{verdict} The report is in {}: paste it whole into an issue.", file.display());
        if self.failed.is_empty() { Ok(()) } else { bail!("{} parts failed", self.failed.len()) }
    }
}
