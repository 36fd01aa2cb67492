//! Merges a layer and takes it apart again.

use fused_dora::reference::{self, Case};
use fused_dora::{Dtype, Element, InPlace, Merge, MergeReport, Result, Unmerge};

use super::compare::Comparison;
use super::layer::{Buffer, Layer, base};

impl<E: Element> Layer<'_, E> {
    pub fn merge<F: Element>(&mut self) -> (Buffer<F>, MergeReport) {
        let mut merged = self.device.poisoned::<F>(self.case.weight.len());
        let stream = &self.device.stream;
        let mut report = stream.clone_htod(&[f64::NAN; MergeReport::LEN]).expect("memory");
        let io = Merge {
            weight: base(&self.packed, &self.weight),
            lora_a: self.lora_a.read(),
            lora_b: self.lora_b.read(),
            merged: merged.write(),
            report: Some((&mut report).into()),
        };
        let (spec, prepared, workspace) = (&self.spec, &self.prepared, &mut self.workspace);
        self.device.kernels.merge(stream, spec, prepared, workspace, io).expect("the merge");
        (merged, MergeReport::read(stream, &report.as_view()).expect("the report"))
    }

    pub fn unmerge<F: Element>(&mut self, merged: &Buffer<F>) -> Result<Vec<f32>> {
        let mut weight = self.device.poisoned::<E>(self.case.weight.len());
        let io = Unmerge {
            merged: merged.read(),
            lora_a: self.lora_a.read(),
            lora_b: self.lora_b.read(),
            weight: weight.write(),
        };
        let (spec, prepared, workspace) = (&self.spec, &self.prepared, &mut self.workspace);
        let stream = &self.device.stream;
        self.device.kernels.unmerge(stream, spec, prepared, workspace, io)?;
        Ok(self.device.download(&weight))
    }

    pub fn merge_in_place(&mut self) -> MergeReport {
        let Self { device, spec, weight, lora_a, lora_b, prepared, workspace, .. } = self;
        let stream = &device.stream;
        let mut report = stream.clone_htod(&[f64::NAN; MergeReport::LEN]).expect("memory");
        let io = InPlace { weight: weight.write(), lora_a: lora_a.read(), lora_b: lora_b.read() };
        let out = Some((&mut report).into());
        let kernels = &device.kernels;
        kernels.merge_in_place(stream, spec, prepared, workspace, io, out).expect("the merge");
        MergeReport::read(stream, &report.as_view()).expect("the report")
    }

    pub fn unmerge_in_place(&mut self) -> Result<()> {
        let Self { device, spec, weight, lora_a, lora_b, prepared, workspace, .. } = self;
        let io = InPlace { weight: weight.write(), lora_a: lora_a.read(), lora_b: lora_b.read() };
        device.kernels.unmerge_in_place(&device.stream, spec, prepared, workspace, io)
    }

    #[track_caller]
    pub fn compare_weight(
        &self,
        name: &str,
        dtype: Dtype,
        found: &[f32],
        expected: &reference::Weight,
    ) {
        let shape = [self.case.out_features, self.case.in_features];
        let (values, bounds) = (&expected.values, &expected.bounds);
        let comparison = Comparison::new(name, &shape, dtype, found, values, bounds);
        let (norm, rank) = (self.case.norm, self.case.rank);
        assert!(comparison.ok(), "from {} norm {norm:?} r={rank}\n{comparison}", E::DTYPE);
    }

    /// Merge into `F`, and the report: W' on the device and here, and what it should be.
    pub fn check_merge_alone<F: Element>(&mut self) -> (Buffer<F>, Vec<f32>, reference::Merged) {
        let (merged, report) = self.merge::<F>();
        let expected = reference::merge(&self.case, &self.gain, F::DTYPE).expect("consistent");
        let found = self.device.download(&merged);
        self.compare_weight("merged", F::DTYPE, &found, &expected.weight);
        check_report(&report, &found, &expected);
        (merged, found, expected)
    }

    /// Merge and unmerge by way of `F`, and the report.
    pub fn check_merge<F: Element>(&mut self) {
        let (merged, found, expected) = self.check_merge_alone::<F>();
        let restored = self.unmerge(&merged).expect("gains that are not 0");
        let found: Vec<f64> = found.into_iter().map(f64::from).collect();
        let mut expected_weight =
            reference::unmerge(&self.case, &self.gain, &found, E::DTYPE).expect("consistent");
        self.compare_weight("unmerged", E::DTYPE, &restored, &expected_weight);
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
        self.compare_weight("round trip", E::DTYPE, &restored, &expected_weight);
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
