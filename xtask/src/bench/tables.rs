//! A record as tables: on the terminal, as a document, in the README.

use std::{collections::BTreeSet, fmt::Write};

use mhc_tests::bench::record::{Limit, Measured, Peer, Record, Row};

use crate::report::markdown_table;

/// The shape that the README shows of suites with many.
const TRAINING: &str = "T2048.n4.C2048";

/// Columns of numbers, what they are called, and what they show of a row. Columns that would be empty are left out.
pub struct Columns<'a> {
    record: &'a Record,
    old: Option<&'a Record>,
    several_devices: bool,
    hot: bool,
    limits: bool,
}

impl<'a> Columns<'a> {
    pub fn new(record: &'a Record, old: Option<&'a Record>) -> Self {
        Self {
            record,
            old,
            several_devices: record.devices.len() > 1,
            hot: record.rows.iter().any(|r| r.hot_us.is_some()),
            limits: record.rows.iter().any(|r| r.limit.is_some()),
        }
    }

    /// How many columns are words.
    pub fn words(&self) -> usize {
        1 + usize::from(self.several_devices)
    }

    pub fn header(&self) -> Vec<&'static str> {
        let mut header = vec!["bench"];
        if self.several_devices {
            header.push("device");
        }
        header.push("µs");
        if self.hot {
            header.push("in cache µs");
        }
        header.extend(["MB", "GB/s", "% of copy"]);
        if self.limits {
            header.extend(["× floor", "limit", "kept"]);
        }
        if self.old.is_some() {
            header.extend(["before µs", "change"]);
        }
        header
    }

    /// One row per time.
    pub fn rows(&self) -> Vec<Vec<String>> {
        self.record.rows.iter().map(|r| self.row(r)).collect()
    }

    fn row(&self, r: &Row) -> Vec<String> {
        let copy = self.record.device(&r.device).map(|d| d.copy_gb_s);
        let mut cells = vec![r.id.clone()];
        if self.several_devices {
            cells.push(r.device.clone());
        }
        cells.push(microseconds(r.us));
        if self.hot {
            cells.push(r.hot_us.map_or(String::new(), microseconds));
        }
        cells.extend([format!("{:.3}", r.bytes as f64 / 1e6), format!("{:.1}", r.gb_s())]);
        cells.push(copy.map_or(String::new(), |c| format!("{:.0}", 100.0 * r.gb_s() / c)));
        if self.limits {
            cells.push(copy.map_or(String::new(), |c| format!("{:.2}", r.times_floor(c))));
            cells.push(r.limit.map_or(String::new(), limit));
            let kept = copy.and_then(|c| r.within(c, self.record.others_us(&r.id)));
            cells.push(kept.map_or("", |k| if k { "yes" } else { "**no**" }).into());
        }
        if let Some(old) = self.old {
            let before = old.rows.iter().find(|o| o.id == r.id && o.device == r.device);
            cells.push(before.map_or("new".into(), |o| microseconds(o.us)));
            cells.push(before.map_or(String::new(), |o| format!("{:+.1} %", 100.0 * (r.us / o.us - 1.0))));
        }
        cells
    }
}

fn limit(limit: Limit) -> String {
    match limit {
        Limit::Floor(times) => format!("{times:.2} × floor"),
        Limit::Us(us) => format!("{us} µs"),
        Limit::Others { times, floor: None } => format!("others / {times}"),
        Limit::Others { times, floor: Some(floor) } => format!("others / {times}, {floor:.2} × floor"),
    }
}

pub fn microseconds(us: f64) -> String {
    if us < 100.0 { format!("{us:.2}") } else { format!("{us:.0}") }
}

/// What every device copies, and what is known of it besides, on one line each.
pub fn devices(record: &Record) -> String {
    record.devices.iter().map(device).collect::<Vec<_>>().join("\n")
}

fn device(d: &Measured) -> String {
    let mut text = format!("{} ({}", d.id, d.name);
    if let Some(driver) = &d.driver {
        let _ = write!(text, ", driver {driver}");
    }
    let _ = write!(text, ") copies {:.1} GB/s, read and written bytes counted", d.copy_gb_s);
    if let Some(stolen) = d.stolen {
        let _ = write!(text, "; others on the host got {stolen:.1} % of the time that its processors wanted");
    }
    let Some(gpu) = &d.gpu else { return text };
    let _ = write!(
        text,
        "; times are medians of {} replays of a graph between two events of the device, {} MiB of other memory written before each; \
         a graph with nothing to do takes {:.1} µs",
        gpu.samples,
        gpu.flushed_bytes >> 20,
        gpu.empty_graph_us
    );
    let mut first = gpu.first_calls.iter().map(|c| c.id.as_str()).collect::<BTreeSet<_>>().into_iter().peekable();
    if first.peek().is_some() {
        let worst = |id| {
            let calls = gpu.first_calls.iter().filter(|c| c.id == id);
            format!("`{id}` {:.2} ms", calls.map(|c| c.first_ms).fold(0.0, f64::max))
        };
        let _ = write!(
            text,
            "; the first call of a process takes, beyond the driver's context and the worst of {}, {}",
            gpu.first_calls.iter().filter(|c| c.id == gpu.first_calls[0].id).count(),
            first.map(worst).collect::<Vec<_>>().join(" and ")
        );
    }
    text
}

/// Who did something, marked where that was not beside us.
fn peer_name(p: &Peer) -> String {
    if p.elsewhere.is_some() { format!("{} (published)", p.peer) } else { p.peer.clone() }
}

