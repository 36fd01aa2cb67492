//! The modifiers of one instruction: what nobody asked for is an error.

use crate::program::Rounding;
use crate::ptx::Type;

/// Modifiers that were not taken yet, in order.
pub(super) struct Modifiers<'a>(Vec<&'a str>);

impl<'a> Modifiers<'a> {
    pub(super) fn new(modifiers: Vec<&'a str>) -> Self {
        Self(modifiers)
    }

    /// Takes a modifier, if it is there.
    pub(super) fn take(&mut self, name: &str) -> bool {
        match self.0.iter().position(|&modifier| modifier == name) {
            Some(at) => {
                self.0.remove(at);
                true
            }
            None => false,
        }
    }

    /// Takes the first modifier that a table knows.
    pub(super) fn pick<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        let known = |modifier: &str| table.iter().find(|(name, _)| *name == modifier);
        let at = self.0.iter().position(|modifier| known(modifier).is_some())?;
        known(self.0.remove(at)).map(|entry| entry.1)
    }

    /// Takes the first type.
    pub(super) fn ty(&mut self) -> Option<Type> {
        let at = self.0.iter().position(|modifier| Type::by_name(modifier).is_some())?;
        Type::by_name(self.0.remove(at))
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
        self.0.retain(|modifier| !is_hint(modifier));
    }

    /// The first modifier that is left.
    pub(super) fn rest(&self) -> Option<&'a str> {
        self.0.first().copied()
    }
}
