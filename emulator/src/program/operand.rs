//! Registers and operands.
//!
//! A register is the index of an array over the lanes of a warp. Constants and special registers
//! have arrays of their own, which are filled when a warp starts. Every operand is then an index.
//! Values of 8 and 16 bits live in 32-bit registers, zero-extended.

/// Index of a 32-bit register.
pub(crate) type R = u16;
/// Index of a 64-bit register.
pub(crate) type Q = u16;
/// Index of a predicate; 0 is always true and 1 always false.
pub(crate) type P = u16;

/// The predicate that is always true.
pub(crate) const TRUE: P = 0;
/// The predicate that is always false.
pub(crate) const FALSE: P = 1;

/// A predicate and whether it is negated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Test {
    pub(crate) predicate: P,
    pub(crate) negated: bool,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    R(R),
    Q(Q),
    P(Test),
}

/// Where a value goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A register of that many bits, at most 32.
    R(R, u8),
    Q(Q),
    P(P),
    Nowhere,
}
