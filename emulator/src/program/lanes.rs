//! The operations that run over all lanes of a warp at once.

/// Operations on two 32-bit values that run over all lanes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bin32 {
    Add,
    Sub,
    Mul,
    MulHiU,
    MulHiS,
    MinU,
    MinS,
    MaxU,
    MaxS,
    And,
    Or,
    Xor,
    Shl,
    ShrU,
    ShrS,
    AddF,
    SubF,
    MulF,
    DivF,
    MinF,
    MaxF,
    /// The low halves of both: `a | b << 16`.
    PackHalves,
    /// Two f32 rounded to bf16, the first into the upper half.
    PackBf16,
    /// Two f32 rounded to f16, the first into the upper half.
    PackF16,
}

/// Operations on one 32-bit value that run over all lanes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Un32 {
    Copy,
    Not,
    NegS,
    AbsS,
    NegF,
    AbsF,
    Popc,
    Low16,
    High16,
    Signed16,
    SignedToF,
    UnsignedToF,
    Bf16ToF,
    F16ToF,
    FToBf16,
    FToF16,
    Reciprocal,
    SquareRoot,
    ReciprocalRoot,
    Exp2,
    Exp2Flush,
    Log2,
    Tanh,
}

/// Operations on three 32-bit values that run over all lanes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tri32 {
    Mad,
    FmaF,
    Lop3(u8),
    /// Funnel shifts; the shift amount is the third value.
    ShfLeftWrap,
    ShfRightWrap,
    ShfLeftClamp,
    ShfRightClamp,
    BfeU,
    Prmt,
}

/// Operations on two 64-bit values that run over all lanes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bin64 {
    Add,
    Sub,
    Mul,
    And,
    Or,
    Xor,
    AddF,
    SubF,
    MulF,
}

/// Comparisons; the float ones are false on NaN where ordered and true where unordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    Eq,
    Ne,
    LtU,
    LeU,
    GtU,
    GeU,
    LtS,
    LeS,
    GtS,
    GeS,
    EqF,
    NeF,
    LtF,
    LeF,
    GtF,
    GeF,
    EqUF,
    NeUF,
    LtUF,
    LeUF,
    GtUF,
    GeUF,
}

/// Logic on predicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
}
