//! What one adapted layer is: its features, rank, scaling, norm axis and compute type.

use std::fmt;

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use half::{bf16, f16};

use crate::error::{Error, Result};

/// The type that x, W, b, y and their gradients are stored in, and that products are computed in
/// (always accumulated in f32).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// bfloat16, on tensor cores.
    Bf16,
    /// IEEE half precision, on tensor cores.
    F16,
    /// True single precision, on the FMA units.
    F32,
}

impl Dtype {
    /// All types, in the order of the kernels' entry points.
    pub const ALL: [Self; 3] = [Self::Bf16, Self::F16, Self::F32];

    /// The suffix of the kernels' entry points, and the name used in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    /// Bytes per element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for half::bf16 {}
    impl Sealed for half::f16 {}
    impl Sealed for f32 {}
}

/// A Rust type that a [`Dtype`] stands for.
pub trait Element: DeviceRepr + ValidAsZeroBits + Copy + sealed::Sealed + 'static {
    /// The matching compute type.
    const DTYPE: Dtype;
    /// Rounds to nearest.
    fn from_f32(value: f32) -> Self;
    /// Widens exactly.
    fn to_f32(self) -> f32;
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    fn from_f32(value: f32) -> Self {
        value
    }
    fn to_f32(self) -> f32 {
        self
    }
}

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
        Ok(Self { in_features, out_features, rank, scaling, norm, norm_grad, dtype })
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

    pub(crate) fn check_dtype<E: Element>(&self) -> Result<()> {
        if self.dtype == E::DTYPE {
            return Ok(());
        }
        Err(Error::Dtype { spec: self.dtype, buffers: E::DTYPE })
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

/// Checks that a buffer holds exactly `rows`·`cols` elements.
pub(crate) fn check_len(
    tensor: &'static str,
    found: usize,
    rows: (&str, usize),
    cols: (&str, usize),
) -> Result<()> {
    let expected = rows.1.saturating_mul(cols.1);
    if found == expected {
        return Ok(());
    }
    let shape = format!("[{}={}, {}={}]", rows.0, rows.1, cols.0, cols.1);
    Err(Error::Shape { tensor, shape, expected, found })
}
