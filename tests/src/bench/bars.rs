//! The work whose speed was agreed on beforehand, with the most that each may take: on a Hopper GPU, and on a processor.
//!
//! Floors are those of a copy in the same run; limits in µs of a GPU were set for an H100. The sources are the fastest implementations
//! known: TileKernels for `pre` and `post`, mHC.cu for the layers in its form, prototypes of our own; on a processor PyTorch beside us.

use mhc_core::{
    AnyOp, DType, Dims, Numerics, Problem,
    ops::{DynamicLayer, DynamicLayerBwd, Post, PostPre, Pre, Sinkhorn, StaticLayer, StaticLayerBwd},
};

use super::{Bench, record::Limit, sub_layer};

/// What uses of `pre` other than n = 4, bf16 may take in units of what is allowed to that.
const OTHER_USES: f64 = 1.3;
/// The most that `pre` may take at 4096 tokens, in units of the floor.
const PRE_4096: f64 = 1.35;

/// Every row of a processor with two threads.
pub fn on_cpu() -> Vec<Bench> {
    let (large, token) = (Dims::new(2048, 4, 2048), Dims::new(1, 4, 4096));
    let matrices = Dims { channels: 1, ..large };
    let of = |act| {
        let [_, both] = sub_layer(act, large);
        [
            bench("pre.fwd", Pre::default(), large, act, Limit::Others { times: 8.0, floor: Some(2.0) }),
            bench("post.fwd", Post::default(), large, act, Limit::Floor(1.0 / 0.85)),
            Bench { limit: Some(Limit::Others { times: 5.0, floor: None }), ..both },
            bench("pre.fwd", Pre::default(), token, act, Limit::Us(60.0)),
        ]
    };
    let sinkhorn = bench("sinkhorn.fwd", Sinkhorn::default(), matrices, DType::F32, Limit::Us(60.0));
    [DType::Bf16, DType::F32].into_iter().flat_map(of).chain([sinkhorn]).collect()
}

/// Every row of a GPU.
pub fn on_gpu() -> Vec<Bench> {
    [post(), pre(), pre_variants(), post_pre(), decode(), training(), layers()].into_iter().flatten().collect()
}

fn bench(id: &str, op: impl Into<AnyOp>, dims: Dims, act: DType, limit: Limit) -> Bench {
    let (name, attributes) = id.split_once('/').unwrap_or((id, ""));
    let attributes = if attributes.is_empty() { String::new() } else { format!("{attributes}/") };
    let id = format!("{name}/{act}/{attributes}{dims}");
    Bench { limit: Some(limit), ..Bench::new(id, vec![Problem::new(op, dims, act)]) }
}

fn post() -> Vec<Bench> {
    let sizes = [4096, 2560, 7168].into_iter().flat_map(|c| [4096, 16384].map(|t| Dims::new(t, 4, c)));
    sizes.map(|d| bench("post.fwd", Post::default(), d, DType::Bf16, Limit::Floor(1.06))).collect()
}

fn pre() -> Vec<Bench> {
    let sizes = [2560, 4096, 7168].into_iter();
    let sizes = sizes.flat_map(|c| [(16384, 1.12), (4096, PRE_4096)].map(|(t, times)| (Dims::new(t, 4, c), times)));
    sizes.map(|(d, times)| bench("pre.fwd", Pre::default(), d, DType::Bf16, Limit::Floor(times))).collect()
}

fn pre_variants() -> Vec<Bench> {
    let limit = Limit::Floor(OTHER_USES * PRE_4096);
    let size = |n| Dims::new(4096, n, 4096);
    let plain = Pre::default();
    vec![
        bench("pre.fwd/norm_weight", Pre { norm_weight: true, ..plain.clone() }, size(4), DType::Bf16, limit),
        bench("pre.fwd/rms_norm", Pre { rms_norm: Some(1e-6), ..plain.clone() }, size(4), DType::Bf16, limit),
        bench("pre.fwd/save", Pre { save: true, ..plain.clone() }, size(4), DType::Bf16, limit),
        bench("pre.fwd", plain.clone(), size(2), DType::Bf16, limit),
        bench("pre.fwd", plain.clone(), size(8), DType::Bf16, limit),
        bench("pre.fwd", plain.clone(), size(4), DType::F16, limit),
        bench("pre.fwd", plain, size(4), DType::F32, limit),
    ]
}

fn post_pre() -> Vec<Bench> {
    let sizes = [(16384, 1.2), (4096, 1.4)].map(|(t, times)| (Dims::new(t, 4, 4096), times));
    sizes.map(|(d, times)| bench("post_pre.fwd", PostPre::default(), d, DType::Bf16, Limit::Floor(times))).into()
}

