//! Checkpoints on the command line.

fn main() {}
