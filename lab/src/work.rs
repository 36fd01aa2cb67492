//! What each launch must do at least, by the shapes: bytes to move and tensor-core products.
//!
//! Compulsory are a launch's inputs, read once, and its outputs, written once. What one launch
//! hands to the next only because of how the op is cut (x∘g and dY∘g as tensors of their own,
//! partial sums) is not: it shows as the difference to what was moved.

use fused_dora::{Decomposition, DoraSpec, MergeReport, Norm};
use serde::{Deserialize, Serialize};

/// Bytes of an element of x, W and y: bf16.
const ELEMENT: u64 = 2;
/// Bytes of an element of the adapter's parameters and gradients.
const F32: u64 = 4;
/// Bytes of a sum that is read back.
const F64: u64 = 8;

/// One launch's kernel, in the order of a training step, and then the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kernel {
    Prepare,
    Forward,
    Backward,
    NormGradient,
    NormGradientFinish,
    GradientNorm,
    #[serde(rename = "adamw")]
    AdamW,
    Merge,
    Decompose,
}

impl Kernel {
    pub const ALL: [Self; 9] = [
        Self::Prepare,
        Self::Forward,
        Self::Backward,
        Self::NormGradient,
        Self::NormGradientFinish,
        Self::GradientNorm,
        Self::AdamW,
        Self::Merge,
        Self::Decompose,
    ];

    /// The entry point's name up to the dtype.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::NormGradient => "norm_gradient",
            Self::NormGradientFinish => "norm_gradient_finish",
            Self::GradientNorm => "gradient_norm",
            Self::AdamW => "adamw",
            Self::Merge => "merge",
            Self::Decompose => "decompose",
        }
    }

    /// The op that launches it.
    pub const fn op(self) -> &'static str {
        match self {
            Self::NormGradient | Self::NormGradientFinish => "norm_gradient",
            _ => self.name(),
        }
    }

    /// The kernel behind an entry point such as `forward_bf16` or, with other tiles or another kind
    /// of product, `forward_few_tokens_bf16` or `forward_medium_tf32x3_f32`.
    pub fn of_entry(entry: &str) -> Option<Self> {
        let (name, _dtype) = entry.rsplit_once('_')?;
        let name = ["_tf32x3", "_medium", "_few_tokens"]
            .iter()
            .fold(name, |name, kind| name.strip_suffix(kind).unwrap_or(name));
        Self::ALL.into_iter().find(|kernel| kernel.name() == name)
    }
}

/// A tensor that a launch must read or write once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    pub name: String,
    pub bytes: u64,
    pub written: bool,
}

