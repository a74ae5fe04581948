//! What is compiled, for which architectures, and how.

use mhc_core::{
    DType,
    gpu::{Entry, HEADERS, Source},
    ops,
};

use super::choose;

/// Sources that use what not every device has; `arch` of their entries says what: `sm80` for all of compute capability 8.0 and
/// above, `sm90a` for 9.0 alone. Plans find their kernels by name in [`GpuCaps::tuned`](mhc_core::gpu::GpuCaps::tuned).
const TUNED: &[Source] = &[
    Source {
        name: "project_fwd_mma",
        text: include_str!("../../kernels/project_fwd_mma.cuh"),
        entries: || {
            let kernels = ["project_fwd_mma_8", "project_fwd_mma_24", "project_fwd_mma_80"];
            Entry::all(&kernels, &[0]).into_iter().map(|e| Entry { arch: "sm80", ..e }).collect()
        },
    },
    Source {
        name: "project_bwd_mma",
        text: include_str!("../../kernels/project_bwd_mma.cuh"),
        entries: || {
            let kernels = Entry::all(&["project_bwd_mma"], &[2, 4]).into_iter();
            let wide = Entry::all(&["project_bwd_mma_f32"], &[2, 4]).into_iter().filter(|e| e.dtype != DType::F32);
            kernels.chain(wide).map(|e| Entry { arch: "sm80", ..e }).collect()
        },
    },
    Source {
        name: "layer_ahead",
        text: include_str!("../../kernels/layer_ahead.cuh"),
        entries: || {
            // The layers of mHC.cu are in f32 with 4 streams: what else they are run with is not worth a twentieth of the crate.
            let layers = ["static_fwd_ahead", "static_bwd_ahead", "dynamic_bwd_ahead"];
            let kernels = [&layers[..], &["static_bwd_finish", "dynamic_bwd_finish"]].concat();
            Entry::all_f32(&kernels, &[4]).into_iter().map(|e| Entry { arch: "sm80", ..e }).collect()
        },
    },
    Source {
        name: "dynamic_fwd_cluster",
        text: include_str!("../../kernels/dynamic_fwd_cluster.cuh"),
        entries: || hopper([("dynamic_fwd_cluster", 4)], &[DType::F32]),
    },
    Source {
        name: "pre_cluster",
        text: include_str!("../../kernels/pre_cluster.cuh"),
        entries: || {
            let after_post = ["post_pre_cluster_2", "post_pre_cluster_4", "post_pre_cluster_5"];
            let norm = ["pre_norm_cluster_4", "pre_norm_cluster_5", "pre_norm_cluster_7"];
            let four = ["pre_cluster_4", "pre_cluster_5", "pre_cluster_7"];
            let two = ["pre_cluster_4", "pre_cluster_7"].map(|k| (k, 2));
            // In f16 what is run most: the rest would be a hundredth of the crate.
            let mut entries = hopper(four.map(|k| (k, 4)), &[DType::Bf16, DType::F16]);
            let others = after_post.into_iter().chain(["pre_cluster_2"]).chain(norm).map(|k| (k, 4));
            entries.extend(hopper(others.chain(two), &[DType::Bf16]));
            entries
        },
    },
    Source {
        name: "pre_cluster_f32",
        text: include_str!("../../kernels/pre_cluster_f32.cuh"),
        entries: || hopper([("pre_cluster_f32", 4)], &[DType::F32]),
    },
    Source {
        name: "pre_wide",
        text: include_str!("../../kernels/pre_wide.cuh"),
        entries: || hopper(["pre_wide", "pre_wide_start"].map(|k| (k, 8)), &[DType::Bf16]),
    },
    Source {
        name: "pre_few",
        text: include_str!("../../kernels/pre_few.cuh"),
        entries: || {
            let kernels = ["pre_few_products", "pre_few_finish", "post_pre_few_products", "post_pre_few_finish"];
            hopper(kernels.map(|k| (k, 4)), &[DType::Bf16])
        },
    },
];

