//! The table of misuses in the documentation of `Error`, row by row.

mod packed;
mod tensors;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::thread;

use fused_dora::cudarc::driver::CudaSlice;
use fused_dora::{
    AdamW, AdamWConfig, Adapter, AdapterGroups, AdapterLayout, AllReduce, Clip, Decompose,
    DoraLinear, DoraSpec, Dropout, DropoutForm, Dtype, Error, Gradients, HostRank, InPlace,
    Kernels, LinearBackward, LinearForward, Magnitude, Moments, Norm, NormGrad, OptimizerGroup,
    OptimizerPart, Prepare, Prepared, Result, Saved, Scaling, Schedule, Workspace, load_image,
    open_device,
};
use half::bf16;

use super::{INPUTS, Layer, OUTPUTS, RANK, TOKENS, kernels, second_context, spec, spec_with};

/// Rows whose device or driver takes a process of its own: the file that tests them.
const ELSEWHERE: [(&str, &str, &str); 3] = [
    ("no CUDA driver", "DriverMissing", include_str!("../../process/no_driver.rs")),
    ("a GPU before Ampere", "UnsupportedArchitecture", include_str!("../../process/old_gpu.rs")),
    ("a fault on the device", "Driver", include_str!("../../process/device_fault.rs")),
];

/// Kernels that all rows share.
struct Table {
    kernels: Arc<Kernels>,
    found: Vec<(&'static str, &'static str)>,
}

impl Table {
    fn layer(&self, norm: Norm) -> Layer {
        Layer::on(&self.kernels, spec(norm))
    }

    fn prepared(&self, norm: Norm) -> Layer {
        let mut layer = self.layer(norm);
        layer.prepare().expect("all shapes right");
        layer
    }

    fn linear(&self, norm: Norm) -> Linear {
        Linear::new(&self.kernels, &spec(norm))
    }

    /// A misuse, and what comes of each way to commit it.
    fn row<T, const N: usize>(&mut self, misuse: &'static str, outcomes: [Result<T>; N]) {
        assert!(N > 0);
        for outcome in outcomes {
            let Err(error) = outcome else { panic!("{misuse}: no error") };
            self.found.push((misuse, variant(&error)));
            // Numbers or names, and what to do.
            assert!(error.to_string().len() > 20, "{misuse}: {error}");
        }
    }
}

/// The name of an error's variant, as the table has it.
fn variant(error: &Error) -> &'static str {
    match error {
        Error::InvalidSpec { .. } => "InvalidSpec",
        Error::Shape { .. } => "Shape",
        Error::Stride { .. } => "Stride",
        Error::Misaligned { .. } => "Misaligned",
        Error::Dtype { .. } => "Dtype",
        Error::MissingTensor { .. } => "MissingTensor",
        Error::UnexpectedTensor { .. } => "UnexpectedTensor",
        Error::NoNormGradient { .. } => "NoNormGradient",
        Error::NotPrepared { .. } => "NotPrepared",
        Error::WeightFormat { .. } => "WeightFormat",
        Error::WorkspaceTooSmall { .. } => "WorkspaceTooSmall",
        Error::MemoryTooSmall { .. } => "MemoryTooSmall",
        Error::LostFeature { .. } => "LostFeature",
        Error::Adapter { .. } => "Adapter",
        Error::NoActiveAdapter { .. } => "NoActiveAdapter",
        Error::DeviceLimit { .. } => "DeviceLimit",
        Error::ContextMismatch => "ContextMismatch",
        Error::Ranks { .. } => "Ranks",
        Error::NoDevice { .. } => "NoDevice",
        Error::DriverMissing { .. } => "DriverMissing",
        Error::PtxTooNew { .. } => "PtxTooNew",
        Error::UnsupportedArchitecture { .. } => "UnsupportedArchitecture",
        Error::KernelsNotBuilt => "KernelsNotBuilt",
        Error::Driver { .. } => "Driver",
        _ => "an error that this test does not know",
    }
}

