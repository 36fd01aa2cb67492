//! The optimizer's step and the gradient's norm against float64, over tens of steps.

mod common;

use std::ops::Range;
use std::sync::Arc;

use common::compare::Comparison;
use common::random::fresh_seed;
use fused_dora::cudarc::driver::{CudaSlice, CudaStream, sys};
use fused_dora::reference::{AdamWState, AdamWStep, Tracked};
use fused_dora::{
    AdamW, AdamWConfig, AdapterGroups, AdapterLayout, Clip, DoraSpec, Dtype, Error, GradientNorm,
    Kernels, Norm, NormGrad, OptimizerGroup, OptimizerPart, Result, Scaling, Schedule, Workspace,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const POISON: f32 = f32::from_bits(u32::MAX);

const CONFIG: AdamWConfig = AdamWConfig { beta1: 0.9, beta2: 0.99, epsilon: 1e-8 };

/// How a run's gradients are clipped.
#[derive(Clone, Copy, PartialEq)]
enum Clipping {
    None,
    /// By `gradient_norm`, to this norm.
    Norm(f64),
}

/// Where a run's learning rate and step come from.
#[derive(Clone, Copy)]
enum From {
    Host,
    Device,
}

struct Device {
    stream: Arc<CudaStream>,
    kernels: Kernels,
    workspace: Workspace,
}

impl Device {
    fn new() -> Self {
        let context = common::device::open().expect("a device");
        let kernels = Kernels::load(&context).expect("kernels");
        let stream = context.default_stream();
        let workspace = Workspace::new(&kernels, &stream, &[], 0).expect("memory");
        Self { stream, kernels, workspace }
    }

    fn upload(&self, values: &[f32]) -> CudaSlice<f32> {
        self.stream.clone_htod(values).expect("memory")
    }

    fn norm(&mut self, parts: &[OptimizerPart], gradients: &[f32]) -> Result<f32> {
        let gradients = self.upload(gradients);
        let mut norm = self.upload(&[POISON]);
        let io = GradientNorm { parts, gradients: gradients.as_view(), norm: norm.as_view_mut() };
        self.kernels.gradient_norm(&self.stream, &mut self.workspace, io)?;
        Ok(self.stream.clone_dtoh(&norm).expect("a copy")[0])
    }
}

/// Buffers of `len` elements from `offset` on, of which `parts` go through the optimizer.
struct Problem {
    parts: Vec<OptimizerPart>,
    len: usize,
    offset: usize,
}

impl Problem {
    /// Adapters one behind the other in one buffer.
    fn of_adapters(layouts: &[AdapterLayout], groups: AdapterGroups) -> Self {
        let (mut parts, mut len) = (Vec::new(), 0);
        for layout in layouts {
            parts.extend(groups.parts(layout, len));
            len += layout.len();
        }
        Self { parts, len, offset: 0 }
    }

    fn elements(&self) -> impl Iterator<Item = (usize, OptimizerGroup)> {
        self.parts.iter().flat_map(|part| part.range.clone().map(|i| (i, part.group)))
    }

    /// A buffer with NaN wherever no part is.
    fn poisoned(&self, mut value: impl FnMut(usize) -> f32) -> Vec<f32> {
        let mut buffer = vec![POISON; self.len];
        self.elements().for_each(|(i, _)| buffer[i] = value(i));
        buffer
    }

    /// `steps` of the optimizer on the device and in float64, compared element by element.
    fn run(&self, device: &mut Device, steps: u64, from: From, clipping: Clipping) {
        let mut random = StdRng::seed_from_u64(fresh_seed());
        let stream = device.stream.clone();
        let start = self.poisoned(|_| random.random_range(-1.0..1.0));
        let shifted = |values: &[f32]| {
            let mut padded = vec![POISON; self.offset];
            padded.extend(values);
            stream.clone_htod(&padded).expect("memory")
        };
        let mut parameters = shifted(&start);
        let mut moments = [0, 1].map(|_| shifted(&self.poisoned(|_| 0.0)));
        let mut norm = device.upload(&[POISON]);
        let exactly = |value: &f32| Tracked::exactly((*value).into());
        let mut states: Vec<_> = start
            .iter()
            .map(|value| AdamWState { parameter: exactly(value), ..AdamWState::default() })
            .collect();

        for step in 1..=steps {
            // All magnitudes that gradients have, and some that are none.
            let gradients = self.poisoned(|i| match (i + step as usize) % 17 {
                0 => 0.0,
                _ => {
                    let power: f32 = random.random_range(-12.0..1.0);
                    random.random_range(-1.0f32..1.0) * 10.0f32.powf(power)
                }
            });
            let learning_rate = f64::from(1e-2 / step as f32);
            let on_device = shifted(&gradients);
            let numbers = device.upload(&[learning_rate as f32, step as f32]);
            let clip = match clipping {
                Clipping::None => None,
                Clipping::Norm(max_norm) => {
                    let io = GradientNorm {
                        parts: &self.parts,
                        gradients: on_device.slice(self.offset..),
                        norm: norm.as_view_mut(),
                    };
                    let workspace = &mut device.workspace;
                    device.kernels.gradient_norm(&stream, workspace, io).expect("the norm");
                    Some(Clip { max_norm, norm: norm.as_view() })
                }
            };
            let [exp_avg, exp_avg_sq] = &mut moments;
            let io = AdamW {
                parts: &self.parts,
                schedule: match from {
                    From::Host => Schedule::Host { learning_rate, step },
                    From::Device => Schedule::Device(numbers.as_view()),
                },
                clip,
                parameters: parameters.slice_mut(self.offset..),
                gradients: on_device.slice(self.offset..),
                exp_avg: exp_avg.slice_mut(self.offset..),
                exp_avg_sq: exp_avg_sq.slice_mut(self.offset..),
            };
            device.kernels.adamw(&stream, &CONFIG, io).expect("a step");
            let clip = self.clip(&gradients, clipping);
            self.advance(&mut states, &gradients, learning_rate, step, clip);
        }
        let [exp_avg, exp_avg_sq] = &moments;
        self.compare(device, "parameters", &parameters, &states, |state| state.parameter);
        self.compare(device, "exp_avg", exp_avg, &states, |state| state.exp_avg);
        self.compare(device, "exp_avg_sq", exp_avg_sq, &states, |state| state.exp_avg_sq);
    }

    fn clip(&self, gradients: &[f32], clipping: Clipping) -> f64 {
        let square = |(i, _)| f64::from(gradients[i]).powi(2);
        let norm = self.elements().map(square).sum::<f64>().sqrt();
        match clipping {
            Clipping::Norm(max_norm) if norm > max_norm => max_norm / norm,
            _ => 1.0,
        }
    }

    fn advance(
        &self,
        states: &mut [AdamWState],
        gradients: &[f32],
        learning_rate: f64,
        step: u64,
        clip: f64,
    ) {
        for (i, group) in self.elements() {
            let step = AdamWStep {
                learning_rate: group.learning_rate_factor * learning_rate,
                weight_decay: group.weight_decay,
                beta1: CONFIG.beta1,
                beta2: CONFIG.beta2,
                epsilon: CONFIG.epsilon,
                step,
                clip,
            };
            step.apply(&mut states[i], gradients[i].into());
        }
    }

    fn compare(
        &self,
        device: &Device,
        name: &str,
        found: &CudaSlice<f32>,
        states: &[AdamWState],
        of: impl Fn(&AdamWState) -> Tracked,
    ) {
        let found = device.stream.clone_dtoh(found).expect("a copy").split_off(self.offset);
        let (mut values, mut expected, mut bounds) = (Vec::new(), Vec::new(), Vec::new());
        let mut is_part = vec![false; self.len];
        for (i, _) in self.elements() {
            let tracked = of(&states[i]);
            values.push(found[i]);
            expected.push(tracked.value);
            bounds.push(tracked.error);
            is_part[i] = true;
        }
        let shape = [values.len()];
        let comparison = Comparison::new(name, &shape, Dtype::F32, &values, &expected, &bounds);
        assert!(comparison.ok(), "{} elements, {comparison}", self.len);
        for (i, value) in found.iter().enumerate().filter(|(i, _)| !is_part[*i]) {
            assert_eq!(value.to_bits(), POISON.to_bits(), "{name}: element {i} is nobody's");
        }
    }
}

fn layout(shape: [usize; 3], norm: Norm, bias: bool) -> AdapterLayout {
    let [inputs, outputs, rank] = shape;
    let scaling = Scaling::Value(1.0);
    let spec = DoraSpec::new(inputs, outputs, rank, scaling, norm, NormGrad::Detached, Dtype::Bf16)
        .expect("a layer");
    if bias { AdapterLayout::with_bias(&spec) } else { AdapterLayout::new(&spec) }
}

/// LoRA, DoRA on both axes and the magnitude alone, with padding and without.
fn adapters() -> Problem {
    let layouts = [
        layout([37, 53, 3], Norm::Input, true),
        layout([64, 64, 16], Norm::Output, false),
        layout([129, 70, 5], Norm::None, false),
        layout([301, 5, 0], Norm::Input, true),
    ];
    let group =
        |learning_rate_factor, weight_decay| OptimizerGroup { learning_rate_factor, weight_decay };
    let groups = AdapterGroups {
        lora_a: group(1.0, 0.01),
        lora_b: group(16.0, 0.1),
        magnitude: group(0.5, 0.0),
        bias: group(2.0, 0.0),
    };
    Problem::of_adapters(&layouts, groups)
}

#[test]
fn tens_of_steps() {
    adapters().run(&mut Device::new(), 40, From::Host, Clipping::None);
}

#[test]
fn numbers_from_the_device() {
    adapters().run(&mut Device::new(), 40, From::Device, Clipping::None);
}

#[test]
fn clipped_by_the_norm() {
    // The norms of these gradients are a few tens: one of these clips always, one now and then,
    // one never.
    for max_norm in [1e-3, 45.0, 1e6] {
        adapters().run(&mut Device::new(), 10, From::Host, Clipping::Norm(max_norm));
    }
}

#[test]
fn buffers_off_every_boundary() {
    let mut device = Device::new();
    let problem = Problem { offset: 1, ..adapters() };
    problem.run(&mut device, 3, From::Host, Clipping::Norm(10.0));
    // Likewise parts that start where no vector does.
    let part = |range, learning_rate_factor| {
        let group = OptimizerGroup { learning_rate_factor, weight_decay: 0.01 };
        OptimizerPart { range, group }
    };
    let parts =
        vec![part(3..3, 1.0), part(3..1200, 1.0), part(1201..1203, 2.0), part(1204..1208, 3.0)];
    Problem { parts, len: 1210, offset: 0 }.run(&mut device, 3, From::Host, Clipping::Norm(1.0));
}

/// More parts than one launch takes, and more chunks than the norm has CTAs.
#[test]
fn many_parts_and_large_ones() {
    let mut device = Device::new();
    let layouts = vec![layout([9, 6, 1], Norm::Output, true); 50];
    let problem = Problem::of_adapters(&layouts, AdapterGroups::default());
    assert_eq!(problem.parts.len(), 200);
    problem.run(&mut device, 3, From::Host, Clipping::Norm(1.0));
    let layouts = vec![layout([300_001, 7, 1], Norm::Input, false); 2];
    let problem = Problem::of_adapters(&layouts, AdapterGroups::default());
    problem.run(&mut device, 2, From::Host, Clipping::Norm(1.0));
}

fn whole(len: usize) -> Vec<OptimizerPart> {
    vec![OptimizerPart { range: 0..len, group: OptimizerGroup::default() }]
}

#[test]
fn norms() {
    let mut device = Device::new();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for scale in [1.0, 1e-30, 1e30f32] {
        let gradients: Vec<f32> =
            (0..30_001).map(|_| scale * random.random_range(-1.0..1.0)).collect();
        let expected = gradients.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let found = device.norm(&whole(gradients.len()), &gradients).expect("the norm");
        // One rounding to f32; the sum of 30001 squares in f64 is off by far less.
        let error = (f64::from(found) - expected).abs();
        let bound = (1.0 + 1e-6) * f64::from(f32::EPSILON) / 2.0 * expected;
        assert!(error <= bound, "norm {found:e}, not {expected:e}: {error:e} > {bound:e}");
        let again = device.norm(&whole(gradients.len()), &gradients).expect("the norm");
        assert_eq!(found.to_bits(), again.to_bits());
    }
    assert_eq!(device.norm(&[], &[1.0]).expect("nothing"), 0.0);
    assert_eq!(device.norm(&whole(0), &[1.0]).expect("nothing"), 0.0);
    assert!(device.norm(&whole(2), &[1.0, f32::NAN]).expect("a norm").is_nan());
    assert_eq!(device.norm(&whole(2), &[1.0, f32::INFINITY]).expect("a norm"), f32::INFINITY);
}

/// A norm that is NaN is not taken for a small one.
#[test]
fn a_norm_that_is_nan_shows() {
    let device = Device::new();
    let (mut parameters, gradients) = (device.upload(&[1.0; 4]), device.upload(&[1.0; 4]));
    let mut moments = [0, 1].map(|_| device.upload(&[0.0; 4]));
    let norm = device.upload(&[f32::NAN]);
    let [exp_avg, exp_avg_sq] = &mut moments;
    let io = AdamW {
        parts: &whole(3),
        schedule: Schedule::Host { learning_rate: 1e-3, step: 1 },
        clip: Some(Clip { max_norm: 1.0, norm: norm.as_view() }),
        parameters: parameters.as_view_mut(),
        gradients: gradients.as_view(),
        exp_avg: exp_avg.as_view_mut(),
        exp_avg_sq: exp_avg_sq.as_view_mut(),
    };
    device.kernels.adamw(&device.stream, &CONFIG, io).expect("a step");
    let found = device.stream.clone_dtoh(&parameters).expect("a copy");
    assert!(found[..3].iter().all(|p| p.is_nan()) && found[3] == 1.0, "{found:?}");
}

/// A captured step, replayed with new numbers each time, is the step launched each time.
#[test]
fn a_captured_step() {
    let context = common::device::open().expect("a device");
    // SAFETY: everything runs in one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().expect("a stream");
    let kernels = Kernels::load(&context).expect("kernels");
    let mut workspace = Workspace::new(&kernels, &stream, &[], 0).expect("memory");
    let parts = whole(1000);
    let gradients = stream.clone_htod(&[0.25f32; 1000]).expect("memory");
    let mut run = |replay: bool| {
        let mut parameters = stream.clone_htod(&[1.0f32; 1000]).expect("memory");
        let mut exp_avg = stream.alloc_zeros::<f32>(1000).expect("memory");
        let mut exp_avg_sq = stream.alloc_zeros::<f32>(1000).expect("memory");
        let mut norm = stream.alloc_zeros::<f32>(1).expect("memory");
        let mut numbers = stream.alloc_zeros::<f32>(2).expect("memory");
        let mut launch = |numbers: &CudaSlice<f32>| {
            let io = GradientNorm {
                parts: &parts,
                gradients: gradients.as_view(),
                norm: norm.as_view_mut(),
            };
            kernels.gradient_norm(&stream, &mut workspace, io).expect("the norm");
            let io = AdamW {
                parts: &parts,
                schedule: Schedule::Device(numbers.as_view()),
                clip: Some(Clip { max_norm: 1.0, norm: norm.as_view() }),
                parameters: parameters.as_view_mut(),
                gradients: gradients.as_view(),
                exp_avg: exp_avg.as_view_mut(),
                exp_avg_sq: exp_avg_sq.as_view_mut(),
            };
            kernels.adamw(&stream, &CONFIG, io).expect("a step");
        };
        let graph = replay.then(|| {
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            stream.begin_capture(mode).expect("a capture");
            launch(&numbers);
            let flags = sys::CUgraphInstantiate_flags(0);
            stream.end_capture(flags).expect("a capture").expect("a graph")
        });
        for step in 1..=5 {
            let written = [1e-2 / step as f32, step as f32];
            stream.memcpy_htod(&written, &mut numbers).expect("a copy");
            match &graph {
                Some(graph) => graph.launch().expect("a replay"),
                None => launch(&numbers),
            }
        }
        stream.clone_dtoh(&parameters).expect("a copy")
    };
    let (replayed, launched) = (run(true), run(false));
    assert_eq!(replayed, launched);
    assert!(launched.iter().all(|&p| p < 1.0 - 1e-2), "five steps of about the learning rate");
}

#[test]
fn bad_inputs() {
    let mut device = Device::new();
    let buffer = || device.upload(&[0.0; 16]);
    let (one, two) = (device.upload(&[1.0]), device.upload(&[1.0; 2]));
    let (mut parameters, gradients, mut exp_avg, mut exp_avg_sq) =
        (buffer(), buffer(), buffer(), buffer());
    let parts = whole(16);
    let host = |learning_rate, step| Schedule::Host { learning_rate, step };
    // The outcome of a step of which `change` has changed something.
    macro_rules! attempt {
        (|$config:ident, $io:ident| $change:expr) => {{
            let mut $config = CONFIG;
            let mut $io = AdamW {
                parts: &parts,
                schedule: host(1e-3, 1),
                clip: Some(Clip { max_norm: 1.0, norm: one.as_view() }),
                parameters: parameters.as_view_mut(),
                gradients: gradients.as_view(),
                exp_avg: exp_avg.as_view_mut(),
                exp_avg_sq: exp_avg_sq.as_view_mut(),
            };
            let _ = (&mut $config, &mut $io);
            $change;
            device.kernels.adamw(&device.stream, &$config, $io)
        }};
    }
    macro_rules! assert_message {
        (|$config:ident, $io:ident| $change:expr, $start:expr) => {{
            let outcome = attempt!(|$config, $io| $change);
            let found = outcome.expect_err("something wrong").to_string();
            assert!(found.starts_with($start), "{found}");
        }};
    }
    macro_rules! assert_shape {
        (|$io:ident| $change:expr, $expected:expr) => {{
            match attempt!(|config, $io| $change) {
                Err(Error::Shape { tensor, expected, found, .. }) => {
                    assert_eq!((tensor, expected, found), $expected)
                }
                other => panic!("a shape error, not {other:?}"),
            }
        }};
    }
    attempt!(|config, io| {}).expect("nothing wrong");
    assert_message!(
        |config, io| config.beta1 = 1.0,
        "beta1 is 1.0: it must be at least 0 and less"
    );
    assert_message!(|config, io| config.beta2 = -0.1, "beta2 is -0.1: ");
    assert_message!(|config, io| config.beta2 = f64::NAN, "beta2 is NaN: ");
    assert_message!(|config, io| config.epsilon = 0.0, "epsilon is 0.0: it must be positive");
    assert_message!(|config, io| config.epsilon = 1e-60, "epsilon is 1e-60: ");
    assert_message!(|config, io| io.schedule = host(-1.0, 1), "learning_rate is -1.0: ");
    assert_message!(|config, io| io.schedule = host(f64::NAN, 1), "learning_rate is NaN: ");
    assert_message!(|config, io| io.schedule = host(1e-3, 0), "step is 0: it must be at least 1");
    let clip = |max_norm, norm| Some(Clip { max_norm, norm });
    assert_message!(|config, io| io.clip = clip(0.0, one.as_view()), "max_norm is 0.0: ");
    assert_shape!(|io| io.clip = clip(1.0, two.as_view()), ("norm", 1, 2));
    assert_shape!(|io| io.schedule = Schedule::Device(one.as_view()), ("schedule", 2, 1));
    assert_shape!(|io| io.gradients = gradients.slice(..15), ("gradients", 16, 15));
    let mut short = device.upload(&[0.0; 17]);
    assert_shape!(|io| io.exp_avg = short.as_view_mut(), ("exp_avg", 16, 17));
    assert_shape!(|io| io.exp_avg_sq = short.as_view_mut(), ("exp_avg_sq", 16, 17));

    let part = |range, learning_rate_factor, weight_decay| {
        let group = OptimizerGroup { learning_rate_factor, weight_decay };
        OptimizerPart { range, group }
    };
    for (parts, start) in [
        (vec![part(0..17, 1.0, 0.0)], "a part of the optimizer is 0..17 of 16 elements"),
        (
            vec![part(0..8, 1.0, 0.0), part(7..9, 1.0, 0.0)],
            "a part of the optimizer is 7..9 of 16 elements, behind a part that ends at 8",
        ),
        (vec![part(Range { start: 3, end: 2 }, 1.0, 0.0)], "a part of the optimizer is 3..2"),
        (vec![part(0..8, -1.0, 0.0)], "learning_rate_factor is -1.0: "),
        (vec![part(0..8, 1.0, f64::INFINITY)], "weight_decay is inf: "),
    ] {
        assert_message!(|config, io| io.parts = &parts, start);
        let error = device.norm(&parts, &[0.0; 16]).expect_err("something wrong").to_string();
        assert!(error.starts_with(start), "{error}");
    }
    // Nothing was written by any of them but the first.
    let found = device.stream.clone_dtoh(&parameters).expect("a copy");
    assert_eq!(found, [0.0; 16]);
}
