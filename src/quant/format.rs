//! The packed formats.

use std::fmt;

use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// How a packed W `[O, I]` is stored.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// bitsandbytes' 4 bits: two codes a byte, the even element in the high half, and one scale for
    /// each `block` elements of the flattened row-major W. A block may cross the end of a row.
    Code4 {
        /// What the 16 codes stand for.
        code: Code4,
        /// Elements per block: a power of two from 32 to 4096.
        block: u16,
        /// How the blocks' scales are stored.
        scales: BlockScales,
        /// The dtype that W is rounded to, `quant_state.dtype` in files.
        state: Dtype,
    },
    /// bitsandbytes' int8 (LLM.int8): a signed byte per element, and each row's largest magnitude.
    Int8Rows,
    /// fp8 e4m3: a byte per element, and scales that multiply it.
    Fp8 {
        /// What has a scale of its own.
        scales: Fp8Scales,
    },
}

/// What the codes of 4 bits stand for, times a block's scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code4 {
    /// Quantiles of the normal distribution (QLoRA, arXiv:2305.14314).
    Nf4,
    /// bitsandbytes' own floating-point numbers, which are not e2m1.
    Fp4,
}

/// How the scales of [`WeightFormat::Code4`] are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockScales {
    /// An f32 per block.
    F32,
    /// A byte per block, an f32 per 256 blocks, a map of 256 numbers and an offset: double
    /// quantisation.
    Nested,
}

/// What has a scale of its own in [`WeightFormat::Fp8`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fp8Scales {
    /// All of W.
    Tensor,
    /// Each row.
    Rows,
    /// Each block of a grid; those at the edges may be smaller.
    Blocks {
        /// Rows of a block.
        rows: u16,
        /// Columns of a block.
        cols: u16,
    },
}

/// Blocks that share a number of [`BlockScales::Nested`].
pub const NESTED_BLOCK: usize = 256;

impl Code4 {
    /// The name in files and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }
}

impl WeightFormat {
    /// The name of the kind, without its sizes: `nf4-nested`, `int8`, `fp8-block`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Code4 { code: Code4::Nf4, scales: BlockScales::F32, .. } => "nf4",
            Self::Code4 { code: Code4::Nf4, scales: BlockScales::Nested, .. } => "nf4-nested",
            Self::Code4 { code: Code4::Fp4, scales: BlockScales::F32, .. } => "fp4",
            Self::Code4 { code: Code4::Fp4, scales: BlockScales::Nested, .. } => "fp4-nested",
            Self::Int8Rows => "int8",
            Self::Fp8 { scales: Fp8Scales::Tensor } => "fp8-tensor",
            Self::Fp8 { scales: Fp8Scales::Rows } => "fp8-row",
            Self::Fp8 { scales: Fp8Scales::Blocks { .. } } => "fp8-block",
        }
    }

    /// Whether the scales are nested.
    pub const fn is_nested(self) -> bool {
        matches!(self, Self::Code4 { scales: BlockScales::Nested, .. })
    }

    /// S, the dtype that the exact W is rounded to before anything reads it: f32, which means not at
    /// all, except in [`WeightFormat::Code4`].
    pub const fn state(self) -> Dtype {
        match self {
            Self::Code4 { state, .. } => state,
            Self::Int8Rows | Self::Fp8 { .. } => Dtype::F32,
        }
    }

    /// Bytes of the packed elements of a W `[O, I]`, without scales.
    pub const fn packed_bytes(self, shape: [usize; 2]) -> usize {
        let elements = shape[0] * shape[1];
        match self {
            Self::Code4 { .. } => elements.div_ceil(2),
            Self::Int8Rows | Self::Fp8 { .. } => elements,
        }
    }

    /// The number of scales of a W `[O, I]`.
    pub const fn scales(self, [rows, cols]: [usize; 2]) -> usize {
        match self {
            Self::Code4 { block, .. } => (rows * cols).div_ceil(block as usize),
            Self::Int8Rows | Self::Fp8 { scales: Fp8Scales::Rows } => rows,
            Self::Fp8 { scales: Fp8Scales::Tensor } => 1,
            Self::Fp8 { scales: Fp8Scales::Blocks { rows: height, cols: width } } => {
                rows.div_ceil(height as usize) * cols.div_ceil(width as usize)
            }
        }
    }

    /// The name of the tensor that holds the scales in files.
    pub const fn scales_name(self) -> &'static str {
        match self {
            Self::Code4 { .. } => "absmax",
            Self::Int8Rows => "SCB",
            Self::Fp8 { scales: Fp8Scales::Blocks { .. } } => "weight_scale_inv",
            Self::Fp8 { .. } => "weight_scale",
        }
    }

    /// Checks the sizes of blocks.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] for a block of 4-bit codes that is not a power of two from 32 to 4096,
    /// and for an fp8 block without elements.
    pub fn check(self) -> Result<()> {
        match self {
            Self::Code4 { block, .. }
                if !block.is_power_of_two() || !(32..=4096).contains(&block) =>
            {
                Err(Error::InvalidSpec {
                    parameter: "the block size of a 4-bit weight",
                    value: block.to_string(),
                    requirement: "a power of two from 32 to 4096",
                })
            }
            Self::Fp8 { scales: Fp8Scales::Blocks { rows, cols } } if rows == 0 || cols == 0 => {
                Err(Error::InvalidSpec {
                    parameter: "the block of an fp8 weight",
                    value: format!("[{rows}, {cols}]"),
                    requirement: "at least [1, 1]; models have [128, 128]",
                })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code4 { code, block, scales, state } => {
                write!(f, "{}, blocks of {block}", code.name())?;
                if scales == BlockScales::Nested {
                    write!(f, ", nested scales")?;
                }
                write!(f, ", {state}")
            }
            Self::Int8Rows => write!(f, "int8, a scale per row"),
            Self::Fp8 { scales: Fp8Scales::Tensor } => write!(f, "fp8, one scale"),
            Self::Fp8 { scales: Fp8Scales::Rows } => write!(f, "fp8, a scale per row"),
            Self::Fp8 { scales: Fp8Scales::Blocks { rows, cols } } => {
                write!(f, "fp8, blocks of {rows}×{cols}")
            }
        }
    }
}
