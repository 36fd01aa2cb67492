//! Bench of `backward_adapter`: see `common` for what it measures where.

mod common;

fn main() -> common::Outcome {
    common::run("backward_adapter", common::Op::BackwardAdapter)
}
