//! No panic can be reached from safe code: random specs, lengths, strides, options and orders of
//! calls come back as results or as errors.

mod dice;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use dice::{Dice, EXTREMES};
use fused_dora::cudarc::driver::{CudaSlice, CudaStream};
use fused_dora::{
    AdamW, AdamWConfig, Adapter, AdapterGroups, AdapterLayout, Backward, Base, Clip, Decompose,
    DecomposeAdapter, Decomposition, DoraLinear, DoraSpec, Dropout, DropoutForm, Element, Forward,
    GradientNorm, Gradients, InPlace, Kernels, LinearBackward, LinearForward, Magnitude, Merge,
    MergeReport, Moments, Norm, NormGradient, Prepare, Prepared, Result, Saved, Schedule,
    SharedTensor, TensorElement, Unmerge, Workspace,
};
use fused_dora_testkit::random::fresh_seed;
use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Layers tried per dtype; each goes through every op.
const LAYERS: usize = 100;

/// Elements of each buffer that tensors are cut from.
const POOL: usize = 4096;

/// How often each op came back with a result, and with an error.
type Outcomes = BTreeMap<&'static str, [usize; 2]>;

/// A buffer that a tensor is cut from, and one of another type.
pub struct Pool<E, O = f64> {
    right: CudaSlice<E>,
    other: CudaSlice<O>,
}

impl<E: TensorElement, O: TensorElement> Pool<E, O> {
    fn new(stream: &Arc<CudaStream>) -> Self {
        let right = stream.alloc_zeros(POOL).expect("memory");
        Self { right, other: stream.alloc_zeros(POOL).expect("memory") }
    }
}

/// Buffers that tensors are cut from; each op takes from each at most once.
struct Pools<E> {
    read: [Pool<E>; 6],
    write: [Pool<E>; 3],
    read_f32: [Pool<f32>; 5],
    write_f32: [Pool<f32>; 4],
    sums: Pool<f64, f32>,
}

struct Caller<E> {
    dice: Dice,
    kernels: Arc<Kernels>,
    stream: Arc<CudaStream>,
    pools: Pools<E>,
    outcomes: Outcomes,
}

