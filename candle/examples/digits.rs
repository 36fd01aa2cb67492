//! A digits network learns rotated images by DoRA, as candle trains it; then its adapters are saved,
//! loaded and merged.
//!
//! `cargo run --package fused-dora-candle --example digits [STEPS]`; where there is no GPU, it is
//! faster with `CUDA_EMULATOR_SANITIZER=0`.

use fused_dora_testkit::println;
use std::env;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use candle_core::{D, DType, Device, Error, Result, Tensor};
use candle_nn::{AdamW, Linear, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap, loss};
use cuda_emulator::client::{self, Choice};
use fused_dora_candle::fused_dora::{DropoutForm, Norm, NormGrad, Scaling};
use fused_dora_candle::{DoraConfig, DoraLinear, Runtime};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/data");
const DTYPE: DType = DType::BF16;
const DEVICE: Device = Device::Cpu;

/// Features of the network's layers, from an image's pixels to the digits.
const FEATURES: [usize; 4] = [64, 256, 256, 10];

/// Pixels along an image's edge.
const EDGE: usize = 8;

const BATCH: usize = 64;
const TEST_ROWS: usize = 500;
const RANK: usize = 8;

fn main() -> Result<()> {
    let steps = env::args().nth(1).map_or(Ok(300), |steps| steps.parse::<usize>())?;
    client::select(Choice::from_env().map_err(Error::wrap)?).map_err(Error::wrap)?;
    let runtime = Runtime::new(&DEVICE)?;
    println!("on {}", runtime.kernels().context().name().map_err(Error::wrap)?);
    let data = Path::new(DATA);
    let [train, test] = rotated_digits(&data.join("digits.csv.gz"))?;
    let base = network(&data.join("digits-mlp.safetensors"))?;

    let config = DoraConfig {
        rank: RANK,
        scaling: Scaling::Standard { alpha: 2.0 * RANK as f32 },
        norm: Norm::Output,
        norm_grad: NormGrad::Detached,
        dropout: Some((0.05, DropoutForm::Adapter)),
        train_bias: false,
    };
    let adapt = |variables: &VarMap| {
        let vb = VarBuilder::from_varmap(variables, DTYPE, &DEVICE);
        let layer = |(index, linear)| DoraLinear::new(&runtime, &config, linear, vb.pp(index));
        base.iter().enumerate().map(layer).collect::<Result<Vec<_>>>()
    };
    let variables = VarMap::new();
    let layers = adapt(&variables)?;
    println!("accuracy of the network: {:.1} %", accuracy(&layers, &test)?);

    let parameters = ParamsAdamW { lr: 2e-3, ..Default::default() };
    let mut optimizer = AdamW::new(variables.all_vars(), parameters)?;
    let mut rows: Vec<u32> = (0..train.labels.elem_count() as u32).collect();
    let mut random = StdRng::seed_from_u64(0);
    let start = Instant::now();
    for step in 1..=steps {
        rows.shuffle(&mut random);
        let batch = train.rows(&rows[..BATCH])?;
        let logits = chain(&layers, &batch.images, DoraLinear::forward_train)?;
        let loss = loss::cross_entropy(&logits, &batch.labels)?;
        optimizer.backward_step(&loss)?;
        if step % 25 == 0 || step == steps {
            println!("step {step}: loss {:.3}", loss.to_scalar::<f32>()?);
        }
    }
    println!("{steps} steps in {:.1} s", start.elapsed().as_secs_f64());
    println!("accuracy with the adapters: {:.1} %", accuracy(&layers, &test)?);

    let file = env::temp_dir().join("fused-dora-digits.safetensors");
    variables.save(&file)?;
    let mut variables = VarMap::new();
    let loaded = adapt(&variables)?;
    variables.load(&file)?;
    println!("loaded from {}: {:.1} %", file.display(), accuracy(&loaded, &test)?);
    let merged = layers.iter().map(|layer| layer.merge(DType::F32)).collect::<Result<Vec<_>>>()?;
    let test = Digits { images: test.images.to_dtype(DType::F32)?, ..test };
    println!("merged into candle's own layers: {:.1} %", accuracy(&merged, &test)?);
    Ok(())
}

/// Images and what they show.
struct Digits {
    /// `[rows, 64]`.
    images: Tensor,
    /// `[rows]`.
    labels: Tensor,
}

impl Digits {
    fn rows(&self, rows: &[u32]) -> Result<Self> {
        let rows = Tensor::new(rows, &DEVICE)?;
        let (images, labels) =
            (self.images.index_select(&rows, 0)?, self.labels.index_select(&rows, 0)?);
        Ok(Self { images, labels })
    }
}

/// The images turned by 90° counter-clockwise, for training and for testing.
fn rotated_digits(path: &Path) -> Result<[Digits; 2]> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| Error::from(error).with_path(path))?;
    flate2::read::GzDecoder::new(file).read_to_string(&mut text)?;
    let (mut images, mut labels) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let fields =
            line.split(',').map(|field| Ok(field.parse()?)).collect::<Result<Vec<u32>>>()?;
        let Some((label, pixels)) = fields.split_last().filter(|(_, p)| p.len() == FEATURES[0])
        else {
            return Err(Error::msg(format!("{line}: not 64 pixels and a label")).with_path(path));
        };
        let turned = |index: usize| pixels[index % EDGE * EDGE + EDGE - 1 - index / EDGE];
        images.extend((0..FEATURES[0]).map(|index| turned(index) as f32 / 16.0));
        labels.push(*label);
    }
    let (rows, train) = (labels.len(), labels.len().saturating_sub(TEST_ROWS));
    let images = Tensor::from_vec(images, (rows, FEATURES[0]), &DEVICE)?.to_dtype(DTYPE)?;
    let labels = Tensor::from_vec(labels, rows, &DEVICE)?;
    let part = |start, len| -> Result<Digits> {
        let (images, labels) = (images.narrow(0, start, len)?, labels.narrow(0, start, len)?);
        Ok(Digits { images, labels })
    };
    Ok([part(0, train)?, part(train, rows - train)?])
}

/// The network that was trained on upright digits.
fn network(path: &Path) -> Result<Vec<Linear>> {
    let bytes = fs::read(path).map_err(|error| Error::from(error).with_path(path))?;
    let vb = VarBuilder::from_buffered_safetensors(bytes, DTYPE, &DEVICE)?.pp("layers");
    let shapes = FEATURES.windows(2).enumerate();
    shapes.map(|(i, io)| candle_nn::linear(io[0], io[1], vb.pp(i))).collect()
}

/// The logits in f32.
fn chain<L>(
    layers: &[L],
    images: &Tensor,
    forward: impl Fn(&L, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut x = images.clone();
    for (index, layer) in layers.iter().enumerate() {
        x = forward(layer, &if index == 0 { x } else { x.relu()? })?;
    }
    x.to_dtype(DType::F32)
}

/// Per cent of the images that are read rightly.
fn accuracy<L: Module>(layers: &[L], digits: &Digits) -> Result<f32> {
    let read = chain(layers, &digits.images, L::forward)?.argmax(D::Minus1)?;
    let right = read.eq(&digits.labels)?.to_dtype(DType::F32)?;
    Ok(100.0 * right.mean_all()?.to_scalar::<f32>()?)
}
