//! Printing: the standard library's macros panic where an output is closed or full, and these go on
//! without it.

/// Prints a text.
macro_rules! print {
    ($($text:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!($($text)*));
    }};
}

/// Prints a line.
macro_rules! println {
    ($($text:tt)*) => { print!("{}\n", format_args!($($text)*)) };
}

/// Prints a line to stderr.
macro_rules! eprintln {
    ($($text:tt)*) => {{
        let line = format_args!($($text)*);
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{line}\n"));
    }};
}
