//! Arithmetic over all 32 lanes at once, for the instructions that kernels spend their time in.
//!
//! Each function is a plain loop over arrays, compiled twice: for any processor, and for one with
//! AVX2 and FMA, where the loops become vector instructions.

use super::float::{from_f16, quiet, quiet_root, to_bf16, to_f16};
use super::round::{NAN32, flush32};
use crate::program::{Bin32, Bin64, Compare, Q, R, Tri32, Un32};

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;

/// A 32-bit register of a warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct V32(pub(crate) [u32; LANES]);

/// A 64-bit register of a warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct V64(pub(crate) [u64; LANES]);

/// Whether this processor has AVX2 and FMA; only `detect` makes one that says so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wide(bool);

impl Wide {
    /// Asks the processor.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        return Self(
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("popcnt"),
        );
        #[cfg(not(target_arch = "x86_64"))]
        Self(false)
    }

    /// Whether the vector form runs.
    pub(crate) fn available(self) -> bool {
        self.0
    }
}

/// Compiles a function for any processor and for AVX2 with FMA.
macro_rules! over_lanes {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) -> $out:ty $body:block) => {
        $(#[$doc])*
        #[inline(always)]
        #[allow(clippy::too_many_arguments)]
        pub(crate) fn $name(wide: $crate::exec::alu::lanes::Wide, $($arg: $ty),*) -> $out {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body($($arg: $ty),*) -> $out $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,popcnt")]
                #[allow(clippy::too_many_arguments)]
                fn vector($($arg: $ty),*) -> $out {
                    body($($arg),*)
                }
                if wide.available() {
                    // SAFETY: `Wide` says that the processor has these features.
                    return unsafe { vector($($arg),*) };
                }
            }
            let _ = wide;
            body($($arg),*)
        }
    };
}
pub(crate) use over_lanes;

#[inline(always)]
fn each(f: impl Fn(usize) -> u32) -> V32 {
    let mut out = [0; LANES];
    for (lane, value) in out.iter_mut().enumerate() {
        *value = f(lane);
    }
    V32(out)
}

#[inline(always)]
fn each64(f: impl Fn(usize) -> u64) -> V64 {
    let mut out = [0; LANES];
    for (lane, value) in out.iter_mut().enumerate() {
        *value = f(lane);
    }
    V64(out)
}

#[inline(always)]
fn each_bit(f: impl Fn(usize) -> bool) -> u32 {
    let mut bits = 0;
    for lane in 0..LANES {
        bits |= u32::from(f(lane)) << lane;
    }
    bits
}

#[inline(always)]
fn store(d: &mut V32, value: &V32, mask: u32) {
    if mask == u32::MAX {
        *d = *value;
        return;
    }
    for lane in 0..LANES {
        d.0[lane] = if mask >> lane & 1 != 0 { value.0[lane] } else { d.0[lane] };
    }
}

#[inline(always)]
fn store64(d: &mut V64, value: &V64, mask: u32) {
    if mask == u32::MAX {
        *d = *value;
        return;
    }
    for lane in 0..LANES {
        d.0[lane] = if mask >> lane & 1 != 0 { value.0[lane] } else { d.0[lane] };
    }
}

#[inline(always)]
fn f(bits: u32) -> f32 {
    f32::from_bits(bits)
}

#[inline(always)]
fn real(bits: u64) -> f64 {
    f64::from_bits(bits)
}

#[inline(always)]
fn minimum(a: u32, b: u32) -> u32 {
    let (x, y) = (f(a), f(b));
    let ordered = if x < y || (x == y && a >> 31 != 0) { a } else { b };
    let other = if y.is_nan() { a } else { ordered };
    let picked = if x.is_nan() { b } else { other };
    if x.is_nan() && y.is_nan() { NAN32 } else { picked }
}

#[inline(always)]
fn maximum(a: u32, b: u32) -> u32 {
    let (x, y) = (f(a), f(b));
    let ordered = if x > y || (x == y && b >> 31 != 0) { a } else { b };
    let other = if y.is_nan() { a } else { ordered };
    let picked = if x.is_nan() { b } else { other };
    if x.is_nan() && y.is_nan() { NAN32 } else { picked }
}

