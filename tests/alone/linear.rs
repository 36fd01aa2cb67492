//! `DoraLinear`: adapters attached, switched and trained on one frozen weight.

use std::sync::{Arc, Mutex};

use fused_dora::cudarc::driver::{CudaSlice, CudaStream, sys};
use fused_dora::reference::{self, Case};
use fused_dora::{
    AdamWConfig, Adapter, AdapterGroups, DoraLinear, DoraSpec, Dropout, DropoutForm, Dtype, Error,
    Gradients, Kernels, LinearBackward, LinearForward, MergeReport, Moments, Norm, NormGrad, Part,
    Result, Saved, Scaling, Schedule, SharedWorkspace, Workspace,
};
use fused_dora_testkit::device::{Device, open_choice};
use fused_dora_testkit::random::{fresh_seed, random_case};
use fused_dora_testkit::run::Runner;
use fused_dora_testkit::settings::alone;
use half::bf16;
use rand::SeedableRng;
use rand::rngs::StdRng;

mod replays;

const TOKENS: usize = 37;
const INPUTS: usize = 48;
const OUTPUTS: usize = 56;

/// A layer on a stream of its own, and one micro-batch.
struct Bench {
    device: Device,
    kernels: Arc<Kernels>,
    stream: Arc<CudaStream>,
    workspace: SharedWorkspace,
    layer: DoraLinear,
    saved: Saved,
    x: CudaSlice<bf16>,
    y: CudaSlice<bf16>,
    grad_output: CudaSlice<bf16>,
    grad_input: CudaSlice<bf16>,
    counter: Option<CudaSlice<u64>>,
}

fn halves(values: &[f64]) -> Vec<bf16> {
    values.iter().map(|&value| bf16::from_f64(value)).collect()
}

fn spec(norm: Norm, rank: usize, norm_grad: NormGrad) -> DoraSpec {
    let scaling = Scaling::Value(2.0);
    DoraSpec::new(INPUTS, OUTPUTS, rank, scaling, norm, norm_grad, Dtype::Bf16).expect("a layer")
}

impl Bench {
    /// A layer with the case's frozen weight and bias, for its batch.
    fn new(case: &Case) -> Self {
        let device = open_choice(None).expect("a device");
        let kernels = Arc::new(Kernels::load(&device.context).expect("kernels"));
        Self::on(device, &kernels, case)
    }

    fn on(device: Device, kernels: &Arc<Kernels>, case: &Case) -> Self {
        let stream = device.context.new_stream().expect("a stream");
        let mut specs = vec![DoraLinear::base_spec(INPUTS, OUTPUTS, Dtype::Bf16).expect("a layer")];
        for norm in [Norm::None, Norm::Input, Norm::Output] {
            let norm_grad = if norm == Norm::None { NormGrad::Detached } else { NormGrad::Exact };
            specs.push(spec(norm, 16, norm_grad));
        }
        let workspace = Workspace::new(kernels, &stream, &specs, TOKENS).expect("memory");
        let workspace = Arc::new(Mutex::new(workspace));
        let weight = Arc::new(stream.clone_htod(&halves(&case.weight)).expect("memory"));
        let upload = |values: &Vec<f64>| stream.clone_htod(&halves(values)).expect("memory");
        let bias = case.bias.as_ref().map(|bias| Arc::new(upload(bias)).into());
        let layer = DoraLinear::new(kernels, &stream, &workspace, [OUTPUTS, INPUTS], weight, bias);
        let layer = layer.expect("a layer");
        Self {
            saved: layer.saved(0, None).expect("memory"),
            layer,
            x: upload(&case.input),
            y: stream.clone_htod(&vec![bf16::NAN; TOKENS * OUTPUTS]).expect("memory"),
            grad_output: upload(&case.grad_output),
            grad_input: stream.clone_htod(&vec![bf16::NAN; TOKENS * INPUTS]).expect("memory"),
            counter: None,
            device,
            kernels: kernels.clone(),
            stream,
            workspace,
        }
    }

