//! What W is, borrowed for a call or shared by layers, and the frozen layer that an adapter changes.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DriverError};
use half::{bf16, f16};

use super::{Element, Read};
use crate::dtype::Dtype;
use crate::error::{During, Result};
use crate::quant::{QuantizedWeight, Scales, WeightFormat};

/// The frozen weight W `[O, I]`, as an op reads it.
///
/// A row-major matrix of the layer's dtype, or a packed one for a spec
/// [`with_weight`](crate::DoraSpec::with_weight). Ops pass it on to `Tensors::weight` and never look
/// inside.
#[derive(Debug, Clone)]
pub struct Weight<'a>(pub(crate) Elements<'a>);

/// How the elements of W are stored.
#[derive(Debug, Clone)]
pub(crate) enum Elements<'a> {
    /// A row-major matrix of the layer's dtype.
    Dense(Read<'a>),
    Packed(Box<PackedWeight<'a>>),
}

/// A packed W `[O, I]` as its checkpoint has it. Kernels decode it where they read it.
#[derive(Debug, Clone)]
pub struct PackedWeight<'a> {
    /// The format, which the spec says, too.
    pub format: WeightFormat,
    /// The packed elements, u8: [`WeightFormat::packed_bytes`] of them.
    pub elements: Read<'a>,
    /// The scales: [`WeightFormat::scales`] numbers, f32; with nested scales u8.
    pub scales: Read<'a>,
    /// What nested scales are made of.
    pub nested: Option<NestedScales<'a>>,
}

/// What makes scales of the bytes of [`BlockScales::Nested`](crate::quant::BlockScales::Nested).
#[derive(Debug, Clone)]
pub struct NestedScales<'a> {
    /// `nested_absmax`, f32: one per 256 blocks.
    pub absmax: Read<'a>,
    /// `nested_quant_map`, f32 `[256]`.
    pub map: Read<'a>,
    /// `nested_offset`.
    pub offset: f32,
}

impl<'a, R: Into<Read<'a>>> From<R> for Weight<'a> {
    fn from(matrix: R) -> Self {
        Self(Elements::Dense(matrix.into()))
    }
}

impl<'a> From<PackedWeight<'a>> for Weight<'a> {
    fn from(packed: PackedWeight<'a>) -> Self {
        Self(Elements::Packed(Box::new(packed)))
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
    Packed(Arc<SharedPacked>),
}

/// A packed weight, and the dtype of the layers that have it.
#[derive(Debug)]
struct SharedPacked {
    dtype: Dtype,
    format: WeightFormat,
    elements: CudaSlice<u8>,
    scales: SharedScales,
}

#[derive(Debug)]
enum SharedScales {
    F32(CudaSlice<f32>),
    Nested { codes: CudaSlice<u8>, absmax: CudaSlice<f32>, map: CudaSlice<f32>, offset: f32 },
}

impl SharedWeight {
    /// A packed weight, copied to the device as it is, for layers that compute in `dtype`.
    ///
    /// # Errors
    /// The driver's, e.g. out of memory.
    pub fn packed(
        stream: &Arc<CudaStream>,
        dtype: Dtype,
        weight: &QuantizedWeight<'_>,
    ) -> Result<Self> {
        let during = "copying a packed weight to the device";
        let scales = match weight.scales() {
            Scales::F32(scales) => SharedScales::F32(stream.clone_htod(&**scales).during(during)?),
            Scales::Nested { codes, absmax, map, offset } => SharedScales::Nested {
                codes: stream.clone_htod(&**codes).during(during)?,
                absmax: stream.clone_htod(&**absmax).during(during)?,
                map: stream.clone_htod(&**map).during(during)?,
                offset: *offset,
            },
        };
        let elements = stream.clone_htod(weight.packed()).during(during)?;
        let packed = SharedPacked { dtype, format: weight.format(), elements, scales };
        Ok(Self(SharedFormat::Packed(Arc::new(packed))))
    }

    /// The weight, to be read.
    pub fn read(&self) -> Weight<'_> {
        let packed = match &self.0 {
            SharedFormat::Dense(matrix) => return matrix.read().into(),
            SharedFormat::Packed(packed) => packed,
        };
        let (scales, nested) = match &packed.scales {
            SharedScales::F32(scales) => (scales.into(), None),
            SharedScales::Nested { codes, absmax, map, offset } => {
                let (absmax, map) = (absmax.into(), map.into());
                (codes.into(), Some(NestedScales { absmax, map, offset: *offset }))
            }
        };
        let elements = (&packed.elements).into();
        PackedWeight { format: packed.format, elements, scales, nested }.into()
    }

    /// The dtype of a layer that has this weight.
    pub fn dtype(&self) -> Dtype {
        match &self.0 {
            SharedFormat::Dense(matrix) => matrix.dtype(),
            SharedFormat::Packed(packed) => packed.dtype,
        }
    }

    /// How it is packed; `None` for a dense weight.
    pub fn format(&self) -> Option<WeightFormat> {
        match &self.0 {
            SharedFormat::Dense(_) => None,
            SharedFormat::Packed(packed) => Some(packed.format),
        }
    }
}

impl<T: Into<SharedTensor>> From<T> for SharedWeight {
    fn from(matrix: T) -> Self {
        Self(SharedFormat::Dense(matrix.into()))
    }
}
