//! What the kernel driver would say about the machine, as files: one processor and one GPU.

use std::{fs, io, path::Path};

use crate::arch::Arch;

/// What sets a GPU apart for the runtime.
struct Shape {
    units: u32,
    simds_per_unit: u32,
    lds_kib: u32,
    device: u32,
    memory_gib: u64,
    chiplets: u32,
    arrays: u32,
    /// The GPU's memory corrects errors.
    corrects: bool,
    family: u32,
}

fn shape(arch: Arch) -> Shape {
    let cdna = |units, lds_kib, device, memory_gib, chiplets, arrays| Shape {
        units,
        simds_per_unit: 4,
        lds_kib,
        device,
        memory_gib,
        chiplets,
        arrays,
        corrects: true,
        family: 141,
    };
    match arch {
        Arch::Gfx90a => cdna(104, 64, 0x740c, 64, 1, 8),
        Arch::Gfx942 => cdna(304, 64, 0x74a1, 192, 8, 32),
        Arch::Gfx950 => cdna(256, 160, 0x75a0, 288, 8, 32),
        Arch::Gfx1100 => Shape {
            units: 96,
            simds_per_unit: 2,
            lds_kib: 64,
            device: 0x744c,
            memory_gib: 24,
            chiplets: 1,
            arrays: 12,
            corrects: false,
            family: 145,
        },
    }
}

/// Where the driver's own identifiers begin on a GPU.
const FIRST_SIMD: u64 = 0x8000_1000;
/// Capabilities: doorbells of 64 bits, shared virtual memory, and corrected errors in memory and registers.
const DOORBELL_64: u64 = 2 << 12;
const SHARED_MEMORY: u64 = 1 << 27;
const CORRECTED: u64 = 1 << 26 | 1 << 20;

