//! `quantize` and `dequantize` compared with the host's, bit by bit.

use std::sync::Arc;

use fused_dora::cudarc::driver::{CudaSlice, CudaStream, DeviceRepr};
use fused_dora::quant::{NESTED_BLOCK, QuantizedWeight, Scales, WeightFormat, dynamic_map};
use fused_dora::{
    Dequantize, DoraLinear, DoraSpec, Element, Kernels, NestedOffset, NestedScales, NestedTarget,
    PackedWeight, Quantize, Result, Workspace,
};

use crate::trials::Outcome;

/// A tensor that begins `offset` elements into its allocation.
struct Shifted<T> {
    slice: CudaSlice<T>,
    offset: usize,
}

impl<T: DeviceRepr + Copy> Shifted<T> {
    fn new(stream: &Arc<CudaStream>, values: &[T], offset: usize) -> Self {
        let first = *values.first().expect("an element");
        let padded = [&vec![first; offset][..], values].concat();
        Self { slice: stream.clone_htod(&padded).expect("memory"), offset }
    }
}

macro_rules! read {
    ($tensor:expr) => {
        $tensor.slice.slice($tensor.offset..).into()
    };
}

macro_rules! write {
    ($tensor:expr) => {
        $tensor.slice.slice_mut($tensor.offset..).into()
    };
}

/// The ops on one device, with every tensor some elements into its allocation.
pub struct Packer<'a> {
    kernels: &'a Kernels,
    stream: Arc<CudaStream>,
    offset: usize,
}

impl<'a> Packer<'a> {
    pub fn new(kernels: &'a Kernels, offset: usize) -> Self {
        Self { kernels, stream: kernels.context().default_stream(), offset }
    }

    fn spec<E: Element>(shape: [usize; 2], format: WeightFormat) -> Result<DoraSpec> {
        DoraLinear::base_spec(shape[1], shape[0], E::DTYPE)?.with_weight(format)
    }

