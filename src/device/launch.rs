//! A kernel by name, and one launch of it.

use crate::dtype::{Dtype, Variant};
use crate::params::common;

/// Threads of a block unless a launch says otherwise.
pub(crate) const THREADS: u32 = common::THREADS as u32;

/// One kernel, whatever its dtype: a constant next to the plan that launches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Kernel {
    /// The folder below `kernels/` that has it.
    pub(crate) op: &'static str,
    /// The entry point's name up to the dtype.
    pub(crate) name: &'static str,
    /// It exists in f32 alone, whatever the layer's dtype.
    is_f32_only: bool,
}

impl Kernel {
    /// The entry points `name_bf16`, `name_f16` and `name_f32` of an op.
    pub(crate) const fn new(op: &'static str, name: &'static str) -> Self {
        Self { op, name, is_f32_only: false }
    }

    /// The entry point `name_f32` of an op on adapters, which are f32.
    pub(crate) const fn f32_only(op: &'static str, name: &'static str) -> Self {
        Self { op, name, is_f32_only: true }
    }

    /// The compilation that layers of `variant` take.
    pub(crate) fn variant(self, variant: Variant) -> Variant {
        if self.is_f32_only { Dtype::F32.into() } else { variant }
    }

    /// The entry point in a dtype.
    pub(crate) fn entry(self, dtype: Dtype) -> String {
        format!("{}_{dtype}", self.name)
    }
}

/// One launch: which kernel, and what it asks of the device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Launch {
    pub(crate) kernel: Kernel,
    pub(crate) variant: Variant,
    pub(crate) grid: [usize; 3],
    /// Threads of a block.
    pub(crate) block: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub(crate) shared_bytes: u32,
}

impl Launch {
    /// Blocks of [`THREADS`] threads without dynamic shared memory.
    pub(crate) fn new(kernel: Kernel, variant: impl Into<Variant>, grid: [usize; 3]) -> Self {
        Self { kernel, variant: variant.into(), grid, block: THREADS, shared_bytes: 0 }
    }
}
