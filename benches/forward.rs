//! Bench of `forward`, also against layers of separate ops: see `common` and `compare` for what it
//! measures where.

mod baseline;
mod common;
mod compare;

fn main() -> common::Outcome {
    compare::run("forward", common::Op::Forward, &[compare::Phase::Forward])
}
