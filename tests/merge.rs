//! The merged weight and the way back from it, in every pair of dtypes, against float64.

mod common;

use common::compare::Comparison;
use common::layer::{Buffer, Device, Layer};
use common::random::{fresh_seed, random_case};
use fused_dora::reference::{self, Case};
use fused_dora::{
    Dtype, Element, Error, InPlace, Merge, MergeReport, Norm, Prepared, Result, Unmerge,
};
use half::{bf16, f16};
use rand::SeedableRng;
use rand::rngs::StdRng;

const NORMS: [Norm; 3] = [Norm::None, Norm::Input, Norm::Output];

impl<E: Element> Layer<'_, E> {
    fn merge<F: Element>(&mut self) -> (Buffer<F>, MergeReport) {
        let mut merged = self.device.poisoned::<F>(self.case.weight.len());
        let stream = &self.device.stream;
        let mut report = stream.clone_htod(&[f64::NAN; MergeReport::LEN]).expect("memory");
        let io = Merge {
            weight: self.weight.view(),
            lora_a: self.lora_a.view(),
            lora_b: self.lora_b.view(),
            merged: merged.view_mut(),
            report: Some(report.as_view_mut()),
        };
        let (spec, prepared, workspace) = (&self.spec, &self.prepared, &mut self.workspace);
        self.device.kernels.merge(stream, spec, prepared, workspace, io).expect("the merge");
        (merged, MergeReport::read(stream, &report.as_view()).expect("the report"))
    }

    fn unmerge<F: Element>(&mut self, merged: &Buffer<F>) -> Result<Vec<f32>> {
        let mut weight = self.device.poisoned::<E>(self.case.weight.len());
        let io = Unmerge {
            merged: merged.view(),
            lora_a: self.lora_a.view(),
            lora_b: self.lora_b.view(),
            weight: weight.view_mut(),
        };
        let (spec, prepared, workspace) = (&self.spec, &self.prepared, &mut self.workspace);
        let stream = &self.device.stream;
        self.device.kernels.unmerge(stream, spec, prepared, workspace, io)?;
        Ok(self.device.download(&weight))
    }

    fn merge_in_place(&mut self) -> MergeReport {
        let Self { device, spec, weight, lora_a, lora_b, prepared, workspace, .. } = self;
        let stream = &device.stream;
        let mut report = stream.clone_htod(&[f64::NAN; MergeReport::LEN]).expect("memory");
        let io =
            InPlace { weight: weight.view_mut(), lora_a: lora_a.view(), lora_b: lora_b.view() };
        let out = Some(report.as_view_mut());
        let kernels = &device.kernels;
        kernels.merge_in_place(stream, spec, prepared, workspace, io, out).expect("the merge");
        MergeReport::read(stream, &report.as_view()).expect("the report")
    }

    fn unmerge_in_place(&mut self) -> Result<()> {
        let Self { device, spec, weight, lora_a, lora_b, prepared, workspace, .. } = self;
        let io =
            InPlace { weight: weight.view_mut(), lora_a: lora_a.view(), lora_b: lora_b.view() };
        device.kernels.unmerge_in_place(&device.stream, spec, prepared, workspace, io)
    }

    #[track_caller]
    fn compare(&self, name: &str, dtype: Dtype, found: &[f32], expected: &reference::Weight) {
        let shape = [self.case.out_features, self.case.in_features];
        let (values, bounds) = (&expected.values, &expected.bounds);
        let comparison = Comparison::new(name, &shape, dtype, found, values, bounds);
        let (norm, rank) = (self.case.norm, self.case.rank);
        assert!(comparison.ok(), "from {} norm {norm:?} r={rank}\n{comparison}", E::DTYPE);
    }

    /// Merge and unmerge by way of `F`, and the report.
    fn check<F: Element>(&mut self) {
        let (merged, report) = self.merge::<F>();
        let expected = reference::merge(&self.case, &self.gain, F::DTYPE).expect("consistent");
        let found = self.device.download(&merged);
        self.compare("merged", F::DTYPE, &found, &expected.weight);
        check_report(&report, &found, &expected);

        let restored = self.unmerge(&merged).expect("gains that are not 0");
        let found: Vec<f64> = found.into_iter().map(f64::from).collect();
        let mut expected_weight =
            reference::unmerge(&self.case, &self.gain, &found, E::DTYPE).expect("consistent");
        self.compare("unmerged", E::DTYPE, &restored, &expected_weight);
        // Of the original, it is off by what the merge was off, too.
        let magnified = reference::unmerge(
            &Case { lora_b: vec![0.0; self.case.lora_b.len()], ..self.case.clone() },
            &self.gain,
            &expected.weight.bounds,
            Dtype::F32,
        );
        let magnified = magnified.expect("consistent").values;
        let more = expected_weight.bounds.iter_mut().zip(magnified);
        more.for_each(|(bound, error)| *bound += error.abs());
        expected_weight.values.clone_from(&self.case.weight);
        self.compare("round trip", E::DTYPE, &restored, &expected_weight);
    }
}

