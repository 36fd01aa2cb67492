//! Checkpoints on the command line: adapters inspected, merged into their base and taken out of it
//! again, and weights compared. `fused-dora --help` tells how.

mod adapters;
mod analyze;
mod base;
mod convert;
mod cpu;
mod engine;
mod error;
mod inspect;
mod kernels;
mod options;
mod output;
mod plot;
mod weight;

use std::process::ExitCode;

use error::Failure;
use options::Command;

/// A wrong call.
const BAD_CALL: u8 = 2;
/// As a shell has it for SIGINT.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let command = match options::from_arguments() {
        Ok(Some(command)) => command,
        Ok(None) => {
            print!("{}", options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error}\n\n{}", options::USAGE);
            return ExitCode::from(BAD_CALL);
        }
    };
    let result = match &command {
        Command::Inspect(options) => inspect::run(options),
        Command::Merge(options) => convert::run(options, convert::Direction::Merge),
        Command::Unmerge(options) => convert::run(options, convert::Direction::Unmerge),
        Command::Analyze(options) => analyze::run(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if output::is_interrupted() => {
            eprintln!("interrupted: nothing was written");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            eprintln!("error: {error}");
            match error {
                Failure::Call { .. } | Failure::IsInput { .. } | Failure::Exists { .. } => {
                    ExitCode::from(BAD_CALL)
                }
                _ => ExitCode::FAILURE,
            }
        }
    }
}