    /// Attaches the case's adapter.
    fn attach(&mut self, name: &str, case: &Case, spec: &DoraSpec) -> Result<()> {
        let mut adapter = Adapter::new(&self.stream, spec, false)?;
        let mut host = vec![0f32; adapter.layout().len()];
        let parts = [&case.lora_a, &case.lora_b, &case.magnitude];
        for (part, values) in Part::ALL.into_iter().zip(parts) {
            let range = adapter.layout().range(part);
            host[range].iter_mut().zip(values).for_each(|(to, &from)| *to = from as f32);
        }
        self.stream.memcpy_htod(&host, &mut adapter.parameters_mut()).expect("a copy");
        self.layer.attach(name, adapter)?;
        self.saved = self.layer.saved(TOKENS, Some(DropoutForm::Peft))?;
        Ok(())
    }

    fn forward(&mut self, dropout: Option<Dropout>) -> Result<()> {
        let Self { layer, saved, x, y, counter, .. } = self;
        let counter = counter.as_ref().map(Into::into);
        let (x, y) = ((&*x).into(), y.into());
        layer.forward(saved, LinearForward { tokens: TOKENS, x, y, seed: 1, dropout, counter })
    }

    fn backward(&mut self, gradients: Gradients, dropout: Option<Dropout>) -> Result<()> {
        let Self { layer, saved, x, y, grad_output, grad_input, counter, .. } = self;
        let io = LinearBackward {
            tokens: TOKENS,
            gradients,
            x: (&*x).into(),
            y: (&*y).into(),
            dropout,
            counter: counter.as_ref().map(Into::into),
            grad_output: (&*grad_output).into(),
            grad_input: Some(grad_input.into()),
        };
        layer.backward(saved, io)
    }

    /// y and dX.
    fn activations(&self) -> [Vec<f32>; 2] {
        [&self.y, &self.grad_input].map(|buffer| {
            let values = self.stream.clone_dtoh(buffer).expect("a copy");
            values.into_iter().map(bf16::to_f32).collect()
        })
    }

    /// y, dX, dA, dB and dm of the active adapter.
    fn results(&self, name: &str) -> Vec<Vec<f32>> {
        let adapter = self.layer.adapter(name).expect("attached");
        let gradients = self.stream.clone_dtoh(&adapter.gradients()).expect("a copy");
        let part = |part| gradients[adapter.layout().range(part)].to_vec();
        let parts = [Part::LoraA, Part::LoraB, Part::Magnitude].map(part);
        self.activations().into_iter().chain(parts).collect()
    }
}

fn case_of(random: &mut StdRng, base: Option<&Case>, rank: usize, norm: Norm) -> Case {
    let mut case = random_case(random, [TOKENS, INPUTS, OUTPUTS, rank], norm, true);
    if let Some(base) = base {
        case.weight = base.weight.clone();
        case.bias = base.bias.clone();
        case.input = base.input.clone();
        case.grad_output = base.grad_output.clone();
    }
    case.rounded(Dtype::Bf16)
}

fn bits(tensors: &[Vec<f32>]) -> Vec<Vec<u32>> {
    tensors.iter().map(|tensor| tensor.iter().map(|value| value.to_bits()).collect()).collect()
}

#[test]
fn adapters_are_switched_on_one_weight() {
    let _alone = alone();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let base = case_of(&mut random, None, 0, Norm::None);
    let mut bench = Bench::new(&base);
    let runner = Runner::new(&bench.device.context).expect("kernels");
    let cases = [
        ("lora", case_of(&mut random, Some(&base), 5, Norm::None)),
        ("input", case_of(&mut random, Some(&base), 16, Norm::Input)),
        ("output", case_of(&mut random, Some(&base), 3, Norm::Output)),
        ("magnitudes", case_of(&mut random, Some(&base), 0, Norm::Output)),
    ];
    for (name, case) in &cases {
        let spec = spec(case.norm, case.rank, NormGrad::Detached);
        bench.attach(name, case, &spec).expect("attached");
    }
    let plain = runner.run(&base, Dtype::Bf16).expect("the ops");
    for round in 0..2 {
        bench.layer.activate(None).expect("the base layer");
        bench.forward(None).expect("forward");
        bench.backward(Gradients::Overwrite, None).expect("backward");
        assert_eq!(bits(&bench.activations()), bits(&plain[..2]), "the base layer");
        for (name, case) in &cases {
            bench.layer.activate(Some(name)).expect("attached");
            let before = bench.device.launches().expect("counts");
            bench.forward(None).expect("forward");
            let launches = bench.device.launches().expect("counts") - before;
            assert_eq!(launches, 1 + u64::from(round == 0), "{name}: prepared once");
            bench.backward(Gradients::Overwrite, None).expect("backward");
            let expected = runner.run(case, Dtype::Bf16).expect("the ops");
            assert_eq!(bits(&bench.results(name)), bits(&expected[..5]), "{name}");
        }
    }
    let taken = bench.layer.detach("magnitudes").expect("attached");
    assert_eq!(bench.layer.active(), None);
    assert_eq!(taken.spec().rank(), 0);
    assert_eq!(bench.layer.adapters().count(), 3);
    bench.layer.attach("again", taken).expect("a free name");
}

