//! What the benches share: one layer's buffers on the device, and how an op is measured.
//!
//! On a GPU criterion times each op between two CUDA events. On the emulated device, whose time
//! says nothing about a GPU's, each case runs once and its counts are printed instead.

#![allow(dead_code, reason = "each bench runs one of the ops")]

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use cuda_emulator::client::{Choice, Emulator, Selected, select};
use fused_dora::cudarc::driver::{CudaSlice, CudaStream, sys::CUevent_flags};
use fused_dora::{
    AdamW, AdamWConfig, AdapterGroups, AdapterLayout, Backward, DecomposeAdapter, Decomposition,
    DoraSpec, Dtype, Forward, GradientNorm, Gradients, Kernels, Magnitude, Merge, MergeReport,
    Norm, NormGrad, NormGradient, OptimizerPart, Prepare, Prepared, Scaling, Schedule, Workspace,
    open_device,
};
use half::bf16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// (T, I, O, r) on a GPU.
const SHAPES: [[usize; 4]; 3] =
    [[8192, 4096, 4096, 16], [8192, 4096, 14336, 16], [2048, 4096, 4096, 64]];

/// (T, I, O, r) where every instruction is interpreted.
const EMULATED_SHAPES: [[usize; 4]; 2] = [[128, 256, 256, 16], [64, 256, 512, 64]];

/// One bf16 layer, its batch and its gradients.
pub struct Layer {
    kernels: Kernels,
    stream: Arc<CudaStream>,
    spec: DoraSpec,
    tokens: usize,
    workspace: Workspace,
    prepared: Prepared<bf16>,
    x: CudaSlice<bf16>,
    weight: CudaSlice<bf16>,
    y: CudaSlice<bf16>,
    h: CudaSlice<bf16>,
    grad_output: CudaSlice<bf16>,
    grad_input: CudaSlice<bf16>,
    lora_a: CudaSlice<f32>,
    lora_b: CudaSlice<f32>,
    magnitude: CudaSlice<f32>,
    grad_lora_a: CudaSlice<f32>,
    grad_lora_b: CudaSlice<f32>,
    grad_magnitude: CudaSlice<f32>,
    parts: Vec<OptimizerPart>,
    /// Parameters, gradients and the two moments of the optimizer.
    optimized: [CudaSlice<f32>; 4],
    merged: CudaSlice<bf16>,
    report: CudaSlice<f64>,
    norm: CudaSlice<f32>,
}

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

impl Layer {
    /// A layer of (T, I, O, r), prepared, and run once so that every buffer holds something.
    pub fn new([tokens, inputs, outputs, rank]: [usize; 4], norm: Norm) -> Outcome<Self> {
        let scaling = Scaling::Standard { alpha: 2.0 * rank as f32 };
        let norm_grad = if norm == Norm::None { NormGrad::Detached } else { NormGrad::Exact };
        let spec = DoraSpec::new(inputs, outputs, rank, scaling, norm, norm_grad, Dtype::Bf16)?;
        let context = open_device(0)?;
        let kernels = Kernels::load(&context)?;
        let stream = context.new_stream()?;
        let mut random = StdRng::seed_from_u64(7);
        let mut uniform =
            |n: usize| -> Vec<f32> { (0..n).map(|_| random.random_range(-0.05..0.05)).collect() };
        let half =
            |values: Vec<f32>| -> Vec<bf16> { values.into_iter().map(bf16::from_f32).collect() };
        let layout = AdapterLayout::new(&spec);
        let optimized = [1.0, 1e-3, 0.0, 0.0].map(|value| vec![value; layout.len()]);
        let [parameters, gradients, exp_avg, exp_avg_sq] = &optimized;
        let mut layer = Self {
            parts: AdapterGroups::default().parts(&layout, 0).collect(),
            optimized: [
                stream.clone_htod(parameters)?,
                stream.clone_htod(gradients)?,
                stream.clone_htod(exp_avg)?,
                stream.clone_htod(exp_avg_sq)?,
            ],
            workspace: Workspace::new(&kernels, &stream, &[spec], tokens)?,
            prepared: Prepared::new(&stream, &spec)?,
            x: stream.clone_htod(&half(uniform(tokens * inputs)))?,
            weight: stream.clone_htod(&half(uniform(outputs * inputs)))?,
            y: stream.alloc_zeros(tokens * outputs)?,
            h: stream.alloc_zeros(tokens * spec.padded_rank())?,
            grad_output: stream.clone_htod(&half(uniform(tokens * outputs)))?,
            grad_input: stream.alloc_zeros(tokens * inputs)?,
            lora_a: stream.clone_htod(&uniform(rank * inputs))?,
            lora_b: stream.clone_htod(&uniform(outputs * rank))?,
            magnitude: stream.alloc_zeros(spec.magnitude_len().max(1))?,
            grad_lora_a: stream.alloc_zeros(rank * inputs)?,
            grad_lora_b: stream.alloc_zeros(outputs * rank)?,
            grad_magnitude: stream.alloc_zeros(spec.magnitude_len().max(1))?,
            merged: stream.alloc_zeros(outputs * inputs)?,
            report: stream.alloc_zeros(MergeReport::LEN)?,
            norm: stream.alloc_zeros(1)?,
            kernels,
            stream,
            spec,
            tokens,
        };
        layer.prepare()?;
        layer.forward()?;
        layer.backward()?;
        Ok(layer)
    }

