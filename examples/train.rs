//! A whole training loop in one file: a frozen linear layer learns, by a DoRA adapter, to compute
//! what another layer does.
//!
//! `cargo run --release --bin train` runs it on a GPU, or on the emulated device where there is
//! none. A crate of your own takes the file as its `main.rs` and depends on `fused-dora`, and on
//! `cuda-emulator` for machines without a GPU.

use std::error::Error;
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex};

use cuda_emulator::client::{self, Choice};
use fused_dora::{
    AdamWConfig, Adapter, AdapterGroups, DoraLinear, DoraSpec, Dtype, Gradients, Kernels,
    LinearBackward, LinearForward, Moments, Norm, NormGrad, Scaling, Schedule, Workspace,
    open_device,
};

const INPUTS: usize = 64;
const OUTPUTS: usize = 48;
const RANK: usize = 8;
/// Rows of a micro-batch.
const TOKENS: usize = 32;
/// Micro-batches of an optimizer step.
const MICRO_BATCHES: usize = 2;
const STEPS: u64 = 100;
const LEARNING_RATE: f64 = 0.02;

fn main() -> Result<(), Box<dyn Error>> {
    // A GPU, or the emulated device. With GPUs alone, this line and the emulator go.
    client::select(Choice::from_env()?)?;
    let kernels = Arc::new(Kernels::load(&open_device(0)?)?);
    let stream = kernels.context().default_stream();

    // The frozen weight W [O, I], and the weight whose outputs are to be learnt.
    let mut random = Random(1);
    let weight = random.values(OUTPUTS * INPUTS, 0.1);
    let wanted = changed(&weight, &mut random);

    // An adapter that changes nothing yet. All layers of a stream share the workspace.
    let scaling = Scaling::Standard { alpha: 16.0 };
    let (norm, norm_grad) = (Norm::Output, NormGrad::Exact);
    let spec = DoraSpec::new(INPUTS, OUTPUTS, RANK, scaling, norm, norm_grad, Dtype::F32)?;
    let base = DoraLinear::base_spec(INPUTS, OUTPUTS, Dtype::F32)?;
    let workspace = Workspace::new(&kernels, &stream, &[base, spec], TOKENS)?;
    let workspace = Arc::new(Mutex::new(workspace));
    let (shape, on_device) = ([OUTPUTS, INPUTS], Arc::new(stream.clone_htod(&weight)?));
    let mut layer = DoraLinear::new(&kernels, &stream, &workspace, shape, on_device, None)?;
    layer.attach("task", Adapter::new(&stream, &spec, false)?)?;
    layer.initialise("task", 1)?;
    layer.activate(Some("task"))?;

    // All memory that the steps need.
    let mut saved = layer.saved(TOKENS, None)?;
    let layout = *layer.adapter("task")?.layout();
    let mut moments = Moments::new(&stream, &layout, AdapterGroups::default())?;
    let mut x = stream.alloc_zeros::<f32>(TOKENS * INPUTS)?;
    let mut y = stream.alloc_zeros::<f32>(TOKENS * OUTPUTS)?;
    let mut grad_y = stream.alloc_zeros::<f32>(TOKENS * OUTPUTS)?;

    for step in 1..=STEPS {
        let mut loss = 0.0;
        for micro_batch in 0..MICRO_BATCHES {
            let batch = random.values(TOKENS * INPUTS, 1.0);
            stream.memcpy_htod(&batch, &mut x)?;
            let io = LinearForward {
                tokens: TOKENS,
                x: (&x).into(),
                y: (&mut y).into(),
                seed: step,
                dropout: None,
                counter: None,
            };
            layer.forward(&mut saved, io)?;

            let (part, grad) = mean_squared_error(&stream.clone_dtoh(&y)?, &batch, &wanted);
            loss += part;
            stream.memcpy_htod(&grad, &mut grad_y)?;
            let io = LinearBackward {
                tokens: TOKENS,
                // The first micro-batch of a step replaces the gradients, the others add to them.
                gradients: match micro_batch {
                    0 => Gradients::Overwrite,
                    _ => Gradients::Accumulate,
                },
                x: (&x).into(),
                y: (&y).into(),
                dropout: None,
                counter: None,
                grad_output: (&grad_y).into(),
                // A first layer's x needs no gradient.
                grad_input: None,
            };
            layer.backward(&saved, io)?;
        }
        layer.finish_gradients()?;
        let schedule = Schedule::Host { learning_rate: LEARNING_RATE, step };
        layer.adamw(&AdamWConfig::default(), schedule, None, &mut moments)?;
        if step == 1 || step % 20 == 0 {
            let _ = writeln!(io::stdout(), "step {step:>3}: loss {loss:.6}");
        }
    }

    // For export: a plain layer with W' computes what the adapted one does.
    let mut merged = stream.alloc_zeros::<f32>(OUTPUTS * INPUTS)?;
    layer.merge(&mut merged, None)?;
    let [before, after] = [weight, stream.clone_dtoh(&merged)?].map(|w| distance(&w, &wanted));
    let _ = writeln!(
        io::stdout(),
        "distance to the wanted weight: {before:.3} before, {after:.3} after"
    );
    Ok(())
}

/// The mean of (y − x·Wᵀ)² over a step's outputs, as far as this micro-batch adds to it, and its
/// gradient with regard to y. W is the wanted weight.
fn mean_squared_error(y: &[f32], x: &[f32], wanted: &[f32]) -> (f32, Vec<f32>) {
    let scale = 1.0 / (MICRO_BATCHES * TOKENS * OUTPUTS) as f32;
    let rows = x.chunks(INPUTS).flat_map(|x| wanted.chunks(INPUTS).map(move |w| (x, w)));
    let dot = |(x, w): (&[f32], &[f32])| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
    let errors: Vec<f32> = y.iter().zip(rows.map(dot)).map(|(y, wanted)| y - wanted).collect();
    let loss = scale * errors.iter().map(|error| error * error).sum::<f32>();
    (loss, errors.iter().map(|error| 2.0 * scale * error).collect())
}

/// What fine-tuning is to find: W with a change of rank 2, and rows of other lengths.
fn changed(weight: &[f32], random: &mut Random) -> Vec<f32> {
    let (down, up) = (random.values(2 * INPUTS, 0.3), random.values(OUTPUTS * 2, 0.3));
    let lengths = random.values(OUTPUTS, 0.3);
    let element = |(index, w): (usize, &f32)| {
        let (row, col) = (index / INPUTS, index % INPUTS);
        let change: f32 = (0..2).map(|k| up[row * 2 + k] * down[k * INPUTS + col]).sum();
        (1.0 + lengths[row]) * (w + change)
    };
    weight.iter().enumerate().map(element).collect()
}

fn distance(weight: &[f32], other: &[f32]) -> f32 {
    weight.iter().zip(other).map(|(w, other)| (w - other).powi(2)).sum::<f32>().sqrt()
}

/// Repeatable numbers (SplitMix64).
struct Random(u64);

impl Random {
    /// Uniform in ±`bound`.
    fn values(&mut self, len: usize, bound: f32) -> Vec<f32> {
        (0..len).map(|_| bound * self.next()).collect()
    }

    /// Uniform in [-1, 1).
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
