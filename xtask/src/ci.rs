//! `cargo xtask ci`: every gate, in the order in which they fail fastest.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use xshell::{Shell, cmd};

use crate::{home::Home, new_op, report, sim};

/// Run every gate: format, lints, docs, features, tests, rules of the repository
///
/// All gates run even if one fails; the table at the end names those that failed and says why others were skipped.
#[derive(clap::Args)]
pub struct Args {
    /// Gates to leave out, by name
    #[arg(long, value_name = "GATE")]
    skip: Vec<String>,
    /// Run these gates only
    #[arg(long, value_name = "GATE", conflicts_with = "skip")]
    only: Vec<String>,
    /// Name the gates and stop
    #[arg(long)]
    list: bool,
}

/// Why a gate did not run; `None` where it passed.
type Skipped = Option<String>;

struct Gate {
    name: &'static str,
    what: &'static str,
    run: fn(&Shell) -> Result<Skipped>,
}

const GATES: &[Gate] = &[
    Gate { name: "fmt", what: "rustfmt leaves every file as it is", run: fmt },
    Gate { name: "tidy", what: "rules of the repository, README up to date", run: tidy },
    Gate { name: "kernels", what: "every embedded kernel image, compiled again, comes out the same", run: kernels },
    Gate { name: "clippy", what: "no warning in any target", run: clippy },
    Gate { name: "doc", what: "rustdoc without a warning", run: doc },
    Gate { name: "features", what: "mhc-ops with every combination of features", run: features },
    Gate { name: "test", what: "all tests, on every device that is there", run: test },
    Gate { name: "emulator", what: "device sources on the host, waves of 32 and 64, ASan, UBSan", run: emulator },
    Gate { name: "hip", what: "AMD's own runtime on simulated GPUs, mistakes planted in device code", run: hip },
    Gate { name: "bench", what: "every bench runs once", run: bench },
    Gate { name: "golden", what: "golden cases of other implementations", run: golden },
    Gate { name: "demo", what: "the demo on a slice of its tokens", run: demo },
    Gate { name: "new-op", what: "a new operator compiles as it is written", run: scaffold },
];

enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

pub fn run(args: &Args) -> Result<()> {
    if args.list {
        let rows = GATES.iter().map(|g| vec![g.name.into(), g.what.into()]).collect();
        println!("{}", report::table(&["gate", "what it checks"], 2, rows));
        return Ok(());
    }
    if let Some(name) = args.skip.iter().chain(&args.only).find(|n| GATES.iter().all(|g| g.name != *n)) {
        bail!("there is no gate `{name}`; `cargo xtask ci --list` names them");
    }
    let home = Home::find()?;
    home.checkout("ci")?;
    let shell = home.shell()?;
    let mut done = Vec::new();
    for gate in GATES {
        let start = Instant::now();
        let wanted = args.only.is_empty() || args.only.iter().any(|n| n == gate.name);
        let outcome = if !wanted || args.skip.iter().any(|n| n == gate.name) {
            Outcome::Skipped("left out on the command line".into())
        } else {
            println!("\n== {}: {}", gate.name, gate.what);
            match (gate.run)(&shell) {
                Ok(None) => Outcome::Passed,
                Ok(Some(why)) => Outcome::Skipped(why),
                Err(e) => Outcome::Failed(format!("{e:#}")),
            }
        };
        done.push((gate.name, outcome, start.elapsed()));
    }
    summary(&done)
}

