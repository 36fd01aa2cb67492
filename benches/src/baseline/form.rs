//! The ways to compute an adapted layer from separate ops.

use fused_dora::Norm;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// The frozen layer without an adapter: x·Wᵀ and dY·W.
    Plain,
    /// The frozen layer with W' in place of W; trains nothing.
    Merged,
    /// LoRA as PEFT composes it: base + (x·Aᵀ·Bᵀ)·s.
    LoraPeft,
    /// LoRA with its scale and sums inside of the products: base += s·(x·Aᵀ)·Bᵀ.
    LoraAddmm,
    /// DoRA as PEFT composes it: B·A through an identity, the norm of W + s·B·A, then
    /// base + (g − 1)∘base + g∘(x·Aᵀ·Bᵀ)·s.
    DoraPeft,
    /// The same with B·A as one product, which adds W.
    DoraDense,
    /// DoRA with W' formed each time and its dense gradient dW', as LyCORIS and the paper's own
    /// formula have it.
    DoraFormed,
}

impl Form {
    /// All forms.
    pub const ALL: [Self; 7] = [
        Self::Plain,
        Self::Merged,
        Self::LoraPeft,
        Self::LoraAddmm,
        Self::DoraPeft,
        Self::DoraDense,
        Self::DoraFormed,
    ];

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain linear",
            Self::Merged => "merged weight",
            Self::LoraPeft => "LoRA, PEFT",
            Self::LoraAddmm => "LoRA, addmm",
            Self::DoraPeft => "DoRA, PEFT",
            Self::DoraDense => "DoRA, dense B·A",
            Self::DoraFormed => "DoRA, W' formed",
        }
    }

    /// Whether it is something to compare a layer of this norm axis with: PEFT knows the norms of
    /// outputs only, and plain LoRA has none.
    pub fn applies(self, norm: Norm) -> bool {
        match self {
            Self::Plain | Self::Merged | Self::LoraPeft | Self::LoraAddmm => true,
            Self::DoraPeft | Self::DoraDense => norm == Norm::Output,
            Self::DoraFormed => norm != Norm::None,
        }
    }

    /// Whether it trains an adapter.
    pub fn trains(self) -> bool {
        !matches!(self, Self::Plain | Self::Merged)
    }
}
