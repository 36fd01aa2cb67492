//! Every op with the tensors that it asks for, in one table: a test that goes through it covers each
//! tensor of each op, also those that come later.

use std::sync::{Arc, Mutex};

use fused_dora::cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, sys};
use fused_dora::quant::{BlockScales, Code4, Fp8Scales, WeightFormat};
use fused_dora::{
    AdamW, AdamWConfig, Adapter, Backward, Clip, Decompose, DecomposeAdapter, Decomposition,
    Dequantize, DoraLinear, DoraSpec, Dropout, DropoutForm, Dtype, Element, Forward, GradientNorm,
    Gradients, InPlace, Kernels, LinearBackward, LinearForward, Magnitude, Merge, MergeReport,
    NestedOffset, NestedScales, NestedTarget, NormGrad, NormGradient, OptimizerGroup,
    OptimizerPart, PackedWeight, Prepare, Prepared, Quantize, Result, Scaling, Schedule,
    SharedTensor, SharedWeight, Tiles, Unmerge, Workspace, Write,
};
use half::{bf16, f16};

use super::call::{F32, F64, Needed, Sizes, Tensors, U8, U64, typed};

const REPORT: Needed = Needed::vector(F64, MergeReport::LEN);
const RESULT: Needed = Needed::vector(F64, Decomposition::LEN);
/// A buffer of the optimizer.
const BUFFER: Needed = Needed::vector(F32, 12);
/// Of steps.
const COUNTER: Needed = Needed::vector(U64, 1);
/// A norm.
const NUMBER: Needed = Needed::vector(F32, 1);
/// `nested_quant_map`.
const MAP: Needed = Needed::vector(F32, 256);

/// A layer that is prepared, and the kernels.
pub struct Device {
    pub sizes: Sizes,
    pub kernels: Arc<Kernels>,
    pub stream: Arc<CudaStream>,
    /// A stream of another context.
    pub foreign: Arc<CudaStream>,
    pub spec: DoraSpec,
    workspace: Workspace,
    prepared: Prepared,
    /// The memory of the prepared operands.
    operands: CudaSlice<u8>,
    linear: DoraLinear,
}

impl Device {
    pub fn new(sizes: Sizes, kernels: &Arc<Kernels>) -> Self {
        let (context, kernels) = (kernels.context().clone(), kernels.clone());
        let stream = context.default_stream();
        let foreign = second_context(&context);
        context.bind_to_thread().expect("the first context");
        let Sizes { tokens, inputs, outputs, rank, norm, dtype } = sizes;
        let (scaling, exact) = (Scaling::Value(1.0), NormGrad::Exact);
        let spec = DoraSpec::new(inputs, outputs, rank, scaling, norm, exact, dtype);
        let spec = spec.expect("a layer");
        assert_eq!(spec.padded_rank(), sizes.h().cols);
        let base = DoraLinear::base_spec(inputs, outputs, dtype).expect("a layer");
        let workspace =
            || Workspace::new(&kernels, &stream, &[base, spec], tokens).expect("memory");
        let weight = ones(&stream, dtype, outputs * inputs);
        let shared = Arc::new(Mutex::new(workspace()));
        let shape = [outputs, inputs];
        let mut linear = DoraLinear::new(&kernels, &stream, &shared, shape, weight, None)
            .expect("the right shapes");
        linear.attach("one", Adapter::new(&stream, &spec, true).expect("memory")).expect("fits");
        linear.initialise("one", 1).expect("attached");
        linear.activate(Some("one")).expect("attached");
        let bytes = Prepared::bytes(&spec);
        let operands = stream.alloc_zeros::<u8>(bytes).expect("memory");
        let address = operands.device_ptr(&stream).0;
        // SAFETY: the memory is the kernels' context's, for these operands alone, and lives as long.
        let prepared = unsafe { Prepared::at_address(&spec, address, bytes) }.expect("memory");
        let workspace = workspace();
        let mut device =
            Self { sizes, kernels, stream, foreign, spec, workspace, prepared, operands, linear };
        device.prepare(None).expect("the right shapes");
        device
    }

