//! What a command prints to stdout: lines of text, or one JSON document.

use std::cell::RefCell;
use std::fmt::Arguments;
use std::io::{self, Write};

use fused_dora::Norm;
use serde::Serialize;

use crate::error::Failure;
use crate::options::Format;

/// Prints lines as they come, or only the document at the end.
pub struct Report {
    is_json: bool,
    /// Whether the command has another product, so that the work goes on where stdout takes
    /// nothing more; and why it takes nothing.
    goes_on: bool,
    lost: RefCell<Option<io::Error>>,
}

impl Report {
    /// Of a command whose product is what it prints.
    pub fn new(format: &Format) -> Self {
        Self { is_json: format.json, goes_on: false, lost: RefCell::new(None) }
    }

    /// Of a command that writes files.
    pub fn of_work(format: &Format) -> Self {
        Self { goes_on: true, ..Self::new(format) }
    }

    /// Prints a line of text; nothing where JSON is printed.
    pub fn line(&self, text: Arguments<'_>) -> Result<(), Failure> {
        match self.is_json {
            true => Ok(()),
            false => self.print(|| writeln!(io::stdout(), "{text}")),
        }
    }

    /// Prints the document; nothing where text is printed.
    pub fn document(&self, document: &impl Serialize) -> Result<(), Failure> {
        if !self.is_json {
            return Ok(());
        }
        self.print(|| {
            let mut stdout = io::stdout().lock();
            serde_json::to_writer_pretty(&mut stdout, document)?;
            writeln!(stdout)?;
            stdout.flush()
        })
    }

    fn print(&self, write: impl FnOnce() -> io::Result<()>) -> Result<(), Failure> {
        if self.lost.borrow().is_some() {
            return Ok(());
        }
        match write() {
            Err(error) if self.goes_on => {
                self.lost.replace(Some(error));
                Ok(())
            }
            result => result.map_err(Failure::Stdout),
        }
    }

    /// Why lines were lost, if some were.
    pub fn finish(self) -> Result<(), Failure> {
        self.lost.into_inner().map_or(Ok(()), |error| Err(Failure::Stdout(error)))
    }
}

/// Prints a line of a report, formatted as by `println!`.
macro_rules! line {
    ($report:expr, $($format:tt)*) => { $report.line(format_args!($($format)*)) };
}

pub(crate) use line;

/// A number of things, in words.
pub fn count(number: usize, thing: &str) -> String {
    match number {
        1 => format!("1 {thing}"),
        _ => format!("{number} {thing}s"),
    }
}

/// The word for a norm axis.
pub fn axis(norm: Norm) -> &'static str {
    match norm {
        Norm::None => "none",
        Norm::Input => "input",
        Norm::Output => "output",
    }
}
