//! Which images a device can be given, best first. Pure, so that it is tested without a device.

use mhc_core::gpu::images::Image;

/// The images that may run on a device of this compute capability: machine code for just this architecture, then of the same major
/// version and the next lower minor ones, then NVIDIA's assembly.
pub(crate) fn candidates<'a>(images: &'a [Image], source: &str, dtype: &str, capability: u32) -> Vec<&'a Image> {
    let mut ranked: Vec<_> = images
        .iter()
        .filter(|i| i.source == source && i.dtype == dtype)
        .filter_map(|i| Some((rank(i.target, capability)?, i)))
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, i)| i).collect()
}

/// How far a target is from a device, 0 for its own; `None` where it does not run. Capabilities are ten times the major version plus
/// the minor: 90 for 9.0, 120 for 12.0.
pub(super) fn rank(target: &str, capability: u32) -> Option<u32> {
    const ASSEMBLY: u32 = 1000;
    if let Some(oldest) = target.strip_prefix("compute_") {
        let oldest: u32 = oldest.parse().ok()?;
        return (oldest <= capability).then(|| ASSEMBLY + capability - oldest);
    }
    let machine = target.strip_prefix("sm_")?;
    if let Some(only) = machine.strip_suffix('a') {
        return (only.parse::<u32>().ok()? == capability).then_some(0);
    }
    let lowest: u32 = machine.parse().ok()?;
    // One more than for the variant that runs on this architecture alone and may use all of it.
    (lowest / 10 == capability / 10 && lowest <= capability).then(|| 1 + capability - lowest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(capability: u32) -> Vec<&'static str> {
        let image = |target| Image { source: "post", dtype: "bf16", target, offset: 0, bytes: 0, data: &[] };
        let mut images = ["compute_80", "sm_120", "sm_100", "sm_90", "sm_90a", "sm_86", "sm_80"].map(image).to_vec();
        images.push(Image { source: "pre", ..image("sm_80") });
        images.push(Image { dtype: "f32", ..image("sm_80") });
        candidates(&images, "post", "bf16", capability).iter().map(|i| i.target).collect()
    }

    #[test]
    fn the_nearest_comes_first() {
        assert_eq!(targets(80), ["sm_80", "compute_80"]);
        assert_eq!(targets(89), ["sm_86", "sm_80", "compute_80"]);
        assert_eq!(targets(90), ["sm_90a", "sm_90", "compute_80"]);
        assert_eq!(targets(103), ["sm_100", "compute_80"]);
        assert_eq!(targets(121), ["sm_120", "compute_80"]);
        assert_eq!(targets(75), [""; 0], "older than everything");
        assert_eq!(targets(110), ["compute_80"], "newer than every image, of a major version without one");
    }
}
