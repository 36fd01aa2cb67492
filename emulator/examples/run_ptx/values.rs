//! Numbers of the device's types: how they are read from the command line and from files, and shown.

use std::path::Path;

use half::{bf16, f16};

/// A type of parameters and array elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Type {
    pub name: &'static str,
    pub bytes: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unsigned,
    Signed,
    /// Unsigned integers that are shown in hexadecimal.
    Bits,
    Half,
    BrainHalf,
    Float,
}

const fn of(name: &'static str, bytes: usize, kind: Kind) -> Type {
    Type { name, bytes, kind }
}

impl Type {
    const ALL: [Self; 16] = [
        of("u8", 1, Kind::Unsigned),
        of("u16", 2, Kind::Unsigned),
        of("u32", 4, Kind::Unsigned),
        of("u64", 8, Kind::Unsigned),
        of("i8", 1, Kind::Signed),
        of("i16", 2, Kind::Signed),
        of("i32", 4, Kind::Signed),
        of("i64", 8, Kind::Signed),
        of("b8", 1, Kind::Bits),
        of("b16", 2, Kind::Bits),
        of("b32", 4, Kind::Bits),
        of("b64", 8, Kind::Bits),
        of("f16", 2, Kind::Half),
        of("bf16", 2, Kind::BrainHalf),
        of("f32", 4, Kind::Float),
        of("f64", 8, Kind::Float),
    ];

    /// The type with a name.
    pub fn named(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|known| known.name == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|known| known.name).collect();
            format!("`{name}` is not a type; those are {}", names.join(", "))
        })
    }

    /// The bytes of a number: decimal, or hexadecimal bits behind `0x`.
    pub fn parse(self, text: &str) -> Result<Vec<u8>, String> {
        let wrong = || format!("`{text}` is not a number of type {}", self.name);
        let bits = 8 * self.bytes as u32;
        if let Some(digits) = text.strip_prefix("0x") {
            let value = u64::from_str_radix(digits, 16).map_err(|_| wrong())?;
            if bits < 64 && value >> bits != 0 {
                return Err(wrong());
            }
            return Ok(value.to_le_bytes()[..self.bytes].to_vec());
        }
        let float = || text.parse::<f64>().map_err(|_| wrong());
        let bytes = match self.kind {
            Kind::Unsigned | Kind::Bits => {
                let value: u64 = text.parse().map_err(|_| wrong())?;
                if bits < 64 && value >> bits != 0 {
                    return Err(wrong());
                }
                value.to_le_bytes()
            }
            Kind::Signed => {
                let value: i64 = text.parse().map_err(|_| wrong())?;
                let spare = 64 - bits;
                if value << spare >> spare != value {
                    return Err(wrong());
                }
                value.to_le_bytes()
            }
            Kind::Half => u64::from(f16::from_f64(float()?).to_bits()).to_le_bytes(),
            Kind::BrainHalf => u64::from(bf16::from_f64(float()?).to_bits()).to_le_bytes(),
            Kind::Float if self.bytes == 4 => {
                let value: f32 = text.parse().map_err(|_| wrong())?;
                u64::from(value.to_bits()).to_le_bytes()
            }
            Kind::Float => float()?.to_le_bytes(),
        };
        Ok(bytes[..self.bytes].to_vec())
    }

    /// A number as text.
    pub fn show(self, bytes: &[u8]) -> String {
        let mut wide = [0; 8];
        wide[..self.bytes].copy_from_slice(bytes);
        let value = u64::from_le_bytes(wide);
        let spare = 64 - 8 * self.bytes as u32;
        match self.kind {
            Kind::Unsigned => value.to_string(),
            Kind::Signed => ((value << spare) as i64 >> spare).to_string(),
            Kind::Bits => format!("{value:#0width$x}", width = 2 + 2 * self.bytes),
            Kind::Half => f16::from_bits(value as u16).to_string(),
            Kind::BrainHalf => bf16::from_bits(value as u16).to_string(),
            Kind::Float if self.bytes == 4 => format!("{:?}", f32::from_bits(value as u32)),
            Kind::Float => format!("{:?}", f64::from_bits(value)),
        }
    }

    /// The bytes of an array: `COUNT*NUMBER`, `FROM..TO`, a list with commas, or a file.
    pub fn array(self, text: &str) -> Result<Vec<u8>, String> {
        if let Some((count, number)) = text.split_once('*') {
            return Ok(self.parse(number)?.repeat(count_of(count)?));
        }
        if let Some((from, to)) = text.split_once("..") {
            let (from, to): (i64, i64) = match (from.parse(), to.parse()) {
                (Ok(from), Ok(to)) if from <= to => (from, to),
                _ => return Err(format!("`{text}` is not a range of whole numbers")),
            };
            let numbers = (from..to).map(|number| self.parse(&number.to_string()));
            return Ok(numbers.collect::<Result<Vec<_>, _>>()?.concat());
        }
        if Path::new(text).exists() {
            let bytes = std::fs::read(text).map_err(|error| format!("{text}: {error}"))?;
            if bytes.len() % self.bytes != 0 {
                let (length, name) = (bytes.len(), self.name);
                return Err(format!("{text}: {length} bytes are no whole number of {name}"));
            }
            return Ok(bytes);
        }
        let numbers = text.split(',').map(|number| self.parse(number.trim()));
        let numbers = numbers
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("{error}, and there is no file `{text}`"))?;
        Ok(numbers.concat())
    }
}

/// A number of elements.
pub fn count_of(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=0x1_0000_0000) => Ok(count),
        _ => Err(format!("`{text}` is not a number of elements")),
    }
}
