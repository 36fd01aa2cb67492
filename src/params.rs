//! The kernels' parameter structs and sizes, a module per op.
//!
//! `build.rs` reads them from `kernels/`, where they are stated; the CUDA compiler and this one
//! check that both have the same layout.

include!(concat!(env!("OUT_DIR"), "/params.rs"));
