//! The operators as typed functions.
//!
//! Every operator is a function of a stream, its attributes and a struct of named operands. It allocates its outputs and returns them
//! as a struct; with `_into` at the end of its name it writes to views of the caller's and allocates no device memory. Sizes follow
//! from the shapes; whatever does not fit is an [`Error`](mhc_core::Error) that names operator and operand, before anything is written.
//!
//! Functions only enqueue: outputs may be read after [`Stream::sync`], and operands must stay as they are until the stream is past them.
//!
//! | letter | meaning |
//! |---|---|
//! | T | tokens; may be 0 |
//! | n | residual streams, 1..=32 |
//! | C | channels, at least 1 |
//! | K | n·C, the flattened row of a token |
//! | L | sub-layers |
//!
//! `mixes [T, n(n+2)]` are the activated coefficients `[H_pre n | H_post n | H_res n·n]`.
//!
//! [`Stream::sync`]: mhc_core::Stream::sync

mod call;

/// The type of an operand's field.
macro_rules! field {
    (stream $view:ty) => { $view };
    (coeff $view:ty) => { $view };
    (maybe_stream $view:ty) => { Option<$view> };
    (maybe_coeff $view:ty) => { Option<$view> };
}

/// What the documentation says about an operand's type.
macro_rules! kind {
    (stream) => {
        "of the streams' type"
    };
    (coeff) => {
        "f32"
    };
    (maybe_stream) => {
        "of the streams' type, there iff the attributes say so"
    };
    (maybe_coeff) => {
        "f32, there iff the attributes say so"
    };
}

/// Memory for an output.
macro_rules! allocate {
    (stream $call:ident $name:ident) => {
        $call.alloc(stringify!($name))?
    };
    (coeff $call:ident $name:ident) => {
        $call.alloc(stringify!($name))?
    };
    (maybe_stream $call:ident $name:ident) => {
        $call.alloc_maybe(stringify!($name))?
    };
    (maybe_coeff $call:ident $name:ident) => {
        $call.alloc_maybe(stringify!($name))?
    };
}

/// The view of an output.
macro_rules! borrow {
    (stream $tensor:expr) => {
        Some($tensor.view_mut())
    };
    (coeff $tensor:expr) => {
        Some($tensor.view_mut())
    };
    (maybe_stream $tensor:expr) => {
        $tensor.as_mut().map(mhc_core::Tensor::view_mut)
    };
    (maybe_coeff $tensor:expr) => {
        $tensor.as_mut().map(mhc_core::Tensor::view_mut)
    };
}

