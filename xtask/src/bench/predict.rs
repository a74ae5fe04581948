//! What a GPU that nobody here has would take: estimates from counts, not times.
//!
//! Bytes are those that the operators state (every operand once) and the scratch of their plans (written once, read once), at the
//! bandwidth that the vendor states. Instructions and registers are those of the committed machine code.

use anyhow::{Context, Result};
use mhc_core::{
    AnyOp, DType, Dims, Numerics, Problem,
    gpu::{GpuCaps, Launch},
    ops::{DynamicLayer, DynamicLayerBwd, Post, PostBwd, Pre, PreBwd, StaticLayer, StaticLayerBwd},
};

use crate::{
    home::Home,
    kernels::{
        hip::{Hip, Resources},
        manifest::Manifest,
        vendor::Vendor,
    },
    report,
};

/// A GPU as its vendor describes it.
struct Machine {
    name: &'static str,
    arch: &'static str,
    /// Bytes a second.
    bandwidth: f64,
    units: u32,
    /// Of each compute unit.
    simds: u32,
    lds: u32,
    wave: u32,
    /// Wave instructions of lanes' arithmetic that a compute unit begins a second: one a clock, of its 4 SIMDs in turn.
    issue: f64,
}

const MI300X: Machine = Machine {
    name: "MI300X",
    arch: "gfx942",
    bandwidth: 5.3e12,
    units: 304,
    simds: 4,
    lds: 64 << 10,
    wave: 64,
    issue: 2.1e9,
};

/// What is estimated of one operator's launches.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Estimate {
    launches: usize,
    /// µs that its bytes take: operands, scratch.
    operands: f64,
    scratch: f64,
    /// µs that the arithmetic of lanes takes to be issued, as if the launch with most of it for 16 bytes moved every operand.
    issue: f64,
    /// The fewest waves that a SIMD has room for, and the most registers of a lane.
    waves: u32,
    vgprs: u32,
}

impl Estimate {
    /// What takes longest, in µs.
    fn us(&self) -> f64 {
        (self.operands + self.scratch).max(self.issue)
    }
}

impl Machine {
    fn caps(&self) -> GpuCaps {
        GpuCaps {
            arch: self.arch.into(),
            wave: self.wave,
            units: self.units,
            shared_per_block: self.lds,
            max_threads: 1024,
            tuned: mhc_hip::images::tuned(self.arch),
        }
    }

    /// Waves of a launch that a SIMD has at the same time: what registers, shared memory and whole blocks leave.
    fn waves(&self, launch: &Launch, entry: &Resources) -> u32 {
        let block = launch.block.iter().product::<u32>().div_ceil(self.wave);
        let by_registers = entry.waves * self.simds / block;
        let by_lds = self.lds / (entry.lds + launch.shared).max(1);
        (by_registers.min(by_lds) * block).div_ceil(self.simds).min(entry.waves)
    }

    fn estimate(&self, manifest: &Manifest<Resources>, p: &Problem) -> Result<Estimate> {
        let plan = p.op.plan(&p.dims, p.act, &self.caps())?;
        let bytes = p.op.cost(&p.dims, p.act).bytes as f64;
        let us = |bytes: f64| bytes / self.bandwidth * 1e6;
        let (operands, scratch) = (us(bytes), us(2.0 * plan.workspace as f64));
        let mut estimate =
            Estimate { launches: plan.launches.len(), operands, scratch, waves: u32::MAX, ..Default::default() };
        for launch in &plan.launches {
            let file = format!("{}.{}.{}.hsaco", launch.source, launch.entry.dtype, self.arch);
            let name = launch.entry.name(self.wave);
            let image = manifest.images.get(&file).with_context(|| format!("no image {file}"))?;
            let entry = image.entries.get(&name).with_context(|| format!("no {name} in {file}"))?;
            estimate.waves = estimate.waves.min(self.waves(launch, entry));
            estimate.vgprs = estimate.vgprs.max(entry.vgprs);
            if entry.mix.wide > 0 {
                let each = f64::from(entry.mix.vector) / f64::from(entry.mix.wide);
                let moves = bytes / f64::from(16 * self.wave);
                estimate.issue = estimate.issue.max(moves * each / (f64::from(self.units) * self.issue) * 1e6);
            }
        }
        Ok(estimate)
    }
}

/// The sizes at which an AMD GPU's times were published (static layer, n = 4), with the milliseconds of the faster of its two forms on
/// an MI308X, whose memory is that of an MI300X.
const PUBLISHED: [(usize, usize, f64); 6] = [
    (128, 1280, 0.241),
    (256, 1280, 0.245),
    (320, 1280, 0.267),
    (512, 1920, 0.384),
    (512, 2560, 0.472),
    (1024, 1920, 0.694),
];

