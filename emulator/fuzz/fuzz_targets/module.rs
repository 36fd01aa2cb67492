//! Any bytes as a module: they are refused or load, and what loads runs to its end or to a fault.

#![no_main]

#[allow(dead_code, reason = "the tests damage texts themselves")]
#[path = "../../tests/malformed/damage.rs"]
mod damage;

use std::cell::OnceCell;

use cuda_emulator::Device;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static DEVICE: OnceCell<Device> = const { OnceCell::new() };
}

fuzz_target!(|text: &str| {
    DEVICE.with(|device| {
        // Faults are for kernels to find.
        let _ = damage::load_and_launch(device.get_or_init(damage::device), text);
    });
});
