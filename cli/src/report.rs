//! What a command prints to stdout: lines of text, or one JSON document.

use std::fmt::Arguments;
use std::io::{self, Write};

use fused_dora::Norm;
use serde::Serialize;

use crate::error::Failure;
use crate::options::Format;

/// Prints lines as they come, or only the document at the end.
pub struct Report {
    is_json: bool,
}

impl Report {
    pub fn new(format: &Format) -> Self {
        Self { is_json: format.json }
    }

    /// Prints a line of text; nothing where JSON is printed.
    pub fn line(&self, text: Arguments<'_>) -> Result<(), Failure> {
        match self.is_json {
            true => Ok(()),
            false => writeln!(io::stdout(), "{text}").map_err(Failure::Stdout),
        }
    }

    /// Prints the document; nothing where text is printed.
    pub fn document(&self, document: &impl Serialize) -> Result<(), Failure> {
        if !self.is_json {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        serde_json::to_writer_pretty(&mut stdout, document)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(stdout))
            .map_err(Failure::Stdout)
    }
}

/// Prints a line of a report, formatted as by `println!`.
macro_rules! line {
    ($report:expr, $($format:tt)*) => { $report.line(format_args!($($format)*)) };
}

pub(crate) use line;

/// The word for a norm axis.
pub fn axis(norm: Norm) -> &'static str {
    match norm {
        Norm::None => "none",
        Norm::Input => "input",
        Norm::Output => "output",
    }
}
