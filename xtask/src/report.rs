//! Tables and progress, alike in every task.

use std::{fmt::Write, time::Duration};

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use indicatif::{ProgressBar, ProgressStyle};

/// A line under the header, and nothing else.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::new('─', '─', '─', '─'));

/// A table whose first `left` columns are words and the others numbers.
pub fn table(header: &[&str], left: usize, rows: Vec<Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE).set_header(header.to_vec()).add_rows(rows);
    for column in table.column_iter_mut().skip(left) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A progress bar over `len` steps; invisible where the output is not a terminal.
pub fn progress(len: usize, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(len as u64).with_message(what);
    let style = ProgressStyle::with_template("{msg:<24} {bar:32} {pos}/{len} {elapsed} {eta:>4}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// `12.3 s`, `4 min 05 s`.
pub fn seconds(t: Duration) -> String {
    let s = t.as_secs();
    if s < 60 { format!("{:.1} s", t.as_secs_f64()) } else { format!("{} min {:02} s", s / 60, s % 60) }
}

/// A Markdown table whose first `left` columns are words.
pub fn markdown_table(text: &mut String, header: &[&str], left: usize, rows: &[Vec<String>]) {
    let rule = (0..header.len()).map(|i| if i < left { "---" } else { "--:" }).collect::<Vec<_>>();
    let _ = writeln!(text, "| {} |\n| {} |", header.join(" | "), rule.join(" | "));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
}
