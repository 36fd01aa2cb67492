//! The fused layer against layers of separate ops, in turns.

use fused_dora::{Dtype, Element, Norm};
use fused_dora_testkit::bench::device::Stopwatch;
use fused_dora_testkit::bench::layer::Layer;
use fused_dora_testkit::bench::record::{
    FUSED, FUSED_DETACHED, MICRO_BATCH, Record, Results, Time, Work, folder,
};
use fused_dora_testkit::bench::{self, Case, Device, Op, Outcome, cases};
use fused_dora_testkit::println;
use half::{bf16, f16};

use crate::baseline::{Form, Gemm, Inputs, Unfused};
use crate::measure::measure;

/// Rounds in which every contender runs once, and those of them that are not counted.
const ROUNDS: usize = 40;
const WARM_UP: usize = 5;

/// What of a training step is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// y.
    Forward,
    /// dX and the gradients of the adapter.
    Backward,
    /// Both, for one micro-batch.
    MicroBatch,
    /// Both, and what comes once per optimizer step: preparation, gradients through the norm and
    /// AdamW.
    Step,
}

/// One way to compute the layer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Contender {
    Fused,
    /// Without the gradients through the norm, which the layers of separate ops leave out.
    FusedDetached,
    /// In separate ops, with the products of one of the [`Gemm`]s.
    Unfused(Form, usize),
}

/// Measures a bench's op, and compares the layer with others in some phases.
pub fn run(name: &str, op: Op, phases: &[Phase]) -> Outcome {
    let device = Device::open()?;
    let mut results = bench::results(name, &device)?;
    measure(&device, op, &mut results)?;
    let (products, _) = gemms(&device);
    println!("{name}: against layers of separate ops, with products of {products}");
    if device.is_emulated() {
        println!(
            "(launches in which the own GEMM scales, adds, transposes or converts are left out, \
             all but the addends that they read: cuBLASLt's products do so in themselves)"
        );
    }
    results.products = Some(products);
    for case in cases(device.is_emulated()) {
        match case.dtype {
            Dtype::Bf16 => compare::<bf16>(&device, &case, phases, &mut results)?,
            Dtype::F16 => compare::<f16>(&device, &case, phases, &mut results)?,
            Dtype::F32 => compare::<f32>(&device, &case, phases, &mut results)?,
        }
    }
    results.write(&folder())?;
    Ok(())
}

/// What products are taken from, in words: the best first, with which all forms are computed. The
/// plain layer is with each.
fn gemms(device: &Device) -> (String, Vec<Gemm>) {
    let own = Gemm::own(&device.kernels);
    if device.is_emulated() {
        return (own.name().to_owned(), vec![own]);
    }
    match Gemm::cublaslt(&device.stream) {
        Ok(library) => (library.name().to_owned(), vec![library, own]),
        Err(error) => (format!("{} ({error})", own.name()), vec![own]),
    }
}

/// The contenders of a layer.
fn contenders(norm: Norm, phases: &[Phase], gemms: usize) -> Vec<Contender> {
    let mut contenders = vec![Contender::Fused];
    if norm != Norm::None && phases.contains(&Phase::Step) {
        contenders.push(Contender::FusedDetached);
    }
    let forms = Form::ALL.into_iter().filter(|form| form.applies(norm));
    contenders.extend(forms.map(|form| Contender::Unfused(form, 0)));
    contenders.extend((1..gemms).map(|gemm| Contender::Unfused(Form::Plain, gemm)));
    contenders
}

impl Contender {
    fn name(self, gemms: &[&str]) -> String {
        match self {
            Self::Fused => FUSED.to_owned(),
            Self::FusedDetached => FUSED_DETACHED.to_owned(),
            Self::Unfused(Form::Plain, gemm) => format!("{} ({})", Form::Plain.name(), gemms[gemm]),
            Self::Unfused(form, _) => form.name().to_owned(),
        }
    }

    /// Whether there is something to measure.
    fn has(self, phase: Phase) -> bool {
        match self {
            Self::Fused => true,
            Self::FusedDetached => phase == Phase::Step,
            Self::Unfused(form, _) => phase != Phase::Step || form.trains(),
        }
    }
}

/// A layer in all ways.
struct Contest<E> {
    layer: Layer<E>,
    unfused: Unfused<E>,
    batch: usize,
}

impl<E: Element> Contest<E> {
    /// What a phase needs, and does not consist of.
    fn before(&mut self, contender: Contender, phase: Phase) -> Outcome {
        self.batch = self.layer.rotate();
        match (contender, phase) {
            (Contender::Unfused(form, gemm), Phase::Backward) => {
                self.unfused.multiply_by(gemm);
                self.unfused.forward(form, self.batch)
            }
            _ => Ok(()),
        }
    }

