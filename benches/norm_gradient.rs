//! Bench of `norm_gradient`: see `common` for what it prints where.

mod common;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    common::run("norm_gradient", common::Layer::norm_gradient)
}
