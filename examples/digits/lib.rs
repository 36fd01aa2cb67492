//! The network of the demonstration: its data, its layers and how they are trained.

#![allow(missing_docs, reason = "private to this workspace")]

pub mod data;
pub mod layer;
pub mod network;
pub mod optimizer;
pub mod train;
