//! The types of numbers.

use std::fmt;

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

/// Which compilation of a kernel a layer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    /// Of the layer, or of the kernel where that has one only.
    pub(crate) dtype: Dtype,
    /// W is packed.
    pub(crate) packed: bool,
}

impl From<Dtype> for Variant {
    /// Of a kernel that reads no W, or a dense one.
    fn from(dtype: Dtype) -> Self {
        Self { dtype, packed: false }
    }
}

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision: what reports hold.
    F64,
    /// Integers without a sign: what a counter of steps holds.
    U64,
    /// Bytes: what packed weights hold.
    U8,
}

impl ElementType {
    /// Bytes per element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 | Self::U64 => 8,
            Self::U8 => 1,
        }
    }

    /// The compute type of the same name; `None` for the others.
    pub const fn dtype(self) -> Option<Dtype> {
        match self {
            Self::Bf16 => Some(Dtype::Bf16),
            Self::F16 => Some(Dtype::F16),
            Self::F32 => Some(Dtype::F32),
            Self::F64 | Self::U64 | Self::U8 => None,
        }
    }
}

impl From<Dtype> for ElementType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Bf16 => Self::Bf16,
            Dtype::F16 => Self::F16,
            Dtype::F32 => Self::F32,
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::U64 => "u64",
            Self::U8 => "u8",
        })
    }
}
