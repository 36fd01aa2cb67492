//! Between candle's tensors and the kernels' buffers.

use std::ops::Range;
use std::sync::Arc;

#[cfg(feature = "cuda")]
use candle_core::StorageRef;
use candle_core::backend::BackendStorage;
#[cfg(feature = "cuda")]
use candle_core::cuda::{CudaDevice, CudaStorage, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Device, Error, Layout, Result, Shape, Storage, Tensor};
#[cfg(feature = "cuda")]
use fused_dora::cudarc::driver::CudaView;
use fused_dora::cudarc::driver::{CudaSlice, CudaStream, DeviceRepr};
use fused_dora::{Dtype, Read, Write};
use half::{bf16, f16};

use crate::error::{OrCandle, out_of_reach, unsupported};

/// The kernels' name for candle's dtype.
pub(crate) fn kernel_dtype(dtype: DType) -> Result<Dtype> {
    match dtype {
        DType::BF16 => Ok(Dtype::Bf16),
        DType::F16 => Ok(Dtype::F16),
        DType::F32 => Ok(Dtype::F32),
        other => Err(unsupported(other)),
    }
}

/// Elements of a dtype in memory of their own on the kernels' device. The memory has room for one
/// element at least.
#[derive(Debug)]
pub(crate) struct Buffer {
    elements: Elements,
    len: usize,
}

#[derive(Debug)]
enum Elements {
    Bf16(CudaSlice<bf16>),
    F16(CudaSlice<f16>),
    F32(CudaSlice<f32>),
}

impl Buffer {
    /// Memory for `len` elements, which may be none.
    pub(crate) fn uninitialised(
        stream: &Arc<CudaStream>,
        dtype: Dtype,
        len: usize,
    ) -> Result<Self> {
        let elements = match dtype {
            Dtype::Bf16 => Elements::Bf16(allocate(stream, len)?),
            Dtype::F16 => Elements::F16(allocate(stream, len)?),
            Dtype::F32 => Elements::F32(allocate(stream, len)?),
        };
        Ok(Self { elements, len })
    }

    /// The first `len` elements of `slice`.
    pub(crate) const fn of_f32(slice: CudaSlice<f32>, len: usize) -> Self {
        Self { elements: Elements::F32(slice), len }
    }

    /// A copy of a contiguous tensor of the CPU.
    pub(crate) fn upload(
        stream: &Arc<CudaStream>,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> Result<Self> {
        let range = contiguous(layout)?;
        let len = range.len();
        let elements = match storage {
            CpuStorage::BF16(values) => Elements::Bf16(copy(stream, &values[range])?),
            CpuStorage::F16(values) => Elements::F16(copy(stream, &values[range])?),
            CpuStorage::F32(values) => Elements::F32(copy(stream, &values[range])?),
            other => return Err(unsupported(other.dtype())),
        };
        Ok(Self { elements, len })
    }

    /// The elements, for an op that reads them.
    pub(crate) fn read(&self) -> Read<'_> {
        match &self.elements {
            Elements::Bf16(slice) => slice.slice(..self.len).into(),
            Elements::F16(slice) => slice.slice(..self.len).into(),
            Elements::F32(slice) => slice.slice(..self.len).into(),
        }
    }

    /// The elements, for an op that writes them.
    pub(crate) fn write(&mut self) -> Write<'_> {
        match &mut self.elements {
            Elements::Bf16(slice) => slice.slice_mut(..self.len).into(),
            Elements::F16(slice) => slice.slice_mut(..self.len).into(),
            Elements::F32(slice) => slice.slice_mut(..self.len).into(),
        }
    }

    /// The elements as a storage of the CPU.
    pub(crate) fn into_cpu(self, stream: &Arc<CudaStream>) -> Result<CpuStorage> {
        Ok(match &self.elements {
            Elements::Bf16(slice) => CpuStorage::BF16(download(stream, slice, self.len)?),
            Elements::F16(slice) => CpuStorage::F16(download(stream, slice, self.len)?),
            Elements::F32(slice) => CpuStorage::F32(download(stream, slice, self.len)?),
        })
    }

    /// The elements as a storage of candle's CUDA device.
    #[cfg(feature = "cuda")]
    pub(crate) fn into_cuda(self, device: &CudaDevice) -> CudaStorage {
        let device = device.clone();
        match self.elements {
            Elements::Bf16(slice) => CudaStorage::wrap_cuda_slice(slice, device),
            Elements::F16(slice) => CudaStorage::wrap_cuda_slice(slice, device),
            Elements::F32(slice) => CudaStorage::wrap_cuda_slice(slice, device),
        }
    }

    /// The elements as a tensor on `device`, without a graph.
    pub(crate) fn into_tensor(
        self,
        stream: &Arc<CudaStream>,
        device: &Device,
        shape: &Shape,
    ) -> Result<Tensor> {
        let storage = match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Storage::Cuda(self.into_cuda(device)),
            _ => Storage::Cpu(self.into_cpu(stream)?),
        };
        Ok(Tensor::from_storage(storage, shape.clone(), BackpropOp::none(), false))
    }
}

