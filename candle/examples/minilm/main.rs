//! Fine-tunes a real transformer: all-MiniLM-L6-v2, a BERT of six layers, learns by DoRA or LoRA
//! to classify nouns into WordNet's 25 supersenses from their definitions.
//!
//! The adapter is saved as PEFT saves it, loaded again, and merged into plain layers: all three must
//! agree on each test sentence. Run it with `cargo xtask minilm`, which fetches the model, or
//! with `--model DIR`.

mod bert;
mod data;
mod options;
mod plot;
mod train;

use fused_dora_testkit::{eprintln, print, println};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use candle_core::{DType, Module};
use candle_nn::{Linear, VarBuilder, VarMap};
use cuda_emulator::client;
use fused_dora_candle::fused_dora::peft::{LayerAdapter, PeftCheckpoint};
use fused_dora_candle::fused_dora::{Dtype, NormGrad, Scaling};
use fused_dora_candle::{DoraConfig, DoraLinear, Runtime};

use bert::{Base, Bert, DEVICE, InDtype};
use data::{Task, accuracy};
use options::Options;
use train::{Curves, Trainer};

/// The linear layers of each transformer layer that get an adapter.
const TARGETS: [&str; 4] =
    ["attention.self.query", "attention.self.value", "intermediate.dense", "output.dense"];

/// The file of the head, next to the adapter's.
const HEAD: &str = "head.safetensors";

/// As the Hub names it.
const BASE_MODEL: &str = "sentence-transformers/all-MiniLM-L6-v2";

/// A wrong call, or an unusable model or data.
const BAD_INPUT: u8 = 2;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let options = match Options::from_arguments() {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(error) => return failed(BAD_INPUT, &error),
    };
    let inputs = Base::read(&options.model)
        .and_then(|base| Ok((Task::read(&options.data, &base.tokenizer)?, base)));
    match inputs {
        Err(error) => failed(BAD_INPUT, error.as_ref()),
        Ok((task, base)) => match run(&options, &base, &task) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(1, error.as_ref()),
        },
    }
}

fn failed(code: u8, error: &dyn Error) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(code)
}

fn run(options: &Options, base: &Base, task: &Task) -> Result<()> {
    std::fs::create_dir_all(&options.out)
        .map_err(|error| format!("cannot create {}: {error}", options.out.display()))?;
    client::select(options.device)?;
    let runtime = Runtime::new(&DEVICE)?;
    runtime.set_seed(options.seed);
    println!("on {}", runtime.kernels().context().name()?);
    println!(
        "{} definitions to learn from, {} to test with, {} supersenses",
        task.train.len(),
        task.test.len(),
        task.classes.len()
    );

    let baseline = baseline(options, base, task)?;
    println!("a head alone on the frozen model: {:.1} % of the test at best", 100.0 * baseline);

    let config = DoraConfig {
        rank: options.rank,
        scaling: Scaling::Standard { alpha: 2.0 * options.rank as f32 },
        norm: options.norm,
        norm_grad: NormGrad::Detached,
        dropout: None,
        train_bias: false,
    };
    let start = Instant::now();
    let adapted = Adapted::new(&runtime, base, options.dtype, |_| Ok(config))?;
    let (head, curves) = train(options, &adapted, base, task, baseline)?;
    let minutes = start.elapsed().as_secs_f64() / 60.0;
    println!("{} steps in {minutes:.1} minutes", options.steps);
    curves.write(&options.out.join("minilm.svg"), options.method(), baseline)?;

    let folder = options.out.join("adapter");
    let trained = adapted.to_peft()?;
    let mut checkpoint = PeftCheckpoint::new(trained.clone())?;
    checkpoint.config = checkpoint.config.with("base_model_name_or_path", BASE_MODEL)?;
    checkpoint.write(&folder, Dtype::F32)?;
    head.save(folder.join(HEAD))?;
    println!("adapter in PEFT's form, and the head: {}", folder.display());
    compare(&runtime, base, task, &trained, &folder)
}

/// The share of the test that a head on the frozen model's own embeddings classifies correctly, at
/// the best of its epochs.
fn baseline(options: &Options, base: &Base, task: &Task) -> Result<f64> {
    let frozen = base.bert(|_, linear| Ok(Box::new(linear)))?;
    let [train, test] = [&task.train, &task.test].map(|sentences| {
        let progress = train::progress(sentences.len(), "frozen model");
        frozen.embed_all(sentences, |done| progress.inc(done as u64))
    });
    train::head_alone(options, task, &train?, &test?)
}

/// Trains adapters and a head, and measures the test now and then on merged weights, which candle
/// multiplies itself.
fn train(
    options: &Options,
    adapted: &Adapted,
    base: &Base,
    task: &Task,
    baseline: f64,
) -> Result<(VarMap, Curves)> {
    let mut trainer = Trainer::new(options, task, base.config.hidden_size, &adapted.variables)?;
    let progress = train::progress(options.steps, options.method());
    let mut curves = Curves::default();
    for step in 1..=options.steps {
        let (loss, right) = trainer.step(&adapted.bert, task)?;
        curves.step(loss, right);
        progress.set_message(format!("loss {loss:.3}"));
        progress.inc(1);
        if step % options.eval_every == 0 && step != options.steps {
            let merged = adapted.merged(base)?;
            let logits = trainer.head().forward(&merged.embed_all(&task.test, |_| ())?)?;
            let share = accuracy(&logits, &task.test)?;
            curves.test(step, share);
            progress.suspend(|| {
                println!(
                    "step {step}: loss {loss:.3}, test {:.1} % (head alone {:.1} %)",
                    100.0 * share,
                    100.0 * baseline
                );
            });
        }
    }
    progress.finish_and_clear();
    let logits = trainer.head().forward(&adapted.merged(base)?.embed_all(&task.test, |_| ())?)?;
    curves.test(options.steps, accuracy(&logits, &task.test)?);
    Ok((trainer.into_variables(), curves))
}

