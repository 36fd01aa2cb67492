//! Bench of `prepare`: see `common` for what it prints where.

mod common;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    common::run("prepare", common::Layer::prepare)
}
