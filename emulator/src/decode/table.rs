//! Every form of every instruction that modules may contain, and what decodes it.
//!
//! A row is one or more opcodes, then the modifiers in the order in which the PTX ISA writes them:
//! `|` separates alternatives, `?` marks a modifier that may be left out, and words in capitals
//! stand for the alternatives in [`GROUPS`]. After a semicolon stand the compute capability and the
//! PTX version that the form needs, if they are above the least that the emulator takes. A modifier
//! may have needs of its own: [`NEEDS`].
//!
//! Behind the arrow stands the method of [`Decoder`] that decodes the form, with its arguments. A
//! list of operations follows the order of the row's opcodes.

use super::decoder::{Decoder, Result};
use super::modifiers::Modifiers;
use crate::program::{CarryKind, Float, Integer, Logic, Relation, Video};
use crate::ptx::InstructionTree;

/// Decodes an instruction that has the form of a row.
pub(super) type Decode =
    for<'a> fn(&mut Decoder<'a>, &'a InstructionTree, &mut Modifiers) -> Result<()>;

/// Makes the table: each row with a function that calls its decoder.
macro_rules! forms {
    ($($form:literal => $decoder:ident $(($($argument:expr),* $(,)?))?;)*) => {
        &[$((
            $form,
            |decoder, instruction, modifiers| {
                decoder.$decoder(instruction, modifiers $($(, $argument)*)?)
            },
        )),*]
    };
}

/// Names for alternatives.
pub(super) const GROUPS: &[(&str, &str)] = &[
    ("INTEGER", "u16|u32|u64|s16|s32|s64"),
    ("ANY_INTEGER", "u8|u16|u32|u64|s8|s16|s32|s64"),
    ("EXTENDED", "u32|s32|u64|s64"),
    ("BITS", "b16|b32|b64"),
    ("PLAIN", "b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64"),
    ("MEMORY", "b8|b16|b32|b64|u8|u16|u32|u64|s8|s16|s32|s64|f32|f64"),
    ("ROUND", "rn|rz|rm|rp"),
    ("ROUND_INTEGRAL", "rni|rzi|rmi|rpi"),
    ("CLASS", "finite|infinite|number|notanumber|normal|subnormal"),
    ("COMPARE", "eq|ne|lt|le|gt|ge"),
    ("COMPARE_UNSIGNED", "lo|ls|hi|hs"),
    ("COMPARE_FLOAT", "eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan"),
    ("LOGIC", "and|or|xor"),
    ("SCOPE", "cta|cluster|gpu|sys"),
    ("SHARED", "shared|shared::cta"),
    ("BESIDES_GLOBAL", "local|shared|shared::cta"),
    ("PARAM", "param|param::entry|param::func"),
    (
        "EVICT",
        "L1::evict_normal|L1::evict_unchanged|L1::evict_first|L1::evict_last|L1::no_allocate",
    ),
    ("PREFETCH", "L2::64B|L2::128B|L2::256B"),
    ("POLICY", "L2::evict_last|L2::evict_normal|L2::evict_first|L2::evict_unchanged"),
    ("WMMA", "m16n16k16|m8n32k16|m32n8k16"),
    ("ATOM", "relaxed|acquire|release|acq_rel"),
    ("RED", "relaxed|release"),
];

/// What some modifiers need wherever they stand: compute capability and PTX version.
pub(super) const NEEDS: &[(&str, u32, (u32, u32))] = &[
    ("cluster", 90, (7, 8)),
    ("shared::cta", 70, (7, 8)),
    ("param::entry", 70, (8, 3)),
    ("param::func", 70, (8, 3)),
    ("L1::evict_normal", 70, (7, 4)),
    ("L1::evict_unchanged", 70, (7, 4)),
    ("L1::evict_first", 70, (7, 4)),
    ("L1::evict_last", 70, (7, 4)),
    ("L1::no_allocate", 70, (7, 4)),
    ("L2::64B", 75, (7, 4)),
    ("L2::128B", 75, (7, 4)),
    ("L2::256B", 80, (7, 4)),
    ("L2::cache_hint", 80, (7, 4)),
];

/// The operations of the video instructions.
const VIDEO: &[Video] =
    &[Video::Add, Video::Sub, Video::Average, Video::Difference, Video::Min, Video::Max];

/// The operations of those on parts of words.
const SCALAR_VIDEO: &[Video] = &[Video::Add, Video::Sub, Video::Difference, Video::Min, Video::Max];

