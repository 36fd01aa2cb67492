//! The change of a layer's magnitudes and directions.

use fused_dora::cudarc::driver::CudaSlice;
use fused_dora::reference::{self, rounded};
use fused_dora::{Decompose, DecomposeAdapter, Decomposition, Dtype, Element, Norm, Result};
use rand::Rng;
use rand::rngs::StdRng;

use super::layer::{Layer, base};

impl<E: Element> Layer<'_, E> {
    fn poisoned_result(&self) -> CudaSlice<f64> {
        self.device.stream.clone_htod(&[f64::NAN; Decomposition::LEN]).expect("memory")
    }

    /// Of two dense weights.
    pub fn dense<F: Element>(&mut self, changed: &[f64], axis: Norm) -> Result<Decomposition> {
        let mut result = self.poisoned_result();
        let changed = self.device.upload::<F>(changed);
        let io = Decompose {
            axis,
            weight: base(&self.packed, &self.weight),
            changed: changed.read(),
            result: (&mut result).into(),
        };
        let (kernels, stream) = (&self.device.kernels, &self.device.stream);
        kernels.decompose(stream, &self.spec, &mut self.workspace, io)?;
        Decomposition::read(stream, &result.as_view())
    }

    /// Of the weight and its adapter.
    pub fn adapted(&mut self, axis: Norm) -> Result<Decomposition> {
        let mut result = self.poisoned_result();
        let io = DecomposeAdapter {
            axis,
            weight: base(&self.packed, &self.weight),
            lora_a: self.lora_a.read(),
            lora_b: self.lora_b.read(),
            result: (&mut result).into(),
        };
        let (kernels, stream) = (&self.device.kernels, &self.device.stream);
        kernels.decompose_adapter(stream, &self.spec, &self.prepared, &mut self.workspace, io)?;
        Decomposition::read(stream, &result.as_view())
    }

    #[track_caller]
    pub fn check_decomposition(
        &self,
        found: Decomposition,
        axis: Norm,
        change: &[f64],
        change_error: &[f64],
    ) {
        let shape = [self.case.out_features, self.case.in_features];
        let (expected, bound) =
            reference::decompose(shape, axis, &self.case.weight, change, change_error);
        for (name, found, expected, bound) in [
            ("ΔM", found.magnitude, expected.magnitude, bound.magnitude),
            ("ΔD", found.direction, expected.direction, bound.direction),
        ] {
            let error = (found - expected).abs();
            assert!(
                error <= bound,
                "{shape:?} r={} norm {:?} {} axis {axis:?}: {name} {found:e}, not {expected:e}: \
                 {error:e} > {bound:e}",
                self.case.rank,
                self.case.norm,
                E::DTYPE,
            );
        }
    }

    /// Two dense weights, `scale` of W apart.
    pub fn check_dense<F: Element>(&mut self, random: &mut StdRng, scale: f64) {
        let weight = self.case.weight.clone();
        let changed: Vec<f64> = weight
            .iter()
            .map(|w| rounded(w + scale * random.random_range(-0.05..0.05), F::DTYPE))
            .collect();
        let change: Vec<f64> = changed.iter().zip(&weight).map(|(t, w)| t - w).collect();
        for axis in [Norm::Input, Norm::Output] {
            let found = self.dense::<F>(&changed, axis).expect("the op");
            self.check_decomposition(found, axis, &change, &vec![0.0; change.len()]);
        }
    }

    pub fn check_adapter(&mut self) {
        let merged =
            reference::merge(&self.case, &self.gain, Dtype::F32).expect("a consistent case");
        for axis in [Norm::Input, Norm::Output] {
            let found = self.adapted(axis).expect("the op");
            self.check_decomposition(found, axis, &merged.change.values, &merged.product_error);
        }
    }
}