    fn run(&mut self, contender: Contender, phase: Phase) -> Outcome {
        let (layer, unfused, batch) = (&mut self.layer, &mut self.unfused, self.batch);
        let Contender::Unfused(form, gemm) = contender else {
            return match phase {
                Phase::Forward => layer.forward(),
                Phase::Backward => layer.backward(),
                Phase::MicroBatch => layer.forward().and_then(|()| layer.backward()),
                Phase::Step if contender == Contender::Fused => layer.step(),
                Phase::Step => layer.detached_step(),
            };
        };
        unfused.multiply_by(gemm);
        match phase {
            Phase::Forward => unfused.forward(form, batch),
            Phase::Backward => unfused.backward(form, batch),
            Phase::MicroBatch => {
                unfused.forward(form, batch)?;
                unfused.backward(form, batch)
            }
            Phase::Step => {
                unfused.prepare(form)?;
                unfused.forward(form, batch)?;
                unfused.backward(form, batch)?;
                // The same optimizer for all.
                layer.adamw()
            }
        }
    }
}

fn compare<E: Element>(
    device: &Device,
    case: &Case,
    phases: &[Phase],
    results: &mut Results,
) -> Outcome {
    let Device { kernels, stream, .. } = device;
    let mut layer = Layer::<E>::on(kernels, stream, case.shape, case.norm, device.batches())?;
    layer.merge()?;
    let (_, gemms) = gemms(device);
    let contenders = contenders(case.norm, phases, gemms.len());
    let names: Vec<&str> = gemms.iter().map(Gemm::name).collect();
    let names: Vec<String> = contenders.iter().map(|one| one.name(&names)).collect();
    let inputs = Inputs {
        tokens: case.shape[0],
        batches: layer.batches(),
        weight: &layer.weight,
        merged: &layer.merged,
        lora_a: &layer.lora_a,
        lora_b: &layer.lora_b,
        magnitude: &layer.magnitude,
    };
    let mut unfused = Unfused::new(stream, gemms, layer.spec(), &inputs)?;
    unfused.prepare(Form::LoraPeft)?;
    let mut contest = Contest { layer, unfused, batch: 0 };
    let mut stopwatch = if device.is_emulated() { None } else { Some(device.stopwatch()?) };
    for &phase in phases {
        let mut times = match &mut stopwatch {
            Some(stopwatch) => in_turns(stopwatch, &mut contest, &contenders, phase)?,
            None => vec![None; contenders.len()],
        };
        let mut records = Vec::new();
        for ((&contender, name), time) in contenders.iter().zip(&names).zip(&mut times) {
            if !contender.has(phase) {
                continue;
            }
            contest.before(contender, phase)?;
            let counts = device.count(|| contest.run(contender, phase))?;
            let mut record = bench::record(Op::Forward, case, time.take(), counts);
            record.contender = name.clone();
            record.phase = phase.name().to_owned();
            record.work = if contender == Contender::Fused { phase.work(case) } else { Vec::new() };
            records.push(record);
        }
        print(&records, results);
        results.records.extend(records);
    }
    Ok(())
}

impl Phase {
    /// Its name in reports.
    const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::MicroBatch => MICRO_BATCH,
            Self::Step => "training step",
        }
    }

    fn work(self, case: &Case) -> Vec<Work> {
        match self {
            Self::Forward => Op::Forward.work(case),
            Self::Backward => Op::Backward.work(case),
            Self::MicroBatch => [Op::Forward.work(case), Op::Backward.work(case)].concat(),
            Self::Step => Op::Step.work(case),
        }
    }
}

/// Each contender's time, of rounds in which all of them run one after the other.
fn in_turns<E: Element>(
    stopwatch: &mut Stopwatch,
    contest: &mut Contest<E>,
    contenders: &[Contender],
    phase: Phase,
) -> Outcome<Vec<Option<Time>>> {
    let mut seconds = vec![Vec::new(); contenders.len()];
    for round in 0..WARM_UP + ROUNDS {
        // Another one begins each time, so that none always follows the same.
        for turn in 0..contenders.len() {
            let at = (round + turn) % contenders.len();
            let contender = contenders[at];
            if !contender.has(phase) {
                continue;
            }
            contest.before(contender, phase)?;
            let taken = stopwatch.time(1, || Ok(()), || contest.run(contender, phase))?;
            if round >= WARM_UP {
                seconds[at].extend(taken);
            }
        }
    }
    Ok(seconds.into_iter().map(Time::new).collect())
}

/// The contenders of one layer in one phase: what was measured of each, and the ratio to the fused
/// layer.
fn print(records: &[Record], results: &Results) {
    let Some(fused) = records.first() else { return };
    println!("{}: {}, {}", results.bench, fused.phase, fused.layer());
    let width = records.iter().map(|record| record.contender.chars().count()).max().unwrap_or(0);
    for record in records {
        let counted = match (record.counts, fused.counts) {
            (Some(_), _) if record.contender == FUSED => bench::line(record),
            (Some(counts), Some(fused)) => {
                let ratio = |fused: u64, other: u64| fused as f64 / other as f64;
                let launches = ratio(fused.launches, counts.launches);
                let bytes = ratio(fused.dram_bytes, counts.dram_bytes);
                format!(
                    "{}; fused has {launches:.2} × its launches, {bytes:.2} × its DRAM bytes",
                    bench::line(record)
                )
            }
            _ => record
                .line(results.peaks.as_ref(), Some(fused).filter(|_| record.contender != FUSED)),
        };
        println!("  {:width$}  {counted}", record.contender);
    }
}
