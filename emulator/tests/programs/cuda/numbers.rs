//! Random numbers, and how far numbers are apart.

use std::time::{SystemTime, UNIX_EPOCH};

/// A generator of random numbers (SplitMix64), seeded by the time. Tests name the seed where they
/// fail.
pub struct Random {
    pub seed: u64,
    state: u64,
}

impl Random {
    pub fn new() -> Self {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
        let seed = time.as_nanos() as u64;
        Self { seed, state: seed }
    }

    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number from a range, evenly.
    pub fn within(&mut self, from: f64, to: f64) -> f64 {
        from + (to - from) * (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A floating-point type of the device.
pub trait Real: Copy + Default {
    /// Its name in CUDA.
    const NAME: &'static str;
    fn narrow(value: f64) -> Self;
    fn widen(self) -> f64;
    fn from_bits(bits: u64) -> Self;
    /// The numbers in their order, counted from zero.
    fn order(self) -> i64;
    /// Zeros, infinities, NaN, and the ends of the normal and the subnormal numbers.
    fn specials() -> Vec<Self>;
}

macro_rules! real {
    ($type:ident, $bits:ident, $signed:ident, $name:literal) => {
        impl Real for $type {
            const NAME: &'static str = $name;

            fn narrow(value: f64) -> Self {
                value as $type
            }

            fn widen(self) -> f64 {
                self.into()
            }

            fn from_bits(bits: u64) -> Self {
                Self::from_bits(bits as $bits)
            }

            fn order(self) -> i64 {
                let magnitude = self.abs().to_bits() as $signed;
                i64::from(if self.is_sign_negative() { -magnitude } else { magnitude })
            }

            fn specials() -> Vec<Self> {
                let (tiny, normal) = (Self::from_bits(1), Self::MIN_POSITIVE);
                let positive = [0.0, tiny, normal, 0.5, 1.0, 2.0, 3.0, Self::MAX, Self::INFINITY];
                positive.into_iter().flat_map(|x| [x, -x]).chain([Self::NAN]).collect()
            }
        }
    };
}

real!(f32, u32, i32, "float");
real!(f64, u64, i64, "double");

/// How far two numbers are apart, in units of the last place; zeros of unlike signs, and NaN and a
/// number, are as far apart as can be.
pub fn distance<T: Real>(a: T, b: T) -> u64 {
    match (a.widen().is_nan(), b.widen().is_nan()) {
        (true, true) => 0,
        (false, false) => {
            let zeros = a.order() == 0 && b.order() == 0;
            if zeros && a.widen().is_sign_negative() != b.widen().is_sign_negative() {
                return u64::MAX;
            }
            a.order().abs_diff(b.order())
        }
        _ => u64::MAX,
    }
}