fn summary(done: &[(&'static str, Outcome, Duration)]) -> Result<()> {
    let rows = done.iter().map(|(name, outcome, time)| {
        let (state, why) = match outcome {
            Outcome::Passed => ("passed", String::new()),
            Outcome::Skipped(why) => ("skipped", why.clone()),
            Outcome::Failed(why) => ("FAILED", why.lines().next().unwrap_or_default().into()),
        };
        vec![(*name).into(), state.into(), why, report::seconds(*time)]
    });
    println!("\n{}", report::table(&["gate", "", "", "time"], 3, rows.collect()));
    let count = |f: fn(&Outcome) -> bool| done.iter().filter(|(_, o, _)| f(o)).count();
    let failed = count(|o| matches!(o, Outcome::Failed(_)));
    let (passed, skipped) = (count(|o| matches!(o, Outcome::Passed)), count(|o| matches!(o, Outcome::Skipped(_))));
    println!("gates: {passed} passed, {failed} failed, {skipped} skipped");
    if failed > 0 { bail!("{failed} gates failed") } else { Ok(()) }
}

fn fmt(shell: &Shell) -> Result<Skipped> {
    cmd!(shell, "cargo fmt --all --check").run()?;
    Ok(None)
}

fn tidy(shell: &Shell) -> Result<Skipped> {
    cmd!(shell, "cargo xtask tidy").run()?;
    Ok(None)
}

fn kernels(shell: &Shell) -> Result<Skipped> {
    cmd!(shell, "cargo xtask kernels --backend all --check").run()?;
    Ok(None)
}

fn clippy(shell: &Shell) -> Result<Skipped> {
    cmd!(shell, "cargo clippy --release --workspace --all-targets -- -D warnings").run()?;
    Ok(None)
}

fn doc(shell: &Shell) -> Result<Skipped> {
    let _flags = shell.push_env("RUSTDOCFLAGS", "-D warnings");
    cmd!(shell, "cargo doc --release --workspace --no-deps").run()?;
    Ok(None)
}

fn features(shell: &Shell) -> Result<Skipped> {
    for features in ["", "cuda", "hip"] {
        cmd!(shell, "cargo check --release --package mhc-ops --no-default-features --features {features}").run()?;
    }
    Ok(None)
}

fn test(shell: &Shell) -> Result<Skipped> {
    cmd!(shell, "cargo xtask test").run()?;
    Ok(None)
}

fn emulator(shell: &Shell) -> Result<Skipped> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    if cmd!(shell, "{compiler} --version").quiet().ignore_stdout().ignore_stderr().run().is_err() {
        return Ok(Some(format!("there is no C++ compiler `{compiler}`")));
    }
    let _backend = shell.push_env("MHC_TEST_BACKEND", "emu");
    let _level = shell.push_env("MHC_TEST_LEVEL", "smoke");
    cmd!(shell, "cargo test --release --package mhc-tests --test conformance -- --quiet").run()?;
    Ok(None)
}

/// What cannot be had is reported; what was had and fails is a failure.
fn hip(shell: &Shell) -> Result<Skipped> {
    if let Err(why) = sim::fetch(&Home::find()?) {
        return Ok(Some(format!("AMD's runtime cannot be had here: {why:#}")));
    }
    cmd!(shell, "cargo xtask sim test").run()?;
    for gpu in sim::Gpu::ALL.map(sim::Gpu::name) {
        // Batches, streams, graphs, faults: on one of them, for the sake of time.
        let more: &[&str] = if gpu == sim::Gpu::Gfx942.name() { &["--program", "gpu"] } else { &[] };
        cmd!(shell, "cargo xtask test --backend hip --sim {gpu} --level smoke --program conformance {more...}")
            .run()?;
    }
    Ok(None)
}

fn bench(shell: &Shell) -> Result<Skipped> {
    cmd!(shell, "cargo xtask bench --once").run()?;
    Ok(None)
}

/// Where the golden cases lie that are not part of the repository.
const GOLDEN: &str = "../shared/golden/mhc";

fn golden(shell: &Shell) -> Result<Skipped> {
    if !shell.path_exists(GOLDEN) {
        return Ok(Some(format!("there is no folder {GOLDEN}")));
    }
    cmd!(shell, "cargo xtask golden {GOLDEN}").run()?;
    Ok(None)
}

fn demo(shell: &Shell) -> Result<Skipped> {
    for streams in ["4", "3"] {
        cmd!(shell, "cargo xtask demo --tokens 24 --streams {streams} --out target/xtask/demo").run()?;
    }
    Ok(None)
}

/// Writes a new operator into a copy of the repository, puts it in place, and lets the compiler and rustfmt judge it.
fn scaffold(shell: &Shell) -> Result<Skipped> {
    let home = Home::find()?;
    let copy = home.scratch("new-op")?;
    for path in cmd!(shell, "git ls-files --cached --others --exclude-standard").quiet().read()?.lines() {
        if home.root().join(path).is_file() {
            shell.copy_file(home.root().join(path), create_parent(&copy.join(path))?)?;
        }
    }
    let name = "scaffold_check";
    let written = new_op::write(&copy, name)?;
    for edit in new_op::edits(name) {
        let file = copy.join(&edit.file);
        let text = shell.read_file(&file)?;
        let Some(at) = text.lines().position(|l| l.starts_with(edit.before)) else {
            bail!("{} has no line that starts with `{}`", edit.file, edit.before)
        };
        let mut lines: Vec<&str> = text.lines().collect();
        lines.insert(at, &edit.line);
        shell.write_file(&file, lines.join("\n") + "\n")?;
    }
    let _there = shell.push_dir(&copy);
    // The registry's crates are compiled already; the workspace's own are others under this path.
    let _target = shell.push_env("CARGO_TARGET_DIR", home.root().join("target"));
    cmd!(shell, "rustfmt --check --edition 2024 {written...}").run()?;
    cmd!(shell, "cargo check --release --package mhc-cpu").run()?;
    Ok(None)
}

fn create_parent(path: &Path) -> Result<&Path> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    Ok(path)
}
