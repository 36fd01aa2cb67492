//! What every instruction computes, held against the PTX ISA: tables of instructions, inputs and
//! expected results, by family. The results were worked out by hand or with plain Rust arithmetic,
//! never with the emulator. An opcode without a case fails a test of its own.

#[path = "conformance/atomic.rs"]
mod atomic;
#[path = "conformance/bits.rs"]
mod bits;
#[path = "conformance/collective.rs"]
mod collective;
#[path = "conformance/compare.rs"]
mod compare;
#[path = "conformance/control.rs"]
mod control;
#[path = "conformance/convert.rs"]
mod convert;
#[path = "conformance/float.rs"]
mod float;
#[path = "conformance/functions.rs"]
mod functions;
#[path = "conformance/half.rs"]
mod half;
#[path = "conformance/harness.rs"]
mod harness;
#[path = "conformance/integer.rs"]
mod integer;
#[path = "conformance/matrix.rs"]
mod matrix;
#[path = "conformance/memory.rs"]
mod memory;

use std::collections::BTreeSet;

/// The cases of all modules.
fn families() -> Vec<harness::Family> {
    let families = [
        integer::families(),
        bits::families(),
        float::families(),
        functions::families(),
        half::families(),
        compare::families(),
        convert::families(),
        memory::families(),
        atomic::families(),
        collective::families(),
        matrix::families(),
        control::families(),
    ];
    families.into_iter().flatten().collect()
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
