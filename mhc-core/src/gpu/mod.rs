//! What the GPU backends share: capabilities, launch plans and device sources.

mod plan;
mod source;

pub use plan::{Arg, Fallback, GpuCaps, Launch, Plan};
pub use source::{Entry, HEADERS, Source};