/// Instructions of devices that are not there, by opcode and modifier, and what they are about.
pub(super) const UNSUPPORTED: &[(&str, &str, &str)] = &[
    ("tex", "", TEXTURES),
    ("tld4", "", TEXTURES),
    ("txq", "", TEXTURES),
    ("istypep", "", TEXTURES),
    ("suld", "", TEXTURES),
    ("sust", "", TEXTURES),
    ("sured", "", TEXTURES),
    ("suq", "", TEXTURES),
    ("wgmma", "", "products of warp groups (`wgmma`)"),
    ("wmma", "m8n8k4", "`wmma` fragments of f64"),
    ("wmma", "m8n8k32", "`wmma` fragments of 4-bit integers"),
    ("wmma", "m8n8k128", "`wmma` fragments of bits"),
    ("tcgen05", "", "tensor memory (`tcgen05`)"),
    ("mbarrier", "", "barriers in memory (`mbarrier`)"),
    ("cp", "bulk", "bulk copies and tensor maps (TMA)"),
    ("cp", "mbarrier", "barriers in memory (`mbarrier`)"),
    ("cp", "reduce", "bulk copies and tensor maps (TMA)"),
    ("prefetch", "tensormap", "bulk copies and tensor maps (TMA)"),
    ("tensormap", "", "bulk copies and tensor maps (TMA)"),
    ("fence", "proxy", "bulk copies and tensor maps (TMA)"),
    ("fence", "mbarrier_init", "barriers in memory (`mbarrier`)"),
    ("st", "async", "stores to other blocks of a cluster"),
    ("st", "bulk", "bulk copies and tensor maps (TMA)"),
    ("red", "async", "stores to other blocks of a cluster"),
    ("mapa", "", "clusters"),
    ("getctarank", "", "clusters"),
    ("barrier", "cluster", "clusters"),
    ("clusterlaunchcontrol", "", "clusters"),
    ("multimem", "", "memory of several devices (`multimem`)"),
    ("setmaxnreg", "", "registers that warps pass on (`setmaxnreg`)"),
    ("mma", "sp", "sparse products (`mma.sp`)"),
    ("mma", "sp::ordered_metadata", "sparse products (`mma.sp`)"),
    ("mma", "m8n8k4", "four products in one (`mma.m8n8k4` of f16)"),
    ("mma", "block_scale", "products of scaled blocks"),
];

const TEXTURES: &str = "textures and surfaces";

