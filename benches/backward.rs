//! Bench of `backward`: see `common` for what it prints where.

mod common;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    common::run("backward", common::Layer::backward)
}
