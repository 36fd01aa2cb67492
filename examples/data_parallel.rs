//! The demonstration's network trained by several devices: each takes its part of every batch, and
//! their gradients are summed.
//!
//! On GPUs the sums go through NCCL where the example is built for it, and otherwise through the
//! host: `cargo run --release --bin data_parallel --features nccl -- --ranks 4`. Without a GPU
//! there are as many emulated devices as ranks.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use fused_dora::{AllReduce, HostRank, Norm};
use fused_dora_testkit::device::{Choice, Device, open_several};
use fused_dora_testkit::options::{device, positive, text};
use fused_dora_testkit::run::driver;
use fused_dora_testkit::{eprintln, print, println};
use half::bf16;
use lexopt::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use digits::data::{Digits, Linear};
use digits::network::{Adapter, Engine, Method, Network};
use digits::train::{self, Schedule};

const USAGE: &str = "\
Trains DoRA adapters of a digits network on several devices, each with its part of every batch.

Usage: data_parallel [OPTIONS]

  --ranks N        devices (2)
  --steps N        optimizer steps (20)
  --batch N        images per step, of all ranks together (64)
  --device D       auto (GPUs if there are some), cuda or emulated
                   ($CUDA_EMULATOR_DEVICE, or auto)
  --help           print this

Exit codes: 0 done, 1 a device failed or the ranks differ, 2 bad arguments or data.
";

/// A wrong call or unusable data.
const BAD_INPUT: u8 = 2;

/// Steps between two losses that are printed.
const INTERVAL: usize = 5;

const ADAPTER: Adapter = Adapter { rank: 8, alpha: 16.0, base: None };

struct Options {
    ranks: usize,
    schedule: Schedule,
    device: Choice,
}

impl Options {
    /// Reads the process's arguments; `None` if help was asked for.
    fn from_arguments() -> Result<Option<Self>, lexopt::Error> {
        let (mut ranks, mut name) = (2, None);
        let mut schedule = Schedule { steps: 20, batch: 64, learning_rate: 2e-3, seed: 0 };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("ranks") => ranks = positive("--ranks", &mut parser)?,
                Long("steps") => schedule.steps = positive("--steps", &mut parser)?,
                Long("batch") => schedule.batch = positive("--batch", &mut parser)?,
                Long("device") => name = Some(text(&mut parser)?),
                Long("help") | Short('h') => return Ok(None),
                other => return Err(other.unexpected()),
            }
        }
        if schedule.batch < ranks {
            let batch = schedule.batch;
            return Err(format!("--batch {batch}: each of {ranks} ranks needs an image").into());
        }
        Ok(Some(Self { ranks, schedule, device: device(name)? }))
    }
}

struct Data {
    train: Digits,
    test: Digits,
    base: Vec<Linear>,
}

impl Data {
    fn read(batch: usize) -> Result<Self, Box<dyn Error>> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data");
        let (train, test) = digits::data::read_digits(&folder.join("digits.csv.gz"))?;
        let base = digits::data::read_network(&folder.join("digits-mlp.safetensors"))?;
        if batch > train.labels.len() {
            let rows = train.labels.len();
            return Err(format!("--batch {batch}: there are {rows} images to train with").into());
        }
        Ok(Self { train, test, base })
    }
}

fn main() -> ExitCode {
    let options = match Options::from_arguments() {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error}\n\n{USAGE}");
            return ExitCode::from(BAD_INPUT);
        }
    };
    let data = match Data::read(options.schedule.batch) {
        Ok(data) => data,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(BAD_INPUT);
        }
    };
    match run(&options, &data) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What a rank gets from the others: a seat for sums through the host, or the name of their group.
enum Seat {
    Host(HostRank),
    #[cfg(feature = "nccl")]
    Nccl(fused_dora::cudarc::nccl::Id),
}

impl Seat {
    /// One per rank: NCCL's where the example was built for it and there are GPUs.
    fn all(engines: &[Engine], emulated: bool) -> fused_dora::Result<Vec<Self>> {
        #[cfg(feature = "nccl")]
        if !emulated {
            let id = fused_dora::parallel::nccl::id()?;
            return Ok(engines.iter().map(|_| Self::Nccl(id)).collect());
        }
        let _ = emulated;
        let streams: Vec<_> = engines.iter().map(|engine| engine.stream.clone()).collect();
        Ok(HostRank::group(&streams).into_iter().map(Self::Host).collect())
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Host(_) => "the host",
            #[cfg(feature = "nccl")]
            Self::Nccl(_) => "NCCL",
        }
    }

    /// Takes the seat, on the rank's own thread.
    #[cfg_attr(not(feature = "nccl"), allow(unused_variables, reason = "for NCCL"))]
    fn take(
        self,
        engine: &Engine,
        rank: usize,
        ranks: usize,
    ) -> fused_dora::Result<Box<dyn AllReduce>> {
        Ok(match self {
            Self::Host(rank) => Box::new(rank),
            #[cfg(feature = "nccl")]
            Self::Nccl(id) => {
                Box::new(fused_dora::parallel::nccl::join(&engine.stream, rank, ranks, id)?)
            }
        })
    }
}

