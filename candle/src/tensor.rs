//! Between candle's tensors and the kernels' buffers.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

#[cfg(feature = "cuda")]
use candle_core::StorageRef;
#[cfg(feature = "cuda")]
use candle_core::cuda::{CudaDType, CudaStorage};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, Device, Error, Layout, Result, Shape, Storage, Tensor, WithDType};
use fused_dora::cudarc::driver::{CudaSlice, CudaStream, CudaView, DeviceRepr};

use crate::error::{OrCandle, out_of_reach};

/// An element that both candle and the kernels know.
#[cfg(not(feature = "cuda"))]
pub(crate) trait Element: WithDType + Debug + fused_dora::Element {}
#[cfg(not(feature = "cuda"))]
impl<E: WithDType + Debug + fused_dora::Element> Element for E {}

/// An element that both candle and the kernels know.
#[cfg(feature = "cuda")]
pub(crate) trait Element: WithDType + Debug + fused_dora::Element + CudaDType {}
#[cfg(feature = "cuda")]
impl<E: WithDType + Debug + fused_dora::Element + CudaDType> Element for E {}

/// The elements of a contiguous candle tensor, on the kernels' device.
#[derive(Debug)]
pub(crate) enum Lent<'a, E> {
    /// A copy, made for this, and how many elements of it there are.
    Copied(CudaSlice<E>, usize),
    /// Elements that are on the device already.
    Viewed(CudaView<'a, E>),
    /// Elements of a storage of candle's CUDA device.
    #[cfg(feature = "cuda")]
    Locked(StorageRef<'a>, Range<usize>),
}

impl<'a, E: Element> Lent<'a, E> {
    /// A tensor's elements.
    pub(crate) fn new(stream: &Arc<CudaStream>, tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Self::copied(stream, storage, layout),
            #[cfg(feature = "cuda")]
            Storage::Cuda(on_device) => {
                check_stream(stream, on_device)?;
                Ok(Self::Locked(storage, contiguous(layout)?))
            }
            other => Err(out_of_reach(&other.device())),
        }
    }

    /// The elements of a tensor of the CPU.
    pub(crate) fn copied(
        stream: &Arc<CudaStream>,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> Result<Self> {
        let values = &storage.as_slice::<E>()?[contiguous(layout)?];
        let mut copy = uninitialised(stream, values.len())?;
        if !values.is_empty() {
            stream.memcpy_htod(values, &mut copy).or_candle()?;
        }
        Ok(Self::Copied(copy, values.len()))
    }

    /// The elements of a tensor of candle's CUDA device.
    #[cfg(feature = "cuda")]
    pub(crate) fn borrowed(
        stream: &Arc<CudaStream>,
        storage: &'a CudaStorage,
        layout: &Layout,
    ) -> Result<Self> {
        check_stream(stream, storage)?;
        Ok(Self::Viewed(view_of(storage, &contiguous(layout)?)?))
    }

    /// The elements, as the kernels take them.
    pub(crate) fn view(&self) -> Result<CudaView<'_, E>> {
        match self {
            Self::Copied(copy, len) => Ok(copy.slice(..*len)),
            Self::Viewed(view) => Ok(view.slice(..)),
            #[cfg(feature = "cuda")]
            Self::Locked(storage, range) => match &**storage {
                Storage::Cuda(storage) => view_of(storage, range),
                other => Err(out_of_reach(&other.device())),
            },
        }
    }

    /// The elements in memory of their own, which later changes of the tensor leave alone.
    pub(crate) fn into_copy(self, stream: &Arc<CudaStream>) -> Result<CudaSlice<E>> {
        match self {
            Self::Copied(copy, _) => Ok(copy),
            other => stream.clone_dtod(&other.view()?).or_candle(),
        }
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
fn view_of<'a, E: Element>(
    storage: &'a CudaStorage,
    range: &Range<usize>,
) -> Result<CudaView<'a, E>> {
    let slice = storage.as_cuda_slice::<E>()?;
    let found = slice.len();
    slice.try_slice(range.clone()).ok_or_else(|| {
        Error::msg(format!("elements {range:?} of a storage that holds {found} elements"))
    })
}

/// A frozen tensor: of the CPU, as a copy on the kernels' device; otherwise where it is.
#[derive(Debug)]
pub(crate) enum Constant<E> {
    Copied(CudaSlice<E>),
    Shared(Tensor),
}

impl<E: Element> Constant<E> {
    pub(crate) fn new(stream: &Arc<CudaStream>, tensor: &Tensor) -> Result<Self> {
        // Frozen: its graph, if it has one, is not kept.
        let tensor = tensor.detach().contiguous()?;
        let copy = match Lent::new(stream, &tensor)? {
            Lent::Copied(copy, _) => Some(copy),
            _ => None,
        };
        Ok(copy.map_or(Self::Shared(tensor), Self::Copied))
    }

    pub(crate) fn lend(&self, stream: &Arc<CudaStream>) -> Result<Lent<'_, E>> {
        match self {
            Self::Copied(copy) => Ok(Lent::Viewed(copy.as_view())),
            Self::Shared(tensor) => Lent::new(stream, tensor),
        }
    }
}

fn contiguous(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => Err(Error::RequiresContiguous { op: "fused-dora" }.bt()),
    }
}

/// Memory for a tensor of `len` elements, which may be none.
pub(crate) fn uninitialised<E: DeviceRepr>(
    stream: &Arc<CudaStream>,
    len: usize,
) -> Result<CudaSlice<E>> {
    // SAFETY: a copy or a kernel writes all of it before anything reads it.
    unsafe { stream.alloc(len.max(1)) }.or_candle()
}

/// The elements of `buffer` that `shape` has as a tensor on `device`, without a graph.
pub(crate) fn into_tensor<E: Element>(
    stream: &Arc<CudaStream>,
    device: &Device,
    buffer: CudaSlice<E>,
    shape: &Shape,
) -> Result<Tensor> {
    let storage = match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Storage::Cuda(CudaStorage::wrap_cuda_slice(buffer, device.clone())),
        _ => Storage::Cpu(downloaded(stream, &buffer, shape.elem_count())?),
    };
    Ok(Tensor::from_storage(storage, shape.clone(), BackpropOp::none(), false))
}

/// The first `len` elements of `buffer` on the CPU.
pub(crate) fn downloaded<E: Element>(
    stream: &Arc<CudaStream>,
    buffer: &CudaSlice<E>,
    len: usize,
) -> Result<CpuStorage> {
    let values = match len {
        0 => Vec::new(),
        len => stream.clone_dtoh(&buffer.slice(..len)).or_candle()?,
    };
    Ok(E::to_cpu_storage_owned(values))
}
