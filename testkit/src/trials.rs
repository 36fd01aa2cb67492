//! Runs of every op, small, and such that every predicate of its kernels matters: ragged shapes
//! with several chunks of tokens, several strips of features and several rank tiles, rows
//! that are aligned and rows that are not, bias and none, gains and norms of zero.

use std::sync::Arc;

use fused_dora::quant::{BlockScales, Code4, Fp8Scales, QuantizedWeight, WeightFormat};
use fused_dora::reference::Case;
use fused_dora::{AdapterGroups, Dropout, DropoutForm, Dtype, Element, Kernels, Norm, NormGrad};
use half::bf16;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::compare;
use crate::layer::{Device, Layer};
use crate::norm_gradient;
use crate::optimizer::{self, Clipping, Problem};
use crate::quantize::Packer;
use crate::random::{cancelling_case, normal, random_case, with_dropout};
use crate::run::Runner;

/// What is wrong; anything else is a panic.
pub type Outcome = Result<(), String>;

/// What a trial does with kernels.
type Run = Box<dyn Fn(&Arc<Kernels>) -> Outcome + Send + Sync>;

/// A run of some kernel files in one dtype.
pub struct Trial {
    /// The files whose kernels it launches.
    pub files: &'static [&'static str],
    /// The files that it is about.
    pub about: &'static [&'static str],
    /// What it runs, in words.
    pub name: String,
    /// Whether it is small enough to run under every setting of a list.
    pub quick: bool,
    /// Runs it, and compares all results with float64.
    pub run: Run,
}

/// What only f16 has: the power of two that keeps small adapters normal numbers. At most one element of
/// B is far larger than all others, wherever it lies.
pub fn trials_of_balance(seed: u64) -> Vec<Trial> {
    let run = move |kernels: &Arc<Kernels>| {
        let random = &mut StdRng::seed_from_u64(seed);
        let runner = Runner::with_kernels(kernels);
        let mut case = random_case(random, [3, 40, 150, 19], Norm::Input, false);
        case.lora_b.iter_mut().for_each(|b| *b *= 1e-7);
        let last = case.lora_b.len() - 1;
        for largest in [None].into_iter().chain([0, 1, 30, 100, 400, 1000, 2500, last].map(Some)) {
            let mut case = case.clone();
            if let Some(largest) = largest {
                case.lora_b[largest] = 0.5;
            }
            let case = case.rounded(Dtype::F16);
            let found = runner.run(&case, Dtype::F16).map_err(|error| error.to_string())?;
            let failures = compare::failures(&case, Dtype::F16, &found, [None; 6]);
            if let Some(failure) = failures.expect("a consistent case").first() {
                return Err(format!("element {largest:?} of B is the largest: {failure}"));
            }
        }
        Ok(())
    };
    let name = "f16 with one large element of B".to_owned();
    vec![Trial { files: LAYER, about: &LAYER[..1], name, quick: true, run: Box::new(run) }]
}

