//! Printing for programs. The standard library's macros panic where an output is closed or full; these
//! go on without it.

use std::fmt::Arguments;
use std::io::{self, Write};

/// Writes to stdout. What it does not take is lost.
pub fn to_stdout(text: Arguments<'_>) {
    let _ = io::stdout().write_fmt(text);
}

/// Writes to stderr. What it does not take is lost.
pub fn to_stderr(text: Arguments<'_>) {
    let _ = io::stderr().write_fmt(text);
}

/// Prints a text.
#[macro_export]
macro_rules! print {
    ($($text:tt)*) => { $crate::output::to_stdout(format_args!($($text)*)) };
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    () => { $crate::output::to_stdout(format_args!("\n")) };
    ($($text:tt)*) => {
        $crate::output::to_stdout(format_args!("{}\n", format_args!($($text)*)))
    };
}

/// Prints a line to stderr.
#[macro_export]
macro_rules! eprintln {
    ($($text:tt)*) => {
        $crate::output::to_stderr(format_args!("{}\n", format_args!($($text)*)))
    };
}
