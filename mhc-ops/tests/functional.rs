//! The typed functions: sizes from shapes, outputs, and what is said about wrong operands.

#![allow(clippy::unwrap_used)]

use mhc_ops::{
    DType, Element, Error, Orientation, Stream, Tensor, bf16,
    functional::{self as f, PostBwdIn, PostIn, PostOut, SinkhornBwdIn, SinkhornIn, SinkhornOut},
    ops::{Post, PostBwd, Sinkhorn, SinkhornBwd},
};

fn cpu() -> Stream {
    Stream::new(mhc_ops::open("cpu").unwrap()).unwrap()
}

/// Values in -1..1 that differ from element to element.
fn filled<E: Element>(stream: &Stream, shape: &[usize]) -> Tensor {
    let data: Vec<E> = (0..shape.iter().product()).map(|i| E::from_f32((i as f32 * 0.7).sin())).collect();
    Tensor::from_slice(stream, shape, &data).unwrap()
}

#[test]
fn sizes_and_type_follow_from_the_operands() {
    let s = cpu();
    let (x, y, mixes) = (filled::<bf16>(&s, &[5, 3, 7]), filled::<bf16>(&s, &[5, 7]), filled::<f32>(&s, &[5, 15]));
    let operands = PostIn { x: x.view(), y: y.view(), mixes: mixes.view() };
    let PostOut { x_next } = f::post(&s, &Post::default(), operands).unwrap();
    assert_eq!((x_next.shape(), x_next.dtype()), (&[5, 3, 7][..], DType::Bf16));
}

#[test]
fn into_writes_the_same_as_the_allocating_form() {
    let s = cpu();
    let (x, y, mixes) = (filled::<f32>(&s, &[5, 3, 7]), filled::<f32>(&s, &[5, 7]), filled::<f32>(&s, &[5, 15]));
    let operands = PostIn { x: x.view(), y: y.view(), mixes: mixes.view() };
    let op = Post { orientation: Orientation::ToFrom };
    let mut x_next = Tensor::zeros(&s, DType::F32, &[5, 3, 7]).unwrap();
    f::post_into(&s, &op, operands, PostOut { x_next: x_next.view_mut() }).unwrap();
    assert_eq!(x_next.read().unwrap(), f::post(&s, &op, operands).unwrap().x_next.read().unwrap());
}

#[test]
fn outputs_that_attributes_leave_out_are_none() {
    let s = cpu();
    let (x, y, mixes) = (filled::<f32>(&s, &[5, 3, 7]), filled::<f32>(&s, &[5, 7]), filled::<f32>(&s, &[5, 15]));
    let operands = PostBwdIn { x: x.view(), y: y.view(), mixes: mixes.view(), d_x_next: x.view() };
    for d_x in [false, true] {
        let op = PostBwd { d_x, ..Default::default() };
        assert_eq!(f::post_bwd(&s, &op, operands).unwrap().d_x.is_some(), d_x);
    }
}

#[test]
fn a_single_matrix_is_a_batch_of_one() {
    let s = cpu();
    let (one, batch) = (filled::<f32>(&s, &[4, 4]), filled::<f32>(&s, &[1, 4, 4]));
    let op = Sinkhorn::default();
    let h_one = f::sinkhorn(&s, &op, SinkhornIn { logits: one.view() }).unwrap().h_res;
    let h_batch = f::sinkhorn(&s, &op, SinkhornIn { logits: batch.view() }).unwrap().h_res;
    assert_eq!((h_one.shape(), h_batch.shape()), (&[4, 4][..], &[1, 4, 4][..]));
    assert_eq!(h_one.read().unwrap(), h_batch.read().unwrap());
    let mut into = Tensor::zeros(&s, DType::F32, &[4, 4]).unwrap();
    f::sinkhorn_into(&s, &op, SinkhornIn { logits: one.view() }, SinkhornOut { h_res: into.view_mut() }).unwrap();
    assert_eq!(into.read().unwrap(), h_one.read().unwrap());
    let operands = SinkhornBwdIn { logits: one.view(), d_h_res: h_one.view() };
    assert_eq!(
        f::sinkhorn_bwd(&s, &SinkhornBwd { form: op.form, orientation: op.orientation }, operands)
            .unwrap()
            .d_logits
            .shape(),
        [4, 4]
    );
}

#[test]
fn wrong_operands_are_named() {
    let s = cpu();
    let (x, y, mixes) = (filled::<f32>(&s, &[5, 3, 7]), filled::<f32>(&s, &[5, 7]), filled::<f32>(&s, &[5, 15]));
    let good = PostIn { x: x.view(), y: y.view(), mixes: mixes.view() };
    let says = |operands, words: &[&str]| {
        let error = f::post(&s, &Post::default(), operands).unwrap_err().to_string();
        assert!(words.iter().all(|w| error.contains(w)), "{error} lacks one of {words:?}");
    };
    let flat = x.view_as(&[5, 21]).unwrap();
    says(PostIn { x: flat, ..good }, &["post: operand `x`", "[T, n, C]", "[5, 21]"]);
    let long = filled::<f32>(&s, &[5, 8]);
    says(PostIn { y: long.view(), ..good }, &["post: operand `y`", "[5, 7]", "[5, 8]"]);
    let narrow = filled::<f32>(&s, &[5, 14]);
    says(PostIn { mixes: narrow.view(), ..good }, &["post: operand `mixes`", "[5, 15]", "[5, 14]"]);
    let half = filled::<bf16>(&s, &[5, 7]);
    says(PostIn { y: half.view(), ..good }, &["post: operand `y`", "must be f32", "is bf16"]);
    let wide = filled::<f32>(&s, &[1, 33, 1]);
    says(PostIn { x: wide.view(), ..good }, &["post: attribute `n`", "1..=32", "33"]);
}

#[test]
fn an_output_that_attributes_leave_out_must_not_be_passed() {
    let s = cpu();
    let (x, y, mixes) = (filled::<f32>(&s, &[5, 3, 7]), filled::<f32>(&s, &[5, 7]), filled::<f32>(&s, &[5, 15]));
    let operands = PostBwdIn { x: x.view(), y: y.view(), mixes: mixes.view(), d_x_next: x.view() };
    let zeros = |shape: &[usize]| Tensor::zeros(&s, DType::F32, shape).unwrap();
    let (mut d_x, mut d_y, mut d_mixes) = (zeros(&[5, 3, 7]), zeros(&[5, 7]), zeros(&[5, 15]));
    for want in [false, true] {
        let given =
            f::PostBwdOut { d_x: (!want).then_some(d_x.view_mut()), d_y: d_y.view_mut(), d_mixes: d_mixes.view_mut() };
        let op = PostBwd { d_x: want, ..Default::default() };
        let error = f::post_bwd_into(&s, &op, operands, given).unwrap_err();
        assert!(matches!(&error, Error::Shape { op: "post_bwd", slot: "d_x", .. }), "{error}");
    }
    assert!(d_y.to_f64().unwrap().iter().all(|v| *v == 0.0), "nothing is written");
}
