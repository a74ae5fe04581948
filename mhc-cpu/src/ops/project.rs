//! `project` and `project_bwd`.

use core::ops::Range;

use mhc_core::{
    DType, Dims,
    ops::{Project, ProjectBwd},
};

use super::CpuOp;
use crate::{
    call::{Call, Rows, by_dtype},
    projection::{Backward, NoDirect, Projection, Shape, Step},
};

/// Tokens of one block of what is done to logits alone.
const GRAIN: usize = 64;

impl CpuOp for Project {
    fn workspace(&self, d: &Dims, _: DType) -> usize {
        Shape::mixes(d).workspace(d.tokens)
    }

    unsafe fn launch(&self, c: &Call<'_>) {
        let (z, inv_rms, phi) = (c.rows("z"), c.rows("inv_rms"), c.rows("phi"));
        by_dtype!(c.act, E => {
            let weight = c.weight("norm_weight");
            let p = Projection { x: c.rows::<E>("x"), phi, weight, rms_eps: self.rms_eps as f32, shape: Shape::mixes(&c.d) };
            // SAFETY: the operands were validated, and the scratch is all the projection's.
            unsafe { p.run(c, &Store { z, inv_rms }) }
        });
    }
}

/// Writes what the projection found.
struct Store<'a> {
    z: Rows<'a, f32>,
    inv_rms: Rows<'a, f32>,
}

impl Step for Store<'_> {
    fn after(&self, tokens: Range<usize>, z: &mut [f32], inv_rms: &[f32]) {
        // SAFETY: each block of tokens has its own rows.
        unsafe { store(self.z, self.inv_rms, tokens, z, inv_rms) };
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
        let shape = Shape::mixes(&c.d);
        let [z, inv_rms, d_z] = ["z", "inv_rms", "d_z"].map(|name| c.rows::<f32>(name));
        by_dtype!(c.act, E => {
            let p = Projection { x: c.rows::<E>("x"), phi: c.rows("phi"), weight: c.weight("norm_weight"), rms_eps: self.rms_eps as f32, shape };
            let d_weight = self.norm_weight.then(|| c.rows("d_norm_weight"));
            let b = Backward { p, d_x: c.rows::<E>("d_x"), d_phi: c.rows("d_phi"), d_weight, scratch: 0 };
            // SAFETY: the operands were validated, the scratch is all the projection's, and each token's rows are one block's.
            unsafe {
                let upstream = b.upstream(c);
                c.tokens(GRAIN, |tokens| {
                    for t in tokens {
                        upstream.set(&shape, t, z.row(t), *inv_rms.ptr(0, t), d_z.row(t));
                    }
                });
                b.run(c, &NoDirect);
            }
        });
    }
}