#[test]
fn a_fresh_adapter_changes_nothing() {
    let _alone = alone();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let base = case_of(&mut random, None, 0, Norm::None);
    let mut bench = Bench::new(&base);
    bench.forward(None).expect("forward");
    let [plain, _] = bench.activations();
    for norm in [Norm::None, Norm::Input, Norm::Output] {
        let spec = spec(norm, 7, NormGrad::Detached);
        let adapter = Adapter::new(&bench.stream, &spec, true).expect("memory");
        bench.layer.attach("fresh", adapter).expect("attached");
        bench.layer.initialise("fresh", 3).expect("initialised");
        bench.layer.activate(Some("fresh")).expect("attached");
        bench.saved = bench.layer.saved(TOKENS, None).expect("memory");
        bench.forward(None).expect("forward");
        assert_eq!(bits(&bench.activations()[..1]), bits(std::slice::from_ref(&plain)), "{norm:?}");
        let adapter = bench.layer.detach("fresh").expect("attached");
        let parameters = bench.stream.clone_dtoh(&adapter.parameters()).expect("a copy");
        let lora_a = &parameters[adapter.layout().range(Part::LoraA)];
        let bound = 1.0 / (INPUTS as f32).sqrt();
        let largest = lora_a.iter().fold(0f32, |most, a| most.max(a.abs()));
        assert!(largest <= bound && largest > 0.9 * bound, "{largest} of {bound}");
    }
}

/// One optimizer step of two micro-batches.
fn step(bench: &mut Bench, moments: &mut Moments, step: u64, dropout: Option<Dropout>) {
    for gradients in [Gradients::Overwrite, Gradients::Accumulate] {
        bench.forward(dropout).expect("forward");
        bench.backward(gradients, dropout).expect("backward");
    }
    bench.layer.finish_gradients().expect("the norm's gradient");
    let schedule = Schedule::Host { learning_rate: 1e-2, step };
    bench.layer.adamw(&AdamWConfig::default(), schedule, None, moments).expect("a step");
}

/// The same step with the schedule on the device, from x to the parameters.
fn device_step(bench: &mut Bench, moments: &mut Moments, schedule: &CudaSlice<f32>) {
    for gradients in [Gradients::Overwrite, Gradients::Accumulate] {
        bench.forward(None).expect("forward");
        bench.backward(gradients, None).expect("backward");
    }
    bench.layer.finish_gradients().expect("the norm's gradient");
    let schedule = Schedule::Device(schedule.into());
    bench.layer.adamw(&AdamWConfig::default(), schedule, None, moments).expect("a step");
}