    /// W once (and the packed operands) against one launch.
    pub fn prepare(&mut self) -> Outcome {
        let magnitude = match self.spec.norm() {
            Norm::None => Magnitude::None,
            Norm::Input | Norm::Output => Magnitude::Init(self.magnitude.as_view_mut()),
        };
        let inputs = Prepare {
            weight: self.weight.as_view(),
            lora_a: self.lora_a.as_view(),
            lora_b: self.lora_b.as_view(),
            magnitude,
            bias: None,
        };
        let Self { kernels, stream, spec, workspace, prepared, .. } = self;
        Ok(kernels.prepare(stream, spec, workspace, prepared, inputs)?)
    }

    /// H and y.
    pub fn forward(&mut self) -> Outcome {
        let io = Forward {
            tokens: self.tokens,
            x: self.x.as_view().into(),
            weight: self.weight.as_view(),
            bias: None,
            seed: 1,
            dropout: None,
            z: None,
            y: self.y.as_view_mut().into(),
            h: self.h.as_view_mut(),
        };
        let Self { kernels, stream, spec, workspace, prepared, .. } = self;
        Ok(kernels.forward(stream, spec, prepared, workspace, io)?)
    }

    /// One step of the optimizer over the adapter: 16 bytes read and 12 written per parameter.
    pub fn adamw(&mut self) -> Outcome {
        let [parameters, gradients, exp_avg, exp_avg_sq] = &mut self.optimized;
        let io = AdamW {
            parts: &self.parts,
            schedule: Schedule::Host { learning_rate: 1e-4, step: 1 },
            clip: None,
            parameters: parameters.as_view_mut(),
            gradients: gradients.as_view(),
            exp_avg: exp_avg.as_view_mut(),
            exp_avg_sq: exp_avg_sq.as_view_mut(),
        };
        Ok(self.kernels.adamw(&self.stream, &AdamWConfig::default(), io)?)
    }

    /// The norm of the adapter's gradients: 4 bytes read per parameter.
    pub fn gradient_norm(&mut self) -> Outcome {
        let [_, gradients, ..] = &self.optimized;
        let io = GradientNorm {
            parts: &self.parts,
            gradients: gradients.as_view(),
            norm: self.norm.as_view_mut(),
        };
        Ok(self.kernels.gradient_norm(&self.stream, &mut self.workspace, io)?)
    }

    /// The gradient through the norm; nothing for plain LoRA, which has none.
    pub fn norm_gradient(&mut self) -> Outcome {
        if self.spec.norm() == Norm::None {
            return Ok(());
        }
        let io = NormGradient {
            weight: self.weight.as_view(),
            lora_a: self.lora_a.as_view(),
            lora_b: self.lora_b.as_view(),
            grad_magnitude: self.grad_magnitude.as_view(),
            grad_lora_a: self.grad_lora_a.as_view_mut(),
            grad_lora_b: self.grad_lora_b.as_view_mut(),
        };
        let Self { kernels, stream, spec, workspace, prepared, .. } = self;
        Ok(kernels.norm_gradient(stream, spec, prepared, workspace, io)?)
    }

    /// W and W' once each, and the report.
    pub fn merge(&mut self) -> Outcome {
        let io = Merge {
            weight: self.weight.as_view(),
            lora_a: self.lora_a.as_view(),
            lora_b: self.lora_b.as_view(),
            merged: self.merged.as_view_mut(),
            report: Some(self.report.as_view_mut()),
        };
        let Self { kernels, stream, spec, workspace, prepared, .. } = self;
        Ok(kernels.merge(stream, spec, prepared, workspace, io)?)
    }

