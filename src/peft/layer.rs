//! One layer's adapter on the host.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use crate::dtype::Dtype;
use crate::error::{During, Error, Result};
use crate::layer::Adapter;
use crate::layout::{AdapterLayout, Part};
use crate::spec::{DoraSpec, Norm, NormGrad, Scaling};
use crate::tensor::{check_len, matrix, vector};

/// The adapter of one linear layer, as a file holds it: checked when it is made.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerAdapter {
    out_features: usize,
    in_features: usize,
    rank: usize,
    scaling: f32,
    norm: Norm,
    lora_a: Vec<f32>,
    lora_b: Vec<f32>,
    magnitude: Vec<f32>,
}

impl LayerAdapter {
    /// The adapter of a weight `[O, I]`: s, A `[r, I]`, B `[O, r]`, and m `[I]` or `[O]`, which is
    /// empty for plain LoRA.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] as [`DoraSpec::new`], [`Error::Shape`].
    pub fn new(
        [out_features, in_features]: [usize; 2],
        rank: usize,
        scaling: f32,
        norm: Norm,
        lora_a: Vec<f32>,
        lora_b: Vec<f32>,
        magnitude: Vec<f32>,
    ) -> Result<Self> {
        let layer =
            Self { out_features, in_features, rank, scaling, norm, lora_a, lora_b, magnitude };
        let spec = layer.spec(NormGrad::Detached, Dtype::F32)?;
        check_len("lora_A", layer.lora_a.len(), matrix(spec.ranks(), spec.inputs()))?;
        check_len("lora_B", layer.lora_b.len(), matrix(spec.outputs(), spec.ranks()))?;
        let features = ("features", spec.magnitude_len());
        check_len("magnitude", layer.magnitude.len(), vector(features))?;
        Ok(layer)
    }

    /// `[O, I]`.
    pub const fn shape(&self) -> [usize; 2] {
        [self.out_features, self.in_features]
    }

    /// r.
    pub const fn rank(&self) -> usize {
        self.rank
    }

    /// s.
    pub const fn scaling(&self) -> f32 {
        self.scaling
    }

    /// The norm axis.
    pub const fn norm(&self) -> Norm {
        self.norm
    }

    /// A `[r, I]`.
    pub fn lora_a(&self) -> &[f32] {
        &self.lora_a
    }

    /// B `[O, r]`.
    pub fn lora_b(&self) -> &[f32] {
        &self.lora_b
    }

    /// m `[I]` or `[O]`; empty for plain LoRA.
    pub fn magnitude(&self) -> &[f32] {
        &self.magnitude
    }

    /// How many numbers are trained.
    pub fn parameters(&self) -> usize {
        self.lora_a.len() + self.lora_b.len() + self.magnitude.len()
    }

    /// The layer's spec.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] as [`DoraSpec::new`].
    pub fn spec(&self, norm_grad: NormGrad, dtype: Dtype) -> Result<DoraSpec> {
        let scaling = Scaling::Value(self.scaling);
        let (inputs, outputs) = (self.in_features, self.out_features);
        DoraSpec::new(inputs, outputs, self.rank, scaling, self.norm, norm_grad, dtype)
    }

    /// The adapter of the transposed weight `[I, O]`, as layers that are stored by input features
    /// have it (`fan_in_fan_out`): A and B change places, and so do the norm's axes.
    pub fn transposed(&self) -> Self {
        Self {
            out_features: self.in_features,
            in_features: self.out_features,
            rank: self.rank,
            scaling: self.scaling,
            norm: match self.norm {
                Norm::None => Norm::None,
                Norm::Input => Norm::Output,
                Norm::Output => Norm::Input,
            },
            lora_a: transpose(&self.lora_b, self.rank),
            lora_b: transpose(&self.lora_a, self.in_features),
            magnitude: self.magnitude.clone(),
        }
    }

    /// The adapter on a device, for a layer that computes in `dtype`:
    /// [`DoraLinear::attach`](crate::DoraLinear::attach).
    ///
    /// # Errors
    /// [`Error::InvalidSpec`], or the driver's.
    pub fn upload(
        &self,
        stream: &Arc<CudaStream>,
        norm_grad: NormGrad,
        dtype: Dtype,
    ) -> Result<Adapter> {
        let mut adapter = Adapter::new(stream, &self.spec(norm_grad, dtype)?, false)?;
        let layout = *adapter.layout();
        if layout.is_empty() {
            return Ok(adapter);
        }
        let mut values = vec![0.0; layout.len()];
        for (part, source) in [
            (Part::LoraA, &self.lora_a),
            (Part::LoraB, &self.lora_b),
            (Part::Magnitude, &self.magnitude),
        ] {
            values[layout.range(part)].copy_from_slice(source);
        }
        stream
            .memcpy_htod(&values, &mut adapter.parameters_mut())
            .during("uploading an adapter")?;
        Ok(adapter)
    }

    /// The parameters of an adapter on a device.
    ///
    /// # Errors
    /// [`Error::UnexpectedTensor`] if it trains a bias, which files of adapters do not hold, or the
    /// driver's.
    pub fn download(stream: &Arc<CudaStream>, adapter: &Adapter) -> Result<Self> {
        let (spec, layout): (&DoraSpec, &AdapterLayout) = (adapter.spec(), adapter.layout());
        if !layout.range(Part::Bias).is_empty() {
            let reason = "an adapter's file does not hold it, so save it in another file";
            return Err(Error::UnexpectedTensor { tensor: "the trained bias", reason });
        }
        let during = "downloading an adapter";
        let mut values = vec![0.0; layout.len()];
        if !values.is_empty() {
            stream.memcpy_dtoh(&adapter.parameters(), &mut values).during(during)?;
            stream.synchronize().during(during)?;
        }
        let part = |part| values[layout.range(part)].to_vec();
        Self::new(
            [spec.out_features(), spec.in_features()],
            spec.rank(),
            spec.scaling(),
            spec.norm(),
            part(Part::LoraA),
            part(Part::LoraB),
            part(Part::Magnitude),
        )
    }
}

/// The transpose of a row-major matrix with `cols` columns.
fn transpose(matrix: &[f32], cols: usize) -> Vec<f32> {
    let rows = matrix.len() / cols.max(1);
    (0..cols).flat_map(|col| (0..rows).map(move |row| matrix[row * cols + col])).collect()
}
