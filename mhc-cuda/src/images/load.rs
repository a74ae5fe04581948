//! The images that are tried for a device, one after the other: embedded machine code, what NVRTC compiles for it if the user wants
//! that, and NVIDIA's assembly.

use std::io::Read;

use mhc_core::DType;
use ruzstd::decoding::StreamingDecoder;

use super::{IMAGES, Image, WAVE, cache::Cache, choose::candidates, headers, options, sources, targets::native};
use crate::nvrtc::{Format, Nvrtc, Unit};

/// An image to try.
pub(crate) struct Found {
    /// What it is, for messages: `embedded sm_90`.
    pub name: String,
    /// Machine code, or assembly with a zero at its end.
    pub image: Vec<u8>,
}

/// Where images come from, in the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Cubin,
    Nvrtc,
    Ptx,
}

/// What `MHC_CUDA_IMAGES` asks for: a list of `cubin`, `nvrtc` and `ptx`. Without it, NVRTC is asked where `MHC_NVRTC` names one.
fn kinds(images: Option<&str>, nvrtc: bool) -> Vec<Kind> {
    let kind = |name: &str| match name.trim() {
        "cubin" => Some(Kind::Cubin),
        "nvrtc" => Some(Kind::Nvrtc),
        "ptx" => Some(Kind::Ptx),
        _ => None,
    };
    match images {
        Some(list) => list.split(',').filter_map(kind).collect(),
        None if nvrtc => vec![Kind::Cubin, Kind::Nvrtc, Kind::Ptx],
        None => vec![Kind::Cubin, Kind::Ptx],
    }
}

/// The images to try for a source on a device, made one at a time, and what was wrong with those that could not be made.
pub(crate) struct Attempts {
    source: &'static str,
    dtype: DType,
    capability: u32,
    rest: std::vec::IntoIter<Step>,
    /// One line for each image that could not be made; the caller adds one for each that did not load.
    pub failed: Vec<String>,
}

enum Step {
    Embedded(&'static Image),
    Compile,
}

impl Attempts {
    /// For a device of this compute capability, ten times the major version plus the minor.
    pub fn new(source: &'static str, dtype: DType, capability: u32) -> Self {
        let list = std::env::var("MHC_CUDA_IMAGES").ok();
        let nvrtc = std::env::var_os("MHC_NVRTC").is_some_and(|p| !p.is_empty());
        let embedded = candidates(IMAGES, source, dtype.name(), capability);
        let of_kind = |kind| -> Vec<Step> {
            let some = |ptx| embedded.iter().filter(move |i| i.target.starts_with("compute") == ptx);
            match kind {
                Kind::Cubin => some(false).map(|i| Step::Embedded(i)).collect(),
                Kind::Nvrtc => vec![Step::Compile],
                Kind::Ptx => some(true).map(|i| Step::Embedded(i)).collect(),
            }
        };
        let steps: Vec<Step> = kinds(list.as_deref(), nvrtc).into_iter().flat_map(of_kind).collect();
        let mut failed = Vec::new();
        if embedded.is_empty() {
            failed.push(format!("no embedded image of `{source}` for {dtype} suits compute capability {capability}"));
        }
        Self { source, dtype, capability, rest: steps.into_iter(), failed }
    }

    fn make(&self, step: Step) -> Result<Found, String> {
        match step {
            Step::Embedded(image) => {
                let name = format!("embedded {}", image.target);
                let bytes = unpack(image).map_err(|e| format!("{name}: {e}"))?;
                Ok(Found { name, image: bytes })
            }
            Step::Compile => self.compile(),
        }
    }

    /// What NVRTC makes for just this device, or has made before.
    fn compile(&self) -> Result<Found, String> {
        let nvrtc = Nvrtc::find().map_err(|e| format!("NVRTC: {e}"))?;
        let source = sources().find(|s| s.name == self.source);
        let source = source.ok_or_else(|| format!("NVRTC: there is no source `{}`", self.source))?;
        let target = native(source, self.capability);
        let (options, text) = (options(&target), source.translation_unit(self.dtype, WAVE));
        let (major, minor) = nvrtc.version();
        let name = format!("NVRTC {major}.{minor} for {target}");
        let mut content = vec![name.as_str(), env!("CARGO_PKG_VERSION"), &text];
        content.extend(options.iter().map(String::as_str));
        let headers = headers(source);
        content.extend(headers.iter().flat_map(|(name, text)| [*name, *text]));
        let cache = Cache::from_env();
        let key = Cache::key(&content);
        if let Some(image) = cache.get(&key) {
            return Ok(Found { name: format!("{name}, from the cache"), image });
        }
        let unit = Unit { name: &format!("{}.cu", source.name), text: &text, headers: &headers };
        let image = nvrtc.compile(unit, &options, Format::Cubin).map_err(|e| format!("{name}: {e}"))?.image;
        cache.put(&key, &image);
        Ok(Found { name, image })
    }
}

impl Iterator for Attempts {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            let step = self.rest.next()?;
            match self.make(step) {
                Ok(found) => return Some(found),
                Err(why) => self.failed.push(why),
            }
        }
    }
}

/// The bytes of an embedded image, with a zero behind them, which ends assembly and does no harm to machine code.
fn unpack(image: &Image) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(image.bytes + 1);
    let mut decoder = StreamingDecoder::new(image.data).map_err(|e| e.to_string())?;
    decoder.read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() != image.bytes {
        return Err(format!("unpacks to {} bytes instead of {}", bytes.len(), image.bytes));
    }
    bytes.push(0);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tried_can_be_chosen() {
        assert_eq!(kinds(None, false), [Kind::Cubin, Kind::Ptx]);
        assert_eq!(kinds(None, true), [Kind::Cubin, Kind::Nvrtc, Kind::Ptx]);
        assert_eq!(kinds(Some("ptx"), true), [Kind::Ptx]);
        assert_eq!(kinds(Some("nvrtc, cubin,?"), false), [Kind::Nvrtc, Kind::Cubin]);
    }

    #[test]
    fn every_embedded_image_unpacks() {
        for image in IMAGES {
            let bytes = unpack(image).unwrap_or_else(|e| panic!("{image:?}: {e}"));
            let machine_code = bytes.starts_with(b"\x7fELF");
            assert_eq!(machine_code, image.target.starts_with("sm_"), "{} {}", image.source, image.target);
        }
    }

    #[test]
    fn a_source_that_is_not_there_is_named() {
        let mut attempts = Attempts::new("nothing", DType::F32, 90);
        assert!(attempts.by_ref().next().is_none());
        assert!(attempts.failed[0].contains("`nothing`"), "{:?}", attempts.failed);
    }
}
