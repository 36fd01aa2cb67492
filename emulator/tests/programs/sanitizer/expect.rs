//! Programs with mistakes, and the reports that they must lead to.

use cuda_emulator::{Config, Fault, FaultKind, LaunchError};

use crate::support::{Arg, Bench};

/// The device that the tests run on, whatever the environment says.
pub fn sanitized() -> Config {
    Config { sanitizer: true, ..Config::default() }
}

/// A program with a place where mistakes are made: `$0`, `$1`… stand for statements of `parts`.
pub fn program(text: &str, parts: &[&str]) -> Bench {
    let mut text = text.to_owned();
    for (index, part) in parts.iter().enumerate() {
        text = text.replace(&format!("${index}"), part);
    }
    Bench::cuda_with(&text, sanitized())
}

/// The line on which a marker stands.
pub fn line_of(text: &str, marker: &str) -> u32 {
    let line = text.lines().position(|line| line.contains(marker));
    line.expect("the marker") as u32 + 1
}

/// Runs kernel `k`, which may fail with a fault only.
pub fn run(bench: &Bench, grid: u32, block: u32, args: &[Arg]) -> Result<(), Box<Fault>> {
    match bench.try_launch("k", grid, block, 0, args) {
        Ok(()) => Ok(()),
        Err(LaunchError::Fault(fault)) => Err(fault),
        Err(error) => panic!("{error}"),
    }
}

/// Demands a report at the line of a marker.
pub fn demand(
    result: Result<(), Box<Fault>>,
    kind: FaultKind,
    text: &str,
    marker: &str,
) -> Box<Fault> {
    let fault = result.expect_err("a report");
    assert_eq!(fault.kind, kind, "{fault}");
    let (file, line) = fault.source.clone().expect("line information");
    assert!(file.ends_with("test.cu"), "{file}");
    assert_eq!(line, line_of(text, marker), "{fault}");
    assert_eq!(fault.kernel, "k");
    fault
}
