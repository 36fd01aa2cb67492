//! The forms over all lanes agree with the form for one lane, and with and without vectors.

use super::*;
use crate::exec::alu::scalar::evaluate;
use crate::program::{
    Comparison, Convert, Float, FloatMode, Integer, Permute, Relation, Rounding, Scalar,
};
use crate::ptx::Type;

/// Values that differ in every way that matters, and pseudo-random ones.
fn samples(seed: u32) -> V32 {
    const SPECIAL: [u32; 16] = [
        0,
        1,
        31,
        32,
        33,
        0x8000_0000,
        0x7fff_ffff,
        u32::MAX,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0001,
        0x3f80_0000,
        0xbf80_0000,
        0x0040_0000,
        0x477f_f000,
        0x3380_0001,
    ];
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    V32(std::array::from_fn(|_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        if state.is_multiple_of(3) { SPECIAL[state as usize / 3 % 16] } else { state }
    }))
}

fn wides() -> [Wide; 2] {
    [Wide(false), Wide::detect()]
}

fn mode(ty: Type) -> FloatMode {
    FloatMode {
        ty,
        rounding: Rounding::Nearest,
        flush: false,
        saturate: false,
        relu: false,
        nan: false,
        xorsign: false,
    }
}

fn check(name: &str, scalar: Scalar, bits: u32, run: impl Fn(Wide, &mut [V32])) {
    for seed in 0..200 {
        for wide in wides() {
            let mut r =
                [samples(4 * seed), samples(4 * seed + 1), samples(4 * seed + 2), samples(9)];
            let before = r;
            run(wide, &mut r);
            for lane in 0..LANES {
                let [a, b, c, _] = before.map(|v| u64::from(v.0[lane]));
                let (expected, _) = evaluate(&scalar, [a, b, c, 0]);
                let expected = expected as u32 & (u32::MAX >> (32 - bits));
                let found = r[3].0[lane];
                assert_eq!(found, expected, "{name} of {a:#x}, {b:#x}, {c:#x} ({wide:?})");
            }
        }
    }
}

#[test]
fn integers_agree() {
    let (s, u) = (Type::S32, Type::U32);
    for (op, integer, ty) in [
        (Bin32::Add, Integer::Add, u),
        (Bin32::Sub, Integer::Sub, u),
        (Bin32::Mul, Integer::MulLow, u),
        (Bin32::MulHiU, Integer::MulHigh, u),
        (Bin32::MulHiS, Integer::MulHigh, s),
        (Bin32::MinU, Integer::Min, u),
        (Bin32::MinS, Integer::Min, s),
        (Bin32::MaxU, Integer::Max, u),
        (Bin32::MaxS, Integer::Max, s),
        (Bin32::Shl, Integer::Shl, u),
        (Bin32::ShrU, Integer::Shr, u),
        (Bin32::ShrS, Integer::Shr, s),
    ] {
        let scalar = Scalar::Integer(integer, ty);
        check(&format!("{op:?}"), scalar, 32, |wide, r| bin32(wide, op, r, 3, 0, 1, u32::MAX));
    }
    for (op, integer) in [
        (Tri32::Mad, Integer::MadLow),
        (Tri32::Lop3(0xca), Integer::Lop3(0xca)),
        (Tri32::Lop3(0x96), Integer::Lop3(0x96)),
        (Tri32::Lop3(0x1e), Integer::Lop3(0x1e)),
        (Tri32::ShfLeftWrap, Integer::FunnelLeft { clamp: false }),
        (Tri32::ShfLeftClamp, Integer::FunnelLeft { clamp: true }),
        (Tri32::ShfRightWrap, Integer::FunnelRight { clamp: false }),
        (Tri32::ShfRightClamp, Integer::FunnelRight { clamp: true }),
        (Tri32::BfeU, Integer::Extract),
        (Tri32::Prmt, Integer::Permute(Permute::Index)),
    ] {
        let scalar = Scalar::Integer(integer, u);
        check(&format!("{op:?}"), scalar, 32, |wide, r| {
            tri32(wide, op, r, 3, [0, 1, 2], u32::MAX);
        });
    }
}