    /// W packed on the device. All outputs hold ones before.
    pub fn quantize<E: Element>(
        &self,
        values: &[E],
        shape: [usize; 2],
        format: WeightFormat,
        offset: Option<f32>,
    ) -> Result<QuantizedWeight<'static>> {
        let spec = Self::spec::<E>(shape, format)?;
        let (kernels, stream, shift) = (self.kernels, &self.stream, self.offset);
        let mut workspace = Workspace::new(kernels, stream, &[spec], 0)?;
        let weight = Shifted::new(stream, values, shift);
        let (bytes, count) = (format.packed_bytes(shape), format.scales(shape));
        let poison = f32::from_bits(u32::MAX);
        let mut elements = Shifted::new(stream, &vec![0xffu8; bytes], shift);
        let mut floats = Shifted::new(stream, &vec![poison; count], shift);
        let mut codes = Shifted::new(stream, &vec![0xffu8; count], shift);
        let blocks = vec![poison; count.div_ceil(NESTED_BLOCK)];
        let mut absmax = Shifted::new(stream, &blocks, shift);
        let map = Shifted::new(stream, &dynamic_map(), shift);
        let mut mean = Shifted::new(stream, &[poison], shift);
        let nested = format.is_nested().then(|| NestedTarget {
            absmax: write!(absmax),
            map: read!(map),
            offset: match offset {
                Some(offset) => NestedOffset::Given(offset),
                None => NestedOffset::Mean(write!(mean)),
            },
        });
        let scales = if format.is_nested() { write!(codes) } else { write!(floats) };
        let io = Quantize { weight: read!(weight), elements: write!(elements), scales, nested };
        kernels.quantize(stream, &spec, &mut workspace, io)?;
        let packed = self.download(&elements);
        let scales = match format.is_nested() {
            true => Scales::Nested {
                codes: self.download(&codes).into(),
                absmax: self.download(&absmax).into(),
                map: dynamic_map().into(),
                offset: offset.unwrap_or_else(|| self.download(&mean)[0]),
            },
            false => self.download(&floats).into(),
        };
        QuantizedWeight::new(shape, format, packed, scales)
    }

    /// W unpacked on the device, where its target holds ones before.
    pub fn dequantize<E: Element>(&self, packed: &QuantizedWeight<'_>) -> Result<Vec<E>> {
        let (shape, format) = (packed.shape(), packed.format());
        let spec = Self::spec::<E>(shape, format)?;
        let (stream, shift) = (&self.stream, self.offset);
        let elements = Shifted::new(stream, packed.packed(), shift);
        let (mut floats, mut codes, mut outer) = (None, None, None);
        match packed.scales() {
            Scales::F32(scales) => floats = Some(Shifted::new(stream, scales, shift)),
            Scales::Nested { codes: of, absmax, map, offset } => {
                codes = Some(Shifted::new(stream, of, shift));
                let absmax = Shifted::new(stream, absmax, shift);
                outer = Some((absmax, Shifted::new(stream, map, shift), *offset));
            }
        }
        let scales = match (&floats, &codes) {
            (Some(floats), _) => read!(floats),
            (_, Some(codes)) => read!(codes),
            _ => unreachable!("scales of one kind"),
        };
        let nested = outer.as_ref().map(|(absmax, map, offset)| NestedScales {
            absmax: read!(absmax),
            map: read!(map),
            offset: *offset,
        });
        let weight = PackedWeight { format, elements: read!(elements), scales, nested }.into();
        let poison = vec![E::from_f32(f32::from_bits(u32::MAX)); shape[0] * shape[1]];
        let mut target = Shifted::new(stream, &poison, shift);
        let io = Dequantize { weight, target: write!(target) };
        self.kernels.dequantize(stream, &spec, io)?;
        Ok(self.download(&target))
    }

    fn download<T: DeviceRepr + Copy>(&self, tensor: &Shifted<T>) -> Vec<T> {
        let values = self.stream.clone_dtoh(&tensor.slice).expect("a copy");
        values[tensor.offset..].to_vec()
    }

    /// Packs and unpacks, and compares both with the host.
    pub fn check<E: Element>(
        &self,
        values: &[E],
        shape: [usize; 2],
        format: WeightFormat,
    ) -> Outcome {
        let what = |what: &str| format!("{what}: {format}, {} {shape:?}", E::DTYPE);
        let error = |error: fused_dora::Error| error.to_string();
        let expected = QuantizedWeight::quantize(values, shape, format).map_err(error)?;
        let found = self.quantize(values, shape, format, None).map_err(error)?;
        compare(&what("packed"), &found, &expected)?;
        if let Scales::Nested { offset, .. } = *expected.scales() {
            let offset = offset * 0.75;
            let expected = QuantizedWeight::quantize_with_offset(values, shape, format, offset);
            let found = self.quantize(values, shape, format, Some(offset)).map_err(error)?;
            compare(&what("packed by an offset"), &found, &expected.map_err(error)?)?;
        }
        let unpacked = self.dequantize::<E>(&expected).map_err(error)?;
        same(&what("unpacked"), &unpacked, &expected.dequantize::<E>())
    }
}

/// The parts of two packed weights, bit by bit.
pub fn compare(what: &str, found: &QuantizedWeight<'_>, expected: &QuantizedWeight<'_>) -> Outcome {
    let bytes = |what: &str, found: &[u8], expected: &[u8]| {
        let first = found.iter().zip(expected).position(|(a, b)| a != b);
        match first {
            Some(at) => Err(format!("{what}: byte {at} is {}, not {}", found[at], expected[at])),
            None => Ok(()),
        }
    };
    bytes(what, found.packed(), expected.packed())?;
    match (found.scales(), expected.scales()) {
        (Scales::F32(found), Scales::F32(expected)) => same(what, found, expected),
        (
            Scales::Nested { codes, absmax, offset, .. },
            Scales::Nested { codes: c, absmax: a, offset: o, .. },
        ) => {
            same(&format!("{what}, offset"), &[*offset], &[*o])?;
            same(&format!("{what}, nested_absmax"), absmax, a)?;
            bytes(&format!("{what}, absmax"), codes, c)
        }
        _ => Err(format!("{what}: other scales")),
    }
}

/// Numbers, bit by bit; all NaN are one.
pub fn same<E: Element>(what: &str, found: &[E], expected: &[E]) -> Outcome {
    let bits = |value: &E| match value.to_f32() {
        value if value.is_nan() => u32::MAX,
        value => value.to_bits(),
    };
    if found.len() != expected.len() {
        return Err(format!("{what}: {} numbers, not {}", found.len(), expected.len()));
    }
    match found.iter().zip(expected).position(|(a, b)| bits(a) != bits(b)) {
        Some(at) => {
            let (found, expected) = (found[at].to_f32(), expected[at].to_f32());
            Err(format!("{what}: number {at} is {found:e}, not {expected:e}"))
        }
        None => Ok(()),
    }
}
