//! One file per operator. A missing implementation is a compile error here.

use mhc_core::{AnyOp, DType, Dims, Op, Problem, for_each_op};

use crate::call::Call;

mod aggregate;
mod coefficients;
mod collapse;
mod dynamic_layer;
mod expand;
mod head;
mod orthostochastic;
mod post;
mod post_pre;
mod pre;
mod pre_bwd;
mod project;
mod recompute;
mod rms_norm;
mod sinkhorn;
mod static_layer;

/// The CPU kernel of an operator.
pub(crate) trait CpuOp: Op {
    /// Bytes of scratch. Must not depend on the number of threads.
    fn workspace(&self, d: &Dims, act: DType) -> usize {
        let _ = (d, act);
        0
    }

    /// Computes the outputs.
    ///
    /// # Safety
    /// The operands of `c` were validated for this operator, and its scratch has the size stated above.
    unsafe fn launch(&self, c: &Call<'_>);
}

macro_rules! dispatch {
    ($($module:ident: $($op:ident),+;)*) => {
        /// Bytes of scratch that a launch needs.
        pub(crate) fn workspace(p: &Problem) -> usize {
            match &p.op {
                $($(AnyOp::$op(op) => op.workspace(&p.dims, p.act),)+)*
            }
        }

        /// Runs the operator.
        ///
        /// # Safety
        /// As [`CpuOp::launch`].
        pub(crate) unsafe fn launch(op: &AnyOp, c: &Call<'_>) {
            // SAFETY: the caller's promise is the callee's.
            unsafe {
                match op {
                    $($(AnyOp::$op(op) => op.launch(c),)+)*
                    }
            }
        }
    };
}
for_each_op!(dispatch);