    /// Prepares a layer of ones, or the shard of one.
    pub fn prepare(&mut self, magnitude: Option<Magnitude<'_>>) -> Result<()> {
        let Self { kernels, stream, spec, workspace, prepared, sizes, .. } = self;
        let weight: SharedWeight = ones(stream, sizes.dtype, sizes.weight().len()).into();
        let len = sizes.weight().len().max(sizes.a().len()).max(sizes.b().len());
        let ones = stream.clone_htod(&vec![1.0f32; len]).expect("memory");
        let given = Magnitude::Given(ones.slice(..sizes.m().len()).into());
        let io = Prepare {
            weight: weight.read(),
            lora_a: ones.slice(..sizes.a().len()).into(),
            lora_b: ones.slice(..sizes.b().len()).into(),
            magnitude: magnitude.unwrap_or(given),
            bias: None,
        };
        kernels.prepare(stream, spec, workspace, prepared, io)?;
        stream.synchronize().expect("no fault");
        Ok(())
    }

    /// The prepared operands, byte for byte.
    pub fn operands(&self) -> Vec<u8> {
        self.stream.clone_dtoh(&self.operands).expect("a copy")
    }
}

/// The kernels, with products of these tiles.
pub fn kernels(tiles: Option<Tiles>) -> Arc<Kernels> {
    let context = fused_dora_testkit::device::open().expect("a device");
    Arc::new(Kernels::load(&context).expect("kernels").with_tiles(tiles))
}

/// A tensor of ones.
pub fn ones(stream: &Arc<CudaStream>, dtype: Dtype, len: usize) -> SharedTensor {
    fn slice<E: Element>(stream: &Arc<CudaStream>, len: usize) -> Arc<CudaSlice<E>> {
        Arc::new(stream.clone_htod(&vec![E::from_f32(1.0); len]).expect("memory"))
    }
    match dtype {
        Dtype::Bf16 => slice::<bf16>(stream, len).into(),
        Dtype::F16 => slice::<f16>(stream, len).into(),
        Dtype::F32 => slice::<f32>(stream, len).into(),
    }
}

/// The default stream of a second context on the device, which is current afterwards.
fn second_context(context: &Arc<CudaContext>) -> Arc<CudaStream> {
    let device = context.cu_device();
    let mut raw = std::ptr::null_mut();
    // SAFETY: the pointer is valid for the call and the device was opened; no extra parameters.
    unsafe { sys::cuCtxCreate_v4(&mut raw, std::ptr::null_mut(), 0, device) }
        .result()
        .expect("a second context");
    // SAFETY: the context was just created, and nothing else destroys it.
    let second = unsafe { CudaContext::from_raw_context(0, device, raw) };
    second.expect("a second context").default_stream()
}

