//! The modifiers of one instruction: what nobody asked for is an error.

use crate::program::Rounding;
use crate::ptx::Type;

/// Modifiers that were not taken yet, in order, and which opcode they belong to.
pub(super) struct Modifiers<'a> {
    left: Vec<&'a str>,
    /// The position of the opcode among those of its row in the table.
    opcode: usize,
}

impl<'a> Modifiers<'a> {
    pub(super) fn new(modifiers: Vec<&'a str>, opcode: usize) -> Self {
        Self { left: modifiers, opcode }
    }

    /// Picks from a list that follows the opcodes of the instruction's row.
    pub(super) fn of_opcode<T: Copy>(&self, each: &[T]) -> T {
        each[self.opcode]
    }

    /// Takes a modifier, if it is there.
    pub(super) fn take(&mut self, name: &str) -> bool {
        match self.left.iter().position(|&modifier| modifier == name) {
            Some(at) => {
                self.left.remove(at);
                true
            }
            None => false,
        }
    }

    /// Takes the first modifier that a table knows.
    pub(super) fn pick<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        let known = |modifier: &str| table.iter().find(|(name, _)| *name == modifier);
        let at = self.left.iter().position(|modifier| known(modifier).is_some())?;
        known(self.left.remove(at)).map(|entry| entry.1)
    }

    /// Takes the first type.
    pub(super) fn ty(&mut self) -> Option<Type> {
        let at = self.left.iter().position(|modifier| Type::by_name(modifier).is_some())?;
        Type::by_name(self.left.remove(at))
    }

    /// Takes the rounding mode of floating-point arithmetic.
    pub(super) fn rounding(&mut self) -> Option<Rounding> {
        self.pick(&[
            ("rn", Rounding::Nearest),
            ("rz", Rounding::Zero),
            ("rm", Rounding::Down),
            ("rp", Rounding::Up),
        ])
    }

    /// Takes all modifiers of a kind that says nothing about results.
    pub(super) fn drop_all(&mut self, is_hint: impl Fn(&str) -> bool) {
        self.left.retain(|modifier| !is_hint(modifier));
    }

    /// The first modifier that is left.
    pub(super) fn rest(&self) -> Option<&'a str> {
        self.left.first().copied()
    }
}
