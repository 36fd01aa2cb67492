//! Tensors as the ops take them, whoever owns the memory: [`Read`] what an op reads, [`Write`] what
//! it writes, and [`Weight`] what W is.
//!
//! They are made from cudarc's slices and views, from DLPack tensors (feature `dlpack`), or from
//! addresses, by an `unsafe` constructor. An op checks each of them once: context, dtype, shape,
//! stride, alignment and presence.

pub(crate) mod check;
#[cfg(feature = "dlpack")]
pub mod dlpack;
mod element;
mod memory;
mod weight;

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};

pub use crate::dtype::ElementType;

pub(crate) use check::{
    Dim, Need, Placed, PlacedWeight, Tensors, check_context, check_given, check_len, matrix, vector,
};
pub use element::{Element, TensorElement};
pub(crate) use memory::{Memory, MemoryMut};
pub(crate) use weight::Elements;
pub use weight::{Base, NestedScales, PackedWeight, SharedTensor, SharedWeight, Weight};

/// A row-major tensor that an op reads.
///
/// By default its rows lie one behind the other. [`with_row_stride`](Self::with_row_stride) makes it
/// a slice of the columns of a wider matrix; x, y and their gradients may be that.
///
/// ```
/// use fused_dora::{Kernels, Read, open_device};
///
/// # cuda_emulator::client::select(cuda_emulator::client::Choice::from_env()?)?;
/// let kernels = Kernels::load(&open_device(0)?)?;
/// let stream = kernels.context().default_stream();
/// // Queries, keys and values side by side, [tokens, 3·64]: the keys.
/// let projected = stream.alloc_zeros::<f32>(10 * 3 * 64)?;
/// let keys = Read::from(projected.slice(64..)).with_row_stride(3 * 64);
/// # let _ = keys;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Read<'a> {
    pub(crate) memory: Memory<'a>,
    pub(crate) stride: Option<usize>,
}

/// A row-major tensor that an op writes, or adds to; otherwise like [`Read`].
#[derive(Debug)]
pub struct Write<'a> {
    pub(crate) memory: MemoryMut<'a>,
    pub(crate) stride: Option<usize>,
}

impl Read<'static> {
    /// The tensor at a device address, for memory of other libraries. The op takes the shape from
    /// its spec.
    ///
    /// # Safety
    /// Whenever an op takes this tensor, `address` is one of the kernels' context, of memory that
    /// holds the tensor of the op's shape, with elements of type `element`. The memory stays valid
    /// until the stream has run the op, and other uses of it are ordered against that stream.
    pub const unsafe fn from_address(address: u64, element: ElementType) -> Self {
        Self { memory: Memory::Address(address, element), stride: None }
    }
}

impl Write<'static> {
    /// The tensor at a device address, for memory of other libraries. The op takes the shape from
    /// its spec.
    ///
    /// # Safety
    /// As for [`Read::from_address`]; and nothing else that the op reads or writes overlaps with the
    /// memory, except where the op says so.
    pub const unsafe fn from_address(address: u64, element: ElementType) -> Self {
        Self { memory: MemoryMut::Address(address, element), stride: None }
    }
}

impl Read<'_> {
    /// The same elements with row starts `stride` elements apart, from the first element on. The
    /// memory need not reach beyond the end of the last row. What lies between the rows is not read.
    ///
    /// Kernels move 16 bytes at a time where every row starts at a 16-byte boundary and is a
    /// multiple of 16 bytes long.
    #[must_use]
    pub const fn with_row_stride(mut self, stride: usize) -> Self {
        self.stride = Some(stride);
        self
    }

    /// The type of the elements.
    pub const fn element(&self) -> ElementType {
        match &self.memory {
            Memory::Bf16(_) => ElementType::Bf16,
            Memory::F16(_) => ElementType::F16,
            Memory::F32(_) => ElementType::F32,
            Memory::F64(_) => ElementType::F64,
            Memory::U64(_) => ElementType::U64,
            Memory::U8(_) => ElementType::U8,
            Memory::Address(_, element) => *element,
        }
    }
}

impl Write<'_> {
    /// The same elements with row starts `stride` elements apart, as [`Read::with_row_stride`]. What
    /// lies between the rows is not written.
    #[must_use]
    pub const fn with_row_stride(mut self, stride: usize) -> Self {
        self.stride = Some(stride);
        self
    }

    /// The type of the elements.
    pub const fn element(&self) -> ElementType {
        match &self.memory {
            MemoryMut::Bf16(_) => ElementType::Bf16,
            MemoryMut::F16(_) => ElementType::F16,
            MemoryMut::F32(_) => ElementType::F32,
            MemoryMut::F64(_) => ElementType::F64,
            MemoryMut::U64(_) => ElementType::U64,
            MemoryMut::U8(_) => ElementType::U8,
            MemoryMut::Address(_, element) => *element,
        }
    }
}

impl<'a, E: TensorElement> From<CudaView<'a, E>> for Read<'a> {
    fn from(view: CudaView<'a, E>) -> Self {
        Self { memory: E::read(view), stride: None }
    }
}

impl<'a, E: TensorElement> From<&'a CudaSlice<E>> for Read<'a> {
    fn from(slice: &'a CudaSlice<E>) -> Self {
        slice.as_view().into()
    }
}

impl<'a, E: TensorElement> From<CudaViewMut<'a, E>> for Write<'a> {
    fn from(view: CudaViewMut<'a, E>) -> Self {
        Self { memory: E::write(view), stride: None }
    }
}

impl<'a, E: TensorElement> From<&'a mut CudaSlice<E>> for Write<'a> {
    fn from(slice: &'a mut CudaSlice<E>) -> Self {
        slice.as_view_mut().into()
    }
}