/// Kernels for so many streams, for Hopper alone.
fn hopper(kernels: impl IntoIterator<Item = (&'static str, u32)>, dtypes: &[DType]) -> Vec<Entry> {
    let of = |(kernel, n)| dtypes.iter().map(move |&dtype| Entry { arch: "sm90a", ..Entry::new(kernel, dtype, n) });
    kernels.into_iter().flat_map(of).collect()
}

/// Files that the tuned sources include besides those of all GPUs.
const TUNED_HEADERS: &[(&str, &str)] = &[
    ("copies.cuh", include_str!("../../kernels/copies.cuh")),
    ("column.cuh", include_str!("../../kernels/column.cuh")),
    ("coefficients_back.cuh", include_str!("../../kernels/coefficients_back.cuh")),
    ("mma.cuh", include_str!("../../kernels/mma.cuh")),
    ("hopper.cuh", include_str!("../../kernels/hopper.cuh")),
    ("cluster_layout.cuh", include_str!("../../kernels/cluster_layout.cuh")),
    ("cluster_roles.cuh", include_str!("../../kernels/cluster_roles.cuh")),
    ("tf32_products.cuh", include_str!("../../kernels/tf32_products.cuh")),
    ("dynamic_layout.cuh", include_str!("../../kernels/dynamic_layout.cuh")),
    ("wgmma.cuh", include_str!("../../kernels/wgmma.cuh")),
    ("token.cuh", include_str!("../../kernels/token.cuh")),
];

/// The files that a source includes, by the name it uses, and their texts.
pub fn headers(source: &Source) -> Vec<(&'static str, &'static str)> {
    source.headers(&[HEADERS, TUNED_HEADERS].concat())
}

/// The lanes of a warp.
pub const WAVE: u32 = 32;

/// Architectures that every portable source is compiled for. Machine code runs on the same major architecture and an equal or higher
/// minor one: `sm_80` serves 8.0 to 8.9, `sm_100` 10.0 and 10.3, `sm_120` 12.0 and 12.1; images for 8.6 would be a sixth more than the
/// registry takes. The driver compiles `compute_80`, NVIDIA's assembly, for whatever else there is or comes.
const PORTABLE: [&str; 5] = ["sm_80", "sm_90", "sm_100", "sm_120", "compute_80"];

/// Every device source: the portable ones, and the tuned ones.
pub fn sources() -> impl Iterator<Item = &'static Source> {
    ops::SOURCES.iter().chain(TUNED)
}

/// What a source is compiled for: as `nvrtc` names it, `sm_90` or `compute_80`. Tuned ones are machine code alone: what a
/// device of tomorrow wants nobody has measured, and a fortieth of the crate would go into their assembly.
pub fn targets(source: &Source) -> Vec<String> {
    let (arch, only) = requirement(source);
    if only {
        return vec![format!("sm_{arch}a")];
    }
    let machine = |target: &str| target.strip_prefix("sm_").and_then(|n| n.parse::<u32>().ok());
    let wanted = |target: &&str| arch == 0 || machine(target).is_some_and(|capability| capability >= arch);
    PORTABLE.into_iter().filter(wanted).map(String::from).collect()
}

/// What NVRTC is asked for on a device of this compute capability.
pub(crate) fn native(source: &Source, capability: u32) -> String {
    let only = if requirement(source).1 { "a" } else { "" };
    format!("sm_{capability}{only}")
}

/// The lowest compute capability that a source runs on, and whether it runs on that alone.
fn requirement(source: &Source) -> (u32, bool) {
    let arch = (source.entries)().first().map_or("", |e| e.arch);
    let number = arch.trim_start_matches("sm").trim_end_matches('a');
    (number.parse().unwrap_or(0), arch.ends_with('a'))
}

/// The entries of the tuned sources that there is machine code of for a device of this compute capability, with their sources.
pub fn tuned(capability: u32) -> Vec<(&'static str, Entry)> {
    let runs = |source: &&Source| targets(source).iter().any(|target| choose::rank(target, capability).is_some());
    TUNED.iter().filter(runs).flat_map(|s| (s.entries)().into_iter().map(|e| (s.name, e))).collect()
}

/// The compiler's options for a target.
pub fn options(target: &str) -> Vec<String> {
    let architecture = format!("--gpu-architecture={target}");
    [&architecture, "--std=c++17", "--ptxas-options=-v"].map(String::from).to_vec()
}

#[cfg(test)]
mod tests {
    use mhc_core::{
        AnyOp, Dims,
        gpu::GpuCaps,
        ops::{PostPre, Pre},
    };

    use super::*;

    fn hopper_caps() -> GpuCaps {
        GpuCaps {
            arch: "sm_90".into(),
            wave: 32,
            units: 132,
            shared_per_block: 227 << 10,
            max_threads: 1024,
            tuned: tuned(90),
        }
    }