/// A layer that owns its adapters, with one of them attached and active.
struct Linear {
    layer: DoraLinear,
    saved: Saved,
    x: CudaSlice<bf16>,
    y: CudaSlice<bf16>,
    kernels: Arc<Kernels>,
}

impl Linear {
    fn new(kernels: &Arc<Kernels>, spec: &DoraSpec) -> Self {
        let stream = kernels.context().default_stream();
        let zeros = |len| stream.alloc_zeros::<bf16>(len).expect("memory");
        let base = DoraLinear::base_spec(INPUTS, OUTPUTS, Dtype::Bf16).expect("a layer");
        let workspace = Workspace::new(kernels, &stream, &[base, *spec], TOKENS).expect("memory");
        let workspace = Arc::new(Mutex::new(workspace));
        let (shape, weight) = ([OUTPUTS, INPUTS], Arc::new(zeros(OUTPUTS * INPUTS)));
        let mut layer = DoraLinear::new(kernels, &stream, &workspace, shape, weight, None)
            .expect("all shapes right");
        let adapter = Adapter::new(&stream, spec, false).expect("memory");
        layer.attach("one", adapter).expect("the layer's features");
        layer.activate(Some("one")).expect("attached");
        let saved = layer.saved(TOKENS, None).expect("memory");
        let (x, y) = (zeros(TOKENS * INPUTS), zeros(TOKENS * OUTPUTS));
        Self { layer, saved, x, y, kernels: kernels.clone() }
    }

    fn adapter(&self, [inputs, outputs]: [usize; 2], dtype: Dtype) -> Adapter {
        let (scaling, norm_grad) = (Scaling::Value(1.0), NormGrad::Detached);
        let spec = DoraSpec::new(inputs, outputs, RANK, scaling, Norm::Input, norm_grad, dtype);
        let stream = self.kernels.context().default_stream();
        Adapter::new(&stream, &spec.expect("a layer"), false).expect("memory")
    }

    fn forward(&mut self) -> Result<()> {
        let io = LinearForward {
            tokens: TOKENS,
            x: (&self.x).into(),
            y: (&mut self.y).into(),
            seed: 0,
            dropout: None,
            counter: None,
        };
        self.layer.forward(&mut self.saved, io)
    }

    fn backward(&mut self) -> Result<()> {
        let io = LinearBackward {
            tokens: TOKENS,
            gradients: Gradients::Overwrite,
            x: (&self.x).into(),
            y: (&self.y).into(),
            dropout: None,
            counter: None,
            grad_output: (&self.y).into(),
            grad_input: None,
        };
        self.layer.backward(&self.saved, io)
    }

    fn merge(&mut self) -> Result<()> {
        let stream = self.kernels.context().default_stream();
        let mut merged = stream.alloc_zeros::<f32>(OUTPUTS * INPUTS).expect("memory");
        self.layer.merge(&mut merged, None)
    }

    fn unmerge(&mut self) -> Result<()> {
        let stream = self.kernels.context().default_stream();
        let merged = stream.alloc_zeros::<f32>(OUTPUTS * INPUTS).expect("memory");
        let mut weight = stream.alloc_zeros::<bf16>(OUTPUTS * INPUTS).expect("memory");
        self.layer.unmerge(&merged, &mut weight)
    }

    fn adamw(&mut self) -> Result<()> {
        let stream = self.kernels.context().default_stream();
        let layout = AdapterLayout::new(&spec(Norm::Input));
        let mut moments = Moments::new(&stream, &layout, AdapterGroups::default())?;
        let schedule = Schedule::Host { learning_rate: 1e-3, step: 1 };
        self.layer.adamw(&AdamWConfig::default(), schedule, None, &mut moments)
    }
}

fn make(features: [usize; 2], rank: usize, scaling: f32, norm_grad: NormGrad) -> Result<DoraSpec> {
    let ([inputs, outputs], scaling) = (features, Scaling::Value(scaling));
    DoraSpec::new(inputs, outputs, rank, scaling, Norm::None, norm_grad, Dtype::Bf16)
}