/// One operator: its two functions, the structs of its operands, and their documentation.
macro_rules! operator {
    (
        $(#[doc = $doc:literal])*
        $name:ident, $into:ident: $op:ident
        $ins:ident { $($in:ident: $in_kind:ident $in_axes:literal),* $(,)? }
        $outs:ident { $($out:ident: $out_kind:ident $out_axes:literal),* $(,)? }
    ) => {
        $(#[doc = $doc])*
        ///
        /// # Operands
        $(#[doc = concat!("* `", stringify!($in), " [", $in_axes, "]`, ", kind!($in_kind))])*
        ///
        /// gives
        $(#[doc = concat!("* `", stringify!($out), " [", $out_axes, "]`, ", kind!($out_kind))])*
        ///
        /// The streams' type is f32, bf16 or f16, the same in all operands; sums are f32. Of inputs the last axis must be contiguous and
        /// other strides are free; outputs are row-major.
        ///
        /// # Determinism
        /// Bitwise the same in every run and with every number of threads; a token's results do not depend on its neighbours.
        ///
        /// # Errors
        /// [`Shape`](mhc_core::Error::Shape), [`DType`](mhc_core::Error::DType), [`Layout`](mhc_core::Error::Layout),
        /// [`WrongDevice`](mhc_core::Error::WrongDevice) and [`Attribute`](mhc_core::Error::Attribute) name what is wrong, before anything
        /// is written; [`Unsupported`](mhc_core::Error::Unsupported) where the device has no such kernel, and what the device itself
        /// reports.
        pub fn $name(stream: &mhc_core::Stream, op: &mhc_core::ops::$op, operands: $ins<'_>) -> mhc_core::Result<$outs> {
            let call = $crate::functional::call::Call::new(stream, op.clone().into(), &[$(operands.$in.into()),*])?;
            let mut outputs = $outs { $($out: allocate!($out_kind call $out)),* };
            call.run([$(borrow!($out_kind outputs.$out)),*])?;
            Ok(outputs)
        }

        #[doc = concat!("[`", stringify!($name), "`] into memory of the caller's, any strides but a contiguous last axis.")]
        pub fn $into(
            stream: &mhc_core::Stream,
            op: &mhc_core::ops::$op,
            operands: $ins<'_>,
            outputs: $outs<mhc_core::ViewMut<'_>>,
        ) -> mhc_core::Result<()> {
            let call = $crate::functional::call::Call::new(stream, op.clone().into(), &[$(operands.$in.into()),*])?;
            call.run([$(outputs.$out.into()),*])
        }

        #[doc = concat!("What [`", stringify!($name), "`] reads.")]
        pub struct $ins<'a> {
            $(#[doc = concat!("`[", $in_axes, "]`, ", kind!($in_kind))] pub $in: field!($in_kind mhc_core::View<'a>),)*
        }

        #[doc = concat!("What [`", stringify!($name), "`] writes.")]
        pub struct $outs<O = mhc_core::Tensor> {
            $(#[doc = concat!("`[", $out_axes, "]`, ", kind!($out_kind))] pub $out: field!($out_kind O),)*
        }

        // Not derived: types made by macros cannot be.
        impl Clone for $ins<'_> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl Copy for $ins<'_> {}

        impl core::fmt::Debug for $ins<'_> {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.debug_struct(stringify!($ins))$(.field(stringify!($in), &self.$in))*.finish()
            }
        }

        impl<O: core::fmt::Debug> core::fmt::Debug for $outs<O> {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.debug_struct(stringify!($outs))$(.field(stringify!($out), &self.$out))*.finish()
            }
        }

        #[cfg(test)]
        mod $name {
            #[test]
            fn is_what_the_description_says() {
                $crate::functional::tests::compare::<mhc_core::ops::$op>(
                    &[$((stringify!($in), $in_axes, kind!($in_kind))),*],
                    &[$((stringify!($out), $out_axes, kind!($out_kind))),*],
                );
            }
        }
    };
}

mod coefficients;
mod layers;
mod pre;
mod projection;
mod streams;

pub use coefficients::*;
pub use layers::*;
pub use pre::*;
pub use projection::*;
pub use streams::*;

#[cfg(test)]
mod tests {
    use mhc_core::{DTypeRule, Level, Op, Role};

    /// Names, order, axes, types and optionality of the typed operands are those of the description.
    pub(crate) fn compare<O: Op>(ins: &[(&str, &str, &str)], outs: &[(&str, &str, &str)]) {
        let cases = O::cases(Level::Full);
        let described = |inputs: bool| {
            let slots = O::DESC.slots.iter().filter(move |s| (s.role == Role::In) == inputs);
            slots.map(|s| {
                let kind = if s.dtype == DTypeRule::Stream { "of the streams' type" } else { "f32" };
                let optional = cases.iter().any(|c| !c.op.has(s.name));
                let when = if optional { ", there iff the attributes say so" } else { "" };
                (s.to_string(), format!("{kind}{when}"))
            })
        };
        let typed = |slots: &[(&str, &str, &str)]| -> Vec<_> {
            slots
                .iter()
                .map(|(name, axes, kind)| (format!("{name} [{axes}]").replace("K", "n·C"), kind.to_string()))
                .collect()
        };
        assert_eq!(typed(ins), described(true).collect::<Vec<_>>(), "inputs of {}", O::DESC.name);
        assert_eq!(typed(outs), described(false).collect::<Vec<_>>(), "outputs of {}", O::DESC.name);
    }
}
