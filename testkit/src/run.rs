//! Runs a case through the kernels.

use std::sync::Arc;

use fused_dora::cudarc::driver::{CudaContext, CudaSlice, CudaStream, CudaView};
use fused_dora::quant::QuantizedWeight;
use fused_dora::reference::Case;
use fused_dora::{
    Backward, Base, DoraSpec, Dropout, Dtype, Element, Error, F32Math, Forward, Gradients, Kernels,
    Layer as DeviceLayer, Norm, NormGradient, Prepare, Read, Result, Scaling, SharedWeight, Weight,
    Workspace, Write,
};

/// The device's answer that nothing overwrote: a NaN of all ones in every dtype.
const POISON: f32 = f32::from_bits(u32::MAX);

/// The kernels on a stream of one device.
pub struct Runner {
    stream: Arc<CudaStream>,
    kernels: Arc<Kernels>,
    offset: usize,
    gap: usize,
    dropout: Option<Dropout>,
    counter: Option<u64>,
    repeats: usize,
    packed: Option<QuantizedWeight<'static>>,
}

impl Runner {
    /// Loads the kernels into `context`.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        Ok(Self::with_kernels(&Arc::new(Kernels::load(context)?)))
    }

    /// Loads kernels that multiply f32 matrices in this way.
    pub fn by_math(context: &Arc<CudaContext>, math: F32Math) -> Result<Self> {
        Ok(Self::with_kernels(&Arc::new(Kernels::load(context)?.with_f32_math(math))))
    }

    /// Takes kernels that are loaded.
    pub fn with_kernels(kernels: &Arc<Kernels>) -> Self {
        let (stream, kernels) = (kernels.context().default_stream(), kernels.clone());
        Self {
            stream,
            kernels,
            offset: 0,
            gap: 0,
            dropout: None,
            counter: None,
            repeats: 0,
            packed: None,
        }
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

    /// The same with dropout. The case has its mask.
    pub fn with_dropout(self, dropout: Dropout) -> Self {
        Self { dropout: Some(dropout), ..self }
    }

    /// The same with a counter on the device that holds this.
    pub fn with_counter(self, counter: u64) -> Self {
        Self { counter: Some(counter), ..self }
    }

    /// The same after so many other micro-batches on one workspace.
    pub fn with_repeats(self, repeats: usize) -> Self {
        Self { repeats, ..self }
    }

    /// The same with this W, which stands for the case's.
    pub fn with_packed(self, weight: QuantizedWeight<'static>) -> Self {
        Self { packed: Some(weight), ..self }
    }

    /// Prepares the case's adapter, runs one forward, one backward and, where the case's gradients
    /// flow through the norm, `norm_gradient` in `dtype`, and returns the six results in the order
    /// of [`Results::NAMES`](fused_dora::reference::Results::NAMES).
    ///
    /// Every output holds NaN beforehand, so that an element that no kernel writes is noticed.
    pub fn run(&self, case: &Case, dtype: Dtype) -> Result<[Vec<f32>; 6]> {
        match dtype {
            Dtype::Bf16 => self.run_as::<half::bf16>(case),
            Dtype::F16 => self.run_as::<half::f16>(case),
            Dtype::F32 => self.run_as::<f32>(case),
        }
    }

    fn run_as<E: Element>(&self, case: &Case) -> Result<[Vec<f32>; 6]> {
        let mut layer = Layer::<E>::new(self, case)?;
        for _ in 0..self.repeats {
            layer.micro_batch(case, Gradients::Overwrite)?;
        }
        let [y, dx] = layer.micro_batch(case, Gradients::Overwrite)?;
        layer.finish()?;
        let [da, db, dm, dbias] = layer.gradients()?;
        Ok([y, dx, da, db, dm, dbias])
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

    /// The rows without their gaps, in which nothing must have been written.
    fn download_rows<E: Element>(&self, buffer: &Buffer<E>) -> Result<Vec<f32>> {
        let values = self.download(&buffer.view(), Element::to_f32)?;
        let (rows, gaps): (Vec<_>, Vec<_>) =
            values.chunks(buffer.cols + buffer.gap).map(|row| row.split_at(buffer.cols)).unzip();
        assert!(gaps.concat().iter().all(|value| value.is_nan()), "a gap was written to");
        Ok(rows.concat())
    }

    fn download<T: Copy + Default, E: Element>(
        &self,
        view: &CudaView<'_, E>,
        map: impl Fn(E) -> T,
    ) -> Result<Vec<T>> {
        let values = self.stream.clone_dtoh(view).map_err(driver("copying from the device"))?;
        Ok(values.into_iter().map(map).collect())
    }
}

/// One layer on the device: W, the prepared adapter, and the gradients of its parameters.
pub struct Layer<'a, E> {
    runner: &'a Runner,
    spec: DoraSpec,
    /// Of the stochastic rounding.
    pub seed: u64,
    workspace: Workspace,
    layer: DeviceLayer,
    weight: LayerWeight<E>,
    bias: Option<Buffer<E>>,
    counter: Option<CudaSlice<u64>>,
    lora_a: Buffer<f32>,
    lora_b: Buffer<f32>,
    /// dA, dB, dm, db.
    gradients: [Buffer<f32>; 4],
}