/// y after each of three steps, each followed by an evaluation, and the parameters after the last.
/// `evaluated`: an evaluation before the first step, too. `captured`: one captured step, replayed.
fn trained(base: &Case, case: &Case, captured: bool, evaluated: bool) -> Vec<Vec<f32>> {
    let device = open_choice(None).expect("a device");
    // SAFETY: everything is on one stream.
    unsafe { device.context.disable_event_tracking() };
    let kernels = Arc::new(Kernels::load(&device.context).expect("kernels"));
    let mut bench = Bench::on(device, &kernels, base);
    bench.attach("a", case, &spec(case.norm, case.rank, NormGrad::Exact)).expect("attached");
    bench.layer.activate(Some("a")).expect("attached");
    let layout = *bench.layer.adapter("a").expect("attached").layout();
    let mut moments =
        Moments::new(&bench.stream, &layout, AdapterGroups::default()).expect("memory");
    let mut schedule = bench.stream.alloc_zeros::<f32>(2).expect("memory");
    if evaluated {
        bench.forward(None).expect("forward");
    }
    let graph = captured.then(|| {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        bench.stream.begin_capture(mode).expect("a capture");
        device_step(&mut bench, &mut moments, &schedule);
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        bench.stream.end_capture(flags).expect("a capture").expect("a graph")
    });
    let mut results = Vec::new();
    for count in 1..=3 {
        let values = [1e-2, count as f32];
        bench.stream.memcpy_htod(&values, &mut schedule).expect("a copy");
        match &graph {
            Some(graph) => graph.launch().expect("a launch"),
            None => device_step(&mut bench, &mut moments, &schedule),
        }
        bench.forward(None).expect("forward");
        let [y, _] = bench.activations();
        results.push(y);
    }
    let adapter = bench.layer.adapter("a").expect("attached");
    results.push(bench.stream.clone_dtoh(&adapter.parameters()).expect("a copy"));
    // A launch of the graph between a merge and this would go unseen.
    let mut merged = bench.stream.alloc_zeros::<bf16>(OUTPUTS * INPUTS).expect("memory");
    let mut weight = bench.stream.alloc_zeros::<bf16>(OUTPUTS * INPUTS).expect("memory");
    bench.layer.merge(&mut merged, None).expect("merged");
    let unmerged = bench.layer.unmerge(&merged, &mut weight);
    assert_eq!(matches!(unmerged, Err(Error::NotPrepared { .. })), captured, "{unmerged:?}");
    results
}

#[test]
fn replays_of_a_captured_step_are_steps() {
    let _alone = alone();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let base = case_of(&mut random, None, 0, Norm::None);
    for norm in [Norm::Input, Norm::Output] {
        let case = case_of(&mut random, Some(&base), 16, norm);
        for evaluated in [false, true] {
            let plain = trained(&base, &case, false, evaluated);
            let replayed = trained(&base, &case, true, evaluated);
            assert_eq!(bits(&replayed), bits(&plain), "{norm:?}, evaluated before: {evaluated}");
            assert_ne!(bits(&plain[..1]), bits(&plain[1..2]), "{norm:?}: nothing was trained");
        }
    }
}

#[test]
fn a_training_resumes_with_the_same_bits() {
    let _alone = alone();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let base = case_of(&mut random, None, 0, Norm::None);
    let case = case_of(&mut random, Some(&base), 16, Norm::Output);
    let start = || {
        let mut bench = Bench::new(&base);
        bench.attach("a", &case, &spec(Norm::Output, 16, NormGrad::Exact)).expect("attached");
        bench.layer.activate(Some("a")).expect("attached");
        let layout = *bench.layer.adapter("a").expect("attached").layout();
        let moments = Moments::new(&bench.stream, &layout, AdapterGroups::default());
        (bench, moments.expect("memory"))
    };
    let parameters = |bench: &Bench| {
        let adapter = bench.layer.adapter("a").expect("attached");
        bench.stream.clone_dtoh(&adapter.parameters()).expect("a copy")
    };
    let (mut whole, mut moments) = start();
    (1..=2).for_each(|at| step(&mut whole, &mut moments, at, None));
    // What a checkpoint keeps.
    let kept = parameters(&whole);
    let copy = |view| whole.stream.clone_dtoh(&view).expect("a copy");
    let (exp_avg, exp_avg_sq) = (copy(moments.exp_avg()), copy(moments.exp_avg_sq()));
    (3..=4).for_each(|at| step(&mut whole, &mut moments, at, None));
    let expected = parameters(&whole);
    drop((whole, moments));

    let (mut resumed, mut moments) = start();
    let stream = resumed.stream.clone();
    let adapter = resumed.layer.adapter_mut("a").expect("attached");
    stream.memcpy_htod(&kept, &mut adapter.parameters_mut()).expect("a copy");
    stream.memcpy_htod(&exp_avg, &mut moments.exp_avg_mut()).expect("a copy");
    stream.memcpy_htod(&exp_avg_sq, &mut moments.exp_avg_sq_mut()).expect("a copy");
    (3..=4).for_each(|at| step(&mut resumed, &mut moments, at, None));
    assert_eq!(bits(&[parameters(&resumed)]), bits(&[expected]));
}

