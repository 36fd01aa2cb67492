//! The demonstration: a network that reads upright digits learns to read them lying on their side.
//!
//! Three linear layers, adapted by LoRA and by DoRA along either norm axis, run through this
//! crate's kernels; the optimizer and the activations are plain host code. Run it with
//! `cargo xtask demo`, or `cargo run --release --example finetune -- --help`.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "finetune/digits.rs"]
mod digits;
#[path = "finetune/network.rs"]
mod network;
#[path = "finetune/options.rs"]
mod options;
#[path = "finetune/plot.rs"]
mod plot;
#[path = "finetune/train.rs"]
mod train;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use fused_dora::{Dtype, Element, Norm};
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng;
use rand::rngs::StdRng;

use common::device::{self, Device};
use digits::{Digits, Linear};
use network::{Adapter, Engine, Network};
use options::Options;

/// What is compared: names, and the norm axis of each.
const METHODS: [(&str, Norm); 3] =
    [("LoRA", Norm::None), ("DoRA-output", Norm::Output), ("DoRA-input", Norm::Input)];

/// A wrong call or unusable data.
const BAD_INPUT: u8 = 2;

fn main() -> ExitCode {
    let options = match Options::from_arguments() {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error}\n\n{}", options::USAGE);
            return ExitCode::from(BAD_INPUT);
        }
    };
    let data = match Data::read(&options) {
        Ok(data) => data,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(BAD_INPUT);
        }
    };
    let result = match options.dtype {
        Dtype::Bf16 => demonstrate::<half::bf16>(&options, &data),
        Dtype::F16 => demonstrate::<half::f16>(&options, &data),
        Dtype::F32 => demonstrate::<f32>(&options, &data),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Data {
    train: Digits,
    test: Digits,
    base: Vec<Linear>,
}

impl Data {
    fn read(options: &Options) -> Result<Self, Box<dyn Error>> {
        let (train, test) = digits::read_digits(&options.data.join("digits.csv.gz"))?;
        let base = digits::read_network(&options.data.join("digits-mlp.safetensors"))?;
        let (batch, rows) = (options.schedule.batch, train.len());
        if batch > rows {
            return Err(format!("--batch {batch}: there are {rows} images to train with").into());
        }
        Ok(Self { train, test, base })
    }
}

/// One method's row of the table.
struct Outcome {
    name: &'static str,
    parameters: usize,
    before: f64,
    after: f64,
    launches: f64,
    seconds: f64,
    losses: Vec<f32>,
}

fn demonstrate<E: Element>(options: &Options, data: &Data) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(&options.out)
        .map_err(|error| format!("--out {}: cannot be created: {error}", options.out.display()))?;
    let device = device::open_choice(Some(options.device))?;
    let engine = Engine::new(&device.context).map_err(|error| device.explained(error))?;
    let schedule = &options.schedule;
    println!(
        "Adapting a 64-256-256-10 network to digits rotated by 90°: rank {}, alpha {}, {} steps \
         of {} images, learning rate {}, {}.",
        options.rank,
        2 * options.rank,
        schedule.steps,
        schedule.batch,
        schedule.learning_rate,
        options.dtype,
    );
    println!("Device: {}.", device.name);
    if device.is_emulated() {
        println!(
            "This is the emulated device: software that executes the kernels' PTX on this CPU. \
             The times below are not GPU times."
        );
    }
    let outcomes = METHODS
        .into_iter()
        .map(|(name, norm)| run_method::<E>(options, data, &device, &engine, name, norm))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| device.explained(error))?;
    print_table(&outcomes, &device);
    let svg = draw(options, &outcomes)?;
    println!("Loss curves: {}", svg.display());
    Ok(())
}

fn run_method<E: Element>(
    options: &Options,
    data: &Data,
    device: &Device,
    engine: &Engine,
    name: &'static str,
    norm: Norm,
) -> Result<Outcome, Box<dyn Error>> {
    let schedule = options.schedule;
    let adapter = Adapter { rank: options.rank, alpha: 2.0 * options.rank as f32, norm };
    // The same seed for all methods: the same A and the same data order.
    let mut rng = StdRng::seed_from_u64(schedule.seed);
    let mut network =
        Network::<E>::new(engine, &data.base, adapter, schedule.max_tokens(), &mut rng)?;
    let before = train::accuracy(&mut network, &data.test)?;

    let bar = ProgressBar::new(schedule.steps as u64).with_prefix(name);
    bar.set_style(ProgressStyle::with_template(
        "{prefix:<12} {wide_bar} {pos:>4}/{len} loss {msg} {elapsed}",
    )?);
    let (start, launches) = (Instant::now(), device.launches());
    let losses = train::train(&mut network, &data.train, schedule, |loss| {
        bar.set_message(format!("{loss:.3}"));
        bar.inc(1);
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let launches = match (launches, device.launches()) {
        (Some(before), Some(after)) => (after - before) as f64 / schedule.steps as f64,
        _ => network.launches_per_step() as f64,
    };
    bar.finish_and_clear();
    let after = train::accuracy(&mut network, &data.test)?;
    println!("{name}: test accuracy {}, {seconds:.1} s", change(before, after));
    let parameters = network.parameter_count();
    Ok(Outcome { name, parameters, before, after, launches, seconds, losses })
}

fn change(before: f64, after: f64) -> String {
    format!("{:.1} % → {:.1} %", 100.0 * before, 100.0 * after)
}

fn print_table(outcomes: &[Outcome], device: &Device) {
    let time = if device.is_emulated() { "seconds (emulated)" } else { "seconds" };
    println!();
    println!(
        "{:<12} | {:>20} | {:>18} | {:>13} | {time:>18} | device",
        "method", "trainable parameters", "test accuracy", "launches/step"
    );
    for outcome in outcomes {
        println!(
            "{:<12} | {:>20} | {:>18} | {:>13.1} | {:>18.1} | {}",
            outcome.name,
            outcome.parameters,
            change(outcome.before, outcome.after),
            outcome.launches,
            outcome.seconds,
            device.name,
        );
    }
    println!();
    if device.is_emulated() {
        println!("The seconds are those of the emulated device on this CPU, not of a GPU.");
    }
}

fn draw(options: &Options, outcomes: &[Outcome]) -> Result<PathBuf, Box<dyn Error>> {
    let path = options.out.join("loss.svg");
    let title = format!("Digits rotated by 90°: rank {}, {}", options.rank, options.dtype);
    let curves: Vec<_> =
        outcomes.iter().map(|outcome| (outcome.name, outcome.losses.as_slice())).collect();
    plot::loss_curves(&path, &title, &curves)
        .map_err(|error| format!("{} cannot be drawn: {error}", path.display()))?;
    Ok(path)
}
