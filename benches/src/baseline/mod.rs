//! What the fused layer is compared with: the same layer in separate ops.
//!
//! Products are cuBLASLt's, each by the fastest of eight algorithms, on a GPU with the crate's feature
//! `cublaslt`, and elsewhere those of the crate's own GEMM; everything else is `elementwise.cu`,
//! which moves 16 bytes at a time. `benches/tests/baseline.rs` compares every form with the reference.

#[cfg(feature = "cublaslt")]
mod cublaslt;
mod form;
mod gemm;
mod ops;
mod unfused;

pub use form::Form;
pub use gemm::Gemm;
pub(crate) use ops::module;
pub use unfused::{Inputs, Unfused};

/// What the baselines return.
pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;
