//! Bench of `backward_input`, which cannot run without its `backward_adapter`: both are measured,
//! also against layers of separate ops; see `common` and `compare` for what it measures where.

mod baseline;
mod common;
mod compare;

fn main() -> common::Outcome {
    compare::run("backward_input", common::Op::BackwardInput, &[compare::Phase::Backward])
}