over_lanes! {
    /// `r[d] = op(r[a])` in the lanes of the mask.
    fn un32(op: Un32, r: &mut [V32], d: R, a: R, mask: u32) -> () {
        let a = &r[a as usize].0;
        let value = match op {
            Un32::Copy => V32(*a),
            Un32::Not => each(|i| !a[i]),
            Un32::NegS => each(|i| a[i].wrapping_neg()),
            Un32::AbsS => each(|i| (a[i] as i32).unsigned_abs()),
            Un32::NegF => each(|i| quiet(f(a[i] ^ 1 << 31))),
            Un32::AbsF => each(|i| quiet(f(a[i] & !(1 << 31)))),
            Un32::Popc => each(|i| a[i].count_ones()),
            Un32::Low16 => each(|i| a[i] & 0xffff),
            Un32::High16 => each(|i| a[i] >> 16),
            Un32::Signed16 => each(|i| a[i] as i16 as u32),
            Un32::SignedToF => each(|i| (a[i] as i32 as f32).to_bits()),
            Un32::UnsignedToF => each(|i| (a[i] as f32).to_bits()),
            Un32::Bf16ToF => each(|i| quiet(f(a[i] << 16))),
            Un32::F16ToF => each(|i| quiet(f(from_f16(a[i])))),
            Un32::FToBf16 => each(|i| to_bf16(a[i])),
            Un32::FToF16 => each(|i| to_f16(a[i])),
            Un32::Reciprocal => each(|i| quiet(1.0 / f(a[i]))),
            Un32::SquareRoot => each(|i| quiet_root(f(a[i]).sqrt())),
            Un32::ReciprocalRoot => each(|i| quiet((1.0 / f64::from(f(a[i])).sqrt()) as f32)),
            Un32::Exp2 => each(|i| quiet(f64::from(f(a[i])).exp2() as f32)),
            Un32::Exp2Flush => {
                each(|i| flush32(quiet(f64::from(f(flush32(a[i]))).exp2() as f32)))
            }
            Un32::Log2 => each(|i| quiet(f64::from(f(a[i])).log2() as f32)),
            Un32::Tanh => each(|i| quiet(f64::from(f(a[i])).tanh() as f32)),
        };
        store(&mut r[d as usize], &value, mask);
    }
}

over_lanes! {
    /// `r[d] = op(r[a], r[b])` in the lanes of the mask.
    fn bin32(op: Bin32, r: &mut [V32], d: R, a: R, b: R, mask: u32) -> () {
        let (a, b) = (&r[a as usize].0, &r[b as usize].0);
        let value = match op {
            Bin32::Add => each(|i| a[i].wrapping_add(b[i])),
            Bin32::Sub => each(|i| a[i].wrapping_sub(b[i])),
            Bin32::Mul => each(|i| a[i].wrapping_mul(b[i])),
            Bin32::MulHiU => each(|i| ((u64::from(a[i]) * u64::from(b[i])) >> 32) as u32),
            Bin32::MulHiS => {
                each(|i| ((i64::from(a[i] as i32) * i64::from(b[i] as i32)) >> 32) as u32)
            }
            Bin32::MinU => each(|i| a[i].min(b[i])),
            Bin32::MinS => each(|i| (a[i] as i32).min(b[i] as i32) as u32),
            Bin32::MaxU => each(|i| a[i].max(b[i])),
            Bin32::MaxS => each(|i| (a[i] as i32).max(b[i] as i32) as u32),
            Bin32::And => each(|i| a[i] & b[i]),
            Bin32::Or => each(|i| a[i] | b[i]),
            Bin32::Xor => each(|i| a[i] ^ b[i]),
            Bin32::Shl => each(|i| if b[i] < 32 { a[i] << (b[i] & 31) } else { 0 }),
            Bin32::ShrU => each(|i| if b[i] < 32 { a[i] >> (b[i] & 31) } else { 0 }),
            Bin32::ShrS => each(|i| ((a[i] as i32) >> b[i].min(31)) as u32),
            Bin32::AddF => each(|i| quiet(f(a[i]) + f(b[i]))),
            Bin32::SubF => each(|i| quiet(f(a[i]) - f(b[i]))),
            Bin32::MulF => each(|i| quiet(f(a[i]) * f(b[i]))),
            Bin32::DivF => each(|i| quiet(f(a[i]) / f(b[i]))),
            Bin32::MinF => each(|i| minimum(a[i], b[i])),
            Bin32::MaxF => each(|i| maximum(a[i], b[i])),
            Bin32::PackHalves => each(|i| a[i] & 0xffff | b[i] << 16),
            Bin32::PackBf16 => each(|i| to_bf16(a[i]) << 16 | to_bf16(b[i])),
            Bin32::PackF16 => each(|i| to_f16(a[i]) << 16 | to_f16(b[i])),
        };
        store(&mut r[d as usize], &value, mask);
    }
}

