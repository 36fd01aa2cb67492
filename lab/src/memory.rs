//! Bytes of a layer on a packed W, of this crate and of PEFT's composition, and of a whole model.
//!
//! The crate's own are those that it would allocate. PEFT's are counted from its source (0.21.2, `dora.py`):
//! nothing here was measured on a GPU.

use std::error::Error;
use std::process::ExitCode;

use fused_dora::quant::{BlockScales, Code4, WeightFormat};
use fused_dora::{
    AdapterLayout, DoraSpec, Dtype, Kernels, Norm, NormGrad, Prepared, Scaling, Workspace,
};
use fused_dora_testkit::device::{Choice, open_choice};
use fused_dora_testkit::{eprintln, print};
use lexopt::prelude::*;

const USAGE: &str = "\
Prints the tables of docs/memory-and-speed.md about packed weights: bytes of a layer, next to those
of PEFT's composition, and of a 7B model.

Usage: memory

  --help  print this

Workspaces are those for the emulated device. Exit codes: 0 done, 1 a failure, 2 bad arguments.
";

/// Tokens of a micro-batch.
const TOKENS: usize = 2048;
const RANK: usize = 16;
/// Bytes of bf16, and of f32.
const HALF: usize = 2;
const FULL: usize = 4;

const NF4: WeightFormat = WeightFormat::Code4 {
    code: Code4::Nf4,
    block: 64,
    scales: BlockScales::F32,
    state: Dtype::Bf16,
};

