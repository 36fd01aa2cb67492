//! The change of magnitudes and directions against float64, down to changes of a millionth.

use fused_dora::reference::{self, Case, rounded};
use fused_dora::{Decomposition, Dtype, Element, Error, Norm, Prepared};
use fused_dora_testkit::layer::{Device, Layer};
use fused_dora_testkit::random::{fresh_seed, random_case};
use half::{bf16, f16};
use rand::SeedableRng;
use rand::rngs::StdRng;

const AXES: [Norm; 2] = [Norm::Input, Norm::Output];
const NORMS: [Norm; 3] = [Norm::None, Norm::Input, Norm::Output];

const SHAPES: [[usize; 3]; 7] =
    [[64, 64, 16], [1, 1, 1], [130, 65, 5], [257, 3, 40], [72, 200, 8], [67, 130, 0], [128, 64, 0]];

fn dense<E: Element>(offset: usize) {
    let device = Device::new(offset);
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for [inputs, outputs, rank] in SHAPES {
        let case = random_case(&mut random, [0, inputs, outputs, rank], Norm::None, false);
        let mut layer = Layer::<E>::new(&device, &case);
        for scale in [1.0, 1e-3, 1e-6] {
            layer.check_dense::<bf16>(&mut random, scale);
            layer.check_dense::<f16>(&mut random, scale);
            layer.check_dense::<f32>(&mut random, scale);
        }
    }
}

#[test]
fn dense_weights_from_bf16() {
    dense::<bf16>(0);
}

#[test]
fn dense_weights_from_f16() {
    dense::<f16>(0);
}

#[test]
fn dense_weights_from_f32() {
    dense::<f32>(0);
}

#[test]
fn off_every_boundary() {
    dense::<f16>(1);
    adapters::<f16>(1);
}

/// LoRA, DoRA and the magnitude alone, trained a lot and hardly.
fn adapters<E: Element>(offset: usize) {
    let device = Device::new(offset);
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for [inputs, outputs, rank] in SHAPES {
        for norm in NORMS {
            let case = random_case(&mut random, [0, inputs, outputs, rank], norm, false);
            for scale in [1.0, 1e-3, 1e-6] {
                let shrunk = shrunk(&case, scale, scale);
                Layer::<E>::new(&device, &shrunk).check_adapter();
            }
            // A large change of the magnitude, a tiny one of the direction.
            Layer::<E>::new(&device, &shrunk(&case, 1e-6, 1.0)).check_adapter();
        }
    }
}

/// The case with its directions changed by `direction` of what they were, its magnitudes likewise.
fn shrunk(case: &Case, direction: f64, magnitude: f64) -> Case {
    let lora_b = case.lora_b.iter().map(|b| direction * b).collect();
    let norms = case.norms().expect("a consistent case");
    let ratios = case.magnitude.iter().zip(norms).map(|(m, c)| m / c);
    let ratios: Vec<f64> = ratios.map(|ratio| 1.0 + magnitude * (ratio - 1.0)).collect();
    let shrunk = Case { lora_b, ..case.clone() };
    let norms = shrunk.norms().expect("a consistent case");
    Case { magnitude: norms.iter().zip(ratios).map(|(c, ratio)| c * ratio).collect(), ..shrunk }
}

#[test]
fn adapters_from_bf16() {
    adapters::<bf16>(0);
}

#[test]
fn adapters_from_f16() {
    adapters::<f16>(0);
}

#[test]
fn adapters_from_f32() {
    adapters::<f32>(0);
}

/// The relative error, where the bound above is an absolute one, of changes down to a millionth. For
/// adapters it is that of the product s·B·A; for dense weights that of the float64 reference, which
/// by its definition of ΔM cancels nine of its sixteen digits there.
#[test]
fn tiny_changes_keep_their_digits() {
    let device = Device::new(0);
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let case = random_case(&mut random, [0, 200, 300, 4], Norm::None, false);
    for scale in [1e-2, 1e-4, 1e-6] {
        let case = shrunk(&case, scale, 0.0);
        let mut layer = Layer::<f32>::new(&device, &case);
        let change =
            reference::merge(&layer.case, &[], Dtype::F32).expect("a consistent case").change;
        let pairs = layer.case.weight.iter().zip(&change.values);
        let changed: Vec<f64> = pairs.map(|(w, d)| rounded(w + d, Dtype::F32)).collect();
        let dense: Vec<f64> = changed.iter().zip(&layer.case.weight).map(|(t, w)| t - w).collect();
        for axis in AXES {
            let shape = [300, 200];
            for (found, change, tolerance) in [
                (layer.dense::<f32>(&changed, axis).expect("the op"), &dense, 1e-7),
                (layer.adapted(axis).expect("the op"), &change.values, 1e-6),
            ] {
                let zeros = vec![0.0; change.len()];
                let (expected, _) =
                    reference::decompose(shape, axis, &layer.case.weight, change, &zeros);
                let error = |found: f64, expected: f64| (found / expected - 1.0).abs();
                let errors = [
                    error(found.magnitude, expected.magnitude),
                    error(found.direction, expected.direction),
                ];
                assert!(expected.direction > 0.0 && expected.direction < scale);
                assert!(
                    errors.iter().all(|&error| error < tolerance),
                    "{scale:e} {axis:?}: {found:?}, not {expected:?}: {errors:?}"
                );
            }
        }
    }
}

