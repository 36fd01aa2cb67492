//! Whole programs, in PTX and in CUDA C++ that NVRTC compiles: what they compute, what is reported
//! of those that are wrong, and what is counted.

mod cuda;
mod faults;
mod kernels;
mod malformed;
mod matrix;
mod measure;
mod mutation;
mod sanitizer;
mod semantics;
mod support;
mod waiting;
