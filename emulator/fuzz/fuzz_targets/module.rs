//! Any bytes as a module: they are refused or load, and what loads runs to its end or to a fault.

#![no_main]

use std::cell::OnceCell;

use cuda_emulator::{Config, Device, Launch, Profile, profile};
use libfuzzer_sys::fuzz_target;

const BUFFER_BYTES: u64 = 1 << 12;

thread_local! {
    static DEVICE: OnceCell<Device> = const { OnceCell::new() };
}

/// A device that gives no text much memory or time.
fn device() -> Device {
    let config = Config { threads: 1, watchdog: 1 << 15, ..Config::default() };
    Device::with_config(Profile { total_memory: 16 << 20, ..profile::H100 }, config)
}

/// Loads a text, and launches its kernels on a buffer. Faults are for kernels to find.
fn load_and_launch(device: &Device, text: &str) {
    let Ok(module) = device.load_module(text) else { return };
    let buffer = device.alloc(BUFFER_BYTES).expect("memory");
    device.fill8(buffer, 0, BUFFER_BYTES).expect("the whole buffer");
    for name in module.function_names() {
        let function = module.function(name).expect("a kernel of the module");
        let mut params = buffer.to_le_bytes().to_vec();
        params.resize(function.param_bytes(), 3);
        let launch = Launch {
            grid: [1; 3],
            block: [32, 1, 1],
            dynamic_shared: 64,
            dynamic_shared_limit: 1024,
            params: &params,
            cooperative: false,
        };
        let _ = device.launch(&function, &launch);
    }
    device.free(buffer).expect("the buffer is live");
    device.unload_module(&module);
}

fuzz_target!(|text: &str| {
    DEVICE.with(|shared| load_and_launch(shared.get_or_init(device), text));
});
