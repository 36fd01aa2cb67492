//! Layers, gradients and checkpoints in candle's tensors, against the float64 reference.

mod common;
mod errors;
mod gradients;
#[cfg(feature = "peft")]
mod peft;
mod training;
