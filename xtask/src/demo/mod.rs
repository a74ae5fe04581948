//! `cargo xtask demo`: hyper-connections on the activations of a real transformer.

mod activations;
mod engine;
mod gain;
mod network;
mod picture;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use mhc_ops::{DType, MAX_STREAMS, Numerics, Stream};
use serde::Serialize;

use crate::{home::Home, report, svg};
use activations::Activations;
use engine::{Clock, InF64, OnDevice};
use gain::Gain;
use network::{Kind, Network, Outcome};

/// Carry a real transformer's activations through plain, unconstrained and manifold-constrained residual streams
///
/// The outputs of the twelve sub-layers of a pretrained transformer on a real text stand in the slots of the residual stream, forward
/// and backward. Prints times, the difference from float64, and how much signals may grow over depth; writes that as a picture.
#[derive(clap::Args)]
pub struct Args {
    /// The device, such as `cpu` or `cuda:0` [default: the best one there is, or MHC_DEVICE]
    #[arg(long)]
    device: Option<String>,
    /// Where the picture and the numbers are written [default: target/demo]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// n, the number of residual streams
    #[arg(long, default_value_t = 4)]
    streams: usize,
    /// T, the number of tokens [default: all 256 that were recorded]
    #[arg(long)]
    tokens: Option<usize>,
    /// Element type of the streams: f32, bf16 or f16
    #[arg(long, default_value = "f32", value_parser = dtype)]
    dtype: DType,
    /// Conventions: paper, deepseek_v4, mhc_cu, liger or lucidrains
    #[arg(long, default_value = "deepseek_v4", value_parser = preset)]
    numerics: Numerics,
    /// Where the random parameters and upstream gradients come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print the numbers as JSON
    #[arg(long)]
    json: bool,
}

fn dtype(name: &str) -> Result<DType, String> {
    DType::ALL.into_iter().find(|d| d.name() == name).ok_or_else(|| "one of f32, bf16, f16".into())
}

fn preset(name: &str) -> Result<Numerics, String> {
    let names: Vec<_> = Numerics::PRESETS.iter().map(|(n, _)| *n).collect();
    Numerics::preset(name).ok_or_else(|| format!("one of {}", names.join(", ")))
}

/// Runs of the network on the device; the fastest of each sub-layer counts.
const REPEATS: usize = 5;

/// What the demo found.
#[derive(Debug, Serialize)]
pub struct Findings {
    device: String,
    tokens: usize,
    streams: usize,
    channels: usize,
    dtype: &'static str,
    numerics: String,
    kinds: Vec<Findings1>,
}

/// One kind of residual stream.
#[derive(Debug, Serialize)]
pub struct Findings1 {
    kind: Kind,
    sub_layers: Vec<SubLayer>,
    /// Largest difference from float64, relative to the largest magnitude of the tensor: results, gradients.
    forward_difference: f64,
    backward_difference: f64,
    #[serde(skip)]
    matrices: Vec<Vec<gain::Matrix>>,
    #[serde(skip)]
    product: Vec<gain::Matrix>,
}

/// One sub-layer of one kind.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SubLayer {
    forward_us: f64,
    forward_gb_s: f64,
    backward_us: f64,
    backward_gb_s: f64,
    forward_gain: Gain,
    backward_gain: Gain,
}

pub fn run(args: &Args) -> Result<()> {
    if !(1..=MAX_STREAMS).contains(&args.streams) {
        bail!("--streams must be 1..={MAX_STREAMS}");
    }
    let home = Home::find()?;
    let device = match &args.device {
        Some(name) => mhc_ops::open(name)?,
        None => mhc_ops::best()?,
    };
    let activations = Activations::load(&home.data("minilm_sublayers.safetensors"), args.tokens, args.dtype)?;
    let stream = Stream::new(device)?;
    let mut kinds = Vec::new();
    for kind in Kind::ALL {
        let network = Network::new(kind, args.streams, args.numerics, &activations, args.seed);
        kinds.push(one(&network, &stream, args).with_context(|| kind.name())?);
    }
    let info = stream.device().info();
    let findings = Findings {
        device: format!("{} ({})", info.id, info.name),
        tokens: activations.tokens,
        streams: args.streams,
        channels: activations.channels,
        dtype: args.dtype.name(),
        numerics: args.numerics.tag(),
        kinds,
    };
    let out = args.out.clone().unwrap_or_else(|| home.output("demo"));
    fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    let svg = picture::draw(&findings);
    let json = serde_json::to_string_pretty(&findings)?;
    let write = |name: &str, bytes: &[u8]| {
        let path = out.join(name);
        fs::write(&path, bytes).with_context(|| path.display().to_string())
    };
    write("demo.svg", svg.as_bytes())?;
    write("demo.png", &svg::png(&svg)?)?;
    write("demo.json", json.as_bytes())?;
    if args.json {
        println!("{json}");
    } else {
        print(&findings);
        println!("\nwrote demo.svg, demo.png and demo.json to {}", out.display());
    }
    Ok(())
}

