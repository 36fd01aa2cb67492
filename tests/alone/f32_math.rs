//! f32 products on tensor cores, as sums of two tf32 numbers, next to those on FMA units: as
//! accurate against float64, on tensor cores that cut sums, and right for what is not finite.
//!
//! tests/kernels/ops.rs runs both through everything else.

use std::sync::Arc;

use cuda_emulator::{Accumulator, Config};
use fused_dora::reference::{self, Case};
use fused_dora::{Dtype, F32Math, Gradients, Kernels, Norm, Tiles};
use fused_dora_testkit::random::{fresh_seed, normal, random_case};
use fused_dora_testkit::run::{Layer, Runner};
use fused_dora_testkit::settings::on_device;
use half::bf16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const MATHS: [F32Math; 2] = [F32Math::Fma, F32Math::Tf32x3];

/// 2⁻²⁴, half a step of numbers just above 1.
const U: f64 = 1.0 / (1 << 24) as f64;

/// What the device makes of both products: y and dX.
fn run(case: &Case, math: F32Math) -> [Vec<f32>; 2] {
    let accumulator = Accumulator::AlignedTruncate;
    let config = Config { accumulator, sanitizer: false, ..Config::default() };
    on_device(&config, |device| {
        let kernels = Kernels::load(&device.context).expect("kernels");
        // Small tiles, which so few tokens would be given, have FMAs alone.
        let kernels = kernels.with_tiles(Some(Tiles::Large)).with_f32_math(math);
        let runner = Runner::with_kernels(&Arc::new(kernels));
        let mut layer = Layer::<f32>::new(&runner, case).expect("a layer");
        layer.micro_batch(case, Gradients::Overwrite).expect("a micro-batch")
    })
}

/// A plain layer with x and dY from `left`, and W from `right`.
fn plain(
    random: &mut StdRng,
    [tokens, inputs, outputs]: [usize; 3],
    mut left: impl FnMut(&mut StdRng) -> f64,
    mut right: impl FnMut(&mut StdRng) -> f64,
) -> Case {
    let mut case = random_case(random, [tokens, inputs, outputs, 0], Norm::None, false);
    case.input.iter_mut().chain(&mut case.grad_output).for_each(|x| *x = left(random));
    case.weight.iter_mut().for_each(|w| *w = right(random));
    case.rounded(Dtype::F32)
}

/// The case with the absolute value of every element.
fn absolute(case: &Case) -> Case {
    let mut case = case.clone();
    let Case { input, weight, grad_output, .. } = &mut case;
    input.iter_mut().chain(weight).chain(grad_output).for_each(|x| *x = x.abs());
    case
}

/// The errors' largest and root-mean-square value, in u·Σ|a||b| of each element; and the latter of
/// errors over that of values, in u.
struct Errors {
    largest: f64,
    mean: f64,
    relative: f64,
}

impl std::fmt::Display for Errors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { largest, mean, relative } = self;
        write!(f, "{largest:.2} at most, {mean:.2} rms, {relative:.2} of the values' rms")
    }
}

