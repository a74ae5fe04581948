//! How a GPU runs `orthostochastic` and its gradient.

use super::{EPS, Orthostochastic, OrthostochasticBwd};
use crate::{
    DType, Dims, Error, Op, OpDesc, Result,
    gpu::{self, Args, Entry, GpuCaps, Launch, Plan, Scratch, Source},
    ops::sinkhorn::plan::{WAVES, wave_blocks},
};

/// The device source.
pub const SOURCE: Source = Source {
    name: "orthostochastic",
    text: include_str!("kernel.cuh"),
    entries: || Entry::all_f32(&["orthostochastic_fwd", "orthostochastic_bwd"], &[0]),
};

/// Steps that the kernels have arguments for.
const STEPS: usize = 16;

fn launch(kernel: &'static str, blocks: u32, caps: &GpuCaps, args: Args) -> Launch {
    Launch::new("orthostochastic", Entry::new(kernel, DType::F32, 0), blocks, WAVES * caps.wave, args.build())
}

fn steps(args: Args, desc: &OpDesc, coeffs: &[[f64; 3]], d: &Dims, caps: &GpuCaps) -> Result<Args> {
    if coeffs.len() > STEPS {
        let why = format!("GPUs take at most {STEPS} steps, but there are {}", coeffs.len());
        return Err(Error::Unsupported { op: desc.name, device: caps.arch.clone(), why });
    }
    let mut all = coeffs.concat();
    all.resize(3 * STEPS, 0.0);
    Ok(args.u64(&[d.tokens]).u32(&[d.streams, coeffs.len()]).f32(&[EPS]).f32(&all))
}

pub(super) fn forward(op: &Orthostochastic, d: &Dims, caps: &GpuCaps) -> Result<Plan> {
    let desc = &Orthostochastic::DESC;
    let args = steps(Args::new(desc).streams(&["logits", "h_res"]), desc, &op.coeffs, d, caps)?;
    let blocks = gpu::blocks(d.tokens.div_ceil(WAVES as usize));
    Ok(Plan::new(vec![launch("orthostochastic_fwd", blocks, caps, args)], 0))
}

pub(super) fn backward(op: &OrthostochasticBwd, d: &Dims, caps: &GpuCaps) -> Result<Plan> {
    let (mut scratch, desc) = (Scratch::default(), &OrthostochasticBwd::DESC);
    let matrix = 4 * d.streams * d.streams;
    let (blocks, saved) = wave_blocks(d.tokens, matrix * op.coeffs.len(), &mut scratch);
    let args = Args::new(desc).streams(&["logits", "d_h_res", "d_logits"]);
    let args = steps(args, desc, &op.coeffs, d, caps)?.at(&[saved]);
    Ok(Plan::new(vec![launch("orthostochastic_bwd", blocks, caps, args)], scratch.bytes()))
}