#[test]
fn steps_launch_kernels_and_nothing_else() {
    let _alone = alone();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let base = case_of(&mut random, None, 0, Norm::None);
    for (norm, form) in [
        (Norm::None, None),
        (Norm::Input, None),
        (Norm::Output, None),
        (Norm::Input, Some(DropoutForm::Adapter)),
        (Norm::Output, Some(DropoutForm::Peft)),
    ] {
        let mut bench = Bench::new(&base);
        let exact = norm != Norm::None;
        let norm_grad = if exact { NormGrad::Exact } else { NormGrad::Detached };
        let case = case_of(&mut random, Some(&base), 16, norm);
        bench.attach("a", &case, &spec(norm, 16, norm_grad)).expect("attached");
        bench.layer.activate(Some("a")).expect("attached");
        let layout = *bench.layer.adapter("a").expect("attached").layout();
        let groups = AdapterGroups::default();
        let mut moments = Moments::new(&bench.stream, &layout, groups).expect("memory");
        let dropout = form.map(|form| Dropout::new(0.1, form, 5).expect("a probability"));
        step(&mut bench, &mut moments, 1, dropout);
        bench.stream.synchronize().expect("no fault");
        let before = bench.device.counters();
        step(&mut bench, &mut moments, 2, dropout);
        // A GPU does not count.
        let Some((before, after)) = before.zip(bench.device.counters()) else { continue };
        // prepare; two micro-batches, forward and backward; norm_gradient; adamw.
        let launches = 1 + 2 * (1 + 1) + if exact { 2 } else { 0 } + 1;
        assert_eq!(after.launches - before.launches, launches, "{norm:?}");
        let others = |c: &cuda_emulator::Counters| {
            let copies = [c.copies_htod, c.copies_dtoh, c.copies_dtod, c.memsets];
            ([c.allocations, c.frees, c.synchronizations], copies)
        };
        assert_eq!(others(&after), others(&before), "{norm:?}");
    }
}

/// A layer learns what another one computes.
#[test]
fn training_lowers_the_loss() {
    let _alone = alone();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let base = case_of(&mut random, None, 0, Norm::None);
    for norm in [Norm::None, Norm::Input, Norm::Output] {
        let mut bench = Bench::new(&base);
        let teacher = case_of(&mut random, Some(&base), 4, norm);
        let norm_grad = if norm == Norm::None { NormGrad::Detached } else { NormGrad::Exact };
        let spec = spec(norm, 4, norm_grad);
        bench.attach("teacher", &teacher, &spec).expect("attached");
        bench.layer.activate(Some("teacher")).expect("attached");
        bench.forward(None).expect("forward");
        let [wanted, _] = bench.activations();
        let adapter = Adapter::new(&bench.stream, &spec, false).expect("memory");
        bench.layer.attach("student", adapter).expect("attached");
        bench.layer.initialise("student", 1).expect("initialised");
        bench.layer.activate(Some("student")).expect("attached");
        let layout = *bench.layer.adapter("student").expect("attached").layout();
        let mut moments =
            Moments::new(&bench.stream, &layout, AdapterGroups::default()).expect("memory");
        let mut losses = Vec::new();
        for number in 1..=40 {
            bench.forward(None).expect("forward");
            let [y, _] = bench.activations();
            let errors: Vec<f32> = y.iter().zip(&wanted).map(|(y, wanted)| y - wanted).collect();
            losses.push(errors.iter().map(|error| error * error).sum::<f32>());
            let gradient: Vec<bf16> = errors.into_iter().map(bf16::from_f32).collect();
            bench.stream.memcpy_htod(&gradient, &mut bench.grad_output).expect("a copy");
            bench.backward(Gradients::Overwrite, None).expect("backward");
            bench.layer.finish_gradients().expect("the norm's gradient");
            let schedule = Schedule::Host { learning_rate: 1e-2, step: number };
            let config = AdamWConfig::default();
            bench.layer.adamw(&config, schedule, None, &mut moments).expect("a step");
        }
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(last < 0.3 * first, "{norm:?}: the loss went from {first} to {last}");
    }
}