impl<'a, E: Element> Layer<'a, E> {
    /// Uploads and prepares the case's layer, for micro-batches of up to its tokens. All gradients
    /// hold NaN.
    pub fn new(runner: &'a Runner, case: &Case) -> Result<Self> {
        let spec = spec(case, E::DTYPE)?;
        let packed = runner.packed.as_ref();
        let spec = packed.map_or(Ok(spec), |weight| spec.with_weight(weight.format()))?;
        let Runner { stream, kernels, .. } = runner;
        let mut layer = Self {
            runner,
            spec,
            seed: 1,
            workspace: Workspace::new(kernels, stream, &[spec], case.tokens)?,
            layer: DeviceLayer::new(stream, &spec)?,
            weight: LayerWeight::new(runner, case)?,
            bias: case.bias.as_deref().map(|bias| runner.upload(bias)).transpose()?,
            counter: runner
                .counter
                .map(|counter| stream.clone_htod(&[counter]))
                .transpose()
                .map_err(driver("copying to the device"))?,
            lora_a: runner.upload(&case.lora_a)?,
            lora_b: runner.upload(&case.lora_b)?,
            gradients: [
                runner.poisoned(case.lora_a.len())?,
                runner.poisoned(case.lora_b.len())?,
                runner.poisoned(case.magnitude.len())?,
                runner.poisoned(case.out_features)?,
            ],
        };
        let magnitude = runner.upload::<f32>(&case.magnitude)?;
        let Self { workspace, layer: prepared, weight, lora_a, lora_b, .. } = &mut layer;
        let inputs = Prepare {
            weight: weight.read(),
            lora_a: lora_a.read(),
            lora_b: lora_b.read(),
            magnitude: (case.norm != Norm::None).then(|| magnitude.read()).into(),
            bias: None,
        };
        prepared.prepare(kernels, stream, workspace, inputs)?;
        Ok(layer)
    }

    /// y of the batch's input.
    pub fn forward(&mut self, batch: &Case) -> Result<Vec<f32>> {
        let Activations { y, .. } = self.activations(batch)?;
        self.runner.download_rows(&y)
    }

    fn activations(&mut self, batch: &Case) -> Result<Activations<E>> {
        let (runner, spec) = (self.runner, &self.spec);
        let tokens = batch.tokens;
        let x = runner.rows::<E>(&batch.input, spec.in_features())?;
        let mut y = runner.poisoned_rows::<E>(tokens, spec.out_features())?;
        let keeps_z = self.layer.keeps_z(runner.dropout.as_ref())?;
        let z = keeps_z.then(|| runner.poisoned::<E>(tokens * spec.out_features()));
        let mut z = z.transpose()?;
        let mut h = runner.poisoned::<E>(self.layer.h_len(tokens))?;
        let io = Forward {
            tokens,
            base: Base::new(self.weight.read()).with_bias(self.bias.as_ref().map(Buffer::read)),
            x: x.rows(),
            y: y.rows_mut(),
            h: h.write(),
            z: z.as_mut().map(Buffer::write),
            dropout: runner.dropout,
            counter: self.counter.as_ref().map(Into::into),
            seed: self.seed,
        };
        let Runner { stream, kernels, .. } = runner;
        self.layer.forward(kernels, stream, &mut self.workspace, io)?;
        Ok(Activations { x, y, z, h })
    }

    /// One forward and one backward of the batch's input and output gradient: y and dX.
    pub fn micro_batch(&mut self, batch: &Case, gradients: Gradients) -> Result<[Vec<f32>; 2]> {
        let Activations { x, y, z, h } = self.activations(batch)?;
        let (runner, spec) = (self.runner, &self.spec);
        let grad_output = runner.rows::<E>(&batch.grad_output, spec.out_features())?;
        let mut grad_input = runner.poisoned_rows::<E>(batch.tokens, spec.in_features())?;
        let [grad_lora_a, grad_lora_b, grad_magnitude, grad_bias] = &mut self.gradients;
        let io = Backward {
            tokens: batch.tokens,
            gradients,
            base: Base::new(self.weight.read()).with_bias(self.bias.as_ref().map(Buffer::read)),
            x: x.rows(),
            output: Some(y.rows()),
            z: z.as_ref().map(Buffer::read),
            dropout: runner.dropout,
            counter: self.counter.as_ref().map(Into::into),
            grad_output: grad_output.rows(),
            h: h.read(),
            grad_input: Some(grad_input.rows_mut()),
            grad_lora_a: grad_lora_a.write(),
            grad_lora_b: grad_lora_b.write(),
            grad_magnitude: (spec.norm() != Norm::None).then(|| grad_magnitude.write()),
            grad_bias: Some(grad_bias.write()),
        };
        let Runner { stream, kernels, .. } = runner;
        self.layer.backward(kernels, stream, &mut self.workspace, io)?;
        Ok([runner.download_rows(&y)?, runner.download_rows(&grad_input)?])
    }

