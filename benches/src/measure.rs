//! How an op of a layer is measured.
//!
//! On a GPU criterion takes the time between two CUDA events around each run, whose inputs are
//! neither in the L2 cache nor those of the run before. On the emulated device, whose time says
//! nothing about a GPU's, each case runs once and what it does is counted. Either goes to the
//! terminal and to `target/bench`.

use std::time::Duration;

use criterion::{Criterion, Throughput};
use fused_dora::{Dtype, Element};
use fused_dora_testkit::bench::record::{Counts, Results, Time, folder};
use fused_dora_testkit::bench::{Case, Device, Op, Outcome, cases, layer, line, record, results};
use fused_dora_testkit::println;
use half::{bf16, f16};

use crate::clocks::{Readings, Sensors};
use crate::stopwatch::Stopwatch;

/// Runs the bench of one op.
pub fn run(name: &str, op: Op) -> Outcome {
    let device = Device::open()?;
    let mut results = results(name, &device)?;
    measure(&device, op, &mut results)?;
    results.write(&folder())?;
    Ok(())
}

/// Measures one op of every layer that has it.
pub fn measure(device: &Device, op: Op, results: &mut Results) -> Outcome {
    let mut cases = cases(device.is_emulated());
    cases.retain(|case| op.applies(case));
    let name = results.bench.clone();
    if device.is_emulated() {
        println!("{name}: counts on the emulated device (it has no GPU time to report)");
        for case in cases {
            let counts = match case.dtype {
                Dtype::Bf16 => count::<bf16>(device, op, &case),
                Dtype::F16 => count::<f16>(device, op, &case),
                Dtype::F32 => count::<f32>(device, op, &case),
            };
            let record = record(op, &case, None, counts?);
            println!("  {}: {}", record.layer(), line(&record));
            results.records.push(record);
        }
        return Ok(());
    }
    let defaults = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    let mut criterion = defaults.configure_from_args();
    for case in cases {
        let time = match case.dtype {
            Dtype::Bf16 => time::<bf16>(device, op, &case, &name, &mut criterion),
            Dtype::F16 => time::<f16>(device, op, &case, &name, &mut criterion),
            Dtype::F32 => time::<f32>(device, op, &case, &name, &mut criterion),
        };
        // Of what the command line leaves out there is no sample.
        if let Some(time) = time? {
            let record = record(op, &case, Some(time), None);
            println!("{name} {}: {}", record.layer(), record.line(results.peaks.as_ref(), None));
            results.records.push(record);
        }
    }
    criterion.final_summary();
    Ok(())
}

/// Runs in which an op is timed without criterion, and those before that are not counted.
const RUNS: usize = 40;
const WARM_UP: usize = 5;

/// Measures an op of one layer, without criterion, which takes seconds for each.
pub fn op(device: &Device, op: Op, case: &Case, results: &mut Results) -> Outcome {
    match case.dtype {
        Dtype::Bf16 => op_in::<bf16>(device, op, case, results),
        Dtype::F16 => op_in::<f16>(device, op, case, results),
        Dtype::F32 => op_in::<f32>(device, op, case, results),
    }
}

fn op_in<E: Element>(device: &Device, op: Op, case: &Case, results: &mut Results) -> Outcome {
    let Device { kernels, stream, .. } = device;
    let mut layer = layer::Layer::<E>::with(
        kernels,
        stream,
        case.shape,
        case.norm,
        device.batches(),
        op.format(),
    )?;
    let (mut time, mut readings) = (None, Readings::default());
    if !device.is_emulated() {
        let (mut stopwatch, sensors) = (Stopwatch::new(stream)?, Sensors::of(stream.context()));
        let mut run = || {
            layer.rotate();
            op.run(&mut layer)
        };
        stopwatch.time(WARM_UP, || Ok(()), &mut run)?;
        time = Time::new(stopwatch.time(RUNS, || Ok(()), &mut run)?);
        sensors.read(&mut readings);
    }
    let counts = device.count(|| op.run(&mut layer))?;
    let mut record = record(op, case, time, counts);
    record.clocks = readings.summary();
    let found = match record.counts {
        Some(_) => line(&record),
        None => record.line(results.peaks.as_ref(), None),
    };
    println!("  {found}");
    results.records.push(record);
    Ok(())
}

fn count<E: Element>(device: &Device, op: Op, case: &Case) -> Outcome<Option<Counts>> {
    let Device { kernels, stream, .. } = device;
    let mut layer =
        layer::Layer::<E>::with(kernels, stream, case.shape, case.norm, 1, op.format())?;
    device.count(|| op.run(&mut layer))
}

fn time<E: Element>(
    device: &Device,
    op: Op,
    case: &Case,
    name: &str,
    criterion: &mut Criterion,
) -> Outcome<Option<Time>> {
    let Device { kernels, stream, .. } = device;
    let mut stopwatch = Stopwatch::new(stream)?;
    // Made when criterion asks for it: a filter may leave the case out.
    let mut layer: Option<layer::Layer<E>> = None;
    let (mut samples, mut failure) = (Vec::new(), None);
    let bytes: u64 = op.work(case).iter().map(|part| part.bytes).sum();
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Bytes(bytes));
    group.bench_function(case.to_string(), |bencher| {
        bencher.iter_custom(|iterations| {
            let mut run = || {
                if layer.is_none() {
                    let batches = device.batches();
                    let Case { shape, norm, .. } = *case;
                    let new =
                        layer::Layer::with(kernels, stream, shape, norm, batches, op.format());
                    layer = Some(new?);
                }
                let layer = layer.as_mut().ok_or("no layer")?;
                let run = || {
                    layer.rotate();
                    op.run(layer)
                };
                stopwatch.time(iterations as usize, || Ok(()), run)
            };
            match run() {
                Ok(seconds) => {
                    let sum = Duration::from_secs_f64(seconds.iter().sum());
                    samples.extend(seconds);
                    sum
                }
                // Criterion knows no failures; it is reported when criterion is done.
                Err(error) => {
                    failure.get_or_insert(error);
                    Duration::from_nanos(iterations)
                }
            }
        });
    });
    group.finish();
    match failure {
        Some(error) => Err(error),
        None => Ok(Time::new(samples)),
    }
}