/// The report's sums, from what was found and what was expected; the kernel's Δ and E are off by
/// no more than Δ's bound and a few roundings.
#[track_caller]
fn check_report(report: &MergeReport, found: &[f32], expected: &reference::Merged) {
    const SUMS: f64 = 64.0 * f32::EPSILON as f64;
    let (mut sums, mut bounds) = ([0.0; 3], [0.0; 3]);
    let change = expected.change.values.iter().zip(&expected.change.bounds);
    for ((&found, &merged), (&change, &e)) in found.iter().zip(&expected.weight.values).zip(change)
    {
        let error = f64::from(found) - merged;
        let e_error = e + SUMS * error.abs();
        let terms = [change * change, error * error, error * change];
        let errors = [
            2.0 * change.abs() * e + e * e,
            2.0 * error.abs() * e_error + e_error * e_error,
            error.abs() * e + change.abs() * e_error + e * e_error,
        ];
        for i in 0..3 {
            sums[i] += terms[i];
            bounds[i] += errors[i] + SUMS * terms[i].abs();
        }
    }
    let of_report = [report.change_squared, report.error_squared, report.error_along_change];
    for (name, ((found, expected), bound)) in
        ["‖Δ‖²", "‖E‖²", "⟨E, Δ⟩"].into_iter().zip(of_report.into_iter().zip(sums).zip(bounds))
    {
        let error = (found - expected).abs();
        assert!(error <= bound, "{name}: {found:e}, not {expected:e}: {error:e} > {bound:e}");
    }
}

fn all_pairs<E: Element>(device: &Device, case: &Case) {
    let mut layer = Layer::<E>::new(device, case);
    layer.check::<bf16>();
    layer.check::<f16>();
    layer.check::<f32>();
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
    layer.check::<bf16>();
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

/// A merged weight in f32 gives a weight of 16 bits back to the bit, but for a few elements that are
/// small beside what was added to them.
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

/// What a merge into 16 bits leaves of a small change, and that the report tells.
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
        layer.compare("merged", Dtype::F32, &found, &expected.weight);

        let error = layer.unmerge(&merged).expect_err("a gain of 0");
        assert!(
            matches!(error, Error::LostFeature { axis: a, feature: 5, gain: 0.0 } if a == axis),
            "{error:?}"
        );
        assert!(error.to_string().starts_with(&format!("{axis} feature 5 has a gain of 0")));
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
    let mut report = stream.alloc_zeros(MergeReport::LEN + 1).expect("memory");
    // The outcome of a merge of which `change` has changed something.
    macro_rules! assert_shape {
        (|$io:ident| $change:expr, $expected:expr) => {{
            let Layer { spec, weight, lora_a, lora_b, prepared, workspace, .. } = &mut layer;
            let mut $io = Merge {
                weight: weight.view(),
                lora_a: lora_a.view(),
                lora_b: lora_b.view(),
                merged: merged.view_mut(),
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
    assert_shape!(|io| io.weight = io.weight.slice(..119), ("weight", 120, 119));
    assert_shape!(|io| io.lora_a = io.lora_a.slice(..29), ("lora_A", 30, 29));
    assert_shape!(|io| io.lora_b = io.lora_b.slice(..35), ("lora_B", 36, 35));
    let mut short = device.poisoned::<f32>(119);
    assert_shape!(|io| io.merged = short.view_mut(), ("merged", 120, 119));
    assert_shape!(|io| io.report = Some(report.as_view_mut()), ("report", 3, 4));
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