/// The active adapter is merged into a weight of its own, and taken out of it again.
#[test]
fn an_adapter_is_merged_and_unmerged() {
    let _alone = alone();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let base = case_of(&mut random, None, 0, Norm::None);
    let mut bench = Bench::new(&base);
    let stream = bench.stream.clone();
    for norm in [Norm::None, Norm::Input, Norm::Output] {
        let case = case_of(&mut random, Some(&base), 5, norm);
        bench.attach("a", &case, &spec(norm, 5, NormGrad::Detached)).expect("attached");
        bench.layer.activate(Some("a")).expect("attached");
        let mut merged = stream.clone_htod(&[f32::NAN; OUTPUTS * INPUTS]).expect("memory");
        let mut report = stream.clone_htod(&[f64::NAN; MergeReport::LEN]).expect("memory");
        for launches in [2, 1] {
            let before = bench.device.launches().expect("counts");
            bench.layer.merge(&mut merged, Some((&mut report).into())).expect("merged");
            let found = bench.device.launches().expect("counts") - before;
            assert_eq!(found, launches, "{norm:?}: prepared where it was not");
        }
        let before = bench.device.launches().expect("counts");
        let _ = bench.layer.adapter_mut("a").expect("attached").parameters_mut();
        let short = Some(report.slice_mut(1..).into());
        let error = bench.layer.merge(&mut merged, short).expect_err("a short report");
        assert!(matches!(error, Error::Shape { tensor: "report", .. }), "{error}");
        assert_eq!(bench.device.launches().expect("counts"), before, "checked before the launch");
        bench.layer.merge(&mut merged, None).expect("merged");
        let report = MergeReport::read(&stream, &report.as_view()).expect("the report");
        assert!(report.change_squared > 0.0 && report.kept() > 0.999, "{norm:?}: {report:?}");
        let norms = case.norms().expect("a consistent case");
        let gains: Vec<f64> = case.magnitude.iter().zip(norms).map(|(m, c)| m / c).collect();
        let expected = reference::merge(&case, &gains, Dtype::F32).expect("a consistent case");
        let found = stream.clone_dtoh(&merged).expect("a copy");
        for (i, found) in found.into_iter().enumerate() {
            let (expected, bound) = (expected.weight.values[i], expected.weight.bounds[i]);
            // The layer's own gain is an f32 of an f32 norm, good to 1e-5.
            let bound = bound + 1e-5 * expected.abs();
            let error = (f64::from(found) - expected).abs();
            assert!(error <= bound, "{norm:?} {i}: {found} and not {expected}: {error:e}");
        }
        let mut weight = stream.clone_htod(&[bf16::NAN; OUTPUTS * INPUTS]).expect("memory");
        bench.layer.unmerge(&merged, &mut weight).expect("unmerged");
        let restored = stream.clone_dtoh(&weight).expect("a copy");
        for (&restored, &original) in restored.iter().zip(&base.weight) {
            let error = (restored.to_f64() - original).abs();
            // One rounding to bf16, and f32's of the terms.
            assert!(error <= original.abs() / 256.0 + 1e-7, "{norm:?}: {restored}, {original}");
        }
        bench.layer.detach("a").expect("attached");
    }
}

/// A captured forward and backward do what they did, whenever they are replayed.
#[test]
fn a_graph_replays_a_micro_batch() {
    let _alone = alone();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let base = case_of(&mut random, None, 0, Norm::None);
    let device = open_choice(None).expect("a device");
    // cudarc's events from before the capture would reach into it.
    // SAFETY: everything here is on one stream.
    unsafe { device.context.disable_event_tracking() };
    let kernels = Arc::new(Kernels::load(&device.context).expect("kernels"));
    let mut bench = Bench::on(device, &kernels, &base);
    let case = case_of(&mut random, Some(&base), 5, Norm::Output);
    let spec = spec(Norm::Output, 5, NormGrad::Detached);
    bench.attach("a", &case, &spec).expect("attached");
    bench.layer.activate(Some("a")).expect("attached");
    bench.forward(None).expect("forward");
    bench.backward(Gradients::Overwrite, None).expect("backward");
    let expected = bits(&bench.results("a"));

    let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    bench.stream.begin_capture(mode).expect("a capture");
    bench.forward(None).expect("forward");
    bench.backward(Gradients::Overwrite, None).expect("backward");
    let flags = sys::CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = bench.stream.end_capture(flags).expect("a capture").expect("a graph");
    for _ in 0..2 {
        let nothing = vec![bf16::NAN; TOKENS * OUTPUTS];
        bench.stream.memcpy_htod(&nothing, &mut bench.y).expect("a copy");
        bench.stream.memset_zeros(&mut bench.grad_input).expect("a fill");
        let mut gradients = bench.layer.adapter_mut("a").expect("attached").gradients_mut();
        bench.stream.memset_zeros(&mut gradients).expect("a fill");
        graph.launch().expect("a replay");
        assert_eq!(bits(&bench.results("a")), expected);
    }
}

