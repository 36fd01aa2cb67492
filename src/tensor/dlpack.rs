//! DLPack tensors: what Python's frameworks, and others that speak
//! [DLPack](https://dmlc.github.io/dlpack/latest/), hand out without a copy.
//!
//! [`dlpark`] owns an imported tensor, calls its deleter, and checks its descriptor (`validate`, or
//! `validate_mut` of a tensor that an op writes). [`matrix`] and [`dense`] check that the tensor is
//! what an op takes; [`Checked::read`] and [`Checked::write`] then make an argument of it.

use cudarc::driver::CudaContext;
pub use dlpark;
use dlpark::TensorRef;
use dlpark::ffi::{DLDataType, DLDataTypeCode, DLDevice, DLDeviceType};

use super::check::check_stride;
use super::{Read, Write};
use crate::dtype::{Dtype, ElementType};
use crate::error::Error;

/// Why a DLPack tensor is not what an op takes.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum DlpackError {
    /// It lies elsewhere.
    #[error(
        "{tensor} is on DLPack device {}:{}, but the kernels were loaded for 2:{ordinal} (CUDA): \
         move it there", found.device_type.0, found.device_id
    )]
    Device {
        /// The tensor's name.
        tensor: &'static str,
        /// Where it lies.
        found: DLDevice,
        /// The CUDA device of the kernels.
        ordinal: usize,
    },
    /// It holds other elements.
    #[error("{tensor} holds {}, but {expected} is needed: convert it", name(*found))]
    Dtype {
        /// The tensor's name.
        tensor: &'static str,
        /// What it holds.
        found: DLDataType,
        /// What it should hold.
        expected: Dtype,
    },
    /// It has another shape.
    #[error("{tensor} has the shape {found:?}, but {expected:?} is needed")]
    Shape {
        /// The tensor's name.
        tensor: &'static str,
        /// Its shape.
        found: Vec<i64>,
        /// The shape needed; a matrix may have more leading dimensions, of the product that counts.
        expected: Vec<usize>,
    },
    /// Its elements do not lie as the op reads them.
    #[error(
        "{tensor} of shape {shape:?} has the strides {strides:?}, but {requirement}: make it \
         contiguous"
    )]
    Layout {
        /// The tensor's name.
        tensor: &'static str,
        /// Its shape.
        shape: Vec<i64>,
        /// Its strides, in elements.
        strides: Vec<i64>,
        /// What the op asks for.
        requirement: &'static str,
    },
    /// Its data pointer and byte offset do not add up to an address.
    #[error(
        "{tensor} has its data at {data:#x} and a byte offset of {byte_offset}: their sum is not \
         an address"
    )]
    Address {
        /// The tensor's name.
        tensor: &'static str,
        /// Its data pointer.
        data: u64,
        /// Its byte offset.
        byte_offset: u64,
    },
    /// The descriptor contradicts itself.
    #[error(transparent)]
    Descriptor(#[from] dlpark::tensor::Error),
    /// What ops check of any address or stride.
    #[error(transparent)]
    Tensor(#[from] Error),
}

/// A DLPack tensor that an op may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    address: u64,
    stride: Option<usize>,
    element: ElementType,
}

impl Checked {
    /// The tensor, for an op that reads it.
    ///
    /// # Safety
    /// As for [`Read::from_address`]: the tensor is kept until the stream has run the op, and, as
    /// DLPack asks, its producer knows of that stream.
    pub const unsafe fn read(self) -> Read<'static> {
        // SAFETY: passed on to the caller.
        let read = unsafe { Read::from_address(self.address, self.element) };
        match self.stride {
            Some(stride) => read.with_row_stride(stride),
            None => read,
        }
    }

    /// The tensor, for an op that writes it.
    ///
    /// # Safety
    /// As for [`Write::from_address`], and for [`Checked::read`].
    pub const unsafe fn write(self) -> Write<'static> {
        // SAFETY: passed on to the caller.
        let write = unsafe { Write::from_address(self.address, self.element) };
        match self.stride {
            Some(stride) => write.with_row_stride(stride),
            None => write,
        }
    }
}

