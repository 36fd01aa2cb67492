//! Bench of `prepare`: see `common` for what it measures where.

mod common;

fn main() -> common::Outcome {
    common::run("prepare", common::Op::Prepare)
}
