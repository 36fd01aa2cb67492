//! Blocks of device memory that the crate lays out itself.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream};

use crate::error::{During, Error, Result};
use crate::tensor::Tensors;

/// Blocks, and regions in them, start at multiples of this many bytes, like allocations.
pub(crate) const ALIGNMENT: usize = 256;

/// A block of device memory, allocated by the crate or lent by the caller.
#[derive(Debug)]
pub(crate) enum DeviceMemory {
    Own(CudaSlice<u8>),
    /// The address of a block that the caller frees.
    Lent(u64),
}

impl DeviceMemory {
    /// Allocates `bytes`, one at least, with undefined contents.
    pub(crate) fn allocate(
        stream: &Arc<CudaStream>,
        bytes: usize,
        during: &'static str,
    ) -> Result<Self> {
        // SAFETY: an op writes each region before another op reads it, and the workspace zeroes its
        // counters.
        unsafe { stream.alloc::<u8>(bytes.max(1)) }.during(during).map(Self::Own)
    }

    /// Takes a block of the caller's: `bytes` at `address`, where `needed` are needed. `size_from`
    /// names the function that returns that number.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Misaligned`], [`Error::MemoryTooSmall`].
    pub(crate) fn lent(
        memory: &'static str,
        address: u64,
        bytes: usize,
        needed: usize,
        size_from: &'static str,
    ) -> Result<Self> {
        if address == 0 {
            let reason = "its address is 0";
            return Err(Error::MissingTensor { tensor: memory, reason });
        }
        if !address.is_multiple_of(ALIGNMENT as u64) {
            return Err(Error::Misaligned { tensor: memory, address, alignment: ALIGNMENT });
        }
        if bytes < needed {
            return Err(Error::MemoryTooSmall { memory, available: bytes, needed, size_from });
        }
        Ok(Self::Lent(address))
    }

    /// Its address, for an op that reads it.
    pub(crate) fn read<'t>(&'t self, tensors: &mut Tensors<'t>) -> Result<u64> {
        match self {
            Self::Own(slice) => tensors.own(slice),
            Self::Lent(address) => Ok(*address),
        }
    }

    /// Its address, for an op that writes it.
    pub(crate) fn write<'t>(&'t mut self, tensors: &mut Tensors<'t>) -> Result<u64> {
        match self {
            Self::Own(slice) => tensors.own_mut(slice),
            Self::Lent(address) => Ok(*address),
        }
    }
}