/// Many strips, each in several splits, and always the same bits.
#[test]
fn many_strips_and_splits() {
    let device = Device::new(0);
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let case = random_case(&mut random, [0, 1000, 700, 3], Norm::Output, false);
    let mut layer = Layer::<bf16>::new(&device, &case);
    layer.check_adapter();
    layer.check_dense::<bf16>(&mut random, 1e-2);
    for axis in AXES {
        let again = [(); 2].map(|()| layer.adapted(axis).expect("the op"));
        assert_eq!(again[0], again[1]);
    }
}

/// Nothing, the opposite, and features that are 0 before or after.
#[test]
fn edges() {
    let device = Device::new(0);
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for norm in NORMS {
        let mut case = random_case(&mut random, [0, 40, 30, 2], norm, false);
        (0..40).for_each(|j| case.weight[7 * 40 + j] = 0.0);
        (0..30).for_each(|i| case.weight[i * 40 + 9] = 0.0);
        let mut layer = Layer::<bf16>::new(&device, &case);
        let weight = layer.case.weight.clone();
        let negative: Vec<f64> = weight.iter().map(|w| -w).collect();
        let zero = vec![0.0; weight.len()];
        for axis in AXES {
            // The feature that is 0 has no direction.
            let share = if axis == Norm::Input { 39.0 / 40.0 } else { 29.0 / 30.0 };
            let of = |layer: &mut Layer<'_, bf16>, t: &[f64]| layer.dense::<f32>(t, axis);
            let found = of(&mut layer, &weight).expect("the op");
            assert_eq!((found.magnitude, found.direction), (0.0, 0.0));
            let found = of(&mut layer, &negative).expect("the op");
            assert_eq!(found.magnitude, 0.0);
            assert!((found.direction - 2.0 * share).abs() < 1e-12, "{found:?}");
            let found = of(&mut layer, &zero).expect("the op");
            layer.check_decomposition(found, axis, &negative, &zero);
            assert_eq!(found.direction, 0.0);
            let mut lost = weight.clone();
            lost[77] = f64::NAN;
            let found = of(&mut layer, &lost).expect("the op");
            assert!(found.magnitude.is_nan() && found.direction.is_nan(), "{found:?}");
        }
        // Gains of 0 along the adapter's own axis.
        case.magnitude.iter_mut().take(5).for_each(|m| *m = 0.0);
        Layer::<bf16>::new(&device, &case).check_adapter();
    }
}

#[test]
fn bad_inputs() {
    let device = Device::new(0);
    let mut random = StdRng::seed_from_u64(1);
    let case = random_case(&mut random, [0, 10, 12, 3], Norm::Output, false);
    let mut layer = Layer::<bf16>::new(&device, &case);
    let weight = layer.case.weight.clone();
    for result in [layer.dense::<f32>(&weight, Norm::None), layer.adapted(Norm::None)] {
        let message = result.expect_err("no axis").to_string();
        assert_eq!(message, "axis is None: it must be Input (columns) or Output (rows)");
    }
    let short = layer.dense::<f32>(&weight[1..], Norm::Input);
    assert!(matches!(
        short,
        Err(Error::Shape { tensor: "changed", expected: 120, found: 119, .. })
    ));
    let stream = &device.stream;
    let three = stream.alloc_zeros(3).expect("memory");
    let read = Decomposition::read(stream, &three.as_view());
    assert!(matches!(read, Err(Error::Shape { tensor: "result", expected: 2, found: 3, .. })));
    let whole = layer.weight;
    layer.weight = device.upload(&weight[1..]);
    assert!(matches!(
        layer.adapted(Norm::Input),
        Err(Error::Shape { tensor: "weight", expected: 120, found: 119, .. })
    ));
    layer.weight = whole;
    layer.lora_a = device.upload(&[0.0; 29]);
    assert!(matches!(
        layer.adapted(Norm::Input),
        Err(Error::Shape { tensor: "lora_A", expected: 30, found: 29, .. })
    ));
    layer.lora_a = device.upload(&[0.0; 30]);
    layer.prepared = Prepared::new(stream, &layer.spec).expect("memory");
    assert!(matches!(layer.adapted(Norm::Input), Err(Error::NotPrepared { .. })));
}
