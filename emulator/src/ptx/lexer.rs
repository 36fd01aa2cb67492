//! Tokens of PTX.

use super::Problem;

/// One token; names borrow from the text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind<'a> {
    /// A name, such as `%r1`, `$L__BB0_1` or `mov`.
    Name(&'a str),
    /// A dot and a name, without the dot: `.u32`, `.L2::128B`.
    Dot(&'a str),
    /// An integer.
    Integer(u64),
    /// The bits of an `0f` constant.
    Single(u32),
    /// The bits of an `0d` or decimal constant.
    Double(u64),
    /// A string without its quotes.
    Text(&'a str),
    /// Any other character.
    Mark(char),
    /// The end of the text.
    End,
}

/// A token and its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind<'a>,
    pub(super) line: u32,
    /// Byte offset of its first character.
    pub(super) start: usize,
    /// Byte offset after its last character.
    pub(super) end: usize,
}

/// Splits the text into tokens; the last one is the end.
pub(super) fn tokens(text: &str) -> Result<Vec<Token<'_>>, Problem> {
    let mut lexer = Lexer { text, bytes: text.as_bytes(), at: 0, line: 1 };
    let mut tokens = Vec::with_capacity(text.len() / 4);
    loop {
        lexer.skip_blanks()?;
        let (start, line) = (lexer.at, lexer.line);
        let kind = lexer.next()?;
        tokens.push(Token { kind, line, start, end: lexer.at });
        if kind == Kind::End {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    line: u32,
}

fn starts_name(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'$' | b'%')
}

fn continues_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%')
}

impl<'a> Lexer<'a> {
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn skip_blanks(&mut self) -> Result<(), Problem> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (b'\n', _) => {
                    self.line += 1;
                    self.at += 1;
                }
                (b' ' | b'\t' | b'\r', _) => self.at += 1,
                (b'/', b'/') => {
                    while self.at < self.bytes.len() && self.peek(0) != b'\n' {
                        self.at += 1;
                    }
                }
                (b'/', b'*') => {
                    let line = self.line;
                    while (self.peek(0), self.peek(1)) != (b'*', b'/') {
                        if self.at >= self.bytes.len() {
                            return Err(Problem::new(line, "a comment does not end"));
                        }
                        self.line += u32::from(self.peek(0) == b'\n');
                        self.at += 1;
                    }
                    self.at += 2;
                }
                _ => return Ok(()),
            }
        }
    }

    fn take_while(&mut self, keep: impl Fn(u8) -> bool) -> &'a str {
        let start = self.at;
        while self.at < self.bytes.len() && keep(self.peek(0)) {
            self.at += 1;
        }
        &self.text[start..self.at]
    }

    fn next(&mut self) -> Result<Kind<'a>, Problem> {
        let first = self.peek(0);
        if self.at >= self.bytes.len() {
            return Ok(Kind::End);
        }
        // A per cent sign alone is an operator.
        if starts_name(first) && (first != b'%' || continues_name(self.peek(1))) {
            return Ok(match self.take_while(continues_name) {
                "WARP_SZ" => Kind::Integer(32),
                name => Kind::Name(name),
            });
        }
        if first.is_ascii_digit() {
            return self.number();
        }
        match first {
            b'.' if continues_name(self.peek(1)) => {
                self.at += 1;
                let start = self.at;
                self.take_while(continues_name);
                while (self.peek(0), self.peek(1)) == (b':', b':') {
                    self.at += 2;
                    self.take_while(continues_name);
                }
                Ok(Kind::Dot(&self.text[start..self.at]))
            }
            b'"' => {
                self.at += 1;
                let text = self.take_while(|byte| byte != b'"' && byte != b'\n');
                if self.peek(0) != b'"' {
                    return Err(Problem::new(self.line, "a string does not end"));
                }
                self.at += 1;
                Ok(Kind::Text(text))
            }
            0x20..0x7f => {
                self.at += 1;
                Ok(Kind::Mark(char::from(first)))
            }
            _ => Err(Problem::new(self.line, format!("byte {first:#04x} is not PTX"))),
        }
    }

    fn number(&mut self) -> Result<Kind<'a>, Problem> {
        let line = self.line;
        let bad = |text: &str| Problem::new(line, format!("`{text}` is not a number"));
        let start = self.at;
        let mut text = self.take_while(|byte| byte.is_ascii_alphanumeric());
        if self.peek(0) == b'.' && self.peek(1).is_ascii_digit() && !text.starts_with("0x") {
            self.at += 1;
            let fraction = self.take_while(|byte| byte.is_ascii_alphanumeric());
            if fraction.ends_with(['e', 'E']) && matches!(self.peek(0), b'+' | b'-') {
                self.at += 1;
                self.take_while(|byte| byte.is_ascii_digit());
            }
            text = &self.text[start..self.at];
            let value: f64 = text.parse().map_err(|_| bad(text))?;
            return Ok(Kind::Double(value.to_bits()));
        }
        let prefixed = |radix, digits: &str| u64::from_str_radix(digits, radix);
        if let Some(digits) = text.strip_prefix("0f").or_else(|| text.strip_prefix("0F")) {
            if digits.len() != 8 {
                return Err(bad(text));
            }
            return Ok(Kind::Single(u32::from_str_radix(digits, 16).map_err(|_| bad(text))?));
        }
        if let Some(digits) = text.strip_prefix("0d").or_else(|| text.strip_prefix("0D")) {
            if digits.len() != 16 {
                return Err(bad(text));
            }
            return Ok(Kind::Double(prefixed(16, digits).map_err(|_| bad(text))?));
        }
        let digits = text.strip_suffix('U').unwrap_or(text);
        let hexadecimal = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
        let binary = digits.strip_prefix("0b").or_else(|| digits.strip_prefix("0B"));
        let value = if let Some(digits) = hexadecimal {
            prefixed(16, digits)
        } else if let Some(digits) = binary {
            prefixed(2, digits)
        } else if digits.len() > 1 && digits.starts_with('0') {
            prefixed(8, digits)
        } else {
            prefixed(10, digits)
        };
        value.map(Kind::Integer).map_err(|_| bad(text))
    }
}
