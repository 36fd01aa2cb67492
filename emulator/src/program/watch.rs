//! Watched registers: those that a thread may read before it writes to them.

use std::collections::HashMap;

use super::operand::Test;

/// The registers of a kernel that are watched.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    pub(crate) registers: Vec<WatchedRegister>,
    pub(crate) instructions: HashMap<u32, WatchedInstruction>,
}

/// A register that is watched.
#[derive(Debug)]
pub(crate) struct WatchedRegister {
    pub(crate) name: String,
    /// The bits that it has.
    pub(crate) bits: u64,
}

/// An instruction that reads or writes watched registers, which it knows by their numbers.
#[derive(Debug)]
pub(crate) struct WatchedInstruction {
    /// The predicate of its guard, which all threads need that are there.
    pub(crate) guard: Option<usize>,
    /// What it needs as a whole.
    pub(crate) uses: Vec<usize>,
    /// What it writes, and the parts of watched registers that go there.
    pub(crate) writes: Vec<(usize, Vec<Part<usize>>)>,
}

/// What a shuffle moves, by numbers of watched registers.
#[derive(Debug)]
pub(crate) struct WatchedShuffle {
    pub(crate) target: usize,
    pub(crate) value: Option<usize>,
}

/// Bits of a register that an instruction moves into another one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<T> {
    pub(crate) from: T,
    /// The lowest bit that it takes.
    pub(crate) down: u32,
    /// Which bits it takes, from there on.
    pub(crate) mask: u64,
    /// Where the lowest bit goes.
    pub(crate) up: u32,
    /// Whether the lowest bit goes to all places of the mask, as a sign does.
    pub(crate) spread: bool,
    /// The lanes in which it does so.
    pub(crate) when: Option<Test>,
}

impl<T> Part<T> {
    /// Where these bits of the register go.
    pub(crate) fn moved(&self, bits: u64) -> u64 {
        let low = bits.checked_shr(self.down).unwrap_or(0);
        let low = if self.spread { (low & 1).wrapping_neg() } else { low };
        (low & self.mask).checked_shl(self.up).unwrap_or(0)
    }

    pub(crate) fn with<U>(&self, from: U) -> Part<U> {
        let Part { down, mask, up, spread, when, .. } = *self;
        Part { from, down, mask, up, spread, when }
    }
}

/// Kinds of registers, which have numbers of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RegisterClass {
    Word,
    Double,
    Predicate,
}
