//! Bench of `decompose`: see `common` for what it measures where.

mod common;

fn main() -> common::Outcome {
    common::run("decompose", common::Op::Decompose)
}