/// What a rank has after training.
struct Outcome {
    losses: Vec<f32>,
    parameters: Vec<f32>,
    accuracies: [f64; 2],
}

fn run(options: &Options, data: &Data) -> Result<(), Box<dyn Error>> {
    let Options { ranks, schedule, device } = *options;
    let devices = open_several(device, ranks)?;
    let engines: Vec<_> =
        devices.iter().map(|device| Engine::new(&device.context)).collect::<Result<_, _>>()?;
    let seats = Seat::all(&engines, devices[0].is_emulated())?;
    println!(
        "{ranks} rank(s) on {}, sums through {}: {} steps of {} images.",
        devices[0].name,
        seats[0].name(),
        schedule.steps,
        schedule.batch,
    );
    let outcomes = thread::scope(|scope| {
        let threads: Vec<_> = engines
            .iter()
            .zip(seats)
            .enumerate()
            .map(|(rank, (engine, seat))| {
                scope.spawn(move || {
                    let rank = seat.take(engine, rank, ranks)?;
                    train_rank(engine, data, schedule, &*rank)
                })
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join();
        threads.into_iter().map(join).collect::<Vec<_>>()
    });
    let outcomes = outcomes
        .into_iter()
        .map(|outcome| outcome.map_err(|_| "a rank's thread panicked")?.map_err(Into::into))
        .collect::<Result<Vec<Outcome>, Box<dyn Error>>>()
        .map_err(|error| explained(&devices, error))?;
    report(&outcomes)
}

/// `error`, and what the emulated devices know about it.
fn explained(devices: &[Device], error: Box<dyn Error>) -> Box<dyn Error> {
    devices[0].explained(error)
}

fn train_rank(
    engine: &Engine,
    data: &Data,
    schedule: Schedule,
    rank: &dyn AllReduce,
) -> fused_dora::Result<Outcome> {
    // The same seed on all ranks: the same adapters, and the same batches.
    let mut rng = StdRng::seed_from_u64(schedule.seed);
    let (method, tokens) = (Method::Adapter(Norm::Output), schedule.max_tokens());
    let mut network = Network::<bf16>::new(engine, &data.base, method, ADAPTER, tokens, &mut rng)?;
    let before = train::accuracy(&mut network, &data.test)?;
    let trained = train::train(&mut network, &data.train, schedule, Some(rank), |_| {})?;
    let after = train::accuracy(&mut network, &data.test)?;
    // The batches' losses, of the parts that the ranks have.
    let during = "copying the losses";
    let stream = &engine.stream;
    let mut losses = stream.clone_htod(&trained.losses).map_err(driver(during))?;
    rank.sum_over_ranks(losses.as_view_mut())?;
    let losses = stream.clone_dtoh(&losses).map_err(driver(during))?;
    Ok(Outcome { losses, parameters: network.parameters()?, accuracies: [before, after] })
}

fn report(outcomes: &[Outcome]) -> Result<(), Box<dyn Error>> {
    let bits = |outcome: &Outcome| -> Vec<u32> {
        outcome.parameters.iter().map(|parameter| parameter.to_bits()).collect()
    };
    let first = &outcomes[0];
    let last = first.losses.len() - 1;
    for (step, loss) in first.losses.iter().enumerate() {
        if step % INTERVAL == 0 || step == last {
            println!("step {:>4}: loss {loss:.4}", step + 1);
        }
    }
    let [before, after] = first.accuracies.map(|accuracy| 100.0 * accuracy);
    println!("Test accuracy: {before:.1} % → {after:.1} %.");
    let expected = bits(first);
    if let Some(other) = outcomes.iter().position(|outcome| bits(outcome) != expected) {
        return Err(format!("the adapters of rank 0 and rank {other} differ").into());
    }
    println!("All {} rank(s) hold the same adapters, bit by bit.", outcomes.len());
    Ok(())
}
