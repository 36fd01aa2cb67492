//! What the integration tests and the examples share.
#![allow(dead_code, reason = "each of them uses its own part")]

pub mod case;
pub mod compare;
pub mod decompose;
pub mod device;
pub mod layer;
pub mod merge;
pub mod norm_gradient;
pub mod optimizer;
pub mod options;
pub mod random;
pub mod run;
pub mod tensors;
