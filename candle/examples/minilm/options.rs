//! The command line.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use candle_core::DType;
use cuda_emulator::client::Choice;
use fused_dora_candle::fused_dora::Norm;
use lexopt::prelude::*;

pub const USAGE: &str = "\
Fine-tunes all-MiniLM-L6-v2 by DoRA or LoRA to classify nouns by their definitions into WordNet's
supersenses.

Usage: minilm [OPTIONS] --model DIR

  --model DIR     the model's folder: config.json, tokenizer.json and model.safetensors
  --method M      dora or lora (dora)
  --rank R        rank of the adapters; alpha is 2R (8)
  --steps N       optimizer steps (120)
  --batch N       sentences per step (32)
  --lr X          the adapters' learning rate after warm-up (2e-3)
  --dtype D       of the adapted layers in training: bf16, f16 or f32 (bf16)
  --eval-every N  steps from one look at the test to the next (20)
  --seed N        of the order of the data and of the stochastic rounding (0)
  --device D      auto (a GPU if there is one), cuda or emulated ($CUDA_EMULATOR_DEVICE, or auto)
  --data DIR      folder of the definitions (candle/examples/data)
  --out DIR       folder for minilm.svg and the adapter (target/minilm)
  --help          print this

Exit codes: 0 done, 1 the device failed or predictions differ, 2 bad arguments, model or data.
";

/// What to do.
pub struct Options {
    pub model: PathBuf,
    pub norm: Norm,
    pub rank: usize,
    pub steps: usize,
    pub batch: usize,
    pub rate: f64,
    pub dtype: DType,
    pub eval_every: usize,
    pub seed: u64,
    pub device: Choice,
    pub data: PathBuf,
    pub out: PathBuf,
}

impl Options {
    /// Reads the process's arguments; `None` if help was asked for.
    pub fn from_arguments() -> Result<Option<Self>, lexopt::Error> {
        let member = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let (mut model, mut device) = (None, None);
        let mut options = Self {
            model: PathBuf::new(),
            norm: Norm::Output,
            rank: 8,
            steps: 120,
            batch: 32,
            rate: 2e-3,
            dtype: DType::BF16,
            eval_every: 20,
            seed: 0,
            device: Choice::Auto,
            data: member.join("examples/data"),
            out: member.join("../target/minilm"),
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("model") => model = Some(PathBuf::from(parser.value()?)),
                Long("method") => {
                    options.norm = match text(&mut parser)?.as_str() {
                        "dora" => Norm::Output,
                        "lora" => Norm::None,
                        other => return Err(format!("--method {other}: dora or lora").into()),
                    }
                }
                Long("rank") => options.rank = positive("--rank", &mut parser)?,
                Long("steps") => options.steps = positive("--steps", &mut parser)?,
                Long("batch") => options.batch = positive("--batch", &mut parser)?,
                Long("lr") => {
                    options.rate = parsed("--lr", &mut parser)?;
                    if !(options.rate.is_finite() && options.rate > 0.0) {
                        let rate = options.rate;
                        return Err(format!("--lr {rate}: it must be positive and finite").into());
                    }
                }
                Long("dtype") => {
                    options.dtype = match text(&mut parser)?.as_str() {
                        "bf16" => DType::BF16,
                        "f16" => DType::F16,
                        "f32" => DType::F32,
                        other => return Err(format!("--dtype {other}: bf16, f16 or f32").into()),
                    }
                }
                Long("eval-every") => options.eval_every = positive("--eval-every", &mut parser)?,
                Long("seed") => options.seed = parsed("--seed", &mut parser)?,
                Long("device") => device = Some(text(&mut parser)?),
                Long("data") => options.data = parser.value()?.into(),
                Long("out") => options.out = parser.value()?.into(),
                Long("help") | Short('h') => return Ok(None),
                other => return Err(other.unexpected()),
            }
        }
        let missing =
            "--model DIR is missing (`cargo xtask minilm` fetches the model and gives it)";
        options.model = model.ok_or(missing)?;
        options.device = match device {
            Some(name) => name.parse().map_err(|error| format!("--device: {error}"))?,
            None => Choice::from_env().map_err(|error| format!("{}: {error}", Choice::VARIABLE))?,
        };
        Ok(Some(options))
    }

    /// The method's name.
    pub fn method(&self) -> &'static str {
        if self.norm == Norm::None { "LoRA" } else { "DoRA" }
    }
}

fn text(parser: &mut lexopt::Parser) -> Result<String, lexopt::Error> {
    let raw = parser.value()?;
    raw.into_string().map_err(|raw| format!("{}: not valid UTF-8", raw.display()).into())
}

fn parsed<T>(name: &str, parser: &mut lexopt::Parser) -> Result<T, lexopt::Error>
where
    T: FromStr,
    T::Err: Display,
{
    let text = text(parser)?;
    text.parse().map_err(|error| format!("{name} {text}: {error}").into())
}

fn positive(name: &str, parser: &mut lexopt::Parser) -> Result<usize, lexopt::Error> {
    match parsed(name, parser)? {
        0 => Err(format!("{name} 0: it must be at least 1").into()),
        number => Ok(number),
    }
}