#[test]
fn floats_agree() {
    let scalar = |op| Scalar::Float(op, mode(Type::F32));
    for (op, float) in [
        (Bin32::AddF, Float::Add),
        (Bin32::SubF, Float::Sub),
        (Bin32::MulF, Float::Mul),
        (Bin32::DivF, Float::Div),
        (Bin32::MinF, Float::Min),
        (Bin32::MaxF, Float::Max),
    ] {
        check(&format!("{op:?}"), scalar(float), 32, |wide, r| {
            bin32(wide, op, r, 3, 0, 1, u32::MAX);
        });
    }
    check("fma", scalar(Float::Fma), 32, |wide, r| {
        tri32(wide, Tri32::FmaF, r, 3, [0, 1, 2], u32::MAX);
    });
    for (op, float) in [
        (Un32::NegF, Float::Neg),
        (Un32::AbsF, Float::Abs),
        (Un32::Reciprocal, Float::Reciprocal),
        (Un32::SquareRoot, Float::SquareRoot),
        (Un32::ReciprocalRoot, Float::ReciprocalRoot),
        (Un32::Exp2, Float::Exp2),
        (Un32::Log2, Float::Log2),
        (Un32::Tanh, Float::Tanh),
    ] {
        check(&format!("{op:?}"), scalar(float), 32, |wide, r| {
            un32(wide, op, r, 3, 0, u32::MAX);
        });
    }
}

#[test]
fn conversions_agree() {
    let convert = |to, from| {
        Scalar::Convert(Convert {
            to,
            from,
            rounding: Rounding::Nearest,
            integral: false,
            flush: false,
            saturate: false,
            relu: false,
            finite: false,
        })
    };
    for (op, to, from) in [
        (Un32::SignedToF, Type::F32, Type::S32),
        (Un32::UnsignedToF, Type::F32, Type::U32),
        (Un32::FToBf16, Type::Bf16, Type::F32),
        (Un32::FToF16, Type::F16, Type::F32),
        (Un32::Signed16, Type::S32, Type::S16),
        (Un32::Low16, Type::U32, Type::U16),
    ] {
        check(&format!("{op:?}"), convert(to, from), 32, |wide, r| {
            un32(wide, op, r, 3, 0, u32::MAX);
        });
    }
    for (op, from) in [(Un32::F16ToF, Type::F16), (Un32::Bf16ToF, Type::Bf16)] {
        for bits in 0..=0xffff_u32 {
            let mut r = [V32([bits; LANES]), V32([0; LANES])];
            un32(Wide::detect(), op, &mut r, 1, 0, u32::MAX);
            let (expected, _) = evaluate(&convert(Type::F32, from), [u64::from(bits), 0, 0, 0]);
            assert_eq!(r[1].0[0], expected as u32, "{op:?} of {bits:#x}");
        }
    }
    for (op, to) in [(Bin32::PackBf16, Type::Bf16x2), (Bin32::PackF16, Type::F16x2)] {
        check(&format!("{op:?}"), convert(to, Type::F32), 32, |wide, r| {
            bin32(wide, op, r, 3, 0, 1, u32::MAX);
        });
    }
}

#[test]
fn comparisons_agree() {
    for (op, relation, ty) in [
        (Compare::Eq, Relation::Eq, Type::U32),
        (Compare::LtU, Relation::Lt, Type::U32),
        (Compare::GeS, Relation::Ge, Type::S32),
        (Compare::LeS, Relation::Le, Type::S32),
        (Compare::EqF, Relation::Eq, Type::F32),
        (Compare::NeF, Relation::Ne, Type::F32),
        (Compare::LtF, Relation::Lt, Type::F32),
        (Compare::LeF, Relation::Le, Type::F32),
        (Compare::GtF, Relation::Gt, Type::F32),
        (Compare::GeF, Relation::Ge, Type::F32),
        (Compare::EqUF, Relation::EqU, Type::F32),
        (Compare::NeUF, Relation::NeU, Type::F32),
        (Compare::LtUF, Relation::LtU, Type::F32),
        (Compare::LeUF, Relation::LeU, Type::F32),
        (Compare::GtUF, Relation::GtU, Type::F32),
        (Compare::GeUF, Relation::GeU, Type::F32),
    ] {
        let comparison = Comparison { relation, ty, flush: false, combine: None };
        check(&format!("{op:?}"), Scalar::SetPredicate(comparison), 32, |wide, r| {
            let bits = compare32(wide, op, &r[0], &r[1]);
            r[3] = V32(std::array::from_fn(|lane| bits >> lane & 1));
        });
    }
}

#[test]
fn masks_keep_the_other_lanes() {
    for wide in wides() {
        let mut r = [V32([1; LANES]), V32([2; LANES]), V32([9; LANES])];
        bin32(wide, Bin32::Add, &mut r, 2, 0, 1, 0x0f0f_0003);
        let expected = |lane: usize| if 0x0f0f_0003_u32 >> lane & 1 == 1 { 3 } else { 9 };
        assert!((0..LANES).all(|lane| r[2].0[lane] == expected(lane)));
    }
}