impl<E: Element> Caller<E>
where
    SharedTensor: From<Arc<CudaSlice<E>>>,
{
    fn new(kernels: &Arc<Kernels>, random: StdRng) -> Self {
        let stream = kernels.context().default_stream();
        fn pools<E: TensorElement, const N: usize>(stream: &Arc<CudaStream>) -> [Pool<E>; N] {
            [0; N].map(|_| Pool::new(stream))
        }
        let pools = Pools {
            read: pools(&stream),
            write: pools(&stream),
            read_f32: pools(&stream),
            write_f32: pools(&stream),
            sums: Pool::new(&stream),
        };
        let dice = Dice { random, careless: false };
        Self { dice, kernels: kernels.clone(), stream, pools, outcomes: Outcomes::new() }
    }

    /// Makes a call whose panic is the test's failure.
    fn call<T>(
        &mut self,
        op: &'static str,
        call: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Option<T> {
        self.dice.careless = self.dice.one_in(2);
        let outcome = catch_unwind(AssertUnwindSafe(|| call(self)));
        let outcome = outcome.unwrap_or_else(|_| panic!("{op} of {} panicked", E::DTYPE));
        self.outcomes.entry(op).or_default()[usize::from(outcome.is_err())] += 1;
        if let Err(error) = &outcome {
            // Messages are made of the numbers, too.
            assert!(!error.to_string().is_empty());
        }
        outcome.ok()
    }

    /// A layer of its own through every op.
    fn layer(&mut self) {
        let Some(spec) = self.call("spec", |own| own.dice.spec(E::DTYPE)) else { return };
        self.sizes(&spec);
        let tokens = self.dice.up_to(24);
        let (inputs, outputs) = (spec.in_features(), spec.out_features());
        // Memory is asked for where it is little, and where there is none of that size.
        let elements = spec.padded_rank().max(1).saturating_mul(inputs.saturating_add(outputs));
        if (POOL..1 << 45).contains(&elements) {
            return;
        }
        let prepared = self.call("prepared", |own| Prepared::new(&own.stream, &spec));
        self.call("gains", |own| {
            let len = own.dice.len(spec.magnitude_len());
            Prepared::for_unmerge(&own.stream, &spec, &vec![1.0; len])
        });
        let workspace = self.call("workspace", |own| {
            let tokens = own.dice.dimension(tokens);
            if (1 << 8..=1 << 32).contains(&tokens) {
                return Workspace::new(&own.kernels, &own.stream, &[spec], 1 << 31);
            }
            Workspace::new(&own.kernels, &own.stream, &[spec], tokens)
        });
        self.linear(&spec, tokens);
        let (Some(mut prepared), Some(mut workspace)) = (prepared, workspace) else { return };
        self.call("saved for a spec", |own| {
            let form = own.dice.dropout(spec.norm()).map(|dropout| dropout.form());
            let specs = &[spec; 2][..own.dice.of(1, &[0, 2])];
            let room = own.dice.dimension(tokens);
            let room = if (1 << 8..=1 << 32).contains(&room) { tokens } else { room };
            Saved::new(&own.stream, specs, room, form)
        });
        for _ in 0..2 {
            let tokens = self.dice.of(tokens, &EXTREMES);
            let dropout = self.dice.dropout(spec.norm());
            // Now and then the call is for another layer than what it is given was made for.
            let other = self.dice.spec(E::DTYPE).unwrap_or(spec);
            let spec = self.dice.of(spec, &[other]);
            self.prepare(&spec, &mut prepared, &mut workspace);
            self.read(&prepared);
            self.forward(&spec, &prepared, &mut workspace, tokens, dropout);
            self.backward(&spec, &prepared, &mut workspace, tokens, dropout);
            self.norm_gradient(&spec, &prepared, &mut workspace);
            self.merge(&spec, &prepared, &mut workspace);
            self.decompose(&spec, &prepared, &mut workspace);
            self.optimizer(&mut workspace);
        }
    }

    /// What is computed on the host alone, of any size.
    fn sizes(&mut self, spec: &DoraSpec) {
        let tokens = *EXTREMES.choose(&mut self.dice.random).expect("some");
        self.call("workspace size", |own| Workspace::bytes(&own.kernels, &[*spec], tokens));
        self.call("prepared size", |_| Ok(Prepared::bytes(spec)));
        self.call("adapter's parts", |own| {
            let layout = match own.dice.one_in(2) {
                true => AdapterLayout::with_bias(spec),
                false => AdapterLayout::new(spec),
            };
            AdapterGroups::default().parts(&layout, 0).for_each(drop);
            let len = own.dice.len(layout.len());
            layout.view(own.pools.read_f32[0].right.slice(..len))?;
            layout.view_mut(own.pools.write_f32[0].right.slice_mut(..len)).map(drop)
        });
    }

    fn prepare(&mut self, spec: &DoraSpec, prepared: &mut Prepared, workspace: &mut Workspace) {
        self.call("prepare", |own| {
            let Self { dice, kernels, stream, pools, .. } = own;
            let [a, b, m, bias, _] = &pools.read_f32;
            let right = if dice.one_in(3) { 3 } else { 1 };
            let kind = dice.of(if spec.norm() == Norm::None { 0 } else { right }, &[0, 1, 2, 3]);
            let io = Prepare {
                weight: dice.read(&pools.read[0], spec.out_features(), spec.in_features()).into(),
                lora_a: dice.read(a, spec.rank(), spec.in_features()),
                lora_b: dice.read(b, spec.out_features(), spec.rank()),
                magnitude: match kind {
                    0 => Magnitude::None,
                    1 => Magnitude::Given(dice.read(m, 1, spec.magnitude_len())),
                    3 => Magnitude::Sharded,
                    _ => {
                        let m = &mut pools.write_f32[0];
                        Magnitude::Init(dice.write(m, 1, spec.magnitude_len()))
                    }
                },
                bias: dice.one_in(2).then(|| dice.read(bias, 1, spec.out_features())),
            };
            kernels.prepare(stream, spec, workspace, prepared, io)
        });
        if prepared.squared_norms_mut().is_none() && !self.dice.one_in(8) {
            return;
        }
        self.call("finish_prepare", |own| {
            let Self { dice, kernels, stream, pools, .. } = own;
            let [_, b, m, ..] = &pools.read_f32;
            let magnitude = match dice.of(0, &[1, 2]) {
                0 => Magnitude::Given(dice.read(m, 1, spec.magnitude_len())),
                1 => Magnitude::Sharded,
                _ => Magnitude::None,
            };
            let lora_b = dice.read(b, spec.out_features(), spec.rank());
            kernels.finish_prepare(stream, spec, prepared, lora_b, magnitude)
        });
    }

    /// What prepared operands hold, copied to the host.
    fn read(&mut self, prepared: &Prepared) {
        self.call("read norm", |own| prepared.read_norm(&own.stream));
        self.call("read gain", |own| prepared.read_gain(&own.stream));
    }

    fn forward(
        &mut self,
        spec: &DoraSpec,
        prepared: &Prepared,
        workspace: &mut Workspace,
        tokens: usize,
        dropout: Option<Dropout>,
    ) {
        let peft = is_peft(dropout, spec);
        self.call("forward", |own| {
            let Self { dice, kernels, stream, pools, .. } = own;
            let [x, weight, bias, ..] = &pools.read;
            let [y, z, h] = &mut pools.write;
            let (inputs, outputs) = (spec.in_features(), spec.out_features());
            let io = Forward {
                tokens,
                x: dice.read_rows(x, tokens, inputs),
                base: Base::new(dice.read(weight, outputs, inputs))
                    .with_bias(dice.one_in(2).then(|| dice.read(bias, 1, outputs))),
                seed: dice.random.random(),
                dropout,
                counter: None,
                z: {
                    let view = dice.write(z, tokens, outputs);
                    dice.maybe(peft, view)
                },
                y: dice.write_rows(y, tokens, outputs),
                h: dice.write(h, tokens, spec.padded_rank()),
            };
            kernels.forward(stream, spec, prepared, workspace, io)
        });
    }

    fn backward(
        &mut self,
        spec: &DoraSpec,
        prepared: &Prepared,
        workspace: &mut Workspace,
        tokens: usize,
        dropout: Option<Dropout>,
    ) {
        let peft = is_peft(dropout, spec);
        self.call("backward", |own| {
            let Self { dice, kernels, stream, pools, .. } = own;
            let [x, weight, bias, output, z, grad_output] = &pools.read;
            let [grad_input, h, _] = &mut pools.write;
            let [a, b, m, grad_bias] = &mut pools.write_f32;
            let (inputs, outputs) = (spec.in_features(), spec.out_features());
            let has_norm = spec.norm() != Norm::None;
            let io = Backward {
                tokens,
                gradients: dice.of(Gradients::Overwrite, &[Gradients::Accumulate]),
                x: dice.read_rows(x, tokens, inputs),
                base: Base::new(dice.read(weight, outputs, inputs))
                    .with_bias(dice.one_in(2).then(|| dice.read(bias, 1, outputs))),
                output: {
                    let rows = dice.read_rows(output, tokens, outputs);
                    dice.maybe(spec.norm() == Norm::Output && !peft, rows)
                },
                z: {
                    let view = dice.read(z, tokens, outputs);
                    dice.maybe(peft, view)
                },
                dropout,
                counter: None,
                grad_output: dice.read_rows(grad_output, tokens, outputs),
                h: dice.read(h, tokens, spec.padded_rank()),
                grad_input: {
                    let rows = dice.write_rows(grad_input, tokens, inputs);
                    dice.random.random::<bool>().then_some(rows)
                },
                grad_lora_a: dice.write(a, spec.rank(), inputs),
                grad_lora_b: dice.write(b, outputs, spec.rank()),
                grad_magnitude: {
                    let view = dice.write(m, 1, spec.magnitude_len());
                    dice.maybe(has_norm, view)
                },
                grad_bias: dice.one_in(2).then(|| dice.write(grad_bias, 1, outputs)),
            };
            kernels.backward(stream, spec, prepared, workspace, io)
        });
    }

    fn norm_gradient(&mut self, spec: &DoraSpec, prepared: &Prepared, workspace: &mut Workspace) {
        self.call("norm_gradient", |own| {
            let Self { dice, kernels, stream, pools, .. } = own;
            let [a, b, m, ..] = &pools.read_f32;
            let [grad_a, grad_b, ..] = &mut pools.write_f32;
            let (inputs, outputs, rank) = (spec.in_features(), spec.out_features(), spec.rank());
            let io = NormGradient {
                weight: dice.read(&pools.read[0], outputs, inputs).into(),
                lora_a: dice.read(a, rank, inputs),
                lora_b: dice.read(b, outputs, rank),
                grad_magnitude: dice.read(m, 1, spec.magnitude_len()),
                grad_lora_a: dice.write(grad_a, rank, inputs),
                grad_lora_b: dice.write(grad_b, outputs, rank),
            };
            kernels.norm_gradient(stream, spec, prepared, workspace, io)
        });
    }

    fn merge(&mut self, spec: &DoraSpec, prepared: &Prepared, workspace: &mut Workspace) {
        let (inputs, outputs, rank) = (spec.in_features(), spec.out_features(), spec.rank());
        self.call("merge", |own| {
            let Self { dice, kernels, stream, pools, .. } = own;
            let report = dice.write(&mut pools.sums, 1, MergeReport::LEN);
            let io = Merge {
                weight: dice.read(&pools.read[0], outputs, inputs).into(),
                lora_a: dice.read(&pools.read_f32[0], rank, inputs),
                lora_b: dice.read(&pools.read_f32[1], outputs, rank),
                merged: dice.write(&mut pools.write[0], outputs, inputs),
                report: dice.one_in(2).then_some(report),
            };
            kernels.merge(stream, spec, prepared, workspace, io)
        });
        self.call("unmerge", |own| {
            let Self { dice, kernels, stream, pools, .. } = own;
            let io = Unmerge {
                merged: dice.read(&pools.read[0], outputs, inputs),
                lora_a: dice.read(&pools.read_f32[0], rank, inputs),
                lora_b: dice.read(&pools.read_f32[1], outputs, rank),
                weight: dice.write(&mut pools.write[0], outputs, inputs),
            };
            kernels.unmerge(stream, spec, prepared, workspace, io)
        });
        for op in ["merge_in_place", "unmerge_in_place"] {
            self.call(op, |own| {
                let Self { dice, kernels, stream, pools, .. } = own;
                let report = dice.write(&mut pools.sums, 1, MergeReport::LEN);
                let report = dice.one_in(2).then_some(report);
                let io = InPlace {
                    weight: dice.write(&mut pools.write[0], outputs, inputs),
                    lora_a: dice.read(&pools.read_f32[0], rank, inputs),
                    lora_b: dice.read(&pools.read_f32[1], outputs, rank),
                };
                match op {
                    "merge_in_place" => {
                        kernels.merge_in_place(stream, spec, prepared, workspace, io, report)
                    }
                    _ => kernels.unmerge_in_place(stream, spec, prepared, workspace, io),
                }
            });
        }
        self.call("report", |own| {
            let len = own.dice.len(MergeReport::LEN);
            MergeReport::read(&own.stream, &own.pools.sums.right.slice(..len))
        });
    }

    fn decompose(&mut self, spec: &DoraSpec, prepared: &Prepared, workspace: &mut Workspace) {
        let (inputs, outputs, rank) = (spec.in_features(), spec.out_features(), spec.rank());
        self.call("decompose", |own| {
            let Self { dice, kernels, stream, pools, .. } = own;
            let io = Decompose {
                axis: dice.axis(),
                weight: dice.read(&pools.read[0], outputs, inputs).into(),
                changed: dice.read(&pools.read[1], outputs, inputs),
                result: dice.write(&mut pools.sums, 1, Decomposition::LEN),
            };
            kernels.decompose(stream, spec, workspace, io)
        });
        self.call("decompose_adapter", |own| {
            let Self { dice, kernels, stream, pools, .. } = own;
            let io = DecomposeAdapter {
                axis: dice.axis(),
                weight: dice.read(&pools.read[0], outputs, inputs).into(),
                lora_a: dice.read(&pools.read_f32[0], rank, inputs),
                lora_b: dice.read(&pools.read_f32[1], outputs, rank),
                result: dice.write(&mut pools.sums, 1, Decomposition::LEN),
            };
            kernels.decompose_adapter(stream, spec, prepared, workspace, io)
        });
        self.call("decomposition", |own| {
            let len = own.dice.len(Decomposition::LEN);
            Decomposition::read(&own.stream, &own.pools.sums.right.slice(..len))
        });
    }

    fn optimizer(&mut self, workspace: &mut Workspace) {
        let len = self.dice.up_to(POOL);
        self.call("gradient_norm", |own| {
            let Self { dice, kernels, stream, pools, .. } = own;
            let parts = dice.parts(len);
            let io = GradientNorm {
                len: dice.dimension(len),
                parts: &parts,
                gradients: dice.read(&pools.read_f32[0], 1, len),
                norm: dice.write(&mut pools.write_f32[0], 1, 1),
            };
            kernels.gradient_norm(stream, workspace, io)
        });
        self.call("adamw", |own| {
            let Self { dice, kernels, stream, pools, .. } = own;
            let [gradients, numbers, norm, ..] = &pools.read_f32;
            let [parameters, exp_avg, exp_avg_sq, _] = &mut pools.write_f32;
            let parts = dice.parts(len);
            let config = AdamWConfig {
                beta1: dice.float(0.9),
                beta2: dice.float(0.99),
                epsilon: dice.float(1e-8),
            };
            let step = dice.of(1, &[0, u64::MAX]);
            let schedule = match dice.one_in(2) {
                true => Schedule::Host { learning_rate: dice.float(1e-3), step },
                false => Schedule::Device(dice.read(numbers, 1, 2)),
            };
            let clip = Clip { max_norm: dice.float(1.0), norm: dice.read(norm, 1, 1) };
            let io = AdamW {
                len: dice.dimension(len),
                parts: &parts,
                schedule,
                clip: dice.one_in(2).then_some(clip),
                parameters: dice.write(parameters, 1, len),
                gradients: dice.read(gradients, 1, len),
                exp_avg: dice.write(exp_avg, 1, len),
                exp_avg_sq: dice.write(exp_avg_sq, 1, len),
            };
            kernels.adamw(stream, &config, io)
        });
    }

    /// The layer that owns its adapters, in any order of calls.
    fn linear(&mut self, spec: &DoraSpec, tokens: usize) {
        let (inputs, outputs) = (spec.in_features(), spec.out_features());
        let made = self.call("linear", |own| {
            let Self { dice, kernels, stream, .. } = own;
            let base = DoraLinear::base_spec(inputs, outputs, E::DTYPE)?;
            let workspace = Workspace::new(kernels, stream, &[base, *spec], tokens)?;
            let workspace = Arc::new(Mutex::new(workspace));
            let weight = dice.product(outputs, inputs).max(1);
            let bias = dice.len(outputs).max(1);
            let zeros = |len| Arc::new(stream.alloc_zeros::<E>(len).expect("memory"));
            let (weight, bias) = (zeros(weight), zeros(bias));
            let bias = if dice.wrong() { bias_of_f32(stream, outputs) } else { bias.into() };
            let bias = dice.one_in(2).then_some(bias);
            DoraLinear::new(kernels, stream, &workspace, [outputs, inputs], weight, bias)
        });
        let made_adapter = self.call("adapter", |own| {
            let trains_bias = own.dice.one_in(2);
            Adapter::new(&own.stream, spec, trains_bias)
        });
        let (Some(mut linear), Some(adapter)) = (made, made_adapter) else { return };
        let layout = *adapter.layout();
        self.call("attach", |_| linear.attach("one", adapter));
        let name = |own: &mut Self| own.dice.of("one", &["", "two"]);
        for _ in 0..2 {
            self.call("initialise", |own| linear.initialise(name(own), own.dice.random.random()));
            self.call("activate", |own| linear.activate(Some(name(own))));
            let dropout = self.dice.dropout(spec.norm());
            let form = dropout.map(|dropout| dropout.form());
            let saved = self.call("saved", |own| {
                let room = own.dice.dimension(tokens);
                // Such an amount of memory there may be.
                let room = if (1 << 8..=1 << 32).contains(&room) { tokens } else { room };
                linear.saved(room, form)
            });
            let Some(mut saved) = saved else { continue };
            let called = self.dice.of(tokens, &EXTREMES);
            self.call("linear forward", |own| {
                let Self { dice, pools, .. } = own;
                let io = LinearForward {
                    tokens: called,
                    x: dice.read_rows(&pools.read[0], called, inputs),
                    y: dice.write_rows(&mut pools.write[0], called, outputs),
                    seed: dice.random.random(),
                    dropout,
                    counter: None,
                };
                linear.forward(&mut saved, io)
            });
            self.call("linear backward", |own| {
                let Self { dice, pools, .. } = own;
                let [x, y, grad_output, ..] = &pools.read;
                let dx = dice.write_rows(&mut pools.write[0], called, inputs);
                let io = LinearBackward {
                    tokens: called,
                    gradients: Gradients::Accumulate,
                    x: dice.read_rows(x, called, inputs),
                    y: dice.read_rows(y, called, outputs),
                    dropout,
                    counter: None,
                    grad_output: dice.read_rows(grad_output, called, outputs),
                    grad_input: dice.one_in(2).then_some(dx),
                };
                linear.backward(&saved, io)
            });
            self.call("finish_gradients", |_| linear.finish_gradients());
            self.call("linear adamw", |own| {
                let other = AdapterLayout::with_bias(spec);
                let layout = own.dice.of(layout, &[other]);
                let mut moments = Moments::new(&own.stream, &layout, AdapterGroups::default())?;
                let schedule = Schedule::Host { learning_rate: own.dice.float(0.1), step: 1 };
                linear.adamw(&AdamWConfig::default(), schedule, None, &mut moments)
            });
        }
        let name = name(self);
        self.call("detach", |_| linear.detach(name));
    }
}

fn is_peft(dropout: Option<Dropout>, spec: &DoraSpec) -> bool {
    let form = dropout.map(|dropout| dropout.form());
    form == Some(DropoutForm::Peft) && spec.norm() == Norm::Output
}

/// For a layer of any dtype. Two dtypes refuse it.
fn bias_of_f32(stream: &Arc<CudaStream>, len: usize) -> SharedTensor {
    Arc::new(stream.alloc_zeros::<f32>(len).expect("memory")).into()
}

fn calls<E: Element>(kernels: &Arc<Kernels>, seed: u64)
where
    SharedTensor: From<Arc<CudaSlice<E>>>,
{
    let mut caller = Caller::<E>::new(kernels, StdRng::seed_from_u64(seed));
    (0..LAYERS).for_each(|_| caller.layer());
    caller.stream.synchronize().expect("no launch was at fault");
    let outcomes = &caller.outcomes;
    println!("{}: {outcomes:?}", E::DTYPE);
    let never: Vec<_> = outcomes.iter().filter(|(_, [ok, _])| *ok == 0).collect();
    assert!(never.is_empty(), "the test says nothing about calls that never succeed: {never:?}");
}

#[test]
fn random_calls_do_not_panic() {
    let context = fused_dora_testkit::device::open().expect("a device");
    let kernels = Arc::new(Kernels::load(&context).expect("kernels"));
    let seed = fresh_seed();
    calls::<bf16>(&kernels, seed);
    calls::<f16>(&kernels, seed);
    calls::<f32>(&kernels, seed);
}
