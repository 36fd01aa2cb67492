//! What needs the process's device alone: counts of launches, copies and allocations, whole layers, and
//! what must hold however a device schedules, adds and approximates, for which the emulated device is
//! configured. These tests wait for one another. On a GPU, which neither counts nor can be configured,
//! they check the rest.

mod f32_math;
mod launches;
mod linear;
mod packed;
mod promises;
mod properties;
mod settings;
