//! A layer's weight and adapter on the device, prepared.

use std::ops::Range;
use std::sync::Arc;

use fused_dora::cudarc::driver::{CudaSlice, CudaStream};
use fused_dora::quant::QuantizedWeight;
use fused_dora::reference::Case;
use fused_dora::{
    DoraSpec, Element, Kernels, Norm, Prepare, Prepared, Read, SharedWeight, TensorElement, Weight,
    Workspace, Write,
};

const POISON: f32 = f32::from_bits(u32::MAX);

/// The kernels on a stream of one device, and tensors that lie off their allocations' start.
pub struct Device {
    pub stream: Arc<CudaStream>,
    pub kernels: Arc<Kernels>,
    /// Elements before each tensor in its allocation.
    pub offset: usize,
}

impl Device {
    pub fn new(offset: usize) -> Self {
        let context = super::device::open().expect("a device");
        Self::with_kernels(&Arc::new(Kernels::load(&context).expect("kernels")), offset)
    }

    /// Takes kernels that are loaded.
    pub fn with_kernels(kernels: &Arc<Kernels>, offset: usize) -> Self {
        Self { stream: kernels.context().default_stream(), kernels: kernels.clone(), offset }
    }

    pub fn upload<E: Element>(&self, values: &[f64]) -> Buffer<E> {
        self.buffer(values.iter().map(|&value| E::from_f32(value as f32)))
    }

    pub fn poisoned<E: Element>(&self, len: usize) -> Buffer<E> {
        self.buffer((0..len).map(|_| E::from_f32(POISON)))
    }

    fn buffer<E: Element>(&self, values: impl Iterator<Item = E>) -> Buffer<E> {
        let mut padded = vec![E::from_f32(POISON); self.offset];
        padded.extend(values);
        let len = padded.len() - self.offset;
        // One element at least: a driver allocates no empty buffers.
        padded.push(E::from_f32(POISON));
        let slice = self.stream.clone_htod(&padded).expect("memory");
        Buffer { slice, range: self.offset..self.offset + len }
    }

    pub fn download<E: Element>(&self, buffer: &Buffer<E>) -> Vec<f32> {
        let values = self.stream.clone_dtoh(&buffer.slice).expect("a copy");
        // What lies around the tensor is as it was.
        let around = values.iter().enumerate().filter(|(i, _)| !buffer.range.contains(i));
        assert!(around.into_iter().all(|(_, value)| value.to_f32().is_nan()));
        values[buffer.range.clone()].iter().map(|value| value.to_f32()).collect()
    }
}

/// A tensor somewhere in its allocation.
pub struct Buffer<E> {
    pub slice: CudaSlice<E>,
    pub range: Range<usize>,
}

impl<E: TensorElement> Buffer<E> {
    pub fn read(&self) -> Read<'_> {
        self.slice.slice(self.range.clone()).into()
    }

    pub fn write(&mut self) -> Write<'_> {
        self.slice.slice_mut(self.range.clone()).into()
    }
}

/// A prepared layer on the device.
pub struct Layer<'a, E> {
    pub device: &'a Device,
    pub case: Case,
    pub spec: DoraSpec,
    pub weight: Buffer<E>,
    /// W packed, which then takes the place of `weight`.
    pub packed: Option<SharedWeight>,
    pub lora_a: Buffer<f32>,
    pub lora_b: Buffer<f32>,
    pub prepared: Prepared,
    pub workspace: Workspace,
    /// g as the device has it.
    pub gain: Vec<f64>,
}

impl<'a, E: Element> Layer<'a, E> {
    pub fn new(device: &'a Device, case: &Case) -> Self {
        Self::with_packed(device, case, None)
    }

    /// The layer with its W packed.
    pub fn with_packed(
        device: &'a Device,
        case: &Case,
        packed: Option<&QuantizedWeight<'_>>,
    ) -> Self {
        let case = case.rounded(E::DTYPE);
        let stream = &device.stream;
        let mut spec = super::run::spec(&case, E::DTYPE).expect("a layer");
        let packed = packed.map(|weight| {
            spec = spec.with_weight(weight.format()).expect("a format");
            SharedWeight::packed(stream, E::DTYPE, weight).expect("memory")
        });
        let mut workspace = Workspace::new(&device.kernels, stream, &[spec], 0).expect("memory");
        let mut prepared = Prepared::new(stream, &spec).expect("memory");
        let weight = device.upload(&case.weight);
        let (lora_a, lora_b) = (device.upload(&case.lora_a), device.upload(&case.lora_b));
        let magnitude = device.upload::<f32>(&case.magnitude);
        let adapter = Prepare {
            weight: base(&packed, &weight),
            lora_a: lora_a.read(),
            lora_b: lora_b.read(),
            magnitude: (case.norm != Norm::None).then(|| magnitude.read()).into(),
            bias: None,
        };
        device
            .kernels
            .prepare(stream, &spec, &mut workspace, &mut prepared, adapter)
            .expect("prepare");
        let gain = prepared.read_gain(stream).expect("g").into_iter().map(f64::from).collect();
        Self { device, case, spec, weight, packed, lora_a, lora_b, prepared, workspace, gain }
    }
}

/// W as the ops take it.
pub fn base<'a, E: TensorElement>(
    packed: &'a Option<SharedWeight>,
    dense: &'a Buffer<E>,
) -> Weight<'a> {
    packed.as_ref().map_or_else(|| dense.read().into(), SharedWeight::read)
}
