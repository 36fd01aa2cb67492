//! What CUDA programs use, compiled by NVRTC with several options: the math API, integer and warp
//! intrinsics, the language itself, and what the device provides. Results are compared with Rust.

mod atomics;
mod builds;
mod calls;
mod data;
mod double;
mod float;
mod halves;
mod integers;
mod math;
mod numbers;
mod output;
mod reference;
mod rounding;
mod simd;
mod statements;
mod warps;
mod words;