    /// The adapter's change along the columns: W once.
    pub fn decompose(&mut self) -> Outcome {
        let io = DecomposeAdapter {
            axis: Norm::Input,
            weight: self.weight.as_view(),
            lora_a: self.lora_a.as_view(),
            lora_b: self.lora_b.as_view(),
            result: self.report.slice_mut(..Decomposition::LEN),
        };
        let Self { kernels, stream, spec, workspace, prepared, .. } = self;
        Ok(kernels.decompose_adapter(stream, spec, prepared, workspace, io)?)
    }

    /// dX, dA, dB and dm.
    pub fn backward(&mut self) -> Outcome {
        let has_magnitude = self.spec.norm() != Norm::None;
        let mut io = Backward {
            tokens: self.tokens,
            gradients: Gradients::Overwrite,
            x: self.x.as_view().into(),
            weight: self.weight.as_view(),
            bias: None,
            output: Some(self.y.as_view().into()),
            z: None,
            dropout: None,
            grad_output: self.grad_output.as_view().into(),
            h: self.h.as_view(),
            grad_input: Some(self.grad_input.as_view_mut().into()),
            grad_lora_a: self.grad_lora_a.as_view_mut(),
            grad_lora_b: self.grad_lora_b.as_view_mut(),
            grad_magnitude: has_magnitude.then(|| self.grad_magnitude.as_view_mut()),
            grad_bias: None,
        };
        let Self { kernels, stream, spec, workspace, prepared, .. } = self;
        Ok(kernels.backward(stream, spec, prepared, workspace, &mut io)?)
    }

    /// Waits for all ops so far.
    pub fn synchronize(&self) -> Outcome {
        Ok(self.stream.synchronize()?)
    }

    /// GPU time of `iterations` runs.
    fn time(&mut self, iterations: u64, op: Op) -> Outcome<Duration> {
        let timed = Some(CUevent_flags::CU_EVENT_DEFAULT);
        let start = self.stream.record_event(timed)?;
        for _ in 0..iterations {
            op(self)?;
        }
        let end = self.stream.record_event(timed)?;
        Ok(Duration::from_secs_f64(f64::from(start.elapsed_ms(&end)?) / 1e3))
    }
}

/// One op on a layer.
pub type Op = fn(&mut Layer) -> Outcome;

/// Runs the bench of one op, on what `CUDA_EMULATOR_DEVICE` asks for (a GPU where there is one).
pub fn run(name: &str, op: Op) -> Outcome {
    match select(Choice::from_env()?)? {
        Selected::Emulated(emulator) => count(name, op, &emulator),
        _ => measure(name, op),
    }
}

fn cases(shapes: &[[usize; 4]]) -> impl Iterator<Item = ([usize; 4], Norm)> {
    let norms = [Norm::None, Norm::Output, Norm::Input];
    shapes.iter().flat_map(move |&shape| norms.map(|norm| (shape, norm)))
}

fn label([tokens, inputs, outputs, rank]: [usize; 4], norm: Norm) -> String {
    format!("T={tokens} I={inputs} O={outputs} r={rank} norm={norm:?}")
}

fn measure(name: &str, op: Op) -> Outcome {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group(name);
    for (shape, norm) in cases(&SHAPES) {
        let mut layer = Layer::new(shape, norm)?;
        let [tokens, inputs, outputs, _] = shape;
        group.throughput(Throughput::Elements((tokens * inputs * outputs) as u64));
        group.bench_function(label(shape, norm), |bencher| {
            bencher.iter_custom(|iterations| {
                layer.time(iterations, op).expect("the op succeeded when the layer was made")
            });
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}

fn count(name: &str, op: Op, emulator: &Emulator) -> Outcome {
    println!("{name}: counts on the emulated device (it has no GPU time to report)");
    for (shape, norm) in cases(&EMULATED_SHAPES) {
        let mut layer = Layer::new(shape, norm)?;
        layer.stream.synchronize()?;
        emulator.reset_counters();
        op(&mut layer)?;
        layer.stream.synchronize()?;
        let counters = emulator.counters();
        println!(
            "  {}: {} launches, {} tensor-core products, {} warp instructions",
            label(shape, norm),
            counters.launches,
            counters.mma,
            counters.instructions,
        );
    }
    Ok(())
}
