//! Runs the bench program and reads what criterion wrote.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use mhc_ops::Probe;
use mhc_tests::{
    bench::{
        Bench, COPY, COPY_BYTES,
        record::{Measured, Record, Row},
    },
    machine::Ticks,
};
use serde::Deserialize;

use crate::report;

/// The bench program with its environment.
pub struct Run {
    program: PathBuf,
    results: PathBuf,
    variables: Vec<(&'static str, String)>,
}

/// What was measured.
pub struct Times {
    /// Nanoseconds by `<bench>@<device>`.
    medians: BTreeMap<String, f64>,
    /// The percentage of the processors' time that others got.
    stolen: Option<f64>,
}

#[derive(Deserialize)]
struct Benchmark {
    full_id: String,
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
}

impl Run {
    /// `results` is where criterion writes.
    pub fn new(program: &Path, results: &Path) -> Self {
        Self { program: program.into(), results: results.into(), variables: Vec::new() }
    }

    pub fn variable(&mut self, name: &'static str, value: &str) {
        self.variables.push((name, value.into()));
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.envs(self.variables.iter().map(|(k, v)| (k, v))).env("CRITERION_HOME", &self.results);
        command
    }

    /// The names of everything that would be timed.
    pub fn names(&self) -> Result<Vec<String>> {
        let out = self.command().args(["--bench", "--list"]).stderr(Stdio::inherit()).output();
        let out = out.with_context(|| self.program.display().to_string())?;
        if !out.status.success() {
            bail!("the bench program failed ({})", out.status);
        }
        let text = String::from_utf8(out.stdout)?;
        Ok(text.lines().filter_map(|l| l.strip_suffix(": benchmark")).map(str::to_string).collect())
    }

    /// Runs everything once.
    pub fn once(&self, len: usize) -> Result<()> {
        self.watch(&["--test"], report::progress(len, "running once"), |line| line.starts_with("Testing "))
    }

    /// Times everything.
    pub fn times(&self, names: &[String]) -> Result<Times> {
        let then = Ticks::now();
        self.watch(&["--bench", "--noplot"], report::progress(names.len(), "timing"), |line| {
            line.contains("time:   [")
        })?;
        let stolen = Ticks::now().zip(then).map(|(now, then)| now.stolen_since(then));
        let mut medians = BTreeMap::new();
        read(&self.results, &mut medians)?;
        if let Some(missing) = names.iter().find(|n| !medians.contains_key(*n)) {
            bail!("criterion has no time for {missing}");
        }
        Ok(Times { medians, stolen })
    }

    /// Runs the program; every line of its output for which `done` holds is one step of the bar.
    fn watch(&self, args: &[&str], bar: ProgressBar, done: impl Fn(&str) -> bool) -> Result<()> {
        let mut child = self.command().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let errors = child.stderr.take().context("stderr")?;
        // Criterion draws its own progress on stderr, which is of use only if something fails.
        let errors = std::thread::spawn(move || std::io::read_to_string(errors));
        for line in BufReader::new(child.stdout.take().context("stdout")?).lines() {
            if done(&line?) {
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        let errors = errors.join().ok().and_then(Result::ok).unwrap_or_default();
        let status = child.wait()?;
        if !status.success() {
            bail!("the bench program failed ({status}): {}", errors.trim());
        }
        Ok(())
    }
}

/// Times as a record.
pub fn record(commit: Option<String>, probes: &[Probe], times: &Times, suite: &[Bench]) -> Result<Record> {
    let mut record = Record::new(commit);
    for info in probes.iter().filter_map(|p| p.found.as_ref().ok()).flatten() {
        let device = info.id.to_string();
        let Some(copy) = times.medians.get(&format!("{COPY}@{device}")) else { continue };
        let copy_gb_s = COPY_BYTES as f64 / copy;
        record.devices.push(Measured {
            id: device.clone(),
            name: info.name.clone(),
            driver: None,
            copy_gb_s,
            stolen: times.stolen,
            gpu: None,
        });
        for bench in suite {
            let ns = times.medians.get(&format!("{}@{device}", bench.id)).with_context(|| bench.id.clone())?;
            let (id, device, bytes, limit) = (bench.id.clone(), device.clone(), bench.bytes(), bench.limit);
            record.rows.push(Row { id, device, us: ns / 1e3, hot_us: None, bytes, limit });
        }
    }
    Ok(record)
}

/// Every `new/benchmark.json` below `folder`, with the estimates beside it.
fn read(folder: &Path, times: &mut BTreeMap<String, f64>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        let name = path.join("benchmark.json");
        if path.ends_with("new") && name.is_file() {
            let benchmark: Benchmark = serde_json::from_str(&fs::read_to_string(name)?)?;
            let estimates: Estimates = serde_json::from_str(&fs::read_to_string(path.join("estimates.json"))?)?;
            times.insert(benchmark.full_id, estimates.median.point_estimate);
        } else {
            read(&path, times)?;
        }
    }
    Ok(())
}
