//! The program `fused-dora`.
