//! What one adapted layer is: its features, rank, scaling, norm axis and compute type.

use crate::dtype::{Dtype, Variant};
use crate::error::{Error, Result};
use crate::quant::WeightFormat;

/// Along which axis of V = W + s·B·A the norm c is taken, and so what the magnitude m scales.
///
/// There is no default: checkpoints of one kind mean something else under the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Norm {
    /// No norm, g ≡ 1: plain LoRA (arXiv:2106.09685).
    None,
    /// One norm per input feature, c_j = ‖V\[:,j\]‖, m `[I]`: the DoRA paper's ‖·‖_c
    /// (arXiv:2402.09353); OneTrainer, and LyCORIS without its `wd_on_output`.
    Input,
    /// One norm per output feature, c_i = ‖V\[i,:\]‖, m `[O]`: PEFT, torchtune, axolotl, MLX; LyCORIS
    /// with `wd_on_output`, its default.
    Output,
}

/// Whether the gradients of A and B take into account that the norm c depends on them.
///
/// There is no default: the two train differently, and both are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NormGrad {
    /// c is a constant of the backward (the DoRA paper, arXiv:2402.09353, §4.3; PEFT). The only
    /// choice for plain LoRA.
    Detached,
    /// The gradient flows through c, too: [`Kernels::norm_gradient`] adds what is missing, once
    /// per optimizer step.
    ///
    /// [`Kernels::norm_gradient`]: crate::Kernels::norm_gradient
    Exact,
}

/// The factor s in V = W + s·B·A.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    /// s = α/r (LoRA).
    Standard {
        /// α.
        alpha: f32,
    },
    /// s = α/√r (rsLoRA, arXiv:2312.03732).
    RankStabilized {
        /// α.
        alpha: f32,
    },
    /// s itself.
    Value(f32),
}

/// One adapted linear layer, checked when it is made.
///
/// ```
/// use fused_dora::{DoraSpec, Dtype, Norm, NormGrad, Scaling};
///
/// // PEFT's `LoraConfig(r=8, lora_alpha=16, use_dora=True)` on a `Linear(4096, 1024)`.
/// let scaling = Scaling::Standard { alpha: 16.0 };
/// let spec = DoraSpec::new(4096, 1024, 8, scaling, Norm::Output, NormGrad::Detached, Dtype::Bf16)?;
/// assert_eq!(spec.scaling(), 2.0);
/// assert_eq!(spec.magnitude_len(), 1024);
/// assert_eq!(spec.padded_rank(), 16);
/// # Ok::<(), fused_dora::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DoraSpec {
    in_features: usize,
    out_features: usize,
    rank: usize,
    scaling: f32,
    norm: Norm,
    norm_grad: NormGrad,
    dtype: Dtype,
    weight: Option<WeightFormat>,
}

/// The rank is zero-padded to the depth of one tensor-core product.
const RANK_MULTIPLE: usize = 16;

/// Kernels index rows and columns with 32 bits, with room for a chunk beyond the end.
pub(crate) const MAX_DIMENSION: usize = 1 << 30;

impl DoraSpec {
    /// A layer of `in_features` I → `out_features` O with an adapter of rank r.
    ///
    /// Rank 0 has no A and no B, V = W: a DoRA that trains the magnitude alone, or with
    /// [`Norm::None`] a plain linear layer.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if a number of features is 0, a dimension is beyond 2³⁰, the scaling
    /// is not finite, or plain LoRA is to have a gradient through its norm.
    pub fn new(
        in_features: usize,
        out_features: usize,
        rank: usize,
        scaling: Scaling,
        norm: Norm,
        norm_grad: NormGrad,
        dtype: Dtype,
    ) -> Result<Self> {
        check_dimension("in_features", in_features, 1)?;
        check_dimension("out_features", out_features, 1)?;
        check_dimension("rank", rank, 0)?;
        // Of rank 0 there is no product to scale.
        let divisor = rank.max(1) as f32;
        let (given, scaling) = match scaling {
            Scaling::Standard { alpha } => (alpha, alpha / divisor),
            Scaling::RankStabilized { alpha } => (alpha, alpha / divisor.sqrt()),
            Scaling::Value(value) => (value, value),
        };
        if !scaling.is_finite() {
            return Err(Error::InvalidSpec {
                parameter: "scaling",
                value: given.to_string(),
                requirement: "a finite number",
            });
        }
        if norm == Norm::None && norm_grad == NormGrad::Exact {
            return Err(Error::InvalidSpec {
                parameter: "norm_grad",
                value: "Exact".to_owned(),
                requirement: "Detached for plain LoRA, which has no norm",
            });
        }
        let weight = None;
        Ok(Self { in_features, out_features, rank, scaling, norm, norm_grad, dtype, weight })
    }