/// The program.
pub fn main() -> ExitCode {
    match lexopt::Parser::from_env().next() {
        Ok(None) => {}
        Ok(Some(Long("help") | Short('h'))) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Ok(Some(other)) => {
            eprintln!("error: {}\n\n{USAGE}", other.unexpected());
            return ExitCode::from(2);
        }
        Err(error) => {
            eprintln!("error: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    }
    match tables() {
        Ok([layer, model]) => {
            print!("{layer}\n{model}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Both tables.
pub fn tables() -> Result<[String; 2], Box<dyn Error>> {
    let device = open_choice(Some(Choice::Emulated))?;
    let kernels = Kernels::load(&device.context)?;
    Ok([layer(&kernels)?, model(&kernels)?])
}

/// PEFT's axis and gradient, so that both train the same.
fn spec(inputs: usize, outputs: usize) -> fused_dora::Result<DoraSpec> {
    let (scaling, grad) = (Scaling::Value(1.0), NormGrad::Detached);
    DoraSpec::new(inputs, outputs, RANK, scaling, Norm::Output, grad, Dtype::Bf16)?.with_weight(NF4)
}

fn packed_bytes(spec: &DoraSpec) -> usize {
    let shape = [spec.out_features(), spec.in_features()];
    NF4.packed_bytes(shape) + FULL * NF4.scales(shape)
}

fn adapter_bytes(spec: &DoraSpec) -> usize {
    FULL * AdapterLayout::new(spec).len()
}

fn megabytes(bytes: usize) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

/// One layer of 4096 → 14336 features.
fn layer(kernels: &Kernels) -> Result<String, Box<dyn Error>> {
    let (inputs, outputs) = (4096, 14336);
    let spec = spec(inputs, outputs)?;
    let workspace = Workspace::bytes(kernels, &[spec], TOKENS)?;
    let (packed, adapter) = (packed_bytes(&spec), adapter_bytes(&spec));
    let (x, y, elements) = (TOKENS * inputs, TOKENS * outputs, inputs * outputs);
    let h = HALF * TOKENS * spec.padded_rank();
    // PEFT's adapter computes in bf16 under autocast, and else on a copy of x in f32. The base layer
    // gives bf16 and keeps no x. B·A·x comes after the norm.
    let at_the_norm = |e: usize| e * x + HALF * y;
    let kept = |e: usize| e * (x + y + TOKENS * RANK) + HALF * y;
    let own_kept = HALF * (x + y) + h;
    let columns = |f: &dyn Fn(usize) -> usize| [f(HALF), f(FULL)];
    let rows: [(&str, usize, [usize; 2]); 8] = [
        ("W in NF4", packed, [packed; 2]),
        ("adapter, gradients, moments of AdamW", 4 * adapter, [4 * adapter; 2]),
        ("prepared operands", Prepared::bytes(&spec), [0; 2]),
        ("x, y and H; PEFT: x and W·x", own_kept, columns(&at_the_norm)),
        ("workspace, shared by all layers", workspace, [0; 2]),
        ("PEFT's norm: the unpacked W", 0, columns(&|e| e * elements)),
        ("PEFT's norm: B·A, s·(B·A) and their sum with W", 0, columns(&|e| 3 * e * elements)),
        ("PEFT's norm: the identity that B·A is made of", 0, columns(&|e| e * inputs * inputs)),
    ];
    let mut text =
        "| MB | this crate | PEFT, autocast | PEFT, f32 |\n|---|--:|--:|--:|\n".to_owned();
    let (mut own, mut peft) = (0, [0; 2]);
    let mut line = |what: &str, first: usize, others: [usize; 2]| {
        let [a, b] = others.map(megabytes);
        text += &format!("| {what} | {} | {a} | {b} |\n", megabytes(first));
    };
    for (what, first, others) in rows {
        line(what, first, others);
        own += first;
        peft = [peft[0] + others[0], peft[1] + others[1]];
    }
    line("sum: the peak of a forward", own, peft);
    let what = "left of it for the backward: x, y and H; PEFT: x, W·x, B·A·x and A·x";
    line(what, own_kept, columns(&kept));
    Ok(text)
}

/// What a model of seven linear layers per block keeps.
fn model(kernels: &Kernels) -> Result<String, Box<dyn Error>> {
    let (blocks, hidden, middle, words) = (32, 4096, 11008, 32000);
    let shapes = [
        [hidden, hidden],
        [hidden, hidden],
        [hidden, hidden],
        [hidden, hidden],
        [hidden, middle],
        [hidden, middle],
        [middle, hidden],
    ];
    let specs = shapes.iter().map(|&[inputs, outputs]| spec(inputs, outputs));
    let specs = specs.collect::<fused_dora::Result<Vec<_>>>()?;
    let all = |of: &dyn Fn(&DoraSpec) -> usize| blocks * specs.iter().map(of).sum::<usize>();
    let weights = all(&|spec| spec.in_features() * spec.out_features());
    let h = specs.iter().map(|spec| HALF * TOKENS * spec.padded_rank()).sum::<usize>();
    // Four x, seven y, q and k turned by their positions, and two sums with the residual stream.
    let activations = HALF
        * TOKENS
        * ((3 * hidden + middle) + (5 * hidden + 2 * middle) + 2 * hidden + 2 * hidden);
    let packed = all(&packed_bytes);
    let rows = [
        ("linear layers in NF4", format!("{weights} weights, 0.5625 each"), packed),
        ("embedding and head, bf16", "2·32000·4096·2".to_owned(), 2 * words * hidden * HALF),
        ("RMS norms, bf16", "65·4096·2".to_owned(), (2 * blocks + 1) * hidden * HALF),
        ("adapters, f32", "r = 16, all seven layers".to_owned(), all(&adapter_bytes)),
        ("gradients, f32", "as the adapters".to_owned(), all(&adapter_bytes)),
        ("moments of AdamW, f32", "twice the adapters".to_owned(), 2 * all(&adapter_bytes)),
        ("prepared operands", "`Prepared::bytes`".to_owned(), all(&Prepared::bytes)),
        (
            "workspace",
            "`Workspace::bytes`, one for all".to_owned(),
            Workspace::bytes(kernels, &specs, TOKENS)?,
        ),
        ("inputs of the blocks", "32·T·4096·2".to_owned(), blocks * TOKENS * hidden * HALF),
        (
            "one block's x, y, q, k, sums and H",
            "the block that is recomputed".to_owned(),
            activations + h,
        ),
        ("their gradients", "as much, at most".to_owned(), activations),
        ("logits and their gradient, f32", "2·T·32000·4".to_owned(), 2 * TOKENS * words * FULL),
    ];
    let mut text = "| what | of | MB |\n|---|---|--:|\n".to_owned();
    let mut sum = 0;
    for (what, of, bytes) in rows {
        text += &format!("| {what} | {of} | {} |\n", megabytes(bytes));
        sum += bytes;
    }
    let dense = sum - packed + HALF * weights;
    text += &format!("| sum | | {} |\n", megabytes(sum));
    text += &format!("| the same with the linear layers in bf16 | | {} |\n", megabytes(dense));
    Ok(text)
}
