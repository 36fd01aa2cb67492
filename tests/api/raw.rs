//! The ops on device addresses: the same bits as from cudarc's buffers, and errors for what the
//! numbers give away.

use std::sync::Arc;

use fused_dora::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, sys};
use fused_dora::reference::Case;
use fused_dora::{
    AdamWConfig, DoraSpec, Dtype, Error, Gradients, Kernels, Norm, OptimizerGroup, OptimizerPart,
    raw,
};
use fused_dora_testkit::random::{fresh_seed, random_case};
use half::bf16;
use rand::SeedableRng;
use rand::rngs::StdRng;

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

/// A layer's addresses.
struct Layer {
    memory: Memory,
    kernels: Kernels,
    spec: DoraSpec,
    prepared: raw::Prepared,
    workspace: raw::Workspace,
    prepare: raw::Prepare,
    forward: raw::Forward,
    backward: raw::Backward,
}

impl Layer {
    fn new(case: &Case) -> Self {
        let context = fused_dora_testkit::device::open().expect("a device");
        let kernels = Kernels::load(&context).expect("kernels");
        // A stream of somebody else's.
        let owner = context.new_stream().expect("a stream");
        // SAFETY: the handle lives as long as the process: its owner is leaked below.
        let stream = unsafe { context.wrap_borrowed_stream(owner.cu_stream()) };
        std::mem::forget(owner);
        let mut memory = Memory { stream, blocks: Vec::new() };
        let spec = fused_dora_testkit::run::spec(case, Dtype::Bf16).expect("a layer");
        let (tokens, inputs, outputs) = (case.tokens, case.in_features, case.out_features);
        let (m_len, rank, r) = (spec.magnitude_len(), spec.rank(), spec.padded_rank());
        let on_output = case.norm == Norm::Output;
        let prepared = raw::Prepared {
            norm: memory.room(m_len, 4),
            gain: memory.room(m_len, 4),
            a: memory.room(r * inputs, 2),
            sb: memory.room(r * outputs, 2),
            gsb: if on_output { memory.room(r * outputs, 2) } else { 0 },
            bias: 0,
        };
        let size = raw::WorkspaceSize::new(&kernels, &[spec], tokens).expect("few tokens");
        let mut scratch = vec![0xff; size.bytes];
        scratch[..size.counter_bytes].fill(0);
        let workspace = raw::Workspace { pointer: memory.bytes(&scratch), size };
        let prepare = raw::Prepare {
            weight: memory.bf16(&case.weight),
            lora_a: memory.f32(&case.lora_a),
            lora_b: memory.f32(&case.lora_b),
            magnitude: if m_len > 0 { memory.f32(&case.magnitude) } else { 0 },
            magnitude_out: 0,
            bias: 0,
        };
        let forward = raw::Forward {
            tokens,
            x: raw::Matrix::dense(memory.bf16(&case.input), inputs),
            weight: prepare.weight,
            bias: case.bias.as_ref().map_or(0, |bias| memory.bf16(bias)),
            seed: 1,
            dropout: None,
            z: 0,
            y: raw::Matrix::dense(memory.room(tokens * outputs, 2), outputs),
            h: memory.room(tokens * r, 2),
        };
        let backward = raw::Backward {
            tokens,
            gradients: Gradients::Overwrite,
            x: forward.x,
            weight: forward.weight,
            bias: forward.bias,
            output: forward.y,
            z: 0,
            dropout: None,
            grad_output: raw::Matrix::dense(memory.bf16(&case.grad_output), outputs),
            h: forward.h,
            grad_input: raw::Matrix::dense(memory.room(tokens * inputs, 2), inputs),
            grad_lora_a: memory.room(rank * inputs, 4),
            grad_lora_b: memory.room(rank * outputs, 4),
            grad_magnitude: if m_len > 0 { memory.room(m_len, 4) } else { 0 },
            grad_bias: memory.room(outputs, 4),
        };
        Self { memory, kernels, spec, prepared, workspace, prepare, forward, backward }
    }

