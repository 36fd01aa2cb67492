//! Formatting as C's `printf` does it, for the conversions that CUDA's device printf takes.

/// The widest field and the highest precision that are honoured.
const MOST_WIDTH: i64 = 4096;

/// One conversion specification: what stands between `%` and its letter.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Specification {
    left: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    zeros: bool,
    width: usize,
    precision: Option<usize>,
    /// Bytes of an integer argument.
    bytes: u32,
    letter: u8,
}

/// An argument that a specification asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A number of so many bytes.
    Number(u64),
    /// A string's address.
    Text,
}

impl Specification {
    /// Parses what follows a percent sign: the specification and its length. `star` supplies the
    /// widths and precisions that are arguments.
    pub(crate) fn parse<E>(
        text: &str,
        mut star: impl FnMut() -> Result<i32, E>,
    ) -> Result<Option<(Self, usize)>, E> {
        let bytes = text.as_bytes();
        let mut at = 0;
        let peek = |at: usize| bytes.get(at).copied().unwrap_or(0);
        let mut specification = Self { bytes: 4, ..Self::default() };
        loop {
            match peek(at) {
                b'-' => specification.left = true,
                b'+' => specification.plus = true,
                b' ' => specification.space = true,
                b'#' => specification.alternate = true,
                b'0' => specification.zeros = true,
                _ => break,
            }
            at += 1;
        }
        let mut number = |at: &mut usize| -> Result<i64, E> {
            if peek(*at) == b'*' {
                *at += 1;
                return star().map(i64::from);
            }
            let mut value = 0_i64;
            while peek(*at).is_ascii_digit() {
                value = (10 * value + i64::from(peek(*at) - b'0')).min(MOST_WIDTH);
                *at += 1;
            }
            Ok(value)
        };
        let width = number(&mut at)?;
        // A negative width is a flag and a width.
        specification.left |= width < 0;
        specification.width = width.abs().min(MOST_WIDTH) as usize;
        if peek(at) == b'.' {
            at += 1;
            let precision = number(&mut at)?;
            specification.precision =
                usize::try_from(precision).ok().map(|p| p.min(MOST_WIDTH as usize));
        }
        let sizes: &[(&str, u32)] =
            &[("hh", 1), ("h", 2), ("ll", 8), ("l", 8), ("j", 8), ("z", 8), ("t", 8)];
        let rest = text.get(at..).unwrap_or("");
        if let Some((name, size)) = sizes.iter().find(|(name, _)| rest.starts_with(name)) {
            specification.bytes = *size;
            at += name.len();
        }
        specification.letter = peek(at);
        let known = b"diouxXcspfFeEgGaA".contains(&specification.letter);
        Ok(known.then_some((specification, at + 1)))
    }

    /// What the conversion takes.
    pub(crate) fn wanted(&self) -> Wanted {
        match self.letter {
            b's' => Wanted::Text,
            b'p' | b'f' | b'F' | b'e' | b'E' | b'g' | b'G' | b'a' | b'A' => Wanted::Number(8),
            // Shorter integers are passed as `int`.
            _ => Wanted::Number(u64::from(self.bytes.max(4))),
        }
    }

    /// The text of a number's bits.
    pub(crate) fn number(&self, bits: u64) -> String {
        let spare = 64 - 8 * self.bytes;
        let unsigned = bits << spare >> spare;
        match self.letter {
            b'd' | b'i' => {
                let value = (bits << spare) as i64 >> spare;
                self.integer(value < 0, value.unsigned_abs().to_string(), "")
            }
            b'u' => self.unsigned(unsigned.to_string(), ""),
            b'o' => {
                let mut digits = format!("{unsigned:o}");
                if self.alternate && !digits.starts_with('0') {
                    digits.insert(0, '0');
                }
                self.unsigned(digits, "")
            }
            b'x' | b'X' => {
                let upper = self.letter == b'X';
                let digits = if upper { format!("{unsigned:X}") } else { format!("{unsigned:x}") };
                let prefix = match (self.alternate && unsigned != 0, upper) {
                    (false, _) => "",
                    (true, false) => "0x",
                    (true, true) => "0X",
                };
                self.unsigned(digits, prefix)
            }
            b'c' => self.pad("", char::from(bits as u8).to_string(), false),
            b'p' => self.pad("", format!("{bits:#x}"), false),
            _ => self.real(f64::from_bits(bits)),
        }
    }

