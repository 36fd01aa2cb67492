//! The demonstration: a network that reads upright digits learns to read them lying on their side.
//!
//! Three linear layers, fully fine-tuned and adapted by LoRA and by DoRA along either norm axis, run
//! through this crate's kernels, and so does the optimizer; the activations are plain host code. With
//! `--base nf4` the adapters train on weights packed to NF4, too. Run it with `cargo xtask demo`, or `cargo run --release --bin finetune -- --help`.

mod decomposition;
mod options;
mod plot;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use fused_dora::quant::{BlockScales, Code4, WeightFormat};
use fused_dora::{Decomposition, Dtype, Norm};
use fused_dora_testkit::device::{self, Device};
use fused_dora_testkit::{eprintln, print, println};
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng;
use rand::rngs::StdRng;

use decomposition::Fit;
use digits::data::{Digits, Linear};
use digits::network::{Adapter, Engine, Method, Network, Number};
use digits::train::{self, Trained};
use options::Options;

/// What is compared: names, what is trained, and whether the frozen weights are packed.
const METHODS: [(&str, Method, bool); 7] = [
    ("full", Method::Full, false),
    ("LoRA", Method::Adapter(Norm::None), false),
    ("DoRA-output", Method::Adapter(Norm::Output), false),
    ("DoRA-input", Method::Adapter(Norm::Input), false),
    ("LoRA-nf4", Method::Adapter(Norm::None), true),
    ("DoRA-output-nf4", Method::Adapter(Norm::Output), true),
    ("DoRA-input-nf4", Method::Adapter(Norm::Input), true),
];

/// How `--base nf4` packs: as bitsandbytes does by default.
const fn nf4(state: Dtype) -> WeightFormat {
    let (code, scales) = (Code4::Nf4, BlockScales::F32);
    WeightFormat::Code4 { code, block: 64, scales, state }
}

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
        let (train, test) = digits::data::read_digits(&options.data.join("digits.csv.gz"))?;
        let base = digits::data::read_network(&options.data.join("digits-mlp.safetensors"))?;
        let (batch, rows) = (options.schedule.batch, train.labels.len());
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
    trained: Trained,
}

fn demonstrate<E: Number>(options: &Options, data: &Data) -> Result<(), Box<dyn Error>> {
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
        .filter(|(_, _, is_packed)| options.packed || !is_packed)
        .map(|method| run_method::<E>(options, data, &device, &engine, method))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| device.explained(error))?;
    print_table(&outcomes, &device);
    print_slopes(&outcomes);
    let [losses, decomposition] = draw(options, &outcomes)?;
    println!("Loss curves: {}", losses.display());
    println!("Changes of magnitude and direction: {}", decomposition.display());
    Ok(())
}

fn run_method<E: Number>(
    options: &Options,
    data: &Data,
    device: &Device,
    engine: &Engine,
    (name, method, is_packed): (&'static str, Method, bool),
) -> Result<Outcome, Box<dyn Error>> {
    let schedule = options.schedule;
    let base = is_packed.then(|| nf4(E::DTYPE));
    let adapter = Adapter { rank: options.rank, alpha: 2.0 * options.rank as f32, base };
    // The same seed for all methods: the same A and the same data order.
    let mut rng = StdRng::seed_from_u64(schedule.seed);
    let tokens = schedule.max_tokens();
    let mut network = Network::<E>::new(engine, &data.base, method, adapter, tokens, &mut rng)?;
    let before = train::accuracy(&mut network, &data.test)?;

    let bar = ProgressBar::new(schedule.steps as u64).with_prefix(name);
    bar.set_style(ProgressStyle::with_template(
        "{prefix:<15} {wide_bar} {pos:>4}/{len} loss {msg} {elapsed}",
    )?);
    let (start, launches) = (Instant::now(), device.launches());
    let trained = train::train(&mut network, &data.train, schedule, None, |loss| {
        bar.set_message(format!("{loss:.3}"));
        bar.inc(1);
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let launches = match (launches, device.launches()) {
        (Some(before), Some(after)) => {
            // Without those that looked how far the weights have moved, one per layer.
            let looks = trained.checkpoints.iter().map(Vec::len).sum::<usize>() as u64;
            (after - before - looks) as f64 / schedule.steps as f64
        }
        _ => network.launches_per_step() as f64,
    };
    bar.finish_and_clear();
    let after = train::accuracy(&mut network, &data.test)?;
    println!("{name}: test accuracy {}, {seconds:.1} s", change(before, after));
    let parameters = network.parameter_count();
    Ok(Outcome { name, parameters, before, after, launches, seconds, trained })
}

fn change(before: f64, after: f64) -> String {
    format!("{:.1} % → {:.1} %", 100.0 * before, 100.0 * after)
}

fn print_table(outcomes: &[Outcome], device: &Device) {
    let time = if device.is_emulated() { "seconds (emulated)" } else { "seconds" };
    println!();
    println!(
        "{:<15} | {:>20} | {:>18} | {:>13} | {time:>18} | device",
        "method", "trainable parameters", "test accuracy", "launches/step"
    );
    for outcome in outcomes {
        println!(
            "{:<15} | {:>20} | {:>18} | {:>13.1} | {:>18.1} | {}",
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

/// How the weights' magnitudes and directions changed together (arXiv:2402.09353, §3.2).
fn print_slopes(outcomes: &[Outcome]) {
    println!();
    println!(
        "Weights against those of the base, by column: ΔM, the mean change of magnitude, against ΔD, \
         that of direction (1 - cosine), over all layers and {} checkpoint(s).",
        outcomes.first().map_or(0, |outcome| outcome.trained.checkpoints.len()),
    );
    println!();
    println!(
        "{:<15} | {:>14} | {:>11} | {:>12} | {:>12}",
        "method", "slope of ΔM/ΔD", "correlation", "ΔM at end", "ΔD at end"
    );
    for outcome in outcomes {
        let checkpoints = &outcome.trained.checkpoints;
        let [slope, correlation] = match Fit::new(checkpoints) {
            Some(fit) => [fit.slope, fit.correlation].map(|value| format!("{value:.3}")),
            None => ["-", "-"].map(str::to_owned),
        };
        let last = checkpoints.last().map_or(&[][..], Vec::as_slice);
        let mean = |of: fn(&Decomposition) -> f64| {
            last.iter().map(of).sum::<f64>() / last.len().max(1) as f64
        };
        println!(
            "{:<15} | {slope:>14} | {correlation:>11} | {:>12.4} | {:>12.4}",
            outcome.name,
            mean(|layer| layer.magnitude),
            mean(|layer| layer.direction),
        );
    }
    println!();
}

/// The two figures.
fn draw(options: &Options, outcomes: &[Outcome]) -> Result<[PathBuf; 2], Box<dyn Error>> {
    let paths = ["loss.svg", "decomposition.svg"].map(|name| options.out.join(name));
    let [losses, decomposition] = &paths;
    let failed = |path: &Path, error| format!("{} cannot be drawn: {error}", path.display());
    let title = format!("Digits rotated by 90°: rank {}, {}", options.rank, options.dtype);
    let curves: Vec<_> =
        outcomes.iter().map(|outcome| (outcome.name, &outcome.trained.losses[..])).collect();
    plot::loss_curves(losses, &title, &curves).map_err(|error| failed(losses, error))?;
    let methods: Vec<_> =
        outcomes.iter().map(|outcome| (outcome.name, &outcome.trained.checkpoints[..])).collect();
    decomposition::draw(decomposition, &title, &methods)
        .map_err(|error| failed(decomposition, error))?;
    Ok(paths)
}