/// One step of AdamW on 16 elements.
fn adamw(
    layer: &Layer,
    config: &AdamWConfig,
    ranges: &[[usize; 2]],
    [learning_rate, weight_decay, max_norm]: [f64; 3],
    step: u64,
) -> Result<()> {
    let zeros = || layer.stream.alloc_zeros::<f32>(16).expect("memory");
    let (mut parameters, gradients, norm) = (zeros(), zeros(), zeros());
    let (mut exp_avg, mut exp_avg_sq) = (zeros(), zeros());
    let group = OptimizerGroup { weight_decay, ..OptimizerGroup::default() };
    let parts: Vec<_> =
        ranges.iter().map(|&[start, end]| OptimizerPart { range: start..end, group }).collect();
    let io = AdamW {
        len: 16,
        parts: &parts,
        schedule: Schedule::Host { learning_rate, step },
        clip: Some(Clip { max_norm, norm: norm.slice(..1).into() }),
        parameters: (&mut parameters).into(),
        gradients: (&gradients).into(),
        exp_avg: (&mut exp_avg).into(),
        exp_avg_sq: (&mut exp_avg_sq).into(),
    };
    layer.kernels.adamw(&layer.stream, config, io)
}

impl Layer {
    fn prepare_shard(&mut self) -> Result<()> {
        let inputs = Prepare {
            weight: (&self.weight).into(),
            lora_a: (&self.lora_a).into(),
            lora_b: (&self.lora_b).into(),
            magnitude: Magnitude::Sharded,
            bias: None,
        };
        let Self { kernels, stream, spec, workspace, prepared, .. } = self;
        kernels.prepare(stream, spec, workspace, prepared, inputs)
    }

    fn finish_prepare(&mut self) -> Result<()> {
        let magnitude = Magnitude::Given((&self.magnitude).into());
        let Self { kernels, stream, spec, prepared, lora_b, .. } = self;
        kernels.finish_prepare(stream, spec, prepared, &*lora_b, magnitude)
    }
}

fn specs(table: &mut Table) {
    let detached = NormGrad::Detached;
    table.row(
        "a layer without input or output features",
        [make([0, 4], 2, 1.0, detached), make([4, 0], 2, 1.0, detached)],
    );
    let beyond = (1 << 30) + 1;
    table.row(
        "features, a rank or tokens beyond 2³⁰",
        [
            make([beyond, 4], 2, 1.0, detached).map(drop),
            make([4, usize::MAX], 2, 1.0, detached).map(drop),
            make([4, 4], beyond, 1.0, detached).map(drop),
            table.prepared(Norm::Input).forward(beyond),
            table.prepared(Norm::Input).backward(|io| io.tokens = beyond),
            Workspace::bytes(&table.kernels, &[spec(Norm::Input)], beyond).map(drop),
            table.linear(Norm::Input).layer.saved(beyond, None).map(drop),
        ],
    );
    let infinite = [f32::NAN, f32::INFINITY].map(|scaling| make([4, 4], 2, scaling, detached));
    table.row("a scaling that is not finite", infinite);
    let exact = make([4, 4], 2, 1.0, NormGrad::Exact);
    table.row("plain LoRA with a gradient through its norm", [exact]);
    let dropout = |probability| Dropout::new(probability, DropoutForm::Peft, 0);
    table.row(
        "a dropout probability outside of 0 … 1 − 2⁻¹⁶",
        [dropout(-0.1), dropout(1.0), dropout(f32::NAN)],
    );
    let peft = Some(dropout(0.1).expect("a probability"));
    table.row(
        "PEFT's dropout with norm axis input",
        [
            table.prepared(Norm::Input).forward_with(|io| io.dropout = peft),
            table.prepared(Norm::Input).backward(|io| io.dropout = peft),
        ],
    );
    let Layer { kernels, stream, spec, workspace, weight, .. } = &mut table.layer(Norm::Input);
    let mut result = stream.alloc_zeros::<f64>(2).expect("memory");
    let io = Decompose {
        axis: Norm::None,
        weight: (&*weight).into(),
        changed: (&*weight).into(),
        result: (&mut result).into(),
    };
    table.row("a decomposition along no axis", [kernels.decompose(stream, spec, workspace, io)]);
}