/// The matrix `[rows, cols]` of `dtype` that a tensor is, on the device of the kernels' context.
///
/// Rows may have a stride. All dimensions before the last together are the rows, as of a tensor
/// `[batch, sequence, features]`.
///
/// # Errors
/// [`DlpackError`] unless it is that, in the memory of that device.
pub fn matrix(
    name: &'static str,
    tensor: &TensorRef<'_>,
    context: &CudaContext,
    dtype: Dtype,
    [rows, cols]: [usize; 2],
) -> Result<Checked, DlpackError> {
    check(name, tensor, context, dtype)?;
    let shape = tensor.shape();
    let wrong_shape =
        || DlpackError::Shape { tensor: name, found: shape.to_vec(), expected: vec![rows, cols] };
    let Some((&last, leading)) = shape.split_last() else { return Err(wrong_shape()) };
    if last != cols as i64 || tensor.num_elements() != rows.saturating_mul(cols) {
        return Err(wrong_shape());
    }
    let strides = tensor.strides_or_compact()?;
    let wrong_layout = |requirement| {
        let (shape, strides) = (shape.to_vec(), strides.to_vec());
        DlpackError::Layout { tensor: name, shape, strides, requirement }
    };
    let address = address(name, tensor, dtype)?;
    let element = dtype.into();
    if tensor.num_elements() == 0 {
        return Ok(Checked { address, stride: None, element });
    }
    if cols > 1 && strides.last() != Some(&1) {
        return Err(wrong_layout("the elements of a row must be adjacent"));
    }
    // The rows' stride, and what that of the next dimension outwards must be for them to go on.
    let (mut stride, mut expected) = (None, None);
    for (&len, &step) in leading.iter().zip(strides.iter()).rev().filter(|(len, _)| **len > 1) {
        if expected.is_some_and(|expected| expected != step) {
            return Err(wrong_layout("all rows must be equally far apart"));
        }
        stride.get_or_insert(step);
        expected = Some(step.saturating_mul(len));
    }
    let Ok(stride) = usize::try_from(stride.unwrap_or(cols as i64)) else {
        return Err(wrong_layout("no row may lie before the one ahead of it"));
    };
    check_stride(name, stride, cols)?;
    Ok(Checked { address, stride: Some(stride), element })
}

/// The tensor of `dtype` and `shape` without gaps that a tensor is, on the device of the kernels'
/// context.
///
/// # Errors
/// [`DlpackError`] unless it is that, in the memory of that device.
pub fn dense(
    name: &'static str,
    tensor: &TensorRef<'_>,
    context: &CudaContext,
    dtype: Dtype,
    shape: &[usize],
) -> Result<Checked, DlpackError> {
    check(name, tensor, context, dtype)?;
    let found = tensor.shape();
    if !found.iter().copied().eq(shape.iter().map(|&len| len as i64)) {
        let (found, expected) = (found.to_vec(), shape.to_vec());
        return Err(DlpackError::Shape { tensor: name, found, expected });
    }
    if !tensor.is_compact()? {
        return Err(DlpackError::Layout {
            tensor: name,
            shape: found.to_vec(),
            strides: tensor.strides_or_compact()?.to_vec(),
            requirement: "it must be row-major without gaps",
        });
    }
    Ok(Checked { address: address(name, tensor, dtype)?, stride: None, element: dtype.into() })
}

/// Checks the device and the elements.
fn check(
    name: &'static str,
    tensor: &TensorRef<'_>,
    context: &CudaContext,
    dtype: Dtype,
) -> Result<(), DlpackError> {
    let (found, ordinal) = (tensor.device(), context.ordinal());
    let is_on_device = match found.device_type {
        DLDeviceType::CUDA => usize::try_from(found.device_id) == Ok(ordinal),
        // Every device reads it.
        DLDeviceType::CUDAMANAGED => true,
        _ => false,
    };
    if !is_on_device {
        return Err(DlpackError::Device { tensor: name, found, ordinal });
    }
    let expected = match dtype {
        Dtype::Bf16 => DLDataType::BF16,
        Dtype::F16 => DLDataType::F16,
        Dtype::F32 => DLDataType::F32,
    };
    if !tensor.dtype().matches(expected) {
        return Err(DlpackError::Dtype { tensor: name, found: tensor.dtype(), expected: dtype });
    }
    Ok(())
}

/// Where the elements start; 0 where a tensor without elements has no memory.
fn address(name: &'static str, tensor: &TensorRef<'_>, dtype: Dtype) -> Result<u64, DlpackError> {
    let (data, byte_offset) = (tensor.data_ptr().addr() as u64, tensor.byte_offset());
    let pointer = data.checked_add(byte_offset).ok_or(DlpackError::Address {
        tensor: name,
        data,
        byte_offset,
    })?;
    if tensor.num_elements() == 0 {
        return Ok(pointer);
    }
    if data == 0 || pointer == 0 {
        return Err(Error::MissingTensor { tensor: name, reason: "its address is 0" }.into());
    }
    let alignment = dtype.bytes();
    if !pointer.is_multiple_of(alignment as u64) {
        return Err(Error::Misaligned { tensor: name, address: pointer, alignment }.into());
    }
    Ok(pointer)
}

/// The name of a DLPack dtype.
fn name(DLDataType { code, bits, lanes }: DLDataType) -> String {
    let kind = match code {
        DLDataTypeCode::INT => "int",
        DLDataTypeCode::UINT => "uint",
        DLDataTypeCode::FLOAT => "float",
        DLDataTypeCode::BFLOAT => "bfloat",
        DLDataTypeCode::COMPLEX => "complex",
        DLDataTypeCode::BOOL => "bool",
        _ => return format!("DLPack type {} of {bits} bits", code.0),
    };
    match lanes {
        1 => format!("{kind}{bits}"),
        _ => format!("{kind}{bits}x{lanes}"),
    }
}
