//! Bad input gets a typed error that names the numbers, before anything is launched.

mod table;

use std::sync::Arc;

use fused_dora::cudarc::driver::{CudaContext, CudaSlice, CudaStream, sys};
use fused_dora::{
    AdamW, AdamWConfig, Backward, Base, Decompose, Decomposition, DoraSpec, Dtype, ElementType,
    Error, Forward, GradientNorm, Gradients, Kernels, Magnitude, Merge, MergeReport, Norm,
    NormGrad, NormGradient, Prepare, Prepared, Scaling, Schedule, Workspace, open_device,
};
use half::bf16;

const TOKENS: usize = 6;
const INPUTS: usize = 10;
const OUTPUTS: usize = 12;
const RANK: usize = 3;

fn spec(norm: Norm) -> DoraSpec {
    spec_with(norm, NormGrad::Detached)
}

fn spec_with(norm: Norm, norm_grad: NormGrad) -> DoraSpec {
    let scaling = Scaling::Standard { alpha: 6.0 };
    DoraSpec::new(INPUTS, OUTPUTS, RANK, scaling, norm, norm_grad, Dtype::Bf16)
        .expect("a layer that can exist")
}

#[test]
fn impossible_layers() {
    let make = |inputs, outputs, rank, scaling| {
        let (norm, detached) = (Norm::Input, NormGrad::Detached);
        DoraSpec::new(inputs, outputs, rank, scaling, norm, detached, Dtype::F32)
            .expect_err("an impossible layer")
            .to_string()
    };
    let two = Scaling::Value(2.0);
    assert!(make(0, 4, 2, two).starts_with("in_features is 0"));
    assert!(make(4, 0, 2, two).starts_with("out_features is 0"));
    assert!(make(4, 4, 1 << 31, two).starts_with("rank is 2147483648"));
    assert!(make(1 << 31, 4, 2, two).starts_with("in_features is 2147483648"));
    assert!(make(4, 4, 2, Scaling::Standard { alpha: f32::NAN }).starts_with("scaling is NaN"));
    assert!(make(4, 4, 2, Scaling::Value(f32::INFINITY)).starts_with("scaling is inf"));
    assert!(make(4, 4, 2, Scaling::RankStabilized { alpha: f32::NAN }).contains("a finite number"));
    let lora = DoraSpec::new(4, 4, 2, two, Norm::None, NormGrad::Exact, Dtype::F32);
    let error = lora.expect_err("plain LoRA has no norm").to_string();
    assert!(error.starts_with("norm_grad is Exact: it must be Detached for plain LoRA"), "{error}");
}

#[test]
fn scalings() {
    let of = |scaling| {
        let (norm, detached) = (Norm::None, NormGrad::Detached);
        DoraSpec::new(4, 4, 16, scaling, norm, detached, Dtype::F32).expect("a layer").scaling()
    };
    assert_eq!(of(Scaling::Standard { alpha: 32.0 }), 2.0);
    assert_eq!(of(Scaling::RankStabilized { alpha: 32.0 }), 8.0);
    assert_eq!(of(Scaling::Value(0.25)), 0.25);
}

fn kernels() -> Arc<Kernels> {
    let context = fused_dora_testkit::device::open().expect("a device");
    Arc::new(Kernels::load(&context).expect("kernels"))
}

/// Everything one layer needs, each buffer of the right length; a test changes one.
struct Layer {
    kernels: Arc<Kernels>,
    stream: Arc<CudaStream>,
    spec: DoraSpec,
    workspace: Workspace,
    prepared: Prepared,
    x: CudaSlice<bf16>,
    weight: CudaSlice<bf16>,
    bias: CudaSlice<bf16>,
    y: CudaSlice<bf16>,
    h: CudaSlice<bf16>,
    lora_a: CudaSlice<f32>,
    lora_b: CudaSlice<f32>,
    magnitude: CudaSlice<f32>,
    grad_output: CudaSlice<bf16>,
    grad_lora_a: CudaSlice<f32>,
    grad_lora_b: CudaSlice<f32>,
    grad_magnitude: CudaSlice<f32>,
    grad_bias: CudaSlice<f32>,
}

impl Layer {
    fn new(norm: Norm) -> Self {
        Self::with_spec(spec(norm))
    }

