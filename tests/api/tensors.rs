//! Every tensor of every op is checked: whatever is wrong with one of them, the error names it, and
//! nothing is launched.
//!
//! An op asks [`Tensors`] for each of its tensors by name. It first runs with all of them right.
//! Then each tensor that it asked for is wrong in each way that its type and shape allow, one at a
//! time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use fused_dora::cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DeviceRepr, ValidAsZeroBits, sys,
};
use fused_dora::{
    AdamW, AdamWConfig, Adapter, Backward, Base, Clip, Decompose, DecomposeAdapter, Decomposition,
    DoraLinear, DoraSpec, Dropout, DropoutForm, Dtype, ElementType, Error, Forward, GradientNorm,
    Gradients, InPlace, Kernels, LinearBackward, LinearForward, Magnitude, Merge, MergeReport,
    Norm, NormGrad, NormGradient, OptimizerGroup, OptimizerPart, Prepare, Prepared, Read, Result,
    Scaling, Schedule, Unmerge, Workspace, Write,
};
use half::{bf16, f16};

const TOKENS: usize = 6;
const INPUTS: usize = 10;
const OUTPUTS: usize = 12;
const RANK: usize = 3;
/// R.
const PADDED_RANK: usize = 16;

/// The layer's dtype.
const OWN: ElementType = ElementType::Bf16;
const F32: ElementType = ElementType::F32;
const F64: ElementType = ElementType::F64;

/// What is wrong with a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    /// One element is missing.
    Short,
    /// There is one element too many.
    Long,
    /// Rows with a stride. The last one ends too late.
    ShortRows,
    /// Elements of this type.
    Type(ElementType),
    /// Memory of another context.
    Context,
    /// An address one byte off.
    Odd,
    /// Address 0.
    Nowhere,
    /// A row stride of this many elements.
    Stride(usize),
}

/// A tensor as its op needs it.
#[derive(Clone, Copy, Debug)]
struct Needed {
    element: ElementType,
    rows: usize,
    cols: usize,
    /// Whether its rows may have a stride.
    takes_stride: bool,
    /// Whether any compute type is right.
    takes_any_dtype: bool,
}

impl Needed {
    const fn matrix(element: ElementType, rows: usize, cols: usize) -> Self {
        Self { element, rows, cols, takes_stride: false, takes_any_dtype: false }
    }

    const fn vector(element: ElementType, len: usize) -> Self {
        Self::matrix(element, 1, len)
    }

    /// x, y or a gradient of theirs.
    const fn rows(rows: usize, cols: usize) -> Self {
        Self { takes_stride: true, ..Self::matrix(OWN, rows, cols) }
    }

    const fn len(&self) -> usize {
        self.rows * self.cols
    }

    fn mistakes(&self) -> Vec<Mistake> {
        use Mistake::{Context, Long, Nowhere, Odd, Short, ShortRows, Stride, Type};
        let mut all = vec![Short, Long, Context, Odd, Nowhere];
        let wrong = |element: &ElementType| match self.takes_any_dtype {
            true => element.dtype().is_none(),
            false => *element != self.element,
        };
        let elements = [ElementType::Bf16, ElementType::F16, F32, F64];
        all.extend(elements.into_iter().filter(wrong).map(Type));
        match self.takes_stride {
            true => all.extend([ShortRows, Stride(self.cols - 1), Stride((1 << 30) + 1)]),
            false => all.extend([Stride(self.cols + 1), Stride(2 * self.cols)]),
        }
        all
    }
}

const W: Needed = Needed::matrix(OWN, OUTPUTS, INPUTS);
const X: Needed = Needed::rows(TOKENS, INPUTS);
const Y: Needed = Needed::rows(TOKENS, OUTPUTS);
const H: Needed = Needed::matrix(OWN, TOKENS, PADDED_RANK);
const A: Needed = Needed::matrix(F32, RANK, INPUTS);
const B: Needed = Needed::matrix(F32, OUTPUTS, RANK);
const M: Needed = Needed::vector(F32, OUTPUTS);
const BIAS: Needed = Needed::vector(OWN, OUTPUTS);
const TRAINED_BIAS: Needed = Needed::vector(F32, OUTPUTS);
const MERGED: Needed = Needed { takes_any_dtype: true, ..W };
const REPORT: Needed = Needed::vector(F64, MergeReport::LEN);
const RESULT: Needed = Needed::vector(F64, Decomposition::LEN);
/// A buffer of the optimizer.
const BUFFER: Needed = Needed::vector(F32, 8);

