//! The fused layer against layers of separate ops, in turns.

use std::collections::HashMap;

use fused_dora::cudarc::driver::CudaGraph;
use fused_dora::cudarc::driver::sys::CUgraphInstantiate_flags_enum as GraphFlags;
use fused_dora::cudarc::driver::sys::CUstreamCaptureMode as CaptureMode;
use fused_dora::{Dtype, Element, Norm};
use fused_dora_testkit::bench::layer::Layer;
use fused_dora_testkit::bench::record::{
    Clocks, FUSED, FUSED_DETACHED, MICRO_BATCH, Record, Results, Time, Work, folder,
};
use fused_dora_testkit::bench::{self, Case, Device, NF4, Op, Outcome, cases};
use fused_dora_testkit::println;
use half::{bf16, f16};

use crate::baseline::{Form, Gemm, Inputs, Unfused};
use crate::clocks::{Readings, Sensors};
use crate::measure::measure;
use crate::stopwatch::Stopwatch;

/// Rounds that are counted, in each of which every contender runs once. An eighth as many come
/// before them.
const ROUNDS: usize = 40;
const WARM_UP_SHARE: usize = 8;

/// Tokens up to which the contenders run as captured graphs, too: with more, the host is ahead of a
/// GPU that runs a layer in a dozen launches.
const GRAPH_TOKENS: usize = 2048;

/// What of a training step is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Contender {
    Fused,
    /// Without the gradients through the norm, which the layers of separate ops leave out.
    FusedDetached,
    /// On W packed as [`NF4`].
    Packed,
    /// W from its packed form, and then the fused layer on it.
    Unpacked,
    /// In separate ops, with the products of one of the [`Gemm`]s.
    Unfused(Form, usize),
}

/// Measures a bench's op, and compares the layer with others in some phases.
pub fn run(name: &str, op: Op, phases: &[Phase]) -> Outcome {
    let device = Device::open()?;
    let mut results = bench::results(name, &device)?;
    measure(&device, op, &mut results)?;
    introduce(name, &device, &mut results);
    for case in cases(device.is_emulated()) {
        compare(&device, &case, phases, &mut results)?;
    }
    results.write(&folder())?;
    Ok(())
}

/// Says what the layer is compared with.
pub fn introduce(name: &str, device: &Device, results: &mut Results) {
    let products = products(device);
    println!("{name}: against layers of separate ops, with products of {products}");
    if device.is_emulated() {
        println!(
            "(launches in which the own GEMM scales, adds, transposes or converts are left out, \
             all but the addends that they read: cuBLASLt's products do so in themselves)"
        );
    }
    results.products = Some(products);
}

/// What products are taken from, in words.
fn products(device: &Device) -> String {
    let own = Gemm::own(&device.kernels).name().to_owned();
    if device.is_emulated() {
        return own;
    }
    match Gemm::cublaslt(&device.stream) {
        Ok(library) => library.name().to_owned(),
        Err(error) => format!("{own} ({error})"),
    }
}

/// What products are taken from: first that with which all forms are computed. The plain layer is
/// with each.
fn gemms(device: &Device, dtype: Dtype) -> Vec<Gemm> {
    let mut gemms = Vec::new();
    if !device.is_emulated() {
        gemms.extend(Gemm::cublaslt(&device.stream));
    }
    let library = !gemms.is_empty();
    gemms.push(Gemm::own(&device.kernels));
    if library && dtype == Dtype::F32 {
        gemms.extend(Gemm::cublaslt_tf32(&device.stream));
    }
    gemms
}

/// The contenders of a layer.
fn contenders(norm: Norm, phases: &[Phase], gemms: usize, packed: bool) -> Vec<Contender> {
    let mut contenders = vec![Contender::Fused];
    if packed {
        contenders.extend([Contender::Packed, Contender::Unpacked]);
    }
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
            Self::Packed => "fused, NF4".to_owned(),
            Self::Unpacked => "NF4 dequantised, then fused".to_owned(),
            Self::Unfused(Form::Plain, gemm) => format!("{} ({})", Form::Plain.name(), gemms[gemm]),
            Self::Unfused(form, _) => form.name().to_owned(),
        }
    }

    /// Whether there is something to measure.
    fn has(self, phase: Phase) -> bool {
        match self {
            Self::Fused => true,
            Self::Packed | Self::Unpacked => matches!(phase, Phase::Forward | Phase::Backward),
            Self::FusedDetached => phase == Phase::Step,
            Self::Unfused(form, _) => phase != Phase::Step || form.trains(),
        }
    }
}