#[inline(always)]
fn funnel(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

over_lanes! {
    /// `r[d] = op(r[a], r[b], r[c])` in the lanes of the mask.
    fn tri32(op: Tri32, r: &mut [V32], d: R, sources: [R; 3], mask: u32) -> () {
        let [a, b, c] = sources.map(|source| &r[source as usize].0);
        let value = match op {
            Tri32::Mad => each(|i| a[i].wrapping_mul(b[i]).wrapping_add(c[i])),
            Tri32::FmaF => each(|i| quiet(f(a[i]).mul_add(f(b[i]), f(c[i])))),
            Tri32::Lop3(table) => {
                let bit = |i: usize| u32::from(table >> i & 1);
                let row: [u32; 8] = std::array::from_fn(|i| bit(i).wrapping_neg());
                // One bit of the index after the other picks between halves of the table.
                let pick = |bit: u32, zero: u32, one: u32| zero ^ bit & (zero ^ one);
                each(|i| {
                    let by_c = |at: usize| pick(c[i], row[at], row[at + 1]);
                    let by_b = |at: usize| pick(b[i], by_c(at), by_c(at + 2));
                    pick(a[i], by_b(0), by_b(4))
                })
            }
            Tri32::ShfLeftWrap => each(|i| ((funnel(a[i], b[i]) << (c[i] & 31)) >> 32) as u32),
            Tri32::ShfRightWrap => each(|i| (funnel(a[i], b[i]) >> (c[i] & 31)) as u32),
            Tri32::ShfLeftClamp => each(|i| ((funnel(a[i], b[i]) << c[i].min(32)) >> 32) as u32),
            Tri32::ShfRightClamp => each(|i| (funnel(a[i], b[i]) >> c[i].min(32)) as u32),
            Tri32::BfeU => each(|i| {
                let field = u64::from(a[i]) >> (b[i] & 0xff).min(32);
                (field & ((1_u64 << (c[i] & 0xff).min(32)) - 1)) as u32
            }),
            Tri32::Prmt => each(|i| {
                let bytes = funnel(a[i], b[i]);
                let mut out = 0;
                for byte in 0..4 {
                    let selector = c[i] >> (4 * byte);
                    let value = (bytes >> (8 * (selector & 7))) as u8;
                    let sign = ((value as i8) >> 7) as u8;
                    let value = if selector & 8 != 0 { sign } else { value };
                    out |= u32::from(value) << (8 * byte);
                }
                out
            }),
        };
        store(&mut r[d as usize], &value, mask);
    }
}

over_lanes! {
    /// `q[d] = op(q[a], q[b])` in the lanes of the mask.
    fn bin64(op: Bin64, q: &mut [V64], d: Q, a: Q, b: Q, mask: u32) -> () {
        let (a, b) = (&q[a as usize].0, &q[b as usize].0);
        let value = match op {
            Bin64::Add => each64(|i| a[i].wrapping_add(b[i])),
            Bin64::Sub => each64(|i| a[i].wrapping_sub(b[i])),
            Bin64::Mul => each64(|i| a[i].wrapping_mul(b[i])),
            Bin64::And => each64(|i| a[i] & b[i]),
            Bin64::Or => each64(|i| a[i] | b[i]),
            Bin64::Xor => each64(|i| a[i] ^ b[i]),
            Bin64::AddF => each64(|i| (real(a[i]) + real(b[i])).to_bits()),
            Bin64::SubF => each64(|i| (real(a[i]) - real(b[i])).to_bits()),
            Bin64::MulF => each64(|i| (real(a[i]) * real(b[i])).to_bits()),
        };
        store64(&mut q[d as usize], &value, mask);
    }
}

over_lanes! {
    /// A fused multiply-add in f64.
    fn fma64(q: &mut [V64], d: Q, sources: [Q; 3], mask: u32) -> () {
        let [a, b, c] = sources.map(|source| &q[source as usize].0);
        let value = each64(|i| real(a[i]).mul_add(real(b[i]), real(c[i])).to_bits());
        store64(&mut q[d as usize], &value, mask);
    }
}

over_lanes! {
    /// A left shift of 64 bits.
    fn shl64(q: &mut [V64], d: Q, a: Q, b: &V32, mask: u32) -> () {
        let a = &q[a as usize].0;
        let value = each64(|i| if b.0[i] < 64 { a[i] << (b.0[i] & 63) } else { 0 });
        store64(&mut q[d as usize], &value, mask);
    }
}

over_lanes! {
    /// A right shift of 64 bits.
    fn shr64(signed: bool, q: &mut [V64], d: Q, a: Q, b: &V32, mask: u32) -> () {
        let a = &q[a as usize].0;
        let value = if signed {
            each64(|i| ((a[i] as i64) >> b.0[i].min(63)) as u64)
        } else {
            each64(|i| if b.0[i] < 64 { a[i] >> (b.0[i] & 63) } else { 0 })
        };
        store64(&mut q[d as usize], &value, mask);
    }
}

#[inline(always)]
fn product(signed: bool, a: u32, b: u32) -> u64 {
    if signed {
        (i64::from(a as i32) * i64::from(b as i32)) as u64
    } else {
        u64::from(a) * u64::from(b)
    }
}

over_lanes! {
    /// The 64-bit product of 32-bit values.
    fn mul_wide(signed: bool, d: &mut V64, a: &V32, b: &V32, mask: u32) -> () {
        let value = if signed {
            each64(|i| product(true, a.0[i], b.0[i]))
        } else {
            each64(|i| product(false, a.0[i], b.0[i]))
        };
        store64(d, &value, mask);
    }
}

over_lanes! {
    /// The 64-bit product of 32-bit values plus a 64-bit value.
    fn mad_wide(signed: bool, q: &mut [V64], d: Q, c: Q, a: &V32, b: &V32, mask: u32) -> () {
        let c = &q[c as usize].0;
        let value = if signed {
            each64(|i| product(true, a.0[i], b.0[i]).wrapping_add(c[i]))
        } else {
            each64(|i| product(false, a.0[i], b.0[i]).wrapping_add(c[i]))
        };
        store64(&mut q[d as usize], &value, mask);
    }
}

over_lanes! {
    /// A 32-bit value extended to 64 bits.
    fn extend(signed: bool, d: &mut V64, a: &V32, mask: u32) -> () {
        let value = if signed {
            each64(|i| i64::from(a.0[i] as i32) as u64)
        } else {
            each64(|i| u64::from(a.0[i]))
        };
        store64(d, &value, mask);
    }
}

over_lanes! {
    /// Bits `shift` to `shift + 31` of a 64-bit value.
    fn truncate(shift: u32, d: &mut V32, a: &V64, mask: u32) -> () {
        let value = each(|i| (a.0[i] >> shift) as u32);
        store(d, &value, mask);
    }
}

over_lanes! {
    /// A 64-bit value of two halves.
    fn pack64(d: &mut V64, low: &V32, high: &V32, mask: u32) -> () {
        let value = each64(|i| funnel(low.0[i], high.0[i]));
        store64(d, &value, mask);
    }
}

over_lanes! {
    /// `r[a]` in the lanes of `bits` and `r[b]` in the others.
    fn select32(bits: u32, r: &mut [V32], d: R, a: R, b: R, mask: u32) -> () {
        let (a, b) = (&r[a as usize].0, &r[b as usize].0);
        let value = each(|i| b[i] ^ (bits >> i & 1).wrapping_neg() & (a[i] ^ b[i]));
        store(&mut r[d as usize], &value, mask);
    }
}

over_lanes! {
    /// `q[a]` in the lanes of `bits` and `q[b]` in the others.
    fn select64(bits: u32, q: &mut [V64], d: Q, a: Q, b: Q, mask: u32) -> () {
        let (a, b) = (&q[a as usize].0, &q[b as usize].0);
        let value = each64(|i| b[i] ^ u64::from(bits >> i & 1).wrapping_neg() & (a[i] ^ b[i]));
        store64(&mut q[d as usize], &value, mask);
    }
}

over_lanes! {
    /// Writes a register in the lanes of a mask.
    fn put32(d: &mut V32, value: &V32, mask: u32) -> () {
        store(d, value, mask);
    }
}

over_lanes! {
    /// Writes a register in the lanes of a mask.
    fn put64(d: &mut V64, value: &V64, mask: u32) -> () {
        store64(d, value, mask);
    }
}

over_lanes! {
    /// The lanes for which a comparison holds.
    fn compare32(op: Compare, a: &V32, b: &V32) -> u32 {
        let (a, b) = (&a.0, &b.0);
        match op {
            Compare::Eq => each_bit(|i| a[i] == b[i]),
            Compare::Ne => each_bit(|i| a[i] != b[i]),
            Compare::LtU => each_bit(|i| a[i] < b[i]),
            Compare::LeU => each_bit(|i| a[i] <= b[i]),
            Compare::GtU => each_bit(|i| a[i] > b[i]),
            Compare::GeU => each_bit(|i| a[i] >= b[i]),
            Compare::LtS => each_bit(|i| (a[i] as i32) < b[i] as i32),
            Compare::LeS => each_bit(|i| a[i] as i32 <= b[i] as i32),
            Compare::GtS => each_bit(|i| a[i] as i32 > b[i] as i32),
            Compare::GeS => each_bit(|i| a[i] as i32 >= b[i] as i32),
            Compare::EqF => each_bit(|i| f(a[i]) == f(b[i])),
            Compare::NeF => each_bit(|i| f(a[i]) < f(b[i]) || f(a[i]) > f(b[i])),
            Compare::LtF => each_bit(|i| f(a[i]) < f(b[i])),
            Compare::LeF => each_bit(|i| f(a[i]) <= f(b[i])),
            Compare::GtF => each_bit(|i| f(a[i]) > f(b[i])),
            Compare::GeF => each_bit(|i| f(a[i]) >= f(b[i])),
            Compare::EqUF => !each_bit(|i| f(a[i]) < f(b[i]) || f(a[i]) > f(b[i])),
            Compare::NeUF => each_bit(|i| f(a[i]) != f(b[i])),
            Compare::LtUF => !each_bit(|i| f(a[i]) >= f(b[i])),
            Compare::LeUF => !each_bit(|i| f(a[i]) > f(b[i])),
            Compare::GtUF => !each_bit(|i| f(a[i]) <= f(b[i])),
            Compare::GeUF => !each_bit(|i| f(a[i]) < f(b[i])),
        }
    }
}

over_lanes! {
    /// The lanes for which an integer comparison holds.
    fn compare64(op: Compare, a: &V64, b: &V64) -> u32 {
        let (a, b) = (&a.0, &b.0);
        match op {
            Compare::Eq => each_bit(|i| a[i] == b[i]),
            Compare::Ne => each_bit(|i| a[i] != b[i]),
            Compare::LtU => each_bit(|i| a[i] < b[i]),
            Compare::LeU => each_bit(|i| a[i] <= b[i]),
            Compare::GtU => each_bit(|i| a[i] > b[i]),
            Compare::GeU => each_bit(|i| a[i] >= b[i]),
            Compare::LtS => each_bit(|i| (a[i] as i64) < b[i] as i64),
            Compare::LeS => each_bit(|i| a[i] as i64 <= b[i] as i64),
            Compare::GtS => each_bit(|i| a[i] as i64 > b[i] as i64),
            Compare::GeS => each_bit(|i| a[i] as i64 >= b[i] as i64),
            // The decoder compares f64 lane by lane.
            _ => 0,
        }
    }
}

/// A stretch of memory: device address, length less that of the access, and host address.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    pub(crate) base: u64,
    pub(crate) last: u64,
    pub(crate) host: *mut u8,
}