/// One token and a few, as a decoder has them.
fn decode() -> Vec<Bench> {
    let sizes = [1, 64].map(|t| Dims::new(t, 4, 4096)).into_iter();
    let three = |d| {
        [
            bench("pre.fwd", Pre::default(), d, DType::Bf16, Limit::Us(10.0)),
            bench("post.fwd", Post::default(), d, DType::Bf16, Limit::Us(6.0)),
            bench("post_pre.fwd", PostPre::default(), d, DType::Bf16, Limit::Us(11.0)),
        ]
    };
    sizes.flat_map(three).collect()
}

/// `pre` and `post` with their gradients, as a training step runs them around a sub-layer. Only the first has a limit.
fn training() -> Vec<Bench> {
    let sizes = [(16384, 4096, Some(2000.0)), (4096, 2560, None), (16384, 2560, None)];
    let both = |(t, c, us): (usize, usize, Option<f64>)| {
        let [_, both] = sub_layer(DType::Bf16, Dims::new(t, 4, c));
        Bench { limit: us.map(Limit::Us), ..both }
    };
    sizes.map(both).into()
}

/// mHC.cu's layers at sizes of its own benchmark, in its conventions.
fn layers() -> Vec<Bench> {
    let numerics = Numerics::mhc_cu();
    let norm_eps = 1e-5;
    let problem = |op: AnyOp, dims| Problem::new(op, dims, DType::F32);
    let fixed = |dims, forward: Option<Limit>, both: Option<Limit>| {
        let (fwd, bwd) = (StaticLayer { numerics, norm_eps }, StaticLayerBwd { numerics, norm_eps });
        pair("static_layer", dims, (problem(fwd.clone().into(), dims), forward), (vec![fwd.into(), bwd.into()], both))
    };
    let dynamic = |dims, forward: Option<Limit>, both: Option<Limit>| {
        let fwd = |save| AnyOp::from(DynamicLayer { numerics, norm_eps, save });
        let bwd = DynamicLayerBwd { numerics, norm_eps };
        pair("dynamic_layer", dims, (problem(fwd(false), dims), forward), (vec![fwd(true), bwd.into()], both))
    };
    let large = Dims::new(2560, 4, 1280);
    let mut benches = fixed(large, Some(Limit::Floor(1.25)), Some(Limit::Us(120.0)));
    benches.extend(fixed(Dims::new(320, 4, 1280), Some(Limit::Us(8.0)), None));
    benches.extend(dynamic(large, Some(Limit::Floor(1.4)), Some(Limit::Us(200.0))));
    // Limits are mHC.cu's own times on an H100, as far as they are known.
    let (n8, n32) = (Dims::new(128, 8, 1280), Dims::new(128, 32, 1280));
    benches.extend(fixed(n8, Some(Limit::Us(44.0)), None));
    benches.extend(dynamic(n8, None, Some(Limit::Us(5577.0))));
    benches.extend(fixed(n32, None, None));
    benches.extend(dynamic(n32, None, None));
    benches
}

/// A layer forward, and forward with backward.
fn pair(name: &str, dims: Dims, forward: (Problem, Option<Limit>), both: (Vec<AnyOp>, Option<Limit>)) -> Vec<Bench> {
    let id = |direction| format!("{name}.{direction}/{}/{dims}", DType::F32);
    let steps = both.0.into_iter().map(|op| Problem::new(op, dims, DType::F32)).collect();
    vec![
        Bench { limit: forward.1, ..Bench::new(id("fwd"), vec![forward.0]) },
        Bench { limit: both.1, ..Bench::new(id("fwd_bwd"), steps) },
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn rows_have_names_of_their_own() {
        for suite in [on_cpu(), on_gpu()] {
            assert_eq!(suite.iter().map(|b| &b.id).collect::<HashSet<_>>().len(), suite.len());
        }
        let suite = on_gpu();
        let ids: HashSet<_> = suite.iter().map(|b| &b.id).collect();
        assert!(ids.contains(&"pre.fwd/bf16/norm_weight/T4096.n4.C4096".to_string()), "{ids:?}");
        assert!(ids.contains(&"pre.fwd/f16/T4096.n4.C4096".to_string()), "{ids:?}");
    }

    #[test]
    fn every_problem_is_one() {
        for p in on_cpu().iter().chain(&on_gpu()).flat_map(|b| &b.steps) {
            mhc_core::validate::problem(p).unwrap();
        }
    }
}
