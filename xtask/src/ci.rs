//! `cargo xtask ci`: every gate, in the order in which they fail fastest.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use xshell::{Shell, cmd};

use crate::{home::Home, report};

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
    Gate { name: "clippy", what: "no warning in any target", run: clippy },
    Gate { name: "doc", what: "rustdoc without a warning", run: doc },
    Gate { name: "features", what: "mhc-ops with every combination of features", run: features },
    Gate { name: "test", what: "all tests, on every device that is there", run: test },
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
