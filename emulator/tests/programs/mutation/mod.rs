//! Mutation tests of the sanitizer: in small programs each barrier, fence, wait, predicate,
//! alignment assumption, atomic and initialisation is dropped in turn. Each mutant must be reported
//! or compute something wrong under one of several orders of warps; each program as it stands must
//! do neither.
//!
//! The programs are in the `*.cu` here; comments `//~` in them say what is dropped. See the table
//! with `cargo test -p cuda-emulator --test programs mutation -- --nocapture`.

mod harness;
mod programs;
mod sites;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use self::harness::{Failure, Random};
use self::programs::{PROGRAMS, Program};
use crate::support::{self, Bench};
use cuda_emulator::Config;
use fused_dora_mutants::{Mutant, Verdict, judge};

/// Orders of warps under which each mutant runs until it is noticed.
const SEEDS: u64 = 4;

/// Enough for any of the programs, and little for one that does not end.
const WATCHDOG: u64 = 1 << 20;

/// Runs a text of a program under all seeds, until one run fails.
fn run(program: &Program, text: &str, data: u64) -> Result<(), Failure> {
    let headers = [("ptx.cuh".to_owned(), include_str!("ptx.cuh").to_owned())];
    let ptx = support::compile_named(program.file, text, &headers);
    (0..SEEDS).try_for_each(|seed| {
        let config =
            Config { seed, sanitizer: true, watchdog: WATCHDOG, threads: 1, ..Config::default() };
        (program.run)(&Bench::load(&ptx, config), &mut Random(data | 1))
    })
}

fn verdict(program: &Program, mutant: &Mutant, data: u64) -> Verdict {
    match run(program, &mutant.text, data) {
        Ok(()) => Verdict::Survived,
        Err(Failure::Wrong(difference)) => Verdict::Wrong(difference),
        Err(Failure::Fault(fault)) => {
            let (path, line) = fault.source.clone().unwrap_or_default();
            let file = path.rsplit('/').next().unwrap_or_default();
            Verdict::Reported(format!("{} at {file}:{line}", fault.kind.describe()))
        }
    }
}

#[test]
fn every_mutant_is_noticed() {
    let start = Instant::now();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    let data = since.as_nanos() as u64;
    println!("random data of seed {data}");
    let mutants: Vec<(&Program, Mutant)> = PROGRAMS
        .iter()
        .flat_map(|program| {
            let mutants = sites::mutants(program.file, program.text);
            assert!(!mutants.is_empty(), "{} has no mutants", program.file);
            mutants.into_iter().map(move |mutant| (program, mutant))
        })
        .collect();
    for program in PROGRAMS {
        if let Err(failure) = run(program, program.text, data) {
            panic!("{} as it stands: {failure:?}", program.file);
        }
    }
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(vec![Verdict::Survived; mutants.len()]);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((program, mutant)) = mutants.get(at) else { break };
            let verdict = verdict(program, mutant, data);
            verdicts.lock().expect("no panic")[at] = verdict;
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let verdicts = verdicts.into_inner().expect("no panic");
    let rows: Vec<_> = mutants.into_iter().map(|(_, mutant)| mutant).zip(verdicts).collect();
    let problems = judge(&rows, &[]);
    println!("{} mutants in {:.1} s", rows.len(), start.elapsed().as_secs_f64());
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
}
