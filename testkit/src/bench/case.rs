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

/// The square layer of 7-billion models, and the two of their MLPs: (I, O).
const BUNDLED: [[usize; 2]; 3] = [[4096, 4096], [4096, 14336], [14336, 4096]];

/// What a run with little time measures, what tells most first: of one token the forward alone is of
/// use. Of f32 there is the typical layer, and of plain LoRA the square one.
pub fn most_valuable_first(emulated: bool) -> Vec<Case> {
    let bf16 = |shape, norm| Case { shape, dtype: Dtype::Bf16, norm };
    if emulated {
        let norms = [Norm::Output, Norm::Input, Norm::None];
        let norms = norms.map(|norm| bf16(EMULATED_TYPICAL, norm));
        let one_token = bf16([1, 256, 384, 16], Norm::Output);
        return norms.into_iter().chain([one_token]).collect();
    }
    let of = |features: &[[usize; 2]], tokens: &[usize], rank: usize, norm: Norm| {
        let layers =
            tokens.iter().flat_map(|&t| features.iter().map(move |&[i, o]| [t, i, o, rank]));
        layers.map(|shape| bf16(shape, norm)).collect::<Vec<_>>()
    };
    let (all, square) = (&BUNDLED[..], &BUNDLED[..1]);
    let mut cases = of(square, &[8192, 2048, 512, 64, 1], 16, Norm::Output);
    cases.extend(of(square, &[8192, 2048, 512, 64, 1], 16, Norm::Input));
    cases.extend(of(&BUNDLED[1..], &[8192, 2048, 512, 64, 1], 16, Norm::Output));
    cases.extend(of(square, &[8192, 512, 64], 16, Norm::None));
    cases.push(Case { shape: TYPICAL, dtype: Dtype::F32, norm: Norm::Output });
    cases.extend(of(all, &[8192, 2048, 512, 64, 1], 64, Norm::Output));
    cases.extend(of(&BUNDLED[1..], &[8192, 2048, 512, 64, 1], 16, Norm::Input));
    cases.extend(of(all, &[8192, 2048, 512, 64, 1], 64, Norm::Input));
    cases
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [tokens, inputs, outputs, rank] = self.shape;
        let Self { dtype, norm, .. } = self;
        write!(f, "{dtype} norm={norm:?} T={tokens} I={inputs} O={outputs} r={rank}")
    }
}
