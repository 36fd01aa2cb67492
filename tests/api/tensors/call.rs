//! The tensors of a call: what an op asked for, what is wrong with one of them, and where they lie.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use fused_dora::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr, ValidAsZeroBits};
use fused_dora::{Base, Dtype, ElementType, Norm, Read, Write};
use half::{bf16, f16};

use super::Mistake;

pub const F32: ElementType = ElementType::F32;
pub const F64: ElementType = ElementType::F64;
pub const U64: ElementType = ElementType::U64;
pub const U8: ElementType = ElementType::U8;

/// The layer that the ops are called for.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub tokens: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub rank: usize,
    pub norm: Norm,
    pub dtype: Dtype,
}

impl Sizes {
    pub fn own(self) -> ElementType {
        self.dtype.into()
    }

    pub fn weight(self) -> Needed {
        Needed::matrix(self.own(), self.outputs, self.inputs)
    }

    pub fn x(self) -> Needed {
        Needed::rows(self.own(), self.tokens, self.inputs)
    }

    pub fn y(self) -> Needed {
        Needed::rows(self.own(), self.tokens, self.outputs)
    }

    pub fn h(self) -> Needed {
        Needed::matrix(self.own(), self.tokens, self.rank.next_multiple_of(16))
    }

    pub fn a(self) -> Needed {
        Needed::matrix(F32, self.rank, self.inputs)
    }

    pub fn b(self) -> Needed {
        Needed::matrix(F32, self.outputs, self.rank)
    }

    pub fn m(self) -> Needed {
        let features = if self.norm == Norm::Input { self.inputs } else { self.outputs };
        Needed::vector(F32, features)
    }

    pub fn bias(self) -> Needed {
        Needed::vector(self.own(), self.outputs)
    }

    pub fn trained_bias(self) -> Needed {
        Needed::vector(F32, self.outputs)
    }

    pub fn merged(self) -> Needed {
        Needed { takes_any_dtype: true, ..self.weight() }
    }
}

/// A tensor as its op needs it.
#[derive(Clone, Copy, Debug)]
pub struct Needed {
    pub element: ElementType,
    pub rows: usize,
    pub cols: usize,
    /// Whether its rows may have a stride.
    pub takes_stride: bool,
    /// Whether any compute type is right.
    pub takes_any_dtype: bool,
}

impl Needed {
    const fn matrix(element: ElementType, rows: usize, cols: usize) -> Self {
        Self { element, rows, cols, takes_stride: false, takes_any_dtype: false }
    }

    pub const fn vector(element: ElementType, len: usize) -> Self {
        Self::matrix(element, 1, len)
    }

    /// x, y or a gradient of theirs.
    const fn rows(element: ElementType, rows: usize, cols: usize) -> Self {
        Self { takes_stride: true, ..Self::matrix(element, rows, cols) }
    }

    pub const fn len(&self) -> usize {
        self.rows * self.cols
    }

    pub fn mistakes(&self) -> Vec<Mistake> {
        use Mistake::{Context, Long, Nowhere, Odd, Short, ShortRows, Stride, Type};
        let mut all = vec![Short, Long, Context, Nowhere];
        // A byte lies anywhere.
        all.extend((self.element.bytes() > 1).then_some(Odd));
        let wrong = |element: &ElementType| match self.takes_any_dtype {
            true => element.dtype().is_none(),
            false => *element != self.element,
        };
        let elements = [ElementType::Bf16, ElementType::F16, F32, F64, U64];
        all.extend(elements.into_iter().filter(wrong).map(Type));
        match self.takes_stride {
            true => all.extend([ShortRows, Stride(self.cols - 1), Stride((1 << 30) + 1)]),
            false => all.extend([Stride(self.cols + 1), Stride(2 * self.cols)]),
        }
        all
    }
}

/// Where a tensor lies: elements before it, from a multiple of 256 bytes on, and between its rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    pub offset: usize,
    pub gap: usize,
}

