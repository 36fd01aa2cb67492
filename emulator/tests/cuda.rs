//! What CUDA programs use, compiled by NVRTC with several options: the math API, integer and warp
//! intrinsics, the language itself, and what the device provides. Results are held against Rust.

mod support;

#[path = "cuda/atomics.rs"]
mod atomics;
#[path = "cuda/builds.rs"]
mod builds;
#[path = "cuda/calls.rs"]
mod calls;
#[path = "cuda/data.rs"]
mod data;
#[path = "cuda/double.rs"]
mod double;
#[path = "cuda/float.rs"]
mod float;
#[path = "cuda/halves.rs"]
mod halves;
#[path = "cuda/integers.rs"]
mod integers;
#[path = "cuda/math.rs"]
mod math;
#[path = "cuda/numbers.rs"]
mod numbers;
#[path = "cuda/output.rs"]
mod output;
#[path = "cuda/reference.rs"]
mod reference;
#[path = "cuda/rounding.rs"]
mod rounding;
#[path = "cuda/simd.rs"]
mod simd;
#[path = "cuda/statements.rs"]
mod statements;
#[path = "cuda/warps.rs"]
mod warps;
#[path = "cuda/words.rs"]
mod words;
