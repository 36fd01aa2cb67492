//! What codes stand for: the tables of 4 bits, the map of nested scales, fp8 e4m3.

use super::Code4;

/// NF4, as bitsandbytes' kernels have it.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// What bitsandbytes' kernel cuts NF4 by: the midpoints of the code, in f32.
const NF4_CUTS: [f32; 15] = {
    let mut cuts = [0.0; 15];
    let mut code = 0;
    while code < 15 {
        cuts[code] = (NF4[code] + NF4[code + 1]) / 2.0;
        code += 1;
    }
    cuts
};

/// FP4 without its sign, which is bit 3.
const FP4: [f32; 8] =
    [0.0, 0.005_208_333_5, 0.666_666_7, 1.0, 0.333_333_34, 0.5, 0.166_666_67, 0.25];

/// What bitsandbytes' CUDA kernel cuts magnitudes of FP4 by, and the codes between the cuts. The
/// cuts are not the midpoints of the code.
const FP4_CUTS: [f32; 7] =
    [0.002_604_17, 0.085_937_5, 0.208_333_33, 0.291_666_67, 0.416_666_7, 0.583_333, 0.833_333_3];
const FP4_BY_SIZE: [u8; 8] = [0, 1, 6, 7, 4, 5, 2, 3];

impl Code4 {
    /// The number of each code, to be multiplied by its block's scale.
    pub const fn table(self) -> [f32; 16] {
        match self {
            Self::Nf4 => NF4,
            Self::Fp4 => {
                let mut table = [0.0; 16];
                let mut code = 0;
                while code < 8 {
                    table[code] = FP4[code];
                    // The second zero is positive, too.
                    table[code + 8] = 0.0 - FP4[code];
                    code += 1;
                }
                table
            }
        }
    }

    /// The code of an element over its block's scale, as bitsandbytes' CUDA kernel chooses it: NaN
    /// has code 0.
    pub fn nearest(self, value: f32) -> u8 {
        match self {
            Self::Nf4 => NF4_CUTS.partition_point(|cut| value > *cut) as u8,
            Self::Fp4 => {
                let above = FP4_CUTS.iter().filter(|cut| value.abs() > **cut).count();
                FP4_BY_SIZE[above] + if value < 0.0 { 8 } else { 0 }
            }
        }
    }
}

/// bitsandbytes' signed dynamic map of 8 bits, `nested_quant_map` in files: what it makes nested scales
/// of. Seven decades, each with twice as many numbers as the one below it, 0 and 1, sorted.
pub fn dynamic_map() -> Vec<f32> {
    let mut map = vec![0.0, 1.0];
    for decade in 0..7 {
        let (steps, size) = (1usize << decade, 10f64.powi(decade - 6) as f32);
        let step = (1.0 - 0.1f32) / steps as f32;
        // `linspace(0.1, 1)`, counted from the nearer end and by one rounding, as PyTorch has it.
        let end = |index: usize| match index < steps.div_ceil(2) {
            true => step.mul_add(index as f32, 0.1),
            false => step.mul_add(-((steps - index) as f32), 1.0),
        };
        for index in 0..steps {
            let mean = (end(index) + end(index + 1)) / 2.0;
            map.extend([size * mean, -(size * mean)]);
        }
    }
    map.sort_by(f32::total_cmp);
    map
}

/// The place in the map that bitsandbytes' CUDA kernel gives a number from −1 to 1.
pub(super) fn nearest_in_map(map: &[f32], value: f32) -> u8 {
    let (mut pivot, mut above, mut below) = (127, 255, 0);
    for step in [64, 32, 16, 8, 4, 2, 1] {
        if value > map[pivot] {
            below = pivot;
            pivot += step;
        } else {
            above = pivot;
            pivot -= step;
        }
    }
    let middle = |other: usize| (map[other] + map[pivot]) * 0.5;
    let place = match value > map[pivot] {
        true if value > middle(above) => above,
        false if value < middle(below) => below,
        _ => pivot,
    };
    place as u8
}

/// The largest number of fp8 e4m3.
pub(super) const FP8_MAX: f32 = 448.0;