    /// A string, cut to the precision.
    pub(crate) fn text(&self, text: &str) -> String {
        let text = text.chars().take(self.precision.unwrap_or(usize::MAX)).collect();
        self.pad("", text, false)
    }

    fn unsigned(&self, digits: String, prefix: &str) -> String {
        Self { plus: false, space: false, ..*self }.integer(false, digits, prefix)
    }

    fn integer(&self, negative: bool, digits: String, prefix: &str) -> String {
        let digits = match self.precision {
            // Zero with a precision of zero has no digits.
            Some(0) if digits == "0" => String::new(),
            Some(precision) => format!("{digits:0>precision$}"),
            None => digits,
        };
        let prefix = format!("{}{prefix}", self.sign(negative));
        self.pad(&prefix, digits, self.zeros && self.precision.is_none())
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (false, true, _) => "+",
            (false, false, true) => " ",
            _ => "",
        }
    }

    fn real(&self, value: f64) -> String {
        let magnitude = value.abs();
        let precision = self.precision.unwrap_or(6);
        let text = match self.letter.to_ascii_lowercase() {
            _ if value.is_nan() => "nan".to_owned(),
            _ if value.is_infinite() => "inf".to_owned(),
            b'f' => self.point(format!("{magnitude:.precision$}")),
            b'e' => exponential(magnitude, precision, self.alternate),
            b'g' => self.general(magnitude, precision.max(1)),
            _ => hexadecimal(magnitude, self.precision, self.alternate),
        };
        let text = if self.letter.is_ascii_uppercase() { text.to_ascii_uppercase() } else { text };
        let sign = self.sign(value.is_sign_negative());
        let (prefix, digits) = match text.get(..2) {
            Some(prefix @ ("0x" | "0X")) => (format!("{sign}{prefix}"), text[2..].to_owned()),
            _ => (sign.to_owned(), text),
        };
        self.pad(&prefix, digits, self.zeros && value.is_finite())
    }

    /// The alternate form has a point even without digits after it.
    fn point(&self, mut digits: String) -> String {
        if self.alternate && !digits.contains('.') {
            digits.push('.');
        }
        digits
    }

    fn general(&self, value: f64, precision: usize) -> String {
        let scientific = exponential(value, precision - 1, self.alternate);
        let exponent: i32 =
            scientific.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0);
        let (digits, exponent) = if exponent < -4 || exponent >= precision as i32 {
            let (digits, _) = scientific.split_once('e').unwrap_or((&scientific, ""));
            (digits.to_owned(), scientific[digits.len()..].to_owned())
        } else {
            let after = (precision as i32 - 1 - exponent).max(0) as usize;
            (self.point(format!("{value:.after$}")), String::new())
        };
        if self.alternate || !digits.contains('.') {
            return digits + &exponent;
        }
        digits.trim_end_matches('0').trim_end_matches('.').to_owned() + &exponent
    }

    fn pad(&self, prefix: &str, digits: String, zeros: bool) -> String {
        let room = self.width.saturating_sub(prefix.len() + digits.chars().count());
        match (self.left, zeros) {
            (true, _) => format!("{prefix}{digits}{}", " ".repeat(room)),
            (false, true) => format!("{prefix}{}{digits}", "0".repeat(room)),
            (false, false) => format!("{}{prefix}{digits}", " ".repeat(room)),
        }
    }
}

