//! Where a tensor's elements are: a view of one type, or an address.

use cudarc::driver::{CudaView, CudaViewMut};
use half::{bf16, f16};

use super::ElementType;

/// Memory that an op reads.
#[derive(Debug)]
pub enum Memory<'a> {
    Bf16(CudaView<'a, bf16>),
    F16(CudaView<'a, f16>),
    F32(CudaView<'a, f32>),
    F64(CudaView<'a, f64>),
    U64(CudaView<'a, u64>),
    U8(CudaView<'a, u8>),
    Address(u64, ElementType),
}

/// Memory that an op writes.
#[derive(Debug)]
pub enum MemoryMut<'a> {
    Bf16(CudaViewMut<'a, bf16>),
    F16(CudaViewMut<'a, f16>),
    F32(CudaViewMut<'a, f32>),
    F64(CudaViewMut<'a, f64>),
    U64(CudaViewMut<'a, u64>),
    U8(CudaViewMut<'a, u8>),
    Address(u64, ElementType),
}

impl Clone for Memory<'_> {
    fn clone(&self) -> Self {
        match self {
            Self::Bf16(view) => Self::Bf16(view.slice(..)),
            Self::F16(view) => Self::F16(view.slice(..)),
            Self::F32(view) => Self::F32(view.slice(..)),
            Self::F64(view) => Self::F64(view.slice(..)),
            Self::U64(view) => Self::U64(view.slice(..)),
            Self::U8(view) => Self::U8(view.slice(..)),
            Self::Address(address, element) => Self::Address(*address, *element),
        }
    }
}