    fn run(&self) -> Result<(), Error> {
        let Self { memory, kernels, spec, prepared, workspace, .. } = self;
        let stream = &memory.stream;
        // SAFETY: `new` made the addresses for this spec and these tokens, and their memory lives
        // as long as the layer; the tests that change them expect an error before any launch.
        unsafe {
            kernels.prepare_raw(stream, spec, workspace, prepared, &self.prepare)?;
            kernels.forward_raw(stream, spec, prepared, workspace, &self.forward)?;
            kernels.backward_raw(stream, spec, prepared, workspace, &self.backward)
        }
    }

    /// The six results, widened to f32, as [`fused_dora_testkit::run::Runner`] returns them.
    fn results(&self) -> [Vec<f32>; 6] {
        let Self { memory, spec, forward, backward, .. } = self;
        let (tokens, rank) = (forward.tokens, spec.rank());
        let (inputs, outputs) = (spec.in_features(), spec.out_features());
        let halves = |address, len| -> Vec<f32> {
            memory.read(address, len).into_iter().map(|b| bf16::from_le_bytes(b).to_f32()).collect()
        };
        let singles = |address, len| -> Vec<f32> {
            if len == 0 {
                return Vec::new();
            }
            memory.read(address, len).into_iter().map(f32::from_le_bytes).collect()
        };
        [
            halves(forward.y.pointer, tokens * outputs),
            halves(backward.grad_input.pointer, tokens * inputs),
            singles(backward.grad_lora_a, rank * inputs),
            singles(backward.grad_lora_b, rank * outputs),
            singles(backward.grad_magnitude, spec.magnitude_len()),
            singles(backward.grad_bias, outputs),
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
        let layer = Layer::new(&case);
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
fn what_the_numbers_give_away() {
    let error = |change: &dyn Fn(&mut Layer)| {
        let mut layer = Layer::new(&case(Norm::Output));
        change(&mut layer);
        layer.run().expect_err("a mistake")
    };
    let missing = error(&|layer| layer.forward.x.pointer = 0);
    assert!(matches!(missing, Error::MissingTensor { tensor: "x", .. }), "{missing:?}");
    let missing = error(&|layer| layer.backward.grad_magnitude = 0);
    assert!(
        matches!(missing, Error::MissingTensor { tensor: "grad_magnitude", .. }),
        "{missing:?}"
    );
    let missing = error(&|layer| layer.prepared.gsb = 0);
    assert!(matches!(missing, Error::MissingTensor { .. }), "{missing:?}");
    let odd = error(&|layer| layer.forward.weight += 1);
    assert!(matches!(odd, Error::Misaligned { tensor: "weight", alignment: 2, .. }), "{odd:?}");
    let overlap = error(&|layer| layer.backward.grad_output.stride = 55);
    assert!(
        matches!(overlap, Error::Stride { tensor: "grad_output", stride: 55, cols: 56, .. }),
        "{overlap:?}"
    );
    let odd = error(&|layer| layer.workspace.pointer += 16);
    assert!(matches!(odd, Error::Misaligned { alignment: 256, .. }), "{odd:?}");
    let small = error(&|layer| layer.workspace.size.bytes = 512);
    assert!(matches!(small, Error::WorkspaceTooSmall { .. }), "{small:?}");
}

#[test]
fn the_optimizer_and_the_merge_give_theirs_away() {
    let case = case(Norm::Output);
    let layer = Layer::new(&case);
    layer.run().expect("the ops");
    let Layer { memory, kernels, spec, prepared, workspace, prepare, .. } = &layer;
    let group = OptimizerGroup::default();
    let parts = [OptimizerPart { range: 0..4, group }];
    let step = raw::AdamW {
        parts: &parts,
        schedule: raw::Schedule::Host { learning_rate: 0.1, step: 1 },
        clip: None,
        len: 4,
        parameters: prepare.lora_a,
        gradients: layer.backward.grad_lora_a,
        exp_avg: prepare.lora_b,
        exp_avg_sq: prepare.magnitude,
    };
    let adamw = |io: raw::AdamW<'_>| {
        // SAFETY: an error is expected before any launch.
        unsafe { kernels.adamw_raw(&memory.stream, &AdamWConfig::default(), &io) }
            .expect_err("a mistake")
    };
    let long = adamw(raw::AdamW { len: 3, ..step });
    assert!(matches!(long, Error::InvalidSpec { .. }), "{long:?}");
    let missing = adamw(raw::AdamW { exp_avg: 0, ..step });
    assert!(matches!(missing, Error::MissingTensor { tensor: "exp_avg", .. }), "{missing:?}");
    let zeroth = raw::Schedule::Host { learning_rate: 0.1, step: 0 };
    let zeroth = adamw(raw::AdamW { schedule: zeroth, ..step });
    assert!(matches!(zeroth, Error::InvalidSpec { parameter: "step", .. }), "{zeroth:?}");
    let clip = raw::Clip { max_norm: 1.0, norm: 0 };
    let missing = adamw(raw::AdamW { clip: Some(clip), ..step });
    assert!(matches!(missing, Error::MissingTensor { tensor: "norm", .. }), "{missing:?}");
    let measured = raw::GradientNorm { parts: &parts, len: 4, gradients: step.gradients, norm: 0 };
    // SAFETY: as above.
    let missing = unsafe { kernels.gradient_norm_raw(&memory.stream, workspace, &measured) };
    assert!(matches!(missing, Err(Error::MissingTensor { tensor: "norm", .. })), "{missing:?}");

    let in_place = raw::Merge {
        weight: prepare.weight,
        lora_a: prepare.lora_a,
        lora_b: prepare.lora_b,
        merged: prepare.weight,
        merged_dtype: Dtype::F32,
        report: 0,
    };
    let merge = |prepared: &raw::Prepared, io: raw::Merge| {
        // SAFETY: as above.
        unsafe { kernels.merge_raw(&memory.stream, spec, prepared, workspace, &io) }
            .expect_err("a mistake")
    };
    let wider = merge(prepared, in_place);
    assert!(matches!(wider, Error::InvalidSpec { parameter: "merged_dtype", .. }), "{wider:?}");
    let missing = merge(
        &raw::Prepared { gain: 0, ..*prepared },
        raw::Merge { merged_dtype: Dtype::Bf16, ..in_place },
    );
    assert!(matches!(missing, Error::MissingTensor { tensor: "the gain", .. }), "{missing:?}");
    let odd = merge(prepared, raw::Merge { report: 4, merged_dtype: Dtype::Bf16, ..in_place });
    assert!(matches!(odd, Error::Misaligned { tensor: "report", alignment: 8, .. }), "{odd:?}");
}

/// Of an adapter by itself, and of W and the W' that it makes.
#[test]
fn changes_by_address() {
    let case = case(Norm::Input);
    let mut layer = Layer::new(&case);
    layer.run().expect("the ops");
    let elements = case.out_features * case.in_features;
    let [changed, result] = [(elements, 4), (2, 8)].map(|(n, size)| layer.memory.room(n, size));
    let Layer { memory, kernels, spec, prepared, workspace, prepare, .. } = &layer;
    let (weight, lora_a, lora_b) = (prepare.weight, prepare.lora_a, prepare.lora_b);
    let merged_dtype = Dtype::F32;
    let merge = raw::Merge { weight, lora_a, lora_b, merged: changed, merged_dtype, report: 0 };
    let axis = Norm::Output;
    let of_adapter = raw::DecomposeAdapter { axis, weight, lora_a, lora_b, result };
    let of_weights = raw::Decompose { axis, weight, changed, changed_dtype: Dtype::F32, result };
    let read = || memory.read(result, 2).into_iter().map(f64::from_le_bytes).collect::<Vec<_>>();
    let stream = &memory.stream;
    // SAFETY: the layer's addresses are those of its spec, and there is room for the others.
    let [of_adapter, of_weights] = unsafe {
        kernels.merge_raw(stream, spec, prepared, workspace, &merge).expect("W'");
        kernels
            .decompose_adapter_raw(stream, spec, prepared, workspace, &of_adapter)
            .expect("the adapter's");
        let first = read();
        kernels.decompose_raw(stream, spec, workspace, &of_weights).expect("the weights'");
        [first, read()]
    };
    for (adapter, weights) in of_adapter.iter().zip(&of_weights) {
        assert!(*adapter > 0.0 && (adapter / weights - 1.0).abs() < 1e-4, "{adapter} {weights}");
    }
    let nowhere = raw::Decompose { axis, weight, changed: 0, changed_dtype: Dtype::F32, result };
    // SAFETY: an error is expected before any launch.
    let missing = unsafe { kernels.decompose_raw(stream, spec, workspace, &nowhere) };
    assert!(matches!(missing, Err(Error::MissingTensor { tensor: "changed", .. })), "{missing:?}");
}

/// W' = W∘g where B = 0, and back, over W itself.
#[test]
fn merged_and_unmerged_in_place() {
    let mut case = case(Norm::Output);
    case.lora_b.fill(0.0);
    let layer = Layer::new(&case);
    layer.run().expect("the ops");
    let Layer { memory, kernels, spec, prepared, workspace, prepare, .. } = &layer;
    let (outputs, inputs) = (case.out_features, case.in_features);
    let weight = || -> Vec<f32> {
        let halves = memory.read(prepare.weight, outputs * inputs).into_iter();
        halves.map(|bytes| bf16::from_le_bytes(bytes).to_f32()).collect()
    };
    let (lora_a, lora_b, merged_dtype) = (prepare.lora_a, prepare.lora_b, Dtype::Bf16);
    let (weight_address, before) = (prepare.weight, weight());
    let merge = raw::Merge {
        weight: weight_address,
        lora_a,
        lora_b,
        merged: weight_address,
        merged_dtype,
        report: 0,
    };
    // SAFETY: the layer's addresses are those of its spec.
    unsafe { kernels.merge_raw(&memory.stream, spec, prepared, workspace, &merge) }.expect("W'");
    let gains: Vec<f32> =
        memory.read(prepared.gain, outputs).into_iter().map(f32::from_le_bytes).collect();
    for (at, (merged, before)) in weight().iter().zip(&before).enumerate() {
        let expected = before * gains[at / inputs];
        assert!((merged - expected).abs() <= expected.abs() / 256.0, "{at}: {merged} {expected}");
    }
    let unmerge = raw::Unmerge {
        merged: weight_address,
        merged_dtype,
        lora_a,
        lora_b,
        weight: weight_address,
    };
    // SAFETY: likewise.
    unsafe { kernels.unmerge_raw(&memory.stream, spec, prepared, workspace, &unmerge) }.expect("W");
    for (at, (after, before)) in weight().iter().zip(&before).enumerate() {
        assert!((after - before).abs() <= before.abs() / 128.0, "{at}: {after} {before}");
    }
}

/// A primary context is retained, and another one is left alone.
#[test]
fn contexts_of_another_library() {
    let opened = fused_dora_testkit::device::open().expect("a device");
    // SAFETY: the context is open.
    let borrowed = unsafe { raw::borrow_context(opened.cu_ctx()) }.expect("the primary context");
    assert!(borrowed.is_primary());
    drop(opened);
    Kernels::load(&borrowed).expect("the primary context is still there");

    let mut own = std::ptr::null_mut();
    // SAFETY: the place is writable, and the device is open.
    unsafe { sys::cuCtxCreate_v4(&mut own, std::ptr::null_mut(), 0, borrowed.cu_device()) }
        .result()
        .expect("another context");
    // SAFETY: the context was just created.
    let other = unsafe { raw::borrow_context(own) }.expect("the context");
    assert!(other.cu_ctx() == own && !other.is_primary());
    drop(Kernels::load(&other).expect("kernels"));
    drop(other);
    // SAFETY: this is its owner.
    unsafe { sys::cuCtxDestroy_v2(own) }.result().expect("a context that nobody else destroyed");

    // SAFETY: there is none.
    let none = unsafe { raw::borrow_context(std::ptr::null_mut()) }.expect_err("no context");
    assert!(matches!(none, Error::MissingTensor { tensor: "the context", .. }), "{none:?}");
}
