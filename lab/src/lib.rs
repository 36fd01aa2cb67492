//! Tools for the kernels: limits that they must keep, a profile of what they do, reports of the
//! benches, replays of layers from files, and mutants.

#![allow(missing_docs, reason = "private to this workspace")]

pub mod compile;
pub mod gpu;
pub mod limits;
pub mod memory;
pub mod model;
pub mod mutation;
pub mod occupancy;
pub mod profile;
pub mod replay;
pub mod report;
pub mod resources;
pub mod splice;
pub mod witness;
pub mod work;
