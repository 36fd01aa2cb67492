//! The layer as candle's modules, optimizers and checkpoints use it.

mod common;
mod errors;
mod gradients;
#[cfg(feature = "peft")]
mod minilm;
#[cfg(feature = "peft")]
mod peft;
mod packed;
mod training;
