//! How fast the emulated device runs the crate's bf16 GEMM on this processor: host time, by the
//! sanitizer and the number of threads. It says nothing about a GPU.
//!
//! `cargo bench --bench emulator`

use std::error::Error;
use std::time::Instant;

use cuda_emulator::Config;
use cuda_emulator::client::{Choice, Emulator, Selected, select};
use fused_dora::Norm;
use fused_dora_testkit::bench::Layer;

/// (T, I, O, r): eight blocks of the main GEMM, so that every thread has work to the end.
const SHAPE: [usize; 4] = [256, 1024, 512, 16];
/// Floating-point operations of one mma.m16n8k16.
const MMA_FLOPS: u64 = 2 * 16 * 8 * 16;
/// A forward takes about 25 ms, and a core that is shared with others is idle only at times.
const RUNS: usize = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let Selected::Emulated(emulator) = select(Choice::Emulated)? else {
        return Err("the emulated device was asked for, and another was selected".into());
    };
    let cores = Config::default().threads;
    println!(
        "forward in bf16 on the emulated device, T I O r = {SHAPE:?}; host time, best and median of \
         {RUNS}"
    );
    let mut numbers = vec![1, cores];
    numbers.dedup();
    for threads in numbers {
        let speed = |sanitizer| {
            let config = Config { threads, sanitizer, ..Config::default() };
            gemm(&emulator, &config)
        };
        let (off, on) = (speed(false)?, speed(true)?);
        println!("  {threads} threads  GFLOP/s per core, best (median):");
        println!("    without the sanitizer {:6.2} ({:.2})", off.best, off.median);
        println!(
            "    with the sanitizer    {:6.2} ({:.2}), {:.2} of that",
            on.best,
            on.median,
            on.best / off.best
        );
    }
    Ok(())
}

/// Speeds in GFLOP/s per core.
struct Speeds {
    best: f64,
    median: f64,
}

/// Speeds of the tensor-core products of one forward.
fn gemm(emulator: &Emulator, config: &Config) -> Result<Speeds, Box<dyn Error>> {
    emulator.reset();
    emulator.configure(config).map_err(|status| format!("configuring: {}", status.name()))?;
    let mut layer = Layer::new(SHAPE, Norm::Output)?;
    layer.synchronize()?;
    let mut speeds = Vec::new();
    for _ in 0..RUNS {
        emulator.reset_counters();
        let start = Instant::now();
        layer.forward()?;
        layer.synchronize()?;
        let seconds = start.elapsed().as_secs_f64();
        let flops = emulator.counters().mma * MMA_FLOPS;
        speeds.push(flops as f64 / seconds / 1e9 / config.threads as f64);
    }
    speeds.sort_by(f64::total_cmp);
    Ok(Speeds { best: speeds[RUNS - 1], median: speeds[RUNS / 2] })
}
