//! Runs a case through the kernels.

use std::sync::Arc;

use fused_dora::cudarc::driver::{CudaContext, CudaSlice, CudaStream, CudaView, CudaViewMut};
use fused_dora::reference::Case;
use fused_dora::{
    Backward, DoraSpec, Dropout, DropoutForm, Dtype, Element, Error, Forward, Gradients, Kernels,
    Magnitude, MatrixView, MatrixViewMut, Norm, NormGrad, NormGradient, Prepare, Prepared, Result,
    Rows, Scaling, Workspace,
};

/// The device's answer that nothing overwrote: a NaN of all ones in every dtype.
const POISON: f32 = f32::from_bits(u32::MAX);

/// The kernels on a stream of one device.
pub struct Runner {
    stream: Arc<CudaStream>,
    kernels: Kernels,
    offset: usize,
    gap: usize,
    dropout: Option<Dropout>,
}

impl Runner {
    /// Loads the kernels into `context`.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let kernels = Kernels::load(context)?;
        Ok(Self { stream: context.default_stream(), kernels, offset: 0, gap: 0, dropout: None })
    }

    /// The same, with every tensor `offset` elements into its allocation, so that none starts at a
    /// vector's boundary.
    pub fn with_offset(self, offset: usize) -> Self {
        Self { offset, ..self }
    }

    /// The same, with the rows of x, y and their gradients `gap` elements further apart than they are
    /// long. The gaps hold NaN, and must do so afterwards.
    pub fn with_gap(self, gap: usize) -> Self {
        Self { gap, ..self }
    }

    /// The same with dropout, of which the case has the mask.
    pub fn with_dropout(self, dropout: Dropout) -> Self {
        Self { dropout: Some(dropout), ..self }
    }

    /// Prepares the case's adapter, runs one forward and one backward in `dtype`, and returns the
    /// six results in the order of [`Results::NAMES`](fused_dora::reference::Results::NAMES).
    ///
    /// Every output holds NaN beforehand, so that an element that no kernel writes is noticed.
    pub fn run(&self, case: &Case, dtype: Dtype) -> Result<[Vec<f32>; 6]> {
        let spec = spec(case, dtype)?;
        match dtype {
            Dtype::Bf16 => self.run_as::<half::bf16>(case, &spec),
            Dtype::F16 => self.run_as::<half::f16>(case, &spec),
            Dtype::F32 => self.run_as::<f32>(case, &spec),
        }
    }

    fn run_as<E: Element>(&self, case: &Case, spec: &DoraSpec) -> Result<[Vec<f32>; 6]> {
        let stream = &self.stream;
        let tokens = case.tokens;
        let (inputs, outputs) = (case.in_features, case.out_features);
        let x = self.rows::<E>(&case.input, inputs)?;
        let weight = self.upload::<E>(&case.weight)?;
        let bias = case.bias.as_deref().map(|bias| self.upload::<E>(bias)).transpose()?;
        let bias_view = || bias.as_ref().map(Buffer::view);
        let grad_output = self.rows::<E>(&case.grad_output, outputs)?;
        let lora_a = self.upload::<f32>(&case.lora_a)?;
        let lora_b = self.upload::<f32>(&case.lora_b)?;
        let magnitude = self.upload::<f32>(&case.magnitude)?;
        let has_norm = case.norm != Norm::None;

        let mut y = self.poisoned_rows::<E>(tokens, outputs)?;
        let form = self.dropout.map(|dropout| dropout.form());
        let keeps_z = case.norm == Norm::Output && form == Some(DropoutForm::Peft);
        let mut z = self.poisoned::<E>(if keeps_z { tokens * outputs } else { 0 })?;
        let mut h = self.poisoned::<E>(tokens * spec.padded_rank())?;
        let mut grad_input = self.poisoned_rows::<E>(tokens, inputs)?;
        let mut grad_lora_a = self.poisoned::<f32>(case.lora_a.len())?;
        let mut grad_lora_b = self.poisoned::<f32>(case.lora_b.len())?;
        let mut grad_magnitude = self.poisoned::<f32>(case.magnitude.len())?;
        let mut grad_bias = self.poisoned::<f32>(case.out_features)?;

        let mut workspace = Workspace::new(&self.kernels, stream, &[*spec], tokens)?;
        let mut prepared = Prepared::<E>::new(stream, spec)?;
        let inputs = Prepare {
            weight: weight.view(),
            lora_a: lora_a.view(),
            lora_b: lora_b.view(),
            magnitude: match has_norm {
                true => Magnitude::Given(magnitude.view()),
                false => Magnitude::None,
            },
            bias: None,
        };
        self.kernels.prepare(stream, spec, &mut workspace, &mut prepared, inputs)?;
        let forward = Forward {
            tokens,
            x: x.rows(),
            weight: weight.view(),
            bias: bias_view(),
            seed: 1,
            dropout: self.dropout,
            z: keeps_z.then(|| z.view_mut()),
            y: y.rows_mut(),
            h: h.view_mut(),
        };
        self.kernels.forward(stream, spec, &prepared, &mut workspace, forward)?;
        let mut backward = Backward {
            tokens,
            gradients: Gradients::Overwrite,
            x: x.rows(),
            weight: weight.view(),
            bias: bias_view(),
            output: (!keeps_z).then(|| y.rows()),
            z: keeps_z.then(|| z.view()),
            dropout: self.dropout,
            grad_output: grad_output.rows(),
            h: h.view(),
            grad_input: Some(grad_input.rows_mut()),
            grad_lora_a: grad_lora_a.view_mut(),
            grad_lora_b: grad_lora_b.view_mut(),
            grad_magnitude: has_norm.then(|| grad_magnitude.view_mut()),
            grad_bias: Some(grad_bias.view_mut()),
        };
        self.kernels.backward(stream, spec, &prepared, &mut workspace, &mut backward)?;
        if spec.norm_grad() == NormGrad::Exact {
            let io = NormGradient {
                weight: weight.view(),
                lora_a: lora_a.view(),
                lora_b: lora_b.view(),
                grad_magnitude: grad_magnitude.view(),
                grad_lora_a: grad_lora_a.view_mut(),
                grad_lora_b: grad_lora_b.view_mut(),
            };
            self.kernels.norm_gradient(stream, spec, &prepared, &mut workspace, io)?;
        }
        Ok([
            self.download_rows(&y)?,
            self.download_rows(&grad_input)?,
            self.download(&grad_lora_a)?,
            self.download(&grad_lora_b)?,
            self.download(&grad_magnitude)?,
            self.download(&grad_bias)?,
        ])
    }

    fn upload<E: Element>(&self, values: &[f64]) -> Result<Buffer<E>> {
        self.fill(values.iter().map(|&value| E::from_f32(value as f32)).collect(), 0)
    }

    fn poisoned<E: Element>(&self, len: usize) -> Result<Buffer<E>> {
        self.fill(vec![E::from_f32(POISON); len], 0)
    }

    /// Rows of `cols` elements with gaps behind them.
    fn rows<E: Element>(&self, values: &[f64], cols: usize) -> Result<Buffer<E>> {
        let mut spread = Vec::new();
        for row in values.chunks(cols) {
            spread.extend(row.iter().map(|&value| E::from_f32(value as f32)));
            spread.extend(vec![E::from_f32(POISON); self.gap]);
        }
        self.fill(spread, cols)
    }

    fn poisoned_rows<E: Element>(&self, rows: usize, cols: usize) -> Result<Buffer<E>> {
        self.fill(vec![E::from_f32(POISON); rows * (cols + self.gap)], cols)
    }

    fn fill<E: Element>(&self, values: Vec<E>, cols: usize) -> Result<Buffer<E>> {
        let (offset, len, gap) = (self.offset, values.len(), self.gap);
        // One element at least: a driver allocates no empty buffers.
        let mut padded = vec![E::from_f32(POISON); offset + len.max(1)];
        padded[offset..offset + len].copy_from_slice(&values);
        let slice = self.stream.clone_htod(&padded).map_err(driver("copying to the device"))?;
        Ok(Buffer { slice, offset, len, cols, gap })
    }

    fn download<E: Element>(&self, buffer: &Buffer<E>) -> Result<Vec<f32>> {
        let values =
            self.stream.clone_dtoh(&buffer.view()).map_err(driver("copying from the device"))?;
        Ok(values.into_iter().map(Element::to_f32).collect())
    }

    /// The rows without their gaps, in which nothing must have been written.
    fn download_rows<E: Element>(&self, buffer: &Buffer<E>) -> Result<Vec<f32>> {
        let values = self.download(buffer)?;
        let (rows, gaps): (Vec<_>, Vec<_>) =
            values.chunks(buffer.cols + buffer.gap).map(|row| row.split_at(buffer.cols)).unzip();
        assert!(gaps.concat().iter().all(|value| value.is_nan()), "a gap was written to");
        Ok(rows.concat())
    }
}

