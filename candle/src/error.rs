//! Errors of the kernels as candle's.

use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use fused_dora::cudarc::driver::DriverError;

/// Turns a result into candle's, with its message, its numbers and what to do about it.
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

/// The error for a dtype that the kernels do not have.
pub(crate) fn unsupported(dtype: DType) -> Error {
    Error::UnsupportedDTypeForOp(dtype, "fused-dora").bt()
}

/// Checks a tensor's dtype; `msg` says what it must be.
pub(crate) fn check_dtype(msg: &'static str, tensor: &Tensor, expected: DType) -> Result<()> {
    match tensor.dtype() {
        got if got == expected => Ok(()),
        got => Err(Error::UnexpectedDType { msg, expected, got }.bt()),
    }
}

/// Checks a shape; `msg` says what is wrong with another one.
pub(crate) fn check_shape(msg: impl Into<String>, got: &Shape, expected: Shape) -> Result<()> {
    match *got == expected {
        true => Ok(()),
        false => Err(Error::UnexpectedShape { msg: msg.into(), expected, got: got.clone() }.bt()),
    }
}
