//! Errors of the kernels as candle's.

use candle_core::{Device, Error, Result};
use fused_dora::cudarc::driver::DriverError;

/// Turns a result into candle's, with its message, numbers and cure.
pub(crate) trait OrCandle<T> {
    fn or_candle(self) -> Result<T>;
}

impl<T> OrCandle<T> for fused_dora::Result<T> {
    fn or_candle(self) -> Result<T> {
        self.map_err(Error::wrap)
    }
}

impl<T> OrCandle<T> for std::result::Result<T, DriverError> {
    fn or_candle(self) -> Result<T> {
        let during = "moving a candle tensor";
        self.map_err(|source| Error::wrap(fused_dora::Error::Driver { during, source }))
    }
}

/// The error for a device on which there are no kernels.
pub(crate) fn out_of_reach(device: &Device) -> Error {
    let location = device.location();
    Error::msg(format!(
        "fused-dora has no kernels for {location:?}: take the CPU, or a CUDA device with feature \
         `cuda`"
    ))
}