    /// What a Hopper GPU would launch first: the kernel, blocks of a cluster, threads of a block, bytes of shared memory.
    fn on_hopper(
        op: impl Into<AnyOp>,
        (tokens, n, channels): (usize, usize, usize),
        act: DType,
    ) -> (&'static str, [u32; 3]) {
        let caps = hopper_caps();
        let plan = op.into().plan(&Dims::new(tokens, n, channels), act, &caps).unwrap();
        let launch = &plan.launches[0];
        assert!(launch.shared <= caps.shared_per_block, "{}: {}", launch.entry.kernel, launch.shared);
        (launch.entry.kernel, [launch.cluster[0], launch.block[0], launch.shared])
    }

    #[test]
    fn clusters_are_chosen_by_channels_and_never_by_tokens() {
        let f32s = [
            (1024, ("pre_cluster_f32", [8, 512, 226_312])),
            (1280, ("pre_cluster_f32", [8, 512, 232_416])),
            (2048, ("pre_cluster_f32", [16, 512, 226_312])),
            (2560, ("pre_cluster_f32", [16, 512, 232_416])),
            (4096, ("pre_cluster_f32", [16, 512, 220_048])),
            // Not in whole rows of 128 bytes, and too many for 16 blocks.
            (1300, ("project_fwd", [1, 256, 0])),
            (8192, ("project_fwd_mma_24", [1, 128, 98_304])),
        ];
        for (channels, launch) in f32s {
            for tokens in [1, 64, 4096] {
                assert_eq!(on_hopper(Pre::default(), (tokens, 4, channels), DType::F32), launch, "{channels}");
            }
        }
        let bf16s = [
            (2560, ("pre_cluster_5", [8, 384, 203_720])),
            (4096, ("pre_cluster_4", [16, 384, 205_808])),
            (7168, ("pre_cluster_7", [16, 384, 209_824])),
        ];
        for (channels, launch) in bf16s {
            for tokens in [65, 4096] {
                assert_eq!(on_hopper(Pre::default(), (tokens, 4, channels), DType::Bf16), launch, "{channels}");
            }
        }
        let size = (4096, 4, 4096);
        assert_eq!(on_hopper(Pre::default(), size, DType::F16), ("pre_cluster_4", [16, 384, 206_576]));
        let norm = Pre { rms_norm: Some(1e-6), ..Pre::default() };
        assert_eq!(on_hopper(norm, size, DType::Bf16), ("pre_norm_cluster_4", [16, 384, 217_072]));
        assert_eq!(on_hopper(PostPre::default(), size, DType::Bf16), ("post_pre_cluster_4", [16, 384, 203_720]));
    }

    #[test]
    fn eight_streams_take_as_many_teams_as_fit_and_as_there_are_tiles() {
        let launched = |tokens, channels, units| {
            let caps = GpuCaps { units, ..hopper_caps() };
            let plan = AnyOp::from(Pre::default()).plan(&Dims::new(tokens, 8, channels), DType::Bf16, &caps).unwrap();
            let launch = plan.launches.iter().find(|l| l.entry.kernel == "pre_wide")?;
            assert!(launch.cooperative && launch.shared <= caps.shared_per_block);
            Some((launch.grid[0], launch.shared))
        };
        assert_eq!(launched(4096, 4096, 132), Some((128, 211_064)));
        assert_eq!(launched(64, 4096, 132), Some((64, 211_064)), "one tile");
        assert_eq!(launched(4096, 4096, 114), Some((64, 211_064)), "one team on a smaller device");
        assert_eq!(launched(4096, 2560, 132), Some((128, 149_624)));
        assert_eq!(launched(4096, 3072, 132), Some((128, 170_104)));
        assert_eq!(launched(4096, 7168, 132), Some((128, 190_584)));
        // Not in whole slices, more than shared memory has room for, and fewer multiprocessors than slices.
        for (channels, units) in [(1280, 132), (16384, 132), (7168, 114)] {
            assert_eq!(launched(4096, channels, units), None, "{channels}");
        }
    }

    #[test]
    fn tuned_sources_are_for_devices_with_machine_code_of_them() {
        let has = |capability, source| tuned(capability).iter().any(|(name, _)| *name == source);
        for capability in [80, 89, 90, 100, 103, 120, 121] {
            assert!(has(capability, "project_fwd_mma"), "{capability}");
            assert_eq!(has(capability, "pre_cluster"), capability == 90, "{capability}");
        }
        assert!(tuned(75).is_empty() && tuned(110).is_empty() && tuned(130).is_empty());
        for source in TUNED {
            assert!(targets(source).iter().all(|target| target.starts_with("sm_")), "{}", source.name);
        }
    }
}
