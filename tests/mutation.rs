//! Mutation tests of the kernels: each barrier, fence, wait, commit, predicate, range, atomic,
//! initialisation and choice of the aligned path is dropped in turn, wherever its pattern occurs in
//! `kernels/`. The emulated device must report each mutant, or a result must be wrong; the kernels
//! as they stand must do neither.
//!
//! See the table with `cargo test --test mutation -- --nocapture`.

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

#[test]
fn every_mutant_is_noticed() {
    let start = Instant::now();
    let selected = select(Choice::Emulated).expect("the emulated device");
    let emulator = *selected.emulator().expect("the emulated device");
    let laboratory = Laboratory::new(emulator, Sources::read(), common::random::fresh_seed());
    println!("set up in {:.1} s", start.elapsed().as_secs_f64());
    for file in laboratory.sources().kernels() {
        let t = Instant::now();
        assert_eq!(laboratory.original(file), Verdict::Survived, "{file} as it stands");
        println!("{file} {:.1} s", t.elapsed().as_secs_f64());
    }
    println!("originals in {:.1} s", start.elapsed().as_secs_f64());
    let only = std::env::var("ONLY").unwrap_or_default();
    let mutants: Vec<Mutant> = laboratory
        .sources()
        .files()
        .flat_map(|(file, text)| rules::mutants(file, text))
        .filter(|m| m.file.contains(&only))
        .collect();
    if std::env::var("LIST").is_ok() {
        for m in &mutants {
            println!(
                "{}:{} {} {}: {} → {}",
                m.file, m.line, m.category, m.scope, m.code, m.becomes
            );
        }
        println!("{}", mutants.len());
        return;
    }

    // One thread compiles while the other runs.
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(vec![Verdict::Survived; mutants.len()]);
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(mutant) = mutants.get(at) else { break };
            let t = Instant::now();
            let verdict = laboratory.verdict(mutant);
            println!(
                "{at} of {}: {}:{} {} {:.1} s: {verdict:?}",
                mutants.len(),
                mutant.file,
                mutant.line,
                mutant.code,
                t.elapsed().as_secs_f64()
            );
            verdicts.lock().expect("no panic")[at] = verdict;
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
    let verdicts = verdicts.into_inner().expect("no panic");
    let rows: Vec<_> = mutants.into_iter().zip(verdicts).collect();
    let problems = judge(&rows, survivors::SURVIVORS);
    println!("{} mutants in {:.1} s", rows.len(), start.elapsed().as_secs_f64());
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
}
