//! The merged weight and the way back from it, in every pair of dtypes, against float64.

use fused_dora::reference::{self, Case};
use fused_dora::{Dtype, Element, Error, Merge, MergeReport, Norm, Prepared};
use fused_dora_testkit::layer::{Device, Layer};
use fused_dora_testkit::random::{fresh_seed, random_case};
use half::{bf16, f16};
use rand::SeedableRng;
use rand::rngs::StdRng;

const NORMS: [Norm; 3] = [Norm::None, Norm::Input, Norm::Output];

fn all_pairs<E: Element>(device: &Device, case: &Case) {
    let mut layer = Layer::<E>::new(device, case);
    layer.check_merge::<bf16>();
    layer.check_merge::<f16>();
    layer.check_merge::<f32>();
}

/// LoRA, DoRA and magnitude-only on both axes, at tile edges and off them.
fn ragged<E: Element>(offset: usize) {
    let device = Device::new(offset);
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for [inputs, outputs, rank] in [
        [64, 64, 16],
        [1, 1, 1],
        [130, 65, 5],
        [257, 3, 40],
        [72, 200, 8],
        [67, 130, 0],
        [128, 64, 0],
    ] {
        for norm in NORMS {
            all_pairs::<E>(
                &device,
                &random_case(&mut random, [0, inputs, outputs, rank], norm, false),
            );
        }
    }
}

#[test]
fn ragged_shapes_from_bf16() {
    ragged::<bf16>(0);
}

#[test]
fn ragged_shapes_from_f16() {
    ragged::<f16>(0);
}

#[test]
fn ragged_shapes_from_f32() {
    ragged::<f32>(0);
}

#[test]
fn off_every_boundary() {
    ragged::<bf16>(1);
}

/// More tiles than CTAs, so that each takes several.
#[test]
fn many_tiles() {
    let device = Device::new(0);
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let case = random_case(&mut random, [0, 1300, 1283, 3], Norm::Output, false);
    let mut layer = Layer::<bf16>::new(&device, &case);
    layer.check_merge::<bf16>();
    let reports = [(); 2].map(|()| layer.merge::<bf16>().1);
    assert_eq!(reports[0], reports[1], "the sums have one order");
}

#[test]
fn over_the_weight_itself() {
    let device = Device::new(0);
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for inputs in [72, 75] {
        for norm in NORMS {
            let case = random_case(&mut random, [0, inputs, 100, 4], norm, false);
            let mut layer = Layer::<bf16>::new(&device, &case);
            let (copy, of_copy) = layer.merge::<bf16>();
            let restored = layer.unmerge(&copy).expect("gains that are not 0");
            assert_eq!(layer.merge_in_place(), of_copy);
            assert_eq!(device.download(&layer.weight), device.download(&copy), "{norm:?}");
            layer.unmerge_in_place().expect("gains that are not 0");
            assert_eq!(device.download(&layer.weight), restored, "{norm:?}");
        }
    }
}

/// The gains, and nothing else of what was prepared, are enough to go back.
#[test]
fn kept_gains_unmerge() {
    let device = Device::new(0);
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for norm in NORMS {
        let case = random_case(&mut random, [0, 72, 100, 4], norm, false);
        let mut layer = Layer::<bf16>::new(&device, &case);
        let (merged, _) = layer.merge::<f32>();
        let restored = layer.unmerge(&merged).expect("gains that are not 0");
        let gain: Vec<f32> = layer.gain.iter().map(|&gain| gain as f32).collect();
        let kept = |gain: &[f32]| Prepared::for_unmerge(&device.stream, &layer.spec, gain);
        let too_many = kept(&[&gain[..], &[1.0]].concat());
        assert!(matches!(too_many, Err(Error::Shape { tensor: "gain", .. })));
        layer.prepared = kept(&gain).expect("memory");
        assert_eq!(layer.unmerge(&merged).expect("gains that are not 0"), restored, "{norm:?}");
    }
}

/// A merged weight in f32 gives a weight of 16 bits back to the bit, except for a few elements that
/// are small compared with what was added to them.
#[test]
fn f32_keeps_a_narrow_weight() {
    let device = Device::new(0);
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for norm in NORMS {
        let case = random_case(&mut random, [0, 200, 300, 8], norm, false);
        let mut layer = Layer::<bf16>::new(&device, &case);
        let (merged, _) = layer.merge::<f32>();
        let restored = layer.unmerge(&merged).expect("gains that are not 0");
        let pairs = restored.iter().zip(&layer.case.weight);
        let same = pairs.filter(|(found, weight)| f64::from(**found) == **weight).count();
        let all = layer.case.weight.len();
        assert!(1000 * (all - same) <= all, "{norm:?}: {same} of {all} restored to the bit");
    }
}

