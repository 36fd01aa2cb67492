//! Functions that the device provides to kernels: printing and assertions.

use std::fmt::Write as _;
use std::io::Write as _;

use super::access::{Intent, read_byte};
use super::context::*;
use super::op::{Builtin, Space};
use super::warp::Warp;
use crate::fault::FaultKind;

/// The longest string that is read from device memory.
const MOST_CHARACTERS: u64 = 4096;

impl Warp {
    /// Calls a function of the device for each lane of the mask.
    pub(crate) fn builtin(
        &mut self,
        machine: &mut Machine,
        builtin: &Builtin,
        mask: u32,
    ) -> Result<(), Box<Stop>> {
        for lane in lanes(mask) {
            match *builtin {
                Builtin::Print { format, arguments, result } => {
                    let format = self.argument(machine, format, 8, lane)?;
                    let arguments = self.argument(machine, arguments, 8, lane)?;
                    let (text, converted) = self.print(machine, format, arguments, lane)?;
                    let mut out = std::io::stdout().lock();
                    // A closed standard output is not the kernel's fault.
                    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
                    if let Some(result) = result {
                        self.set_result(machine, result, converted, lane)?;
                    }
                }
                Builtin::AssertFail { message, file, line, function } => {
                    let message = self.argument(machine, message, 8, lane)?;
                    let file = self.argument(machine, file, 8, lane)?;
                    let line = self.argument(machine, line, 4, lane)?;
                    let function = self.argument(machine, function, 8, lane)?;
                    let message = self.text(machine, message, lane)?;
                    let file = self.text(machine, file, lane)?;
                    let function = self.text(machine, function, lane)?;
                    let detail = format!("`{message}` in {function}, {file}:{line}");
                    return Err(Stop::lane(FaultKind::Assertion, lane as u32, detail));
                }
            }
        }
        Ok(())
    }

    /// An argument, by its offset in local memory.
    fn argument(
        &mut self,
        machine: &mut Machine,
        offset: u32,
        bytes: u64,
        lane: usize,
    ) -> Result<u64, Box<Stop>> {
        self.word(machine, Space::Local, LOCAL_BASE + u64::from(offset), bytes, lane)
    }

    fn set_result(
        &mut self,
        machine: &mut Machine,
        offset: u32,
        value: u32,
        lane: usize,
    ) -> Result<(), Box<Stop>> {
        let address = LOCAL_BASE + u64::from(offset);
        let intent = Intent::Write;
        let to = self.translate_lane(machine, Space::Local, address, 4, 4, intent, lane)?;
        // SAFETY: `translate_lane` found 4 bytes of the thread's local memory.
        unsafe { to.cast::<u32>().write_unaligned(value) };
        self.local_is_written(to, 4);
        Ok(())
    }

    fn word(
        &mut self,
        machine: &mut Machine,
        space: Space,
        address: u64,
        bytes: u64,
        lane: usize,
    ) -> Result<u64, Box<Stop>> {
        let intent = Intent::Read;
        let from = self.translate_lane(machine, space, address, bytes, bytes, intent, lane)?;
        let mut value = [0; 8];
        for (at, byte) in value.iter_mut().enumerate().take(bytes as usize) {
            // SAFETY: `translate_lane` found `bytes` bytes here.
            *byte = unsafe { read_byte(from.wrapping_add(at)) };
        }
        Ok(u64::from_le_bytes(value))
    }

