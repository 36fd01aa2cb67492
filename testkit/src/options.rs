//! Command-line values that the examples share.

use std::fmt::Display;
use std::str::FromStr;

use fused_dora::Dtype;

use super::device::Choice;

/// The value of the option just read, as text.
pub fn text(parser: &mut lexopt::Parser) -> Result<String, lexopt::Error> {
    parser
        .value()?
        .into_string()
        .map_err(|raw| format!("{}: not valid UTF-8", raw.display()).into())
}

/// The value of the option just read.
pub fn parsed<T>(name: &str, parser: &mut lexopt::Parser) -> Result<T, lexopt::Error>
where
    T: FromStr,
    T::Err: Display,
{
    let text = text(parser)?;
    text.parse().map_err(|error| format!("{name} {text}: {error}").into())
}

/// The value of the option just read, a number that is not 0.
pub fn positive(name: &str, parser: &mut lexopt::Parser) -> Result<usize, lexopt::Error> {
    match parsed(name, parser)? {
        0 => Err(format!("{name} 0: it must be at least 1").into()),
        number => Ok(number),
    }
}

/// A compute type by its name.
pub fn dtype(name: &str) -> Result<Dtype, lexopt::Error> {
    let known = Dtype::ALL.into_iter().find(|dtype| dtype.name() == name);
    known.ok_or_else(|| format!("--dtype {name}: it must be bf16, f16 or f32").into())
}

/// The device that `--device` names, or else `CUDA_EMULATOR_DEVICE`.
pub fn device(name: Option<String>) -> Result<Choice, lexopt::Error> {
    match name {
        Some(name) => name.parse().map_err(|error| format!("--device: {error}").into()),
        None => Choice::from_env().map_err(|error| format!("{}: {error}", Choice::VARIABLE).into()),
    }
}