/// What the mark means; empty where no peer has it.
pub fn elsewhere(record: &Record) -> String {
    let places: BTreeSet<&str> = record.peers.iter().filter_map(|p| p.elsewhere.as_deref()).collect();
    match places.is_empty() {
        true => String::new(),
        false => format!("Published times are of another device: {}.", Vec::from_iter(places).join("; ")),
    }
}

/// Ours beside every peer that did the same work: its time, and how many times ours that is.
pub fn ratios(record: &Record) -> Option<(Vec<String>, Vec<Vec<String>>)> {
    let timed = |p: &&Peer| record.rows.iter().any(|r| r.id == p.id);
    let mut names: Vec<String> = Vec::new();
    for name in record.peers.iter().filter(timed).map(peer_name) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let beside = |r: &Row| {
        let cell = |name: &String| {
            let mut same = record.peers.iter().filter(|p| p.id == r.id && peer_name(p) == *name);
            same.next().map_or(String::new(), |p| format!("{} ({:.1} ×)", microseconds(p.us), p.us / r.us))
        };
        let cells: Vec<String> = names.iter().map(cell).collect();
        let any = cells.iter().any(|c| !c.is_empty());
        any.then(|| [r.id.clone(), microseconds(r.us)].into_iter().chain(cells).collect())
    };
    let rows: Vec<Vec<String>> = record.rows.iter().filter_map(beside).collect();
    let header = ["work".to_string(), "ours µs".into()].into_iter().chain(names).collect();
    (!rows.is_empty()).then_some((header, rows))
}

/// The table and the comparison with others in Markdown, of the rows for which `shown` holds.
fn body(text: &mut String, record: &Record, shown: impl Fn(&str) -> bool) {
    let columns = Columns::new(record, None);
    let rows: Vec<_> = columns.rows().into_iter().filter(|r| shown(&r[0])).collect();
    markdown_table(text, &columns.header(), columns.words(), &rows);
    for f in &record.failed {
        let _ = writeln!(text, "\n`{}` on {} could not be timed: {}", f.id, f.device, f.why);
    }
    if let Some((header, rows)) = ratios(record) {
        let _ = writeln!(text, "\nBeside other implementations, µs and how many times ours:\n");
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        markdown_table(text, &header, 1, &rows);
        let _ = writeln!(text, "\n{}", elsewhere(record));
    }
}

/// What a reader of the README wants to see: the work with limits, or else the training shape, and the peers.
pub fn highlights(record: &Record, picture: Option<&str>) -> String {
    let mut text = format!("**{}, {}.** {}.\n\n", record.machine, record.date, devices(record).replace('\n', "; "));
    if let Some(picture) = picture {
        let _ = writeln!(text, "![How near each work comes to what memory allows]({picture})\n");
    }
    let agreed = record.rows.iter().any(|r| r.limit.is_some());
    body(&mut text, record, |id| agreed || id.ends_with(TRAINING));
    text
}

/// The record as a document.
pub fn markdown(record: &Record) -> String {
    let mut text = format!("{}, {}", record.machine, record.date);
    if let Some(commit) = &record.commit {
        let _ = write!(text, ", commit {commit}");
    }
    let _ = writeln!(text, ".\n{}.\n", devices(record).replace('\n', "; "));
    body(&mut text, record, |_| true);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let row = |id: &str, us, limit| Row {
            id: id.into(),
            device: "cuda:0".into(),
            us,
            hot_us: Some(us / 2.0),
            bytes: 3_000_000,
            limit,
        };
        let mut record = Record::new(Some("abc".into()));
        record.devices.push(Measured {
            id: "cuda:0".into(),
            name: "NVIDIA H100".into(),
            driver: Some("580".into()),
            copy_gb_s: 3000.0,
            stolen: None,
            gpu: None,
        });
        record.rows =
            vec![row("a", 1.5, Some(Limit::Floor(1.2))), row("b", 5.0, Some(Limit::Us(8.0))), row("c", 2.0, None)];
        let peer = |peer: &str, id: &str, us, elsewhere: Option<&str>| Peer {
            peer: peer.into(),
            id: id.into(),
            us,
            elsewhere: elsewhere.map(str::to_string),
        };
        record.peers = vec![peer("P", "a", 3.0, None), peer("P", "z", 3.0, None), peer("Q", "b", 50.0, Some("H100"))];
        record
    }

    #[test]
    fn limits_are_judged() {
        let record = record();
        let columns = Columns::new(&record, None);
        let header = columns.header();
        let at = |name| header.iter().position(|h| *h == name).unwrap();
        let rows = columns.rows();
        assert!(rows.iter().all(|r| r.len() == header.len()));
        assert_eq!((rows[0][at("× floor")].as_str(), rows[0][at("kept")].as_str()), ("1.50", "**no**"));
        assert_eq!((rows[1][at("limit")].as_str(), rows[1][at("kept")].as_str()), ("8 µs", "yes"));
        assert_eq!(rows[2][at("kept")], "");
        assert_eq!(rows[0][at("% of copy")], "67");
    }

    #[test]
    fn peers_stand_beside_the_same_work() {
        let (header, rows) = ratios(&record()).unwrap();
        assert_eq!(header, ["work", "ours µs", "P", "Q (published)"]);
        assert_eq!(rows, [["a", "1.50", "3.00 (2.0 ×)", ""], ["b", "5.00", "", "50.00 (10.0 ×)"]]);
    }
}
