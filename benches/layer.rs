//! Bench of a whole layer: forward, backward, the gradient through the norm and AdamW, also against
//! layers of separate ops; see `common` and `compare` for what it measures where.

mod baseline;
mod common;
mod compare;

use compare::Phase;

fn main() -> common::Outcome {
    compare::run("layer", common::Op::Step, &[Phase::MicroBatch, Phase::Step])
}
