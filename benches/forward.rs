//! Bench of `forward`, also against layers of separate ops: see the modules `measure` and `compare` for what it
//! measures where.

use fused_dora_benches::compare::{self, Phase};
use fused_dora_testkit::bench::{Op, Outcome};

fn main() -> Outcome {
    compare::run("forward", Op::Forward, &[Phase::Forward])
}
