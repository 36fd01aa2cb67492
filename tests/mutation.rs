//! Mutation tests of the kernels: each barrier, fence, wait, commit, predicate, range, atomic,
//! initialisation and choice of the aligned path is dropped in turn, wherever its pattern occurs in
//! `kernels/`. The emulated device must report each mutant, or a result must be wrong; the kernels
//! as they stand must do neither.
//!
//! Each run takes a sample; `cargo xtask mutate` runs all mutants, or those of some files, and
//! shows the table.

mod common;
#[path = "mutation/laboratory.rs"]
mod laboratory;
#[path = "mutation/rules.rs"]
mod rules;
#[path = "mutation/sources.rs"]
mod sources;
#[path = "mutation/survivors.rs"]
mod survivors;
#[path = "mutation/table.rs"]
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

/// The environment variable that asks for all mutants of files in `kernels/`, separated by commas,
/// or for [`ALL`].
const FILES: &str = "FUSED_DORA_MUTANTS";
const ALL: &str = "all";

/// Which mutants run: all of some files, or of each file the first of every few neighbours, so that
/// what a run finds, it finds again.
struct Sample {
    files: Option<Vec<String>>,
}

impl Sample {
    fn from_env() -> Self {
        let files = std::env::var(FILES).ok();
        Self { files: files.map(|files| files.split(',').map(str::to_owned).collect()) }
    }

    /// Whether one of a file's mutants runs.
    fn has(&self, file: &str, at: usize, of_file: usize) -> bool {
        match &self.files {
            Some(files) => files.iter().any(|wanted| wanted == file || wanted == ALL),
            None => at.is_multiple_of(STRIDE.min(of_file).max(1)),
        }
    }

    /// A file that was asked for and is none.
    fn unknown<'a>(&'a self, known: &[&str]) -> Option<&'a str> {
        let files = self.files.iter().flatten().map(String::as_str);
        files.filter(|file| *file != ALL).find(|file| !known.contains(file))
    }
}

impl std::fmt::Display for Sample {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.files {
            Some(files) => write!(formatter, "all mutants of {} run", files.join(", ")),
            None => write!(
                formatter,
                "every {STRIDE}th mutant of a file runs; all of them do with {FILES}={ALL}, as by \
                 `cargo xtask mutate`"
            ),
        }
    }
}

#[test]
fn every_mutant_is_noticed() {
    if common::device::is_repeated("mutants have schedules of their own") {
        return;
    }
    let (start, sample) = (Instant::now(), Sample::from_env());
    let selected = select(Choice::Emulated).expect("the emulated device");
    let emulator = *selected.emulator().expect("the emulated device");
    let seed = common::random::fresh_seed();
    let laboratory = Laboratory::new(emulator, Sources::read(), seed);
    let known: Vec<&str> = laboratory.sources().files().map(|(file, _)| file).collect();
    assert_eq!(sample.unknown(&known), None, "{FILES}: the files of kernels are {known:?}");
    assert_eq!(laboratory.originals(), Verdict::Survived, "the kernels as they stand");
    println!("the kernels as they stand, after {:.1} s", start.elapsed().as_secs_f64());
    println!("{sample}");
    let (mut mutants, mut runs) = (Vec::new(), Vec::new());
    for (file, text) in laboratory.sources().files() {
        let of_file = rules::mutants(file, text);
        runs.extend((0..of_file.len()).map(|at| sample.has(file, at, of_file.len())));
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
