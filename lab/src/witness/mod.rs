//! A witness for latency: what the machine code of the main kernels waits for, and how long a
//! launch takes by a model of its tiles.
//!
//! [`code`] reads machine code with the control fields that [`control`] decodes, and [`check`]
//! shows that they are decoded right. [`flow`] and [`way`] choose the way through a loop that a
//! well-formed layer takes, and [`named`] names the loops of the main kernels. [`pipeline`] times a
//! way by an in-order model, with [`latencies`]. [`launch`] runs a launch as events on one of the
//! [`devices`], and [`tiles`] lists its tiles. None of it was compared with a GPU.

pub mod check;
pub mod code;
pub mod control;
pub mod devices;
pub mod flow;
pub mod latencies;
pub mod launch;
pub mod named;
pub mod pipeline;
pub mod tiles;
pub mod way;
