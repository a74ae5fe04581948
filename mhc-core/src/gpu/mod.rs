//! What the GPU backends share: capabilities, launch plans and device sources.

mod args;
mod plan;
mod source;

pub use args::{Args, blocks, threads};
pub use plan::{Arg, Fallback, GpuCaps, Launch, Plan};
pub use source::{Entry, HEADERS, STREAMS, Source};
