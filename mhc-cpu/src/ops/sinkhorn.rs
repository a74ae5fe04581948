//! `sinkhorn` and `sinkhorn_bwd`: a matrix at a time.

use mhc_core::ops::{Sinkhorn, SinkhornBwd, sinkhorn};

use super::CpuOp;
use crate::call::{Call, Rows};

impl CpuOp for Sinkhorn {
    unsafe fn launch(&self, c: &Call<'_>) {
        let n = c.d.streams;
        let (logits, h_res): (Rows<'_, f32>, Rows<'_, f32>) = (c.rows("logits"), c.rows("h_res"));
        c.tokens(16, |tokens| {
            for t in tokens {
                // SAFETY: `t` and its n rows are in range, and each token is one block's alone.
                unsafe {
                    let l: Vec<f32> = (0..n).flat_map(|i| logits.at(t).row(i)).copied().collect();
                    let h = sinkhorn::forward(&self.form, self.orientation, n, &l);
                    (0..n).for_each(|i| h_res.at(t).row_mut(i).copy_from_slice(&h[i * n..][..n]));
                }
            }
        });
    }
}

impl CpuOp for SinkhornBwd {
    unsafe fn launch(&self, c: &Call<'_>) {
        let n = c.d.streams;
        let (logits, d_h, d_logits): (Rows<'_, f32>, Rows<'_, f32>, Rows<'_, f32>) =
            (c.rows("logits"), c.rows("d_h_res"), c.rows("d_logits"));
        c.tokens(16, |tokens| {
            for t in tokens {
                // SAFETY: `t` and its n rows are in range, and each token is one block's alone.
                unsafe {
                    let l: Vec<f32> = (0..n).flat_map(|i| logits.at(t).row(i)).copied().collect();
                    let g: Vec<f32> = (0..n).flat_map(|i| d_h.at(t).row(i)).copied().collect();
                    let d = sinkhorn::backward(&self.form, self.orientation, n, &l, &g);
                    (0..n).for_each(|i| d_logits.at(t).row_mut(i).copy_from_slice(&d[i * n..][..n]));
                }
            }
        });
    }
}
