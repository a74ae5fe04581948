//! What was measured, as the bench programs and `xtask` write and read it.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::machine;

/// Measurements of one day on one machine.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    /// The processor, as its vendor names it.
    pub machine: String,
    /// Year, month, day.
    pub date: String,
    /// The commit measured, where it is known.
    pub commit: Option<String>,
    /// Devices.
    pub devices: Vec<Measured>,
    /// Times.
    pub rows: Vec<Row>,
    /// What could not be timed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<Failed>,
    /// Times of other implementations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Peer>,
}

impl Record {
    /// Nothing measured yet, here and today.
    pub fn new(commit: Option<String>) -> Self {
        let (machine, date) = (machine::name(), machine::today());
        let (devices, rows, failed, peers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { machine, date, commit, devices, rows, failed, peers }
    }

    /// Reads a file.
    pub fn load(file: impl AsRef<Path>) -> Result<Self> {
        let file = file.as_ref();
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        serde_json::from_str(&text).with_context(|| format!("{} is no record of a bench", file.display()))
    }

    /// Writes a file, making its folder.
    pub fn save(&self, file: &Path) -> Result<()> {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(file, serde_json::to_string_pretty(self)? + "\n").with_context(|| file.display().to_string())
    }

    /// Everything of the other record, which was measured on the same machine.
    pub fn extend(&mut self, other: Record) {
        self.devices.extend(other.devices);
        self.rows.extend(other.rows);
        self.failed.extend(other.failed);
        self.peers.extend(other.peers);
    }

    /// The fastest that others were at the same work, on the same device on the same day.
    pub fn others_us(&self, id: &str) -> Option<f64> {
        self.peers.iter().filter(|p| p.id == id && p.elsewhere.is_none()).map(|p| p.us).min_by(f64::total_cmp)
    }

    /// The device called `id`.
    pub fn device(&self, id: &str) -> Option<&Measured> {
        self.devices.iter().find(|d| d.id == id)
    }
}

/// A time of another implementation on the same work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Who.
    pub peer: String,
    /// Our name for the work: the [`Row::id`] that does it.
    pub id: String,
    /// Median.
    pub us: f64,
    /// The device it was measured on, where that is not the record's own in the same session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<String>,
}

/// A device with what it can copy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// `cpu`, `cuda:0`.
    pub id: String,
    /// What it is.
    pub name: String,
    /// Its driver, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Bytes read and written per nanosecond by a plain copy.
    pub copy_gb_s: f64,
    /// Of a processor, the percentage of the time it wanted meanwhile that others on the same host got, where that is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stolen: Option<f64>,
    /// What is known of a GPU besides.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
}

/// How a GPU was measured, and what every time on it includes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Gpu {
    /// Replays of which each time is the median.
    pub samples: usize,
    /// The copy's bytes, read and written.
    pub copy_bytes: u64,
    /// Bytes rewritten before each cold replay.
    pub flushed_bytes: u64,
    /// A graph of one launch that has next to nothing to do: no time can be shorter.
    pub empty_graph_us: f64,
    /// First calls of a process.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first_calls: Vec<FirstCall>,
}

/// How long the first call of an operator takes in a process that has just started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FirstCall {
    /// `post.fwd/bf16/T64.n4.C4096`.
    pub id: String,
    /// Opening the device and making a stream: the driver's context.
    pub open_ms: f64,
    /// Allocating the operands and copying them there.
    pub memory_ms: f64,
    /// Preparing the operator, running it and waiting for it: finding, unpacking and loading its image is in here.
    pub first_ms: f64,
    /// The same again.
    pub second_ms: f64,
}

/// One time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// `post.fwd/bf16/T2048.n4.C2048`.
    pub id: String,
    /// The device's name.
    pub device: String,
    /// Median of a launch; on a GPU of a graph's replay with its operands out of the cache.
    pub us: f64,
    /// On a GPU, with the operands in the cache as far as they fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hot_us: Option<f64>,
    /// Every operand once.
    pub bytes: u64,
    /// What it may take at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
}

/// A bench without a time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failed {
    /// The bench.
    pub id: String,
    /// The device's name.
    pub device: String,
    /// What went wrong.
    pub why: String,
}

/// The most that something may take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// This many times what a copy of its bytes takes.
    Floor(f64),
    /// Microseconds.
    Us(f64),
    /// The fastest of others by `times`, and this many times the floor.
    Others {
        /// How many times ours they take at least.
        times: f64,
        /// As in [`Limit::Floor`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        floor: Option<f64>,
    },
}