/// A layer in all ways.
struct Contest<E> {
    layer: Layer<E>,
    /// The same on a packed W.
    packed: Option<Layer<E>>,
    unfused: Unfused<E>,
    batch: usize,
    /// Of each batch.
    graphs: HashMap<(Contender, Phase, usize), CudaGraph>,
}

impl<E: Element> Contest<E> {
    /// What a phase needs, and does not consist of.
    fn before(&mut self, contender: Contender, phase: Phase) -> Outcome {
        self.batch = self.layer.rotate();
        if let Some(packed) = &mut self.packed {
            packed.rotate();
        }
        match (contender, phase) {
            (Contender::Unfused(form, gemm), Phase::Backward) => {
                self.unfused.multiply_by(gemm);
                self.unfused.forward(form, self.batch)
            }
            _ => Ok(()),
        }
    }

    fn run(&mut self, contender: Contender, phase: Phase) -> Outcome {
        let (mut layer, unfused, batch) = (&mut self.layer, &mut self.unfused, self.batch);
        if let Contender::Packed | Contender::Unpacked = contender {
            let packed = self.packed.as_mut().ok_or("no packed layer")?;
            match contender {
                Contender::Packed => layer = packed,
                _ => packed.dequantize()?,
            }
        }
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

    /// Captures a contender's launches for each batch.
    fn capture(&mut self, device: &Device, contender: Contender, phase: Phase) -> Outcome {
        for _ in 0..device.batches() {
            // What is chosen and allocated at the first run is not for a graph.
            self.before(contender, phase)?;
            self.run(contender, phase)?;
            device.stream.synchronize()?;
            device.stream.begin_capture(CaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
            let launched = self.run(contender, phase);
            let flags = GraphFlags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
            let graph = device.stream.end_capture(flags);
            launched?;
            let graph = graph?.ok_or("the capture gave no graph")?;
            self.graphs.insert((contender, phase, self.batch), graph);
        }
        Ok(())
    }

    /// As launched by the host, or as a graph.
    fn run_as(&mut self, contender: Contender, phase: Phase, graph: bool) -> Outcome {
        if !graph {
            return self.run(contender, phase);
        }
        let captured = self.graphs.get(&(contender, phase, self.batch)).ok_or("no such graph")?;
        Ok(captured.launch()?)
    }
}

/// Compares the contenders of a layer in some phases.
pub fn compare(device: &Device, case: &Case, phases: &[Phase], results: &mut Results) -> Outcome {
    let rounds = (!device.is_emulated()).then_some(ROUNDS);
    match case.dtype {
        Dtype::Bf16 => compare_in::<bf16>(device, case, phases, rounds, results),
        Dtype::F16 => compare_in::<f16>(device, case, phases, rounds, results),
        Dtype::F32 => compare_in::<f32>(device, case, phases, rounds, results),
    }
}

fn compare_in<E: Element>(
    device: &Device,
    case: &Case,
    phases: &[Phase],
    rounds: Option<usize>,
    results: &mut Results,
) -> Outcome {
    let Device { kernels, stream, .. } = device;
    let mut layer = Layer::<E>::on(kernels, stream, case.shape, case.norm, device.batches())?;
    layer.merge()?;
    let gemms = gemms(device, case.dtype);
    let mut packed = None;
    if case.dtype == Dtype::Bf16 && phases.contains(&Phase::Forward) && case.norm != Norm::None {
        let Case { shape, norm, .. } = *case;
        packed = Some(Layer::with(kernels, stream, shape, norm, device.batches(), Some(NF4))?);
    }
    let contenders = contenders(case.norm, phases, gemms.len(), packed.is_some());
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
    let mut contest = Contest { layer, packed, unfused, batch: 0, graphs: HashMap::new() };
    let mut stopwatch = match rounds {
        Some(rounds) => Some((rounds, Stopwatch::new(stream)?)),
        None => None,
    };
    let both = [false, true];
    let ways =
        if stopwatch.is_some() && case.shape[0] <= GRAPH_TOKENS { &both[..] } else { &both[..1] };
    for &phase in phases {
        for &graph in ways {
            let mut rows = Vec::new();
            for (&contender, name) in contenders.iter().zip(&names) {
                if !contender.has(phase) {
                    continue;
                }
                if graph && let Err(error) = contest.capture(device, contender, phase) {
                    let what = format!("{name}, {}, {case}, as a graph", phase.name());
                    println!("left out: {what}: {error}");
                    results.left_out.push(format!("{what}: {error}"));
                    continue;
                }
                rows.push((contender, name));
            }
            let contenders: Vec<Contender> = rows.iter().map(|row| row.0).collect();
            let mut times = match &mut stopwatch {
                Some(stopwatch) => in_turns(stopwatch, &mut contest, &contenders, phase, graph)?,
                None => vec![(None, None); contenders.len()],
            };
            let mut records = Vec::new();
            for ((contender, name), (time, clocks)) in rows.into_iter().zip(&mut times) {
                contest.before(contender, phase)?;
                let counts = device.count(|| contest.run(contender, phase))?;
                let mut record = bench::record(Op::Forward, case, time.take(), counts);
                record.contender = name.clone();
                record.phase = phase.name().to_owned();
                record.graph = graph;
                record.clocks = clocks.take();
                let is_fused = contender == Contender::Fused;
                record.work = if is_fused { phase.work(case) } else { Vec::new() };
                records.push(record);
            }
            print(&records, results);
            results.records.extend(records);
            contest.graphs.clear();
        }
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

/// Each contender's time, of rounds in which all of them run one after the other, and what the GPU
/// did meanwhile.
fn in_turns<E: Element>(
    (rounds, stopwatch): &mut (usize, Stopwatch),
    contest: &mut Contest<E>,
    contenders: &[Contender],
    phase: Phase,
    graph: bool,
) -> Outcome<Vec<(Option<Time>, Option<Clocks>)>> {
    let mut seconds = vec![Vec::new(); contenders.len()];
    let (sensors, mut readings) = (Sensors::of(stopwatch.context()), Readings::default());
    let warm_up = *rounds / WARM_UP_SHARE;
    for round in 0..warm_up + *rounds {
        // Another one begins each time, so that none always follows the same.
        for turn in 0..contenders.len() {
            let at = (round + turn) % contenders.len();
            let contender = contenders[at];
            contest.before(contender, phase)?;
            let run = || contest.run_as(contender, phase, graph);
            let taken = stopwatch.time(1, || Ok(()), run)?;
            if round >= warm_up {
                seconds[at].extend(taken);
            }
        }
        if round >= warm_up {
            sensors.read(&mut readings);
        }
    }
    let clocks = readings.summary();
    Ok(seconds.into_iter().map(|seconds| (Time::new(seconds), clocks.clone())).collect())
}

/// The contenders of one layer in one phase: what was measured of each, and the ratio to the fused
/// layer.
fn print(records: &[Record], results: &Results) {
    let Some(fused) = records.first() else { return };
    println!("{}: {}, {}", results.bench, fused.phase_and_way(), fused.layer());
    if let Some(clocks) = &fused.clocks {
        println!("  {}", clocks.line());
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What a GPU runs, events and graphs included, runs on the emulated device as well; there the
    /// times say nothing.
    #[test]
    fn every_contender_is_timed_by_itself_and_as_a_graph() {
        let device = Device::open().expect("a device");
        let mut results = bench::results("layers", &device).expect("results");
        let case = Case { shape: [16, 32, 48, 8], dtype: Dtype::Bf16, norm: Norm::Output };
        let phases = [Phase::Forward, Phase::Backward];
        compare_in::<bf16>(&device, &case, &phases, Some(2), &mut results).expect("times");
        assert_eq!(results.left_out, [""; 0]);
        for phase in phases {
            for graph in [false, true] {
                let same = |r: &&Record| r.phase == phase.name() && r.graph == graph;
                let records: Vec<_> = results.records.iter().filter(same).collect();
                assert_eq!(records.len(), 3 + Form::ALL.len(), "{phase:?}, {graph}");
                for record in records {
                    let time = record.time.expect("a time");
                    assert_eq!(time.samples, 2, "{}", record.contender);
                }
            }
        }
    }
}
