//! The architectures that kernels are written for.

use crate::error::{Error, Result};

/// An architecture with kernels of its own: the file name `kernels/OP/ARCH.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arch {
    /// Compute capability 8.0 and later: `mma.sync`, `ldmatrix`, `cp.async`.
    Sm80,
}

/// bf16 tensor cores and `cp.async` came with Ampere.
const NEEDED_CAPABILITY: (i32, i32) = (8, 0);

impl Arch {
    /// The best one for a device of a compute capability.
    ///
    /// # Errors
    /// [`Error::UnsupportedArchitecture`] before Ampere.
    pub(crate) const fn of(capability: (i32, i32)) -> Result<Self> {
        if capability.0 < NEEDED_CAPABILITY.0 {
            let (found, needed) = (capability, NEEDED_CAPABILITY);
            return Err(Error::UnsupportedArchitecture { found, needed });
        }
        Ok(Self::Sm80)
    }

    /// The name of its files.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sm80 => "sm80",
        }
    }
}
