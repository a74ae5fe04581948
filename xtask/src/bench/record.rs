//! A record of measurements: what is written, compared, and shown in the README.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use anyhow::{Context, Result};
use mhc_ops::Probe;
use mhc_tests::bench::{Bench, COPY, COPY_BYTES};
use serde::{Deserialize, Serialize};

use crate::{home::Home, machine, report::markdown_table};

/// Measurements of one day on one machine.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    /// The processor or the GPU, as its vendor names it, by device.
    pub machine: String,
    /// Year, month, day.
    pub date: String,
    /// The commit measured, where it is known.
    pub commit: Option<String>,
    /// Devices.
    pub devices: Vec<Measured>,
    /// Times.
    pub rows: Vec<Row>,
    /// Times of other implementations on the same machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Peer>,
}

/// A device with what it can copy.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    /// `cpu`, `cuda:0`.
    pub id: String,
    /// What it is.
    pub name: String,
    /// Bytes read and written per nanosecond by a plain copy.
    pub copy_gb_s: f64,
}

/// One time.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// `post.fwd/bf16/fromto/T2048.n4.C2048`.
    pub id: String,
    /// The device's name.
    pub device: String,
    /// Median of a launch.
    pub us: f64,
    /// Every operand once.
    pub bytes: u64,
}

/// One row of another implementation, as the scripts that time peers print it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Who.
    pub peer: String,
    /// `T=2048 n=4 C=2048`.
    pub shape: String,
    /// `bfloat16`.
    pub dtype: String,
    /// Milliseconds by what was timed.
    #[serde(flatten)]
    pub ms: BTreeMap<String, f64>,
}

impl Row {
    /// Bytes per nanosecond.
    pub fn gb_s(&self) -> f64 {
        self.bytes as f64 / self.us / 1e3
    }
}

impl Record {
    /// Medians in nanoseconds by `<bench>@<device>`.
    pub fn new(home: &Home, probes: &[Probe], times: &BTreeMap<String, f64>, suite: &[Bench]) -> Result<Self> {
        let mut devices = Vec::new();
        let mut rows = Vec::new();
        for info in probes.iter().filter_map(|p| p.found.as_ref().ok()).flatten() {
            let device = info.id.to_string();
            let Some(copy) = times.get(&format!("{COPY}@{device}")) else { continue };
            let copy_gb_s = COPY_BYTES as f64 / copy;
            devices.push(Measured { id: device.clone(), name: info.name.clone(), copy_gb_s });
            for bench in suite {
                let ns = times.get(&format!("{}@{device}", bench.id)).with_context(|| bench.id.clone())?;
                rows.push(Row { id: bench.id.clone(), device: device.clone(), us: ns / 1e3, bytes: bench.bytes() });
            }
        }
        Ok(Self {
            machine: machine::name(),
            date: machine::today(),
            commit: home.commit(),
            devices,
            rows,
            peers: Vec::new(),
        })
    }

    pub fn load(file: impl AsRef<Path>) -> Result<Self> {
        let file = file.as_ref();
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        serde_json::from_str(&text).with_context(|| format!("{} is no record of `bench --save`", file.display()))
    }

    pub fn save(&self, file: &Path) -> Result<()> {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(file, serde_json::to_string_pretty(self)? + "\n").with_context(|| file.display().to_string())
    }

