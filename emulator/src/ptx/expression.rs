//! Constant expressions: the operators and the precedence of C, on 64-bit integers and doubles.

use super::lexer::Kind;
use super::parser::{Parser, Result};

/// The value of a constant expression.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Signed(i64),
    Unsigned(u64),
    Float(f64),
}

/// Binary operators, those that bind least first.
const LEVELS: [&[&str]; 10] = [
    &["||"],
    &["&&"],
    &["|"],
    &["^"],
    &["&"],
    &["==", "!="],
    &["<", "<=", ">", ">="],
    &["<<", ">>"],
    &["+", "-"],
    &["*", "/", "%"],
];

impl Value {
    /// The bits of an integer, signed or not.
    fn bits(self) -> Option<u64> {
        match self {
            Self::Signed(value) => Some(value as u64),
            Self::Unsigned(value) => Some(value),
            Self::Float(_) => None,
        }
    }

    fn is_true(self) -> Option<bool> {
        self.bits().map(|bits| bits != 0)
    }
}

/// The operator and its operands: both become unsigned where one is. Remainders always are.
fn apply(op: &str, left: Value, right: Value) -> std::result::Result<Value, &'static str> {
    use Value::{Float, Signed, Unsigned};
    const MISMATCH: &str = "the operands of the constant expression do not fit its operator";
    let truth = |holds: bool| Ok(Signed(i64::from(holds)));
    if let (Float(a), Float(b)) = (left, right) {
        return match op {
            "+" => Ok(Float(a + b)),
            "-" => Ok(Float(a - b)),
            "*" => Ok(Float(a * b)),
            "/" => Ok(Float(a / b)),
            "<" => truth(a < b),
            "<=" => truth(a <= b),
            ">" => truth(a > b),
            ">=" => truth(a >= b),
            "==" => truth(a == b),
            "!=" => truth(a != b),
            _ => Err(MISMATCH),
        };
    }
    let (Some(a), Some(b)) = (left.bits(), right.bits()) else { return Err(MISMATCH) };
    let signed = matches!((left, right), (Signed(_), Signed(_)));
    let integer = |bits: u64| Ok(if signed { Signed(bits as i64) } else { Unsigned(bits) });
    let less = if signed { (a as i64) < b as i64 } else { a < b };
    match op {
        "||" => truth(a != 0 || b != 0),
        "&&" => truth(a != 0 && b != 0),
        "|" => integer(a | b),
        "^" => integer(a ^ b),
        "&" => integer(a & b),
        "==" => truth(a == b),
        "!=" => truth(a != b),
        "<" => truth(less),
        "<=" => truth(less || a == b),
        ">" => truth(!less && a != b),
        ">=" => truth(!less),
        "<<" | ">>" if b >= 64 => Err("a constant expression shifts by 64 bits or more"),
        "<<" if matches!(left, Signed(_)) => Ok(Signed((a << b) as i64)),
        "<<" => Ok(Unsigned(a << b)),
        ">>" if matches!(left, Signed(_)) => Ok(Signed(a as i64 >> b)),
        ">>" => Ok(Unsigned(a >> b)),
        "+" => integer(a.wrapping_add(b)),
        "-" => integer(a.wrapping_sub(b)),
        "*" => integer(a.wrapping_mul(b)),
        "/" | "%" if b == 0 => Err("a constant expression divides by zero"),
        "/" if signed => Ok(Signed((a as i64).wrapping_div(b as i64))),
        "/" => Ok(Unsigned(a / b)),
        "%" => Ok(Unsigned(a % b)),
        _ => Err(MISMATCH),
    }
}

impl Parser<'_> {
    /// A constant expression, which is an integer.
    pub(super) fn integer_expression(&mut self) -> Result<u64> {
        match self.expression()?.bits() {
            Some(bits) => Ok(bits),
            None => self.fail("an integer is expected, not a floating-point number"),
        }
    }

    pub(super) fn expression(&mut self) -> Result<Value> {
        self.nested(Self::ternary)
    }

    fn ternary(&mut self) -> Result<Value> {
        let condition = self.binary(0)?;
        if !self.accept('?') {
            return Ok(condition);
        }
        let (first, second) =
            (self.expression()?, self.expect(':').and_then(|()| self.expression())?);
        match condition.is_true() {
            Some(true) => Ok(first),
            Some(false) => Ok(second),
            None => self.fail("the condition of a constant expression is no integer"),
        }
    }

    fn binary(&mut self, level: usize) -> Result<Value> {
        let Some(operators) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        while let Some(op) = self.operator().filter(|op| operators.contains(op)) {
            self.at += op.len();
            let right = self.binary(level + 1)?;
            left = apply(op, left, right).or_else(|message| self.fail(message))?;
        }
        Ok(left)
    }

    /// The binary operator that comes next, of one mark or of two without a gap.
    fn operator(&self) -> Option<&'static str> {
        let Kind::Mark(first) = self.peek() else { return None };
        let both = match self.peek_after() {
            Kind::Mark(second) if self.touches_next() => [Some(first), Some(second)],
            _ => [Some(first), None],
        };
        let all = || LEVELS.iter().copied().flatten().copied();
        let two = |op: &&str| op.len() == 2 && op.chars().map(Some).eq(both);
        all().find(two).or_else(|| all().find(|op| op.chars().eq([first])))
    }

    fn unary(&mut self) -> Result<Value> {
        use Value::{Float, Signed, Unsigned};
        let token = self.token();
        let unsigned = self.text_of(token).ends_with('U');
        self.at += 1;
        let integer = |parser: &mut Self| {
            let value = parser.nested(Self::unary)?;
            match value.bits() {
                Some(bits) => Ok(bits),
                None => parser.fail("an integer is expected, not a floating-point number"),
            }
        };
        match token.kind {
            Kind::Integer(value) => Ok(match i64::try_from(value) {
                Ok(value) if !unsigned => Signed(value),
                _ => Unsigned(value),
            }),
            Kind::Single(bits) => Ok(Float(f32::from_bits(bits).into())),
            Kind::Double(bits) => Ok(Float(f64::from_bits(bits))),
            Kind::Mark('+') => self.nested(Self::unary),
            Kind::Mark('-') => Ok(match self.nested(Self::unary)? {
                Signed(value) => Signed(value.wrapping_neg()),
                Unsigned(value) => Unsigned(value.wrapping_neg()),
                Float(value) => Float(-value),
            }),
            Kind::Mark('!') => Ok(Signed(i64::from(integer(self)? == 0))),
            Kind::Mark('~') => Ok(Unsigned(!integer(self)?)),
            Kind::Mark('(') => {
                let cast = [("s64", false), ("u64", true)].into_iter();
                let cast = cast.filter(|(name, _)| self.accept_dot(name)).last();
                if let Some((_, unsigned)) = cast {
                    self.expect(')')?;
                    let bits = integer(self)?;
                    return Ok(if unsigned { Unsigned(bits) } else { Signed(bits as i64) });
                }
                let value = self.expression()?;
                self.expect(')')?;
                Ok(value)
            }
            _ => {
                self.at -= 1;
                self.unexpected("a constant")
            }
        }
    }
}
