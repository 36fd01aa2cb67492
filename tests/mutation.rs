//! Mutation tests of the kernels: each barrier, fence, wait, commit, predicate, range, atomic,
//! initialisation and choice of the aligned path is dropped in turn, wherever its pattern occurs in
//! `kernels/`. The emulated device must report each mutant, or a result must be wrong; the kernels
//! as they stand must do neither.
//!
//! Each run takes a sample, another one every time; `cargo xtask mutate` runs all mutants and shows
//! the table.

mod common;
#[path = "mutation/laboratory.rs"]
mod laboratory;
#[allow(dead_code)]
#[path = "../build/nvrtc.rs"]
mod nvrtc;
#[path = "mutation/rules.rs"]
mod rules;
#[path = "mutation/sources.rs"]
mod sources;
#[path = "mutation/survivors.rs"]
mod survivors;
#[path = "../emulator/tests/mutation/table.rs"]
mod table;
#[path = "mutation/trials.rs"]
mod trials;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use cuda_emulator::client::{Choice, select};
use laboratory::Laboratory;
use sources::Sources;
use table::{Mutant, Verdict, judge};

/// Every how many-th mutant runs where not all do, such that the test takes two or three minutes.
const STRIDE: usize = 6;

/// The environment variable that asks for all mutants.
const ALL: &str = "FUSED_DORA_ALL_MUTANTS";

/// Which mutants run: all, or one of every `STRIDE` neighbours in a file, from an offset that
/// differs from run to run.
struct Sample {
    stride: usize,
    offset: usize,
}

impl Sample {
    fn draw(seed: u64) -> Self {
        let all = std::env::var_os(ALL).is_some_and(|value| value == "1");
        let stride = if all { 1 } else { STRIDE };
        Self { stride, offset: (seed % stride as u64) as usize }
    }

    fn has(&self, at: usize) -> bool {
        at % self.stride == self.offset
    }
}

impl std::fmt::Display for Sample {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.stride {
            1 => write!(formatter, "all mutants run"),
            stride => write!(
                formatter,
                "mutants {} + {stride}n run; all of them do with {ALL}=1, or `cargo xtask mutate`",
                self.offset
            ),
        }
    }
}

#[test]
fn every_mutant_is_noticed() {
    let start = Instant::now();
    let selected = select(Choice::Emulated).expect("the emulated device");
    let emulator = *selected.emulator().expect("the emulated device");
    let seed = common::random::fresh_seed();
    let laboratory = Laboratory::new(emulator, Sources::read(), seed);
    for file in laboratory.sources().kernels() {
        assert_eq!(laboratory.original(file), Verdict::Survived, "{file} as it stands");
    }
    println!("the kernels as they stand, after {:.1} s", start.elapsed().as_secs_f64());
    let mutants: Vec<Mutant> = laboratory
        .sources()
        .files()
        .flat_map(|(file, text)| rules::mutants(file, text))
        .collect();
    let sample = Sample::draw(seed);
    println!("{sample}");

    // One thread compiles while the other runs.
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(vec![Verdict::NotRun; mutants.len()]);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(mutant) = mutants.get(at) else { break };
            if sample.has(at) {
                let verdict = laboratory.verdict(mutant);
                let Mutant { file, line, code, .. } = mutant;
                println!("{at} of {}: {file}:{line}: {code}: {verdict:?}", mutants.len());
                verdicts.lock().expect("no panic")[at] = verdict;
            }
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
    let verdicts = verdicts.into_inner().expect("no panic");
    let rows: Vec<_> = mutants.into_iter().zip(verdicts).collect();
    let problems = judge(&rows, survivors::SURVIVORS);
    let run = rows.iter().filter(|(_, verdict)| *verdict != Verdict::NotRun).count();
    println!("{run} of {} mutants in {:.1} s", rows.len(), start.elapsed().as_secs_f64());
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
}
