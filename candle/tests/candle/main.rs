//! The layer as candle's modules, optimizers and checkpoints use it.

mod common;
mod errors;
mod gradients;
#[cfg(feature = "peft")]
mod minilm;
mod packed;
#[cfg(feature = "peft")]
mod peft;
mod training;
