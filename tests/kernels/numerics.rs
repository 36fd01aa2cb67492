//! What the crate promises about its numbers beyond the error bounds that `ops` compares
//! with: small changes of the adapter arrive in the output, whatever the dtype rounds away.
//!
//! Promises that depend on how the device adds and schedules are in tests/alone, and that a
//! fresh adapter changes nothing is in `init`.

use fused_dora::quant::{BlockScales, Code4, QuantizedWeight, WeightFormat};
use fused_dora::reference::{self, Case};
use fused_dora::{Dtype, Element, Norm, NormGrad};
use fused_dora_testkit::compare::failures;
use fused_dora_testkit::random::{NORMS, fresh_seed, normal, random_case};
use fused_dora_testkit::run::{Layer, Runner};
use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn runner() -> Runner {
    let context = fused_dora_testkit::device::open().expect("a device");
    Runner::new(&context).expect("kernels")
}

const AXES: [Norm; 2] = [Norm::Input, Norm::Output];

fn norm_and_gain<E: Element>(runner: &Runner, case: &Case) -> [Vec<f32>; 2] {
    let layer = Layer::<E>::new(runner, case).expect("a layer");
    layer.norm_and_gain().expect("c and g")
}

fn forward<E: Element>(runner: &Runner, case: &Case) -> Vec<f64> {
    let mut layer = Layer::<E>::new(runner, case).expect("a layer");
    layer.forward(case).expect("y").into_iter().map(f64::from).collect()
}

/// c and g have an f32's accuracy whatever the dtype, and m its resolution: a change of 1e-6 of m
/// is one of 1e-6 of g.
fn norms_and_gains_are_f32<E: Element>() {
    let runner = runner();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for norm in AXES {
        let mut case = random_case(&mut random, [0, 150, 210, 20], norm, false).rounded(E::DTYPE);
        let [c, g] = norm_and_gain::<E>(&runner, &case);
        let expected = case.norms().expect("a consistent case");
        for (i, expected) in expected.into_iter().enumerate() {
            approx::assert_relative_eq!(f64::from(c[i]), expected, max_relative = 1e-6);
            let gain = case.magnitude[i] / expected;
            approx::assert_relative_eq!(f64::from(g[i]), gain, max_relative = 1e-6);
        }
        case.magnitude.iter_mut().for_each(|m| *m *= 1.0 + 1e-6);
        let [_, moved] = norm_and_gain::<E>(&runner, &case);
        for (g, moved) in g.into_iter().zip(moved) {
            // m and g are each rounded to f32 before and after: 4 roundings of 2⁻²⁴.
            let change = f64::from(moved) / f64::from(g) - 1.0;
            assert!((change - 1e-6).abs() <= 4.0 * 2f64.powi(-24), "g changed by {change:e}");
        }
    }
}

#[test]
fn norms_and_gains_are_f32_in_every_dtype() {
    norms_and_gains_are_f32::<bf16>();
    norms_and_gains_are_f32::<f16>();
    norms_and_gains_are_f32::<f32>();
}

/// The measured change of y projected on the true one: 1 where the change arrives in full.
fn slope<E: Element>(runner: &Runner, before: &Case, after: &Case) -> f64 {
    let (before, after) = (before.rounded(E::DTYPE), after.rounded(E::DTYPE));
    let difference = |from: Vec<f64>, to: Vec<f64>| -> Vec<f64> {
        from.into_iter().zip(to).map(|(from, to)| to - from).collect()
    };
    let [y, moved] = [&before, &after].map(|case| reference::forward(case).expect("a case"));
    let expected = difference(y, moved);
    let measured = difference(forward::<E>(runner, &before), forward::<E>(runner, &after));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(&measured, &expected) / dot(&expected, &expected)
}

/// The rank of the layers below.
const RANK: usize = 2;

/// A layer with W ~ N(0, 0.02²), A ~ N(0, 1) and B = 0. Its tokens are combinations of A's rows, of
/// lengths from √I/2 to 3√I/2: an adapter's delta then moves y √(I/r) times as far as it moves
/// random tokens.
fn base_layer(random: &mut StdRng, [tokens, inputs, outputs]: [usize; 3], norm: Norm) -> Case {
    let normals = |random: &mut StdRng, count: usize, deviation: f64| -> Vec<f64> {
        (0..count).map(|_| deviation * normal(random)).collect()
    };
    let weight = normals(random, outputs * inputs, 0.02);
    let lora_a = normals(random, RANK * inputs, 1.0);
    let mut input = Vec::new();
    for _ in 0..tokens {
        let factors = normals(random, RANK, 1.0);
        let mut token = vec![0.0; inputs];
        for (row, factor) in lora_a.chunks(inputs).zip(factors) {
            token.iter_mut().zip(row).for_each(|(x, a)| *x += factor * a);
        }
        let length = token.iter().map(|x| x * x).sum::<f64>().sqrt();
        let scale = random.random_range(0.5..1.5) * (inputs as f64).sqrt() / length;
        input.extend(token.into_iter().map(|x| scale * x));
    }
    Case {
        tokens,
        in_features: inputs,
        out_features: outputs,
        rank: RANK,
        scaling: 1.0,
        norm,
        norm_grad: NormGrad::Detached,
        input,
        weight,
        bias: None,
        lora_a,
        lora_b: vec![0.0; outputs * RANK],
        magnitude: Vec::new(),
        grad_output: vec![0.0; tokens * outputs],
        dropout: None,
    }
}

