//! The picture: gains of the composite mapping by depth above, H_res of one token below.

use super::{
    Findings, Findings1,
    gain::{Gain, Matrix, column_sums, row_sums},
    network::Kind,
};
use crate::svg::{Anchor, P, Svg};

const SIZE: P = (1280.0, 1000.0);
const INK: &str = "#1f2933";
const FAINT: &str = "#7b8794";
const GRID: &str = "#e4e7eb";

fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Plain => "#52606d",
        Kind::Unconstrained => "#c2410c",
        Kind::Mhc => "#0b69a3",
    }
}

/// The picture as SVG.
pub fn draw(f: &Findings) -> String {
    let mut svg = Svg::new(SIZE);
    svg.text(
        (48.0, 50.0),
        25.0,
        Anchor::Start,
        INK,
        "How much may a signal grow on its way through the residual streams?",
    );
    let depth = f.kinds[0].sub_layers.len();
    let setting = format!(
        "{depth} sub-layers of a pretrained transformer on a real text: T = {}, n = {}, C = {}, {} streams, {} conventions, {}",
        f.tokens, f.streams, f.channels, f.dtype, f.numerics, f.device
    );
    svg.text((48.0, 76.0), 14.0, Anchor::Start, FAINT, &setting);
    let top = f.kinds.iter().flat_map(|k| &k.sub_layers);
    let top = top.fold(1.0f64, |m, s| m.max(s.forward_gain.largest).max(s.backward_gain.largest));
    let axis = Axis { top: 10f64.powf((top * 1.15).log10().ceil().max(1.0)), depth };
    let forward = |k: &Findings1| k.sub_layers.iter().map(|s| s.forward_gain).collect();
    let backward = |k: &Findings1| k.sub_layers.iter().map(|s| s.backward_gain).collect();
    gains(&mut svg, (48.0, 112.0), &axis, f, "Forward: largest row sum of |H_l … H_1|", "after sub-layer l", forward);
    gains(
        &mut svg,
        (672.0, 112.0),
        &axis,
        f,
        "Backward: largest column sum of |H_L … H_l|",
        "before sub-layer l",
        backward,
    );
    maps(&mut svg, f);
    svg.finish()
}

struct Axis {
    top: f64,
    depth: usize,
}

const PANEL: P = (424.0, 290.0);
const LOWEST: f64 = 0.5;

/// One panel: a line for the mean over tokens, a band up to the largest.
fn gains(
    svg: &mut Svg,
    (x, y): P,
    axis: &Axis,
    f: &Findings,
    title: &str,
    below: &str,
    of: impl Fn(&Findings1) -> Vec<Gain>,
) {
    let (x0, y0) = (x + 44.0, y + 36.0);
    let at = |l: usize, v: f64| {
        let height = (v / LOWEST).ln() / (axis.top / LOWEST).ln();
        (x0 + PANEL.0 * (l as f64 + 0.5) / axis.depth as f64, y0 + PANEL.1 * (1.0 - height))
    };
    svg.text((x, y + 4.0), 16.0, Anchor::Start, INK, title);
    svg.text((x, y + 23.0), 13.0, Anchor::Start, FAINT, "line: mean over tokens; band: up to the largest");
    let mut tick = 1.0;
    while tick <= axis.top {
        let (_, v) = at(0, tick);
        svg.line(&[(x0, v), (x0 + PANEL.0, v)], GRID, 1.0, "");
        svg.text((x0 - 8.0, v + 4.0), 13.0, Anchor::End, FAINT, &format!("{tick}"));
        tick *= 10.0;
    }
    for l in 0..axis.depth {
        svg.text((at(l, 1.0).0, y0 + PANEL.1 + 18.0), 13.0, Anchor::Middle, FAINT, &(l + 1).to_string());
    }
    svg.text((x0 + PANEL.0 / 2.0, y0 + PANEL.1 + 38.0), 13.0, Anchor::Middle, FAINT, below);

    // Plain last and dashed: its line is the same as mHC's.
    let order = [Kind::Unconstrained, Kind::Mhc, Kind::Plain];
    for kind in f.kinds.iter().map(|k| k.kind).filter(|k| order.contains(k)).collect::<Vec<_>>().iter().rev() {
        let Some(found) = f.kinds.iter().find(|k| k.kind == *kind) else { continue };
        let gains = of(found);
        let mean: Vec<P> = gains.iter().enumerate().map(|(l, g)| at(l, g.mean)).collect();
        let largest = gains.iter().enumerate().map(|(l, g)| at(l, g.largest)).rev();
        let band: Vec<P> = mean.iter().copied().chain(largest).collect();
        svg.area(&band, colour(*kind), 0.16);
        let (width, dash) = if *kind == Kind::Plain { (1.6, "5,5") } else { (2.6, "") };
        let line_colour = if *kind == Kind::Plain { "#ffffff" } else { colour(*kind) };
        svg.line(&mean, line_colour, width, dash);
        if *kind != Kind::Plain {
            mean.iter().for_each(|p| svg.dot(*p, 3.4, colour(*kind)));
        }
    }
    // Beside the line's far end, or below it where it falls.
    let ends = |kind: Kind| {
        let gains = f.kinds.iter().find(|k| k.kind == kind).map(&of)?;
        let (first, last) = (gains.first()?.mean, gains.last()?.mean);
        Some(if first > last { (0, first, (2.0, 66.0)) } else { (axis.depth - 1, last, (12.0, 4.0)) })
    };
    if let Some((l, gain, by)) = ends(Kind::Unconstrained) {
        let (x, y) = at(l, gain);
        let text = format!("unconstrained HC {}", number(gain));
        svg.text((x + by.0, y + by.1), 14.0, Anchor::Start, colour(Kind::Unconstrained), &text);
    }
    if let Some((_, gain, _)) = ends(Kind::Mhc) {
        let (x, y) = at(axis.depth - 1, gain);
        svg.text((x + 12.0, y - 4.0), 14.0, Anchor::Start, colour(Kind::Mhc), &format!("mHC {}", number(gain)));
        svg.text((x + 12.0, y + 16.0), 14.0, Anchor::Start, colour(Kind::Plain), "plain 1 (dashed)");
    }
}

