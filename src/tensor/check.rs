//! The checks that an op makes of its tensors, one line per tensor.

use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DriverError, SyncOnDrop, result,
};

use super::{ElementType, Elements, Memory, MemoryMut, PackedWeight, Read, Weight, Write};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::params::common::{Packing, Rounding, WeightData};
use crate::quant::{Code4, Fp8Scales, NESTED_BLOCK, WeightFormat};
use crate::spec::{DoraSpec, MAX_DIMENSION};

/// Rows that start at multiples of this many bytes, and are multiples of it long, are moved by
/// 16-byte accesses.
const VECTOR_BYTES: usize = 16;

/// A dimension of a tensor: its name in messages, and its size.
pub(crate) type Dim = (&'static str, usize);

/// The shape `[rows, cols]` of a matrix.
pub(crate) type Shape = [Dim; 2];

/// The shape of a matrix.
pub(crate) const fn matrix(rows: Dim, cols: Dim) -> Shape {
    [rows, cols]
}

/// The shape of a vector: a matrix of one row.
pub(crate) const fn vector(elements: Dim) -> Shape {
    [("1", 1), elements]
}

/// A tensor on the device, checked: where it starts, and how its rows lie.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Placed {
    pub(crate) address: u64,
    /// Elements from the start of a row to the start of the next.
    pub(crate) stride: i32,
    /// Whether every row starts at a 16-byte boundary and is a multiple of 16 bytes long.
    pub(crate) aligned: bool,
    /// Whether every row starts at a multiple of four elements.
    pub(crate) starts_at_quads: bool,
}

impl Placed {
    /// Whether the first element is at a 16-byte boundary.
    pub(crate) const fn starts_aligned(&self) -> bool {
        self.address.is_multiple_of(VECTOR_BYTES as u64)
    }
}

/// W on the device, checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlacedWeight {
    /// As kernels take it.
    pub(crate) data: WeightData,
    /// As of a matrix's rows: see [`Placed`].
    pub(crate) aligned: bool,
    pub(crate) starts_at_quads: bool,
}

impl From<Placed> for PlacedWeight {
    /// A matrix.
    fn from(Placed { address, aligned, starts_at_quads, .. }: Placed) -> Self {
        let data = WeightData { elements: address, ..WeightData::default() };
        Self { data, aligned, starts_at_quads }
    }
}

/// Why a tensor must be given, or must not.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Need {
    /// Given, for this reason.
    Required(&'static str),
    /// Left out, for this reason.
    Excluded(&'static str),
}

/// The tensors of one call. Each method checks one tensor, notes whether its rows are aligned, keeps
/// the guard that orders its use on the stream, and returns its address.
///
/// It lives until the launch is queued.
pub(crate) struct Tensors<'t> {
    /// The kernels'.
    context: &'t CudaContext,
    stream: &'t CudaStream,
    /// The type of x, W, b, y and their gradients.
    element: ElementType,
    guards: Vec<SyncOnDrop<'t>>,
    aligned: bool,
}

impl<'t> Tensors<'t> {
    /// For a call on `stream` of a layer that computes in `dtype`, by kernels of `context`.
    pub(crate) fn new(
        context: &'t CudaContext,
        stream: &'t CudaStream,
        dtype: Dtype,
    ) -> Result<Self> {
        check_context(context, stream)?;
        let guards = Vec::with_capacity(16);
        Ok(Self { context, stream, element: dtype.into(), guards, aligned: true })
    }

    /// Whether all matrices of the layer's dtype that were taken so far have aligned rows.
    pub(crate) fn aligned(&self) -> i32 {
        self.aligned.into()
    }

    /// W, in the shape and the format that the spec says.
    pub(crate) fn weight(&mut self, weight: &'t Weight<'_>, spec: &DoraSpec) -> Result<WeightData> {
        let placed = self.weight_placed(weight, spec)?;
        self.aligned &= placed.aligned;
        Ok(placed.data)
    }

    /// W, for an op that asks less of its alignment. It does not count for
    /// [`aligned`](Self::aligned).
    pub(crate) fn weight_placed(
        &mut self,
        weight: &'t Weight<'_>,
        spec: &DoraSpec,
    ) -> Result<PlacedWeight> {
        let shape = matrix(spec.outputs(), spec.inputs());
        match (&weight.0, spec.weight()) {
            (Elements::Dense(matrix), None) => {
                Ok(self.read_as(self.element, "weight", matrix, shape)?.into())
            }
            (Elements::Packed(packed), Some(format)) if packed.format == format => {
                self.packed_weight(packed, shape)
            }
            (Elements::Dense(_), needed) => Err(Error::weight_format(needed, None)),
            (Elements::Packed(packed), needed) => {
                Err(Error::weight_format(needed, Some(packed.format)))
            }
        }
    }

