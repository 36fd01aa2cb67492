//! Bench of `norm_gradient`: see `common` for what it measures where.

mod common;

fn main() -> common::Outcome {
    common::run("norm_gradient", common::Op::NormGradient)
}