    fn with_spec(spec: DoraSpec) -> Self {
        Self::on(&kernels(), spec)
    }

    /// On kernels that are loaded.
    fn on(kernels: &Arc<Kernels>, spec: DoraSpec) -> Self {
        let stream = kernels.context().default_stream();
        let bf16s = |n| stream.alloc_zeros::<bf16>(n).expect("memory");
        let f32s = |n| stream.alloc_zeros::<f32>(n).expect("memory");
        Self {
            workspace: Workspace::new(kernels, &stream, &[spec], TOKENS).expect("workspace"),
            prepared: Prepared::new(&stream, &spec).expect("prepared operands"),
            x: bf16s(TOKENS * INPUTS),
            weight: bf16s(OUTPUTS * INPUTS),
            bias: bf16s(OUTPUTS),
            y: bf16s(TOKENS * OUTPUTS),
            h: bf16s(TOKENS * spec.padded_rank()),
            lora_a: f32s(RANK * INPUTS),
            lora_b: f32s(OUTPUTS * RANK),
            magnitude: f32s(spec.magnitude_len().max(1)),
            grad_output: bf16s(TOKENS * OUTPUTS),
            grad_lora_a: f32s(RANK * INPUTS),
            grad_lora_b: f32s(OUTPUTS * RANK),
            grad_magnitude: f32s(spec.magnitude_len().max(1)),
            grad_bias: f32s(OUTPUTS),
            kernels: kernels.clone(),
            stream,
            spec,
        }
    }

    fn prepare(&mut self) -> Result<(), Error> {
        self.prepare_with(self.spec.norm() != Norm::None, None)
    }

    fn prepare_with(
        &mut self,
        has_magnitude: bool,
        bias: Option<&CudaSlice<f32>>,
    ) -> Result<(), Error> {
        let inputs = Prepare {
            weight: (&self.weight).into(),
            lora_a: (&self.lora_a).into(),
            lora_b: (&self.lora_b).into(),
            magnitude: match has_magnitude {
                true => Magnitude::Given((&self.magnitude).into()),
                false => Magnitude::None,
            },
            bias: bias.map(Into::into),
        };
        let Self { kernels, stream, spec, workspace, prepared, .. } = self;
        kernels.prepare(stream, spec, workspace, prepared, inputs)
    }

    fn forward(&mut self, tokens: usize) -> Result<(), Error> {
        self.forward_with(|io| io.tokens = tokens)
    }

    /// Runs a forward whose tensors `change` may replace.
    fn forward_with<'a>(&'a mut self, change: impl FnOnce(&mut Forward<'a>)) -> Result<(), Error> {
        let Self { kernels, stream, spec, workspace, prepared, .. } = self;
        let mut io = Forward {
            tokens: TOKENS,
            base: Base::new(&self.weight).with_bias(Some(&self.bias)),
            x: (&self.x).into(),
            y: (&mut self.y).into(),
            h: (&mut self.h).into(),
            z: None,
            dropout: None,
            counter: None,
            seed: 0,
        };
        change(&mut io);
        kernels.forward(stream, spec, prepared, workspace, io)
    }

    /// Runs a backward whose tensors `change` may replace.
    fn backward<'a>(&'a mut self, change: impl FnOnce(&mut Backward<'a>)) -> Result<(), Error> {
        let Self { kernels, stream, spec, workspace, prepared, .. } = self;
        let has_magnitude = spec.norm() != Norm::None;
        let mut io = Backward {
            tokens: TOKENS,
            gradients: Gradients::Overwrite,
            base: Base::new(&self.weight).with_bias(Some(&self.bias)),
            x: (&self.x).into(),
            output: Some((&self.y).into()),
            z: None,
            dropout: None,
            counter: None,
            grad_output: (&self.grad_output).into(),
            h: (&self.h).into(),
            grad_input: None,
            grad_lora_a: (&mut self.grad_lora_a).into(),
            grad_lora_b: (&mut self.grad_lora_b).into(),
            grad_magnitude: has_magnitude.then_some((&mut self.grad_magnitude).into()),
            grad_bias: Some((&mut self.grad_bias).into()),
        };
        change(&mut io);
        kernels.backward(stream, spec, prepared, workspace, io)
    }

