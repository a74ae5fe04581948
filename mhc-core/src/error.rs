//! What can go wrong, in words that tell the user what to do.

use crate::{DType, Probe};

/// Every failure of the library. The first five are the caller's mistake and are found before anything is written.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand has the wrong shape, or the wrong number of operands was given.
    #[error("{op}: operand `{slot}` must have shape {want}, but has {got}")]
    Shape {
        /// Operator.
        op: &'static str,
        /// Operand.
        slot: &'static str,
        /// What was wanted.
        want: String,
        /// What came.
        got: String,
    },
    /// An operand has the wrong element type.
    #[error("{op}: operand `{slot}` must be {want}, but is {got}")]
    DType {
        /// Operator.
        op: &'static str,
        /// Operand.
        slot: &'static str,
        /// What was wanted.
        want: DType,
        /// What came.
        got: DType,
    },
    /// An operand's strides, alignment or overlap with another operand cannot be served.
    #[error("{op}: operand `{slot}` {why}")]
    Layout {
        /// Operator.
        op: &'static str,
        /// Operand.
        slot: &'static str,
        /// What is wrong and what would be right.
        why: String,
    },
    /// An operand lives on another device than the stream.
    #[error("{op}: operand `{slot}` is on {got}, but the stream is on {want}")]
    WrongDevice {
        /// Operator.
        op: &'static str,
        /// Operand.
        slot: &'static str,
        /// The stream's device.
        want: String,
        /// The operand's device.
        got: String,
    },
    /// An attribute is out of its range.
    #[error("{op}: attribute `{attr}` must be {want}, but is {got}")]
    Attribute {
        /// Operator.
        op: &'static str,
        /// Attribute.
        attr: &'static str,
        /// What was wanted.
        want: &'static str,
        /// What came.
        got: String,
    },
    /// The device has no kernel for this problem.
    #[error("{op} is not supported on {device}: {why}")]
    Unsupported {
        /// Operator.
        op: &'static str,
        /// Device.
        device: String,
        /// Reason.
        why: String,
    },
    /// No device answers to the request.
    #[error("no usable device for `{asked}`:{}", probes.iter().map(|p| format!("\n  {p}")).collect::<String>())]
    NoBackend {
        /// What was asked for.
        asked: String,
        /// What each backend said.
        probes: Vec<Probe>,
    },
    /// An allocation failed.
    #[error("{device} is out of memory: {bytes} bytes could not be allocated")]
    OutOfMemory {
        /// Device.
        device: String,
        /// Size of the allocation.
        bytes: usize,
    },
    /// A kernel did not compile or its image did not load.
    #[error("kernel {entry} for {arch} could not be built: {log}")]
    Compile {
        /// Entry point.
        entry: String,
        /// Architecture.
        arch: String,
        /// The compiler's or the loader's words.
        log: String,
    },
    /// A call to the vendor's driver failed.
    #[error("{call} failed with {name} ({code})")]
    Driver {
        /// The function called.
        call: &'static str,
        /// The driver's code.
        code: i32,
        /// The driver's name for it.
        name: String,
    },
    /// A checkpoint cannot be read or written, or lacks a tensor.
    #[error("checkpoint: {0}")]
    Checkpoint(String),
}

/// A result of the library.
pub type Result<T, E = Error> = core::result::Result<T, E>;