    /// A packed W: its parts, and what the kernels decode it by.
    fn packed_weight(
        &mut self,
        packed: &'t PackedWeight<'_>,
        [(_, rows), (_, cols)]: Shape,
    ) -> Result<PlacedWeight> {
        let &PackedWeight { format, ref elements, ref scales, ref nested } = packed;
        let shape = [rows, cols];
        let (u8, f32) = (ElementType::U8, ElementType::F32);
        let bytes = vector(("bytes", format.packed_bytes(shape)));
        let elements = self.read_as(u8, "the packed weight", elements, bytes)?;
        let count = format.scales(shape);
        let is_nested = format.is_nested();
        let scales = self.read_as(
            if is_nested { u8 } else { f32 },
            format.scales_name(),
            scales,
            vector(("scales", count)),
        )?;
        let need = match is_nested {
            true => Need::Required("the format has nested scales"),
            false => Need::Excluded("the format has no nested scales"),
        };
        check_given("nested_absmax", nested.is_some(), need)?;
        let mut data = WeightData {
            elements: elements.address,
            scales: scales.address,
            ..WeightData::default()
        };
        if let Some(nested) = nested {
            let outer = vector(("scales", count.div_ceil(NESTED_BLOCK)));
            data.outer_scales = self.read_as(f32, "nested_absmax", &nested.absmax, outer)?.address;
            let map = vector(("codes", 256));
            data.scale_map = self.read_as(f32, "nested_quant_map", &nested.map, map)?.address;
            data.scale_offset = nested.offset;
        }
        // Chunks of 16 bytes of the dtype, each in one block.
        let chunk = VECTOR_BYTES / self.element.bytes();
        let mut in_blocks = true;
        match format {
            WeightFormat::Code4 { code, block, .. } => {
                data.packing = match code {
                    Code4::Nf4 => Packing::Nf4,
                    Code4::Fp4 => Packing::Fp4,
                };
                data.block_shift = block.trailing_zeros() as i32;
            }
            WeightFormat::Int8Rows => data.packing = Packing::Int8,
            WeightFormat::Fp8 { scales } => {
                data.packing = Packing::Fp8;
                let [height, width] = match scales {
                    Fp8Scales::Tensor => [rows, cols],
                    Fp8Scales::Rows => [1, cols],
                    Fp8Scales::Blocks { rows, cols } => [rows.into(), cols.into()],
                };
                (data.scale_rows, data.scale_cols) = (height as i32, width as i32);
                in_blocks = width == cols || width % chunk == 0;
            }
        }
        data.rounding = match format.state() {
            Dtype::Bf16 => Rounding::Bf16,
            Dtype::F16 => Rounding::F16,
            Dtype::F32 => Rounding::None,
        };
        let is_aligned = |elements_of_row: usize| cols % elements_of_row == 0;
        let starts = elements.address.is_multiple_of(VECTOR_BYTES as u64);
        Ok(PlacedWeight {
            data,
            aligned: starts && in_blocks && is_aligned(chunk),
            starts_at_quads: is_aligned(4),
        })
    }

    /// A contiguous matrix of the layer's dtype.
    pub(crate) fn read(
        &mut self,
        tensor: &'static str,
        read: &'t Read<'_>,
        shape: Shape,
    ) -> Result<u64> {
        check_dense(tensor, read.stride, shape)?;
        Ok(self.read_rows(tensor, read, shape)?.address)
    }

    /// A matrix of the layer's dtype whose rows may have a stride.
    pub(crate) fn read_rows(
        &mut self,
        tensor: &'static str,
        read: &'t Read<'_>,
        shape: Shape,
    ) -> Result<Placed> {
        let placed = self.place(tensor, read, self.element, shape)?;
        self.aligned &= placed.aligned;
        Ok(placed)
    }

    /// [`read_rows`](Self::read_rows) of a matrix that may be absent: then address 0.
    pub(crate) fn read_rows_if_given(
        &mut self,
        tensor: &'static str,
        read: &'t Option<Read<'_>>,
        shape: Shape,
    ) -> Result<Placed> {
        match read {
            Some(read) => self.read_rows(tensor, read, shape),
            None => Ok(Placed::default()),
        }
    }