fn errors(found: &[f32], expected: &[f64], absolute: &[f64]) -> Errors {
    let each = || found.iter().zip(expected).map(|(&found, expected)| f64::from(found) - expected);
    let scaled: Vec<_> = each().zip(absolute).map(|(error, sum)| error.abs() / (U * sum)).collect();
    let rms =
        |values: &[f64]| (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt();
    Errors {
        largest: scaled.iter().copied().fold(0.0, f64::max),
        mean: rms(&scaled),
        relative: rms(&each().collect::<Vec<_>>()) / rms(expected) / U,
    }
}

/// No larger errors than FMAs make, up to what splitting a factor misses, and far from what
/// accumulation in f32 may make: 64u(1 + K/4096) of Σ|a||b|.
#[test]
fn tensor_cores_are_as_accurate_as_fma_units() {
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let power = |exponent: i32| move |random: &mut StdRng| normal(random) * 2f64.powi(exponent);
    let positive = |random: &mut StdRng| normal(random).abs();
    let wide = |random: &mut StdRng| normal(random) * 2f64.powi(random.random_range(-24..=24));
    for depth in [64, 4096] {
        let check = |name: &str, case: Case, which: usize| {
            let reference = |case: &Case| {
                let results = reference::evaluate(case).expect("a consistent case");
                [results.output, results.grad_input]
            };
            let (expected, sums) = (reference(&case), reference(&absolute(&case)));
            let [fma, split] = MATHS.map(|math| {
                let found = run(&case, math);
                errors(&found[which], &expected[which], &sums[which])
            });
            let product = ["y", "dX"][which];
            println!("{product}, K = {depth}, {name}:\n  FMA   {fma}\n  split {split}");
            let bound = 64.0 * (1.0 + depth as f64 / 4096.0);
            assert!(split.largest <= bound / 4.0, "{product} {name}: {split}, bound {bound}");
            // Two factors that miss up to 4u each, a product of small parts left out of up to 4u,
            // and tensor cores' sums of eight products cut three times.
            assert!(split.mean <= fma.mean + 2.0, "{product} {name}: {split}, FMA {fma}");
        };
        for (which, shape) in [[12, depth, 20], [12, 20, depth]].into_iter().enumerate() {
            let mut case = |left: &dyn Fn(&mut StdRng) -> f64,
                            right: &dyn Fn(&mut StdRng) -> f64| {
                plain(&mut random, shape, left, right)
            };
            check("positive", case(&positive, &positive), which);
            if depth == 64 || which == 0 {
                check("normal", case(&power(0), &power(0)), which);
                check("wide", case(&wide, &wide), which);
            }
            if depth == 64 && which == 0 {
                check("large", case(&power(60), &power(58)), which);
                check("small", case(&power(-50), &power(-52)), which);
            }
        }
    }
}

/// Subnormal factors keep what tf32 has of them: an error of 2⁻¹³⁶ each.
#[test]
fn subnormal_factors_lose_no_more_than_documented() {
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let tiny = |random: &mut StdRng| normal(random) * 2f64.powi(-128);
    let huge = |random: &mut StdRng| normal(random) * 2f64.powi(110);
    let case = plain(&mut random, [24, 512, 20], tiny, huge);
    let expected = reference::forward(&case).expect("a consistent case");
    let [y, _] = run(&case, F32Math::Tf32x3);
    let rows = case.weight.chunks(case.in_features).cycle();
    for ((found, expected), row) in y.into_iter().zip(expected).zip(rows) {
        let error = (f64::from(found) - expected).abs();
        let bound = 2f64.powi(-136) * row.iter().map(|w| w.abs()).sum::<f64>();
        assert!(error <= bound, "{found:e} for {expected:e}: {error:e}, bound {bound:e}");
    }
}

/// Tiles with infinities, NaNs and numbers that tf32 has not are those of the FMA units, bit by bit.
#[test]
fn what_is_not_finite_or_nearly_so_is_as_on_fma_units() {
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let unit = |random: &mut StdRng| random.random_range(0.25..0.5);
    let specials = [
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::from_bits(0x7fff_ffff),
        f32::from_bits(0x7f80_0001),
        f32::MAX,
        -f32::MAX,
    ];
    // Two rows of tiles, and the special numbers in one of them, a token each.
    let mut case = plain(&mut random, [150, 40, 24], unit, unit);
    for (token, special) in specials.into_iter().enumerate() {
        case.input[token * case.in_features + 11] = special.into();
        case.grad_output[token * case.out_features + 13] = special.into();
    }
    let [fma, split] = MATHS.map(|math| run(&case, math));
    for (fma, split) in fma.iter().zip(&split) {
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let columns = fma.len() / case.tokens;
        let tile = 128 * columns;
        assert_eq!(bits(&fma[..tile]), bits(&split[..tile]));
        assert!(split[tile..].iter().all(|v| v.is_finite()));
        for (special, row) in specials.into_iter().zip(split.chunks(columns)) {
            let kept = |v: &f32| match special {
                special if special.is_nan() => v.is_nan(),
                special if special.is_infinite() => *v == special,
                _ => v.is_finite(),
            };
            assert!(row.iter().all(kept), "{special:e}: {row:?}");
        }
    }
}

/// A NaN of A reaches the norms, those of all ones too, which GPUs make.
#[test]
fn a_nan_of_the_adapter_reaches_the_norm() {
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for bits in [0x7fff_ffff, 0xffff_ffff, 0x7fc0_0000] {
        let mut case = random_case(&mut random, [0, 40, 24, 4], Norm::Input, false);
        case = case.rounded(Dtype::Bf16);
        case.lora_a[11] = f32::from_bits(bits).into();
        let [norms, _] = on_device(&Config::default(), |device| {
            let runner = Runner::new(&device.context).expect("kernels");
            let layer = Layer::<bf16>::new(&runner, &case).expect("a layer");
            layer.norm_and_gain().expect("c and g")
        });
        let nan: Vec<_> = (0..norms.len()).filter(|&column| norms[column].is_nan()).collect();
        assert_eq!(nan, [11], "{bits:#x}");
    }
}
