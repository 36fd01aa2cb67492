//! What W is, borrowed for a call or shared by layers, and the frozen layer that an adapter changes.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DriverError};
use half::{bf16, f16};

use super::{Element, Read};
use crate::dtype::Dtype;

/// The frozen weight W `[O, I]`, as an op reads it.
///
/// One format so far: a row-major matrix of the layer's dtype. Ops pass it on to
/// `Tensors::weight` and never look inside, so that a packed format is one more variant here and one
/// more loader in the kernels.
#[derive(Debug, Clone)]
pub struct Weight<'a>(pub(crate) WeightFormat<'a>);

/// How the elements of W are stored.
#[derive(Debug, Clone)]
pub(crate) enum WeightFormat<'a> {
    /// A row-major matrix of the layer's dtype.
    Dense(Read<'a>),
}

impl<'a, R: Into<Read<'a>>> From<R> for Weight<'a> {
    fn from(matrix: R) -> Self {
        Self(WeightFormat::Dense(matrix.into()))
    }
}

/// The frozen linear layer that an adapter changes: W, and b if it has one.
#[derive(Debug, Clone)]
pub struct Base<'a> {
    /// W `[O, I]`.
    pub weight: Weight<'a>,
    /// b `[O]`, of the layer's dtype.
    pub bias: Option<Read<'a>>,
}

impl<'a> Base<'a> {
    /// A layer without a bias.
    pub fn new(weight: impl Into<Weight<'a>>) -> Self {
        Self { weight: weight.into(), bias: None }
    }

    /// The same layer with this bias, if any.
    #[must_use]
    pub fn with_bias(self, bias: Option<impl Into<Read<'a>>>) -> Self {
        Self { bias: bias.map(Into::into), ..self }
    }
}

/// A frozen tensor on the device that layers share, such as a bias.
#[derive(Debug, Clone)]
pub struct SharedTensor(Slice);

#[derive(Debug, Clone)]
enum Slice {
    Bf16(Arc<CudaSlice<bf16>>),
    F16(Arc<CudaSlice<f16>>),
    F32(Arc<CudaSlice<f32>>),
}

impl SharedTensor {
    /// The tensor, to be read.
    pub fn read(&self) -> Read<'_> {
        match &self.0 {
            Slice::Bf16(slice) => slice.as_ref().into(),
            Slice::F16(slice) => slice.as_ref().into(),
            Slice::F32(slice) => slice.as_ref().into(),
        }
    }

    /// The elements as f32, copied to the host.
    pub(crate) fn to_f32(&self, stream: &Arc<CudaStream>) -> Result<Vec<f32>, DriverError> {
        match &self.0 {
            Slice::Bf16(slice) => copy_f32(stream, slice),
            Slice::F16(slice) => copy_f32(stream, slice),
            Slice::F32(slice) => copy_f32(stream, slice),
        }
    }

    /// The dtype of the elements.
    pub const fn dtype(&self) -> Dtype {
        match &self.0 {
            Slice::Bf16(_) => Dtype::Bf16,
            Slice::F16(_) => Dtype::F16,
            Slice::F32(_) => Dtype::F32,
        }
    }
}

fn copy_f32<E: Element>(
    stream: &Arc<CudaStream>,
    slice: &CudaSlice<E>,
) -> Result<Vec<f32>, DriverError> {
    Ok(stream.clone_dtoh(slice)?.into_iter().map(Element::to_f32).collect())
}

impl From<Arc<CudaSlice<bf16>>> for SharedTensor {
    fn from(slice: Arc<CudaSlice<bf16>>) -> Self {
        Self(Slice::Bf16(slice))
    }
}

impl From<Arc<CudaSlice<f16>>> for SharedTensor {
    fn from(slice: Arc<CudaSlice<f16>>) -> Self {
        Self(Slice::F16(slice))
    }
}

impl From<Arc<CudaSlice<f32>>> for SharedTensor {
    fn from(slice: Arc<CudaSlice<f32>>) -> Self {
        Self(Slice::F32(slice))
    }
}

/// A frozen weight W `[O, I]` on the device that layers share: what [`Weight`] borrows.
#[derive(Debug, Clone)]
pub struct SharedWeight(SharedFormat);

#[derive(Debug, Clone)]
enum SharedFormat {
    Dense(SharedTensor),
}

impl SharedWeight {
    /// The weight, to be read.
    pub fn read(&self) -> Weight<'_> {
        let SharedFormat::Dense(matrix) = &self.0;
        matrix.read().into()
    }

    /// The dtype of a layer that has this weight.
    pub const fn dtype(&self) -> Dtype {
        let SharedFormat::Dense(matrix) = &self.0;
        matrix.dtype()
    }
}

impl<T: Into<SharedTensor>> From<T> for SharedWeight {
    fn from(matrix: T) -> Self {
        Self(SharedFormat::Dense(matrix.into()))
    }
}
