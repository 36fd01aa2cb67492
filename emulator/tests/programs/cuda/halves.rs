//! Half precision by inline PTX, as `cuda_fp16.h` and `cuda_bf16.h` do it.

use half::{bf16, f16};

use super::numbers::Random;
use super::words::{Expression, Words, check};

/// Numbers in half precision that are not NaN: `x` and `y` as pairs of halves, `z` as one; and
/// `v` with four of the other kind.
fn halves(random: &mut Random) -> Words {
    let mut half = || f16::from_f64(random.within(-40.0, 40.0)).to_bits();
    let [x, y, z] = [(); 3].map(|()| u32::from(half()) << 16 | u32::from(half()));
    let mut brain = || bf16::from_f64(random.within(-40.0, 40.0)).to_bits();
    let v = (0..4).fold(0, |bits, _| bits << 16 | u64::from(brain()));
    Words { x, y, z, u: 0, v }
}

fn two(x: u32, y: u32, z: u32, f: fn(f64, f64, f64) -> f64) -> u64 {
    let part = |word: u32, at: u32| f16::from_bits((word >> at) as u16).to_f64();
    let half = |at| u64::from(f16::from_f64(f(part(x, at), part(y, at), part(z, at))).to_bits());
    half(16) << 16 | half(0)
}

fn two_brain(w: Words, f: fn(f64, f64) -> f64) -> u64 {
    let (x, y) = (w.v as u32, (w.v >> 32) as u32);
    let part = |word: u32, at: u32| bf16::from_bits((word >> at) as u16).to_f64();
    let half = |at| u64::from(bf16::from_f64(f(part(x, at), part(y, at))).to_bits());
    half(16) << 16 | half(0)
}

fn first(word: u32) -> f16 {
    f16::from_bits(word as u16)
}

#[rustfmt::skip]
const PAIRS: &[Expression] = &[
    (r#"[&]{ unsigned r; asm("add.f16x2 %0, %1, %2;" : "=r"(r) : "r"(x), "r"(y)); return r; }()"#,
        |w| two(w.x, w.y, 0, |x, y, _| x + y)),
    (r#"[&]{ unsigned r; asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(x), "r"(y)); return r; }()"#,
        |w| two(w.x, w.y, 0, |x, y, _| x - y)),
    (r#"[&]{ unsigned r; asm("mul.f16x2 %0, %1, %2;" : "=r"(r) : "r"(x), "r"(y)); return r; }()"#,
        |w| two(w.x, w.y, 0, |x, y, _| x * y)),
    (r#"[&]{ unsigned r; asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(x), "r"(y), "r"(z));
        return r; }()"#,
        |w| two(w.x, w.y, w.z, |x, y, z| x * y + z)),
    (r#"[&]{ unsigned r; asm("max.f16x2 %0, %1, %2;" : "=r"(r) : "r"(x), "r"(y)); return r; }()"#,
        |w| two(w.x, w.y, 0, |x, y, _| x.max(y))),
    (r#"[&]{ unsigned r; asm("neg.f16x2 %0, %1;" : "=r"(r) : "r"(x)); return r; }()"#,
        |w| two(w.x, 0, 0, |x, _, _| -x)),
    (r#"[&]{ unsigned r; asm("add.sat.f16x2 %0, %1, %2;" : "=r"(r) : "r"(x), "r"(y)); return r; }()"#,
        |w| two(w.x, w.y, 0, |x, y, _| (x + y).clamp(0.0, 1.0))),
    (r#"[&]{ unsigned r; asm("fma.rn.bf16x2 %0, %1, %2, %3;"
        : "=r"(r) : "r"((unsigned)v), "r"((unsigned)(v >> 32)), "r"(0x80008000)); return r; }()"#,
        |w| two_brain(w, |x, y| x * y)),
    (r#"[&]{ unsigned r; asm("max.bf16x2 %0, %1, %2;"
        : "=r"(r) : "r"((unsigned)v), "r"((unsigned)(v >> 32))); return r; }()"#,
        |w| two_brain(w, f64::max)),
];

#[rustfmt::skip]
const SINGLES: &[Expression] = &[
    (r#"[&]{ float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"((unsigned short)x));
        return __float_as_uint(r); }()"#,
        |w| u64::from(first(w.x).to_f32().to_bits())),
    (r#"[&]{ unsigned short r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(f)); return r; }()"#,
        |w| f16::from_f32(w.f()).to_bits().into()),
    (r#"[&]{ unsigned short r; asm("cvt.rn.f16.s32 %0, %1;" : "=h"(r) : "r"(a >> 14)); return r; }()"#,
        |w| f16::from_f64((w.a() >> 14).into()).to_bits().into()),
    (r#"[&]{ int r; asm("cvt.rni.s32.f16 %0, %1;" : "=r"(r) : "h"((unsigned short)x)); return r; }()"#,
        |w| i64::from(first(w.x).to_f64().round_ties_even() as i32) as u64),
    (r#"[&]{ unsigned r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(f), "f"(g)); return r; }()"#,
        |w| u64::from(f16::from_f32(w.f()).to_bits()) << 16 | u64::from(f16::from_f32(w.g()).to_bits())),
    (r#"[&]{ unsigned r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(f), "f"(g)); return r; }()"#,
        |w| {
            let bits = |x| u64::from(bf16::from_f32(x).to_bits());
            bits(w.f()) << 16 | bits(w.g())
        }),
    (r#"[&]{ unsigned r; asm("{.reg .pred p; setp.lt.f16 p, %1, %2; selp.u32 %0, 1, 0, p;}"
        : "=r"(r) : "h"((unsigned short)x), "h"((unsigned short)y)); return r; }()"#,
        |w| u64::from(first(w.x) < first(w.y))),
    (r#"[&]{ unsigned r;
        asm("{.reg .pred p, q; setp.ge.f16x2 p|q, %1, %2; selp.u32 %0, 1, 0, p; @q add.u32 %0, %0, 2;}"
        : "=r"(r) : "r"(x), "r"(y)); return r; }()"#,
        |w| u64::from(first(w.x) >= first(w.y))
            + 2 * u64::from(first(w.x >> 16) >= first(w.y >> 16))),
];

#[test]
fn pairs() {
    check(PAIRS, &[], halves);
}

#[test]
fn conversions_and_comparisons() {
    check(SINGLES, &[], halves);
    check(SINGLES, &["--device-debug"], halves);
}
