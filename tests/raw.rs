//! The ops on device addresses: the same bits as from cudarc's buffers, and errors for what the
//! numbers give away.

mod common;

use std::sync::Arc;

use common::random::{fresh_seed, random_case};
use fused_dora::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use fused_dora::reference::Case;
use fused_dora::{DoraSpec, Dtype, Error, Gradients, Kernels, Norm, raw};
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
        let context = common::device::open().expect("a device");
        let kernels = Kernels::load(&context).expect("kernels");
        // A stream of somebody else's.
        let owner = context.new_stream().expect("a stream");
        // SAFETY: the handle lives as long as the process: its owner is leaked below.
        let stream = unsafe { context.wrap_borrowed_stream(owner.cu_stream()) };
        std::mem::forget(owner);
        let mut memory = Memory { stream, blocks: Vec::new() };
        let spec = common::run::spec(case, Dtype::Bf16).expect("a layer");
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

    /// The six results, widened to f32, as [`common::run::Runner`] returns them.
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
        let runner = common::run::Runner::new(layer.kernels.context()).expect("kernels");
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