    /// Runs `norm_gradient` on tensors that `change` may replace.
    fn norm_gradient<'a>(
        &'a mut self,
        change: impl FnOnce(&mut NormGradient<'a>),
    ) -> Result<(), Error> {
        let Self { kernels, stream, spec, workspace, prepared, .. } = self;
        let mut io = NormGradient {
            weight: (&self.weight).into(),
            lora_a: (&self.lora_a).into(),
            lora_b: (&self.lora_b).into(),
            grad_magnitude: (&self.grad_magnitude).into(),
            grad_lora_a: (&mut self.grad_lora_a).into(),
            grad_lora_b: (&mut self.grad_lora_b).into(),
        };
        change(&mut io);
        kernels.norm_gradient(stream, spec, prepared, workspace, io)
    }

    fn resize(&self, elements: usize) -> CudaSlice<bf16> {
        self.stream.alloc_zeros(elements).expect("memory")
    }
}

#[track_caller]
fn assert_shape(result: Result<(), Error>, name: &str, needs: usize, holds: usize) {
    match result {
        Err(Error::Shape { tensor, expected, found, .. }) => {
            assert_eq!((tensor, expected, found), (name, needs, holds));
        }
        other => panic!("a shape error for {name}, not {other:?}"),
    }
}

#[test]
fn wrong_shapes() {
    let mut layer = Layer::new(Norm::Output);
    layer.weight = layer.resize(OUTPUTS * INPUTS - 1);
    assert_shape(layer.prepare(), "weight", OUTPUTS * INPUTS, OUTPUTS * INPUTS - 1);
    layer.weight = layer.resize(OUTPUTS * INPUTS);
    layer.magnitude = layer.stream.alloc_zeros(INPUTS).expect("memory");
    assert_shape(layer.prepare(), "magnitude", OUTPUTS, INPUTS);
    layer.magnitude = layer.stream.alloc_zeros(OUTPUTS).expect("memory");
    let bias = layer.stream.alloc_zeros(INPUTS).expect("memory");
    assert_shape(layer.prepare_with(true, Some(&bias)), "bias", OUTPUTS, INPUTS);
    layer.prepare().expect("all shapes right");

    assert_shape(layer.forward(TOKENS + 1), "x", (TOKENS + 1) * INPUTS, TOKENS * INPUTS);
    layer.h = layer.resize(TOKENS * RANK);
    assert_shape(layer.forward(TOKENS), "h", TOKENS * 16, TOKENS * RANK);
    layer.h = layer.resize(TOKENS * 16);
    layer.forward(TOKENS).expect("all shapes right");

    let short = layer.resize(3);
    let result = layer.backward(|io| io.grad_output = (&short).into());
    assert_shape(result, "grad_output", TOKENS * OUTPUTS, 3);
    layer.backward(|_| {}).expect("all shapes right");
}

#[test]
fn wrong_order() {
    let mut layer = Layer::new(Norm::Input);
    assert!(matches!(layer.forward(TOKENS), Err(Error::NotPrepared { .. })));
    layer.prepare().expect("a magnitude");
    layer.forward(TOKENS).expect("prepared");
    layer.spec = spec(Norm::Output);
    assert!(matches!(layer.forward(TOKENS), Err(Error::NotPrepared { .. })));
}

#[test]
fn wrong_dtype() {
    let mut layer = Layer::new(Norm::Input);
    layer.prepare().expect("a magnitude");
    let wide = layer.stream.alloc_zeros::<f32>(TOKENS * INPUTS).expect("memory");
    let wrong = layer.forward_with(|io| io.x = (&wide).into()).expect_err("a layer in bf16");
    assert!(
        matches!(
            wrong,
            Error::Dtype { tensor: "x", found: ElementType::F32, needed: ElementType::Bf16 }
        ),
        "{wrong:?}"
    );
    assert_eq!(
        wrong.to_string(),
        "x holds f32, but bf16 is needed: convert it, or make a spec per dtype"
    );
}

