//! Bench of `backward_adapter`: see `common` for what it prints where.

mod common;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    common::run("backward_adapter", common::Layer::backward_adapter)
}
