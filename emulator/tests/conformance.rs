//! What every instruction computes, held against the PTX ISA: tables of instructions, inputs and
//! expected results, by family. The results were worked out by hand or with plain Rust arithmetic,
//! never with the emulator. An opcode without a case fails a test of its own.

#[path = "conformance/bits.rs"]
mod bits;
#[path = "conformance/harness.rs"]
mod harness;
#[path = "conformance/integer.rs"]
mod integer;

use std::collections::BTreeSet;

/// The cases of all modules.
fn families() -> Vec<harness::Family> {
    [integer::families(), bits::families()].into_iter().flatten().collect()
}

#[test]
fn every_opcode_has_a_case() {
    let families = families();
    let tested: BTreeSet<_> =
        families.iter().filter(|f| !f.cases.is_empty()).map(|f| f.opcode).collect();
    let known: BTreeSet<_> = cuda_emulator::supported_opcodes().iter().copied().collect();
    let missing: Vec<_> = known.difference(&tested).collect();
    assert!(missing.is_empty(), "opcodes without a conformance case: {missing:?}");
    let unknown: Vec<_> = tested.difference(&known).collect();
    assert!(unknown.is_empty(), "opcodes that the list of the decoder lacks: {unknown:?}");
}
