//! The operations that run lane by lane: every arithmetic operation of the instruction set, with
//! the modifiers that it has. The executor evaluates them.

use super::lanes::Logic;
use crate::ptx::Type;

/// An operation on the values of one lane.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scalar {
    Integer(Integer, Type),
    Float(Float, FloatMode),
    /// An approximation with an error, as the instruction set allows.
    Approximate(Float, FloatMode),
    /// Writes a predicate and its counterpart.
    SetPredicate(Comparison),
    /// Writes all ones or 1.0 where it holds.
    Set(Comparison, Type),
    /// `a` where the third source is true.
    Select,
    /// `a` where the third source is not negative.
    SelectBySign {
        float: bool,
        flush: bool,
    },
    Convert(Convert),
    /// Operations on halves or bytes; the signs are those of the result and of both operands.
    Video {
        op: Video,
        bytes: bool,
        signs: [bool; 3],
        saturate: bool,
        accumulate: bool,
    },
    /// An operation on parts of words: those of the result and of both operands.
    VideoPart {
        op: Video,
        parts: [Subword; 3],
        signs: [bool; 3],
        saturate: bool,
        second: Option<VideoSecond>,
    },
    /// A product of parts, perhaps negated, plus or minus a word, and one more.
    VideoProduct {
        parts: [Subword; 2],
        signs: [bool; 2],
        negate: bool,
        subtract: bool,
        plus_one: bool,
        shift: u32,
        saturate: bool,
    },
}

/// Integer and bit operations; the type gives width and signedness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Integer {
    Add,
    Sub,
    AddSaturate,
    SubSaturate,
    MulLow,
    MulHigh,
    MulWide,
    MadLow,
    MadHigh,
    MadHighSaturate,
    MadWide,
    Mul24Low,
    Mul24High,
    Mad24Low,
    Mad24High,
    Mad24HighSaturate,
    Sad,
    Div,
    Rem,
    Abs,
    Neg,
    Min,
    Max,
    /// Extremes that are 0 where they would be negative.
    MinRelu,
    MaxRelu,
    And,
    Or,
    Xor,
    Not,
    /// One where the value is zero, else zero.
    IsZero,
    Shl,
    Shr,
    FunnelLeft {
        clamp: bool,
    },
    FunnelRight {
        clamp: bool,
    },
    Lop3(u8),
    Popc,
    LeadingZeros,
    Find {
        shift: bool,
    },
    Reverse,
    Extract,
    Insert,
    Mask {
        clamp: bool,
    },
    Permute(Permute),
    /// Products of bytes; whether the bytes of a and of b are signed.
    Dot4 {
        a_signed: bool,
        b_signed: bool,
    },
    /// Products of 16-bit values and bytes of the low or the high half.
    Dot2 {
        a_signed: bool,
        b_signed: bool,
        high: bool,
    },
    Copy,
    SignOrZeroExtend {
        clamp: bool,
    },
    FindSet,
    /// Of two packed 16-bit values each.
    MinPacked {
        relu: bool,
    },
    MaxPacked {
        relu: bool,
    },
    AddPacked,
    /// Two numbers held within some bits each, below the lower bits of a third.
    Pack {
        bits: u32,
        signed: bool,
    },
}

/// How `prmt` picks bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permute {
    Index,
    ForwardFour,
    BackwardFour,
    Replicate,
    EdgeLeft,
    EdgeRight,
    ReplicateHalf,
}

/// Comparisons as `setp` names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Relation {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    EqU,
    NeU,
    LtU,
    LeU,
    GtU,
    GeU,
    /// Neither is NaN.
    Num,
    /// Either is NaN.
    Nan,
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Comparison {
    pub(crate) relation: Relation,
    pub(crate) ty: Type,
    pub(crate) flush: bool,
    /// Logic with a predicate, the third source.
    pub(crate) combine: Option<Logic>,
}

/// Operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    /// `a * (1 / b)` with its range: a divisor beyond 2^126 gives zero.
    DivApprox,
    Reciprocal,
    SquareRoot,
    /// Approximations of an f64 of which only the upper half is computed.
    ReciprocalUpper,
    ReciprocalRootUpper,
    ReciprocalRoot,
    Sin,
    Cos,
    Log2,
    Exp2,
    Tanh,
    Abs,
    Neg,
    Min,
    Max,
    Copysign,
    Test(FloatTest),
}

/// Classes of values that `testp` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum FloatTest {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

/// Type and modifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FloatMode {
    pub(crate) ty: Type,
    pub(crate) rounding: Rounding,
    /// `.ftz`: subnormals become zeros.
    pub(crate) flush: bool,
    /// `.sat`: the result is held within 0 and 1.
    pub(crate) saturate: bool,
    /// `.relu`: negative results become 0.
    pub(crate) relu: bool,
    /// `.NaN`: minimum and maximum pass NaN on.
    pub(crate) nan: bool,
    /// `.xorsign.abs`: of magnitudes, with the product's sign.
    pub(crate) xorsign: bool,
}

/// Rounding modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// To nearest, ties to even.
    Nearest,
    /// To nearest, ties away from zero.
    NearestAway,
    Zero,
    Down,
    Up,
}

/// A conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Convert {
    pub(crate) to: Type,
    pub(crate) from: Type,
    pub(crate) rounding: Rounding,
    /// Whether it rounds to an integer, which may stay in a floating-point type.
    pub(crate) integral: bool,
    /// `.ftz`: f32 subnormals become zeros.
    pub(crate) flush: bool,
    /// `.sat`
    pub(crate) saturate: bool,
    /// `.relu`: negative results become 0.
    pub(crate) relu: bool,
    /// `.satfinite`: overflow gives the largest finite value.
    pub(crate) finite: bool,
}

/// Operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Video {
    Add,
    Sub,
    /// The mean, rounded away from zero where it is positive.
    Average,
    Difference,
    Min,
    Max,
    /// Shifts by at most 32, or by the lowest five bits.
    ShiftLeft {
        clamp: bool,
    },
    ShiftRight {
        clamp: bool,
    },
    /// One where it holds.
    Compare(Relation),
}

/// What is done with a result and the third operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VideoSecond {
    Add,
    Min,
    Max,
}

/// A part of a 32-bit register, by its number from the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subword {
    Word,
    Half(u32),
    Byte(u32),
}
