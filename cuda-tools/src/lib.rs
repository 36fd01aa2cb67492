//! NVIDIA's command-line tools: where they are looked for, and how they are run.

pub mod nvdisasm;
