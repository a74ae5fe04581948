//! What the GPU backends share: capabilities and launch plans.

mod plan;

pub use plan::{Arg, GpuCaps, Launch, Plan};
