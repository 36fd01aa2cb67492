//! Mutation tests of the kernels: each barrier, fence, wait, commit, predicate, range, atomic,
//! initialisation and choice of the aligned path is dropped in turn, wherever its pattern occurs in
//! `kernels/`. The emulated device must report each mutant, or a result must be wrong; the kernels
//! as they stand must do neither.
//!
//! The test `lab/tests/mutation.rs` runs a sample. `cargo xtask mutate` runs all mutants, or those of
//! some files, and shows the table.

mod laboratory;
mod rules;
mod sources;
mod survivors;

use std::fmt;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use cuda_emulator::client::{Choice, select};
use fused_dora_mutants::{Mutant, Verdict, judge};
use fused_dora_testkit::random::fresh_seed;
use fused_dora_testkit::{eprintln, print, println};
use lexopt::prelude::*;

use laboratory::Laboratory;
use sources::Sources;

/// Every how many-th mutant of all is in a sample, such that it takes two or three minutes.
const STRIDE: usize = 32;

const USAGE: &str = "\
Runs the mutants of the kernels: someone must notice each of them.

Usage: mutate [FILE…]

  FILE    a file of kernels/, such as common/schedule/split_k.cuh, whose mutants run (all files)
  --help  print this

Exit codes: 0 all were noticed, 1 a problem, 2 bad arguments.
";

/// Which mutants run.
pub enum Selection {
    /// All of them.
    All,
    /// All of some files.
    Files(Vec<String>),
    /// Every few-th of all. What a run finds, it finds again.
    Sample,
}

impl Selection {
    /// Whether a mutant runs, which is one of a file and the `at`-th of all.
    fn has(&self, file: &str, at: usize) -> bool {
        match self {
            Self::All => true,
            Self::Files(files) => files.iter().any(|wanted| wanted == file),
            Self::Sample => at.is_multiple_of(STRIDE),
        }
    }

    /// A file that was asked for and does not exist.
    fn unknown(&self, known: &[&str]) -> Option<&str> {
        let Self::Files(files) = self else { return None };
        files.iter().map(String::as_str).find(|file| !known.contains(file))
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => write!(formatter, "all mutants run"),
            Self::Files(files) => write!(formatter, "all mutants of {} run", files.join(", ")),
            Self::Sample => write!(
                formatter,
                "every {STRIDE}th mutant runs; `cargo xtask mutate` runs all of them"
            ),
        }
    }
}

/// The program.
pub fn main() -> ExitCode {
    let selection = match selection() {
        Ok(Some(selection)) => selection,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&selection) {
        Ok(problems) if problems.is_empty() => ExitCode::SUCCESS,
        Ok(problems) => {
            eprintln!("error: {} problems\n{}", problems.len(), problems.join("\n"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// The selection of the command line; `None` if help was asked for.
fn selection() -> Result<Option<Selection>, lexopt::Error> {
    let mut files = Vec::new();
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Value(file) => files.push(file.string()?),
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(if files.is_empty() { Selection::All } else { Selection::Files(files) }))
}

/// Runs mutants, prints what becomes of each, and returns the problems.
///
/// # Errors
/// A selected file that does not exist.
///
/// # Panics
/// Where the kernels as they stand do not pass, or nothing can compile or run them.
pub fn run(selection: &Selection) -> Result<Vec<String>, String> {
    let start = Instant::now();
    let selected = select(Choice::Emulated).expect("the emulated device");
    let emulator = *selected.emulator().expect("the emulated device");
    let sources = Sources::read();
    let known: Vec<&str> = sources.files().map(|(file, _)| file).collect();
    if let Some(file) = selection.unknown(&known) {
        return Err(format!("{file} is not a file of kernels/; they are {}", known.join(", ")));
    }
    let laboratory = Laboratory::new(emulator, sources, fresh_seed());
    assert_eq!(laboratory.originals(), Verdict::Survived, "the kernels as they stand");
    println!("the kernels as they stand, after {:.1} s", start.elapsed().as_secs_f64());
    println!("{selection}");
    let (mut mutants, mut runs) = (Vec::new(), Vec::new());
    for (file, text) in laboratory.sources().files() {
        for mutant in rules::mutants(file, text) {
            runs.push(selection.has(file, mutants.len()));
            mutants.push(mutant);
        }
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
                verdicts.lock().unwrap_or_else(PoisonError::into_inner)[at] = verdict;
            }
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
    let verdicts = verdicts.into_inner().unwrap_or_else(PoisonError::into_inner);
    let rows: Vec<_> = mutants.into_iter().zip(verdicts).collect();
    let problems = judge(&rows, survivors::SURVIVORS);
    let run = rows.iter().filter(|(_, verdict)| *verdict != Verdict::NotRun).count();
    println!("{run} of {} mutants in {:.1} s", rows.len(), start.elapsed().as_secs_f64());
    Ok(problems)
}
