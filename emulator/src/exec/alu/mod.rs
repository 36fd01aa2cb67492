//! Arithmetic: the values that instructions compute from values.
//!
//! `scalar` evaluates every operation for one lane. The operations that kernels spend their time in
//! have a second form in `lanes`, over all lanes at once; a test compares the two. `mma` and
//! `product` multiply matrices.

pub(crate) mod bits;
pub(crate) mod convert;
pub(crate) mod double;
pub(crate) mod float;
pub(crate) mod jitter;
pub(crate) mod lanes;
pub(crate) mod mma;
pub(crate) mod product;
pub(crate) mod round;
pub(crate) mod scalar;
pub(crate) mod video;