    /// The same layer on a packed W: QDoRA. Its ops take a [`PackedWeight`](crate::PackedWeight).
    ///
    /// # Errors
    /// Those of [`WeightFormat::check`].
    pub fn with_weight(self, format: WeightFormat) -> Result<Self> {
        format.check()?;
        Ok(Self { weight: Some(format), ..self })
    }

    /// How W is packed; `None` for a dense W.
    pub const fn weight(&self) -> Option<WeightFormat> {
        self.weight
    }

    /// Which compilation of the kernels it takes.
    pub(crate) const fn variant(&self) -> Variant {
        Variant { dtype: self.dtype, packed: self.weight.is_some() }
    }

    /// I, the length of a row of x and W.
    pub const fn in_features(&self) -> usize {
        self.in_features
    }

    /// O, the length of a row of y.
    pub const fn out_features(&self) -> usize {
        self.out_features
    }

    /// r, the adapter's rank; 0 where it has no A and no B.
    pub const fn rank(&self) -> usize {
        self.rank
    }

    /// R: r rounded up to a multiple of 16, the row length of the packed operands and of H.
    pub const fn padded_rank(&self) -> usize {
        self.rank.next_multiple_of(RANK_MULTIPLE)
    }

    /// s, the factor of B·A; without a meaning for rank 0.
    pub const fn scaling(&self) -> f32 {
        self.scaling
    }

    /// The norm axis.
    pub const fn norm(&self) -> Norm {
        self.norm
    }

    /// Whether the gradients of A and B are to flow through the norm.
    pub const fn norm_grad(&self) -> NormGrad {
        self.norm_grad
    }

    /// The compute type.
    pub const fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The length of m, c and g: I, O, or 0 for plain LoRA.
    pub const fn magnitude_len(&self) -> usize {
        match self.norm {
            Norm::None => 0,
            Norm::Input => self.in_features,
            Norm::Output => self.out_features,
        }
    }

    /// Dimensions of tensors, with their names in messages.
    pub(crate) const fn inputs(&self) -> (&'static str, usize) {
        ("I", self.in_features)
    }

    pub(crate) const fn outputs(&self) -> (&'static str, usize) {
        ("O", self.out_features)
    }

    pub(crate) const fn ranks(&self) -> (&'static str, usize) {
        ("r", self.rank)
    }

    pub(crate) const fn padded_ranks(&self) -> (&'static str, usize) {
        ("R", self.padded_rank())
    }

    pub(crate) const fn magnitudes(&self) -> (&'static str, usize) {
        (if matches!(self.norm, Norm::Input) { "I" } else { "O" }, self.magnitude_len())
    }

    pub(crate) fn check_tokens(&self, tokens: usize) -> Result<()> {
        check_dimension("tokens", tokens, 0)
    }
}

fn check_dimension(parameter: &'static str, value: usize, least: usize) -> Result<()> {
    if (least..=MAX_DIMENSION).contains(&value) {
        return Ok(());
    }
    let requirement = if least == 0 { "at most 2^30" } else { "at least 1 and at most 2^30" };
    Err(Error::InvalidSpec { parameter, value: value.to_string(), requirement })
}