/// All ops that read W, on packed ones in bf16: a format of each kind, rows that are aligned and rows
/// that are not, and blocks that end within chunks.
pub fn trials_of_packed_weights(seed: u64) -> Vec<Trial> {
    let code4 = |code, block, scales, state| WeightFormat::Code4 { code, block, scales, state };
    let blocks = Fp8Scales::Blocks { rows: 16, cols: 20 };
    let formats = [
        (code4(Code4::Nf4, 64, BlockScales::Nested, Dtype::Bf16), [140, 136, 152, 19]),
        (code4(Code4::Fp4, 32, BlockScales::F32, Dtype::F16), [70, 83, 75, 5]),
        (WeightFormat::Int8Rows, [7, 131, 150, 4]),
        (WeightFormat::Fp8 { scales: blocks }, [70, 136, 150, 3]),
        // In the loop that decodes ahead: large and medium tiles, rows and columns beyond W.
        (code4(Code4::Nf4, 32, BlockScales::F32, Dtype::Bf16), [140, 96, 160, 8]),
        (code4(Code4::Nf4, 64, BlockScales::Nested, Dtype::F32), [70, 160, 232, 8]),
        (code4(Code4::Fp4, 64, BlockScales::F32, Dtype::Bf16), [130, 224, 104, 8]),
    ];
    let trial = |(format, shape): (WeightFormat, [usize; 4])| {
        let run = move |kernels: &Arc<Kernels>| {
            let random = &mut StdRng::seed_from_u64(seed);
            let mut case = random_case(random, shape, Norm::Output, true);
            case.norm_grad = NormGrad::Exact;
            let shape = [case.out_features, case.in_features];
            let values: Vec<f32> = case.weight.iter().map(|&value| value as f32).collect();
            let packed = QuantizedWeight::quantize(&values, shape, format).expect("a packed W");
            let stands_for = packed.dequantize::<bf16>();
            case.weight = stands_for.iter().map(|value| f64::from(value.to_f32())).collect();
            let case = case.rounded(Dtype::Bf16);
            let device = Device::with_kernels(kernels, 0);
            let mut layer = Layer::<bf16>::with_packed(&device, &case, Some(&packed));
            layer.check_merge_alone::<f32>();
            layer.check_adapter();
            let runner = Runner::with_kernels(kernels).with_packed(packed);
            let found = runner.run(&case, Dtype::Bf16).map_err(|error| error.to_string())?;
            let failures = compare::failures(&case, Dtype::Bf16, &found, [None; 6]);
            failures.expect("a consistent case").first().map_or(Ok(()), |wrong| Err(wrong.clone()))
        };
        let name = format!("all ops on {format}");
        Trial { files: PACKED, about: PACKED, name, quick: true, run: Box::new(run) }
    };
    formats.map(trial).into()
}

/// What reads packed weights.
const PACKED: &[&str] = &[
    "prepare/sm80.cu",
    "forward/sm80.cu",
    "backward/sm80.cu",
    "norm_gradient/sm80.cu",
    "merge/sm80.cu",
    "decompose/sm80.cu",
];

/// All trials in a dtype, in the order in which they are tried.
pub fn trials<E: Element>(seed: u64) -> Vec<Trial> {
    let mut all = layers::<E>(&mut StdRng::seed_from_u64(seed));
    let mut add = |files, name: &str, run: fn(&Arc<Kernels>, &mut StdRng)| {
        let run = move |kernels: &Arc<Kernels>| {
            run(kernels, &mut StdRng::seed_from_u64(seed));
            Ok(())
        };
        let (name, run) = (name.to_owned(), Box::new(run));
        all.push(Trial { files, about: files, name, quick: true, run });
    };
    add(&["prepare/sm80.cu", "norm_gradient/sm80.cu"], "norm_gradient", norm_gradients::<E>);
    add(&["prepare/sm80.cu", "merge/sm80.cu"], "merge and unmerge", merges::<E>);
    add(&["prepare/sm80.cu", "decompose/sm80.cu"], "decompose", decompositions::<E>);
    add(&["quantize/sm80.cu"], "quantize and dequantize", quantizations::<E>);
    if E::DTYPE == Dtype::F32 {
        add(&["adamw/sm80.cu"], "adamw", optimizer_steps);
    }
    all
}

/// Elements of x, y and W of a quick layer.
const QUICK: usize = 70_000;

const LAYER: &[&str] = &["prepare/sm80.cu", "forward/sm80.cu", "backward/sm80.cu"];

