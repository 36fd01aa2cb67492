//! Bench of `dequantize` of NF4 with nested scales: see the module `measure` for what it measures where.

use fused_dora_benches::measure;
use fused_dora_testkit::bench::{Op, Outcome};

fn main() -> Outcome {
    measure::run("dequantize", Op::Dequantize)
}
