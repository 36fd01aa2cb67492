//! The driver API: the functions of `libcuda`, with their C names.
//!
//! A program that opens the shared library built from this crate finds the driver functions that it
//! uses, and runs on an emulated device. A function that is missing is missing: the dynamic loader
//! says so at the first call. What a function does is what the CUDA driver documents; where the
//! emulator is stricter, or leaves something out, the function says so.
//!
//! # Settings
//!
//! `cuInit` reads the environment:
//!
//! | variable | values, the first where it is unset |
//! |---|---|
//! | `CUDA_EMULATOR_PROFILE` | `a100`, or another name of [`Profile::ALL`](crate::Profile::ALL) |
//! | `CUDA_EMULATOR_STREAMS` | `lazy`, `eager`: whether work runs as late as it may, or at once |
//! | `CUDA_EMULATOR_MEMORY_POOLS` | `1`, `0`: whether `cuMemAllocAsync` exists |
//! | `CUDA_EMULATOR_ACCUMULATOR` | `sequential`, `exact`, `truncate`: matrix instructions |
//! | `CUDA_EMULATOR_JITTER` | `0`, `1`: whether approximate instructions err as far as they may |
//! | `CUDA_EMULATOR_SANITIZER` | `1`, `0`: whether uninitialised reads and races are faults |
//! | `CUDA_EMULATOR_SEED` | a number: the order of blocks and warps |
//! | `CUDA_EMULATOR_THREADS` | a number: threads of the host |
//! | `CUDA_EMULATOR_VERBOSE` | `0`, `1`: print why driver calls fail |
//! | `CUDA_LAUNCH_BLOCKING` | `0`, `1`: wait for every launch |
//!
//! # Safety
//!
//! One convention holds for every `extern "C"` function of this module, the one of the driver API:
//!
//! - a pointer that takes a result is null or may be written to during the call;
//! - a pointer to a structure, a list or a text is null or points to readable memory of that type,
//!   of the length that another argument says, or up to its NUL;
//! - host memory that is given to an asynchronous operation stays valid until the operation ends,
//!   and is left alone until then where it is page-locked;
//! - functions that a stream is to call may be called with the argument that came with them.
//!
//! Null pointers where a value is needed, stale and foreign handles, and device addresses outside
//! of allocations are errors that the functions find, and no reason for undefined behaviour.

#![allow(non_snake_case, reason = "the C names of the driver API")]

mod capture;
mod context;
mod copy;
mod copy_2d;
mod device;
mod entry;
mod event;
pub(crate) mod extension;
mod fill;
mod function;
mod graph;
mod handle;
mod host;
mod init;
mod launch;
mod memory;
mod module;
mod occupancy;
mod pointer;
mod pool;
mod queue;
mod refused;
mod state;
mod status;
mod stream;
mod symbols;
mod tensor_map;

pub use status::Status;
