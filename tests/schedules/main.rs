//! What must hold however a device schedules, adds and approximates. The tests configure the emulated
//! device. A process has one device, and the tests wait for one another.

mod f32_math;
mod promises;
mod properties;
mod settings;