    /// A contiguous vector of the layer's dtype that may be absent: then 0.
    pub(crate) fn read_vector_if_given(
        &mut self,
        tensor: &'static str,
        read: &'t Option<Read<'_>>,
        elements: Dim,
    ) -> Result<u64> {
        let Some(read) = read else { return Ok(0) };
        check_dense(tensor, read.stride, vector(elements))?;
        Ok(self.place(tensor, read, self.element, vector(elements))?.address)
    }

    /// A contiguous tensor of another type than the layer's. It does not count for
    /// [`aligned`](Self::aligned).
    pub(crate) fn read_as(
        &mut self,
        element: ElementType,
        tensor: &'static str,
        read: &'t Read<'_>,
        shape: Shape,
    ) -> Result<Placed> {
        check_dense(tensor, read.stride, shape)?;
        self.place(tensor, read, element, shape)
    }

    /// [`read_as`](Self::read_as) of a tensor that may be absent: then address 0.
    pub(crate) fn read_as_if_given(
        &mut self,
        element: ElementType,
        tensor: &'static str,
        read: &'t Option<Read<'_>>,
        shape: Shape,
    ) -> Result<Placed> {
        match read {
            Some(read) => self.read_as(element, tensor, read, shape),
            None => Ok(Placed::default()),
        }
    }

    /// A counter on the device that seeds are combined with, or 0.
    pub(crate) fn counter_if_given(&mut self, read: &'t Option<Read<'_>>) -> Result<u64> {
        let one = vector(("1", 1));
        Ok(self.read_as_if_given(ElementType::U64, "counter", read, one)?.address)
    }

    /// A contiguous matrix of the layer's dtype.
    pub(crate) fn write(
        &mut self,
        tensor: &'static str,
        write: &'t mut Write<'_>,
        shape: Shape,
    ) -> Result<u64> {
        check_dense(tensor, write.stride, shape)?;
        Ok(self.write_rows(tensor, write, shape)?.address)
    }

    /// A matrix of the layer's dtype whose rows may have a stride.
    pub(crate) fn write_rows(
        &mut self,
        tensor: &'static str,
        write: &'t mut Write<'_>,
        shape: Shape,
    ) -> Result<Placed> {
        let placed = self.place_mut(tensor, write, self.element, shape)?;
        self.aligned &= placed.aligned;
        Ok(placed)
    }

    /// [`write_rows`](Self::write_rows) of a matrix that may be absent: then address 0.
    pub(crate) fn write_rows_if_given(
        &mut self,
        tensor: &'static str,
        write: &'t mut Option<Write<'_>>,
        shape: Shape,
    ) -> Result<Placed> {
        match write {
            Some(write) => self.write_rows(tensor, write, shape),
            None => Ok(Placed::default()),
        }
    }

    /// [`write`](Self::write) of a matrix that may be absent: then 0.
    pub(crate) fn write_if_given(
        &mut self,
        tensor: &'static str,
        write: &'t mut Option<Write<'_>>,
        shape: Shape,
    ) -> Result<u64> {
        match write {
            Some(write) => self.write(tensor, write, shape),
            None => Ok(0),
        }
    }

    /// A contiguous tensor of another type than the layer's. It does not count for
    /// [`aligned`](Self::aligned).
    pub(crate) fn write_as(
        &mut self,
        element: ElementType,
        tensor: &'static str,
        write: &'t mut Write<'_>,
        shape: Shape,
    ) -> Result<Placed> {
        check_dense(tensor, write.stride, shape)?;
        self.place_mut(tensor, write, element, shape)
    }

    /// [`write_as`](Self::write_as) of a tensor that may be absent: then address 0.
    pub(crate) fn write_as_if_given(
        &mut self,
        element: ElementType,
        tensor: &'static str,
        write: &'t mut Option<Write<'_>>,
        shape: Shape,
    ) -> Result<u64> {
        match write {
            Some(write) => Ok(self.write_as(element, tensor, write, shape)?.address),
            None => Ok(0),
        }
    }

    /// Memory of the crate's own, to be read.
    pub(crate) fn own(&mut self, slice: &'t CudaSlice<u8>) -> Result<u64> {
        check_context(self.context, slice.stream())?;
        let (address, guard) = slice.device_ptr(self.stream);
        self.guards.push(guard);
        Ok(address)
    }