fn optimizer(table: &mut Table) {
    let layer = table.layer(Norm::Input);
    let (config, rates) = (AdamWConfig::default(), [1e-3, 0.0, 1.0]);
    adamw(&layer, &config, &[[0, 4], [4, 16]], rates, 1).expect("all in order");
    let ranges = [[[0, 8], [4, 16]], [[8, 16], [0, 8]], [[8, 4], [8, 16]], [[0, 8], [8, 17]]];
    table.row(
        "optimizer parts that overlap, go backwards or leave their buffer",
        ranges.map(|ranges| adamw(&layer, &config, &ranges, rates, 1)),
    );
    let with = |change: fn(&mut AdamWConfig)| {
        let mut config = config;
        change(&mut config);
        adamw(&layer, &config, &[[0, 16]], rates, 1)
    };
    let at = |rates| adamw(&layer, &config, &[[0, 16]], rates, 1);
    table.row(
        "an optimizer's constant, rate or norm outside of its range",
        [
            with(|config| config.beta1 = 1.0),
            with(|config| config.beta2 = -0.1),
            with(|config| config.epsilon = 0.0),
            at([-1e-3, 0.0, 1.0]),
            at([f64::NAN, 0.0, 1.0]),
            at([1e-3, f64::INFINITY, 1.0]),
            at([1e-3, 0.0, 0.0]),
        ],
    );
    table.row("the optimizer's step 0", [adamw(&layer, &config, &[[0, 16]], rates, 0)]);
}

fn absent_and_superfluous(table: &mut Table) {
    let row = "DoRA without a magnitude, or without room for its gradient";
    table.row(
        row,
        [
            table.layer(Norm::Input).prepare_with(false, None),
            table.prepared(Norm::Output).backward(|io| io.grad_magnitude = None),
        ],
    );
    table.row(
        "the backward of norm axis output without y",
        [table.prepared(Norm::Output).backward(|io| io.output = None)],
    );
    let peft = Some(Dropout::new(0.1, DropoutForm::Peft, 0).expect("a probability"));
    table.row(
        "PEFT's dropout without z",
        [
            table.prepared(Norm::Output).forward_with(|io| io.dropout = peft),
            table.prepared(Norm::Output).backward(|io| io.dropout = peft),
        ],
    );
    table.row(
        "plain LoRA with a magnitude, or room for its gradient",
        [
            table.layer(Norm::None).prepare_with(true, None),
            table.prepared(Norm::None).backward(|io| io.grad_magnitude = io.grad_bias.take()),
        ],
    );
    let mut z = table.layer(Norm::Output).y;
    let outcome = table.prepared(Norm::Output).forward_with(|io| io.z = Some((&mut z).into()));
    table.row("z without PEFT's dropout", [outcome]);
    let row = "an adapter with a trained bias, in a file of adapters";
    #[cfg(feature = "peft")]
    {
        let stream = table.kernels.context().default_stream();
        let adapter = Adapter::new(&stream, &spec(Norm::Input), true).expect("memory");
        table.row(row, [fused_dora::peft::LayerAdapter::download(&stream, &adapter)]);
    }
    // Only the feature reads and writes files.
    #[cfg(not(feature = "peft"))]
    table.found.push((row, "UnexpectedTensor"));
}

