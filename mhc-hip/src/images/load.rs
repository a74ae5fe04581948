//! The images that are tried for a device, one after the other: machine code for just its architecture, machine code for its family, and
//! what hiprtc compiles for it.

use mhc_core::{
    DType,
    gpu::images::{Cache, Found, Image, Recipe, Step, first},
};

use super::{IMAGES, check, headers, options, sources, targets::generic, wave};
use crate::hiprtc::Hiprtc;

/// Where images come from, in the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Exact,
    Generic,
    Hiprtc,
}

/// What `MHC_HIP_IMAGES` asks for: a list of `exact`, `generic` and `hiprtc`. Without it, all of them in this order.
fn kinds(images: Option<&str>) -> Vec<Kind> {
    let kind = |name: &str| match name.trim() {
        "exact" => Some(Kind::Exact),
        "generic" => Some(Kind::Generic),
        "hiprtc" => Some(Kind::Hiprtc),
        _ => None,
    };
    match images {
        Some(list) => list.split(',').filter_map(kind).collect(),
        None => vec![Kind::Exact, Kind::Generic, Kind::Hiprtc],
    }
}

/// A device as images depend on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gpu<'a> {
    /// Its architecture without features: `gfx942`.
    pub arch: &'a str,
    /// With them, as the runtime names it: `gfx942:sramecc+:xnack-`.
    pub features: &'a str,
    /// The runtime's version: what hiprtc compiles is loaded by this.
    pub runtime: &'a str,
}

/// What `load` makes of the first of the embedded `images` and what hiprtc gives that suits the device, and the image's name. Images that
/// are no whole code object for it do not get that far. The error lists everything that was tried.
pub(crate) fn load<T>(
    images: &'static [Image],
    source: &'static str,
    dtype: DType,
    gpu: Gpu<'_>,
    load: impl Fn(&[u8]) -> Result<T, String>,
) -> Result<(T, String), String> {
    let (mut missing, mut steps) = (Vec::new(), Vec::new());
    for kind in kinds(std::env::var("MHC_HIP_IMAGES").ok().as_deref()) {
        match step(images, source, dtype.name(), gpu.arch, kind) {
            Ok(step) => steps.push(step),
            Err(why) => missing.push(why),
        }
    }
    let checked = |found: Found| check(&found.image, &found.target).and_then(|()| load(&found.image));
    let loaded = first(steps, || compile(source, dtype, gpu), checked);
    loaded.map_err(|failed| missing.into_iter().chain(failed).collect::<Vec<_>>().join("; "))
}

/// The embedded machine code that a device of this architecture is given, if it is given any before what hiprtc compiles.
pub fn embedded(source: &str, dtype: DType, arch: &str) -> Option<&'static Image> {
    let kinds = kinds(std::env::var("MHC_HIP_IMAGES").ok().as_deref());
    let tried = kinds.into_iter().filter_map(|kind| step(IMAGES, source, dtype.name(), arch, kind).ok());
    tried.take(1).find_map(|step| match step {
        Step::Embedded(image) => Some(image),
        Step::Compile => None,
    })
}

/// The way to an image of this kind, or that there is none.
fn step(images: &'static [Image], source: &str, dtype: &str, arch: &str, kind: Kind) -> Result<Step, String> {
    let target = match kind {
        Kind::Exact => arch,
        Kind::Generic => generic(arch).ok_or_else(|| format!("{arch} has no generic target"))?,
        Kind::Hiprtc => return Ok(Step::Compile),
    };
    let found = images.iter().find(|i| i.source == source && i.dtype == dtype && i.target == target);
    found.map(Step::Embedded).ok_or_else(|| format!("no embedded image of `{source}` for {dtype} and {target}"))
}

/// What hiprtc makes for just this device, or has made before.
fn compile(source: &str, dtype: DType, gpu: Gpu<'_>) -> Result<Found, String> {
    let hiprtc = Hiprtc::find().map_err(|e| format!("hiprtc: {e}"))?;
    let found = sources().find(|s| s.name == source);
    let source = found.ok_or_else(|| format!("hiprtc: there is no source `{source}`"))?;
    let mut options = options(gpu.arch);
    // With its features, so that the cache tells devices apart that differ in them alone.
    options.push(format!("-DMHC_GPU={:?}", gpu.features));
    let recipe = Recipe {
        compiler: format!("hiprtc of HIP {}", gpu.runtime),
        target: gpu.arch.into(),
        wave: wave(gpu.arch),
        headers: headers(source),
        options,
        source,
        dtype,
    };
    recipe.make(&Cache::from_env(), |unit, options| hiprtc.compile(unit, options))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POST: Image = Image { source: "post", dtype: "bf16", target: "gfx942", offset: 0, bytes: 0, data: &[] };
    const SOME: &[Image] = &[
        POST,
        Image { target: "gfx1100", ..POST },
        Image { target: "gfx9-4-generic", ..POST },
        Image { source: "pre", ..POST },
        Image { dtype: "f32", ..POST },
    ];

    #[test]
    fn what_is_tried_can_be_chosen() {
        assert_eq!(kinds(None), [Kind::Exact, Kind::Generic, Kind::Hiprtc]);
        assert_eq!(kinds(Some("hiprtc, exact,?")), [Kind::Hiprtc, Kind::Exact]);
    }

    #[test]
    fn the_exact_architecture_then_its_family_then_the_compiler() {
        let target = |arch, kind| match step(SOME, "post", "bf16", arch, kind) {
            Ok(Step::Embedded(image)) => Ok(image.target),
            Ok(Step::Compile) => Ok("compiled"),
            Err(why) => Err(why),
        };
        assert_eq!(target("gfx942", Kind::Exact), Ok("gfx942"));
        assert_eq!(target("gfx950", Kind::Generic), Ok("gfx9-4-generic"));
        assert_eq!(target("gfx1250", Kind::Hiprtc), Ok("compiled"));
        let none = |arch, kind, words: &str| assert!(target(arch, kind).unwrap_err().contains(words));
        none("gfx950", Kind::Exact, "no embedded image of `post` for bf16 and gfx950");
        none("gfx1101", Kind::Generic, "gfx11-generic");
        none("gfx90a", Kind::Generic, "gfx90a has no generic target");
    }

    #[test]
    fn portable_sources_are_embedded_for_every_family() {
        let target = |arch| embedded("post", DType::Bf16, arch).map(|image| image.target);
        assert_eq!([target("gfx90a"), target("gfx1151")], [Some("gfx90a"), Some("gfx11-generic")]);
        assert_eq!(target("gfx1030"), None);
    }

    #[test]
    fn every_embedded_image_is_a_whole_object_for_its_target() {
        for image in IMAGES {
            let checked = image.unpack().and_then(|bytes| check(&bytes, image.target));
            assert_eq!(checked, Ok(()), "{} {} {}", image.source, image.dtype, image.target);
        }
    }

    #[test]
    fn a_source_that_is_not_there_is_named() {
        let gpu = Gpu { arch: "gfx942", features: "gfx942", runtime: "7.2" };
        let failed = load(SOME, "nothing", DType::F32, gpu, |_| Ok(())).unwrap_err();
        assert!(failed.contains("`nothing` for f32 and gfx942") && failed.contains("gfx9-4-generic"), "{failed}");
        assert!(failed.contains("hiprtc"), "{failed}");
    }
}