#[test]
fn small_workspace() {
    const MANY: usize = 1000 * TOKENS;
    let mut layer = Layer::new(Norm::Input);
    layer.prepare().expect("a magnitude");
    layer.x = layer.resize(MANY * INPUTS);
    layer.y = layer.resize(MANY * OUTPUTS);
    layer.h = layer.resize(MANY * layer.spec.padded_rank());
    match layer.forward(MANY) {
        Err(Error::WorkspaceTooSmall { tokens: MANY, needed, available }) => {
            assert!(needed > available);
        }
        other => panic!("a workspace error, not {other:?}"),
    }
}

#[test]
fn absent_device() {
    fused_dora_testkit::device::open().expect("a device");
    match open_device(99) {
        Err(Error::NoDevice { ordinal: 99, count }) => assert!((1..=99).contains(&count)),
        other => panic!("NoDevice, not {other:?}"),
    }
}

#[test]
fn image_newer_than_driver() {
    let context = fused_dora_testkit::device::open().expect("a device");
    let image = ".version 99.0\n.target sm_80\n.address_size 64\n";
    match fused_dora::load_image(&context, "future.cu", image) {
        Err(error @ Error::PtxTooNew { .. }) => {
            let message = error.to_string();
            assert!(message.contains("99.0") && message.contains("update the driver"), "{message}");
        }
        other => panic!("PtxTooNew, not {:?}", other.map(|_| "a module")),
    }
}

/// Only layers whose gradients flow through a norm have a `norm_gradient`.
#[test]
fn no_norm_gradient() {
    for (norm, reason) in [(Norm::None, "has no norm"), (Norm::Input, "NormGrad::Exact")] {
        let mut layer = Layer::new(norm);
        layer.prepare().expect("all shapes right");
        match layer.norm_gradient(|_| {}) {
            Err(error @ Error::NoNormGradient { .. }) => {
                assert!(error.to_string().contains(reason), "{error}");
            }
            other => panic!("NoNormGradient, not {other:?}"),
        }
    }
}

#[test]
fn wrong_norm_gradient() {
    let exact = spec_with(Norm::Output, NormGrad::Exact);
    let mut layer = Layer::with_spec(exact);
    assert!(matches!(layer.norm_gradient(|_| {}), Err(Error::NotPrepared { .. })));
    layer.prepare().expect("all shapes right");
    layer.norm_gradient(|_| {}).expect("all shapes right");
    let short = layer.resize(5);
    let short_f32 = layer.stream.alloc_zeros::<f32>(3).expect("memory");
    let result = layer.norm_gradient(|io| io.grad_magnitude = (&short_f32).into());
    assert_shape(result, "grad_magnitude", OUTPUTS, 3);
    let result = layer.norm_gradient(|io| io.weight = (&short).into());
    assert_shape(result, "weight", OUTPUTS * INPUTS, 5);
    let result = layer.norm_gradient(|io| io.lora_b = short_f32.slice(..1).into());
    assert_shape(result, "lora_B", OUTPUTS * RANK, 1);

    // What was prepared for a detached norm is another spec's.
    layer.spec = spec(Norm::Output);
    assert!(matches!(layer.forward(TOKENS), Err(Error::NotPrepared { .. })));
}

/// A second context on the device, which is current afterwards.
fn second_context(kernels: &Kernels) -> Arc<CudaContext> {
    let device = kernels.context().cu_device();
    let mut raw = std::ptr::null_mut();
    // SAFETY: the pointer is valid for the call and the device was opened; no extra parameters.
    unsafe { sys::cuCtxCreate_v4(&mut raw, std::ptr::null_mut(), 0, device) }
        .result()
        .expect("a second context");
    // SAFETY: the context was just created, and nothing else destroys it.
    unsafe { CudaContext::from_raw_context(0, device, raw) }.expect("a second context")
}

/// Another context's memory means nothing to the kernels of this one.
#[test]
fn foreign_context() {
    let mut layer = Layer::new(Norm::Input);
    layer.prepare().expect("a magnitude");
    let other = second_context(&layer.kernels);
    let foreign = other.default_stream().alloc_zeros(TOKENS * INPUTS).expect("memory");
    layer.kernels.context().bind_to_thread().expect("the first context");
    layer.x = foreign;
    assert!(matches!(layer.forward(TOKENS), Err(Error::ContextMismatch)));
    let own = layer.resize(TOKENS * INPUTS);
    let foreign = std::mem::replace(&mut layer.x, own);
    layer.forward(TOKENS).expect("its own context");
    foreign_to_the_adapter_ops(&mut layer, &other);
    foreign_memory_of_the_crate(&mut layer, &other);
    layer.stream = other.default_stream();
    assert!(matches!(layer.forward(TOKENS), Err(Error::ContextMismatch)));
    free(foreign, &other, &layer.kernels);
}

