//! The ops on device addresses: the same bits as from cudarc's buffers, and errors for mistakes
//! that the numbers show.

use std::sync::Arc;

use fused_dora::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, sys};
use fused_dora::reference::Case;
use fused_dora::{
    AdamW, AdamWConfig, Backward, Base, Clip, Decompose, DecomposeAdapter, Decomposition, DoraSpec,
    Dtype, ElementType, Error, Forward, GradientNorm, Gradients, InPlace, Kernels,
    Layer as DeviceLayer, Magnitude, Merge, MergeReport, Norm, OptimizerGroup, OptimizerPart,
    Prepare, Prepared, Read, Schedule, Unmerge, Workspace, Write, borrow_context,
};
use fused_dora_testkit::random::{fresh_seed, random_case};
use half::bf16;
use rand::SeedableRng;
use rand::rngs::StdRng;

const BF16: ElementType = ElementType::Bf16;
const F32: ElementType = ElementType::F32;
const F64: ElementType = ElementType::F64;

/// Memory as another library would own it: addresses.
struct Memory {
    stream: Arc<CudaStream>,
    blocks: Vec<CudaSlice<u8>>,
}

impl Memory {
    fn bytes(&mut self, bytes: &[u8]) -> u64 {
        let block = self.stream.clone_htod(bytes).expect("memory");
        let address = block.device_ptr(&self.stream).0;
        self.blocks.push(block);
        address
    }

    fn bf16(&mut self, values: &[f64]) -> u64 {
        let values = values.iter().flat_map(|&v| bf16::from_f64(v).to_le_bytes());
        self.bytes(&values.collect::<Vec<_>>())
    }

    fn f32(&mut self, values: &[f64]) -> u64 {
        self.bytes(&values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect::<Vec<_>>())
    }

    /// Room for elements that nothing wrote.
    fn room(&mut self, elements: usize, bytes: usize) -> u64 {
        self.bytes(&vec![0xff; elements * bytes])
    }

    fn read<const N: usize>(&self, address: u64, elements: usize) -> Vec<[u8; N]> {
        let same = |block: &&CudaSlice<u8>| block.device_ptr(&self.stream).0 == address;
        let block = self.blocks.iter().find(same).expect("one of the blocks");
        let bytes = self.stream.clone_dtoh(block).expect("a copy");
        bytes.as_chunks().0[..elements].to_vec()
    }
}

/// A tensor that an op reads.
fn read(address: u64, element: ElementType) -> Read<'static> {
    // SAFETY: `Layer::new` makes the addresses for the layer's shapes, and their memory lives as
    // long as the layer. Tests that change an address expect an error before any launch.
    unsafe { Read::from_address(address, element) }
}

/// A tensor that an op writes.
fn write(address: u64, element: ElementType) -> Write<'static> {
    // SAFETY: as of `read`; no two tensors overlap.
    unsafe { Write::from_address(address, element) }
}

/// Where the tensors of a layer are.
struct Addresses {
    weight: u64,
    bias: Option<u64>,
    lora_a: u64,
    lora_b: u64,
    magnitude: Option<u64>,
    x: u64,
    y: u64,
    h: u64,
    grad_output: u64,
    /// Elements between the starts of dY's rows.
    grad_output_stride: Option<usize>,
    grad_input: u64,
    grad_lora_a: u64,
    grad_lora_b: u64,
    grad_magnitude: Option<u64>,
    grad_bias: u64,
    /// Of the prepared operands and of the workspace, with their bytes.
    prepared: (u64, usize),
    workspace: (u64, usize),
}

/// A layer in memory of another library, on a stream of another library.
struct Layer {
    memory: Memory,
    kernels: Kernels,
    spec: DoraSpec,
    tokens: usize,
    at: Addresses,
    layer: DeviceLayer,
    workspace: Workspace,
}