/// The tensors of one call. One may be wrong.
struct Tensors<'d> {
    stream: &'d Arc<CudaStream>,
    foreign: &'d Arc<CudaStream>,
    mistake: Option<(&'static str, Mistake)>,
    /// What the op asked for.
    asked: BTreeMap<&'static str, Needed>,
    blocks: BTreeMap<&'static str, CudaSlice<u8>>,
}

impl Tensors<'_> {
    /// The mistake in this tensor, if it is the one, and the address of its memory, all ones.
    fn ask(&mut self, tensor: &'static str, needed: Needed) -> (Option<Mistake>, u64) {
        self.asked.insert(tensor, needed);
        let stream = self.stream;
        let block = self.blocks.entry(tensor).or_insert_with(|| {
            let bytes = needed.len() * needed.element.bytes();
            stream.clone_htod(&vec![0xffu8; bytes]).expect("memory")
        });
        let mistake = self.mistake.filter(|(name, _)| *name == tensor).map(|(_, mistake)| mistake);
        (mistake, block.device_ptr(stream).0)
    }

    fn read(&mut self, tensor: &'static str, needed: Needed) -> Read<'static> {
        let (mistake, address) = self.ask(tensor, needed);
        let (element, len) = (needed.element, needed.len());
        // SAFETY: the memory has the tensor's length, and lives until the stream has been waited
        // for. With a mistake nothing is launched, as the test finds out.
        let at = |address, element| unsafe { Read::from_address(address, element) };
        match mistake {
            None => at(address, element),
            Some(Mistake::Short) => typed(self.stream, element, len - 1).into_read(),
            Some(Mistake::Long) => typed(self.stream, element, len + 1).into_read(),
            Some(Mistake::ShortRows) => {
                let (len, stride) = short_rows(needed);
                typed(self.stream, element, len).into_read().with_row_stride(stride)
            }
            Some(Mistake::Type(element)) => at(address, element),
            Some(Mistake::Context) => self.foreign(element, len).into_read(),
            Some(Mistake::Odd) => at(address + 1, element),
            Some(Mistake::Nowhere) => at(0, element),
            Some(Mistake::Stride(stride)) => at(address, element).with_row_stride(stride),
        }
    }

    fn write(&mut self, tensor: &'static str, needed: Needed) -> Write<'static> {
        let (mistake, address) = self.ask(tensor, needed);
        let (element, len) = (needed.element, needed.len());
        // SAFETY: as of `read`; no other tensor of the call has the memory.
        let at = |address, element| unsafe { Write::from_address(address, element) };
        match mistake {
            None => at(address, element),
            Some(Mistake::Short) => typed(self.stream, element, len - 1).into_write(),
            Some(Mistake::Long) => typed(self.stream, element, len + 1).into_write(),
            Some(Mistake::ShortRows) => {
                let (len, stride) = short_rows(needed);
                typed(self.stream, element, len).into_write().with_row_stride(stride)
            }
            Some(Mistake::Type(element)) => at(address, element),
            Some(Mistake::Context) => self.foreign(element, len).into_write(),
            Some(Mistake::Odd) => at(address + 1, element),
            Some(Mistake::Nowhere) => at(0, element),
            Some(Mistake::Stride(stride)) => at(address, element).with_row_stride(stride),
        }
    }

    /// A slice of another context. The kernels' is current afterwards: what a call frees is its.
    fn foreign(&self, element: ElementType, len: usize) -> Typed {
        let slice = typed(self.foreign, element, len);
        self.stream.context().bind_to_thread().expect("the first context");
        slice
    }

    fn base(&mut self) -> Base<'static> {
        Base::new(self.read("weight", W)).with_bias(Some(self.read("bias", BIAS)))
    }

    /// Whether any byte is not as it was made.
    fn was_written(&self) -> bool {
        self.blocks.values().any(|block| {
            let bytes = self.stream.clone_dtoh(block).expect("a copy");
            bytes.into_iter().any(|byte| byte != 0xff)
        })
    }
}

/// Elements of rows with a stride that end one element too late, and the stride.
const fn short_rows(needed: Needed) -> (usize, usize) {
    let stride = needed.cols + 3;
    ((needed.rows - 1) * stride + needed.cols - 1, stride)
}

