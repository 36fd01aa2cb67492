//! Bench of `merge`: see `common` for what it measures where.

mod common;

fn main() -> common::Outcome {
    common::run("merge", common::Op::Merge)
}