/// An adapter's delta of 1e-6, 1/20000 of W, arrives in y; W' merged in bf16 would lose nearly all of
/// it.
///
/// Statistics: an ulp of y is 0.0056|y| on average (bf16), and rounding turns a change d into 0 or
/// an ulp, right on average, with variance ulp·|d|. With y = x·w and d = x·b for tokens of length
/// x, E x⁴ = 1.3(E x²)², and normal w and b with σ_b/σ_w = 1e-6·√(I/r)/0.02 = 2.8e-4, the slope over
/// N outputs has the variance Σ ulp|d|³/(Σ d²)² = 0.0056·1.3·0.8·1.6/(2.8e-4·N), a deviation of
/// 5.8/√N = 0.0020 for N = 2²³. f16's ulps are an eighth: 0.0015 for N = 2²¹. Rounding A (I = 64
/// elements a row, the same in every output) adds about 2⁻⁹/√64 = 2.4e-4.
fn adapter_slope<E: Element>(tokens: usize) {
    if fused_dora_testkit::device::is_repeated("statistics of one schedule are enough") {
        return;
    }
    let runner = runner();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for norm in AXES {
        let before = base_layer(&mut random, [tokens, 64, 2048], norm).rounded(E::DTYPE);
        check_adapter_slope::<E>(&runner, before, &mut random);
    }
}

/// An adapter of a delta of 1e-6 on a layer without one.
fn check_adapter_slope<E: Element>(runner: &Runner, mut before: Case, random: &mut StdRng) {
    before.magnitude = before.norms().expect("a consistent case");
    let mut after = before.clone();
    let deviation = 1e-6 / (RANK as f64).sqrt();
    after.lora_b.iter_mut().for_each(|b| *b = deviation * normal(random));
    let slope = slope::<E>(runner, &before, &after);
    let norm = before.norm;
    println!("{norm:?} {}: slope {slope:.4}", E::DTYPE);
    assert!((slope - 1.0).abs() <= 0.01, "{norm:?} {}: slope {slope:.4}", E::DTYPE);
}

#[test]
fn a_small_adapter_arrives_in_bf16() {
    adapter_slope::<bf16>(4096);
}

#[test]
fn a_small_adapter_arrives_in_f16() {
    adapter_slope::<f16>(1024);
}

/// The same on W in NF4, whose steps are a tenth of W: packing W' would keep nothing of the delta.
///
/// Statistics: as above with σ_b/σ_w = 4e-4 (I = 128) and N = 2²² outputs, a deviation of 0.0024.
#[test]
fn a_small_adapter_arrives_on_nf4() {
    if fused_dora_testkit::device::is_repeated("statistics of one schedule are enough") {
        return;
    }
    let (code, scales) = (Code4::Nf4, BlockScales::Nested);
    let format = WeightFormat::Code4 { code, block: 64, scales, state: Dtype::Bf16 };
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for norm in AXES {
        let mut before = base_layer(&mut random, [4096, 128, 1024], norm).rounded(bf16::DTYPE);
        let values: Vec<f32> = before.weight.iter().map(|&value| value as f32).collect();
        let shape = [before.out_features, before.in_features];
        let packed = QuantizedWeight::quantize(&values, shape, format).expect("a packed W");
        let stands_for = packed.dequantize::<bf16>();
        before.weight = stands_for.iter().map(|value| f64::from(value.to_f32())).collect();
        let runner = runner().with_packed(packed);
        check_adapter_slope::<bf16>(&runner, before, &mut random);
    }
}

/// ‖found − expected‖ / ‖expected‖.
fn relative_error(found: &[f32], expected: &[f64]) -> f64 {
    let errors = found.iter().zip(expected).map(|(&f, e)| (f64::from(f) - e).powi(2));
    (errors.sum::<f64>() / expected.iter().map(|e| e * e).sum::<f64>()).sqrt()
}