/// Runs one kind on the device and in float64.
fn one(network: &Network<'_>, stream: &Stream, args: &Args) -> Result<Findings1> {
    let layers = network.layers();
    let mut best = vec![[(f64::INFINITY, 0); 2]; layers];
    let mut engine = OnDevice::new(stream.clone(), args.dtype);
    let mut outcome = None;
    for _ in 0..REPEATS {
        engine.clock = Clock::default();
        outcome = Some(network.run(&mut engine, |engine, l, backward| {
            let Clock { seconds, bytes } = std::mem::take(&mut engine.clock);
            let best = &mut best[l][usize::from(backward)];
            if seconds < best.0 {
                *best = (seconds, bytes);
            }
        })?);
    }
    let outcome = outcome.context("no run")?;
    let truth = network.run(&mut InF64 { act: args.dtype }, |_, _, _| ())?;

    let n = network.dims.streams;
    let of = |mixes: &Vec<f64>| gain::matrices(n, args.numerics.orientation, mixes);
    let matrices: Vec<_> = outcome.mixes.iter().map(of).collect();
    let (forward, backward, product) = gain::composite(n, &matrices);
    let us = |(seconds, _): (f64, u64)| seconds * 1e6;
    let gb_s = |(seconds, bytes): (f64, u64)| bytes as f64 / seconds / 1e9;
    let sub_layer = |l: usize| SubLayer {
        forward_us: us(best[l][0]),
        forward_gb_s: gb_s(best[l][0]),
        backward_us: us(best[l][1]),
        backward_gb_s: gb_s(best[l][1]),
        forward_gain: forward[l],
        backward_gain: backward[l],
    };
    Ok(Findings1 {
        kind: network.kind,
        sub_layers: (0..layers).map(sub_layer).collect(),
        forward_difference: difference(&outcome, &truth, |o| &o.forward)?,
        backward_difference: difference(&outcome, &truth, |o| &o.backward)?,
        matrices,
        product,
    })
}

/// The largest difference of any tensor, relative to its largest magnitude. An error where something is not a number.
fn difference(got: &Outcome, truth: &Outcome, of: fn(&Outcome) -> &Vec<Vec<f64>>) -> Result<f64> {
    let mut worst = 0.0f64;
    for (got, truth) in of(got).iter().zip(of(truth)) {
        let largest = truth.iter().fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
        for (g, t) in got.iter().zip(truth) {
            let error = (g - t).abs() / largest;
            if !error.is_finite() {
                bail!("the device computed {g} where float64 gives {t:e}; the streams' type may be too narrow");
            }
            worst = worst.max(error);
        }
    }
    Ok(worst)
}

fn print(f: &Findings) {
    println!(
        "T = {}, n = {}, C = {}, {} streams, {} conventions, on {}\n",
        f.tokens, f.streams, f.channels, f.dtype, f.numerics, f.device
    );
    let header = ["", "forward µs", "GB/s", "backward µs", "GB/s", "difference from f64", "of gradients"];
    let mean =
        |k: &Findings1, of: fn(&SubLayer) -> f64| k.sub_layers.iter().map(of).sum::<f64>() / k.sub_layers.len() as f64;
    let row = |k: &Findings1| {
        vec![
            k.kind.name().into(),
            format!("{:.1}", mean(k, |s| s.forward_us)),
            format!("{:.1}", mean(k, |s| s.forward_gb_s)),
            format!("{:.1}", mean(k, |s| s.backward_us)),
            format!("{:.1}", mean(k, |s| s.backward_gb_s)),
            format!("{:.1e}", k.forward_difference),
            format!("{:.1e}", k.backward_difference),
        ]
    };
    println!("A sub-layer on average, time in operators:");
    println!("{}\n", report::table(&header, 1, f.kinds.iter().map(row).collect()));

    let mut header = vec!["depth", "sub-layer", "mHC µs", "GB/s", "bwd µs", "GB/s"];
    header.extend(["plain", "HC", "mHC", "plain bwd", "HC bwd", "mHC bwd"]);
    let row = |l: usize| {
        let mhc = &f.kinds[2].sub_layers[l];
        let mut cells =
            vec![(l + 1).to_string(), if l.is_multiple_of(2) { "attention" } else { "feed-forward" }.into()];
        cells.extend([mhc.forward_us, mhc.forward_gb_s, mhc.backward_us, mhc.backward_gb_s].map(|v| format!("{v:.1}")));
        cells.extend(f.kinds.iter().map(|k| format!("{:.3}", k.sub_layers[l].forward_gain.largest)));
        cells.extend(f.kinds.iter().map(|k| format!("{:.3}", k.sub_layers[l].backward_gain.largest)));
        cells
    };
    println!("Largest gain of the composite mapping over all tokens (row sums forward, column sums backward):");
    println!("{}", report::table(&header, 2, (0..f.kinds[0].sub_layers.len()).map(row).collect()));
}