/// Prepare, forward and backward.
fn layers<E: Element>(random: &mut StdRng) -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut add = |case: Case, gap: usize, dropout: Option<Dropout>| {
        let case = case.rounded(E::DTYPE);
        let &Case { tokens, in_features, out_features, rank, norm, .. } = &case;
        let shape = [tokens, in_features, out_features, rank];
        let quick = tokens * (in_features + out_features) + in_features * out_features < QUICK;
        let dropped = dropout.map_or("", |_| ", dropout");
        let name = format!("layer [T, I, O, r] = {shape:?}, norm {norm:?}, gap {gap}{dropped}");
        let run = move |kernels: &Arc<Kernels>| {
            // What a launch leaves behind must not trouble the next one. Rows that are not aligned
            // are also off the boundaries where they start.
            let offset = case.in_features % 2;
            let mut runner = Runner::with_kernels(kernels).with_gap(gap).with_offset(offset);
            runner = runner.with_repeats(1);
            if let Some(dropout) = dropout {
                runner = runner.with_dropout(dropout);
            }
            let found = runner.run(&case, E::DTYPE).map_err(|error| error.to_string())?;
            let failures = compare::failures(&case, E::DTYPE, &found, [None; 6]);
            match failures.expect("a consistent case").first() {
                Some(failure) => Err(failure.clone()),
                None => Ok(()),
            }
        };
        trials.push(Trial { files: LAYER, about: LAYER, name, quick, run: Box::new(run) });
    };
    for (shape, norm, bias, gap) in [
        ([140, 131, 150, 67], Norm::Output, true, 0),
        ([140, 131, 150, 19], Norm::Input, true, 0),
        ([140, 136, 152, 19], Norm::Output, false, 8),
        // Whole steps along O. Their last row is the last of W.
        ([140, 136, 160, 67], Norm::Input, false, 0),
        ([70, 83, 150, 5], Norm::None, true, 3),
        // Three groups of rows of tiles. The last is not whole.
        ([2900, 9, 131, 1], Norm::Input, true, 0),
        // So many CTAs next to each other that each takes several tiles of tokens.
        ([140, 9, 2100, 70], Norm::Output, true, 0),
        ([140, 2100, 9, 70], Norm::Input, false, 0),
    ] {
        add(random_case(random, shape, norm, bias), gap, None);
    }
    for norm in [Norm::Output, Norm::Input] {
        for inputs in [40, 43] {
            let mut case = random_case(random, [70, inputs, 150, 4], norm, true);
            extreme(&mut case);
            add(case, 0, None);
        }
        // Several splits of the summed axis, a ragged last one, and norms that are summed again.
        let shape = if norm == Norm::Input { [3, 70, 700, 20] } else { [3, 700, 70, 20] };
        let case = cancelling_case(random, shape, norm, E::DTYPE, 1e-2);
        add(case, 0, None);
    }
    if E::DTYPE == Dtype::F32 {
        let mut case = random_case(random, [140, 136, 150, 5], Norm::Output, true);
        overflowing(&mut case);
        add(case, 0, None);
    }
    for (form, norm, shape) in [
        (DropoutForm::Peft, Norm::Output, [70, 40, 150, 19]),
        (DropoutForm::Peft, Norm::Output, [40, 83, 75, 3]),
        (DropoutForm::Adapter, Norm::Input, [70, 83, 150, 19]),
        (DropoutForm::Adapter, Norm::None, [40, 48, 64, 3]),
    ] {
        let dropout = Dropout::new(0.3, form, 7).expect("a probability");
        let case = with_dropout(random_case(random, shape, norm, true), &dropout);
        add(case, 0, Some(dropout));
    }
    trials
}

/// Neighbouring gains of zero, biases that hide z, and norms of zero.
fn extreme(case: &mut Case) {
    for (i, m) in case.magnitude.iter_mut().enumerate() {
        *m *= [1.0, 0.0, 1e-4, -1e-3, -1.0][i % 5];
    }
    for (i, b) in case.bias.iter_mut().flatten().enumerate() {
        *b *= [1.0, 30.0, 300.0, 1e4][i % 4];
    }
    without_norm(case);
}

/// An x that is infinite as a tf32 number, where y is not: its feature has tiny weights, and its token no
/// gradient.
fn overflowing(case: &mut Case) {
    let (token, feature) = (3, 5);
    case.input[token * case.in_features + feature] = f64::from(f32::MAX);
    case.grad_output[token * case.out_features..][..case.out_features].fill(0.0);
    for matrix in [&mut case.weight, &mut case.lora_a] {
        matrix.iter_mut().skip(feature).step_by(case.in_features).for_each(|w| *w *= 1e-30);
    }
}

/// A row and a column of V that are zero.
fn without_norm(case: &mut Case) {
    let (row, col) = (5, 7);
    case.weight[row * case.in_features..][..case.in_features].fill(0.0);
    case.lora_b[row * case.rank..][..case.rank].fill(0.0);
    case.weight.iter_mut().skip(col).step_by(case.in_features).for_each(|w| *w = 0.0);
    case.lora_a.iter_mut().skip(col).step_by(case.in_features).for_each(|a| *a = 0.0);
}