    /// Memory of the crate's own, to be written.
    pub(crate) fn own_mut(&mut self, slice: &'t mut CudaSlice<u8>) -> Result<u64> {
        check_context(self.context, slice.stream())?;
        let (address, guard) = slice.device_ptr_mut(self.stream);
        self.guards.push(guard);
        Ok(address)
    }

    /// Sets bytes to zero.
    ///
    /// # Safety
    /// The memory is the context's, and nothing uses it that is not ordered against the stream.
    pub(crate) unsafe fn zero(&self, address: u64, bytes: usize) -> Result<(), DriverError> {
        self.stream.context().bind_to_thread()?;
        // SAFETY: the caller vouches for the memory.
        unsafe { result::memset_d8_async(address, 0, bytes, self.stream.cu_stream()) }
    }

    /// Copies from the host, and waits for the stream.
    ///
    /// # Safety
    /// As for [`zero`](Self::zero), of as many elements.
    pub(crate) unsafe fn upload(&self, values: &[f32], address: u64) -> Result<(), DriverError> {
        self.stream.context().bind_to_thread()?;
        // SAFETY: the caller vouches for the memory; the values live until the copy is done.
        unsafe { result::memcpy_htod_async(address, values, self.stream.cu_stream()) }?;
        self.stream.synchronize()
    }

    /// Copies to the host, and waits for the stream.
    ///
    /// # Safety
    /// As for [`zero`](Self::zero), of as many elements.
    pub(crate) unsafe fn download(
        &self,
        values: &mut [f32],
        address: u64,
    ) -> Result<(), DriverError> {
        self.stream.context().bind_to_thread()?;
        // SAFETY: the caller vouches for the memory; the values live until the copy is done.
        unsafe { result::memcpy_dtoh_async(values, address, self.stream.cu_stream()) }?;
        self.stream.synchronize()
    }

    fn place(
        &mut self,
        tensor: &'static str,
        read: &'t Read<'_>,
        needed: ElementType,
        shape: Shape,
    ) -> Result<Placed> {
        check_element(tensor, read.element(), needed)?;
        let address = match &read.memory {
            Memory::Bf16(view) => self.lend(tensor, view, read.stride, shape)?,
            Memory::F16(view) => self.lend(tensor, view, read.stride, shape)?,
            Memory::F32(view) => self.lend(tensor, view, read.stride, shape)?,
            Memory::F64(view) => self.lend(tensor, view, read.stride, shape)?,
            Memory::U64(view) => self.lend(tensor, view, read.stride, shape)?,
            Memory::U8(view) => self.lend(tensor, view, read.stride, shape)?,
            Memory::Address(address, _) => *address,
        };
        place(tensor, address, needed, read.stride, shape)
    }

    fn place_mut(
        &mut self,
        tensor: &'static str,
        write: &'t mut Write<'_>,
        needed: ElementType,
        shape: Shape,
    ) -> Result<Placed> {
        check_element(tensor, write.element(), needed)?;
        let stride = write.stride;
        let address = match &mut write.memory {
            MemoryMut::Bf16(view) => self.lend_mut(tensor, view, stride, shape)?,
            MemoryMut::F16(view) => self.lend_mut(tensor, view, stride, shape)?,
            MemoryMut::F32(view) => self.lend_mut(tensor, view, stride, shape)?,
            MemoryMut::F64(view) => self.lend_mut(tensor, view, stride, shape)?,
            MemoryMut::U64(view) => self.lend_mut(tensor, view, stride, shape)?,
            MemoryMut::U8(view) => self.lend_mut(tensor, view, stride, shape)?,
            MemoryMut::Address(address, _) => *address,
        };
        place(tensor, address, needed, stride, shape)
    }

    fn lend<T>(
        &mut self,
        tensor: &'static str,
        view: &'t impl DevicePtr<T>,
        stride: Option<usize>,
        shape: Shape,
    ) -> Result<u64> {
        check_context(self.context, view.stream())?;
        check_room(tensor, view.len(), stride, shape)?;
        let (address, guard) = view.device_ptr(self.stream);
        self.guards.push(guard);
        Ok(address)
    }