/// Three digits that matter.
fn number(v: f64) -> String {
    let digits = (2 - (v.abs() * 1.0005).max(0.1).log10().floor() as i32).clamp(0, 2) as usize;
    format!("{v:.digits$}")
}

/// Side of one heat map.
const MAP: f64 = 168.0;

/// H_res of one token at three depths and the product of all, for both kinds that mix.
fn maps(svg: &mut Svg, f: &Findings) {
    let token = f.tokens / 2;
    let n = f.streams;
    let y = 520.0;
    let title = format!(
        "H_res of token {token}, to (down) by from (across), with the sums of absolute values of its rows and columns"
    );
    svg.text((48.0, y), 16.0, Anchor::Start, INK, &title);
    let last = f.kinds[0].sub_layers.len() - 1;
    let picked = [0, last / 2, last];
    let mixing: Vec<&Findings1> = f.kinds.iter().filter(|k| k.kind != Kind::Plain).collect();
    let of = |k: &Findings1| -> Vec<(String, Matrix)> {
        let single = picked.iter().map(|&l| (format!("sub-layer {}", l + 1), k.matrices[l][token].clone()));
        single.chain([(format!("product of all {}", last + 1), k.product[token].clone())]).collect()
    };
    let largest = mixing.iter().flat_map(|k| of(k)).flat_map(|(_, m)| m).fold(1.0f64, |m, v| m.max(v.abs()));
    for (row, kind) in mixing.iter().enumerate() {
        let y = y + 40.0 + row as f64 * (MAP + 56.0);
        let name = if kind.kind == Kind::Mhc { ["mHC:", "Sinkhorn"] } else { ["HC:", "unconstrained"] };
        for (i, word) in name.iter().enumerate() {
            svg.text((48.0, y + 20.0 + 19.0 * i as f64), 15.0, Anchor::Start, colour(kind.kind), word);
        }
        for (i, (name, m)) in of(kind).iter().enumerate() {
            let x = 168.0 + i as f64 * (MAP + 82.0) + if i == picked.len() { 24.0 } else { 0.0 };
            svg.text((x, y - 8.0), 13.0, Anchor::Start, FAINT, name);
            map(svg, (x, y), n, m, largest);
        }
    }
    scale(svg, (1218.0, y + 40.0), 2.0 * MAP + 56.0, largest);
}

fn map(svg: &mut Svg, (x, y): P, n: usize, m: &Matrix, largest: f64) {
    let cell = MAP / n as f64;
    for (e, v) in m.iter().enumerate() {
        let corner = (x + (e % n) as f64 * cell, y + (e / n) as f64 * cell);
        svg.rect(corner, (cell + 0.3, cell + 0.3), &shade(*v, largest));
        if n <= 6 {
            let ink = if strength(*v, largest).abs() > 0.6 { "#ffffff" } else { INK };
            let size = if n <= 4 { 13.0 } else { 10.0 };
            svg.text((corner.0 + cell / 2.0, corner.1 + cell / 2.0 + 4.5), size, Anchor::Middle, ink, &number(*v));
        }
    }
    if n <= 8 {
        let sizes = if n <= 4 { 12.0 } else { 9.0 };
        for (i, sum) in row_sums(n, m).iter().enumerate() {
            svg.text((x + MAP + 6.0, y + (i as f64 + 0.5) * cell + 4.0), sizes, Anchor::Start, FAINT, &number(*sum));
        }
        for (j, sum) in column_sums(n, m).iter().enumerate() {
            svg.text((x + (j as f64 + 0.5) * cell, y + MAP + 16.0), sizes, Anchor::Middle, FAINT, &number(*sum));
        }
    }
}

/// -1..=1: linear around 0, logarithmic beyond 1, so that weights of both kinds can be told apart.
fn strength(v: f64, largest: f64) -> f64 {
    (2.0 * v).asinh() / (2.0 * largest).asinh()
}

/// White at 0, purple below, green above.
fn shade(v: f64, largest: f64) -> String {
    let s = strength(v, largest).clamp(-1.0, 1.0);
    let end = if s < 0.0 { [91.0, 33.0, 124.0] } else { [0.0, 90.0, 60.0] };
    let mix = end.map(|c| (255.0 + (c - 255.0) * s.abs().powf(0.85)).round() as u8);
    format!("#{:02x}{:02x}{:02x}", mix[0], mix[1], mix[2])
}

/// The key of the heat maps.
fn scale(svg: &mut Svg, (x, y): P, height: f64, largest: f64) {
    const STEPS: usize = 80;
    let value = |s: f64| (s * (2.0 * largest).asinh()).sinh() / 2.0;
    for i in 0..STEPS {
        let s = 1.0 - 2.0 * (i as f64 + 0.5) / STEPS as f64;
        let step = height / STEPS as f64;
        svg.rect((x, y + i as f64 * step), (14.0, step + 0.3), &shade(value(s), largest));
    }
    let mut ticks = vec![0.0, 1.0, -1.0];
    let mut tick = 10.0;
    while tick <= largest {
        ticks.extend([tick, -tick]);
        tick *= 10.0;
    }
    for tick in ticks {
        let at = y + height * (1.0 - strength(tick, largest)) / 2.0;
        svg.text((x + 20.0, at + 4.0), 12.0, Anchor::Start, FAINT, &format!("{tick}"));
    }
}