fn norm_gradients<E: Element>(kernels: &Arc<Kernels>, random: &mut StdRng) {
    let runner = Runner::with_kernels(kernels);
    for (shape, norm) in [
        ([131, 150, 67], Norm::Input),
        ([131, 150, 67], Norm::Output),
        ([136, 152, 19], Norm::Input),
    ] {
        let mut case = norm_gradient::exact_case(random, shape, norm, E::DTYPE);
        without_norm(&mut case);
        norm_gradient::check::<E>(&runner, random, &case);
    }
}

fn merges<E: Element>(kernels: &Arc<Kernels>, random: &mut StdRng) {
    let device = Device::with_kernels(kernels, 0);
    for (shape, norm) in [
        ([0, 131, 150, 19], Norm::Output),
        ([0, 136, 152, 5], Norm::Input),
        // More tiles than CTAs, each of which takes a second one.
        ([0, 1900, 970, 3], Norm::None),
    ] {
        let mut layer = Layer::<E>::new(&device, &random_case(random, shape, norm, false));
        layer.check_merge::<E>();
    }
}

fn decompositions<E: Element>(kernels: &Arc<Kernels>, random: &mut StdRng) {
    let device = Device::with_kernels(kernels, 0);
    for (shape, norm) in [
        ([0, 131, 150, 19], Norm::Output),
        ([0, 136, 152, 5], Norm::Input),
        ([0, 131, 150, 5], Norm::Input),
    ] {
        let mut layer = Layer::<E>::new(&device, &random_case(random, shape, norm, false));
        layer.check_adapter();
        layer.check_dense::<bf16>(random, 1e-2);
    }
}

/// A format of each kind, of W with whole chunks and without, with more blocks, rows and columns than
/// there are CTAs, and a short last block.
fn quantizations<E: Element>(kernels: &Arc<Kernels>, random: &mut StdRng) {
    let code4 = |code, block, scales, state| WeightFormat::Code4 { code, block, scales, state };
    let blocks = Fp8Scales::Blocks { rows: 16, cols: 20 };
    let formats = [
        code4(Code4::Nf4, 32, BlockScales::Nested, Dtype::Bf16),
        code4(Code4::Fp4, 64, BlockScales::F32, Dtype::F16),
        WeightFormat::Int8Rows,
        WeightFormat::Fp8 { scales: blocks },
        WeightFormat::Fp8 { scales: Fp8Scales::Tensor },
    ];
    for (shape, offset) in [([45, 261], 1), ([1100, 40], 0), ([2, 4200], 0), ([1, 3], 0)] {
        let count = shape[0] * shape[1];
        let values: Vec<E> = (0..count)
            .map(|at| if at / 70 % 5 == 3 { 0.0 } else { 0.05 * normal(random) })
            .map(|value| E::from_f32(value as f32))
            .collect();
        for format in formats {
            let packer = Packer::new(kernels, offset);
            let outcome = packer.check(&values, shape, format);
            outcome.unwrap_or_else(|wrong| panic!("{wrong}"));
        }
    }
}

fn optimizer_steps(kernels: &Arc<Kernels>, _: &mut StdRng) {
    let mut device = optimizer::Device::with_kernels(kernels);
    let clipping = Clipping::Norm(10.0);
    for offset in [0, 1] {
        let problem = Problem { offset, ..optimizer::adapters() };
        problem.run(&mut device, 2, optimizer::From::Host, clipping);
    }
    // Buffers that are aligned, and parts that are not.
    let mut problem = optimizer::adapters();
    for part in &mut problem.parts {
        part.range = part.range.start + 1..part.range.end + 1;
    }
    problem.len += 1;
    problem.run(&mut device, 2, optimizer::From::Host, clipping);
    let layouts = vec![optimizer::layout([9, 6, 1], Norm::Output, true); 20];
    let problem = Problem::of_adapters(&layouts, AdapterGroups::default());
    problem.run(&mut device, 2, optimizer::From::Device, clipping);
}
