//! The tree of a module.

use std::collections::BTreeMap;
use std::ops::Range;

/// Fundamental and packed types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub(crate) enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
    U16x2,
    S16x2,
    E4m3x2,
    E5m2x2,
}

impl Type {
    /// The type of that name.
    pub(crate) fn by_name(name: &str) -> Option<Type> {
        Some(match name {
            "pred" => Self::Pred,
            "b8" => Self::B8,
            "b16" => Self::B16,
            "b32" => Self::B32,
            "b64" => Self::B64,
            "u8" => Self::U8,
            "u16" => Self::U16,
            "u32" => Self::U32,
            "u64" => Self::U64,
            "s8" => Self::S8,
            "s16" => Self::S16,
            "s32" => Self::S32,
            "s64" => Self::S64,
            "f16" => Self::F16,
            "f16x2" => Self::F16x2,
            "bf16" => Self::Bf16,
            "bf16x2" => Self::Bf16x2,
            "tf32" => Self::Tf32,
            "f32" => Self::F32,
            "f64" => Self::F64,
            "u16x2" => Self::U16x2,
            "s16x2" => Self::S16x2,
            "e4m3x2" => Self::E4m3x2,
            "e5m2x2" => Self::E5m2x2,
            _ => return None,
        })
    }

    /// Width in bits; a predicate counts as one.
    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::Pred => 1,
            Self::B8 | Self::U8 | Self::S8 => 8,
            Self::B16 | Self::U16 | Self::S16 | Self::F16 | Self::Bf16 => 16,
            Self::E4m3x2 | Self::E5m2x2 => 16,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 => 64,
            _ => 32,
        }
    }

    /// Whether a register of this type may hold values of the other, their widths aside: untyped
    /// bits may be anything, and integers signed or not.
    pub(crate) fn agrees(self, other: Type) -> bool {
        let bits = |ty: Type| matches!(ty, Self::B8 | Self::B16 | Self::B32 | Self::B64);
        self == other
            || bits(self)
            || bits(other)
            // Pairs have no registers of their own kind.
            || (self == Self::F16x2 && other.is_integer())
            || (self.is_integer() && other.is_integer())
    }

    /// Width in bytes.
    pub(crate) fn bytes(self) -> u32 {
        self.bits().div_ceil(8)
    }

    /// Whether it is a signed integer.
    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    /// Whether it is an integer or untyped bits.
    pub(crate) fn is_integer(self) -> bool {
        !self.is_float() && !matches!(self, Self::Pred | Self::U16x2 | Self::S16x2)
    }

    /// Whether it is a floating-point type, packed or not.
    pub(crate) fn is_float(self) -> bool {
        self.is_half()
            || matches!(self, Self::Tf32 | Self::F32 | Self::F64 | Self::E4m3x2 | Self::E5m2x2)
    }

    /// Whether it is two 16-bit floating-point values in one register.
    pub(crate) fn is_packed(self) -> bool {
        matches!(self, Self::F16x2 | Self::Bf16x2)
    }

    /// The type of one of two packed values.
    pub(crate) fn element(self) -> Type {
        match self {
            Self::F16x2 => Self::F16,
            Self::Bf16x2 => Self::Bf16,
            other => other,
        }
    }

    /// Whether it is a 16-bit floating-point type, packed or not.
    pub(crate) fn is_half(self) -> bool {
        matches!(self, Self::F16 | Self::F16x2 | Self::Bf16 | Self::Bf16x2)
    }
}

/// State spaces of variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum VariableSpace {
    Global,
    Const,
    Shared,
    Local,
    Param,
    /// A register, as a formal of a device function.
    Register,
}

/// Where an instruction comes from in the source: file index and line.
pub(crate) type Location = (u32, u32);

/// A module.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub(crate) version: (u32, u32),
    pub(crate) target: String,
    pub(crate) files: BTreeMap<u32, String>,
    pub(crate) variables: Vec<Variable>,
    pub(crate) functions: Vec<FunctionTree>,
    /// Other names of functions.
    pub(crate) aliases: BTreeMap<String, String>,
}