fn problems() -> Vec<(Problem, Option<f64>)> {
    let (numerics, norm_eps) = (Numerics::mhc_cu(), 1e-5);
    let layer = StaticLayer { numerics, norm_eps };
    let published = PUBLISHED.iter().flat_map(|&(t, c, ms)| {
        [DType::F32, DType::Bf16].map(|act| (Problem::new(layer.clone(), Dims::new(t, 4, c), act), Some(ms)))
    });
    let ops: [AnyOp; 7] = [
        Post::default().into(),
        PostBwd::default().into(),
        Pre::default().into(),
        PreBwd::default().into(),
        StaticLayerBwd { numerics, norm_eps }.into(),
        DynamicLayer { numerics, norm_eps, save: true }.into(),
        DynamicLayerBwd { numerics, norm_eps }.into(),
    ];
    let others = ops.into_iter().map(|op| (Problem::new(op, Dims::new(4096, 4, 4096), DType::Bf16), None));
    published.chain(others).collect()
}

/// Prints the table.
pub fn run(home: &Home) -> Result<()> {
    let machine = &MI300X;
    let manifest = Manifest::read(&home.checkout("bench --predict")?.join(Hip::FOLDER))?;
    let mut rows = Vec::new();
    for (p, published) in problems() {
        let e = machine.estimate(&manifest, &p).with_context(|| format!("{p:?}"))?;
        let us = |us: f64| format!("{us:.1}");
        rows.push(vec![
            format!("{}/{}/{}", p.op.desc().name, p.act, p.dims),
            e.launches.to_string(),
            us(e.operands),
            us(e.scratch),
            us(e.issue),
            us(e.us()),
            e.vgprs.to_string(),
            e.waves.to_string(),
            published.map_or_else(String::new, |ms| format!("{:.0}", ms * 1e3)),
        ]);
    }
    let header = [
        "work",
        "launches",
        "operands µs",
        "scratch µs",
        "issue µs",
        "estimate µs",
        "registers",
        "waves",
        "published µs",
    ];
    println!("{}", report::table(&header, 1, rows));
    println!(
        "\nEstimates from counts for {} ({}), not times: nobody has run this there. Operands once and scratch twice at {:.1} TB/s; issue: \
         the lanes' arithmetic for every 16 bytes a lane, of the launch with most, on {} compute units at {:.1} GHz. The estimate is the \
         longer of both; launches, latencies and caches are not in it. Registers of a lane, and waves of a SIMD, are those of the launch \
         with the most and with the fewest. Published: the static layer on an MI308X, by others.",
        machine.name,
        machine.arch,
        machine.bandwidth / 1e12,
        machine.units,
        machine.issue / 1e9
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mhc_core::gpu::Entry;

    use super::*;
    use crate::kernels::tests::committed;

    /// The bar: the largest of the published shapes moves its operands in at most 30 µs.
    #[test]
    fn the_published_shapes_are_bound_by_little_memory_time() {
        let manifest = committed::<Hip>();
        let layer = StaticLayer { numerics: Numerics::default(), norm_eps: 1e-6 };
        let p = Problem::new(layer, Dims::new(1024, 4, 1920), DType::F32);
        let e = MI300X.estimate(&manifest, &p).unwrap();
        // x and out, w, and three matrices: nothing else is counted.
        let bytes = 4.0 * (2 * 1024 * 4 * 1920 + 1920) as f64;
        assert!((e.operands - bytes / 5.3e6).abs() < 0.1, "{e:?}");
        assert!(e.operands + e.scratch <= 30.0, "{e:?}");
        for (p, _) in problems() {
            assert!(MI300X.estimate(&manifest, &p).unwrap().us() > 0.0);
        }
    }

    #[test]
    fn registers_shared_memory_and_whole_blocks_bound_the_waves() {
        let launch = |threads, shared| {
            let launch = Launch::new("post", Entry::new("post_fwd", DType::Bf16, 4), 1, threads, Vec::new());
            Launch { shared, ..launch }
        };
        let entry = |waves, lds| Resources { waves, lds, ..Default::default() };
        assert_eq!(MI300X.waves(&launch(256, 0), &entry(8, 0)), 8);
        assert_eq!(MI300X.waves(&launch(256, 0), &entry(3, 0)), 3);
        assert_eq!(MI300X.waves(&launch(256, 64 << 10), &entry(8, 0)), 1, "one block of 4 waves");
        assert_eq!(MI300X.waves(&launch(512, 1024), &entry(8, 31 << 10)), 4, "two blocks of 8 waves");
        assert_eq!(MI300X.waves(&launch(512, 0), &entry(3, 0)), 2, "a block of 8 waves, not one and a half");
    }

    #[test]
    fn what_is_not_compiled_is_named() {
        let empty = Manifest { images: BTreeMap::new(), ..Manifest::default() };
        let p = Problem::new(Post::default(), Dims::new(8, 4, 64), DType::F32);
        assert!(MI300X.estimate(&empty, &p).unwrap_err().to_string().contains("post.f32.gfx942"));
    }
}