/// A contiguous candle tensor, on the kernels' device.
#[derive(Debug)]
pub(crate) enum Lent<'a> {
    /// A copy, made for this.
    Copied(Buffer),
    /// Elements that are on the device already.
    Viewed(Read<'a>),
    /// Elements of a storage of candle's CUDA device.
    #[cfg(feature = "cuda")]
    Locked(StorageRef<'a>, Range<usize>),
}

impl<'a> Lent<'a> {
    /// A tensor's elements.
    pub(crate) fn new(stream: &Arc<CudaStream>, tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Buffer::upload(stream, storage, layout).map(Self::Copied),
            #[cfg(feature = "cuda")]
            Storage::Cuda(on_device) => {
                check_stream(stream, on_device)?;
                let range = contiguous(layout)?;
                Ok(Self::Locked(storage, range))
            }
            other => Err(out_of_reach(&other.device())),
        }
    }

    /// The elements of a tensor of candle's CUDA device.
    #[cfg(feature = "cuda")]
    pub(crate) fn borrowed(
        stream: &Arc<CudaStream>,
        storage: &'a CudaStorage,
        layout: &Layout,
    ) -> Result<Self> {
        check_stream(stream, storage)?;
        read_of(storage, contiguous(layout)?).map(Self::Viewed)
    }

    /// The elements, for an op that reads them.
    pub(crate) fn read(&self) -> Result<Read<'_>> {
        match self {
            Self::Copied(buffer) => Ok(buffer.read()),
            Self::Viewed(read) => Ok(read.clone()),
            #[cfg(feature = "cuda")]
            Self::Locked(storage, range) => match &**storage {
                Storage::Cuda(storage) => read_of(storage, range.clone()),
                other => Err(out_of_reach(&other.device())),
            },
        }
    }
}

/// A frozen tensor: of the CPU, as a copy on the kernels' device; otherwise where it is.
#[derive(Debug)]
pub(crate) enum Constant {
    Copied(Buffer),
    Shared(Tensor),
}

impl Constant {
    pub(crate) fn new(stream: &Arc<CudaStream>, tensor: &Tensor) -> Result<Self> {
        // Frozen: its graph, if it has one, is not kept.
        let tensor = tensor.detach().contiguous()?;
        let copy = match Lent::new(stream, &tensor)? {
            Lent::Copied(copy) => Some(copy),
            _ => None,
        };
        Ok(copy.map_or(Self::Shared(tensor), Self::Copied))
    }

    pub(crate) fn lend(&self, stream: &Arc<CudaStream>) -> Result<Lent<'_>> {
        match self {
            Self::Copied(copy) => Ok(Lent::Viewed(copy.read())),
            Self::Shared(tensor) => Lent::new(stream, tensor),
        }
    }
}

/// A copy of a tensor of f32, which later changes of the tensor leave alone. It has room for one
/// element at least.
pub(crate) fn copy_of_f32(stream: &Arc<CudaStream>, tensor: &Tensor) -> Result<CudaSlice<f32>> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let range = contiguous(layout)?;
    match &*storage {
        Storage::Cpu(storage) => copy(stream, &storage.as_slice::<f32>()?[range]),
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) if range.is_empty() => {
            check_stream(stream, storage)?;
            allocate(stream, 0)
        }
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => {
            check_stream(stream, storage)?;
            stream.clone_dtod(&view_of(storage.as_cuda_slice()?, range)?).or_candle()
        }
        other => Err(out_of_reach(&other.device())),
    }
}

/// Checks that what candle does with a storage is ordered against what the kernels do.
#[cfg(feature = "cuda")]
fn check_stream(stream: &CudaStream, storage: &CudaStorage) -> Result<()> {
    let its = storage.device.cuda_stream();
    let same_context = its.context().cu_ctx() == stream.context().cu_ctx();
    if same_context && its.cu_stream() == stream.cu_stream() {
        return Ok(());
    }
    let (own, other) = (stream.context().ordinal(), its.context().ordinal());
    Err(Error::msg(format!(
        "a tensor on CUDA device {other} is of another stream than that of this Runtime, which runs \
         on CUDA device {own}: make the Runtime with the tensors' own device"
    )))
}

#[cfg(feature = "cuda")]
fn read_of(storage: &CudaStorage, range: Range<usize>) -> Result<Read<'_>> {
    match &storage.slice {
        CudaStorageSlice::BF16(slice) => view_of(slice, range).map(Into::into),
        CudaStorageSlice::F16(slice) => view_of(slice, range).map(Into::into),
        CudaStorageSlice::F32(slice) => view_of(slice, range).map(Into::into),
        _ => Err(unsupported(storage.dtype())),
    }
}

#[cfg(feature = "cuda")]
fn view_of<E>(slice: &CudaSlice<E>, range: Range<usize>) -> Result<CudaView<'_, E>> {
    let found = slice.len();
    slice.try_slice(range.clone()).ok_or_else(|| {
        Error::msg(format!("elements {range:?} of a storage that holds {found} elements"))
    })
}

fn contiguous(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => Err(Error::RequiresContiguous { op: "fused-dora" }.bt()),
    }
}

fn allocate<E: DeviceRepr>(stream: &Arc<CudaStream>, len: usize) -> Result<CudaSlice<E>> {
    // SAFETY: a copy or a kernel writes all elements before anything reads them.
    unsafe { stream.alloc(len.max(1)) }.or_candle()
}

fn copy<E: DeviceRepr>(stream: &Arc<CudaStream>, values: &[E]) -> Result<CudaSlice<E>> {
    let mut copy = allocate(stream, values.len())?;
    if !values.is_empty() {
        stream.memcpy_htod(values, &mut copy).or_candle()?;
    }
    Ok(copy)
}

fn download<E: DeviceRepr + Default + Clone>(
    stream: &Arc<CudaStream>,
    slice: &CudaSlice<E>,
    len: usize,
) -> Result<Vec<E>> {
    match len {
        0 => Ok(Vec::new()),
        len => stream.clone_dtoh(&slice.slice(..len)).or_candle(),
    }
}
