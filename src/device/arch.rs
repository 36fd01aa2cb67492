//! The architectures that kernels are written for.

use crate::error::{Error, Result};

/// An architecture with kernels of its own: the file name `kernels/OP/ARCH.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arch {
    /// Compute capability 8.0 and later, without a limit: `mma.sync`, `ldmatrix`, `cp.async`. The
    /// driver translates PTX for `sm_80` for every later GPU.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gpu_from_ampere_on_has_kernels() {
        let new = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1)];
        for capability in new {
            assert_eq!(Arch::of(capability).expect("kernels"), Arch::Sm80, "{capability:?}");
        }
        for capability in [(7, 0), (7, 5)] {
            assert!(Arch::of(capability).is_err(), "{capability:?}");
        }
    }
}