/// What a merge into 16 bits leaves of a small change, and that the report shows it.
#[test]
fn the_report_tells_what_is_lost() {
    let device = Device::new(0);
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let kept = |device: &Device, case: &Case| {
        let mut layer = Layer::<bf16>::new(device, case);
        let (_, narrow) = layer.merge::<bf16>();
        let (_, wide) = layer.merge::<f32>();
        assert!((wide.kept() - 1.0).abs() < 1e-2 && wide.relative_error() < 0.1, "{wide:?}");
        narrow
    };
    // W ~ N(0, 0.05), so that its bf16 neighbours lie about 2⁻⁹·0.05 = 1e-4 away.
    let case = random_case(&mut random, [0, 256, 256, 8], Norm::None, false);
    let deviation = (8.0f64).sqrt() * case.scaling * 0.02 / 256f64.sqrt();
    let mut before = 0.0;
    for (change, least, most) in [(1e-6, 0.0, 0.1), (1e-5, 0.05, 0.5), (1e-3, 0.98, 1.02)] {
        let lora_b = case.lora_b.iter().map(|b| b * change / deviation).collect();
        let report = kept(&device, &Case { lora_b, ..case.clone() });
        let found = report.kept();
        assert!((least..most).contains(&found) && found > before, "{change:e}: {found}");
        before = found;
    }
    // Without a change there is nothing to lose.
    let lora_b = vec![0.0; case.lora_b.len()];
    let report = kept(&device, &Case { lora_b, ..case });
    assert_eq!((report.kept(), report.relative_error()), (1.0, 0.0), "{report:?}");
}

/// A feature whose gain is 0 merges to 0, and cannot come back.
#[test]
fn gains_of_zero() {
    let device = Device::new(0);
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for (norm, axis) in [(Norm::Input, "input"), (Norm::Output, "output")] {
        let mut case = random_case(&mut random, [0, 70, 66, 2], norm, false);
        case.magnitude[5] = 0.0;
        let mut layer = Layer::<f16>::new(&device, &case);
        let (merged, _) = layer.merge::<f32>();
        let found = device.download(&merged);
        let of_feature = |i: &usize| match norm {
            Norm::Input => i % 70 == 5,
            _ => i / 70 == 5,
        };
        assert!((0..found.len()).filter(of_feature).all(|i| found[i] == 0.0));
        let expected = reference::merge(&layer.case, &layer.gain, Dtype::F32).expect("consistent");
        layer.compare_weight("merged", Dtype::F32, &found, &expected.weight);

        let error = layer.unmerge(&merged).expect_err("a gain of 0");
        assert!(
            matches!(error, Error::LostFeature { axis: a, feature: 5, gain: 0.0 } if a == axis),
            "{error:?}"
        );
        let text = format!("the gain of {axis} feature 5 is 0");
        assert!(error.to_string().contains(&text), "{error}");
        let before = device.download(&layer.weight);
        assert!(matches!(layer.unmerge_in_place(), Err(Error::LostFeature { .. })));
        assert_eq!(device.download(&layer.weight), before, "nothing was written");
    }
}

#[test]
fn bad_inputs() {
    let device = Device::new(0);
    let mut random = StdRng::seed_from_u64(1);
    let case = random_case(&mut random, [0, 10, 12, 3], Norm::Output, false);
    let mut layer = Layer::<bf16>::new(&device, &case);
    let stream = &device.stream;
    let mut merged = device.poisoned::<f32>(120);
    let mut report = stream.alloc_zeros::<f64>(MergeReport::LEN + 1).expect("memory");
    // The outcome of a merge of which `change` has changed something.
    macro_rules! assert_shape {
        (|$io:ident| $change:expr, $expected:expr) => {{
            let Layer { spec, weight, lora_a, lora_b, prepared, workspace, .. } = &mut layer;
            let mut $io = Merge {
                weight: weight.read().into(),
                lora_a: lora_a.read(),
                lora_b: lora_b.read(),
                merged: merged.write(),
                report: None,
            };
            $change;
            match device.kernels.merge(stream, spec, prepared, workspace, $io) {
                Err(Error::Shape { tensor, expected, found, .. }) => {
                    assert_eq!((tensor, expected, found), $expected)
                }
                other => panic!("a shape error, not {other:?}"),
            }
        }};
    }
    let short_weight = device.poisoned::<bf16>(119);
    assert_shape!(|io| io.weight = short_weight.read().into(), ("weight", 120, 119));
    let [short_a, short_b] = [29, 35].map(|len| device.poisoned::<f32>(len));
    assert_shape!(|io| io.lora_a = short_a.read(), ("lora_A", 30, 29));
    assert_shape!(|io| io.lora_b = short_b.read(), ("lora_B", 36, 35));
    let mut short = device.poisoned::<f32>(119);
    assert_shape!(|io| io.merged = short.write(), ("merged", 120, 119));
    assert_shape!(|io| io.report = Some((&mut report).into()), ("report", 3, 4));
    let read = MergeReport::read(stream, &report.as_view());
    assert!(matches!(read, Err(Error::Shape { tensor: "report", expected: 3, found: 4, .. })));

    let merged = device.poisoned::<f32>(119);
    let shape = layer.unmerge(&merged);
    assert!(matches!(shape, Err(Error::Shape { tensor: "merged", expected: 120, .. })));
    let merged = device.poisoned::<f32>(120);
    layer.prepared = Prepared::new(stream, &layer.spec).expect("memory");
    assert!(matches!(layer.unmerge(&merged), Err(Error::NotPrepared { .. })));
    assert!(matches!(layer.unmerge_in_place(), Err(Error::NotPrepared { .. })));
}
