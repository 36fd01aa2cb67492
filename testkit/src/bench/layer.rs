//! One layer's buffers on the device, and the ops on them.

use std::sync::Arc;

use fused_dora::cudarc::driver::{CudaSlice, CudaStream};
use fused_dora::quant::{QuantizedWeight, WeightFormat, dynamic_map};
use fused_dora::{
    AdamW, AdamWConfig, AdapterGroups, AdapterLayout, Backward, Base, DecomposeAdapter,
    Decomposition, Dequantize, DoraSpec, Element, Forward, GradientNorm, Gradients, Kernels,
    Magnitude, Merge, MergeReport, NestedOffset, NestedTarget, Norm, NormGrad, NormGradient,
    OptimizerPart, Prepare, Prepared, Quantize, Scaling, Schedule, SharedWeight, Weight, Workspace,
    open_device,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Outcome;

/// One layer, its batches and its gradients.
pub struct Layer<E> {
    kernels: Arc<Kernels>,
    stream: Arc<CudaStream>,
    spec: DoraSpec,
    tokens: usize,
    workspace: Workspace,
    prepared: Prepared,
    batches: Vec<Batch<E>>,
    /// The batch that ops take.
    current: usize,
    pub weight: CudaSlice<E>,
    /// W as the ops take it, if it is packed.
    packed: Option<SharedWeight>,
    /// Where it is packed anew.
    target: Option<PackedTarget>,
    grad_input: CudaSlice<E>,
    pub lora_a: CudaSlice<f32>,
    pub lora_b: CudaSlice<f32>,
    pub magnitude: CudaSlice<f32>,
    grad_lora_a: CudaSlice<f32>,
    grad_lora_b: CudaSlice<f32>,
    grad_magnitude: CudaSlice<f32>,
    parts: Vec<OptimizerPart>,
    /// Parameters, gradients and the two moments of the optimizer.
    optimized: [CudaSlice<f32>; 4],
    pub merged: CudaSlice<E>,
    report: CudaSlice<f64>,
    norm: CudaSlice<f32>,
}

/// What `quantize` writes with nested scales, and the map that it reads.
struct PackedTarget {
    elements: CudaSlice<u8>,
    codes: CudaSlice<u8>,
    absmax: CudaSlice<f32>,
    map: CudaSlice<f32>,
    mean: CudaSlice<f32>,
}

/// x and dY, and what a forward of this x makes.
struct Batch<E> {
    x: CudaSlice<E>,
    grad_output: CudaSlice<E>,
    y: CudaSlice<E>,
    h: CudaSlice<E>,
}

impl<E: Element> Layer<E> {
    /// A layer of (T, I, O, r) with one batch, on a device that is opened for it.
    pub fn new(shape: [usize; 4], norm: Norm) -> Outcome<Self> {
        let kernels = Arc::new(Kernels::load(&open_device(0)?)?);
        let stream = kernels.context().new_stream()?;
        Self::on(&kernels, &stream, shape, norm, 1)
    }

    /// A layer of (T, I, O, r) with so many batches, prepared, and run once such that every buffer
    /// holds something.
    pub fn on(
        kernels: &Arc<Kernels>,
        stream: &Arc<CudaStream>,
        shape: [usize; 4],
        norm: Norm,
        batches: usize,
    ) -> Outcome<Self> {
        Self::with(kernels, stream, shape, norm, batches, None)
    }

    /// The same with W packed in a format, if one is given.
    pub fn with(
        kernels: &Arc<Kernels>,
        stream: &Arc<CudaStream>,
        shape: [usize; 4],
        norm: Norm,
        batches: usize,
        format: Option<WeightFormat>,
    ) -> Outcome<Self> {
        let mut layer = Self::unprepared_with(kernels, stream, shape, norm, batches, format)?;
        layer.init()?;
        for _ in 0..batches {
            layer.forward()?;
            layer.rotate();
        }
        layer.backward()?;
        Ok(layer)
    }

    /// A layer on which no op has run. x and dY are of unit variance, W, A and B of a trained layer's
    /// sizes.
    pub fn unprepared(
        kernels: &Arc<Kernels>,
        stream: &Arc<CudaStream>,
        shape: [usize; 4],
        norm: Norm,
        batches: usize,
    ) -> Outcome<Self> {
        Self::unprepared_with(kernels, stream, shape, norm, batches, None)
    }

    fn unprepared_with(
        kernels: &Arc<Kernels>,
        stream: &Arc<CudaStream>,
        [tokens, inputs, outputs, rank]: [usize; 4],
        norm: Norm,
        batches: usize,
        format: Option<WeightFormat>,
    ) -> Outcome<Self> {
        let scaling = Scaling::Value(2.0);
        let norm_grad = if norm == Norm::None { NormGrad::Detached } else { NormGrad::Exact };
        let mut spec = DoraSpec::new(inputs, outputs, rank, scaling, norm, norm_grad, E::DTYPE)?;
        if let Some(format) = format {
            spec = spec.with_weight(format)?;
        }
        let mut normal = Normal::new(7);
        let mut batch = || {
            Outcome::Ok(Batch {
                x: stream.clone_htod(&normal.of(tokens * inputs, 1.0))?,
                grad_output: stream.clone_htod(&normal.of(tokens * outputs, 1.0))?,
                y: stream.alloc_zeros(tokens * outputs)?,
                h: stream.alloc_zeros((tokens * spec.padded_rank()).max(1))?,
            })
        };
        let batches = (0..batches).map(|_| batch()).collect::<Outcome<Vec<_>>>()?;
        let layout = AdapterLayout::new(&spec);
        let optimized = [1.0, 1e-3, 0.0, 0.0].map(|value| vec![value; layout.len()]);
        let [parameters, gradients, exp_avg, exp_avg_sq] = &optimized;
        let weight: Vec<E> = normal.of(outputs * inputs, 0.02);
        let pack = |format| {
            let values: Vec<f32> = weight.iter().map(|value| value.to_f32()).collect();
            let packed = QuantizedWeight::quantize(&values, [outputs, inputs], format)?;
            Outcome::Ok(SharedWeight::packed(stream, E::DTYPE, &packed)?)
        };
        let target = |format: WeightFormat| {
            let shape = [outputs, inputs];
            let count = format.scales(shape);
            Outcome::Ok(PackedTarget {
                elements: stream.alloc_zeros(format.packed_bytes(shape))?,
                codes: stream.alloc_zeros(count)?,
                absmax: stream.alloc_zeros(count.div_ceil(256))?,
                map: stream.clone_htod(&dynamic_map())?,
                mean: stream.alloc_zeros(1)?,
            })
        };
        Ok(Self {
            packed: format.map(pack).transpose()?,
            target: format.map(target).transpose()?,
            parts: AdapterGroups::default().parts(&layout, 0).collect(),
            optimized: [
                stream.clone_htod(parameters)?,
                stream.clone_htod(gradients)?,
                stream.clone_htod(exp_avg)?,
                stream.clone_htod(exp_avg_sq)?,
            ],
            workspace: Workspace::new(kernels, stream, &[spec], tokens)?,
            prepared: Prepared::new(stream, &spec)?,
            batches,
            current: 0,
            weight: stream.clone_htod(&weight)?,
            grad_input: stream.alloc_zeros(tokens * inputs)?,
            lora_a: stream
                .clone_htod(&normal.of((rank * inputs).max(1), (inputs as f32).powf(-0.5)))?,
            lora_b: stream.clone_htod(&normal.of((outputs * rank).max(1), 0.02))?,
            magnitude: stream.alloc_zeros(spec.magnitude_len().max(1))?,
            grad_lora_a: stream.alloc_zeros((rank * inputs).max(1))?,
            grad_lora_b: stream.alloc_zeros((outputs * rank).max(1))?,
            grad_magnitude: stream.alloc_zeros(spec.magnitude_len().max(1))?,
            merged: stream.alloc_zeros(outputs * inputs)?,
            report: stream.alloc_zeros(MergeReport::LEN)?,
            norm: stream.alloc_zeros(1)?,
            kernels: kernels.clone(),
            stream: stream.clone(),
            spec,
            tokens,
        })
    }

    /// What the layer is.
    pub fn spec(&self) -> &DoraSpec {
        &self.spec
    }

    /// W, dense or packed.
    fn weight_of<'a>(dense: &'a CudaSlice<E>, packed: &'a Option<SharedWeight>) -> Weight<'a> {
        packed.as_ref().map_or_else(|| dense.into(), SharedWeight::read)
    }

    /// W to its packed form, with nested scales.
    pub fn quantize(&mut self) -> Outcome {
        let PackedTarget { elements, codes, absmax, map, mean } =
            self.target.as_mut().ok_or("W is not packed")?;
        let offset = NestedOffset::Mean(mean.into());
        let nested = NestedTarget { absmax: absmax.into(), map: (&*map).into(), offset };
        let weight = (&self.weight).into();
        let (elements, scales) = (elements.into(), codes.into());
        let io = Quantize { weight, elements, scales, nested: Some(nested) };
        let Self { kernels, stream, spec, workspace, .. } = self;
        Ok(kernels.quantize(stream, spec, workspace, io)?)
    }

    /// W from its packed form into the memory of the merged one: what a layer does that has no kernels
    /// for packed weights.
    pub fn dequantize(&mut self) -> Outcome {
        let weight = Self::weight_of(&self.weight, &self.packed);
        let io = Dequantize { weight, target: (&mut self.merged).into() };
        Ok(self.kernels.dequantize(&self.stream, &self.spec, io)?)
    }

    /// x and dY of each batch.
    pub fn batches(&self) -> Vec<[&CudaSlice<E>; 2]> {
        self.batches.iter().map(|batch| [&batch.x, &batch.grad_output]).collect()
    }

    /// Lets the ops take the next batch, and returns its number.
    pub fn rotate(&mut self) -> usize {
        self.current = (self.current + 1) % self.batches.len();
        self.current
    }

    /// Elements of A, B and H: a buffer of none is one of one.
    fn lens(&self) -> [usize; 3] {
        let (spec, rank) = (&self.spec, self.spec.rank());
        let h = self.tokens * spec.padded_rank();
        [rank * spec.in_features(), spec.out_features() * rank, h]
    }

    /// A new adapter: m becomes the norm.
    pub fn init(&mut self) -> Outcome {
        self.prepare_as(true)
    }

    /// W once (and the packed operands) against one launch.
    pub fn prepare(&mut self) -> Outcome {
        self.prepare_as(false)
    }

    fn prepare_as(&mut self, fresh: bool) -> Outcome {
        let [len_a, len_b, _] = self.lens();
        let magnitude = match self.spec.norm() {
            Norm::None => Magnitude::None,
            _ if fresh => Magnitude::Init((&mut self.magnitude).into()),
            _ => Magnitude::Given((&self.magnitude).into()),
        };
        let inputs = Prepare {
            weight: Self::weight_of(&self.weight, &self.packed),
            lora_a: self.lora_a.slice(..len_a).into(),
            lora_b: self.lora_b.slice(..len_b).into(),
            magnitude,
            bias: None,
        };
        let Self { kernels, stream, spec, workspace, prepared, .. } = self;
        Ok(kernels.prepare(stream, spec, workspace, prepared, inputs)?)
    }

    /// H and y.
    pub fn forward(&mut self) -> Outcome {
        let [_, _, len_h] = self.lens();
        let batch = &mut self.batches[self.current];
        let io = Forward {
            tokens: self.tokens,
            x: (&batch.x).into(),
            base: Base::new(Self::weight_of(&self.weight, &self.packed)),
            seed: 1,
            dropout: None,
            counter: None,
            z: None,
            y: (&mut batch.y).into(),
            h: batch.h.slice_mut(..len_h).into(),
        };
        let Self { kernels, stream, spec, workspace, prepared, .. } = self;
        Ok(kernels.forward(stream, spec, prepared, workspace, io)?)
    }

    /// One step of the optimizer over the adapter: 16 bytes read and 12 written per parameter.
    pub fn adamw(&mut self) -> Outcome {
        let [parameters, gradients, exp_avg, exp_avg_sq] = &mut self.optimized;
        let io = AdamW {
            len: gradients.len(),
            parts: &self.parts,
            schedule: Schedule::Host { learning_rate: 1e-4, step: 1 },
            clip: None,
            parameters: parameters.as_view_mut().into(),
            gradients: gradients.as_view().into(),
            exp_avg: exp_avg.as_view_mut().into(),
            exp_avg_sq: exp_avg_sq.as_view_mut().into(),
        };
        Ok(self.kernels.adamw(&self.stream, &AdamWConfig::default(), io)?)
    }

    /// The norm of the adapter's gradients: 4 bytes read per parameter.
    pub fn gradient_norm(&mut self) -> Outcome {
        let [_, gradients, ..] = &self.optimized;
        let io = GradientNorm {
            len: gradients.len(),
            parts: &self.parts,
            gradients: gradients.as_view().into(),
            norm: (&mut self.norm).into(),
        };
        Ok(self.kernels.gradient_norm(&self.stream, &mut self.workspace, io)?)
    }

    /// The gradient through the norm; nothing for plain LoRA, which has none.
    pub fn norm_gradient(&mut self) -> Outcome {
        let [len_a, len_b, _] = self.lens();
        if self.spec.norm() == Norm::None {
            return Ok(());
        }
        let io = NormGradient {
            weight: Self::weight_of(&self.weight, &self.packed),
            lora_a: self.lora_a.slice(..len_a).into(),
            lora_b: self.lora_b.slice(..len_b).into(),
            grad_magnitude: (&self.grad_magnitude).into(),
            grad_lora_a: self.grad_lora_a.slice_mut(..len_a).into(),
            grad_lora_b: self.grad_lora_b.slice_mut(..len_b).into(),
        };
        let Self { kernels, stream, spec, workspace, prepared, .. } = self;
        Ok(kernels.norm_gradient(stream, spec, prepared, workspace, io)?)
    }

    /// A whole training step, with one micro-batch.
    pub fn step(&mut self) -> Outcome {
        self.prepare()?;
        self.forward()?;
        self.backward()?;
        self.norm_gradient()?;
        self.adamw()
    }

    /// A training step with the norm held constant.
    pub fn detached_step(&mut self) -> Outcome {
        self.prepare()?;
        self.forward()?;
        self.backward()?;
        self.adamw()
    }

    /// W and W' once each, and the report.
    pub fn merge(&mut self) -> Outcome {
        let [len_a, len_b, _] = self.lens();
        let io = Merge {
            weight: Self::weight_of(&self.weight, &self.packed),
            lora_a: self.lora_a.slice(..len_a).into(),
            lora_b: self.lora_b.slice(..len_b).into(),
            merged: (&mut self.merged).into(),
            report: Some((&mut self.report).into()),
        };
        let Self { kernels, stream, spec, workspace, prepared, .. } = self;
        Ok(kernels.merge(stream, spec, prepared, workspace, io)?)
    }

    /// The adapter's change along the columns: W once.
    pub fn decompose(&mut self) -> Outcome {
        let [len_a, len_b, _] = self.lens();
        let io = DecomposeAdapter {
            axis: Norm::Input,
            weight: Self::weight_of(&self.weight, &self.packed),
            lora_a: self.lora_a.slice(..len_a).into(),
            lora_b: self.lora_b.slice(..len_b).into(),
            result: self.report.slice_mut(..Decomposition::LEN).into(),
        };
        let Self { kernels, stream, spec, workspace, prepared, .. } = self;
        Ok(kernels.decompose_adapter(stream, spec, prepared, workspace, io)?)
    }

    /// dX, dA, dB and dm.
    pub fn backward(&mut self) -> Outcome {
        let [len_a, len_b, len_h] = self.lens();
        let has_magnitude = self.spec.norm() != Norm::None;
        let batch = &self.batches[self.current];
        let io = Backward {
            tokens: self.tokens,
            gradients: Gradients::Overwrite,
            x: (&batch.x).into(),
            base: Base::new(Self::weight_of(&self.weight, &self.packed)),
            output: (self.spec.norm() == Norm::Output).then(|| (&batch.y).into()),
            z: None,
            dropout: None,
            counter: None,
            grad_output: (&batch.grad_output).into(),
            h: batch.h.slice(..len_h).into(),
            grad_input: Some((&mut self.grad_input).into()),
            grad_lora_a: self.grad_lora_a.slice_mut(..len_a).into(),
            grad_lora_b: self.grad_lora_b.slice_mut(..len_b).into(),
            grad_magnitude: has_magnitude.then(|| (&mut self.grad_magnitude).into()),
            grad_bias: None,
        };
        let Self { kernels, stream, spec, workspace, prepared, .. } = self;
        Ok(kernels.backward(stream, spec, prepared, workspace, io)?)
    }

    /// Waits for all ops so far.
    pub fn synchronize(&self) -> Outcome {
        Ok(self.stream.synchronize()?)
    }
}

/// Standard normal deviates, drawn once and repeated: a large tensor is filled fast.
struct Normal {
    deviates: Vec<f32>,
    next: usize,
}

impl Normal {
    /// No power of two, so that rows and columns of matrices differ.
    const COUNT: usize = (1 << 18) - 5;

    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        // Twelve uniforms make a bell of unit variance.
        let mut deviate = || (0..12).map(|_| random.random::<f32>()).sum::<f32>() - 6.0;
        Self { deviates: (0..Self::COUNT).map(|_| deviate()).collect(), next: 0 }
    }

    fn of<E: Element>(&mut self, len: usize, deviation: f32) -> Vec<E> {
        let start = self.next;
        self.next = (start + len) % Self::COUNT;
        let from = self.deviates.iter().cycle().skip(start).take(len);
        from.map(|value| E::from_f32(deviation * value)).collect()
    }
}
