//! The README's example.

// hidden
fn main() -> mhc_ops::Result<()> {
    // shown
    use mhc_ops::{DType, Stream, Tensor, functional as f, ops::Post};

    let stream = Stream::new(mhc_ops::best()?)?;
    let x = Tensor::zeros(&stream, DType::Bf16, &[128, 4, 512])?; //      T = 128 tokens, n = 4 streams, C = 512
    let y = Tensor::zeros(&stream, DType::Bf16, &[128, 512])?; //         a sub-layer's output
    let mixes = Tensor::zeros(&stream, DType::F32, &[128, 24])?; //       H_pre, H_post and H_res of every token
    let ins = f::PostIn { x: (&x).into(), y: (&y).into(), mixes: (&mixes).into() };
    let x_next = f::post(&stream, &Post::default(), ins)?.x_next; //      [128, 4, 512]
    // hidden
    assert_eq!(x_next.shape(), [128, 4, 512]);
    Ok(())
}
