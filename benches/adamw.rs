//! Bench of `adamw`: see `common` for what it measures where.

mod common;

fn main() -> common::Outcome {
    common::run("adamw", common::Op::AdamW)
}