/// A call of an op with the tensors that it asks for.
pub type Op = fn(&mut Device, &mut Tensors<'_>) -> Result<()>;

/// Every op, once for each choice of tensors that exclude one another.
pub const OPS: [(&str, Op); 31] = [
    ("prepare", |d, t| {
        let magnitude = Magnitude::Given(t.read("magnitude", t.sizes.m()));
        prepare(d, t, magnitude)
    }),
    ("prepare of a fresh adapter", |d, t| {
        let magnitude = Magnitude::Init(t.write("magnitude", t.sizes.m()));
        prepare(d, t, magnitude)
    }),
    ("prepare of a shard", |d, t| prepare(d, t, Magnitude::Sharded)),
    ("finish_prepare", |d, t| {
        d.prepare(Some(Magnitude::Sharded))?;
        let magnitude = Magnitude::Given(t.read("magnitude", t.sizes.m()));
        finish_prepare(d, t, magnitude)
    }),
    ("finish_prepare of a fresh adapter", |d, t| {
        d.prepare(Some(Magnitude::Sharded))?;
        let magnitude = Magnitude::Init(t.write("magnitude", t.sizes.m()));
        finish_prepare(d, t, magnitude)
    }),
    ("forward", |d, t| forward(d, t, None)),
    ("forward with dropout", |d, t| forward(d, t, Some(dropout(DropoutForm::Adapter)))),
    ("forward with PEFT's dropout", |d, t| forward(d, t, Some(dropout(DropoutForm::Peft)))),
    ("backward", |d, t| backward(d, t, None)),
    ("backward with dropout", |d, t| backward(d, t, Some(dropout(DropoutForm::Adapter)))),
    ("backward with PEFT's dropout", |d, t| backward(d, t, Some(dropout(DropoutForm::Peft)))),
    ("norm_gradient", |d, t| {
        let io = NormGradient {
            weight: t.read("weight", t.sizes.weight()).into(),
            lora_a: t.read("lora_A", t.sizes.a()),
            lora_b: t.read("lora_B", t.sizes.b()),
            grad_magnitude: t.read("grad_magnitude", t.sizes.m()),
            grad_lora_a: t.write("grad_lora_A", t.sizes.a()),
            grad_lora_b: t.write("grad_lora_B", t.sizes.b()),
        };
        d.kernels.norm_gradient(&d.stream, &d.spec, &d.prepared, &mut d.workspace, io)
    }),
    ("gradient_norm", |d, t| {
        let (gradients, norm) = (t.read("gradients", BUFFER), one_number(t));
        let io = GradientNorm { len: BUFFER.len(), parts: &parts(), gradients, norm };
        d.kernels.gradient_norm(&d.stream, &mut d.workspace, io)
    }),
    ("adamw", |d, t| adamw(d, t, Schedule::Host { learning_rate: 0.1, step: 1 })),
    ("adamw with a schedule on the device", |d, t| {
        let numbers = t.read("schedule", Needed::vector(F32, 2));
        adamw(d, t, Schedule::Device(numbers))
    }),
    ("adamw that counts its steps", |d, t| {
        let numbers = t.read("schedule", Needed::vector(F32, 2));
        let counter = t.write("counter", COUNTER);
        adamw(d, t, Schedule::Counted { numbers, counter })
    }),
    ("merge", |d, t| {
        let io = Merge {
            weight: t.read("weight", t.sizes.weight()).into(),
            lora_a: t.read("lora_A", t.sizes.a()),
            lora_b: t.read("lora_B", t.sizes.b()),
            merged: t.write("merged", t.sizes.merged()),
            report: Some(t.write("report", REPORT)),
        };
        d.kernels.merge(&d.stream, &d.spec, &d.prepared, &mut d.workspace, io)
    }),
    ("unmerge", |d, t| {
        let io = Unmerge {
            merged: t.read("merged", t.sizes.merged()),
            lora_a: t.read("lora_A", t.sizes.a()),
            lora_b: t.read("lora_B", t.sizes.b()),
            weight: t.write("weight", t.sizes.weight()),
        };
        d.kernels.unmerge(&d.stream, &d.spec, &d.prepared, &mut d.workspace, io)
    }),
    ("merge_in_place", |d, t| {
        let (io, report) = (in_place(t), Some(t.write("report", REPORT)));
        d.kernels.merge_in_place(&d.stream, &d.spec, &d.prepared, &mut d.workspace, io, report)
    }),
    ("unmerge_in_place", |d, t| {
        let io = in_place(t);
        d.kernels.unmerge_in_place(&d.stream, &d.spec, &d.prepared, &mut d.workspace, io)
    }),
    ("decompose", |d, t| {
        let io = Decompose {
            axis: d.sizes.norm,
            weight: t.read("weight", t.sizes.weight()).into(),
            changed: t.read("changed", t.sizes.merged()),
            result: t.write("result", RESULT),
        };
        d.kernels.decompose(&d.stream, &d.spec, &mut d.workspace, io)
    }),
    ("decompose_adapter", |d, t| {
        let io = DecomposeAdapter {
            axis: d.sizes.norm,
            weight: t.read("weight", t.sizes.weight()).into(),
            lora_a: t.read("lora_A", t.sizes.a()),
            lora_b: t.read("lora_B", t.sizes.b()),
            result: t.write("result", RESULT),
        };
        d.kernels.decompose_adapter(&d.stream, &d.spec, &d.prepared, &mut d.workspace, io)
    }),
    ("quantize to NF4", |d, t| quantize(d, t, nf4(BlockScales::F32), false)),
    ("quantize to NF4, nested", |d, t| quantize(d, t, nf4(BlockScales::Nested), false)),
    ("quantize to NF4, nested, with an offset", |d, t| {
        quantize(d, t, nf4(BlockScales::Nested), true)
    }),
    ("quantize to fp8", |d, t| {
        quantize(d, t, WeightFormat::Fp8 { scales: Fp8Scales::Tensor }, false)
    }),
    ("dequantize", |d, t| {
        let (format, sizes) = (nf4(BlockScales::Nested), t.sizes);
        let [bytes, scales] = lengths(sizes, format);
        let weight = PackedWeight {
            format,
            elements: t.read("the packed weight", Needed::vector(U8, bytes)),
            scales: t.read("absmax", Needed::vector(U8, scales)),
            nested: Some(NestedScales {
                absmax: t.read("nested_absmax", NUMBER),
                map: t.read("nested_quant_map", MAP),
                offset: 0.1,
            }),
        };
        let target = t.write("target", sizes.weight());
        let spec = d.spec.with_weight(format)?;
        d.kernels.dequantize(&d.stream, &spec, Dequantize { weight: weight.into(), target })
    }),
    ("DoraLinear's forward", |d, t| {
        let (tokens, dropout) = (t.sizes.tokens, None);
        let mut saved = d.linear.saved(tokens, None)?;
        let (x, y) = (t.read("x", t.sizes.x()), t.write("y", t.sizes.y()));
        d.linear
            .forward(&mut saved, LinearForward { tokens, x, y, seed: 0, dropout, counter: None })
    }),
    ("DoraLinear's backward", |d, t| {
        let (tokens, dropout) = (t.sizes.tokens, None);
        let mut saved = d.linear.saved(tokens, None)?;
        let x = ones(&d.stream, t.sizes.dtype, t.sizes.x().len());
        let y = typed(&d.stream, t.sizes.own(), t.sizes.y().len()).into_write();
        d.linear.forward(
            &mut saved,
            LinearForward { tokens, x: x.read(), y, seed: 0, dropout, counter: None },
        )?;
        let io = LinearBackward {
            tokens,
            gradients: Gradients::Overwrite,
            x: t.read("x", t.sizes.x()),
            y: t.read("output", t.sizes.y()),
            dropout,
            counter: None,
            grad_output: t.read("grad_output", t.sizes.y()),
            grad_input: Some(t.write("grad_input", t.sizes.x())),
        };
        d.linear.backward(&saved, io)
    }),
    ("DoraLinear's merge", |d, t| {
        let (merged, report) = (t.write("merged", t.sizes.merged()), t.write("report", REPORT));
        d.linear.merge(merged, Some(report))
    }),
    ("DoraLinear's unmerge", |d, t| {
        let mut merged = d.stream.alloc_zeros::<f32>(t.sizes.weight().len()).expect("memory");
        d.linear.merge(&mut merged, None)?;
        d.linear.unmerge(t.read("merged", t.sizes.merged()), t.write("weight", t.sizes.weight()))
    }),
];

fn dropout(form: DropoutForm) -> Dropout {
    Dropout::new(0.25, form, 1).expect("a probability")
}

/// Whether a dropout is PEFT's, which keeps z.
fn keeps_z(dropout: Option<Dropout>) -> bool {
    dropout.is_some_and(|dropout| dropout.form() == DropoutForm::Peft)
}

fn prepare(d: &mut Device, t: &mut Tensors<'_>, magnitude: Magnitude<'_>) -> Result<()> {
    let io = Prepare {
        weight: t.read("weight", t.sizes.weight()).into(),
        lora_a: t.read("lora_A", t.sizes.a()),
        lora_b: t.read("lora_B", t.sizes.b()),
        magnitude,
        bias: Some(t.read("bias", t.sizes.trained_bias())),
    };
    d.kernels.prepare(&d.stream, &d.spec, &mut d.workspace, &mut d.prepared, io)
}

fn finish_prepare(d: &mut Device, t: &mut Tensors<'_>, magnitude: Magnitude<'_>) -> Result<()> {
    let lora_b = t.read("lora_B", t.sizes.b());
    d.kernels.finish_prepare(&d.stream, &d.spec, &mut d.prepared, lora_b, magnitude)
}

fn forward(d: &mut Device, t: &mut Tensors<'_>, dropout: Option<Dropout>) -> Result<()> {
    let z = Needed { takes_stride: false, ..t.sizes.y() };
    let io = Forward {
        tokens: t.sizes.tokens,
        base: t.base(),
        x: t.read("x", t.sizes.x()),
        y: t.write("y", t.sizes.y()),
        h: t.write("h", t.sizes.h()),
        z: keeps_z(dropout).then(|| t.write("z", z)),
        dropout,
        counter: dropout.map(|_| t.read("counter", COUNTER)),
        seed: 0,
    };
    d.kernels.forward(&d.stream, &d.spec, &d.prepared, &mut d.workspace, io)
}

fn backward(d: &mut Device, t: &mut Tensors<'_>, dropout: Option<Dropout>) -> Result<()> {
    let io = Backward {
        tokens: t.sizes.tokens,
        gradients: Gradients::Overwrite,
        base: t.base(),
        x: t.read("x", t.sizes.x()),
        output: (!keeps_z(dropout)).then(|| t.read("output", t.sizes.y())),
        z: keeps_z(dropout).then(|| t.read("z", t.sizes.y())),
        dropout,
        counter: dropout.map(|_| t.read("counter", COUNTER)),
        grad_output: t.read("grad_output", t.sizes.y()),
        h: t.read("h", t.sizes.h()),
        grad_input: Some(t.write("grad_input", t.sizes.x())),
        grad_lora_a: t.write("grad_lora_A", t.sizes.a()),
        grad_lora_b: t.write("grad_lora_B", t.sizes.b()),
        grad_magnitude: Some(t.write("grad_magnitude", t.sizes.m())),
        grad_bias: Some(t.write("grad_bias", t.sizes.trained_bias())),
    };
    d.kernels.backward(&d.stream, &d.spec, &d.prepared, &mut d.workspace, io)
}

fn adamw(d: &mut Device, t: &mut Tensors<'_>, schedule: Schedule<'_>) -> Result<()> {
    let io = AdamW {
        len: BUFFER.len(),
        parts: &parts(),
        schedule,
        clip: Some(Clip { max_norm: 1.0, norm: t.read("norm", NUMBER) }),
        parameters: t.write("parameters", BUFFER),
        gradients: t.read("gradients", BUFFER),
        exp_avg: t.write("exp_avg", BUFFER),
        exp_avg_sq: t.write("exp_avg_sq", BUFFER),
    };
    d.kernels.adamw(&d.stream, &AdamWConfig::default(), io)
}

/// One that starts at a vector's boundary, and one that does not.
fn parts() -> [OptimizerPart; 2] {
    [0..4, 5..BUFFER.len()].map(|range| OptimizerPart { range, group: OptimizerGroup::default() })
}

fn one_number(t: &mut Tensors<'_>) -> Write<'static> {
    t.write("norm", NUMBER)
}

const fn nf4(scales: BlockScales) -> WeightFormat {
    WeightFormat::Code4 { code: Code4::Nf4, block: 64, scales, state: Dtype::Bf16 }
}

/// Bytes and scales of a packed W.
const fn lengths(sizes: Sizes, format: WeightFormat) -> [usize; 2] {
    let shape = [sizes.outputs, sizes.inputs];
    [format.packed_bytes(shape), format.scales(shape)]
}

/// With one nested block. The offset is given, or the mean.
fn quantize(d: &mut Device, t: &mut Tensors<'_>, format: WeightFormat, given: bool) -> Result<()> {
    let [bytes, scales] = lengths(t.sizes, format);
    assert!(scales <= 256, "one number of nested scales");
    let element = if format.is_nested() { U8 } else { F32 };
    let io = Quantize {
        weight: t.read("weight", t.sizes.weight()),
        elements: t.write("the packed weight", Needed::vector(U8, bytes)),
        scales: t.write(format.scales_name(), Needed::vector(element, scales)),
        nested: format.is_nested().then(|| NestedTarget {
            absmax: t.write("nested_absmax", NUMBER),
            map: t.read("nested_quant_map", MAP),
            offset: match given {
                true => NestedOffset::Given(0.1),
                false => NestedOffset::Mean(t.write("nested_offset", NUMBER)),
            },
        }),
    };
    let spec = d.spec.with_weight(format)?;
    d.kernels.quantize(&d.stream, &spec, &mut d.workspace, io)
}

fn in_place(t: &mut Tensors<'_>) -> InPlace<'static> {
    InPlace {
        weight: t.write("weight", t.sizes.weight()),
        lora_a: t.read("lora_A", t.sizes.a()),
        lora_b: t.read("lora_B", t.sizes.b()),
    }
}