impl Limit {
    /// The limit in microseconds for so many bytes, beside a copy of so many GB/s and the fastest of others; none where it is about others
    /// and there are none.
    pub fn us(self, bytes: u64, copy_gb_s: f64, others_us: Option<f64>) -> Option<f64> {
        let floor = floor_us(bytes, copy_gb_s);
        match self {
            Self::Floor(times) => Some(times * floor),
            Self::Us(us) => Some(us),
            Self::Others { times, floor: most } => {
                others_us.map(|us| (us / times).min(most.map_or(f64::INFINITY, |most| most * floor)))
            }
        }
    }
}

/// What a copy of so many bytes takes, half of them read and half written.
pub fn floor_us(bytes: u64, copy_gb_s: f64) -> f64 {
    bytes as f64 / copy_gb_s / 1e3
}

impl Row {
    /// Bytes per nanosecond.
    pub fn gb_s(&self) -> f64 {
        self.bytes as f64 / self.us / 1e3
    }

    /// The time in units of what a copy of the same bytes takes.
    pub fn times_floor(&self, copy_gb_s: f64) -> f64 {
        self.us / floor_us(self.bytes, copy_gb_s)
    }

    /// The limit in microseconds, where there is one; see [`Limit::us`].
    pub fn limit_us(&self, copy_gb_s: f64, others_us: Option<f64>) -> Option<f64> {
        self.limit.and_then(|limit| limit.us(self.bytes, copy_gb_s, others_us))
    }

    /// Whether the limit is kept, where there is one.
    pub fn within(&self, copy_gb_s: f64, others_us: Option<f64>) -> Option<bool> {
        self.limit_us(copy_gb_s, others_us).map(|limit| self.us <= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_of_the_row_and_the_copy() {
        let row =
            |us, limit| Row { id: String::new(), device: String::new(), us, hot_us: None, bytes: 3_000_000, limit };
        // 3 MB at 3000 GB/s take 1 µs.
        assert_eq!(row(1.5, None).times_floor(3000.0), 1.5);
        assert_eq!(row(1.5, None).within(3000.0, None), None);
        for (limit, most) in [(Limit::Floor(1.2), 1.2), (Limit::Us(2.0), 2.0)] {
            assert_eq!(row(most * 1.01, Some(limit)).within(3000.0, None), Some(false));
            assert_eq!(row(most * 0.99, Some(limit)).within(3000.0, None), Some(true));
        }
        let others = |floor| row(1.9, Some(Limit::Others { times: 8.0, floor }));
        assert_eq!(others(None).within(3000.0, Some(16.0)), Some(true));
        assert_eq!(others(None).within(3000.0, Some(15.0)), Some(false));
        assert_eq!(others(Some(1.8)).within(3000.0, Some(16.0)), Some(false), "too slow beside a copy");
        assert_eq!(others(Some(1.8)).within(3000.0, None), None, "nobody to compare with");
    }

    #[test]
    fn others_are_the_fastest_beside_us() {
        let mut record = Record::new(None);
        assert_eq!(record.others_us("a"), None);
        let peer = |id: &str, us, elsewhere: Option<&str>| Peer {
            peer: "P".into(),
            id: id.into(),
            us,
            elsewhere: elsewhere.map(str::to_string),
        };
        record.peers =
            vec![peer("a", 5.0, None), peer("a", 3.0, None), peer("a", 1.0, Some("H100")), peer("b", 2.0, None)];
        assert_eq!(record.others_us("a"), Some(3.0));
    }

    #[test]
    fn records_of_processors_have_nothing_of_gpus() {
        let text = r#"{"id":"cpu","name":"a","copy_gb_s":1.0}"#;
        let measured: Measured = serde_json::from_str(text).unwrap();
        assert!(measured.gpu.is_none());
        assert_eq!(serde_json::to_string(&measured).unwrap(), text);
        let gpu = Gpu { samples: 3, copy_bytes: 2, flushed_bytes: 1, empty_graph_us: 4.0, first_calls: Vec::new() };
        let text = serde_json::to_string(&Measured { gpu: Some(gpu), ..measured }).unwrap();
        let again: Measured = serde_json::from_str(&text).unwrap();
        assert_eq!(again.gpu.unwrap().samples, 3);
    }
}