/// What the adapter, the adapter read from its files, and merged weights say of the test, all of them
/// in f32.
fn compare(
    runtime: &Runtime,
    base: &Base,
    task: &Task,
    trained: &BTreeMap<String, LayerAdapter>,
    folder: &Path,
) -> Result<()> {
    let adapted = Adapted::of_peft(runtime, base, trained)?;
    let reloaded = Adapted::of_peft(runtime, base, &PeftCheckpoint::read(folder)?.layers)?;
    let head = VarBuilder::from_buffered_safetensors(
        std::fs::read(folder.join(HEAD))?,
        DType::F32,
        &DEVICE,
    )?;
    let head = candle_nn::linear(base.config.hidden_size, task.classes.len(), head)?;

    let mut said = Vec::new();
    for (what, bert) in [
        ("as trained", adapted.prepared(base)?),
        ("read from PEFT's form", reloaded.prepared(base)?),
        ("merged", adapted.merged(base)?),
    ] {
        let progress = train::progress(task.test.len(), what);
        let embeddings = bert.embed_all(&task.test, |done| progress.inc(done as u64))?;
        progress.finish_and_clear();
        let logits = head.forward(&embeddings)?;
        println!("{what}: {:.1} % of the test", 100.0 * accuracy(&logits, &task.test)?);
        said.push((what, logits));
    }
    let (_, first) = &said[0];
    for (what, logits) in &said[1..] {
        let same = first.argmax(1)?.eq(&logits.argmax(1)?)?.to_dtype(DType::F32)?;
        let same = same.sum_all()?.to_scalar::<f32>()? as usize;
        let error = (first - logits)?.abs()?.max_all()?.to_scalar::<f32>()?;
        let all = task.test.len();
        println!("{what}: the same in {same} of {all}, logits within {error:.1e}");
        if same != all {
            return Err(format!("{what}: {} predictions differ", all - same).into());
        }
    }
    Ok(())
}

/// The model with adapters.
struct Adapted {
    bert: Bert,
    layers: BTreeMap<String, DoraLinear>,
    variables: VarMap,
    dtype: DType,
}

impl Adapted {
    /// Adapts the target layers, by their names.
    fn new(
        runtime: &Runtime,
        base: &Base,
        dtype: DType,
        config: impl Fn(&str) -> Result<DoraConfig>,
    ) -> Result<Self> {
        let variables = VarMap::new();
        let vb = VarBuilder::from_varmap(&variables, dtype, &DEVICE);
        let mut layers = BTreeMap::new();
        let bert = base.bert(|name, linear| {
            if !is_target(name) {
                return Ok(Box::new(linear));
            }
            let bias = linear.bias().map(|bias| bias.to_dtype(dtype)).transpose()?;
            let linear = Linear::new(linear.weight().to_dtype(dtype)?, bias);
            let layer = DoraLinear::new(runtime, &config(name)?, &linear, vb.pp(name))?;
            layers.insert(name.to_owned(), layer.clone());
            Ok(Box::new(InDtype { layer, dtype }))
        })?;
        Ok(Self { bert, layers, variables, dtype })
    }

    /// The model in f32 with the adapters of a checkpoint.
    fn of_peft(
        runtime: &Runtime,
        base: &Base,
        adapters: &BTreeMap<String, LayerAdapter>,
    ) -> Result<Self> {
        let adapted = Self::new(runtime, base, DType::F32, |name| {
            let adapter = adapters.get(name);
            let adapter = adapter.ok_or_else(|| format!("the checkpoint has no layer {name}"))?;
            Ok(DoraConfig::of_peft(adapter, NormGrad::Detached))
        })?;
        for (name, layer) in &adapted.layers {
            layer.load_peft(&adapters[name])?;
        }
        Ok(adapted)
    }

    /// The model for inference, its adapters prepared once.
    fn prepared(&self, base: &Base) -> Result<Bert> {
        base.bert(|name, linear| match self.layers.get(name) {
            None => Ok(Box::new(linear)),
            Some(layer) => {
                Ok(Box::new(InDtype { layer: layer.prepare()?.detach(), dtype: self.dtype }))
            }
        })
    }

    /// The model in candle's own layers, of merged weights in f32.
    fn merged(&self, base: &Base) -> Result<Bert> {
        base.bert(|name, linear| match self.layers.get(name) {
            None => Ok(Box::new(linear)),
            Some(layer) => Ok(Box::new(layer.merge(DType::F32)?)),
        })
    }

    fn to_peft(&self) -> Result<BTreeMap<String, LayerAdapter>> {
        let named = |(name, layer): (&String, &DoraLinear)| Ok((name.clone(), layer.to_peft()?));
        self.layers.iter().map(named).collect()
    }
}

/// Whether a layer of the base model gets an adapter: `output.dense` is the FFN's second product, but
/// also ends the name of attention's.
fn is_target(name: &str) -> bool {
    TARGETS.iter().any(|target| name.ends_with(target)) && !name.ends_with("attention.output.dense")
}
