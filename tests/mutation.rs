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
const STRIDE: usize = 32;

/// The environment variable that asks for all mutants.
const ALL: &str = "FUSED_DORA_ALL_MUTANTS";

/// Which mutants run: all, or the first of every few neighbours in each file, so that what a run
/// finds, it finds again.
struct Sample {
    stride: usize,
}

impl Sample {
    fn from_env() -> Self {
        let all = std::env::var_os(ALL).is_some_and(|value| value == "1");
        Self { stride: if all { 1 } else { STRIDE } }
    }

    /// Whether a file's mutant runs; some of each file do.
    fn has(&self, at: usize, of_file: usize) -> bool {
        at.is_multiple_of(self.stride.min(of_file).max(1))
    }
}

impl std::fmt::Display for Sample {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.stride {
            1 => write!(formatter, "all mutants run"),
            stride => write!(
                formatter,
                "every {stride}th mutant of a file runs; all of them do with {ALL}=1, as by \
                 `cargo xtask mutate`"
            ),
        }
    }
}

#[test]
fn every_mutant_is_noticed() {
    if std::env::var_os("CUDA_EMULATOR_SEED").is_some() {
        println!("mutants have schedules of their own: CUDA_EMULATOR_SEED must be unset");
        return;
    }
    let start = Instant::now();
    let selected = select(Choice::Emulated).expect("the emulated device");
    let emulator = *selected.emulator().expect("the emulated device");
    let seed = common::random::fresh_seed();
    let laboratory = Laboratory::new(emulator, Sources::read(), seed);
    assert_eq!(laboratory.originals(), Verdict::Survived, "the kernels as they stand");
    println!("the kernels as they stand, after {:.1} s", start.elapsed().as_secs_f64());
    let sample = Sample::from_env();
    println!("{sample}");
    let (mut mutants, mut runs) = (Vec::new(), Vec::new());
    for (file, text) in laboratory.sources().files() {
        let of_file = rules::mutants(file, text);
        runs.extend((0..of_file.len()).map(|at| sample.has(at, of_file.len())));
        mutants.extend(of_file);
    }

    // One thread compiles while the other runs.
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(vec![Verdict::NotRun; mutants.len()]);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(mutant) = mutants.get(at) else { break };
            if runs[at] {
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
