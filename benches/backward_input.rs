//! Bench of `backward_input`, which cannot run without its `backward_adapter`: both are measured; see `common` for what it prints where.

mod common;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    common::run("backward_input", common::Layer::backward_input)
}