/// The layer that a case describes.
pub fn spec(case: &Case, dtype: Dtype) -> Result<DoraSpec> {
    let scaling = Scaling::Value(case.scaling as f32);
    let &Case { in_features, out_features, rank, norm, norm_grad, .. } = case;
    DoraSpec::new(in_features, out_features, rank, scaling, norm, norm_grad, dtype)
}

/// A driver error of a copy, as the crate's error.
pub fn driver(during: &'static str) -> impl Fn(fused_dora::cudarc::driver::DriverError) -> Error {
    move |source| Error::Driver { during, source }
}

/// A device buffer of `len` elements, of which there may be none, from `offset` on; of a matrix,
/// with `gap` elements behind each row of `cols`.
struct Buffer<E> {
    slice: CudaSlice<E>,
    offset: usize,
    len: usize,
    cols: usize,
    gap: usize,
}

impl<E> Buffer<E> {
    fn view(&self) -> CudaView<'_, E> {
        self.slice.slice(self.offset..self.offset + self.len)
    }

    fn view_mut(&mut self) -> CudaViewMut<'_, E> {
        self.slice.slice_mut(self.offset..self.offset + self.len)
    }

    fn rows(&self) -> MatrixView<'_, E> {
        match self.gap {
            0 => self.view().into(),
            gap => Rows::strided(self.view(), self.cols + gap),
        }
    }

    fn rows_mut(&mut self) -> MatrixViewMut<'_, E> {
        let stride = self.cols + self.gap;
        match self.gap {
            0 => self.view_mut().into(),
            _ => Rows::strided(self.view_mut(), stride),
        }
    }
}
