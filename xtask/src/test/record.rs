//! What was proven on which device: counts and names from the test programs' own last words.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use mhc_tests::machine;
use serde::{Deserialize, Serialize};

use crate::{home::Home, report::markdown_table, sim};

/// Everything that was run on one kind of device.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Conformance {
    /// The device, as its vendor names it.
    pub device: String,
    /// Its driver.
    pub driver: String,
    /// One entry for each program and way to run it; a later run takes the place of an earlier one.
    pub runs: Vec<Run>,
}

/// One run of a test program.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The program.
    pub program: String,
    /// `smoke`, `full`, `soak`.
    pub level: String,
    /// The one operator that was tested, with its gradient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<String>,
    /// The part of the cases' names that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// What watched it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under: Option<String>,
    /// The GPU that was simulated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub simulated: Option<String>,
    /// Year, month, day.
    pub date: String,
    /// The commit.
    pub commit: Option<String>,
    /// Cases that passed.
    pub passed: usize,
    /// Cases that failed.
    pub failed: usize,
    /// Cases that were not run.
    pub ignored: usize,
    /// How long it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Names of those that failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<String>,
    /// The last word of what watched it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
    /// Whether the program, and what watched it, ended well.
    pub clean: bool,
    /// What else a reader must know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Run {
    /// One of today, with nothing counted yet.
    pub fn now(program: &str, level: &str, home: &Home) -> Self {
        Self {
            program: program.into(),
            level: level.into(),
            simulated: sim::simulated(),
            date: machine::today(),
            commit: home.commit(),
            ..Self::default()
        }
    }

    /// Says how long it took, to a tenth of a second.
    pub fn took(&mut self, time: Duration) {
        self.seconds = Some((time.as_secs_f64() * 10.0).round() / 10.0);
    }

    /// Takes in a line of the program's output.
    fn hear(&mut self, line: &str) {
        let line = line.trim();
        if let Some(counts) = line.strip_prefix("test result: ") {
            let count = |what: &str| {
                let words = counts.split([' ', '.', ';']).filter(|w| !w.is_empty()).collect::<Vec<_>>();
                words.windows(2).find(|w| w[1] == what).and_then(|w| w[0].parse::<usize>().ok()).unwrap_or(0)
            };
            self.passed += count("passed");
            self.failed += count("failed");
            self.ignored += count("ignored");
        } else if let Some(name) = line.strip_prefix("test ").and_then(|l| l.strip_suffix("... FAILED")) {
            self.failures.push(name.trim().into());
        } else if line.starts_with("=====") && line.contains("SUMMARY") {
            self.said = Some(line.trim_start_matches(['=', ' ']).into());
        }
    }

    /// Runs the program with everything it says shown, and counts.
    pub fn measure(mut self, program: &Path, arguments: &[String], variables: &[(&str, String)]) -> Result<Self> {
        let mut words: Vec<String> = self.under.iter().flat_map(|u| u.split_whitespace()).map(str::to_string).collect();
        words.extend(sim::words(program));
        words.extend(arguments.iter().cloned());
        words.extend(self.filter.clone());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).envs(variables.iter().map(|(k, v)| (k, v)));
        let start = Instant::now();
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| words[0].clone())?;
        for line in BufReader::new(child.stdout.take().context("stdout")?).lines() {
            let line = line?;
            println!("{line}");
            self.hear(&line);
        }
        self.clean = child.wait()?.success();
        self.took(start.elapsed());
        if self.clean && self.passed + self.ignored == 0 {
            bail!("{} ran no case", self.program);
        }
        Ok(self)
    }

    fn same_kind(&self, other: &Self) -> bool {
        let kind = |r: &Self| {
            [Some(&r.program), Some(&r.level), r.op.as_ref(), r.filter.as_ref(), r.under.as_ref(), r.simulated.as_ref()]
                .map(|part| part.cloned())
        };
        kind(self) == kind(other)
    }

    /// What was run, as a reader would say it.
    fn what(&self) -> String {
        let mut text = format!("`{}`, {}", self.program, self.level);
        for (name, value) in [
            ("on simulated", &self.simulated),
            ("operator", &self.op),
            ("cases with", &self.filter),
            ("under", &self.under),
        ] {
            text += &value.as_ref().map_or(String::new(), |v| format!(", {name} `{v}`"));
        }
        text
    }
}

impl Conformance {
    pub fn load(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        serde_json::from_str(&text).with_context(|| format!("{} is no record of tests", file.display()))
    }