    /// Subtracts what flows through the norm from dA and dB.
    pub fn norm_gradient(&mut self) -> Result<()> {
        let Runner { stream, kernels, .. } = self.runner;
        let (spec, workspace, layer, io) = self.norm_gradient_io();
        kernels.norm_gradient(stream, spec, layer.prepared(), workspace, io)
    }

    /// The same where the case's gradients flow through the norm, and otherwise nothing.
    fn finish(&mut self) -> Result<()> {
        let Runner { stream, kernels, .. } = self.runner;
        let (_, workspace, layer, io) = self.norm_gradient_io();
        layer.finish(kernels, stream, workspace, io)
    }

    fn norm_gradient_io(&mut self) -> (&DoraSpec, &mut Workspace, &DeviceLayer, NormGradient<'_>) {
        let Self { spec, workspace, layer, weight, lora_a, lora_b, gradients, .. } = self;
        let [grad_lora_a, grad_lora_b, grad_magnitude, _] = gradients;
        let io = NormGradient {
            weight: weight.read(),
            lora_a: lora_a.read(),
            lora_b: lora_b.read(),
            grad_magnitude: grad_magnitude.read(),
            grad_lora_a: grad_lora_a.write(),
            grad_lora_b: grad_lora_b.write(),
        };
        (spec, workspace, layer, io)
    }

    /// dA, dB, dm and db.
    pub fn gradients(&self) -> Result<[Vec<f32>; 4]> {
        let [da, db, dm, dbias] = &self.gradients;
        let download = |buffer: &Buffer<f32>| self.runner.download(&buffer.view(), |value| value);
        Ok([download(da)?, download(db)?, download(dm)?, download(dbias)?])
    }

    /// Replaces dA, dB, dm and db.
    pub fn set_gradients(&mut self, values: [&[f64]; 4]) -> Result<()> {
        for (buffer, values) in self.gradients.iter_mut().zip(values) {
            assert_eq!(buffer.len, values.len());
            *buffer = self.runner.upload(values)?;
        }
        Ok(())
    }

    /// c and g; empty for plain LoRA.
    pub fn norm_and_gain(&self) -> Result<[Vec<f32>; 2]> {
        let (prepared, stream) = (self.layer.prepared(), &self.runner.stream);
        Ok([prepared.read_norm(stream)?, prepared.read_gain(stream)?])
    }
}

/// W, dense or packed.
enum LayerWeight<E> {
    Dense(Buffer<E>),
    Packed(SharedWeight),
}

impl<E: Element> LayerWeight<E> {
    fn new(runner: &Runner, case: &Case) -> Result<Self> {
        match &runner.packed {
            None => runner.upload(&case.weight).map(Self::Dense),
            Some(weight) => {
                SharedWeight::packed(&runner.stream, E::DTYPE, weight).map(Self::Packed)
            }
        }
    }

    fn read(&self) -> Weight<'_> {
        match self {
            Self::Dense(buffer) => buffer.read().into(),
            Self::Packed(weight) => weight.read(),
        }
    }
}

/// What a forward leaves for the backward.
struct Activations<E> {
    x: Buffer<E>,
    y: Buffer<E>,
    z: Option<Buffer<E>>,
    h: Buffer<E>,
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

/// A device buffer of `len` elements from `offset` on. There may be none. A matrix has `gap`
/// elements behind each row of `cols`.
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
}

impl<E: Element> Buffer<E> {
    fn read(&self) -> Read<'_> {
        self.view().into()
    }

    fn write(&mut self) -> Write<'_> {
        self.slice.slice_mut(self.offset..self.offset + self.len).into()
    }

    fn rows(&self) -> Read<'_> {
        match self.gap {
            0 => self.read(),
            gap => self.read().with_row_stride(self.cols + gap),
        }
    }

    fn rows_mut(&mut self) -> Write<'_> {
        let (gap, stride) = (self.gap, self.cols + self.gap);
        match gap {
            0 => self.write(),
            _ => self.write().with_row_stride(stride),
        }
    }
}