fn exponential(value: f64, precision: usize, point: bool) -> String {
    let text = format!("{value:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    let point = if point && precision == 0 { "." } else { "" };
    format!("{mantissa}{point}e{sign}{:02}", exponent.abs())
}

/// Hexadecimal digits of the mantissa, with one digit before the point.
fn hexadecimal(value: f64, precision: Option<usize>, point: bool) -> String {
    const DIGITS: usize = 13;
    let bits = value.to_bits();
    let field = (bits >> 52) as i32;
    let mut mantissa = bits & ((1 << 52) - 1) | if field == 0 { 0 } else { 1 << 52 };
    let exponent = if value == 0.0 { 0 } else { field.max(1) - 1023 };
    let digits = precision.unwrap_or(DIGITS);
    if digits < DIGITS {
        let unit = 1_u64 << (4 * (DIGITS - digits));
        let (rest, half) = (mantissa % unit, unit / 2);
        let up = rest > half || (rest == half && mantissa & unit != 0);
        mantissa = mantissa - rest + if up { unit } else { 0 };
    }
    let fraction = format!("{:013x}", mantissa & ((1 << 52) - 1));
    let fraction = match precision {
        None => fraction.trim_end_matches('0').to_owned(),
        Some(digits) => format!("{fraction:0<digits$}")[..digits].to_owned(),
    };
    let point = if fraction.is_empty() && !point { "" } else { "." };
    format!("0x{}{point}{fraction}p{exponent:+}", mantissa >> 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(format: &str, bits: u64) -> String {
        let star = || -> Result<i32, ()> { Ok(7) };
        let parsed = Specification::parse(&format[1..], star).expect("no error");
        let (specification, length) = parsed.expect("a conversion");
        assert_eq!(length + 1, format.len());
        match specification.wanted() {
            Wanted::Number(_) => specification.number(bits),
            Wanted::Text => specification.text("strings"),
        }
    }

    #[test]
    fn integers() {
        for (format, value, text) in [
            ("%d", -5_i64, "-5"),
            ("%5i", 42, "   42"),
            ("%-5u|", 3, ""),
            ("%05d", -4, "-0004"),
            ("%+d", 5, "+5"),
            ("% d", 6, " 6"),
            ("%.3d", 7, "007"),
            ("%8.3d", -7, "    -007"),
            ("%.0d", 0, ""),
            ("%x", 0xab, "ab"),
            ("%X", 0xab, "AB"),
            ("%#x", 255, "0xff"),
            ("%#x", 0, "0"),
            ("%#o", 8, "010"),
            ("%08x", 0x1234, "00001234"),
            ("%hhd", 0x1ff, "-1"),
            ("%hu", 0x1_ffff, "65535"),
            ("%u", -1, "4294967295"),
            ("%lld", -1, "-1"),
            ("%llx", -1, "ffffffffffffffff"),
            ("%zu", 1 << 40, "1099511627776"),
            ("%c", 99, "c"),
            ("%3c", 99, "  c"),
            ("%p", 0x1000, "0x1000"),
            ("%*d", 5, "      5"),
        ] {
            if let Some(format) = format.strip_suffix('|') {
                assert_eq!(print(format, value as u64), "3    ");
            } else {
                assert_eq!(print(format, value as u64), text, "{format} of {value}");
            }
        }
    }

    #[test]
    fn reals() {
        for (format, value, text) in [
            ("%f", 1.5, "1.500000"),
            ("%.3f", -2.0 / 3.0, "-0.667"),
            ("%8.2f", 2.345, "    2.35"),
            ("%08.2f", -2.5, "-0002.50"),
            ("%.0f", 2.5, "2"),
            ("%#.0f", 3.0, "3."),
            ("%e", 12345.678, "1.234568e+04"),
            ("%.2E", 0.00012, "1.20E-04"),
            ("%g", 0.0001, "0.0001"),
            ("%g", 0.00001, "1e-05"),
            ("%g", 123456.0, "123456"),
            ("%g", 1234567.0, "1.23457e+06"),
            ("%g", 0.0, "0"),
            ("%#g", 1.0, "1.00000"),
            ("%G", 1e-10, "1E-10"),
            ("%a", 1.5, "0x1.8p+0"),
            ("%a", 0.0, "0x0p+0"),
            ("%.2a", 1.999, "0x2.00p+0"),
            ("%A", 255.5, "0X1.FFP+7"),
            ("%f", f64::INFINITY, "inf"),
            ("%F", f64::NEG_INFINITY, "-INF"),
            ("%010f", f64::INFINITY, "       inf"),
        ] {
            assert_eq!(print(format, value.to_bits()), text, "{format} of {value}");
        }
    }

    #[test]
    fn strings() {
        assert_eq!(print("%s", 0), "strings");
        assert_eq!(print("%10s", 0), "   strings");
        assert_eq!(print("%-10.3s", 0), "str       ");
        assert_eq!(print("%.*s", 0), "strings");
    }
}
