//! What the benches share: how an op is measured, and the separate ops that the fused layer is
//! compared with.

#![allow(missing_docs, reason = "private to this workspace")]

pub mod baseline;
pub mod clocks;
pub mod compare;
pub mod measure;
pub mod stopwatch;
