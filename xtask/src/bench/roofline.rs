//! The picture: of each work, how much of the bandwidth of a copy it reaches, below the most that it can.
//!
//! Every operator here does less arithmetic for a byte than any GPU can, so that the roof is memory's, and for small operands the time of
//! an empty graph.

use mhc_tests::bench::record::{Measured, Record, Row, floor_us};

use super::tables::microseconds;
use crate::svg::{Anchor, P, Svg};

const INK: &str = "#1f2933";
const FAINT: &str = "#7b8794";
const GRID: &str = "#e4e7eb";
const ROOF: &str = "#eef1f4";
const KEPT: &str = "#0b69a3";
const MISSED: &str = "#c2410c";
const OPEN: &str = "#7b8794";

const WIDTH: f64 = 1280.0;
const TOP: f64 = 128.0;
const STEP: f64 = 20.0;
const BAR: f64 = 13.0;
/// Where bars begin, and how long 100 % is.
const LEFT: f64 = 380.0;
const LENGTH: f64 = 640.0;

/// Bars in percent of the copy.
struct Bar {
    reached: f64,
    /// The most that is possible.
    roof: f64,
    limit: Option<f64>,
    kept: Option<bool>,
}

impl Bar {
    fn new(row: &Row, device: &Measured, others_us: Option<f64>) -> Self {
        let floor = floor_us(row.bytes, device.copy_gb_s);
        let percent = |us: f64| 100.0 * floor / us;
        let empty = device.gpu.as_ref().map_or(0.0, |g| g.empty_graph_us);
        Self {
            reached: percent(row.us),
            roof: percent(floor.max(empty)),
            limit: row.limit_us(device.copy_gb_s, others_us).map(percent),
            kept: row.within(device.copy_gb_s, others_us),
        }
    }
}

/// The record as SVG: every row whose device is known.
pub fn draw(record: &Record) -> String {
    let rows: Vec<_> = record.rows.iter().filter_map(|r| Some((r, record.device(&r.device)?))).collect();
    let height = TOP + STEP * rows.len() as f64 + 60.0;
    let mut svg = Svg::new((WIDTH, height));
    heading(&mut svg, record);
    let bottom = TOP + STEP * rows.len() as f64;
    for tick in [0, 25, 50, 75, 100] {
        let x = at(f64::from(tick));
        svg.line(&[(x, TOP - 8.0), (x, bottom + 4.0)], GRID, 1.0, "");
        svg.text((x, bottom + 22.0), 13.0, Anchor::Middle, FAINT, &format!("{tick} %"));
    }
    let below = "of the bandwidth of a copy in the same run: bytes of every operand once, by time";
    svg.text((at(50.0), bottom + 42.0), 13.0, Anchor::Middle, FAINT, below);
    for (i, (row, device)) in rows.iter().enumerate() {
        one(&mut svg, TOP + STEP * i as f64, row, &Bar::new(row, device, record.others_us(&row.id)));
    }
    svg.finish()
}

fn at(percent: f64) -> f64 {
    LEFT + LENGTH * percent / 100.0
}

fn heading(svg: &mut Svg, record: &Record) {
    svg.text((48.0, 44.0), 24.0, Anchor::Start, INK, "How near each work comes to what memory allows");
    let device = |d: &Measured| format!("{}: a copy reaches {:.0} GB/s", d.name, d.copy_gb_s);
    let devices = record.devices.iter().map(device).collect::<Vec<_>>().join("; ");
    let commit = record.commit.as_ref().map_or(String::new(), |c| format!(", commit {c}"));
    svg.text((48.0, 70.0), 14.0, Anchor::Start, FAINT, &format!("{devices}, {}{commit}", record.date));
    let legend = [
        (KEPT, "within its limit"),
        (MISSED, "beyond it"),
        (OPEN, "no limit"),
        (ROOF, "possible: no faster than a copy, nor than an empty graph"),
    ];
    let mut x = 48.0;
    for (colour, text) in legend {
        svg.rect((x, 86.0), (14.0, BAR), colour);
        svg.text((x + 20.0, 97.0), 13.0, Anchor::Start, FAINT, text);
        x += 46.0 + 6.6 * text.chars().count() as f64;
    }
    svg.line(&[(x, 84.0), (x, 101.0)], INK, 2.0, "");
    svg.text((x + 8.0, 97.0), 13.0, Anchor::Start, FAINT, "limit");
}

fn one(svg: &mut Svg, y: f64, row: &Row, bar: &Bar) {
    let length = |percent: f64| (LENGTH * percent / 100.0).max(1.0);
    let colour = match bar.kept {
        Some(true) => KEPT,
        Some(false) => MISSED,
        None => OPEN,
    };
    let base = y + BAR - 2.0;
    svg.text((LEFT - 10.0, base), 13.0, Anchor::End, INK, &row.id);
    svg.rect((LEFT, y), (length(bar.roof), BAR), ROOF);
    svg.rect((LEFT, y), (length(bar.reached), BAR), colour);
    if let Some(limit) = bar.limit {
        let ends: [P; 2] = [(at(limit), y - 2.0), (at(limit), y + BAR + 2.0)];
        svg.line(&ends, INK, 2.0, "");
    }
    let end = at(bar.reached.max(bar.roof).max(bar.limit.unwrap_or(0.0)));
    svg.text((end + 10.0, base), 13.0, Anchor::Start, INK, &format!("{:.0} %", bar.reached));
    svg.text((WIDTH - 60.0, base), 13.0, Anchor::End, FAINT, &format!("{} µs", microseconds(row.us)));
}

#[cfg(test)]
mod tests {
    use mhc_tests::bench::record::{Gpu, Limit};

    use super::*;

    fn device() -> Measured {
        let gpu = Gpu { samples: 1, copy_bytes: 1, flushed_bytes: 1, empty_graph_us: 4.0, first_calls: Vec::new() };
        Measured {
            id: "cuda:0".into(),
            name: "GPU".into(),
            driver: None,
            copy_gb_s: 3000.0,
            stolen: None,
            gpu: Some(gpu),
        }
    }

    fn row(bytes: u64, us: f64, limit: Option<Limit>) -> Row {
        Row { id: "a<b".into(), device: "cuda:0".into(), us, hot_us: None, bytes, limit }
    }

    #[test]
    fn large_work_is_under_the_roof_of_the_copy_and_small_under_that_of_the_launch() {
        // 100 µs, and 1 µs, of a copy.
        let large = Bar::new(&row(300_000_000, 125.0, Some(Limit::Floor(1.6))), &device(), None);
        assert_eq!((large.reached, large.roof, large.limit, large.kept), (80.0, 100.0, Some(62.5), Some(true)));
        let small = Bar::new(&row(3_000_000, 8.0, Some(Limit::Us(5.0))), &device(), None);
        assert_eq!((small.reached, small.roof, small.limit, small.kept), (12.5, 25.0, Some(20.0), Some(false)));
    }

    #[test]
    fn every_row_is_drawn() {
        let mut record = Record::new(None);
        record.devices.push(device());
        record.rows = vec![row(300_000_000, 125.0, None), row(3_000_000, 8.0, Some(Limit::Us(5.0)))];
        let svg = draw(&record);
        assert_eq!(svg.matches("a&lt;b").count(), 2);
        assert_eq!(svg.matches(" µs<").count(), 2);
        assert!(crate::svg::png(&svg).is_ok());
    }
}