    fn lend_mut<T>(
        &mut self,
        tensor: &'static str,
        view: &'t mut impl DevicePtrMut<T>,
        stride: Option<usize>,
        shape: Shape,
    ) -> Result<u64> {
        check_context(self.context, view.stream())?;
        check_room(tensor, view.len(), stride, shape)?;
        let (address, guard) = view.device_ptr_mut(self.stream);
        self.guards.push(guard);
        Ok(address)
    }
}

/// Checks that a stream, or the stream of a buffer, is of the kernels' context: an address of
/// another context means nothing there.
pub(crate) fn check_context(context: &CudaContext, stream: &CudaStream) -> Result<()> {
    match stream.context().cu_ctx() == context.cu_ctx() {
        true => Ok(()),
        false => Err(Error::ContextMismatch),
    }
}

/// Checks that a tensor is given if and only if it is needed.
pub(crate) fn check_given(tensor: &'static str, given: bool, need: Need) -> Result<()> {
    match need {
        Need::Required(reason) if !given => Err(Error::MissingTensor { tensor, reason }),
        Need::Excluded(reason) if given => Err(Error::UnexpectedTensor { tensor, reason }),
        _ => Ok(()),
    }
}

/// Checks that a buffer holds exactly the elements of `shape`.
pub(crate) fn check_len(tensor: &'static str, found: usize, shape: Shape) -> Result<()> {
    check_room(tensor, found, None, shape)
}

fn check_element(tensor: &'static str, found: ElementType, needed: ElementType) -> Result<()> {
    if found == needed {
        return Ok(());
    }
    Err(Error::Dtype { tensor, found, needed })
}

/// A tensor that must be contiguous may still have a stride: the length of its rows.
fn check_dense(tensor: &'static str, stride: Option<usize>, [_, cols]: Shape) -> Result<()> {
    match stride {
        Some(stride) if stride != cols.1 => {
            Err(Error::Stride { tensor, stride, cols: cols.1, limit: cols.1 })
        }
        _ => Ok(()),
    }
}

/// Checks a stride of rows of `cols` elements.
pub(super) fn check_stride(tensor: &'static str, stride: usize, cols: usize) -> Result<()> {
    if (cols..=MAX_DIMENSION).contains(&stride) {
        return Ok(());
    }
    Err(Error::Stride { tensor, stride, cols, limit: MAX_DIMENSION })
}

/// Checks that a buffer of `found` elements holds the matrix: exactly, where its rows have no
/// stride, and to the end of the last row at least where they have one.
fn check_room(
    tensor: &'static str,
    found: usize,
    stride: Option<usize>,
    [rows, cols]: Shape,
) -> Result<()> {
    let (expected, fits, apart) = match stride {
        None => {
            let expected = rows.1.saturating_mul(cols.1);
            (expected, found == expected, String::new())
        }
        Some(stride) => {
            check_stride(tensor, stride, cols.1)?;
            let before_last = rows.1.saturating_sub(1).saturating_mul(stride);
            let last = if rows.1 == 0 { 0 } else { cols.1 };
            let expected = before_last.saturating_add(last);
            (expected, found >= expected, format!(", rows {stride} apart,"))
        }
    };
    if fits {
        return Ok(());
    }
    let shape = format!("[{}={}, {}={}]{apart}", rows.0, rows.1, cols.0, cols.1);
    Err(Error::Shape { tensor, shape, expected, found })
}

/// Checks what the numbers show, of a tensor at `address`.
fn place(
    tensor: &'static str,
    address: u64,
    element: ElementType,
    stride: Option<usize>,
    [rows, cols]: Shape,
) -> Result<Placed> {
    let (rows, cols) = (rows.1, cols.1);
    if rows > 0 && cols > 0 && address == 0 {
        return Err(Error::MissingTensor { tensor, reason: "its address is 0" });
    }
    let alignment = element.bytes();
    if !address.is_multiple_of(alignment as u64) {
        return Err(Error::Misaligned { tensor, address, alignment });
    }
    stride.map_or(Ok(()), |stride| check_stride(tensor, stride, cols))?;
    let stride = stride.unwrap_or(cols);
    let is_whole = |len: usize| len.saturating_mul(alignment).is_multiple_of(VECTOR_BYTES);
    Ok(Placed {
        address,
        stride: stride as i32,
        aligned: is_whole(cols) && is_whole(stride) && address.is_multiple_of(VECTOR_BYTES as u64),
        starts_at_quads: stride.is_multiple_of(4) && address.is_multiple_of(4 * alignment as u64),
    })
}
