//! Bench of `backward`, also against layers of separate ops: see `common` and `compare` for what it
//! measures where.

mod baseline;
mod common;
mod compare;

fn main() -> common::Outcome {
    compare::run("backward", common::Op::Backward, &[compare::Phase::Backward])
}
