//! A DoRA layer trained on tensors of another library, by address: the crate gets their device
//! addresses and a stream, as from a tch, burn or C++ trainer. `capi/examples/raw.c` does the same
//! in C.

use std::error::Error;
use std::ffi::c_void;
use std::io::{self, Write as _};
use std::ptr::null_mut;

use cuda_emulator::client::{Choice, select};
use fused_dora::cudarc::driver::DriverError;
use fused_dora::cudarc::driver::sys::{self, CUcontext, CUdevice, CUdeviceptr, CUresult, CUstream};
use fused_dora::{
    AdamW, AdamWConfig, AdapterGroups, AdapterLayout, Backward, Base, Clip, DoraSpec, Dtype,
    ElementType, Forward, GradientNorm, Gradients, Kernels, Layer, Magnitude, Norm, NormGrad,
    NormGradient, OptimizerGroup, Part, Prepare, Prepared, Read, Scaling, Schedule, Workspace,
    Write, borrow_context,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const TOKENS: usize = 64;
const INPUTS: usize = 48;
const OUTPUTS: usize = 40;
const RANK: usize = 4;
const STEPS: u64 = 60;

/// The other library: a context, a stream and memory, by plain driver calls. The crate sees only
/// the numbers.
struct Trainer {
    device: CUdevice,
    context: CUcontext,
    stream: CUstream,
    tensors: Vec<CUdeviceptr>,
}

impl Trainer {
    fn new() -> Result<Self, DriverError> {
        let (mut device, mut context, mut stream) = (0, null_mut(), null_mut());
        let own_order = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the places are writable, and each call gets what those before it returned.
        unsafe {
            check(sys::cuInit(0))?;
            check(sys::cuDeviceGet(&mut device, 0))?;
            check(sys::cuDevicePrimaryCtxRetain(&mut context, device))?;
            check(sys::cuCtxSetCurrent(context))?;
            check(sys::cuStreamCreate(&mut stream, own_order))?;
        }
        Ok(Self { device, context, stream, tensors: Vec::new() })
    }

    /// Memory of zeros.
    fn zeros(&mut self, bytes: usize) -> Result<CUdeviceptr, DriverError> {
        let mut pointer = 0;
        // SAFETY: the place is writable, and what is set was just allocated.
        unsafe {
            check(sys::cuMemAlloc_v2(&mut pointer, bytes))?;
            check(sys::cuMemsetD8Async(pointer, 0, bytes, self.stream))?;
        }
        self.tensors.push(pointer);
        Ok(pointer)
    }

    fn tensor(&mut self, values: &[f32]) -> Result<CUdeviceptr, DriverError> {
        let pointer = self.zeros(size_of_val(values))?;
        self.write(pointer, values)?;
        Ok(pointer)
    }

    fn write(&self, pointer: CUdeviceptr, values: &[f32]) -> Result<(), DriverError> {
        let source = values.as_ptr().cast::<c_void>();
        // SAFETY: the slice is readable, and outlives the copy, which is awaited.
        unsafe {
            check(sys::cuMemcpyHtoDAsync_v2(pointer, source, size_of_val(values), self.stream))?;
            check(sys::cuStreamSynchronize(self.stream))
        }
    }

    fn read(&self, pointer: CUdeviceptr, len: usize) -> Result<Vec<f32>, DriverError> {
        let mut values = vec![0.0f32; len];
        let bytes = size_of_val(&*values);
        // SAFETY: the vector is writable, and outlives the copy, which is awaited.
        unsafe {
            let target = values.as_mut_ptr().cast::<c_void>();
            check(sys::cuMemcpyDtoHAsync_v2(target, pointer, bytes, self.stream))?;
            check(sys::cuStreamSynchronize(self.stream))?;
        }
        Ok(values)
    }
}

impl Drop for Trainer {
    fn drop(&mut self) {
        // SAFETY: nothing uses these after the trainer, which owns them. Nobody could use an error.
        unsafe {
            let _ = sys::cuStreamSynchronize(self.stream);
            for &tensor in &self.tensors {
                let _ = sys::cuMemFree_v2(tensor);
            }
            let _ = sys::cuStreamDestroy_v2(self.stream);
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

fn check(status: CUresult) -> Result<(), DriverError> {
    status.result()
}

fn uniform(random: &mut StdRng, len: usize, bound: f32) -> Vec<f32> {
    (0..len).map(|_| random.random_range(-bound..bound)).collect()
}

/// x·Wᵀ on the host, which the layer learns.
fn linear(x: &[f32], weight: &[f32]) -> Vec<f32> {
    let row = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum();
    let rows = x.chunks(INPUTS).map(|x| weight.chunks(INPUTS).map(move |w| row(x, w)));
    rows.flatten().collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    select(Choice::from_env()?)?;
    let mut trainer = Trainer::new()?;

    // SAFETY: the trainer's context and stream live until the end of this function.
    let context = unsafe { borrow_context(trainer.context)? };
    // SAFETY: as above.
    let stream = unsafe { context.wrap_borrowed_stream(trainer.stream) };
    let kernels = Kernels::load(&context)?;
    let scaling = Scaling::Standard { alpha: 2.0 * RANK as f32 };
    let spec =
        DoraSpec::new(INPUTS, OUTPUTS, RANK, scaling, Norm::Output, NormGrad::Exact, Dtype::F32)?;

    // A frozen weight, and one that differs from it by other magnitudes and a change of rank 4.
    let mut random = StdRng::seed_from_u64(1);
    let bound = (INPUTS as f32).sqrt().recip();
    let frozen = uniform(&mut random, OUTPUTS * INPUTS, bound);
    let [down, up] = [INPUTS, OUTPUTS].map(|len| uniform(&mut random, len * RANK, 0.2));
    let wanted: Vec<f32> = (0..OUTPUTS * INPUTS)
        .map(|at| {
            let (row, col) = (at / INPUTS, at % INPUTS);
            let change: f32 = (0..RANK).map(|k| up[row * RANK + k] * down[col * RANK + k]).sum();
            (1.0 + 0.01 * row as f32) * (frozen[at] + change)
        })
        .collect();

    // The adapter's parameters, its gradients and its moments: a buffer each.
    let layout = AdapterLayout::new(&spec);
    let mut initial = vec![0.0; layout.len()];
    initial[layout.range(Part::LoraA)].copy_from_slice(&uniform(&mut random, RANK * INPUTS, bound));
    let parameters = trainer.tensor(&initial)?;
    let [gradients, exp_avg, exp_avg_sq] = [
        trainer.zeros(4 * layout.len())?,
        trainer.zeros(4 * layout.len())?,
        trainer.zeros(4 * layout.len())?,
    ];
    let part = |buffer: u64, part| buffer + 4 * layout.range(part).start as u64;

    let bytes = Workspace::bytes(&kernels, &[spec], TOKENS)?;
    let scratch = trainer.zeros(bytes)?;
    // SAFETY: nothing else uses the memory, and the trainer keeps it.
    let mut workspace =
        unsafe { Workspace::at_address(&kernels, &stream, &[spec], TOKENS, scratch, bytes)? };
    let bytes = Prepared::bytes(&spec);
    // SAFETY: as above.
    let mut layer = unsafe { Layer::at_address(&spec, trainer.zeros(bytes)?, bytes)? };
    let weight = trainer.tensor(&frozen)?;
    let [x, grad_input] =
        [trainer.zeros(4 * TOKENS * INPUTS)?, trainer.zeros(4 * TOKENS * INPUTS)?];
    let [y, grad_output] =
        [trainer.zeros(4 * TOKENS * OUTPUTS)?, trainer.zeros(4 * TOKENS * OUTPUTS)?];
    let h = trainer.zeros(4 * layer.h_len(TOKENS))?;
    let norm = trainer.zeros(4)?;

    // LoRA+: B learns faster.
    let groups = AdapterGroups {
        lora_b: OptimizerGroup { learning_rate_factor: 4.0, weight_decay: 0.0 },
        ..AdapterGroups::default()
    };
    let parts: Vec<_> = groups.parts(&layout, 0).collect();
    // SAFETY: the tensors were allocated above in the shapes of the spec, for these tokens, and
    // live as long as the trainer; one stream orders all their uses.
    let read = |address| unsafe { Read::from_address(address, ElementType::F32) };
    // SAFETY: as above, and no op gets the same address twice, except where it reads and writes.
    let write = |address| unsafe { Write::from_address(address, ElementType::F32) };

    let _ = writeln!(io::stdout(), "{:>4} {:>10} {:>10}", "step", "loss", "gradient");
    for step in 1..=STEPS {
        let inputs = uniform(&mut random, TOKENS * INPUTS, 1.0);
        trainer.write(x, &inputs)?;
        let magnitude = part(parameters, Part::Magnitude);
        let prepare = Prepare {
            weight: read(weight).into(),
            lora_a: read(part(parameters, Part::LoraA)),
            lora_b: read(part(parameters, Part::LoraB)),
            // The first call writes the norm of V, the magnitude of a new adapter.
            magnitude: match step {
                1 => Magnitude::Init(write(magnitude)),
                _ => Magnitude::Given(read(magnitude)),
            },
            bias: None,
        };
        layer.prepare(&kernels, &stream, &mut workspace, prepare)?;
        let forward = Forward {
            tokens: TOKENS,
            base: Base::new(read(weight)),
            x: read(x),
            y: write(y),
            h: write(h),
            z: None,
            dropout: None,
            counter: None,
            seed: 0,
        };
        layer.forward(&kernels, &stream, &mut workspace, forward)?;

        // The trainer computes the loss: ‖y − x·W*ᵀ‖²/2 per token.
        let found = trainer.read(y, TOKENS * OUTPUTS)?;
        let per_token = (TOKENS as f32).recip();
        let difference: Vec<f32> =
            found.iter().zip(linear(&inputs, &wanted)).map(|(y, wanted)| y - wanted).collect();
        let loss = difference.iter().map(|d| d * d).sum::<f32>() * per_token / 2.0;
        let grad: Vec<f32> = difference.iter().map(|d| d * per_token).collect();
        trainer.write(grad_output, &grad)?;

        let backward = Backward {
            tokens: TOKENS,
            gradients: Gradients::Overwrite,
            base: Base::new(read(weight)),
            x: read(x),
            output: Some(read(y)),
            z: None,
            dropout: None,
            counter: None,
            grad_output: read(grad_output),
            h: read(h),
            grad_input: Some(write(grad_input)),
            grad_lora_a: write(part(gradients, Part::LoraA)),
            grad_lora_b: write(part(gradients, Part::LoraB)),
            grad_magnitude: Some(write(part(gradients, Part::Magnitude))),
            grad_bias: None,
        };
        layer.backward(&kernels, &stream, &mut workspace, backward)?;
        let through_the_norm = NormGradient {
            weight: read(weight).into(),
            lora_a: read(part(parameters, Part::LoraA)),
            lora_b: read(part(parameters, Part::LoraB)),
            grad_magnitude: read(part(gradients, Part::Magnitude)),
            grad_lora_a: write(part(gradients, Part::LoraA)),
            grad_lora_b: write(part(gradients, Part::LoraB)),
        };
        layer.finish(&kernels, &stream, &mut workspace, through_the_norm)?;
        let measured = GradientNorm {
            len: layout.len(),
            parts: &parts,
            gradients: read(gradients),
            norm: write(norm),
        };
        kernels.gradient_norm(&stream, &mut workspace, measured)?;
        let adamw = AdamW {
            len: layout.len(),
            parts: &parts,
            schedule: Schedule::Host { learning_rate: 0.01, step },
            clip: Some(Clip { max_norm: 1.0, norm: read(norm) }),
            parameters: write(parameters),
            gradients: read(gradients),
            exp_avg: write(exp_avg),
            exp_avg_sq: write(exp_avg_sq),
        };
        kernels.adamw(&stream, &AdamWConfig::default(), adamw)?;
        if step == 1 || step % 10 == 0 {
            let _ = writeln!(
                io::stdout(),
                "{step:>4} {loss:>10.6} {:>10.6}",
                trainer.read(norm, 1)?[0]
            );
        }
    }
    Ok(())
}
