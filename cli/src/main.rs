//! Checkpoints on the command line: the program inspects adapters, merges them into their base,
//! takes them out again, and compares weights. `fused-dora --help` lists the commands.

mod adapters;
mod added;
mod analyze;
mod base;
mod convert;
mod converted;
mod cpu;
mod engine;
mod error;
mod files;
mod fit;
mod gains;
mod inspect;
mod kernels;
mod layout;
mod model;
mod names;
mod options;
mod orientation;
mod output;
mod packed;
mod packing;
mod plot;
mod quantize;
mod report;
mod single;
mod tied;
mod weight;
mod whole;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use convert::Direction;
use error::Failure;
use options::{Command, CommandLine};

/// A wrong call: clap exits with the same code.
const BAD_CALL: u8 = 2;
/// The code that a shell reports for SIGINT.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let result = match CommandLine::try_parse() {
        Ok(line) => run(&line.command),
        Err(error) if error.use_stderr() => error.exit(),
        // Help, or the version.
        Err(text) => print(text.render().to_string().as_bytes()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read it has had enough.
        Err(Failure::Stdout(error) | Failure::Unreported { source: error, .. })
            if error.kind() == io::ErrorKind::BrokenPipe =>
        {
            ExitCode::SUCCESS
        }
        Err(error) => {
            let is_written = matches!(error, Failure::Unreported { .. });
            if output::is_interrupted() && !is_written {
                say("interrupted: nothing was written");
                return ExitCode::from(INTERRUPTED);
            }
            say(&format!("error: {error}"));
            match error {
                Failure::Call { .. } | Failure::IsInput { .. } | Failure::Exists { .. } => {
                    ExitCode::from(BAD_CALL)
                }
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// Prints to stderr, if that takes it: `eprintln!` would panic.
fn say(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}

fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Inspect(options) => inspect::run(options),
        Command::Merge(options) => convert::run(options, Direction::Merge),
        Command::Unmerge(options) => convert::run(options, Direction::Unmerge),
        Command::Analyze(options) => analyze::run(options),
        Command::Quantize(options) => quantize::run(options),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut CommandLine::command(), "fused-dora", &mut script);
            print(&script)
        }
    }
}

fn print(text: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout();
    stdout.write_all(text).and_then(|()| stdout.flush()).map_err(Failure::Stdout)
}
