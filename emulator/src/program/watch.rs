//! Watched registers: those that a thread may read before it writes to them.

use std::collections::HashMap;

/// The registers of a kernel that are watched.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Their names.
    pub(crate) registers: Vec<String>,
    pub(crate) instructions: HashMap<u32, WatchedInstruction>,
}

/// An instruction that reads or writes watched registers.
#[derive(Debug)]
pub(crate) struct WatchedInstruction {
    pub(crate) reads: Vec<WatchedRead>,
    /// Numbers in the watch.
    pub(crate) writes: Vec<usize>,
    /// Whether it only moves values, whatever they are.
    pub(crate) moves: bool,
}

/// A watched register that an instruction reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WatchedRead {
    /// Its number in the watch.
    pub(crate) number: usize,
    pub(crate) class: RegisterClass,
    pub(crate) slot: u16,
}

/// Kinds of registers, which have numbers of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RegisterClass {
    Word,
    Double,
    Predicate,
}
