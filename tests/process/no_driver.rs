//! Without a CUDA driver the crate reports what it tried. Alone in its process, so that no other
//! test has opened the emulated driver.

use fused_dora::{Error, open_device};

#[test]
fn missing_driver_is_an_error() {
    match open_device(0) {
        Err(Error::DriverMissing { tried }) => {
            assert!(tried.iter().any(|name| name.contains("cuda")), "{tried:?}");
        }
        // A machine with NVIDIA's driver, with or without a GPU behind it.
        Ok(_) | Err(Error::NoDevice { .. } | Error::Driver { .. }) => {}
        Err(other) => panic!("DriverMissing, not {other:?}"),
    }
}
