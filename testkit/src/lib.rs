//! What the tests, the benches and the tools share: devices, random layers, runs of the kernels on
//! them, and comparisons with the float64 reference.

#![allow(missing_docs, reason = "private to this workspace")]

pub mod bench;
pub mod case;
pub mod compare;
pub mod decompose;
pub mod device;
pub mod layer;
pub mod merge;
pub mod norm_gradient;
pub mod optimizer;
pub mod options;
pub mod output;
pub mod packed;
pub mod quantize;
pub mod random;
pub mod run;
pub mod settings;
pub mod tensors;
pub mod trials;

use std::path::{Path, PathBuf};

/// The workspace's folder, which holds the crate `fused-dora`: the one that this was built in, or, on
/// another machine, the one that `FUSED_DORA_WORKSPACE` names.
pub fn workspace() -> PathBuf {
    if let Some(named) = std::env::var_os("FUSED_DORA_WORKSPACE").filter(|named| !named.is_empty())
    {
        return PathBuf::from(named);
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}