fn order(table: &mut Table) {
    table.row(
        "`norm_gradient` of plain LoRA, or of a detached norm",
        [Norm::None, Norm::Input].map(|norm| table.prepared(norm).norm_gradient(|_| {})),
    );
    let mut exact = Layer::on(&table.kernels, spec_with(Norm::Output, NormGrad::Exact));
    table.row(
        "an op before `prepare`",
        [
            table.layer(Norm::Input).forward(TOKENS),
            table.layer(Norm::Input).backward(|_| {}),
            exact.norm_gradient(|_| {}),
        ],
    );
    exact.prepare().expect("all shapes right");
    exact.spec = spec(Norm::Output);
    table.row("operands that were prepared for another spec", [exact.forward(TOKENS)]);
    let mut shard = table.layer(Norm::Input);
    shard.prepare_shard().expect("all shapes right");
    table.row(
        "an op between `prepare` of a shard and `finish_prepare`, or `finish_prepare` by itself",
        [
            shard.forward(TOKENS),
            table.prepared(Norm::Input).finish_prepare(),
            table.layer(Norm::Input).finish_prepare(),
        ],
    );
    let mut layer = table.layer(Norm::Input);
    let gain = [1.0; INPUTS];
    layer.prepared = Prepared::for_unmerge(&layer.stream, &layer.spec, &gain).expect("memory");
    table.row(
        "operands for an unmerge in an op that takes more",
        [layer.forward(TOKENS), layer.backward(|_| {})],
    );
    let mut linear = table.linear(Norm::Input);
    linear.forward().expect("an active adapter");
    linear.backward().expect("its forward");
    let _ = linear.layer.adapter_mut("one").expect("attached").parameters_mut();
    table.row(
        "a backward or unmerge of `DoraLinear` after a change of the parameters",
        [linear.backward(), linear.unmerge()],
    );
    let mut layer = table.prepared(Norm::Input);
    const MANY: usize = 1000 * TOKENS;
    layer.x = layer.resize(MANY * INPUTS);
    layer.y = layer.resize(MANY * OUTPUTS);
    layer.h = layer.resize(MANY * layer.spec.padded_rank());
    let mut backward = table.prepared(Norm::Input);
    table.row(
        "a workspace made for less",
        [layer.forward(MANY), backward.backward(|io| io.tokens = MANY)],
    );
    let Layer { kernels, stream, spec, workspace, prepared, weight, lora_a, lora_b, .. } =
        &mut table.prepared(Norm::Input);
    let io =
        InPlace { weight: weight.into(), lora_a: (&*lora_a).into(), lora_b: (&*lora_b).into() };
    let lost = kernels.unmerge_in_place(stream, spec, prepared, workspace, io);
    table.row("`unmerge` where a gain is 0", [lost]);
}

fn adapters(table: &mut Table) {
    let Linear { layer, .. } = &mut table.linear(Norm::Input);
    let another = table.linear(Norm::Input).adapter([INPUTS, OUTPUTS], Dtype::Bf16);
    table.row(
        "an adapter's name that is not attached, or is already",
        [
            layer.activate(Some("two")),
            layer.adapter("two").map(drop),
            layer.adapter_mut("two").map(drop),
            layer.initialise("two", 0),
            layer.detach("two").map(drop),
            layer.attach("one", another),
        ],
    );
    let others = [([INPUTS + 1, OUTPUTS], Dtype::Bf16), ([INPUTS, OUTPUTS], Dtype::F32)];
    let others = others.map(|(features, dtype)| {
        let other = table.linear(Norm::Input).adapter(features, dtype);
        layer.attach("two", other)
    });
    table.row("an adapter for other features, or another dtype, than its layer's", others);
    let mut linear = table.linear(Norm::Input);
    linear.forward().expect("an active adapter");
    linear.adamw().expect("an active adapter");
    linear.layer.activate(None).expect("the base layer");
    table.row(
        "a step, merge or unmerge of `DoraLinear` while no adapter is active",
        [linear.adamw(), linear.merge(), linear.unmerge()],
    );
}