    /// The record in the file, or a new one. An error if it is of another device.
    pub fn of(file: Option<&Path>, device: &str, driver: &str) -> Result<Self> {
        let Some(file) = file.filter(|f| f.exists()) else {
            return Ok(Self { device: device.into(), driver: driver.into(), runs: Vec::new() });
        };
        let record = Self::load(file)?;
        if (record.device.as_str(), record.driver.as_str()) != (device, driver) {
            let (theirs, drivers) = (&record.device, &record.driver);
            bail!("{} is of {theirs} with driver {drivers}, this is {device} with {driver}", file.display());
        }
        Ok(record)
    }

    /// Whether every case of an operator passed on this simulated GPU.
    pub fn proves(&self, op: &str, gpu: &str) -> bool {
        let of_op = |r: &Run| r.op.as_ref().is_none_or(|only| op == only || op.strip_suffix("_bwd") == Some(only));
        let all = |r: &&Run| {
            r.program == "conformance" && r.simulated.as_deref() == Some(gpu) && r.filter.is_none() && of_op(r)
        };
        self.runs.iter().filter(all).any(|r| r.clean && r.failed == 0 && r.passed > 0)
    }

    pub fn add(&mut self, run: Run) {
        match self.runs.iter_mut().find(|r| r.same_kind(&run)) {
            Some(old) => *old = run,
            None => self.runs.push(run),
        }
    }

    pub fn save(&self, file: &Path) -> Result<()> {
        fs::write(file, serde_json::to_string_pretty(self)? + "\n").with_context(|| file.display().to_string())
    }

    /// For the documents.
    pub fn markdown(&self) -> String {
        let mut text = format!("**{}, driver {}.**\n\n", self.device, self.driver);
        let row = |r: &Run| {
            let verdict = r.said.clone().unwrap_or_else(|| if r.clean { String::new() } else { "failed".into() });
            let commit = r.commit.clone().unwrap_or_default();
            let ran = (r.passed + r.failed).to_string();
            vec![r.what(), format!("{} {commit}", r.date), verdict, ran, r.failed.to_string()]
        };
        let rows: Vec<_> = self.runs.iter().map(row).collect();
        markdown_table(&mut text, &["what was run", "date, commit", "", "cases", "failures"], 3, &rows);
        let failures = self.runs.iter().flat_map(|r| r.failures.iter().map(move |f| (f, r)));
        for (name, run) in failures {
            let note = run.note.as_ref().map_or(String::new(), |n| format!(": {n}"));
            text += &format!("\n* `{name}` ({}, {}){note}", run.program, run.level);
        }
        for (run, note) in
            self.runs.iter().filter(|r| r.failures.is_empty()).filter_map(|r| Some((r, r.note.as_ref()?)))
        {
            text += &format!("\n* {}: {note}", run.what());
        }
        text + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_programs_are_counted() {
        let mut run = Run::default();
        let words = "test post.fwd/f32/T1.n4.C8@cuda:0 ... ok\ntest pre.fwd/f32/T1.n4.C8@cuda:0  ... FAILED\n\
            test result: FAILED. 1216 passed; 1 failed; 3 ignored; 0 measured; 2 filtered out; finished in 3.10s\n\
            ========= ERROR SUMMARY: 0 errors\n";
        words.lines().for_each(|l| run.hear(l));
        assert_eq!((run.passed, run.failed, run.ignored), (1216, 1, 3));
        assert_eq!(run.failures, ["pre.fwd/f32/T1.n4.C8@cuda:0"]);
        assert_eq!(run.said.as_deref(), Some("ERROR SUMMARY: 0 errors"));
    }

    #[test]
    fn a_later_run_takes_the_place_of_an_earlier_one() {
        let run = |program: &str, passed| Run { program: program.into(), passed, ..Run::default() };
        let mut record = Conformance::default();
        for (program, passed) in [("a", 1), ("b", 2), ("a", 3)] {
            record.add(run(program, passed));
        }
        record.add(Run { under: Some("memcheck".into()), ..run("a", 4) });
        assert_eq!(record.runs.iter().map(|r| r.passed).collect::<Vec<_>>(), [3, 2, 4]);
    }

    #[test]
    fn a_program_that_fails_is_recorded_as_it_ended() {
        let run = |script: &str| {
            let run = Run { program: "sh".into(), ..Run::default() };
            run.measure(Path::new("sh"), &["-c".into(), script.into()], &[])
        };
        let failed =
            run("echo 'test a ... FAILED'; echo 'test result: FAILED. 0 passed; 1 failed; 0 ignored'; exit 1").unwrap();
        assert!(!failed.clean && failed.failures == ["a"]);
        assert!(run("echo 'test result: ok. 2 passed; 0 failed; 0 ignored'").unwrap().clean);
        assert!(run("true").is_err(), "nothing ran, and nothing failed");
    }
}
