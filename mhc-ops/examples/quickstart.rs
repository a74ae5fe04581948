//! The README's example.

// hidden
fn main() -> mhc_ops::Result<()> {
    example()?;
    Ok(())
}

fn example() -> mhc_ops::Result<()> {
    // shown
    use mhc_ops::{DType, Init, MhcLayer, Numerics, Save, Stream, Tensor};

    let stream = Stream::new(mhc_ops::best()?)?;
    let layer = MhcLayer::new(&stream, Numerics::default(), &Init::Liger { seed: 1 }.params(4, 512)?)?;
    let x = Tensor::zeros(&stream, DType::Bf16, &[128, 4, 512])?; //           T = 128 tokens, n = 4 streams, C = 512

    let (layer_input, pending) = layer.pre(x, Save::All)?; //                  [128, 512]
    let y = layer_input; //                                                    your sub-layer: y = F(layer_input)
    let (x_next, saved) = layer.post(pending, y)?; //                          [128, 4, 512]

    let (d_y, pending) = layer.post_backward(saved, x_next)?; //               [128, 512] from d_x_next [128, 4, 512]
    let (d_x, gradients) = layer.pre_backward(pending, &d_y)?; //              [128, 4, 512], phi [24, 2048], bias [24], …
    // hidden
    assert_eq!((d_x.shape(), gradients.bias.shape()), (&[128, 4, 512][..], &[24][..]));
    Ok(())
}
