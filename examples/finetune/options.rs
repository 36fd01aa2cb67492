//! The demonstration's command line.

use std::path::PathBuf;

use fused_dora::Dtype;
use lexopt::prelude::*;

use digits::train::Schedule;
use fused_dora_testkit::device::Choice;
use fused_dora_testkit::options::{self, dtype, parsed, positive, text};

pub const USAGE: &str = "\
Adapts a digits network to rotated images by full fine-tuning, LoRA and DoRA, and compares them.

Usage: finetune [OPTIONS]

  --steps N        optimizer steps per method (300)
  --rank R         rank of the adapters; alpha is 2R (8)
  --batch N        images per step (64)
  --lr X           learning rate of AdamW (2e-3)
  --base B         dense, or nf4: the adapters also train on weights packed to NF4, as
                   QLoRA does (dense)
  --seed N         of A, of the data order and of the stochastic rounding (0)
  --dtype D        bf16, f16 or f32 (bf16)
  --device D       auto (a GPU if there is one), cuda or emulated
                   ($CUDA_EMULATOR_DEVICE, or auto)
  --data DIR       folder of digits.csv.gz and digits-mlp.safetensors (examples/data)
  --out DIR        folder for loss.svg and decomposition.svg (target/demo)
  --help           print this

Exit codes: 0 done, 1 the device failed, 2 bad arguments or data.
";

/// What to do.
pub struct Options {
    pub schedule: Schedule,
    pub rank: usize,
    pub dtype: Dtype,
    /// Whether adapters train on packed weights, too.
    pub packed: bool,
    pub device: Choice,
    pub data: PathBuf,
    pub out: PathBuf,
}

impl Options {
    /// Reads the process's arguments; `None` if help was asked for.
    pub fn from_arguments() -> Result<Option<Self>, lexopt::Error> {
        let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let mut options = Self {
            schedule: Schedule { steps: 300, batch: 64, learning_rate: 2e-3, seed: 0 },
            rank: 8,
            dtype: Dtype::Bf16,
            packed: false,
            device: Choice::Auto,
            data: here.join("data"),
            out: fused_dora_testkit::workspace().join("target/demo"),
        };
        let mut device = None;
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("steps") => options.schedule.steps = positive("--steps", &mut parser)?,
                Long("batch") => options.schedule.batch = positive("--batch", &mut parser)?,
                Long("rank") => options.rank = positive("--rank", &mut parser)?,
                Long("seed") => options.schedule.seed = parsed("--seed", &mut parser)?,
                Long("lr") => {
                    let rate: f32 = parsed("--lr", &mut parser)?;
                    if !(rate.is_finite() && rate > 0.0) {
                        return Err(format!("--lr {rate}: it must be positive and finite").into());
                    }
                    options.schedule.learning_rate = rate;
                }
                Long("dtype") => options.dtype = dtype(&text(&mut parser)?)?,
                Long("base") => {
                    options.packed = match text(&mut parser)?.as_str() {
                        "dense" => false,
                        "nf4" => true,
                        other => {
                            return Err(format!("--base {other}: it must be dense or nf4").into());
                        }
                    }
                }
                Long("device") => device = Some(text(&mut parser)?),
                Long("data") => options.data = parser.value()?.into(),
                Long("out") => options.out = parser.value()?.into(),
                Long("help") | Short('h') => return Ok(None),
                other => return Err(other.unexpected()),
            }
        }
        options.device = options::device(device)?;
        Ok(Some(options))
    }
}