/// A slice of one type, lent as long as the process lives.
enum Typed {
    Bf16(&'static mut CudaSlice<bf16>),
    F16(&'static mut CudaSlice<f16>),
    F32(&'static mut CudaSlice<f32>),
    F64(&'static mut CudaSlice<f64>),
}

fn typed(stream: &Arc<CudaStream>, element: ElementType, len: usize) -> Typed {
    fn zeros<T: DeviceRepr + ValidAsZeroBits>(
        stream: &Arc<CudaStream>,
        len: usize,
    ) -> &'static mut CudaSlice<T> {
        Box::leak(Box::new(stream.alloc_zeros(len).expect("memory")))
    }
    match element {
        ElementType::Bf16 => Typed::Bf16(zeros(stream, len)),
        ElementType::F16 => Typed::F16(zeros(stream, len)),
        ElementType::F32 => Typed::F32(zeros(stream, len)),
        ElementType::F64 => Typed::F64(zeros(stream, len)),
    }
}

impl Typed {
    fn into_read(self) -> Read<'static> {
        match self {
            Self::Bf16(slice) => (&*slice).into(),
            Self::F16(slice) => (&*slice).into(),
            Self::F32(slice) => (&*slice).into(),
            Self::F64(slice) => (&*slice).into(),
        }
    }

    fn into_write(self) -> Write<'static> {
        match self {
            Self::Bf16(slice) => slice.into(),
            Self::F16(slice) => slice.into(),
            Self::F32(slice) => slice.into(),
            Self::F64(slice) => slice.into(),
        }
    }
}

/// A layer that is prepared, and the kernels.
struct Device {
    kernels: Arc<Kernels>,
    stream: Arc<CudaStream>,
    /// A stream of another context.
    foreign: Arc<CudaStream>,
    spec: DoraSpec,
    workspace: Workspace,
    prepared: Prepared,
    linear: DoraLinear,
}

impl Device {
    fn new() -> Self {
        let context = fused_dora_testkit::device::open().expect("a device");
        let kernels = Arc::new(Kernels::load(&context).expect("kernels"));
        let (stream, foreign) = (context.default_stream(), second_context(&context));
        context.bind_to_thread().expect("the first context");
        let (scaling, norm) = (Scaling::Value(1.0), Norm::Output);
        let dtype = Dtype::Bf16;
        let spec = DoraSpec::new(INPUTS, OUTPUTS, RANK, scaling, norm, NormGrad::Exact, dtype)
            .expect("a layer");
        assert_eq!(spec.padded_rank(), PADDED_RANK);
        let base = DoraLinear::base_spec(INPUTS, OUTPUTS, dtype).expect("a layer");
        let workspace = || {
            let specs = [base, spec];
            Workspace::new(&kernels, &stream, &specs, TOKENS).expect("memory")
        };
        let ones = vec![bf16::ONE; OUTPUTS * INPUTS];
        let weight = Arc::new(stream.clone_htod(&ones).expect("memory"));
        let shared = Arc::new(Mutex::new(workspace()));
        let shape = [OUTPUTS, INPUTS];
        let mut linear = DoraLinear::new(&kernels, &stream, &shared, shape, weight, None)
            .expect("the right shapes");
        linear.attach("one", Adapter::new(&stream, &spec, true).expect("memory")).expect("fits");
        linear.initialise("one", 1).expect("attached");
        linear.activate(Some("one")).expect("attached");
        let prepared = Prepared::new(&stream, &spec).expect("memory");
        let workspace = workspace();
        let mut device = Self { kernels, stream, foreign, spec, workspace, prepared, linear };
        device.prepare(None).expect("the right shapes");
        device
    }

