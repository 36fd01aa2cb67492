//! The layers that are measured.

use std::fmt;

use fused_dora::{Dtype, Norm};

/// One layer and its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// (T, I, O, r).
    pub shape: [usize; 4],
    pub dtype: Dtype,
    pub norm: Norm,
}

const NORMS: [Norm; 3] = [Norm::None, Norm::Output, Norm::Input];

/// The layer that tokens and rank are varied of, and that every dtype is measured of.
const TYPICAL: [usize; 4] = [8192, 4096, 4096, 16];
/// Other tokens, other ranks, other features.
const IN_BF16: [[usize; 4]; 7] = [
    [64, 4096, 4096, 16],
    [512, 4096, 4096, 16],
    [2048, 4096, 4096, 16],
    [8192, 4096, 4096, 64],
    [8192, 4096, 4096, 256],
    [8192, 4096, 14336, 16],
    [8192, 14336, 4096, 16],
];

/// The same where every instruction is interpreted.
const EMULATED_TYPICAL: [usize; 4] = [128, 256, 384, 16];
const EMULATED_IN_BF16: [[usize; 4]; 3] =
    [[8, 512, 512, 16], [256, 512, 512, 64], [512, 1024, 1024, 16]];

/// What is measured on a GPU, or counted on the emulated device.
pub fn cases(emulated: bool) -> Vec<Case> {
    let (typical, in_bf16) = match emulated {
        true => (EMULATED_TYPICAL, EMULATED_IN_BF16.as_slice()),
        false => (TYPICAL, IN_BF16.as_slice()),
    };
    let typical = Dtype::ALL.map(|dtype| (typical, dtype)).into_iter();
    let others = in_bf16.iter().map(|&shape| (shape, Dtype::Bf16));
    let layers = typical.chain(others);
    layers.flat_map(|(shape, dtype)| NORMS.map(|norm| Case { shape, dtype, norm })).collect()
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [tokens, inputs, outputs, rank] = self.shape;
        let Self { dtype, norm, .. } = self;
        write!(f, "{dtype} norm={norm:?} T={tokens} I={inputs} O={outputs} r={rank}")
    }
}