/// The forms, by section of the PTX ISA.
pub(super) const FORMS: &[(&str, Decode)] = forms! {
    // 9.7.1 Integer arithmetic.
    "add|sub INTEGER" => integer(&[Integer::Add, Integer::Sub], 2);
    "add|sub sat s32" => integer(&[Integer::AddSaturate, Integer::SubSaturate], 2);
    "add u16x2|s16x2; 90 8.0" => integer(&[Integer::AddPacked], 2);
    "mul lo|hi INTEGER" => half_product([Integer::MulLow, Integer::MulHigh], 2);
    "mad lo|hi INTEGER" => half_product([Integer::MadLow, Integer::MadHigh], 3);
    "mul wide u16|u32|s16|s32" => wide_product(Integer::MulWide, 2);
    "mad wide u16|u32|s16|s32" => wide_product(Integer::MadWide, 3);
    "mad hi sat s32" => integer(&[Integer::MadHighSaturate], 3);
    "mul24 lo|hi u32|s32" => half_product([Integer::Mul24Low, Integer::Mul24High], 2);
    "mad24 lo|hi u32|s32" => half_product([Integer::Mad24Low, Integer::Mad24High], 3);
    "mad24 hi sat s32" => integer(&[Integer::Mad24HighSaturate], 3);
    "sad INTEGER" => integer(&[Integer::Sad], 3);
    "div|rem INTEGER" => integer(&[Integer::Div, Integer::Rem], 2);
    "abs|neg s16|s32|s64" => integer(&[Integer::Abs, Integer::Neg], 1);
    "min|max INTEGER" => integer(&[Integer::Min, Integer::Max], 2);
    "min u16x2|s16x2; 90 8.0" => integer(&[Integer::MinPacked { relu: false }], 2);
    "max u16x2|s16x2; 90 8.0" => integer(&[Integer::MaxPacked { relu: false }], 2);
    "min relu s32|s16x2; 90 8.0"
        => integer_or_packed(Integer::MinRelu, Integer::MinPacked { relu: true });
    "max relu s32|s16x2; 90 8.0"
        => integer_or_packed(Integer::MaxRelu, Integer::MaxPacked { relu: true });
    "popc|clz b32|b64" => count_bits(&[Integer::Popc, Integer::LeadingZeros]);
    "brev b32|b64" => integer(&[Integer::Reverse], 1);
    "bfi b32|b64" => integer_by_words(Integer::Insert, 2, 2);
    "bfind shiftamt? EXTENDED" => find;
    "bfe EXTENDED" => integer_by_words(Integer::Extract, 1, 2);
    "szext clamp|wrap u32|s32; 70 7.6" => extend;
    "bmsk clamp|wrap b32; 70 7.6" => mask;
    "fns b32" => find_set;
    "dp4a u32|s32 u32|s32" => dot_four;
    "dp2a lo|hi u32|s32 u32|s32" => dot_two;
    // 9.7.2 Extended precision.
    "add|sub cc EXTENDED" => carry(&[CarryKind::Add, CarryKind::Sub], false);
    "addc|subc cc? EXTENDED" => carry(&[CarryKind::Add, CarryKind::Sub], true);
    "mad lo|hi cc EXTENDED" => carry_product(false);
    "madc lo|hi cc? EXTENDED" => carry_product(true);
    // 9.7.3 Floating point.
    "testp CLASS f32|f64" => classify;
    "copysign f32|f64" => float(&[Float::Copysign], 2);
    "add|sub|mul ROUND? ftz? sat? f32" => float(&[Float::Add, Float::Sub, Float::Mul], 2);
    "add|sub|mul ROUND? f64" => float(&[Float::Add, Float::Sub, Float::Mul], 2);
    "fma|mad ROUND ftz? sat? f32" => float(&[Float::Fma, Float::Fma], 3);
    "fma|mad ROUND f64" => float(&[Float::Fma, Float::Fma], 3);
    "div approx|full ftz? f32" => divide_roughly;
    "div ROUND ftz? f32" => float(&[Float::Div], 2);
    "div ROUND f64" => float(&[Float::Div], 2);
    "abs|neg ftz? f32" => float(&[Float::Abs, Float::Neg], 1);
    "abs|neg f64" => float(&[Float::Abs, Float::Neg], 1);
    "min|max ftz? f32" => float(&[Float::Min, Float::Max], 2);
    "min|max f64" => float(&[Float::Min, Float::Max], 2);
    "min|max ftz? NaN f32; 80 7.0" => float(&[Float::Min, Float::Max], 2);
    "min|max ftz? NaN? xorsign abs f32; 86 7.2" => float(&[Float::Min, Float::Max], 2);
    "rcp|sqrt approx|ROUND ftz? f32" => float(&[Float::Reciprocal, Float::SquareRoot], 1);
    "rcp|sqrt ROUND f64" => float(&[Float::Reciprocal, Float::SquareRoot], 1);
    "rcp approx ftz f64" => float(&[Float::ReciprocalUpper], 1);
    "rsqrt approx ftz? f32|f64" => reciprocal_root;
    "sin|cos|lg2|ex2 approx ftz? f32"
        => float(&[Float::Sin, Float::Cos, Float::Log2, Float::Exp2], 1);
    "tanh approx f32; 75 7.0" => float(&[Float::Tanh], 1);
    // 9.7.4 Half precision.
    "add|sub|mul rn? ftz? sat? f16|f16x2" => float(&[Float::Add, Float::Sub, Float::Mul], 2);
    "add|sub|mul rn? bf16|bf16x2; 90 7.8" => float(&[Float::Add, Float::Sub, Float::Mul], 2);
    "fma rn ftz? sat? f16|f16x2" => float(&[Float::Fma], 3);
    "fma rn ftz? relu f16|f16x2; 80 7.0" => float(&[Float::Fma], 3);
    "fma rn relu? bf16|bf16x2; 80 7.0" => float(&[Float::Fma], 3);
    "neg ftz? f16|f16x2" => float(&[Float::Neg], 1);
    "abs ftz? f16|f16x2" => float(&[Float::Abs], 1);
    "neg|abs bf16|bf16x2; 80 7.0" => float(&[Float::Neg, Float::Abs], 1);
    "min|max ftz? NaN? f16|f16x2; 80 7.0" => float(&[Float::Min, Float::Max], 2);
    "min|max NaN? bf16|bf16x2; 80 7.0" => float(&[Float::Min, Float::Max], 2);
    "min|max ftz? NaN? xorsign abs f16|f16x2; 86 7.2" => float(&[Float::Min, Float::Max], 2);
    "min|max NaN? xorsign abs bf16|bf16x2; 86 7.2" => float(&[Float::Min, Float::Max], 2);
    "tanh|ex2 approx f16|f16x2; 75 7.0" => float(&[Float::Tanh, Float::Exp2], 1);
    "tanh approx bf16|bf16x2; 90 7.8" => float(&[Float::Tanh], 1);
    "ex2 approx ftz bf16|bf16x2; 90 7.8" => float(&[Float::Exp2], 1);
    // 9.7.6 and 9.7.7 Comparison and selection.
    "setp eq|ne LOGIC? BITS" => compare(false);
    "setp COMPARE LOGIC? INTEGER" => compare(false);
    "setp COMPARE_UNSIGNED LOGIC? u16|u32|u64" => compare(false);
    "setp COMPARE_FLOAT LOGIC? ftz? f32" => compare(false);
    "setp COMPARE_FLOAT LOGIC? f64" => compare(false);
    "setp COMPARE_FLOAT LOGIC? ftz? f16|f16x2" => compare(false);
    "setp COMPARE_FLOAT LOGIC? bf16|bf16x2; 90 7.8" => compare(false);
    "set eq|ne LOGIC? u32|s32|f32 BITS" => compare(true);
    "set COMPARE LOGIC? u32|s32|f32 INTEGER" => compare(true);
    "set COMPARE_UNSIGNED LOGIC? u32|s32|f32 u16|u32|u64" => compare(true);
    "set COMPARE_FLOAT LOGIC? ftz? u32|s32|f32 f32" => compare(true);
    "set COMPARE_FLOAT LOGIC? u32|s32|f32 f64" => compare(true);
    "set eq|ne LOGIC? f16 BITS" => compare(true);
    "set COMPARE LOGIC? f16 INTEGER" => compare(true);
    "set COMPARE_UNSIGNED LOGIC? f16 u16|u32|u64" => compare(true);
    "set COMPARE_FLOAT LOGIC? f16 f64" => compare(true);
    "set COMPARE_FLOAT LOGIC? ftz? f16 f16|f32" => compare(true);
    "set COMPARE_FLOAT LOGIC? ftz? u16|s16|u32|s32 f16" => compare(true);
    "set COMPARE_FLOAT LOGIC? ftz? f16x2|u32|s32 f16x2" => compare(true);
    "set eq|ne LOGIC? bf16 BITS; 90 7.8" => compare(true);
    "set COMPARE LOGIC? bf16 INTEGER; 90 7.8" => compare(true);
    "set COMPARE_UNSIGNED LOGIC? bf16 u16|u32|u64; 90 7.8" => compare(true);
    "set COMPARE_FLOAT LOGIC? bf16 bf16|f32|f64; 90 7.8" => compare(true);
    "set COMPARE_FLOAT LOGIC? u16|s16|u32|s32 bf16; 90 7.8" => compare(true);
    "set COMPARE_FLOAT LOGIC? bf16x2|u32|s32 bf16x2; 90 7.8" => compare(true);
    "selp PLAIN" => select;
    "slct PLAIN s32" => select_by_sign;
    "slct ftz? PLAIN f32" => select_by_sign;
    // 9.7.8 Logic and shifts.
    "and|or|xor pred|b16|b32|b64"
        => bitwise(
            &[Integer::And, Integer::Or, Integer::Xor],
            &[Logic::And,
            Logic::Or,
            Logic::Xor],
        );
    "not pred|b16|b32|b64" => invert;
    "cnot BITS" => integer(&[Integer::IsZero], 1);
    "shl BITS" => integer_by_words(Integer::Shl, 1, 1);
    "lop3 b32" => lop3;
    "lop3 and|or b32; 70 8.2" => lop3;
    "shr BITS|INTEGER" => integer_by_words(Integer::Shr, 1, 1);
    "shf l|r clamp|wrap b32" => funnel_shift;
    // 9.7.9 Moves, loads, stores and conversions.
    "mov pred|PLAIN" => mov;
    "mov v2|v4 PLAIN" => mov;
    "prmt f4e|b4e|rc8|ecl|ecr|rc16? b32" => permute;
    "shfl sync up|down|bfly|idx b32" => shuffle;
    "ld weak? global? ca|cg|cs|lu|cv? L2::cache_hint? PREFETCH? v2|v4? MEMORY" => load;
    "ld weak? global? EVICT L2::cache_hint? PREFETCH? v2|v4? MEMORY" => load;
    "ld weak? BESIDES_GLOBAL|const|PARAM ca|cg|cs|lu|cv? v2|v4? MEMORY" => load;
    "ld volatile global? PREFETCH? v2|v4? MEMORY" => load;
    "ld volatile SHARED v2|v4? MEMORY" => load;
    "ld relaxed|acquire SCOPE global? EVICT? L2::cache_hint? PREFETCH? v2|v4? MEMORY" => load;
    "ld relaxed|acquire SCOPE SHARED v2|v4? MEMORY" => load;
    "ld mmio relaxed sys global? MEMORY; 70 8.2" => load;
    "ld global ca|cg|cs|EVICT? nc L2::cache_hint? PREFETCH? v2|v4? MEMORY" => load;
    "ldu global? v2|v4? MEMORY" => load;
    "st weak? global? wb|cg|cs|wt? L2::cache_hint? v2|v4? MEMORY" => store;
    "st weak? global? EVICT L2::cache_hint? v2|v4? MEMORY" => store;
    "st weak? BESIDES_GLOBAL|param|param::func wb|cg|cs|wt? v2|v4? MEMORY" => store;
    "st volatile global|SHARED? v2|v4? MEMORY" => store;
    "st relaxed|release SCOPE global? EVICT? L2::cache_hint? v2|v4? MEMORY" => store;
    "st relaxed|release SCOPE SHARED v2|v4? MEMORY" => store;
    "st mmio relaxed sys global? MEMORY; 70 8.2" => store;
    "prefetch global|local? L1|L2" => prefetch;
    "prefetch global L2::evict_last|L2::evict_normal; 80 7.4" => prefetch;
    "prefetchu L1" => prefetch;
    "discard global? L2; 80 7.4" => discard;
    "applypriority global? L2::evict_normal; 80 7.4" => priority;
    "createpolicy fractional POLICY L2::evict_first|L2::evict_unchanged? b64; 80 7.4"
        => create_policy;
    "createpolicy range global? POLICY L2::evict_first|L2::evict_unchanged? b64; 80 7.4"
        => create_policy;
    "createpolicy cvt L2 b64; 80 7.4" => create_policy;
    "isspacep global|local|SHARED|const|param|param::entry" => is_space;
    "cvta to? global|local|SHARED|const|param|param::entry u64" => cvta;
    "cvt pack sat u16|s16 s32; 72 6.5" => cvt_pack;
    "cvt pack sat u8|s8 s32 b32; 72 6.5" => cvt_pack;
    "cvt pack sat u2|s2|u4|s4 s32 b32; 75 6.5" => cvt_pack;
    "cvt ANY_INTEGER ANY_INTEGER" => cvt;
    "cvt sat u8|u16|u32|u64 s8|s16|s32|s64" => cvt;
    "cvt sat u8 u16|u32|u64" => cvt;
    "cvt sat u16 u32|u64" => cvt;
    "cvt sat u32 u64" => cvt;
    "cvt sat s8 u8|u16|u32|u64|s16|s32|s64" => cvt;
    "cvt sat s16 u16|u32|u64|s32|s64" => cvt;
    "cvt sat s32 u32|u64|s64" => cvt;
    "cvt sat s64 u64" => cvt;
    "cvt ROUND_INTEGRAL ftz? sat? ANY_INTEGER f32" => cvt;
    "cvt ROUND_INTEGRAL sat? ANY_INTEGER f64" => cvt;
    "cvt ROUND_INTEGRAL sat? ANY_INTEGER f16" => cvt;
    "cvt ROUND_INTEGRAL ANY_INTEGER bf16; 90 7.8" => cvt;
    "cvt ROUND ftz? sat? f32 ANY_INTEGER" => cvt;
    "cvt ROUND sat? f64 ANY_INTEGER" => cvt;
    "cvt ROUND sat? f16 ANY_INTEGER" => cvt;
    "cvt ROUND bf16 ANY_INTEGER; 90 7.8" => cvt;
    "cvt ROUND_INTEGRAL? ftz? sat? f32 f32" => cvt;
    "cvt ROUND_INTEGRAL? sat? f64 f64" => cvt;
    "cvt ROUND_INTEGRAL? sat? f16 f16" => cvt;
    "cvt ROUND_INTEGRAL? bf16 bf16; 90 7.8" => cvt;
    "cvt ROUND ftz? sat? f32 f64" => cvt;
    "cvt ftz? sat? f64 f32" => cvt;
    "cvt ROUND ftz? sat? f16 f32" => cvt;
    "cvt ROUND sat? f16 f64" => cvt;
    "cvt ftz? sat? f32 f16" => cvt;
    "cvt sat? f64 f16" => cvt;
    "cvt ftz? f32 bf16; 80 7.1" => cvt;
    "cvt f64 bf16; 90 7.8" => cvt;
    "cvt ROUND f16 bf16; 90 7.8" => cvt;
    "cvt ROUND bf16 f16|f64; 90 7.8" => cvt;
    "cvt ROUND ftz? bf16 f32; 90 7.8" => cvt;
    "cvt rn|rz relu? f16|bf16|f16x2|bf16x2 f32; 80 7.0" => cvt;
    "cvt rn|rz relu? satfinite f16|bf16|f16x2|bf16x2 f32; 80 8.1" => cvt;
    "cvt rna tf32 f32; 80 7.0" => cvt;
    "cvt rna satfinite tf32 f32; 80 8.1" => cvt;
    "cvt rn|rz relu? tf32 f32; 90 7.8" => cvt;
    "cvt rn satfinite relu? e4m3x2|e5m2x2 f32|f16x2; 90 7.8" => cvt;
    "cvt rn satfinite relu? e4m3x2|e5m2x2 f32|f16x2; 89 8.1" => cvt;
    "cvt rn relu? f16x2 e4m3x2|e5m2x2; 90 7.8" => cvt;
    "cvt rn relu? f16x2 e4m3x2|e5m2x2; 89 8.1" => cvt;
    // 9.7.9.25 Asynchronous copies.
    "cp async ca|cg SHARED global L2::cache_hint? PREFETCH?; 80 7.0" => copy;
    "cp async commit_group|wait_group|wait_all; 80 7.0" => copy;
    // 9.7.12 Control flow.
    "bra uni?" => branch;
    "ret uni?" => ret;
    "call uni?" => call;
    "brx idx uni?" => branch_indexed;
    "exit" => exit;
    // 9.7.13 Synchronisation.
    "bar sync|arrive" => barrier(true);
    "bar red popc u32" => barrier(true);
    "bar red and|or pred" => barrier(true);
    "bar cta sync|arrive; 70 7.8" => barrier(true);
    "bar cta red popc u32; 70 7.8" => barrier(true);
    "bar cta red and|or pred; 70 7.8" => barrier(true);
    "bar warp sync" => barrier(true);
    "barrier sync|arrive aligned?" => barrier(false);
    "barrier red popc aligned? u32" => barrier(false);
    "barrier red and|or aligned? pred" => barrier(false);
    "barrier cta sync|arrive aligned?; 70 7.8" => barrier(false);
    "barrier cta red popc aligned? u32; 70 7.8" => barrier(false);
    "barrier cta red and|or aligned? pred; 70 7.8" => barrier(false);
    "membar cta|gl|sys" => fence;
    "membar|fence proxy alias; 70 7.5" => fence;
    "fence sc|acq_rel? SCOPE" => fence;
    "fence acquire|release SCOPE; 70 8.6" => fence;
    "atom ATOM? SCOPE? global|SHARED? and|or|xor|exch|cas b32|b64" => atomic(true);
    "atom ATOM? SCOPE? global|SHARED? cas b16" => atomic(true);
    "atom ATOM? SCOPE? global|SHARED? add u32|s32|u64|f32|f64" => atomic(true);
    "atom ATOM? SCOPE? global|SHARED? min|max u32|s32|u64|s64" => atomic(true);
    "atom ATOM? SCOPE? global|SHARED? inc|dec u32" => atomic(true);
    "atom ATOM? SCOPE? global|SHARED? add noftz f16x2" => atomic(true);
    "atom ATOM? SCOPE? global|SHARED? add noftz f16" => atomic(true);
    "atom ATOM? SCOPE? global|SHARED? add noftz bf16|bf16x2; 90 7.8" => atomic(true);
    "atom ATOM? SCOPE? global? and|or|xor|exch L2::cache_hint b32|b64" => atomic(true);
    "atom ATOM? SCOPE? global? add L2::cache_hint u32|s32|u64|f32|f64" => atomic(true);
    "atom ATOM? SCOPE? global? min|max L2::cache_hint u32|s32|u64|s64" => atomic(true);
    "atom ATOM? SCOPE? global? inc|dec L2::cache_hint u32" => atomic(true);
    "atom ATOM? SCOPE? global? add noftz L2::cache_hint f16|f16x2" => atomic(true);
    "atom ATOM? SCOPE? global? add noftz L2::cache_hint bf16|bf16x2; 90 7.8" => atomic(true);
    "atom ATOM? SCOPE? global? add L2::cache_hint? v2|v4 f32; 90 8.1" => atomic(true);
    "atom ATOM? SCOPE? global? add|min|max noftz L2::cache_hint? v2|v4|v8 f16|bf16; 90 8.1"
        => atomic(true);
    "atom ATOM? SCOPE? global? add|min|max noftz L2::cache_hint? v2|v4 f16x2|bf16x2; 90 8.1"
        => atomic(true);
    "red RED? SCOPE? global|SHARED? and|or|xor b32|b64" => atomic(false);
    "red RED? SCOPE? global|SHARED? add u32|s32|u64|f32|f64" => atomic(false);
    "red RED? SCOPE? global|SHARED? min|max u32|s32|u64|s64" => atomic(false);
    "red RED? SCOPE? global|SHARED? inc|dec u32" => atomic(false);
    "red RED? SCOPE? global|SHARED? add noftz f16x2" => atomic(false);
    "red RED? SCOPE? global|SHARED? add noftz f16" => atomic(false);
    "red RED? SCOPE? global|SHARED? add noftz bf16|bf16x2; 90 7.8" => atomic(false);
    "red RED? SCOPE? global? and|or|xor L2::cache_hint b32|b64" => atomic(false);
    "red RED? SCOPE? global? add L2::cache_hint u32|s32|u64|f32|f64" => atomic(false);
    "red RED? SCOPE? global? min|max L2::cache_hint u32|s32|u64|s64" => atomic(false);
    "red RED? SCOPE? global? inc|dec L2::cache_hint u32" => atomic(false);
    "red RED? SCOPE? global? add noftz L2::cache_hint f16|f16x2" => atomic(false);
    "red RED? SCOPE? global? add noftz L2::cache_hint bf16|bf16x2; 90 7.8" => atomic(false);
    "red RED? SCOPE? global? add L2::cache_hint? v2|v4 f32; 90 8.1" => atomic(false);
    "red RED? SCOPE? global? add|min|max noftz L2::cache_hint? v2|v4|v8 f16|bf16; 90 8.1"
        => atomic(false);
    "red RED? SCOPE? global? add|min|max noftz L2::cache_hint? v2|v4 f16x2|bf16x2; 90 8.1"
        => atomic(false);
    "vote sync all|any|uni pred" => vote;
    "vote sync ballot b32" => vote;
    "match any|all sync b32|b64" => match_values;
    "activemask b32" => active_mask;
    "redux sync add|min|max u32|s32; 80 7.0" => redux;
    "redux sync and|or|xor b32; 80 7.0" => redux;
    "griddepcontrol launch_dependents|wait; 90 7.8" => nothing;
    "elect sync; 90 8.0" => elect;
    // 9.7.14 Matrices.
    "mma sync aligned m16n8k8|m16n8k16 row col f32 bf16 bf16 f32; 80 7.0" => mma;
    "mma sync aligned m16n8k8 row col f32 f16 f16 f32; 75 6.5" => mma;
    "mma sync aligned m16n8k8 row col f16 f16 f16 f16; 75 6.5" => mma;
    "mma sync aligned m16n8k16 row col f32 f16 f16 f32; 80 7.0" => mma;
    "mma sync aligned m16n8k16 row col f16 f16 f16 f16; 80 7.0" => mma;
    "mma sync aligned m16n8k4|m16n8k8 row col f32 tf32 tf32 f32; 80 7.0" => mma;
    "mma sync aligned m8n8k16 row col satfinite? s32 u8|s8 u8|s8 s32; 75 6.5" => product;
    "mma sync aligned m16n8k16|m16n8k32 row col satfinite? s32 u8|s8 u8|s8 s32; 80 7.0" => product;
    "mma sync aligned m8n8k32 row col satfinite? s32 u4|s4 u4|s4 s32; 75 6.5" => product;
    "mma sync aligned m16n8k32|m16n8k64 row col satfinite? s32 u4|s4 u4|s4 s32; 80 7.0" => product;
    "mma sync aligned m8n8k128 row col s32 b1 b1 s32 xor popc; 75 7.0" => product;
    "mma sync aligned m16n8k128|m16n8k256 row col s32 b1 b1 s32 xor popc; 80 7.0" => product;
    "mma sync aligned m8n8k128|m16n8k128|m16n8k256 row col s32 b1 b1 s32 and popc; 80 7.1"
        => product;
    "mma sync aligned m8n8k4 row col f64 f64 f64 f64; 80 7.0" => product;
    "mma sync aligned m16n8k4|m16n8k8|m16n8k16 row col f64 f64 f64 f64; 90 7.8" => product;
    "mma sync aligned m16n8k32 row col f32 e4m3|e5m2 e4m3|e5m2 f32; 89 8.4" => product;
    "mma sync aligned m16n8k16 row col f32 e4m3|e5m2 e4m3|e5m2 f32; 89 8.7" => product;
    "mma sync aligned m16n8k16|m16n8k32 row col f16 e4m3|e5m2 e4m3|e5m2 f16; 89 8.7" => product;
    "ldmatrix sync aligned m8n8 x1|x2|x4 trans? SHARED? b16; 75 6.5" => move_matrices(false);
    "stmatrix sync aligned m8n8 x1|x2|x4 trans? SHARED? b16; 90 7.8" => move_matrices(true);
    "movmatrix sync aligned m8n8 trans b16; 75 7.8" => transpose_matrix;
    // 9.7.14.4 Fragments.
    "wmma load a|b sync aligned row|col WMMA global|SHARED? f16" => move_fragment(false);
    "wmma load a|b sync aligned row|col WMMA global|SHARED? u8|s8; 72 6.5" => move_fragment(false);
    "wmma load a|b sync aligned row|col WMMA global|SHARED? bf16; 80 7.0" => move_fragment(false);
    "wmma load a|b sync aligned row|col m16n16k8 global|SHARED? tf32; 80 7.0"
        => move_fragment(false);
    "wmma load c sync aligned row|col WMMA global|SHARED? f16|f32" => move_fragment(false);
    "wmma load c sync aligned row|col WMMA global|SHARED? s32; 72 6.5" => move_fragment(false);
    "wmma load c sync aligned row|col m16n16k8 global|SHARED? f32; 80 7.0" => move_fragment(false);
    "wmma store d sync aligned row|col WMMA global|SHARED? f16|f32" => move_fragment(true);
    "wmma store d sync aligned row|col WMMA global|SHARED? s32; 72 6.5" => move_fragment(true);
    "wmma store d sync aligned row|col m16n16k8 global|SHARED? f32; 80 7.0" => move_fragment(true);
    "wmma mma sync aligned row|col row|col WMMA f16|f32 f16|f32" => multiply_fragments;
    "wmma mma sync aligned row|col row|col WMMA f32 bf16 bf16 f32; 80 7.0" => multiply_fragments;
    "wmma mma sync aligned row|col row|col m16n16k8 f32 tf32 tf32 f32; 80 7.0"
        => multiply_fragments;
    "wmma mma sync aligned row|col row|col WMMA s32 u8 u8 s32 satfinite?; 72 6.5"
        => multiply_fragments;
    "wmma mma sync aligned row|col row|col WMMA s32 s8 s8 s32 satfinite?; 72 6.5"
        => multiply_fragments;
    // 9.7.17 The stack.
    "stacksave u64; 70 7.3" => save_stack;
    "stackrestore u64; 70 7.3" => restore_stack;
    "alloca u64; 70 7.3" => allocate;
    // 9.7.18 Video.
    "vadd2|vsub2|vavrg2|vabsdiff2|vmin2|vmax2 u32|s32 u32|s32 u32|s32 sat|add?"
        => video(VIDEO, false);
    "vadd4|vsub4|vavrg4|vabsdiff4|vmin4|vmax4 u32|s32 u32|s32 u32|s32 sat|add?"
        => video(VIDEO, true);
    "vadd|vsub|vabsdiff|vmin|vmax u32|s32 u32|s32 u32|s32 sat? add|min|max?"
        => video_scalar(SCALAR_VIDEO);
    "vshl|vshr u32|s32 u32|s32 u32 sat? clamp|wrap add|min|max?"
        => video_scalar(&[
            Video::ShiftLeft { clamp: false },
            Video::ShiftRight { clamp: false },
        ]);
    "vset u32|s32 u32|s32 COMPARE add|min|max?" => video_scalar(&[Video::Compare(Relation::Eq)]);
    "vset2|vset4 u32|s32 u32|s32 COMPARE add?" => video_compare;
    "vmad u32|s32 u32|s32 u32|s32 po? sat? shr7|shr15?" => video_product;
    // 9.7.19 What stops or delays a thread.
    "brkpt|trap" => trap;
    "nanosleep u32" => sleep;
    "pmevent mask?" => event;
};