/// What a launch must read and write, in bf16. The magnitude is that of a fresh adapter, written
/// by `prepare`; there is no bias.
pub fn compulsory(kernel: Kernel, spec: &DoraSpec, tokens: usize) -> Vec<Tensor> {
    let (t, i, o) = (tokens as u64, spec.in_features() as u64, spec.out_features() as u64);
    let (r, padded) = (spec.rank() as u64, spec.padded_rank() as u64);
    let on_output = spec.norm() == Norm::Output;
    let tensor = |name: &str, bytes: u64, written: bool| {
        let name = name.to_owned();
        (bytes > 0).then_some(Tensor { name, bytes, written })
    };
    let read = |name, elements, size| tensor(name, elements * size, false);
    let written = |name, elements, size| tensor(name, elements * size, true);
    let only = |wanted: bool, elements: u64| if wanted { elements } else { 0 };
    let features = spec.magnitude_len() as u64;
    let parameters = r * i + o * r + features;
    // `gsb` is sB itself where there is no g on the output.
    let gsb = if on_output { "g∘sB" } else { "sB" };
    let tensors = match kernel {
        Kernel::Prepare => vec![
            read("W", o * i, only(features > 0, ELEMENT)),
            read("A", r * i, F32),
            read("B", o * r, F32),
            written("m", features, F32),
            written("c", features, F32),
            written("g", features, F32),
            written("packed A", padded * i, ELEMENT),
            written("sB", o * padded, ELEMENT),
            written("g∘sB", only(on_output, o * padded), ELEMENT),
        ],
        Kernel::Forward => vec![
            read("x", t * i, ELEMENT),
            read("W", o * i, ELEMENT),
            read("packed A", padded * i, ELEMENT),
            read("sB", o * padded, ELEMENT),
            read("g", features, F32),
            written("H", t * padded, ELEMENT),
            written("y", t * o, ELEMENT),
        ],
        Kernel::Backward => vec![
            read("dY", t * o, ELEMENT),
            read("y", only(on_output, t * o), ELEMENT),
            read("x", t * i, ELEMENT),
            read("W", o * i, ELEMENT),
            read("H", t * padded, ELEMENT),
            read("packed A", padded * i, ELEMENT),
            read(gsb, o * padded, ELEMENT),
            read("g", features, F32),
            read("c", features, F32),
            written("dX", t * i, ELEMENT),
            written("dA", r * i, F32),
            written("dB", o * r, F32),
            written("dm", features, F32),
        ],
        Kernel::NormGradient => vec![
            read("W", o * i, ELEMENT),
            read("A", r * i, F32),
            read("B", o * r, F32),
            read("g", features, F32),
            read("c", features, F32),
            read("dm", features, F32),
        ],
        Kernel::NormGradientFinish => vec![
            read("A", r * i, F32),
            read("B", o * r, F32),
            read("g", features, F32),
            read("c", features, F32),
            read("dm", features, F32),
            read("dA so far", r * i, F32),
            read("dB so far", o * r, F32),
            written("dA", r * i, F32),
            written("dB", o * r, F32),
        ],
        Kernel::GradientNorm => vec![read("gradients", parameters, F32), written("norm", 1, F32)],
        Kernel::AdamW => vec![
            read("gradients", parameters, F32),
            read("parameters so far", parameters, F32),
            read("means so far", 2 * parameters, F32),
            written("parameters", parameters, F32),
            written("means", 2 * parameters, F32),
        ],
        Kernel::Merge => vec![
            read("W", o * i, ELEMENT),
            read("A", r * i, F32),
            read("B", o * r, F32),
            read("g", features, F32),
            written("W'", o * i, ELEMENT),
            written("report", MergeReport::LEN as u64, F64),
        ],
        Kernel::Decompose => vec![
            read("W", o * i, ELEMENT),
            read("A", r * i, F32),
            read("B", o * r, F32),
            read("g", features, F32),
            written("ΔM and ΔD", Decomposition::LEN as u64, F64),
        ],
    };
    tensors.into_iter().flatten().collect()
}

/// What an op must move, whatever launches it is cut into: each input of its launches that none of
/// them writes, and each output, once.
pub fn compulsory_of_op<'a>(launches: impl Iterator<Item = &'a [Tensor]>) -> u64 {
    let all: Vec<&Tensor> = launches.flatten().collect();
    let mut counted: Vec<&str> = Vec::new();
    let written = all.iter().filter(|tensor| tensor.written);
    let read = all.iter().filter(|tensor| !tensor.written);
    let mut bytes = 0;
    for tensor in written.chain(read) {
        if !counted.contains(&tensor.name.as_str()) {
            counted.push(&tensor.name);
            bytes += tensor.bytes;
        }
    }
    bytes
}

/// The fewest `mma.m16n8k16` that compute a launch's products, each padded to whole ones. Those of
/// tf32 are half as deep and take as long: two of them are one product here, and count twice.
pub fn least_mma(kernel: Kernel, spec: &DoraSpec, tokens: usize) -> u64 {
    let product = |m: usize, n: usize, k: usize| {
        m.div_ceil(16) as u64 * n.div_ceil(8) as u64 * k.div_ceil(16) as u64
    };
    let (t, i, o) = (tokens, spec.in_features(), spec.out_features());
    let r = spec.padded_rank();
    match kernel {
        // A and s·B are sums of two tf32, half as deep; three of the four products count.
        Kernel::Prepare if spec.norm() != Norm::None => 6 * product(o, i, r),
        Kernel::Prepare => 0,
        Kernel::Forward => product(t, r, i) + product(t, o, i) + product(t, o, r),
        Kernel::Backward => {
            let adapter = product(t, r, o) + product(o, r, t) + product(r, i, t);
            adapter + product(t, i, o) + product(t, i, r)
        }
        // W is one tf32 and the factor two of them, half as deep.
        Kernel::NormGradient => 4 * (product(i, r, o) + product(o, r, i)),
        // A and s·B are sums of three bf16; six of the nine products count (common/dora/low_rank.cuh).
        Kernel::Merge | Kernel::Decompose => 6 * product(o, i, r),
        Kernel::NormGradientFinish | Kernel::GradientNorm | Kernel::AdamW => 0,
    }
}
