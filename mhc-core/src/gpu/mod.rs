//! What the GPU backends share: capabilities, launch plans, device sources, and the one device over a vendor's driver.

mod args;
mod device;
mod driver;
#[cfg(test)]
pub(crate) mod fake;
pub mod images;
mod plan;
mod queue;
mod source;
mod sum;
#[cfg(test)]
mod tests;
pub mod vendor;

pub use args::{Args, Ref, Scratch, blocks, threads};
pub use device::GpuDevice;
pub use driver::{GpuDriver, GpuQueue, RawEvent, RawGraph};
pub use plan::{Arg, Fallback, GpuCaps, Launch, Plan, TileStreams};
pub use queue::{Event, Graph, Pinned, copy};
pub use source::{Entry, HEADERS, STREAMS, Source, includes};
pub use sum::{SUM, ranges, sum_rows};
