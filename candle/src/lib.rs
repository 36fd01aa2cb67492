#![doc = include_str!("../README.md")]

mod error;
mod layer;
mod linear;
mod op;
#[cfg(feature = "peft")]
mod peft;
mod runtime;
mod tensor;

pub use fused_dora;
pub use linear::{DoraConfig, DoraLinear, PreparedLinear};
pub use runtime::Runtime;

/// The guide's example is a test.
#[cfg(all(doctest, feature = "peft"))]
#[doc = include_str!("../../docs/candle.md")]
mod guide {}
