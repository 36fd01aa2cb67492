//! What must hold however a device schedules, adds and approximates. The tests configure the emulated
//! device, of which a process has one: they wait for one another.

mod f32_math;
mod promises;
mod properties;
mod settings;