impl Tree {
    /// The name under which a function was declared.
    pub(crate) fn resolve<'t>(&'t self, name: &'t str) -> &'t str {
        self.aliases.get(name).map_or(name, String::as_str)
    }

    /// The number of a target such as `sm_80` or `sm_90a`, or zero.
    pub(crate) fn target_number(&self) -> u32 {
        let target = self.target.as_str();
        let number = target.strip_prefix("sm_").or_else(|| target.strip_prefix("compute_"));
        let digits = number.map_or("", |n| n.trim_end_matches(|c: char| c.is_ascii_lowercase()));
        digits.parse().unwrap_or(0)
    }
}

/// A variable, or a parameter.
#[derive(Clone, Debug)]
pub(crate) struct Variable {
    pub(crate) space: VariableSpace,
    pub(crate) name: String,
    pub(crate) ty: Type,
    pub(crate) align: u32,
    /// Size in bytes; `None` for an array whose size the launch gives.
    pub(crate) bytes: Option<u64>,
    pub(crate) initial: Vec<Initial>,
    pub(crate) external: bool,
    pub(crate) line: u32,
}

/// One element of an initialiser.
#[derive(Clone, Debug)]
pub(crate) enum Initial {
    /// The bits of a number.
    Bits(u64),
    /// The address of a variable plus an offset.
    Address(String, i64),
    /// One byte of such an address, from that bit on.
    AddressByte(String, i64, u32),
}

/// A kernel or a device function.
#[derive(Debug)]
pub(crate) struct FunctionTree {
    pub(crate) name: String,
    pub(crate) is_kernel: bool,
    pub(crate) returns: Vec<Variable>,
    pub(crate) params: Vec<Variable>,
    pub(crate) max_threads: Option<[u32; 3]>,
    pub(crate) required_threads: Option<[u32; 3]>,
    pub(crate) body: Option<Vec<Statement>>,
    pub(crate) line: u32,
}

/// A statement of a body.
#[derive(Debug)]
pub(crate) enum Statement {
    /// Registers: a type, and names with the count of a `<n>` range.
    Registers(Type, Vec<(String, Option<u32>)>, u32),
    Variable(Variable),
    /// A variable in device memory, and its name among those of the module.
    Static(String, String),
    Label(String, u32),
    /// The named list of labels that `brx.idx` picks from.
    Targets(String, Vec<String>),
    /// What an indirect call passes and receives.
    Prototype(String, Prototype),
    Instruction(InstructionTree),
    Scope(Vec<Statement>),
}

/// The signature of functions that are called through pointers.
#[derive(Clone, Debug)]
pub(crate) enum Prototype {
    /// Results and parameters.
    Parameters(Vec<Variable>, Vec<Variable>),
    /// The functions that may be called, all of one signature.
    Targets(Vec<String>),
}

/// An instruction.
#[derive(Clone, Debug)]
pub(crate) struct InstructionTree {
    /// The predicate and whether it is negated.
    pub(crate) guard: Option<(String, bool)>,
    pub(crate) opcode: String,
    pub(crate) modifiers: Vec<String>,
    pub(crate) operands: Vec<Operand>,
    pub(crate) line: u32,
    pub(crate) location: Option<Location>,
    /// Its bytes of the text.
    pub(crate) text: Range<usize>,
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    /// A register, label or symbol, or a special register with its component: `%tid.x`.
    Name(String),
    /// A symbol plus an offset.
    SymbolPlus(String, i64),
    Integer(u64),
    Single(u32),
    Double(u64),
    /// `!p`
    Not(String),
    /// `-r`
    Negated(String),
    /// `d|p`
    Pair(Box<Operand>, Box<Operand>),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `[base + offset]`; the base is a name or an integer.
    Address(Box<Operand>, i64),
    /// `[base, more]`, of textures and other objects.
    Object(Vec<Operand>),
    /// `_`
    Sink,
    /// The parenthesised arguments of a call.
    List(Vec<Operand>),
}