    fn text(
        &mut self,
        machine: &mut Machine,
        address: u64,
        lane: usize,
    ) -> Result<String, Box<Stop>> {
        let mut bytes = Vec::new();
        for at in 0..MOST_CHARACTERS {
            match self.word(machine, Space::Generic, address + at, 1, lane)? {
                0 => break,
                byte => bytes.push(byte as u8),
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Formats what `printf` prints, and counts the arguments.
    fn print(
        &mut self,
        machine: &mut Machine,
        format: u64,
        arguments: u64,
        lane: usize,
    ) -> Result<(String, u32), Box<Stop>> {
        let format = self.text(machine, format, lane)?;
        let mut out = String::new();
        let mut rest = format.as_str();
        let mut at = arguments;
        let mut converted = 0;
        while let Some(percent) = rest.find('%') {
            out.push_str(&rest[..percent]);
            rest = &rest[percent + 1..];
            let end = rest.find(|c: char| c.is_ascii_alphabetic() && !"hlLjzt".contains(c));
            let is_percent = rest.starts_with('%');
            let Some(end) = end.filter(|_| !is_percent) else {
                out.push('%');
                rest = rest.strip_prefix('%').unwrap_or(rest);
                continue;
            };
            let specification = &rest[..end];
            let conversion = rest.as_bytes()[end];
            rest = &rest[end + 1..];
            converted += 1;
            let long = specification.contains("ll")
                || specification.contains(['l', 'j', 'z', 't'])
                || b"sp".contains(&conversion)
                || b"fFeEgGaA".contains(&conversion);
            let bytes = if long { 8 } else { 4 };
            at = at.next_multiple_of(bytes);
            let value = self.word(machine, Space::Generic, at, bytes, lane)?;
            at += bytes;
            let text = match conversion {
                b's' => self.text(machine, value, lane)?,
                _ => number(conversion, specification, value, long),
            };
            pad(&mut out, specification, &text);
        }
        out.push_str(rest);
        Ok((out, converted))
    }
}

/// A number as `printf` writes it, without padding.
fn number(conversion: u8, specification: &str, value: u64, long: bool) -> String {
    let precision = specification.split_once('.').and_then(|(_, after)| {
        after.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<usize>().ok()
    });
    let signed = if long { value as i64 } else { i64::from(value as i32) };
    let real = f64::from_bits(value);
    let mut text = match conversion {
        b'd' | b'i' => signed.to_string(),
        b'u' => value.to_string(),
        b'x' => format!("{value:x}"),
        b'X' => format!("{value:X}"),
        b'o' => format!("{value:o}"),
        b'c' => char::from(value as u8).to_string(),
        b'p' => format!("{value:#x}"),
        b'f' | b'F' => format!("{real:.*}", precision.unwrap_or(6)),
        b'e' | b'E' => exponential(real, precision.unwrap_or(6)),
        b'g' | b'G' => general(real, precision.unwrap_or(6).max(1)),
        _ => format!("{real:?}"),
    };
    let sign_wanted = specification.contains('+') && !b"uxXoc".contains(&conversion);
    if sign_wanted && !text.starts_with('-') {
        text.insert(0, '+');
    }
    text
}

fn exponential(value: f64, precision: usize) -> String {
    let text = format!("{value:.precision$e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let exponent: i32 = exponent.parse().unwrap_or(0);
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", exponent.abs())
        }
        None => text,
    }
}

fn general(value: f64, precision: usize) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let exponent = value.abs().log10().floor() as i32;
    let trim = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    };
    if exponent < -4 || exponent >= precision as i32 {
        let text = exponential(value, precision - 1);
        let (mantissa, rest) = text.split_once('e').unwrap_or((&text, ""));
        return format!("{}e{rest}", trim(mantissa.to_owned()));
    }
    trim(format!("{value:.*}", (precision as i32 - 1 - exponent).max(0) as usize))
}

fn pad(out: &mut String, specification: &str, text: &str) {
    let flags = specification.trim_start_matches(['-', '+', ' ', '0', '#']);
    let digits = flags.split(|c: char| !c.is_ascii_digit()).next().unwrap_or("");
    let width: usize = digits.parse().unwrap_or(0);
    let flags = &specification[..specification.len() - flags.len()];
    // Writing to a String cannot fail.
    let _ = if flags.contains('-') {
        write!(out, "{text:<width$}")
    } else if flags.contains('0') {
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => ("-", digits),
            None => ("", text),
        };
        write!(out, "{sign}{digits:0>0$}", width.saturating_sub(sign.len()))
    } else {
        write!(out, "{text:>width$}")
    };
}