fn device(table: &mut Table) {
    let huge = make([INPUTS, OUTPUTS], 1 << 30, 1.0, NormGrad::Detached).expect("a layer");
    table.row("a rank that takes a larger grid than the device has", [table.huge(&huge)]);
    let mut layer = table.prepared(Norm::Input);
    let mut linear = table.linear(Norm::Input);
    let other = second_context(&table.kernels);
    let foreign = other.default_stream().alloc_zeros(TOKENS * INPUTS).expect("memory");
    let adapter = Adapter::new(&other.default_stream(), &spec(Norm::Input), false).expect("memory");
    table.kernels.context().bind_to_thread().expect("the first context");
    layer.x = foreign;
    let buffer = layer.forward(TOKENS);
    layer.stream = other.default_stream();
    let stream = layer.forward(TOKENS);
    table.row(
        "a stream, a buffer or an adapter of another CUDA context",
        [buffer, stream, linear.layer.attach("two", adapter)],
    );
    table.kernels.context().bind_to_thread().expect("the first context");
    let stream = table.kernels.context().default_stream();
    let [first, second]: [HostRank; 2] =
        HostRank::group(&[stream.clone(), stream.clone()]).try_into().expect("two ranks");
    let sum = |rank: &HostRank, len: usize| {
        let mut buffer = rank.stream().alloc_zeros::<f32>(len).expect("memory");
        rank.sum_over_ranks(buffer.as_view_mut())
    };
    let lengths = thread::scope(|scope| {
        let other = scope.spawn(|| sum(&second, 4));
        [sum(&first, 3), other.join().expect("no panic")]
    });
    drop(second);
    let [one, other] = lengths;
    table.row(
        "buffers of different lengths, or a rank that has left, in a sum over ranks",
        [one, other, sum(&first, 3)],
    );
    table.row("a device that is not there", [open_device(99)]);
    let image = ".version 99.0\n.target sm_80\n.address_size 64\n";
    table.row(
        "a driver older than the NVRTC that compiled the kernels",
        [load_image(table.kernels.context(), "future.cu", image)],
    );
    let without = Kernels::load_with(table.kernels.context(), &[("forward/sm80.cu", None)]);
    table.row("a build without NVRTC", [without]);
    let stream = table.kernels.context().default_stream();
    let large = DoraSpec::new(
        1 << 30,
        1 << 30,
        1 << 20,
        Scaling::Value(1.0),
        Norm::Output,
        NormGrad::Detached,
        Dtype::Bf16,
    );
    let large = large.expect("a layer");
    table.row(
        "more memory than the device has",
        [
            Prepared::new(&stream, &large).map(drop),
            Adapter::new(&stream, &large, false).map(drop),
            Workspace::new(&table.kernels, &stream, &[large], 1 << 30).map(drop),
        ],
    );
}

/// The rows of the table in the documentation: the misuse, and the error's variant.
fn documented() -> Vec<(String, String)> {
    let text = include_str!("../../../src/error.rs");
    let rows = text.lines().filter_map(|line| {
        let (misuse, error) =
            line.strip_prefix("/// | ")?.strip_suffix(") |")?.rsplit_once(" | [`")?;
        // A link shows what is between its brackets.
        let misuse = misuse.replace("](crate::Saved)", "").replace("[`Saved`", "`Saved`");
        let misuse = match misuse.split_once("](") {
            Some((name, rest)) => {
                name.replacen('[', "", 1) + rest.split_once(')').expect("a link's end").1
            }
            None => misuse,
        };
        let (variant, link) = error.split_once("`](Error::")?;
        assert_eq!(variant, link, "{line}");
        Some((misuse, variant.to_owned()))
    });
    rows.collect()
}

#[test]
fn every_row_of_the_table_is_true() {
    let mut table = Table { kernels: kernels(), found: Vec::new() };
    specs(&mut table);
    optimizer(&mut table);
    tensors::all(&mut table);
    packed::all(&mut table);
    absent_and_superfluous(&mut table);
    order(&mut table);
    adapters(&mut table);
    device(&mut table);
    for (misuse, variant, test) in ELSEWHERE {
        assert!(test.contains(&format!("Error::{variant}")), "{misuse}");
        table.found.push((misuse, variant));
    }
    let found: BTreeSet<_> =
        table.found.iter().map(|&(misuse, error)| (misuse.to_owned(), error.to_owned())).collect();
    let documented: BTreeSet<_> = documented().into_iter().collect();
    let only =
        |these: &BTreeSet<_>, those| -> Vec<_> { these.difference(those).cloned().collect() };
    let (untested, undocumented) = (only(&documented, &found), only(&found, &documented));
    assert!(untested.is_empty(), "rows that nothing tests: {untested:#?}");
    assert!(undocumented.is_empty(), "what comes of misuses that no row lists: {undocumented:#?}");
}