type Properties<'a> = &'a [(&'a str, u64)];

/// Writes the folder that `HSA_MODEL_TOPOLOGY` names.
pub fn write(arch: Arch, folder: &Path) -> io::Result<()> {
    let nodes = folder.join("nodes");
    put(&folder.join("generation_id"), "1\n")?;
    put(&folder.join("system_properties"), "platform_oem 0\nplatform_id 0\nplatform_rev 0\n")?;
    processor(&nodes.join("0"))?;
    gpu(arch, &nodes.join("1"))?;
    for (from, to) in [(0, 1), (1, 0)] {
        link(&nodes, from, to)?;
    }
    Ok(())
}

fn put(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text)
}

fn put_all(path: &Path, properties: Properties<'_>) -> io::Result<()> {
    put(path, &properties.iter().map(|(name, value)| format!("{name} {value}\n")).collect::<String>())
}

/// What every node has, all of it zero unless `set`.
fn node(folder: &Path, id: &str, name: &str, set: Properties<'_>) -> io::Result<()> {
    const NAMES: &[&str] = &[
        "cpu_cores_count",
        "simd_count",
        "mem_banks_count",
        "caches_count",
        "io_links_count",
        "p2p_links_count",
        "cpu_core_id_base",
        "simd_id_base",
        "max_waves_per_simd",
        "lds_size_in_kb",
        "gds_size_in_kb",
        "num_gws",
        "wave_front_size",
        "array_count",
        "simd_arrays_per_engine",
        "cu_per_simd_array",
        "simd_per_cu",
        "max_slots_scratch_cu",
        "gfx_target_version",
        "vendor_id",
        "device_id",
        "location_id",
        "domain",
        "drm_render_minor",
        "hive_id",
        "num_sdma_engines",
        "num_sdma_xgmi_engines",
        "num_sdma_queues_per_engine",
        "num_cp_queues",
        "max_engine_clk_fcompute",
        "local_mem_size",
        "fw_version",
        "capability",
        "debug_prop",
        "sdma_fw_version",
        "unique_id",
        "num_xcc",
        "family_id",
        "max_engine_clk_ccompute",
    ];
    put(&folder.join("gpu_id"), &format!("{id}\n"))?;
    put(&folder.join("name"), &format!("{name}\n"))?;
    let value = |name: &str| set.iter().find(|(n, _)| *n == name).map_or(0, |(_, v)| *v);
    let all: Vec<_> = NAMES.iter().map(|name| (*name, value(name))).collect();
    put_all(&folder.join("properties"), &all)
}

fn processor(folder: &Path) -> io::Result<()> {
    let set =
        [("cpu_cores_count", 2), ("mem_banks_count", 1), ("io_links_count", 1), ("max_engine_clk_ccompute", 3000)];
    node(folder, "0", "", &set)?;
    bank(folder, 0, 24, 72, 3200)
}

fn gpu(arch: Arch, folder: &Path) -> io::Result<()> {
    let s = shape(arch);
    let corrected = if s.corrects { CORRECTED } else { 0 };
    let set = [
        ("simd_count", u64::from(s.units * s.simds_per_unit)),
        ("mem_banks_count", 1),
        ("caches_count", 3),
        ("io_links_count", 1),
        ("simd_id_base", FIRST_SIMD),
        ("max_waves_per_simd", if arch.wave() == 64 { 8 } else { 16 }),
        ("lds_size_in_kb", s.lds_kib.into()),
        ("wave_front_size", arch.wave() as u64),
        ("array_count", s.arrays.into()),
        ("simd_arrays_per_engine", 1),
        ("cu_per_simd_array", (s.units / s.arrays).into()),
        ("simd_per_cu", s.simds_per_unit.into()),
        ("max_slots_scratch_cu", 32),
        ("gfx_target_version", arch.version().into()),
        ("vendor_id", 0x1002),
        ("device_id", s.device.into()),
        ("location_id", 0x300),
        ("drm_render_minor", 128),
        ("num_cp_queues", 24),
        ("max_engine_clk_fcompute", 2100),
        ("fw_version", 154),
        ("capability", DOORBELL_64 | SHARED_MEMORY | corrected),
        ("sdma_fw_version", 20),
        ("unique_id", 1),
        ("num_xcc", s.chiplets.into()),
        ("family_id", s.family.into()),
        ("max_engine_clk_ccompute", 3000),
    ];
    // The runtime wants a GPU's number to be its node's and one more.
    node(folder, "2", "model", &set)?;
    bank(folder, 1, s.memory_gib, 8192, 1300)?;
    for (cache, (level, kib)) in [(1, 32), (2, 4096), (3, 262_144)].into_iter().enumerate() {
        let file = folder.join(format!("caches/{cache}/properties"));
        let set = [
            ("processor_id_low", FIRST_SIMD),
            ("level", level),
            ("size", kib),
            ("cache_line_size", 128),
            ("cache_lines_per_tag", 1),
            ("association", 16),
            ("latency", 0),
            ("type", 9),
        ];
        put_all(&file, &set)?;
        put(&file, &(fs::read_to_string(&file)? + "sibling_map 1,1,1,1,1,1,1,1\n"))?;
    }
    Ok(())
}

fn bank(folder: &Path, kind: u64, gib: u64, width: u64, clock: u64) -> io::Result<()> {
    let set =
        [("heap_type", kind), ("size_in_bytes", gib << 30), ("flags", 0), ("width", width), ("mem_clk_max", clock)];
    put_all(&folder.join("mem_banks/0/properties"), &set)
}

fn link(nodes: &Path, from: u64, to: u64) -> io::Result<()> {
    let set = [
        ("type", 2),
        ("version_major", 0),
        ("version_minor", 0),
        ("node_from", from),
        ("node_to", to),
        ("weight", 20),
        ("min_latency", 0),
        ("max_latency", 0),
        ("min_bandwidth", 312),
        ("max_bandwidth", 64_000),
        ("recommended_transfer_size", 0),
        ("recommended_sdma_engine_id_mask", 0),
        ("flags", 1),
    ];
    put_all(&nodes.join(format!("{from}/io_links/0/properties")), &set)
}