/// f16 has no normal numbers below 2⁻¹⁴, and s·B may be far smaller. P and dA are as exact then as for
/// any other adapter: rounding g∘s·B and P to 11 bits costs each element up to 2⁻¹¹, and dA, a sum of
/// many, about 3e-4.
#[test]
fn gradients_of_small_and_large_adapters_in_f16() {
    let runner = runner();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for norm in NORMS {
        for exponent in -8..=1 {
            let mut case = random_case(&mut random, [70, 96, 130, 6], norm, true);
            let size = 10f64.powi(exponent);
            case.lora_b.iter_mut().for_each(|b| *b = size * normal(&mut random));
            let norms = case.norms().expect("a consistent case");
            case.magnitude = norms.iter().map(|c| c * random.random_range(0.8..1.25)).collect();
            let case = case.rounded(f16::DTYPE);
            let found = runner.run(&case, f16::DTYPE).expect("a run");
            let failures = failures(&case, f16::DTYPE, &found, [None; 6]).expect("a case");
            assert!(failures.is_empty(), "{norm:?}, B of {size:e}: {}", failures.join("\n"));
            let expected = reference::evaluate(&case).expect("a consistent case");
            for (what, found, expected) in
                [("dA", &found[2], &expected.grad_lora_a), ("dB", &found[3], &expected.grad_lora_b)]
            {
                let error = relative_error(found, expected);
                assert!(error <= 1e-3, "{norm:?}, B of {size:e}: {what} is off by {error:e}");
            }
        }
    }
}

/// Halving B halves dA, bit for bit, although f16 could not hold B.
#[test]
fn halves_of_small_adapters_in_f16() {
    let runner = runner();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let mut case = random_case(&mut random, [70, 96, 130, 6], Norm::None, false);
    case.lora_b.iter_mut().for_each(|b| *b *= 2f64.powi(-8));
    let case = case.rounded(f16::DTYPE);
    let [_, _, whole, ..] = runner.run(&case, f16::DTYPE).expect("a run");
    for halvings in [1, 5, 20] {
        let factor = 2f64.powi(-halvings);
        let mut smaller = case.clone();
        smaller.lora_b.iter_mut().for_each(|b| *b *= factor);
        let [_, _, found, ..] = runner.run(&smaller, f16::DTYPE).expect("a run");
        let expected: Vec<f32> = whole.iter().map(|da| da * factor as f32).collect();
        assert!(found == expected, "{halvings} halvings: {found:?} instead of {expected:?}");
    }
}

/// A gain of 1 ± 1e-3, which round-to-nearest of x∘g would not see in bf16, arrives in y.
///
/// Statistics: as above, with d = 1e-3 of what is rounded, so that an ulp is up to 5.6|d|: for y
/// itself over N = 2¹⁹ outputs a deviation of √(3·5.6/N) = 0.006. On the input axis x∘g is rounded
/// first, with the same ratio: T·I = 2¹⁸ numbers, a deviation of 0.008. Together 0.01.
fn magnitude_slope<E: Element>() {
    let runner = runner();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for norm in AXES {
        let mut before = base_layer(&mut random, [1024, 256, 512], norm).rounded(E::DTYPE);
        before.input = (0..before.input.len()).map(|_| normal(&mut random)).collect();
        before.magnitude = before.norms().expect("a consistent case");
        let mut after = before.clone();
        for m in &mut after.magnitude {
            *m *= 1.0 + if random.random() { 1e-3 } else { -1e-3 };
        }
        let slope = slope::<E>(&runner, &before, &after);
        println!("{norm:?} {}: slope {slope:.4}", E::DTYPE);
        assert!((slope - 1.0).abs() <= 0.05, "{norm:?} {}: slope {slope:.4}", E::DTYPE);
    }
}

#[test]
fn a_gain_near_one_arrives_in_bf16() {
    magnitude_slope::<bf16>();
}

#[test]
fn a_gain_near_one_arrives_in_f16() {
    magnitude_slope::<f16>();
}

/// x∘g on the input axis is rounded by the seed: another seed rounds otherwise, the same one alike.
/// Nothing else depends on it.
fn seeded<E: Element>(norm: Norm, depends: bool) {
    let runner = runner();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let case = random_case(&mut random, [60, 90, 70, 5], norm, true).rounded(E::DTYPE);
    let mut layer = Layer::<E>::new(&runner, &case).expect("a layer");
    let mut bits = |seed: u64| -> Vec<u32> {
        layer.seed = seed;
        layer.forward(&case).expect("y").into_iter().map(f32::to_bits).collect()
    };
    let seeds = [1, 2, 1 << 40, u64::MAX];
    let [once, again] = [(); 2].map(|()| seeds.map(&mut bits));
    assert!(once == again, "{norm:?} {}: run to run", E::DTYPE);
    for (i, bits) in once.iter().enumerate() {
        let differ = once[..i].iter().all(|others| others != bits);
        let alike = once[..i].iter().all(|others| others == bits);
        assert!(if depends { differ } else { alike }, "{norm:?} {} seed {}", E::DTYPE, seeds[i]);
    }
}

#[test]
fn only_the_rounding_of_scaled_inputs_depends_on_the_seed() {
    seeded::<bf16>(Norm::Input, true);
    seeded::<f16>(Norm::Input, true);
    seeded::<f32>(Norm::Input, false);
    seeded::<bf16>(Norm::Output, false);
    seeded::<bf16>(Norm::None, false);
}
