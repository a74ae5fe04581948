//! `project` and `project_bwd`.

use core::ops::Range;

use mhc_core::{
    DType, Dims,
    ops::{Project, ProjectBwd},
};

use super::CpuOp;
use crate::{
    call::{Call, Rows},
    projection::{Backward, NoDirect, Projection, Shape, Step, Streams, Tokens},
};

/// Tokens of one block of what is done to logits alone.
const GRAIN: usize = 64;

impl CpuOp for Project {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        Shape::mixes(d).workspace(d.tokens)
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        let p = projection(c, self.rms_eps, c.weight("norm_weight"));
        // SAFETY: the operands were validated, and the scratch is all the projection's.
        unsafe { p.run(c, &Store { z: c.rows("z"), inv_rms: c.rows("inv_rms") }) };
    }
}

fn projection<'a>(c: &'a Call<'_>, rms_eps: f64, weight: Option<&'a [f32]>) -> Projection<'a> {
    let (x, phi, shape) = (Streams::of(c, "x"), c.rows("phi"), Shape::mixes(&c.d));
    Projection { x, phi, weight, rms_eps: rms_eps as f32, shape, tokens: c.d.tokens }
}

/// Writes what the projection found.
struct Store<'a> {
    z: Rows<'a, f32>,
    inv_rms: Rows<'a, f32>,
}

impl Step for Store<'_> {
    fn after(&self, tokens: &Tokens, z: &mut [f32], inv_rms: &[f32]) {
        // SAFETY: each block of tokens has its own rows.
        unsafe { store(self.z, self.inv_rms, tokens.range.clone(), z, inv_rms) };
    }
}

/// Writes a block's `z` and `inv_rms`.
///
/// # Safety
/// The tokens are in range, and no one else uses their rows.
pub(super) unsafe fn store(
    to: Rows<'_, f32>,
    inv_rms_to: Rows<'_, f32>,
    tokens: Range<usize>,
    z: &[f32],
    inv_rms: &[f32],
) {
    for (t, (z, rho)) in tokens.zip(z.chunks_exact(to.len()).zip(inv_rms)) {
        // SAFETY: the caller's promise; `inv_rms` is one row.
        unsafe {
            to.row_mut(t).copy_from_slice(z);
            *inv_rms_to.ptr(0, t) = *rho;
        }
    }
}

impl CpuOp for ProjectBwd {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        Shape::mixes(d).backward_workspace(d.tokens)
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        let p = projection(c, self.rms_eps, c.weight("norm_weight"));
        let d_weight = self.norm_weight.then(|| c.rows("d_norm_weight"));
        let b = Backward { p, d_x: Streams::outputs(c, "d_x"), d_phi: c.rows("d_phi"), d_weight, scratch: 0 };
        let [z, inv_rms, d_z] = ["z", "inv_rms", "d_z"].map(|name| c.rows::<f32>(name));
        // SAFETY: the operands were validated, the scratch is all the projection's, and each token's rows are one block's.
        unsafe {
            let upstream = b.upstream(c);
            c.tokens(GRAIN, |tokens| {
                for t in tokens {
                    upstream.d_p.row_mut(t).copy_from_slice(d_z.row(t));
                    upstream.scale(&p.shape, t, z.row(t), *inv_rms.ptr(0, t));
                }
            });
            b.run(c, &NoDirect);
        }
    }
}