/// Frees what belongs to another context than the kernels': cudarc frees in the current one.
fn free<T>(foreign: T, context: &Arc<CudaContext>, kernels: &Kernels) {
    context.bind_to_thread().expect("the second context");
    drop(foreign);
    kernels.context().bind_to_thread().expect("the first context");
}

/// Prepared operands and workspaces are memory of a context, too.
fn foreign_memory_of_the_crate(layer: &mut Layer, other: &Arc<CudaContext>) {
    let stream = other.default_stream();
    let foreign = Prepared::for_unmerge(&stream, &layer.spec, &[1.0; INPUTS]).expect("memory");
    let kernels = Kernels::load(other).expect("kernels");
    let workspace = Workspace::new(&kernels, &stream, &[layer.spec], TOKENS).expect("memory");
    layer.kernels.context().bind_to_thread().expect("the first context");
    let own = std::mem::replace(&mut layer.prepared, foreign);
    let outcome = layer.prepare();
    assert!(matches!(outcome, Err(Error::ContextMismatch)), "{outcome:?}");
    let foreign = std::mem::replace(&mut layer.prepared, own);
    layer.forward(TOKENS).expect("its own context");
    let own = std::mem::replace(&mut layer.workspace, workspace);
    let outcome = layer.forward(TOKENS);
    assert!(matches!(outcome, Err(Error::ContextMismatch)), "{outcome:?}");
    let workspace = std::mem::replace(&mut layer.workspace, own);
    layer.forward(TOKENS).expect("its own context");
    free((foreign, workspace, kernels), other, &layer.kernels);
}

fn foreign_to_the_adapter_ops(layer: &mut Layer, other: &Arc<CudaContext>) {
    let mut foreign = other.default_stream().alloc_zeros::<f32>(OUTPUTS * INPUTS).expect("memory");
    layer.kernels.context().bind_to_thread().expect("the first context");
    let Layer { kernels, stream, spec, workspace, prepared, weight, lora_a, lora_b, .. } = layer;
    let len = OUTPUTS * INPUTS;
    let mut own = [0; 4].map(|_| stream.alloc_zeros::<f32>(len).expect("memory"));
    let mut sums = stream.alloc_zeros::<f64>(MergeReport::LEN).expect("memory");
    let [parameters, exp_avg, exp_avg_sq, norm] = &mut own;
    let norm = norm.slice_mut(..1).into();
    let io = GradientNorm { len, parts: &[], gradients: (&foreign).into(), norm };
    let of_norm = kernels.gradient_norm(stream, workspace, io);
    let io = AdamW {
        len,
        parts: &[],
        schedule: Schedule::Host { learning_rate: 1e-3, step: 1 },
        clip: None,
        parameters: parameters.into(),
        gradients: (&foreign).into(),
        exp_avg: exp_avg.into(),
        exp_avg_sq: exp_avg_sq.into(),
    };
    let of_step = kernels.adamw(stream, &AdamWConfig::default(), io);
    let io = Decompose {
        axis: Norm::Input,
        weight: (&*weight).into(),
        changed: (&foreign).into(),
        result: sums.slice_mut(..Decomposition::LEN).into(),
    };
    let of_change = kernels.decompose(stream, spec, workspace, io);
    let io = Merge {
        weight: (&*weight).into(),
        lora_a: (&*lora_a).into(),
        lora_b: (&*lora_b).into(),
        merged: (&mut foreign).into(),
        report: None,
    };
    let of_merge = kernels.merge(stream, spec, prepared, workspace, io);
    for outcome in [of_norm, of_step, of_change, of_merge] {
        assert!(matches!(outcome, Err(Error::ContextMismatch)), "{outcome:?}");
    }
    free(foreign, other, &layer.kernels);
}
