//! Integer expressions of literals and named constants, with `+ - * /` and parentheses.

/// How deep constants may refer to others: a longer chain is a circle.
const MOST_DEPTH: usize = 32;

/// The value of an expression; `text_of` finds what a name stands for.
pub(super) fn evaluate(
    text: &str,
    text_of: &dyn Fn(&str) -> Option<String>,
) -> Result<i64, String> {
    nested(text, text_of, 0)
}

fn nested(
    text: &str,
    text_of: &dyn Fn(&str) -> Option<String>,
    depth: usize,
) -> Result<i64, String> {
    let mut parser = Parser { rest: text.trim(), text_of, depth };
    let value = parser.sum()?;
    match parser.rest {
        "" => Ok(value),
        rest => Err(format!("`{rest}` in `{text}` is no part of a constant expression")),
    }
}

struct Parser<'a> {
    rest: &'a str,
    text_of: &'a dyn Fn(&str) -> Option<String>,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn sum(&mut self) -> Result<i64, String> {
        let mut value = self.product()?;
        while let Some(operator) = self.take(&['+', '-']) {
            let next = self.product()?;
            let result =
                if operator == '+' { value.checked_add(next) } else { value.checked_sub(next) };
            value = result.ok_or("the value is too large")?;
        }
        Ok(value)
    }

    fn product(&mut self) -> Result<i64, String> {
        let mut value = self.operand()?;
        while let Some(operator) = self.take(&['*', '/']) {
            let next = self.operand()?;
            let result =
                if operator == '*' { value.checked_mul(next) } else { value.checked_div(next) };
            value = result.ok_or("the value is too large, or a division by 0")?;
        }
        Ok(value)
    }

    fn operand(&mut self) -> Result<i64, String> {
        if self.take(&['(']).is_some() {
            let value = self.sum()?;
            return self.take(&[')']).map(|_| value).ok_or_else(|| "a `)` is missing".to_owned());
        }
        let word = self.word();
        if word.is_empty() {
            return Err(format!("a number or a name is missing before `{}`", self.rest));
        }
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            let number = word.replace('\'', "");
            return number.parse().map_err(|_| format!("`{word}` is not a decimal number"));
        }
        if self.depth == MOST_DEPTH {
            return Err(format!("`{word}` refers to itself"));
        }
        let text = (self.text_of)(word)
            .ok_or_else(|| format!("`{word}` is not a constant of this op or a common one"))?;
        nested(&text, self.text_of, self.depth + 1)
    }

    fn word(&mut self) -> &'a str {
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '\'';
        let end = self.rest.find(|c| !part(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        word
    }

    fn take(&mut self, wanted: &[char]) -> Option<char> {
        let first = self.rest.chars().next().filter(|first| wanted.contains(first))?;
        self.rest = self.rest[1..].trim_start();
        Some(first)
    }
}