impl Layer {
    fn new(case: &Case) -> Self {
        let context = fused_dora_testkit::device::open().expect("a device");
        let kernels = Kernels::load(&context).expect("kernels");
        let owner = context.new_stream().expect("a stream");
        // SAFETY: the handle lives as long as the process: its owner is leaked below.
        let stream = unsafe { context.wrap_borrowed_stream(owner.cu_stream()) };
        std::mem::forget(owner);
        let mut memory = Memory { stream, blocks: Vec::new() };
        let spec = fused_dora_testkit::run::spec(case, Dtype::Bf16).expect("a layer");
        let (tokens, inputs, outputs) = (case.tokens, case.in_features, case.out_features);
        let (m_len, rank, r) = (spec.magnitude_len(), spec.rank(), spec.padded_rank());
        let prepared = Prepared::bytes(&spec);
        let scratch = Workspace::bytes(&kernels, &[spec], tokens).expect("few tokens");
        let at = Addresses {
            weight: memory.bf16(&case.weight),
            bias: case.bias.as_ref().map(|bias| memory.bf16(bias)),
            lora_a: memory.f32(&case.lora_a),
            lora_b: memory.f32(&case.lora_b),
            magnitude: (m_len > 0).then(|| memory.f32(&case.magnitude)),
            x: memory.bf16(&case.input),
            y: memory.room(tokens * outputs, 2),
            h: memory.room(tokens * r, 2),
            grad_output: memory.bf16(&case.grad_output),
            grad_output_stride: None,
            grad_input: memory.room(tokens * inputs, 2),
            grad_lora_a: memory.room(rank * inputs, 4),
            grad_lora_b: memory.room(rank * outputs, 4),
            grad_magnitude: (m_len > 0).then(|| memory.room(m_len, 4)),
            grad_bias: memory.room(outputs, 4),
            prepared: (memory.room(prepared, 1), prepared),
            workspace: (memory.room(scratch, 1), scratch),
        };
        // SAFETY: nothing else uses these blocks, which live as long as the layer.
        let (layer, workspace) = unsafe {
            let ((address, bytes), stream) = (at.workspace, &memory.stream);
            let specs = [spec];
            (
                DeviceLayer::at_address(&spec, at.prepared.0, at.prepared.1).expect("memory"),
                Workspace::at_address(&kernels, stream, &specs, tokens, address, bytes)
                    .expect("memory"),
            )
        };
        Self { memory, kernels, spec, tokens, at, layer, workspace }
    }

    fn run(&mut self) -> Result<(), Error> {
        let Self { memory, kernels, tokens, at, layer, workspace, .. } = self;
        let (tokens, stream) = (*tokens, &memory.stream);
        let inputs = Prepare {
            weight: read(at.weight, BF16).into(),
            lora_a: read(at.lora_a, F32),
            lora_b: read(at.lora_b, F32),
            magnitude: at.magnitude.map(|m| read(m, F32)).into(),
            bias: None,
        };
        layer.prepare(kernels, stream, workspace, inputs)?;
        let base = || {
            let bias = at.bias.map(|bias| read(bias, BF16));
            Base::new(read(at.weight, BF16)).with_bias(bias)
        };
        let io = Forward {
            tokens,
            base: base(),
            x: read(at.x, BF16),
            y: write(at.y, BF16),
            h: write(at.h, BF16),
            z: None,
            dropout: None,
            counter: None,
            seed: 1,
        };
        layer.forward(kernels, stream, workspace, io)?;
        let grad_output = read(at.grad_output, BF16);
        let io = Backward {
            tokens,
            gradients: Gradients::Overwrite,
            base: base(),
            x: read(at.x, BF16),
            output: Some(read(at.y, BF16)),
            z: None,
            dropout: None,
            counter: None,
            grad_output: match at.grad_output_stride {
                Some(stride) => grad_output.with_row_stride(stride),
                None => grad_output,
            },
            h: read(at.h, BF16),
            grad_input: Some(write(at.grad_input, BF16)),
            grad_lora_a: write(at.grad_lora_a, F32),
            grad_lora_b: write(at.grad_lora_b, F32),
            grad_magnitude: at.grad_magnitude.map(|dm| write(dm, F32)),
            grad_bias: Some(write(at.grad_bias, F32)),
        };
        layer.backward(kernels, stream, workspace, io)
    }