    /// Adds the rows in a file of JSON lines.
    pub fn add_peers(&mut self, file: &Path) -> Result<()> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        for line in text.lines().filter(|l| l.trim_start().starts_with('{')) {
            self.peers.push(serde_json::from_str(line).with_context(|| format!("{}: {line}", file.display()))?);
        }
        Ok(())
    }

    fn copy_gb_s(&self, device: &str) -> Option<f64> {
        self.devices.iter().find(|d| d.id == device).map(|d| d.copy_gb_s)
    }

    pub fn header(&self, old: Option<&Record>) -> Vec<&'static str> {
        let mut header = vec!["bench", "device", "µs", "MB", "GB/s", "% of copy"];
        if old.is_some() {
            header.extend(["before µs", "change"]);
        }
        header
    }

    /// One row per time: with the record before it, the change as well.
    pub fn rows(&self, old: Option<&Record>) -> Vec<Vec<String>> {
        let row = |r: &Row| {
            let percent = self.copy_gb_s(&r.device).map_or(String::new(), |c| format!("{:.0}", 100.0 * r.gb_s() / c));
            let megabytes = format!("{:.3}", r.bytes as f64 / 1e6);
            let mut cells = vec![
                r.id.clone(),
                r.device.clone(),
                microseconds(r.us),
                megabytes,
                format!("{:.1}", r.gb_s()),
                percent,
            ];
            if let Some(old) = old {
                let before = old.rows.iter().find(|o| o.id == r.id && o.device == r.device);
                cells.push(before.map_or("new".into(), |o| microseconds(o.us)));
                cells.push(before.map_or(String::new(), |o| format!("{:+.1} %", 100.0 * (r.us / o.us - 1.0))));
            }
            cells
        };
        self.rows.iter().map(row).collect()
    }

    /// What every device copies, on one line each.
    pub fn copies(&self) -> String {
        let line = |d: &Measured| {
            format!("{} ({}) copies {:.1} GB/s, read and written bytes counted", d.id, d.name, d.copy_gb_s)
        };
        self.devices.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// The shape of the and the README's comparisons.
const TRAINING: &str = "T2048.n4.C2048";
/// What the peers' rows call the benches that do the same work.
const SAME_WORK: [(&str, &str); 3] =
    [("pre.fwd/", "pre_fwd"), ("post.fwd/", "post_fwd"), ("sub_layer.fwd_bwd/", "pre_post_fwd_bwd")];

impl Record {
    /// What a reader of the README wants to see: the training shape, and the peers.
    pub fn highlights(&self) -> String {
        let mut text = format!("**{}, {}.** {}.\n\n", self.machine, self.date, self.copies().replace('\n', "; "));
        let rows: Vec<_> = self.rows(None).into_iter().filter(|r| r[0].ends_with(TRAINING)).collect();
        markdown_table(&mut text, &self.header(None), 2, &rows);
        let peers = self.beside_peers();
        if !peers.is_empty() {
            let _ = writeln!(text, "\nBeside other implementations on the same machine, medians:\n");
            markdown_table(&mut text, &["work", "ours ms", "theirs ms", "by", "times faster"], 1, &peers);
        }
        text
    }

    /// Ours beside the fastest peer that did the same work on the same shape and type.
    fn beside_peers(&self) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        for row in &self.rows {
            let Some((_, work)) = SAME_WORK.iter().find(|(prefix, _)| row.id.starts_with(prefix)) else { continue };
            let same = |p: &&Peer| {
                let dtype = match p.dtype.as_str() {
                    "bfloat16" => "bf16",
                    "float32" => "f32",
                    other => other,
                };
                let shape = p.shape.replace('=', "").replace(' ', ".");
                row.id.contains(&format!("/{dtype}/")) && row.id.ends_with(&shape)
            };
            let times = self.peers.iter().filter(same).filter_map(|p| Some((p.ms.get(*work)?, p.peer.as_str())));
            if let Some((ms, peer)) = times.min_by(|a, b| a.0.total_cmp(b.0)) {
                let ours = row.us / 1e3;
                rows.push(vec![
                    row.id.clone(),
                    format!("{ours:.3}"),
                    ms.to_string(),
                    peer.into(),
                    format!("{:.1}", ms / ours),
                ]);
            }
        }
        rows
    }
}

fn microseconds(us: f64) -> String {
    if us < 100.0 { format!("{us:.2}") } else { format!("{us:.0}") }
}

/// The record as a document.
pub fn markdown(record: &Record) -> String {
    let mut text = format!("{}, {}", record.machine, record.date);
    if let Some(commit) = &record.commit {
        let _ = write!(text, ", commit {commit}");
    }
    let _ = writeln!(text, ".\n{}.\n", record.copies().replace('\n', "; "));
    markdown_table(&mut text, &record.header(None), 2, &record.rows(None));
    if !record.peers.is_empty() {
        let _ = writeln!(text, "\nOther implementations on the same machine, ms:\n");
        let names: Vec<&str> = record.peers[0].ms.keys().map(String::as_str).collect();
        let header: Vec<&str> = ["peer", "shape", "dtype"].into_iter().chain(names.iter().copied()).collect();
        let row = |p: &Peer| {
            let times = names.iter().map(|n| p.ms.get(*n).map_or(String::new(), |v| v.to_string()));
            [p.peer.clone(), p.shape.clone(), p.dtype.clone()].into_iter().chain(times).collect()
        };
        markdown_table(&mut text, &header, 3, &record.peers.iter().map(row).collect::<Vec<_>>());
    }
    text
}
