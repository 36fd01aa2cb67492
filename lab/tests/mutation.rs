//! A sample of the kernels' mutants: see `fused_dora_lab::mutation`.

use fused_dora_lab::mutation::{Selection, run};

#[test]
fn every_mutant_of_a_sample_is_noticed() {
    let problems = run(&Selection::Sample).expect("a sample names no file");
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
}
