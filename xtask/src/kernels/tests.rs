//! What is committed serves everything that plans launch.

use std::{collections::BTreeSet, path::Path};

use mhc_core::{AnyOp, DType, Level, gpu::GpuCaps};

use super::{cuda::Cuda, hip::Hip, manifest::Manifest, vendor::Vendor};

/// The manifest of a vendor.
pub fn committed<V: Vendor>() -> Manifest<V::Taken> {
    Manifest::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(V::FOLDER)).unwrap()
}

fn caps(arch: &str, wave: u32, shared_per_block: u32, tuned: Vec<(&'static str, mhc_core::gpu::Entry)>) -> GpuCaps {
    GpuCaps { arch: arch.into(), wave, units: 132, shared_per_block, max_threads: 1024, tuned }
}

fn every_target_has_an_image<V: Vendor>() {
    let manifest = committed::<V>();
    let jobs = V::jobs();
    let missing: Vec<_> =
        jobs.iter().map(|job| job.file()).filter(|file| !manifest.images.contains_key(file)).collect();
    assert!(missing.is_empty(), "run `cargo xtask kernels`: there is no {}", missing.join(", "));
}

/// What any plan launches is embedded. The cells that a launch passes are copied into the entry's one parameter: they must be of one size.
fn every_launch_has_an_entry<V: Vendor>(devices: &[GpuCaps]) {
    let manifest = committed::<V>();
    let mut missing = BTreeSet::new();
    for (case, caps) in AnyOp::all_cases(Level::Full).iter().flat_map(|c| devices.iter().map(move |caps| (c, caps))) {
        for act in DType::ALL {
            let plan = case.op.plan(&case.dims, act, caps).unwrap();
            let fallback = plan.fallback.iter().flat_map(|f| &f.launches);
            for launch in plan.launches.iter().chain(fallback) {
                let name = launch.entry.name(caps.wave);
                let Some(&bytes) = manifest.parameters.get(&name) else {
                    missing.insert(name);
                    continue;
                };
                // A tensor map is aligned to 64 bytes, and so the struct that has one.
                let maps = launch.args.iter().any(|arg| arg.cells() > 1);
                let align = if maps { 64 } else { 8 };
                assert_eq!((launch.cells() * 8).next_multiple_of(align), bytes as usize, "{name}");
                let block = launch.block.iter().product::<u32>();
                assert!(launch.shared <= caps.shared_per_block && block <= caps.max_threads, "{name} on {}", caps.arch);
            }
        }
    }
    assert!(missing.is_empty(), "run `cargo xtask kernels`: launched, but not embedded: {missing:?}");
}

#[test]
fn nvidia() {
    every_target_has_an_image::<Cuda>();
    // Devices that take the portable kernels alone, and all of the tuned ones.
    let tuned = mhc_cuda::images::tuned(90);
    every_launch_has_an_entry::<Cuda>(&[caps("sm_80", 32, 232_448, Vec::new()), caps("sm_90", 32, 232_448, tuned)]);
}

#[test]
fn amd() {
    every_target_has_an_image::<Hip>();
    let device = |arch: &str, lds| caps(arch, mhc_hip::images::wave(arch), lds, mhc_hip::images::tuned(arch));
    let devices = [
        ("gfx90a", 64 << 10),
        ("gfx942", 64 << 10),
        ("gfx950", 160 << 10),
        ("gfx1100", 64 << 10),
        ("gfx1201", 64 << 10),
    ];
    every_launch_has_an_entry::<Hip>(&devices.map(|(arch, lds)| device(arch, lds)));
}
