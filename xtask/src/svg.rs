//! Just enough SVG, and its rendering to PNG. The font is carried along, so that no system font is needed.

use std::{fmt::Write, sync::Arc};

use anyhow::{Context, Result};
use resvg::{tiny_skia, usvg};

const FONT: &str = "Ubuntu";
/// Pixels of the PNG per unit of the SVG.
const SCALE: f32 = 2.0;

/// Where a text is held.
#[derive(Clone, Copy)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Middle => "middle",
            Self::End => "end",
        }
    }
}

/// A picture that grows.
pub struct Svg {
    size: (f64, f64),
    body: String,
}

/// A point.
pub type P = (f64, f64);

impl Svg {
    pub fn new(size: (f64, f64)) -> Self {
        Self { size, body: String::new() }
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.body, "{element}");
    }

    pub fn rect(&mut self, (x, y): P, (w, h): P, fill: &str) {
        self.add(format_args!(r#"<rect x="{x:.2}" y="{y:.2}" width="{w:.2}" height="{h:.2}" fill="{fill}"/>"#));
    }

    /// A line; `dash` as in SVG, empty for none.
    pub fn line(&mut self, points: &[P], stroke: &str, width: f64, dash: &str) {
        let path = path(points);
        self.add(format_args!(
            r#"<path d="{path}" fill="none" stroke="{stroke}" stroke-width="{width}" stroke-dasharray="{dash}" stroke-linejoin="round"/>"#,
            dash = if dash.is_empty() { "none" } else { dash }
        ));
    }

    pub fn area(&mut self, points: &[P], fill: &str, opacity: f64) {
        let path = path(points);
        self.add(format_args!(r#"<path d="{path}Z" fill="{fill}" fill-opacity="{opacity}"/>"#));
    }

    pub fn dot(&mut self, (x, y): P, radius: f64, fill: &str) {
        self.add(format_args!(r#"<circle cx="{x:.2}" cy="{y:.2}" r="{radius}" fill="{fill}"/>"#));
    }

    pub fn text(&mut self, (x, y): P, size: f64, anchor: Anchor, fill: &str, text: &str) {
        let (anchor, text) = (anchor.name(), escape(text));
        self.add(format_args!(
            r#"<text x="{x:.2}" y="{y:.2}" font-size="{size}" text-anchor="{anchor}" fill="{fill}">{text}</text>"#
        ));
    }

    /// The document.
    pub fn finish(self) -> String {
        let ((w, h), body) = (self.size, self.body);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" \
             font-family=\"{FONT}, Helvetica, Arial, sans-serif\">\n<rect width=\"{w}\" height=\"{h}\" fill=\"#ffffff\"/>\n{body}</svg>\n"
        )
    }
}

fn path(points: &[P]) -> String {
    let step = |(i, (x, y)): (usize, &P)| format!("{}{x:.2},{y:.2}", if i == 0 { 'M' } else { 'L' });
    points.iter().enumerate().map(step).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The document as a PNG.
pub fn png(svg: &str) -> Result<Vec<u8>> {
    let mut fonts = usvg::fontdb::Database::new();
    fonts.load_font_data(epaint_default_fonts::UBUNTU_LIGHT.to_vec());
    let options = usvg::Options { fontdb: Arc::new(fonts), font_family: FONT.into(), ..Default::default() };
    let tree = usvg::Tree::from_str(svg, &options)?;
    let size = tree.size().to_int_size().scale_by(SCALE).context("an empty picture")?;
    let mut pixels = tiny_skia::Pixmap::new(size.width(), size.height()).context("an empty picture")?;
    resvg::render(&tree, tiny_skia::Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
    Ok(pixels.encode_png()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_drawn_without_any_system_font() {
        let mut svg = Svg::new((120.0, 40.0));
        svg.text((10.0, 25.0), 16.0, Anchor::Start, "#000000", "a < b & Σ");
        let png = png(&svg.finish()).unwrap();
        let pixels = tiny_skia::Pixmap::decode_png(&png).unwrap();
        assert_eq!((pixels.width(), pixels.height()), (240, 80));
        let dark = pixels.pixels().iter().filter(|p| p.red() < 128).count();
        assert!(dark > 200, "{dark} dark pixels");
    }
}
