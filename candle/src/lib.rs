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