    /// The six results, widened to f32, as [`fused_dora_testkit::run::Runner`] returns them.
    fn results(&self) -> [Vec<f32>; 6] {
        let Self { memory, spec, tokens, at, .. } = self;
        let rank = spec.rank();
        let (inputs, outputs) = (spec.in_features(), spec.out_features());
        let halves = |address, len| -> Vec<f32> {
            memory.read(address, len).into_iter().map(|b| bf16::from_le_bytes(b).to_f32()).collect()
        };
        let singles = |address, len| -> Vec<f32> {
            memory.read(address, len).into_iter().map(f32::from_le_bytes).collect()
        };
        [
            halves(at.y, tokens * outputs),
            halves(at.grad_input, tokens * inputs),
            singles(at.grad_lora_a, rank * inputs),
            singles(at.grad_lora_b, rank * outputs),
            at.grad_magnitude.map_or_else(Vec::new, |dm| singles(dm, spec.magnitude_len())),
            singles(at.grad_bias, outputs),
        ]
    }
}

fn case(norm: Norm) -> Case {
    let mut random = StdRng::seed_from_u64(fresh_seed());
    random_case(&mut random, [41, 48, 56, 5], norm, true).rounded(Dtype::Bf16)
}

#[test]
fn addresses_give_the_same_bits_as_buffers() {
    for norm in [Norm::None, Norm::Input, Norm::Output] {
        let case = case(norm);
        let mut layer = Layer::new(&case);
        layer.run().expect("the ops");
        let runner =
            fused_dora_testkit::run::Runner::new(layer.kernels.context()).expect("kernels");
        let bits = |results: [Vec<f32>; 6]| {
            results.map(|tensor| tensor.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        let expected = runner.run(&case, Dtype::Bf16).expect("the ops");
        assert_eq!(bits(layer.results()), bits(expected), "{norm:?}");
    }
}

#[test]
fn what_the_numbers_show() {
    let mut layer = Layer::new(&case(Norm::Output));
    let error = |layer: &mut Layer| layer.run().expect_err("a mistake");
    let right = std::mem::take(&mut layer.at.x);
    let missing = error(&mut layer);
    assert!(matches!(missing, Error::MissingTensor { tensor: "x", .. }), "{missing:?}");
    layer.at.x = right;
    for (wrong, reason) in [(None, "DoRA trains"), (Some(0), "its address is 0")] {
        let right = std::mem::replace(&mut layer.at.grad_magnitude, wrong);
        let missing = error(&mut layer);
        assert!(
            matches!(missing, Error::MissingTensor { tensor: "grad_magnitude", .. }),
            "{missing:?}"
        );
        assert!(missing.to_string().contains(reason), "{missing}");
        layer.at.grad_magnitude = right;
    }
    layer.at.weight += 1;
    let odd = error(&mut layer);
    assert!(matches!(odd, Error::Misaligned { tensor: "weight", alignment: 2, .. }), "{odd:?}");
    layer.at.weight -= 1;
    layer.at.grad_output_stride = Some(55);
    let overlap = error(&mut layer);
    assert!(
        matches!(overlap, Error::Stride { tensor: "grad_output", stride: 55, cols: 56, .. }),
        "{overlap:?}"
    );
    layer.at.grad_output_stride = Some(56);
    layer.run().expect("the right addresses");
}

/// Blocks for prepared operands and workspaces.
#[test]
fn memory_of_the_caller() {
    let layer = Layer::new(&case(Norm::Output));
    let Layer { memory, kernels, spec, tokens, at, .. } = &layer;
    let stream = &memory.stream;
    // SAFETY: nothing uses what they are made of.
    let prepared = |address, bytes| unsafe {
        let layer = DeviceLayer::at_address(spec, address, bytes).map(drop);
        let prepared = Prepared::at_address(spec, address, bytes).map(drop);
        assert_eq!(layer.is_ok(), prepared.is_ok());
        prepared
    };
    // SAFETY: likewise.
    let workspace = |address, bytes| unsafe {
        Workspace::at_address(kernels, stream, &[*spec], *tokens, address, bytes).map(drop)
    };
    type Make<'a> = &'a dyn Fn(u64, usize) -> Result<(), Error>;
    let makers: [(&str, Make<'_>, _, &str); 2] = [
        ("the memory for prepared operands", &prepared, at.prepared, "Prepared::bytes"),
        ("the workspace", &workspace, at.workspace, "Workspace::bytes"),
    ];
    for (name, make, (address, bytes), size_from) in makers {
        make(address, bytes).expect("enough memory");
        match make(0, bytes) {
            Err(Error::MissingTensor { tensor, .. }) => assert_eq!(tensor, name),
            other => panic!("{name}: MissingTensor, not {other:?}"),
        }
        match make(address + 16, bytes) {
            Err(Error::Misaligned { tensor, address: found, alignment: 256 }) => {
                assert_eq!((tensor, found), (name, address + 16));
            }
            other => panic!("{name}: Misaligned, not {other:?}"),
        }
        match make(address, bytes - 1) {
            Err(error @ Error::MemoryTooSmall { available, needed, .. }) => {
                assert_eq!((available, needed), (bytes - 1, bytes));
                let text = error.to_string();
                assert!(text.starts_with(name) && text.contains(size_from), "{text}");
            }
            other => panic!("{name}: MemoryTooSmall, not {other:?}"),
        }
    }
}

/// A shard's Σ V² starts its block.
#[test]
fn a_shard_by_address() {
    let case = case(Norm::Input);
    let mut layer = Layer::new(&case);
    layer.run().expect("the ops");
    let features = case.in_features;
    let Layer { memory, kernels, spec, at, layer, workspace, .. } = &mut layer;
    let stream = &memory.stream;
    let whole = layer.prepared().read_norm(stream).expect("c");
    let inputs = Prepare {
        weight: read(at.weight, BF16).into(),
        lora_a: read(at.lora_a, F32),
        lora_b: read(at.lora_b, F32),
        magnitude: Magnitude::Sharded,
        bias: None,
    };
    layer.prepare(kernels, stream, workspace, inputs).expect("Σ V²");
    assert!(layer.prepared_mut().squared_norms_mut().is_none(), "the block is not the crate's");
    let squares: Vec<[u8; 4]> = memory.read(at.prepared.0, features);
    for (square, norm) in squares.into_iter().map(f32::from_le_bytes).zip(&whole) {
        assert!((square.sqrt() / norm - 1.0).abs() < 1e-5, "{square} {norm}");
    }
    let (lora_b, magnitude) = (read(at.lora_b, F32), at.magnitude.map(|m| read(m, F32)).into());
    kernels
        .finish_prepare(stream, spec, layer.prepared_mut(), lora_b, magnitude)
        .expect("the only shard");
    for (found, norm) in layer.prepared().read_norm(stream).expect("c").iter().zip(&whole) {
        assert!((found / norm - 1.0).abs() < 1e-5, "{found} {norm}");
    }
}

#[test]
fn what_the_numbers_of_the_optimizer_and_the_merge_show() {
    let case = case(Norm::Output);
    let mut layer = Layer::new(&case);
    layer.run().expect("the ops");
    let Layer { memory, kernels, spec, at, layer, workspace, .. } = &mut layer;
    let (stream, magnitude) = (&memory.stream, at.magnitude.expect("a magnitude"));
    let group = OptimizerGroup::default();
    let parts = [OptimizerPart { range: 0..4, group }];
    let step = || AdamW {
        len: 4,
        parts: &parts,
        schedule: Schedule::Host { learning_rate: 0.1, step: 1 },
        clip: None,
        parameters: write(at.lora_a, F32),
        gradients: read(at.grad_lora_a, F32),
        exp_avg: write(at.lora_b, F32),
        exp_avg_sq: write(magnitude, F32),
    };
    let adamw =
        |io: AdamW<'_>| kernels.adamw(stream, &AdamWConfig::default(), io).expect_err("a mistake");
    let long = adamw(AdamW { len: 3, ..step() });
    assert!(matches!(long, Error::InvalidSpec { .. }), "{long:?}");
    let missing = adamw(AdamW { exp_avg: write(0, F32), ..step() });
    assert!(matches!(missing, Error::MissingTensor { tensor: "exp_avg", .. }), "{missing:?}");
    let zeroth = Schedule::Host { learning_rate: 0.1, step: 0 };
    let zeroth = adamw(AdamW { schedule: zeroth, ..step() });
    assert!(matches!(zeroth, Error::InvalidSpec { parameter: "step", .. }), "{zeroth:?}");
    let clip = Clip { max_norm: 1.0, norm: read(0, F32) };
    let missing = adamw(AdamW { clip: Some(clip), ..step() });
    assert!(matches!(missing, Error::MissingTensor { tensor: "norm", .. }), "{missing:?}");
    let measured = GradientNorm {
        len: 4,
        parts: &parts,
        gradients: read(at.grad_lora_a, F32),
        norm: write(0, F32),
    };
    let missing = kernels.gradient_norm(stream, workspace, measured);
    assert!(matches!(missing, Err(Error::MissingTensor { tensor: "norm", .. })), "{missing:?}");

    let mut merge = |merged: Write<'_>, report: Option<Write<'_>>| {
        let io = Merge {
            weight: read(at.weight, BF16).into(),
            lora_a: read(at.lora_a, F32),
            lora_b: read(at.lora_b, F32),
            merged,
            report,
        };
        kernels.merge(stream, spec, layer.prepared(), workspace, io).expect_err("a mistake")
    };
    let wider = merge(write(at.weight, F32), None);
    assert!(matches!(wider, Error::InvalidSpec { parameter: "merged_dtype", .. }), "{wider:?}");
    let odd = merge(write(at.weight, BF16), Some(write(4, F64)));
    assert!(matches!(odd, Error::Misaligned { tensor: "report", alignment: 8, .. }), "{odd:?}");
    let narrow = merge(write(at.weight, BF16), Some(write(256, F32)));
    assert!(matches!(narrow, Error::Dtype { tensor: "report", .. }), "{narrow:?}");
}

/// Of an adapter by itself, and of W and the W' that it makes.
#[test]
fn changes_by_address() {
    let case = case(Norm::Input);
    let mut layer = Layer::new(&case);
    layer.run().expect("the ops");
    let elements = case.out_features * case.in_features;
    let [changed, result] = [(elements, 4), (2, 8)].map(|(n, size)| layer.memory.room(n, size));
    let sums = layer.memory.room(MergeReport::LEN, 8);
    let Layer { memory, kernels, spec, at, layer, workspace, .. } = &mut layer;
    let (stream, prepared, axis) = (&memory.stream, layer.prepared(), Norm::Output);
    let (weight, lora_a, lora_b) =
        (read(at.weight, BF16), read(at.lora_a, F32), read(at.lora_b, F32));
    let io = Merge {
        weight: weight.clone().into(),
        lora_a: lora_a.clone(),
        lora_b: lora_b.clone(),
        merged: write(changed, F32),
        report: Some(write(sums, F64)),
    };
    kernels.merge(stream, spec, prepared, workspace, io).expect("W'");
    let sums: Vec<f64> =
        memory.read(sums, MergeReport::LEN).into_iter().map(f64::from_le_bytes).collect();
    assert!(sums[0] > 0.0 && sums.iter().all(|sum| sum.is_finite()), "{sums:?}");
    let values = || memory.read(result, 2).into_iter().map(f64::from_le_bytes).collect::<Vec<_>>();
    let io = DecomposeAdapter {
        axis,
        weight: weight.clone().into(),
        lora_a,
        lora_b,
        result: write(result, F64),
    };
    kernels.decompose_adapter(stream, spec, prepared, workspace, io).expect("the adapter's");
    let of_adapter = values();
    let mut decompose = |changed| {
        let (weight, result) = (weight.clone().into(), write(result, F64));
        let io = Decompose { axis, weight, changed: read(changed, F32), result };
        kernels.decompose(stream, spec, workspace, io)
    };
    decompose(changed).expect("the weights'");
    let of_weights = values();
    assert_eq!(of_weights.len(), Decomposition::LEN);
    for (adapter, weights) in of_adapter.iter().zip(&of_weights) {
        assert!(*adapter > 0.0 && (adapter / weights - 1.0).abs() < 1e-4, "{adapter} {weights}");
    }
    let missing = decompose(0);
    assert!(matches!(missing, Err(Error::MissingTensor { tensor: "changed", .. })), "{missing:?}");
}

/// W' = W∘g where B = 0, and back, over W itself: by one address twice, and by the ops in place.
#[test]
fn merged_and_unmerged_in_place() {
    let mut case = case(Norm::Output);
    case.lora_b.fill(0.0);
    let mut layer = Layer::new(&case);
    layer.run().expect("the ops");
    let Layer { memory, kernels, spec, at, layer, workspace, .. } = &mut layer;
    let (outputs, inputs) = (case.out_features, case.in_features);
    let (stream, prepared) = (&memory.stream, layer.prepared());
    let weight = || -> Vec<f32> {
        let halves = memory.read(at.weight, outputs * inputs).into_iter();
        halves.map(|bytes| bf16::from_le_bytes(bytes).to_f32()).collect()
    };
    let gains = prepared.read_gain(stream).expect("g");
    let factors = || (read(at.lora_a, F32), read(at.lora_b, F32));
    for by_one_op in [false, true] {
        let start = weight();
        let (lora_a, lora_b) = factors();
        match by_one_op {
            true => {
                let io = InPlace { weight: write(at.weight, BF16), lora_a, lora_b };
                kernels.merge_in_place(stream, spec, prepared, workspace, io, None)
            }
            false => {
                let (weight, merged) = (read(at.weight, BF16).into(), write(at.weight, BF16));
                let io = Merge { weight, lora_a, lora_b, merged, report: None };
                kernels.merge(stream, spec, prepared, workspace, io)
            }
        }
        .expect("W'");
        for (at, (merged, before)) in weight().iter().zip(&start).enumerate() {
            let expected = before * gains[at / inputs];
            assert!(
                (merged - expected).abs() <= expected.abs() / 256.0,
                "{at}: {merged} {expected}"
            );
        }
        let (lora_a, lora_b) = factors();
        match by_one_op {
            true => {
                let io = InPlace { weight: write(at.weight, BF16), lora_a, lora_b };
                kernels.unmerge_in_place(stream, spec, prepared, workspace, io)
            }
            false => {
                let (merged, weight) = (read(at.weight, BF16), write(at.weight, BF16));
                let io = Unmerge { merged, lora_a, lora_b, weight };
                kernels.unmerge(stream, spec, prepared, workspace, io)
            }
        }
        .expect("W");
        for (at, (after, before)) in weight().iter().zip(&start).enumerate() {
            assert!((after - before).abs() <= before.abs() / 128.0, "{at}: {after} {before}");
        }
    }
}

/// A primary context is retained, and another one is left alone.
#[test]
fn contexts_of_another_library() {
    let opened = fused_dora_testkit::device::open().expect("a device");
    // SAFETY: the context is open.
    let borrowed = unsafe { borrow_context(opened.cu_ctx()) }.expect("the primary context");
    assert!(borrowed.is_primary());
    drop(opened);
    Kernels::load(&borrowed).expect("the primary context is still there");

    let mut own = std::ptr::null_mut();
    // SAFETY: the place is writable, and the device is open.
    unsafe { sys::cuCtxCreate_v4(&mut own, std::ptr::null_mut(), 0, borrowed.cu_device()) }
        .result()
        .expect("another context");
    // SAFETY: the context was just created.
    let other = unsafe { borrow_context(own) }.expect("the context");
    assert!(other.cu_ctx() == own && !other.is_primary());
    drop(Kernels::load(&other).expect("kernels"));
    drop(other);
    // SAFETY: this is its owner.
    unsafe { sys::cuCtxDestroy_v2(own) }.result().expect("a context that nobody else destroyed");

    // SAFETY: there is none.
    let none = unsafe { borrow_context(std::ptr::null_mut()) }.expect_err("no context");
    assert!(matches!(none, Error::MissingTensor { tensor: "the context", .. }), "{none:?}");
}