/// The tensors of one call. One may be wrong, and one may lie elsewhere than the others.
pub struct Tensors<'d> {
    pub sizes: Sizes,
    stream: &'d Arc<CudaStream>,
    foreign: &'d Arc<CudaStream>,
    pub mistake: Option<(&'static str, Mistake)>,
    place: Option<(&'static str, Place)>,
    /// Whether tensors hold numbers: otherwise all their bits are ones.
    has_numbers: bool,
    /// What the op asked for.
    pub asked: BTreeMap<&'static str, Needed>,
    blocks: BTreeMap<&'static str, CudaSlice<u8>>,
}

impl<'d> Tensors<'d> {
    /// All bits are ones.
    pub fn new(sizes: Sizes, stream: &'d Arc<CudaStream>, foreign: &'d Arc<CudaStream>) -> Self {
        let (mistake, place, has_numbers) = (None, None, false);
        let (asked, blocks) = (BTreeMap::new(), BTreeMap::new());
        Self { sizes, stream, foreign, mistake, place, has_numbers, asked, blocks }
    }

    /// With the same numbers in each tensor at each call, and one tensor at another place.
    pub fn with_numbers(self, place: Option<(&'static str, Place)>) -> Self {
        Self { place, has_numbers: true, ..self }
    }

    fn place_of(&self, tensor: &str) -> Place {
        let place = self.place.filter(|(name, _)| *name == tensor);
        place.map(|(_, place)| place).unwrap_or_default()
    }

    /// The mistake in this tensor, if it is the one, and the address of its first element.
    fn ask(&mut self, tensor: &'static str, needed: Needed) -> (Option<Mistake>, u64) {
        self.asked.insert(tensor, needed);
        let (place, stream) = (self.place_of(tensor), self.stream);
        let has_numbers = self.has_numbers;
        let block = self.blocks.entry(tensor).or_insert_with(|| {
            let mut bytes = vec![UNTOUCHED; needed.end(place) + MARGIN];
            if has_numbers {
                for (row, start) in needed.row_starts(place).enumerate() {
                    let numbers = (0..needed.cols).map(|col| number(tensor, row, col));
                    let row = numbers.flat_map(|number| encoded(needed.element, number));
                    bytes.splice(start..start + needed.row_bytes(), row);
                }
            }
            stream.clone_htod(&bytes).expect("memory")
        });
        let mistake = self.mistake.filter(|(name, _)| *name == tensor).map(|(_, mistake)| mistake);
        (mistake, block.device_ptr(stream).0 + (place.offset * needed.element.bytes()) as u64)
    }

    /// The bytes of each tensor; what lies around a tensor and between its rows must be as it was.
    pub fn contents(&self) -> BTreeMap<&'static str, Vec<u8>> {
        let contents = |(&tensor, block): (&&'static str, &CudaSlice<u8>)| {
            let (needed, place) = (self.asked[tensor], self.place_of(tensor));
            let mut bytes = self.stream.clone_dtoh(block).expect("a copy");
            let mut rows = Vec::new();
            for start in needed.row_starts(place) {
                let row = &mut bytes[start..start + needed.row_bytes()];
                rows.extend_from_slice(row);
                row.fill(UNTOUCHED);
            }
            assert!(bytes.iter().all(|&byte| byte == UNTOUCHED), "written to around {tensor}");
            (tensor, rows)
        };
        self.blocks.iter().map(contents).collect()
    }

    pub fn read(&mut self, tensor: &'static str, needed: Needed) -> Read<'static> {
        let (mistake, address) = self.ask(tensor, needed);
        let place = self.place_of(tensor);
        let (element, len) = (needed.element, needed.len());
        // SAFETY: the memory has the tensor's length, and lives until the stream has been waited
        // for. With a mistake nothing is launched, as the test finds out.
        let at = |address, element| unsafe { Read::from_address(address, element) };
        match mistake {
            None if place.gap > 0 => at(address, element).with_row_stride(needed.cols + place.gap),
            None => at(address, element),
            Some(Mistake::Short) => typed(self.stream, element, len - 1).into_read(),
            Some(Mistake::Long) => typed(self.stream, element, len + 1).into_read(),
            Some(Mistake::ShortRows) => {
                let (len, stride) = short_rows(needed);
                typed(self.stream, element, len).into_read().with_row_stride(stride)
            }
            Some(Mistake::Type(element)) => at(address, element),
            Some(Mistake::Context) => self.foreign(element, len).into_read(),
            Some(Mistake::Odd) => at(address + 1, element),
            Some(Mistake::Nowhere) => at(0, element),
            Some(Mistake::Stride(stride)) => at(address, element).with_row_stride(stride),
        }
    }

    pub fn write(&mut self, tensor: &'static str, needed: Needed) -> Write<'static> {
        let (mistake, address) = self.ask(tensor, needed);
        let place = self.place_of(tensor);
        let (element, len) = (needed.element, needed.len());
        // SAFETY: as of `read`; no other tensor of the call has the memory.
        let at = |address, element| unsafe { Write::from_address(address, element) };
        match mistake {
            None if place.gap > 0 => at(address, element).with_row_stride(needed.cols + place.gap),
            None => at(address, element),
            Some(Mistake::Short) => typed(self.stream, element, len - 1).into_write(),
            Some(Mistake::Long) => typed(self.stream, element, len + 1).into_write(),
            Some(Mistake::ShortRows) => {
                let (len, stride) = short_rows(needed);
                typed(self.stream, element, len).into_write().with_row_stride(stride)
            }
            Some(Mistake::Type(element)) => at(address, element),
            Some(Mistake::Context) => self.foreign(element, len).into_write(),
            Some(Mistake::Odd) => at(address + 1, element),
            Some(Mistake::Nowhere) => at(0, element),
            Some(Mistake::Stride(stride)) => at(address, element).with_row_stride(stride),
        }
    }

    /// A slice of another context. The kernels' is current afterwards: what a call frees is its.
    fn foreign(&self, element: ElementType, len: usize) -> Typed {
        let slice = typed(self.foreign, element, len);
        self.stream.context().bind_to_thread().expect("the first context");
        slice
    }

    pub fn base(&mut self) -> Base<'static> {
        let (weight, bias) = (self.sizes.weight(), self.sizes.bias());
        Base::new(self.read("weight", weight)).with_bias(Some(self.read("bias", bias)))
    }

    /// Whether any byte is not as it was made, of tensors that hold no numbers.
    pub fn was_written(&self) -> bool {
        self.contents().values().flatten().any(|&byte| byte != UNTOUCHED)
    }
}

/// A byte of memory that no op has written to: of NaN, in every type.
const UNTOUCHED: u8 = 0xff;

/// Bytes behind each tensor.
const MARGIN: usize = 32;

impl Needed {
    fn row_bytes(&self) -> usize {
        self.cols * self.element.bytes()
    }

    /// The first byte of each row.
    fn row_starts(&self, place: Place) -> impl Iterator<Item = usize> {
        let (bytes, cols) = (self.element.bytes(), self.cols);
        (0..self.rows).map(move |row| (place.offset + row * (cols + place.gap)) * bytes)
    }

    /// The byte behind the last row.
    fn end(&self, place: Place) -> usize {
        self.row_starts(place).last().map_or(0, |start| start + self.row_bytes())
    }
}

/// An element between 0.5 and 1.5.
fn number(tensor: &str, row: usize, col: usize) -> f32 {
    let mut hasher = DefaultHasher::new();
    (tensor, row, col).hash(&mut hasher);
    0.5 + (hasher.finish() >> 40) as f32 / (1u32 << 24) as f32
}

fn encoded(element: ElementType, number: f32) -> Vec<u8> {
    match element {
        ElementType::Bf16 => bf16::from_f32(number).to_le_bytes().to_vec(),
        ElementType::F16 => f16::from_f32(number).to_le_bytes().to_vec(),
        ElementType::F32 => number.to_le_bytes().to_vec(),
        ElementType::F64 => f64::from(number).to_le_bytes().to_vec(),
        ElementType::U64 => u64::from(number.to_bits()).to_le_bytes().to_vec(),
        ElementType::U8 => vec![(number * 100.0) as u8],
    }
}

/// Elements of rows with a stride that end one element too late, and the stride.
const fn short_rows(needed: Needed) -> (usize, usize) {
    let stride = needed.cols + 3;
    ((needed.rows - 1) * stride + needed.cols - 1, stride)
}

/// A slice of one type, lent as long as the process lives.
pub enum Typed {
    Bf16(&'static mut CudaSlice<bf16>),
    F16(&'static mut CudaSlice<f16>),
    F32(&'static mut CudaSlice<f32>),
    F64(&'static mut CudaSlice<f64>),
    U64(&'static mut CudaSlice<u64>),
    U8(&'static mut CudaSlice<u8>),
}

pub fn typed(stream: &Arc<CudaStream>, element: ElementType, len: usize) -> Typed {
    fn zeros<T: DeviceRepr + ValidAsZeroBits>(
        stream: &Arc<CudaStream>,
        len: usize,
    ) -> &'static mut CudaSlice<T> {
        Box::leak(Box::new(stream.alloc_zeros(len).expect("memory")))
    }
    match element {
        ElementType::Bf16 => Typed::Bf16(zeros(stream, len)),
        ElementType::F16 => Typed::F16(zeros(stream, len)),
        ElementType::F32 => Typed::F32(zeros(stream, len)),
        ElementType::F64 => Typed::F64(zeros(stream, len)),
        ElementType::U64 => Typed::U64(zeros(stream, len)),
        ElementType::U8 => Typed::U8(zeros(stream, len)),
    }
}

impl Typed {
    pub fn into_read(self) -> Read<'static> {
        match self {
            Self::Bf16(slice) => (&*slice).into(),
            Self::F16(slice) => (&*slice).into(),
            Self::F32(slice) => (&*slice).into(),
            Self::F64(slice) => (&*slice).into(),
            Self::U64(slice) => (&*slice).into(),
            Self::U8(slice) => (&*slice).into(),
        }
    }

    pub fn into_write(self) -> Write<'static> {
        match self {
            Self::Bf16(slice) => slice.into(),
            Self::F16(slice) => slice.into(),
            Self::F32(slice) => slice.into(),
            Self::F64(slice) => slice.into(),
            Self::U64(slice) => slice.into(),
            Self::U8(slice) => slice.into(),
        }
    }
}
