//! What `cargo bench` measured, as a Markdown table and pictures.
//!
//! Run it after `cargo bench`, with `cargo run --release --bin report`.

mod machine;
mod markdown;
mod model;
mod plot;

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use fused_dora_testkit::bench::record::{self, Results};
use fused_dora_testkit::{eprintln, print, println};
use lexopt::prelude::*;

use crate::splice;
use machine::Machine;

const USAGE: &str = "\
Turns what `cargo bench` measured into REPORT.md and pictures.

Usage: report [OPTIONS]

  --from DIR   where the benches left their results (target/bench)
  --out DIR    where the report goes, with the results and the machine's description (--from)
  --write FILE put the comparison of the largest layer into a document, between its lines
               `<!-- benches -->` and `<!-- /benches -->`
  --help       print this

Of the emulated device there are counts, and no pictures of times. Exit codes: 0 done, 1 no report
could be made, 2 bad arguments.
";

/// The program.
pub fn main() -> ExitCode {
    let options = match Options::from_arguments() {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match report(&options) {
        Ok(paths) => {
            paths.iter().for_each(|path| println!("{}", path.display()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Where results come from, and where the report goes.
struct Options {
    from: PathBuf,
    out: PathBuf,
    write: Option<PathBuf>,
}

impl Options {
    /// `None` if help was asked for.
    fn from_arguments() -> Result<Option<Self>, lexopt::Error> {
        let (mut from, mut out, mut write) = (record::folder(), None, None);
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("from") => from = parser.value()?.into(),
                Long("out") => out = Some(parser.value()?.into()),
                Long("write") => write = Some(parser.value()?.into()),
                Long("help") | Short('h') => return Ok(None),
                other => return Err(other.unexpected()),
            }
        }
        let out = out.unwrap_or_else(|| from.clone());
        Ok(Some(Self { from, out, write }))
    }
}

/// Writes the report, and returns the paths of its files.
fn report(options: &Options) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let Options { from, out, write } = options;
    let results = Results::read_all(from)?;
    let first = results.first().ok_or_else(|| {
        format!("{} has no results of a bench: run `cargo bench` first", from.display())
    })?;
    // A table of one device must not have another's numbers in it.
    if let Some(other) = results.iter().find(|other| other.device != first.device) {
        return Err(format!(
            "{} has results of {} ({}) and of {} ({}): remove those of one, or run all benches",
            from.display(),
            first.device,
            first.bench,
            other.device,
            other.bench,
        )
        .into());
    }
    let machine = Machine::here(&first.device, first.emulated);
    let mut paths = Vec::new();
    for results in &results {
        paths.push(results.write(out)?);
    }
    let pictures = plot::draw_all(out, &results)?;
    let text = markdown::report(&machine, &results, &pictures);
    let machine = serde_json::to_string_pretty(&machine)? + "\n";
    let description = (out.join(record::MACHINE_FILE), machine);
    for (path, text) in [(out.join("REPORT.md"), text), description] {
        fs::write(&path, text)
            .map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
        paths.push(path);
    }
    paths.extend(pictures.into_iter().map(|picture| out.join(picture.file)));
    if let Some(document) = write {
        splice::into_file(document, "benches", &markdown::largest(&results)?)?;
        paths.push(document.clone());
    }
    Ok(paths)
}
