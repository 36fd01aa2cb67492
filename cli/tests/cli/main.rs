//! The program `fused-dora` as a user runs it: what it writes, what it refuses, and what is left
//! when it does not come to its end.

mod calls;
mod inspect;
mod json;
#[cfg(target_os = "linux")]
mod large;
mod merge;
mod model;
mod names;
mod packed;
mod program;
mod quantize;
mod random;
mod refusals;
mod reports;
mod tensors;
mod whole;
