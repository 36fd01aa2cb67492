//! Everything that a run found, as data.

use serde::{Deserialize, Serialize};

use super::bounds::Ratio;
use super::code;
use super::latency::{Modelled, Product, Wait};
use super::line::Line;

/// What the figures are, and are not: it goes with every form of the report.
pub const NOTE: &str = "Everything here is counted, in compiled code or on an emulated device that \
     executes the kernels' PTX, or modelled from such counts and published peak rates. Nothing is \
     a time that a GPU took.";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    pub note: String,
    /// The device that launches were planned for.
    pub counted_on: String,
    /// The tools' versions.
    pub nvrtc: String,
    pub ptxas: String,
    pub nvdisasm: String,
    pub lines: Vec<Line>,
    pub loops: Vec<Loop>,
    pub ratios: Vec<Ratio>,
    /// By the witness for latency.
    pub waits: Vec<Wait>,
    pub launches: Vec<Modelled>,
    pub products: Vec<Product>,
}

/// A main loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loop {
    pub kernel: String,
    pub architecture: String,
    pub instructions: usize,
    pub hmma: usize,
    pub ldsm: usize,
    pub ldgsts: usize,
    /// Global accesses that do not move 16 bytes.
    pub narrow: usize,
}

impl From<&code::Loop> for Loop {
    fn from(found: &code::Loop) -> Self {
        let code::Loop { kernel, architecture, mix } = found;
        Self {
            kernel: kernel.clone(),
            architecture: architecture.clone(),
            instructions: mix.instructions,
            hmma: mix.hmma,
            ldsm: mix.ldsm,
            ldgsts: mix.ldgsts,
            narrow: mix.narrow,
        }
    }
}