/// The number of an fp8 e4m3 code: 4 bits of exponent, 3 of mantissa, no infinities, 0x7f and 0xff
/// are NaN.
pub fn fp8_to_f32(code: u8) -> f32 {
    // The bits are those of an f32 with another bias of the exponent, subnormal numbers included.
    let bits = u32::from(code & 0x80) << 24 | u32::from(code & 0x7f) << 20;
    match code & 0x7f {
        0x7f => f32::NAN.copysign(f32::from_bits(bits)),
        _ => f32::from_bits(bits) * power_of_two(120),
    }
}

/// 2 to a power from −126 to 127.
const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// The fp8 e4m3 code nearest to a number, ties to even; beyond ±448, the code of ±448.
pub fn fp8_from_f32(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    if value.is_nan() {
        return sign | 0x7f;
    }
    let magnitude = value.abs().min(FP8_MAX);
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    // A power of two has eight units of the last place. Rounding up to eight more gives the next
    // exponent.
    let units = (magnitude * power_of_two(3 - exponent)).round_ties_even() as i32;
    sign | (8 * (exponent + 6) + units) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the definition: a sign, 4 bits of exponent with the bias 7, 3 of mantissa.
    #[test]
    fn fp8_is_e4m3() {
        for code in 0..=0xffu8 {
            let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7) / 8.0);
            let expected = match (exponent, code & 7) {
                (15, 7) => f32::NAN,
                (0, _) => mantissa * 2f32.powi(-6),
                _ => (1.0 + mantissa) * 2f32.powi(exponent - 7),
            };
            let found = fp8_to_f32(code);
            assert_eq!(found.is_sign_negative(), code > 0x7f, "{code:#x}");
            assert!(found.abs() == expected || found.is_nan() && expected.is_nan(), "{code:#x}");
        }
    }

    /// Each code of fp8 is the nearest to itself, and numbers between two go to the nearer one.
    #[test]
    fn fp8_rounds_to_nearest_even() {
        for code in (0..=0x7e).chain(0x80..=0xfe) {
            assert_eq!(fp8_from_f32(fp8_to_f32(code)), code, "{code:#x}");
        }
        for code in 0..0x7e {
            let [low, high] = [code, code + 1].map(fp8_to_f32);
            let middle = (low + high) / 2.0;
            let even = if code % 2 == 0 { code } else { code + 1 };
            assert_eq!(fp8_from_f32(middle), even, "{middle}");
            assert_eq!(fp8_from_f32(middle.next_up()), code + 1, "{middle}");
            assert_eq!(fp8_from_f32(-middle.next_down()), code | 0x80, "{middle}");
        }
        assert_eq!([1e30, f32::INFINITY, -1e30].map(fp8_from_f32), [0x7e, 0x7e, 0xfe]);
        assert!(fp8_to_f32(fp8_from_f32(f32::NAN)).is_nan());
    }

    #[test]
    fn codes_of_4_bits_are_nearest_to_themselves() {
        for code in [Code4::Nf4, Code4::Fp4] {
            for (index, value) in code.table().into_iter().enumerate() {
                // FP4 has two zeros.
                let expected = if value == 0.0 && code == Code4::Fp4 { 0 } else { index as u8 };
                assert_eq!(code.nearest(value), expected, "{code:?} {value}");
            }
            assert_eq!(code.nearest(f32::NAN), 0);
        }
    }

    #[test]
    fn the_map_is_sorted_and_numbers_find_their_place() {
        let map = dynamic_map();
        assert_eq!((map.len(), map[127], map[255]), (256, 0.0, 1.0));
        assert!(map.is_sorted_by(|a, b| a < b));
        for (place, value) in map.iter().enumerate() {
            assert_eq!(usize::from(nearest_in_map(&map, *value)), place, "{value}");
        }
        for place in 0..255 {
            let middle = (map[place] + map[place + 1]) * 0.5;
            let found = [middle.next_down(), middle.next_up()].map(|it| nearest_in_map(&map, it));
            assert_eq!(found, [place as u8, place as u8 + 1], "{middle}");
        }
    }
}