/// Layers on streams of their own do not wait for each other, and do not disturb each other.
#[test]
fn two_layers_on_two_streams() {
    let _alone = alone();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let base = case_of(&mut random, None, 0, Norm::None);
    let runner;
    let mut benches = {
        let first = Bench::new(&base);
        runner = Runner::new(&first.device.context).expect("kernels");
        let device = open_choice(None).expect("a device");
        let second = Bench::on(device, &first.kernels, &base);
        [first, second]
    };
    let norms = [Norm::Input, Norm::Output];
    let cases = norms.map(|norm| case_of(&mut random, Some(&base), 6, norm));
    for ((bench, case), norm) in benches.iter_mut().zip(&cases).zip(norms) {
        bench.attach("a", case, &spec(norm, 6, NormGrad::Detached)).expect("attached");
        bench.layer.activate(Some("a")).expect("attached");
    }
    for bench in &mut benches {
        bench.forward(None).expect("forward");
    }
    for bench in &mut benches {
        bench.backward(Gradients::Overwrite, None).expect("backward");
    }
    for (bench, case) in benches.iter().zip(&cases) {
        let expected = runner.run(case, Dtype::Bf16).expect("the ops");
        assert_eq!(bits(&bench.results("a")), bits(&expected[..5]));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let _alone = alone();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let base = case_of(&mut random, None, 0, Norm::None);
    let mut bench = Bench::new(&base);
    let case = case_of(&mut random, Some(&base), 5, Norm::Output);
    let fitting = spec(Norm::Output, 5, NormGrad::Detached);
    bench.attach("a", &case, &fitting).expect("attached");
    let problem = |result: Result<()>| match result {
        Err(error @ Error::Adapter { .. }) => error.to_string(),
        other => panic!("an adapter's error, not {other:?}"),
    };
    let twice = problem(bench.attach("a", &case, &fitting));
    assert!(twice.contains("`a` is attached already"), "{twice}");
    let wide = DoraSpec::new(
        8,
        OUTPUTS,
        2,
        Scaling::Value(1.0),
        Norm::None,
        NormGrad::Detached,
        Dtype::Bf16,
    )
    .expect("a layer");
    let adapter = Adapter::new(&bench.stream, &wide, false).expect("memory");
    let wide = problem(bench.layer.attach("wide", adapter));
    assert!(wide.contains("[56, 8]") && wide.contains("[56, 48]"), "{wide}");
    assert!(problem(bench.layer.activate(Some("b"))).contains("`b` is not attached"));
    assert!(problem(bench.layer.detach("b").map(drop)).contains("attach it first"));
    let layout = *bench.layer.adapter("a").expect("attached").layout();
    let mut moments =
        Moments::new(&bench.stream, &layout, AdapterGroups::default()).expect("memory");
    let schedule = Schedule::Host { learning_rate: 1e-2, step: 1 };
    let none = bench.layer.adamw(&AdamWConfig::default(), schedule, None, &mut moments);
    assert!(matches!(none, Err(Error::NoActiveAdapter { call: "adamw" })), "{none:?}");

    bench.layer.activate(Some("a")).expect("attached");
    bench.forward(None).expect("forward");
    bench.layer.adapter_mut("a").expect("attached").parameters_mut();
    let stale = bench.backward(Gradients::Overwrite, None);
    assert!(matches!(stale, Err(Error::NotPrepared { .. })), "{stale:?}");
    bench.saved = bench.layer.saved(TOKENS - 1, None).expect("memory");
    let small = bench.forward(None);
    assert!(matches!(small, Err(Error::Shape { tensor: "the saved H", .. })), "{small:?}");
    let peft = Dropout::new(0.5, DropoutForm::Peft, 1).expect("a probability");
    bench.saved = bench.layer.saved(TOKENS, None).expect("memory");
    let small = bench.forward(Some(peft));
    assert!(matches!(small, Err(Error::Shape { tensor: "the saved z", .. })), "{small:?}");
    drop(bench.workspace.lock());
}
