//! The images that are tried for a device, one after the other: embedded machine code, what NVRTC compiles for it if the user wants
//! that, and NVIDIA's assembly.

use mhc_core::{
    DType,
    gpu::images::{Cache, Found, Recipe, Step, first},
};

use super::{IMAGES, WAVE, choose::candidates, headers, options, sources, targets::native};
use crate::nvrtc::{Format, Nvrtc};

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

/// What `load` makes of the first image that suits a device of this compute capability, ten times the major version plus the minor, and
/// the image's name. The error lists everything that was tried.
pub(crate) fn load<T>(
    source: &'static str,
    dtype: DType,
    capability: u32,
    load: impl Fn(Found) -> Result<T, String>,
) -> Result<(T, String), String> {
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
    let steps = kinds(list.as_deref(), nvrtc).into_iter().flat_map(of_kind);
    first(steps, || compile(source, dtype, capability), load).map_err(|mut failed| {
        if embedded.is_empty() {
            failed.insert(
                0,
                format!("no embedded image of `{source}` for {dtype} suits compute capability {capability}"),
            );
        }
        failed.join("; ")
    })
}

/// What NVRTC makes for just this device, or has made before.
fn compile(source: &str, dtype: DType, capability: u32) -> Result<Found, String> {
    let nvrtc = Nvrtc::find().map_err(|e| format!("NVRTC: {e}"))?;
    let found = sources().find(|s| s.name == source);
    let source = found.ok_or_else(|| format!("NVRTC: there is no source `{source}`"))?;
    let target = native(source, capability);
    let (major, minor) = nvrtc.version();
    let recipe = Recipe {
        compiler: format!("NVRTC {major}.{minor}"),
        options: options(&target),
        headers: headers(source),
        wave: WAVE,
        source,
        dtype,
        target,
    };
    recipe.make(&Cache::from_env(), |unit, options| Ok(nvrtc.compile(unit, options, Format::Cubin)?.image))
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
            let bytes = image.unpack().unwrap_or_else(|e| panic!("{image:?}: {e}"));
            let machine_code = bytes.starts_with(b"\x7fELF");
            assert_eq!(machine_code, image.target.starts_with("sm_"), "{} {}", image.source, image.target);
        }
    }

    #[test]
    fn a_source_that_is_not_there_is_named() {
        let failed = load("nothing", DType::F32, 90, |_| Ok(())).unwrap_err();
        assert!(failed.contains("`nothing`"), "{failed}");
    }
}
