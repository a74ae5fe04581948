//! The operators. One folder each: `mod.rs` (attributes, description, cases), `reference.rs` (forward and backward, generic over
//! [`Real`]).

use crate::{Case, Cost, DType, Dims, Inputs, Level, Op, OpDesc, Outputs, Real, Result, Tolerance, gpu};

pub mod aggregate;
pub mod coefficients;
pub mod collapse;
pub mod dynamic_layer;
pub mod expand;
pub mod head;
pub mod orthostochastic;
pub mod post;
pub mod post_pre;
pub mod pre;
pub mod project;
pub mod recompute;
pub mod rms_norm;
pub mod sinkhorn;
pub mod sinkhorn_log;
pub mod static_layer;

/// The device source of every operator that has one.
pub const SOURCES: &[gpu::Source] = &[
    gpu::SUM,
    aggregate::SOURCE,
    coefficients::SOURCE,
    expand::SOURCE,
    head::SOURCE,
    orthostochastic::SOURCE,
    post::SOURCE,
    post::BACKWARD,
    pre::SOURCE,
    project::SOURCE,
    recompute::SOURCE,
    rms_norm::SOURCE,
    sinkhorn::SOURCE,
    sinkhorn_log::SOURCE,
    static_layer::SOURCE,
];

/// Calls `$callback!` with every operator, as `module: Forward, Backward;`. The one list; everything that must know all operators goes
/// through it.
#[macro_export]
macro_rules! for_each_op {
    ($callback:ident) => {
        $callback! {
            aggregate: Aggregate, AggregateBwd;
            coefficients: Coefficients, CoefficientsBwd;
            collapse: Collapse, CollapseBwd;
            dynamic_layer: DynamicLayer, DynamicLayerBwd;
            expand: Expand, ExpandBwd;
            head: Head, HeadBwd;
            orthostochastic: Orthostochastic, OrthostochasticBwd;
            post: Post, PostBwd;
            post_pre: PostPre, PostPreBwd;
            pre: Pre, PreBwd;
            project: Project, ProjectBwd;
            recompute: Recompute, RecomputeBwd;
            rms_norm: RmsNorm, RmsNormBwd;
            sinkhorn: Sinkhorn, SinkhornBwd;
            sinkhorn_log: SinkhornLog, SinkhornLogBwd;
            static_layer: StaticLayer, StaticLayerBwd;
        }
    };
}

macro_rules! define_any_op {
    ($($module:ident: $($op:ident),+;)*) => {
        $(pub use $module::{$($op),+};)*

        /// Any operator.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)]
        pub enum AnyOp { $($($op($op),)+)* }

        $($(impl From<$op> for AnyOp {
            fn from(op: $op) -> Self {
                Self::$op(op)
            }
        })+)*

        impl AnyOp {
            /// Name, formula and slots.
            pub fn desc(&self) -> &'static OpDesc {
                match self { $($(Self::$op(_) => const { &<$op as Op>::DESC }),+),* }
            }
            /// Every description, in the order of the list.
            pub fn all_descs() -> Vec<&'static OpDesc> {
                vec![$($(const { &<$op as Op>::DESC },)+)*]
            }
            /// Every operator's cases.
            pub fn all_cases(level: Level) -> Vec<Case> {
                let mut cases = Vec::new();
                $($(cases.extend(<$op as Op>::cases(level));)+)*
                cases
            }
            /// [`Op::has`].
            pub fn has(&self, slot: &str) -> bool {
                match self { $($(Self::$op(op) => op.has(slot)),+),* }
            }
            /// [`Op::check`].
            pub fn check(&self) -> Result<()> {
                match self { $($(Self::$op(op) => op.check()),+),* }
            }
            /// [`Op::reference`].
            pub fn reference<R: Real>(&self, d: &Dims, x: &Inputs<'_, R>) -> Outputs<R> {
                match self { $($(Self::$op(op) => op.reference(d, x)),+),* }
            }
            /// [`Op::forward`].
            pub fn forward(&self) -> Option<AnyOp> {
                match self { $($(Self::$op(op) => op.forward()),+),* }
            }
            /// [`Op::rereads`].
            pub fn rereads(&self) -> &'static [&'static str] {
                match self { $($(Self::$op(op) => op.rereads()),+),* }
            }
            /// [`Op::plan`].
            pub fn plan(&self, d: &Dims, act: DType, caps: &gpu::GpuCaps) -> Result<gpu::Plan> {
                match self { $($(Self::$op(op) => op.plan(d, act, caps)),+),* }
            }
            /// [`Op::cost`].
            pub fn cost(&self, d: &Dims, act: DType) -> Cost {
                match self { $($(Self::$op(op) => op.cost(d, act)),+),* }
            }
            /// [`Op::tolerance`].
            pub fn tolerance(&self) -> Tolerance {
                match self { $($(Self::$op(op) => op.tolerance()),+),* }
            }
            /// [`Op::tag`].
            pub fn tag(&self) -> String {
                match self { $($(Self::$op(op) => op.tag()),+),* }
            }
        }
    };
}
for_each_op!(define_any_op);
