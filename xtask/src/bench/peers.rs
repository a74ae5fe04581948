//! Times of other implementations, as the scripts that measure them print them.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail};
use mhc_tests::bench::record::Peer;
use serde::Deserialize;

/// What the file of a script for GPUs holds: rows with their device. Its lines hold rows alone.
#[derive(Deserialize)]
struct OnGpu {
    device: String,
    rows: Vec<GpuRow>,
    /// Whether the times are somebody's of another day, and not taken beside ours.
    #[serde(default)]
    published: bool,
}

/// `{"section": "pre fwd", "peer": "liger", "shape": "M=4096 C=2560 n=4 bf16", "call_us": 251.3, "graph_us": null}`
#[derive(Deserialize)]
struct GpuRow {
    section: String,
    peer: String,
    shape: String,
    #[serde(default)]
    call_us: Option<f64>,
    #[serde(default)]
    graph_us: Option<f64>,
}

/// `{"peer": "torch eager", "shape": "T=2048 n=4 C=2048", "dtype": "bfloat16", "pre_fwd": 86.3, ...}`
#[derive(Deserialize)]
struct CpuRow {
    peer: String,
    shape: String,
    dtype: String,
    #[serde(flatten)]
    ms: BTreeMap<String, f64>,
}

/// The rows of a file: one JSON object, or one a line between other text.
pub fn load(file: &Path) -> Result<Vec<Peer>> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let peers = parse(&text).with_context(|| file.display().to_string())?;
    if peers.is_empty() {
        bail!("{}: no row of work that is timed here", file.display());
    }
    Ok(peers)
}

fn parse(text: &str) -> Result<Vec<Peer>> {
    if let Ok(all) = serde_json::from_str::<OnGpu>(text) {
        let elsewhere = all.published.then_some(all.device);
        return Ok(all.rows.iter().filter_map(|r| on_gpu(r, elsewhere.clone())).collect());
    }
    let mut peers = Vec::new();
    for line in text.lines().filter(|l| l.trim_start().starts_with('{')) {
        if let Ok(row) = serde_json::from_str::<GpuRow>(line) {
            peers.extend(on_gpu(&row, None));
        } else if let Ok(row) = serde_json::from_str::<CpuRow>(line) {
            peers.extend(on_cpu(&row));
        }
    }
    Ok(peers)
}

/// The letter's number in `M=4096 C=2560 n=4 bf16`.
fn number(shape: &str, letters: &[&str]) -> Option<usize> {
    let words = shape.split_whitespace().filter_map(|w| w.split_once('='));
    words.filter(|(letter, _)| letters.contains(letter)).find_map(|(_, n)| n.parse().ok())
}

fn id(work: &str, dtype: &str, shape: &str) -> Option<String> {
    let (t, n, c) = (number(shape, &["T", "M", "B"])?, number(shape, &["n"])?, number(shape, &["C"])?);
    Some(format!("{work}/{dtype}/T{t}.n{n}.C{c}"))
}

/// The faster of a call and a graph's replay. Nothing for rows that failed, or of work that we do not time.
fn on_gpu(row: &GpuRow, elsewhere: Option<String>) -> Option<Peer> {
    let work = match row.section.as_str() {
        "pre fwd" => "pre.fwd",
        "post fwd" => "post.fwd",
        "pre+post fwd+bwd" => "sub_layer.fwd_bwd",
        "layer static fwd" => "static_layer.fwd",
        "layer static fwd+bwd" => "static_layer.fwd_bwd",
        "layer dynamic fwd" => "dynamic_layer.fwd",
        "layer dynamic fwd+bwd" => "dynamic_layer.fwd_bwd",
        _ => return None,
    };
    let dtype = row.shape.split_whitespace().last()?;
    let us = [row.call_us, row.graph_us].into_iter().flatten().min_by(f64::total_cmp)?;
    Some(Peer { peer: row.peer.clone(), id: id(work, dtype, &row.shape)?, us, elsewhere })
}

fn on_cpu(row: &CpuRow) -> Vec<Peer> {
    let dtype = match row.dtype.as_str() {
        "bfloat16" => "bf16",
        "float16" => "f16",
        "float32" => "f32",
        other => other,
    };
    let works = [("pre_fwd", "pre.fwd"), ("post_fwd", "post.fwd"), ("pre_post_fwd_bwd", "sub_layer.fwd_bwd")];
    let peer = |(theirs, ours): &(&str, &str)| {
        let us = row.ms.get(*theirs)? * 1e3;
        Some(Peer { peer: row.peer.clone(), id: id(ours, dtype, &row.shape)?, us, elsewhere: None })
    };
    works.iter().filter_map(peer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_gpus_get_our_names() {
        let text = "NVIDIA H200 2.11 copy 4.0 TB/s\n\
            {\"section\": \"pre fwd\", \"peer\": \"liger\", \"shape\": \"M=4096 C=2560 n=4 bf16\", \"call_us\": 260.5, \"graph_us\": 251.0}\n\
            {\"section\": \"layer dynamic fwd+bwd\", \"peer\": \"torch\", \"shape\": \"B=2560 C=1280 n=4 f32\", \"call_us\": 2607.0, \"graph_us\": null}\n\
            {\"section\": \"pre fwd\", \"peer\": \"x\", \"shape\": \"M=1 C=2560 n=4 bf16\", \"error\": \"no\"}\n";
        let peers = parse(text).unwrap();
        let of = |p: &Peer| (p.peer.clone(), p.id.clone(), p.us, p.elsewhere.clone());
        assert_eq!(of(&peers[0]), ("liger".into(), "pre.fwd/bf16/T4096.n4.C2560".into(), 251.0, None));
        assert_eq!(of(&peers[1]), ("torch".into(), "dynamic_layer.fwd_bwd/f32/T2560.n4.C1280".into(), 2607.0, None));
        assert_eq!(peers.len(), 2, "a row that failed has no time");
    }

    #[test]
    fn published_times_say_where_they_are_from() {
        let text = r#"{"device": "NVIDIA H100", "published": true, "rows":
            [{"section": "post fwd", "peer": "p", "shape": "M=64 C=4096 n=4 bf16", "graph_us": 7.7}]}"#;
        let peers = parse(text).unwrap();
        assert_eq!(peers[0].elsewhere.as_deref(), Some("NVIDIA H100"));
        assert_eq!(peers[0].id, "post.fwd/bf16/T64.n4.C4096");
    }

    #[test]
    fn lines_of_processors_get_our_names() {
        let text = r#"{"peer": "torch eager", "shape": "T=2048 n=4 C=2048", "dtype": "bfloat16", "pre_fwd": 86.303, "copy": 1}"#;
        let peers = parse(text).unwrap();
        assert_eq!((peers.len(), peers[0].id.as_str()), (1, "pre.fwd/bf16/T2048.n4.C2048"));
        assert!((peers[0].us - 86_303.0).abs() < 1e-6);
    }
}
