//! The ops that have a bench, and the work that each cannot do without.

use fused_dora::quant::{BlockScales, Code4, WeightFormat};
use fused_dora::{Dtype, Element, Norm};

use super::layer::Layer;
use super::record::Work;
use super::{Case, Outcome};

/// The packed weight that most adapters are trained on: NF4 with nested scales.
pub const NF4: WeightFormat = WeightFormat::Code4 {
    code: Code4::Nf4,
    block: 64,
    scales: BlockScales::Nested,
    state: Dtype::Bf16,
};

/// One op of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Prepare,
    Forward,
    Backward,
    NormGradient,
    AdamW,
    Merge,
    Decompose,
    /// Of W to [`NF4`], and back.
    Quantize,
    Dequantize,
    /// A training step: all of those that it takes.
    Step,
}

impl Op {
    /// Runs it.
    pub fn run<E: Element>(self, layer: &mut Layer<E>) -> Outcome {
        match self {
            Self::Prepare => layer.prepare(),
            Self::Forward => layer.forward(),
            Self::Backward => layer.backward(),
            Self::NormGradient => layer.norm_gradient(),
            Self::AdamW => layer.adamw(),
            Self::Merge => layer.merge(),
            Self::Decompose => layer.decompose(),
            Self::Quantize => layer.quantize(),
            Self::Dequantize => layer.dequantize(),
            Self::Step => layer.step(),
        }
    }

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::NormGradient => "norm_gradient",
            Self::AdamW => "adamw",
            Self::Merge => "merge",
            Self::Decompose => "decompose",
            Self::Quantize => "quantize",
            Self::Dequantize => "dequantize",
            Self::Step => "training step",
        }
    }

    /// Whether the layer has it: plain LoRA has no gradient through a norm. What is about W alone is
    /// measured of one kind of layer.
    pub fn applies(self, case: &Case) -> bool {
        match self {
            Self::NormGradient => case.norm != Norm::None,
            Self::Quantize | Self::Dequantize => case.norm == Norm::Output,
            _ => true,
        }
    }

    /// How W is packed that it is measured on.
    pub fn format(self) -> Option<WeightFormat> {
        matches!(self, Self::Quantize | Self::Dequantize).then_some(NF4)
    }

    /// The ops that it consists of.
    fn parts(self) -> &'static [Self] {
        match self {
            Self::Step => {
                &[Self::Prepare, Self::Forward, Self::Backward, Self::NormGradient, Self::AdamW]
            }
            Self::Prepare => &[Self::Prepare],
            Self::Forward => &[Self::Forward],
            Self::Backward => &[Self::Backward],
            Self::NormGradient => &[Self::NormGradient],
            Self::AdamW => &[Self::AdamW],
            Self::Merge => &[Self::Merge],
            Self::Decompose => &[Self::Decompose],
            Self::Quantize => &[Self::Quantize],
            Self::Dequantize => &[Self::Dequantize],
        }
    }

    /// Each part's inputs and outputs, once, and its products.
    pub fn work(self, case: &Case) -> Vec<Work> {
        let parts = self.parts().iter().filter(|part| part.applies(case));
        parts.map(|part| part.own_work(case)).collect()
    }

    fn own_work(self, case: &Case) -> Work {
        let [t, i, o, r] = case.shape.map(|n| n as u64);
        let (element, single) = (case.dtype.bytes() as u64, size_of::<f32>() as u64);
        let features = match case.norm {
            Norm::None => 0,
            Norm::Input => i,
            Norm::Output => o,
        };
        // Of y, for dm.
        let output = if case.norm == Norm::Output { t * o } else { 0 };
        let (adapter, weight) = (r * (i + o), o * i);
        let (elements, singles, multiply_adds) = match self {
            Self::Prepare if features == 0 => (adapter, adapter, 0),
            Self::Prepare => (weight + adapter, adapter + 3 * features, weight * r),
            Self::Forward => (t * (i + o + r) + weight + adapter, features, t * (weight + adapter)),
            Self::Backward => (
                t * (2 * i + o + r) + output + weight + adapter,
                adapter + 3 * features,
                t * (weight + 2 * adapter),
            ),
            Self::NormGradient => (weight, 3 * adapter + 3 * features, 2 * weight * r),
            Self::AdamW => (0, 7 * (adapter + features), 0),
            Self::Merge => (2 * weight, adapter + features, weight * r),
            Self::Decompose => (weight, adapter + features, weight * r),
            // 33 bytes of codes and scales for 64 elements.
            Self::Quantize | Self::Dequantize => (weight, weight * 33 / (64 * single), 0),
            Self::Step => (0, 0, 0),
        };
        Work { bytes: elements * element + singles * single, flop: 2 * multiply_adds }
    }
}