    /// Prepares a layer of ones, or the shard of one.
    fn prepare(&mut self, magnitude: Option<Magnitude<'_>>) -> Result<()> {
        let Self { kernels, stream, spec, workspace, prepared, .. } = self;
        let weight = stream.clone_htod(&vec![bf16::ONE; OUTPUTS * INPUTS]).expect("memory");
        let ones = stream.clone_htod(&vec![1.0f32; OUTPUTS * INPUTS]).expect("memory");
        let given = Magnitude::Given(ones.slice(..OUTPUTS).into());
        let io = Prepare {
            weight: (&weight).into(),
            lora_a: ones.slice(..RANK * INPUTS).into(),
            lora_b: ones.slice(..OUTPUTS * RANK).into(),
            magnitude: magnitude.unwrap_or(given),
            bias: None,
        };
        kernels.prepare(stream, spec, workspace, prepared, io)?;
        stream.synchronize().expect("no fault");
        Ok(())
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
type Op = fn(&mut Device, &mut Tensors<'_>) -> Result<()>;

/// Every op, once for each choice of tensors that exclude one another.
const OPS: [(&str, Op); 23] = [
    ("prepare", |d, t| {
        let magnitude = Magnitude::Given(t.read("magnitude", M));
        prepare(d, t, magnitude)
    }),
    ("prepare of a fresh adapter", |d, t| {
        let magnitude = Magnitude::Init(t.write("magnitude", M));
        prepare(d, t, magnitude)
    }),
    ("prepare of a shard", |d, t| prepare(d, t, Magnitude::Sharded)),
    ("finish_prepare", |d, t| {
        d.prepare(Some(Magnitude::Sharded))?;
        let magnitude = Magnitude::Given(t.read("magnitude", M));
        finish_prepare(d, t, magnitude)
    }),
    ("finish_prepare of a fresh adapter", |d, t| {
        d.prepare(Some(Magnitude::Sharded))?;
        let magnitude = Magnitude::Init(t.write("magnitude", M));
        finish_prepare(d, t, magnitude)
    }),
    ("forward", |d, t| forward(d, t, None)),
    ("forward with PEFT's dropout", |d, t| forward(d, t, Some(peft_dropout()))),
    ("backward", |d, t| backward(d, t, None)),
    ("backward with PEFT's dropout", |d, t| backward(d, t, Some(peft_dropout()))),
    ("norm_gradient", |d, t| {
        let io = NormGradient {
            weight: t.read("weight", W).into(),
            lora_a: t.read("lora_A", A),
            lora_b: t.read("lora_B", B),
            grad_magnitude: t.read("grad_magnitude", M),
            grad_lora_a: t.write("grad_lora_A", A),
            grad_lora_b: t.write("grad_lora_B", B),
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
    ("merge", |d, t| {
        let io = Merge {
            weight: t.read("weight", W).into(),
            lora_a: t.read("lora_A", A),
            lora_b: t.read("lora_B", B),
            merged: t.write("merged", MERGED),
            report: Some(t.write("report", REPORT)),
        };
        d.kernels.merge(&d.stream, &d.spec, &d.prepared, &mut d.workspace, io)
    }),
    ("unmerge", |d, t| {
        let io = Unmerge {
            merged: t.read("merged", MERGED),
            lora_a: t.read("lora_A", A),
            lora_b: t.read("lora_B", B),
            weight: t.write("weight", W),
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
            axis: Norm::Input,
            weight: t.read("weight", W).into(),
            changed: t.read("changed", MERGED),
            result: t.write("result", RESULT),
        };
        d.kernels.decompose(&d.stream, &d.spec, &mut d.workspace, io)
    }),
    ("decompose_adapter", |d, t| {
        let io = DecomposeAdapter {
            axis: Norm::Input,
            weight: t.read("weight", W).into(),
            lora_a: t.read("lora_A", A),
            lora_b: t.read("lora_B", B),
            result: t.write("result", RESULT),
        };
        d.kernels.decompose_adapter(&d.stream, &d.spec, &d.prepared, &mut d.workspace, io)
    }),
    ("DoraLinear's forward", |d, t| {
        let (tokens, dropout) = (TOKENS, None);
        let mut saved = d.linear.saved(tokens, None)?;
        let (x, y) = (t.read("x", X), t.write("y", Y));
        d.linear.forward(&mut saved, LinearForward { tokens, x, y, seed: 0, dropout })
    }),
    ("DoraLinear's backward", |d, t| {
        let (tokens, dropout) = (TOKENS, None);
        let mut saved = d.linear.saved(tokens, None)?;
        let zeros = |len| d.stream.alloc_zeros::<bf16>(len).expect("memory");
        let (x, mut y) = (zeros(X.len()), zeros(Y.len()));
        let io = LinearForward { tokens, x: (&x).into(), y: (&mut y).into(), seed: 0, dropout };
        d.linear.forward(&mut saved, io)?;
        let io = LinearBackward {
            tokens,
            gradients: Gradients::Overwrite,
            x: t.read("x", X),
            y: t.read("output", Y),
            dropout,
            grad_output: t.read("grad_output", Y),
            grad_input: Some(t.write("grad_input", X)),
        };
        d.linear.backward(&saved, io)
    }),
    ("DoraLinear's merge", |d, t| {
        let (merged, report) = (t.write("merged", MERGED), t.write("report", REPORT));
        d.linear.merge(merged, Some(report))
    }),
    ("DoraLinear's unmerge", |d, t| {
        let mut merged = d.stream.alloc_zeros::<f32>(W.len()).expect("memory");
        d.linear.merge(&mut merged, None)?;
        d.linear.unmerge(t.read("merged", MERGED), t.write("weight", W))
    }),
];

fn peft_dropout() -> Dropout {
    Dropout::new(0.1, DropoutForm::Peft, 1).expect("a probability")
}

fn prepare(d: &mut Device, t: &mut Tensors<'_>, magnitude: Magnitude<'_>) -> Result<()> {
    let io = Prepare {
        weight: t.read("weight", W).into(),
        lora_a: t.read("lora_A", A),
        lora_b: t.read("lora_B", B),
        magnitude,
        bias: Some(t.read("bias", TRAINED_BIAS)),
    };
    d.kernels.prepare(&d.stream, &d.spec, &mut d.workspace, &mut d.prepared, io)
}

fn finish_prepare(d: &mut Device, t: &mut Tensors<'_>, magnitude: Magnitude<'_>) -> Result<()> {
    let lora_b = t.read("lora_B", B);
    d.kernels.finish_prepare(&d.stream, &d.spec, &mut d.prepared, lora_b, magnitude)
}

fn forward(d: &mut Device, t: &mut Tensors<'_>, dropout: Option<Dropout>) -> Result<()> {
    let io = Forward {
        tokens: TOKENS,
        base: t.base(),
        x: t.read("x", X),
        y: t.write("y", Y),
        h: t.write("h", H),
        z: dropout.map(|_| t.write("z", Needed { takes_stride: false, ..Y })),
        dropout,
        seed: 0,
    };
    d.kernels.forward(&d.stream, &d.spec, &d.prepared, &mut d.workspace, io)
}

fn backward(d: &mut Device, t: &mut Tensors<'_>, dropout: Option<Dropout>) -> Result<()> {
    let io = Backward {
        tokens: TOKENS,
        gradients: Gradients::Overwrite,
        base: t.base(),
        x: t.read("x", X),
        output: dropout.is_none().then(|| t.read("output", Y)),
        z: dropout.map(|_| t.read("z", Y)),
        dropout,
        grad_output: t.read("grad_output", Y),
        h: t.read("h", H),
        grad_input: Some(t.write("grad_input", X)),
        grad_lora_a: t.write("grad_lora_A", A),
        grad_lora_b: t.write("grad_lora_B", B),
        grad_magnitude: Some(t.write("grad_magnitude", M)),
        grad_bias: Some(t.write("grad_bias", TRAINED_BIAS)),
    };
    d.kernels.backward(&d.stream, &d.spec, &d.prepared, &mut d.workspace, io)
}

fn adamw(d: &mut Device, t: &mut Tensors<'_>, schedule: Schedule<'_>) -> Result<()> {
    let io = AdamW {
        len: BUFFER.len(),
        parts: &parts(),
        schedule,
        clip: Some(Clip { max_norm: 1.0, norm: t.read("norm", Needed::vector(F32, 1)) }),
        parameters: t.write("parameters", BUFFER),
        gradients: t.read("gradients", BUFFER),
        exp_avg: t.write("exp_avg", BUFFER),
        exp_avg_sq: t.write("exp_avg_sq", BUFFER),
    };
    d.kernels.adamw(&d.stream, &AdamWConfig::default(), io)
}

fn parts() -> [OptimizerPart; 1] {
    [OptimizerPart { range: 0..BUFFER.len(), group: OptimizerGroup::default() }]
}

fn one_number(t: &mut Tensors<'_>) -> Write<'static> {
    t.write("norm", Needed::vector(F32, 1))
}

fn in_place(t: &mut Tensors<'_>) -> InPlace<'static> {
    InPlace {
        weight: t.write("weight", W),
        lora_a: t.read("lora_A", A),
        lora_b: t.read("lora_B", B),
    }
}

/// Whether an error is what a mistake in a tensor gives.
fn is_right(error: &Error, tensor: &str, needed: Needed, mistake: Mistake) -> bool {
    use Mistake::{Context, Long, Nowhere, Odd, Short, ShortRows, Stride, Type};
    match (mistake, error) {
        (Short | Long, Error::Shape { tensor: named, expected, .. }) => {
            *named == tensor && *expected == needed.len()
        }
        (ShortRows, Error::Shape { tensor: named, expected, found, .. }) => {
            *named == tensor && *found + 1 == *expected
        }
        (Type(wrong), Error::Dtype { tensor: named, found, needed: right }) => {
            *named == tensor && (*found, *right) == (wrong, needed.element)
        }
        (Type(wrong), Error::InvalidSpec { value, .. }) => {
            needed.takes_any_dtype && *value == wrong.to_string()
        }
        (Context, Error::ContextMismatch) => true,
        (Odd, Error::Misaligned { tensor: named, alignment, .. }) => {
            *named == tensor && *alignment == needed.element.bytes()
        }
        (Nowhere, Error::MissingTensor { tensor: named, .. }) => *named == tensor,
        (Stride(wrong), Error::Stride { tensor: named, stride, cols, .. }) => {
            *named == tensor && (*stride, *cols) == (wrong, needed.cols)
        }
        _ => false,
    }
}

#[test]
fn every_tensor_of_every_op_is_checked() {
    let mut device = Device::new();
    let (mut mistakes, mut wrong) = (0, Vec::new());
    for (name, op) in OPS {
        let (stream, foreign) = (device.stream.clone(), device.foreign.clone());
        let tensors = |mistake| {
            let (asked, blocks) = (BTreeMap::new(), BTreeMap::new());
            Tensors { stream: &stream, foreign: &foreign, mistake, asked, blocks }
        };
        device.prepare(None).expect("the right shapes");
        let mut right = tensors(None);
        op(&mut device, &mut right).unwrap_or_else(|error| panic!("{name}: {error}"));
        stream.synchronize().unwrap_or_else(|error| panic!("{name}: {error}"));
        device.prepare(None).expect("the right shapes");
        let mut untouched = tensors(None);
        for (tensor, needed) in right.asked {
            for mistake in needed.mistakes() {
                mistakes += 1;
                untouched.mistake = Some((tensor, mistake));
                let outcome = op(&mut device, &mut untouched);
                if !outcome.as_ref().is_err_and(|error| is_right(error, tensor, needed, mistake)) {
                    wrong.push(format!("{name}, {tensor}: {mistake:?} gives {outcome:?}"));
                }
            }
        }
        assert!(!untouched.was_written(), "{name}: something was launched");
    }
    assert!(wrong.is_empty(), "{} of {mistakes} mistakes: {wrong:#?}", wrong.len());
    println!("{mistakes} mistakes");
    assert!(mistakes > 900, "{mistakes} mistakes");
}

/// The tensors that a layer takes to keep.
#[test]
fn the_weight_and_the_bias_of_a_layer_are_checked() {
    let device = Device::new();
    let Device { kernels, stream, foreign, spec, .. } = &device;
    let make = |weight_len: usize, bias: Option<(Dtype, usize)>, on: &Arc<CudaStream>| {
        on.context().bind_to_thread().expect("a context");
        let weight = Arc::new(on.alloc_zeros::<bf16>(weight_len).expect("memory"));
        let bias = bias.map(|(dtype, len)| match dtype {
            Dtype::Bf16 => Arc::new(stream.alloc_zeros::<bf16>(len).expect("memory")).into(),
            Dtype::F16 => Arc::new(stream.alloc_zeros::<f16>(len).expect("memory")).into(),
            Dtype::F32 => Arc::new(stream.alloc_zeros::<f32>(len).expect("memory")).into(),
        });
        stream.context().bind_to_thread().expect("the first context");
        let workspace = Workspace::new(kernels, stream, &[*spec], TOKENS).expect("memory");
        let workspace = Arc::new(Mutex::new(workspace));
        DoraLinear::new(kernels, stream, &workspace, [OUTPUTS, INPUTS], weight, bias).map(drop)
    };
    let right = (W.len(), Some((Dtype::Bf16, OUTPUTS)));
    make(right.0, right.1, stream).expect("the right shapes");
    make(right.0, None, stream).expect("the right shapes");
    for len in [W.len() - 1, W.len() + 1] {
        let outcome = make(len, right.1, stream);
        assert!(matches!(outcome, Err(Error::Shape { tensor: "weight", .. })), "{outcome:?}");
    }
    for len in [OUTPUTS - 1, OUTPUTS + 1] {
        let outcome = make(right.0, Some((Dtype::Bf16, len)), stream);
        assert!(matches!(outcome, Err(Error::Shape { tensor: "bias", .. })), "{outcome:?}");
    }
    for dtype in [Dtype::F16, Dtype::F32] {
        let outcome = make(right.0, Some((dtype, OUTPUTS)), stream);
        assert!(matches!(outcome, Err(Error::Dtype { tensor: "bias", .. })), "{outcome:?}");
    }
    let outcome = make(right.0, right.1, foreign);
    assert!(matches!(outcome, Err(Error::ContextMismatch)), "{outcome:?}");
}