over_lanes! {
    /// Host addresses for 32-bit device addresses plus an offset, if all lanes of the mask are in
    /// the region and aligned. It may refuse what lies within, but never allows what does not.
    fn locate32(
        base: &V32,
        offset: i64,
        mask: u32,
        region: Region,
        alignment: u32,
        pointers: &mut [*mut u8; LANES]
    ) -> bool {
        // Below this no sum of a base and an offset can wrap around.
        const SMALL: u32 = 1 << 30;
        let limit = i64::from(SMALL);
        let end = region.base.saturating_add(region.last);
        if end >= u64::from(SMALL) || !(-limit..limit).contains(&offset) {
            return false;
        }
        let (start, last) = (region.base as u32, region.last as u32);
        let mut outside = 0;
        for lane in 0..LANES {
            let address = base.0[lane].wrapping_add(offset as u32);
            let place = address.wrapping_sub(start);
            let wrong = u32::from(place > last) | (address & (alignment - 1));
            let wrong = wrong | (base.0[lane] & !(SMALL - 1));
            outside |= wrong & (mask >> lane & 1).wrapping_neg();
            pointers[lane] = region.host.wrapping_add(place as usize);
        }
        outside == 0
    }
}

over_lanes! {
    /// Host addresses for 64-bit device addresses plus an offset, if all lanes of the mask are in
    /// the region and aligned.
    fn locate64(
        base: &V64,
        offset: i64,
        mask: u32,
        region: Region,
        alignment: u32,
        pointers: &mut [*mut u8; LANES]
    ) -> bool {
        let mut outside = 0;
        for lane in 0..LANES {
            let address = base.0[lane].wrapping_add(offset as u64);
            let place = address.wrapping_sub(region.base);
            let wrong = u64::from(place > region.last) | (address & u64::from(alignment - 1));
            outside |= wrong & u64::from(mask >> lane & 1).wrapping_neg();
            pointers[lane] = region.host.wrapping_add(place as usize);
        }
        outside == 0
    }
}

#[cfg(test)]
mod tests;
