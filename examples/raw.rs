//! A DoRA layer trained on tensors that another library owns: the crate is told their device
//! addresses and a stream, as a tch, burn or C++ trainer would tell it. `examples/raw.c` does the
//! same from C.

use std::error::Error;
use std::ffi::c_void;
use std::ptr::null_mut;

use cuda_emulator::client::{Choice, select};
use fused_dora::cudarc::driver::DriverError;
use fused_dora::cudarc::driver::sys::{self, CUcontext, CUdevice, CUdeviceptr, CUresult, CUstream};
use fused_dora::{
    AdamWConfig, AdapterGroups, AdapterLayout, DoraSpec, Dtype, Gradients, Kernels, Norm, NormGrad,
    OptimizerGroup, Part, Scaling, raw,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const TOKENS: usize = 64;
const INPUTS: usize = 48;
const OUTPUTS: usize = 40;
const RANK: usize = 4;
const STEPS: u64 = 60;

/// The other library: a context, a stream and memory, by plain driver calls. Of all this, the crate
/// sees the numbers alone.
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
        // SAFETY: nothing uses these after the trainer, which owns them. There is nobody to tell of
        // an error.
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

/// x·Wᵀ on the host: what the layer is to learn.
fn linear(x: &[f32], weight: &[f32]) -> Vec<f32> {
    let row = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| x * w).sum();
    let rows = x.chunks(INPUTS).map(|x| weight.chunks(INPUTS).map(move |w| row(x, w)));
    rows.flatten().collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    select(Choice::from_env()?)?;
    let mut trainer = Trainer::new()?;

    // SAFETY: the trainer's context and stream live until the end of this function.
    let context = unsafe { raw::borrow_context(trainer.context)? };
    // SAFETY: likewise.
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

    let size = raw::WorkspaceSize::new(&kernels, &[spec], TOKENS)?;
    let workspace = raw::Workspace { pointer: trainer.zeros(size.bytes)?, size };
    let operands = trainer.zeros(raw::Prepared::bytes(&spec, false))?;
    let prepared = raw::Prepared::within(operands, &spec, false);
    let weight = trainer.tensor(&frozen)?;
    let x = raw::Matrix::dense(trainer.zeros(4 * TOKENS * INPUTS)?, INPUTS);
    let y = raw::Matrix::dense(trainer.zeros(4 * TOKENS * OUTPUTS)?, OUTPUTS);
    let grad_output = raw::Matrix::dense(trainer.zeros(4 * TOKENS * OUTPUTS)?, OUTPUTS);
    let grad_input = raw::Matrix::dense(trainer.zeros(4 * TOKENS * INPUTS)?, INPUTS);
    let h = trainer.zeros(4 * TOKENS * spec.padded_rank())?;
    let norm = trainer.zeros(4)?;

    let forward =
        raw::Forward { tokens: TOKENS, x, weight, bias: 0, seed: 0, dropout: None, z: 0, y, h };
    let backward = raw::Backward {
        tokens: TOKENS,
        gradients: Gradients::Overwrite,
        x,
        weight,
        output: y,
        z: 0,
        dropout: None,
        grad_output,
        h,
        grad_input,
        grad_lora_a: part(gradients, Part::LoraA),
        grad_lora_b: part(gradients, Part::LoraB),
        grad_magnitude: part(gradients, Part::Magnitude),
        grad_bias: 0,
    };
    let through_the_norm = raw::NormGradient {
        weight,
        lora_a: part(parameters, Part::LoraA),
        lora_b: part(parameters, Part::LoraB),
        grad_magnitude: backward.grad_magnitude,
        grad_lora_a: backward.grad_lora_a,
        grad_lora_b: backward.grad_lora_b,
    };
    // LoRA+: B learns faster.
    let groups = AdapterGroups {
        lora_b: OptimizerGroup { learning_rate_factor: 4.0, weight_decay: 0.0 },
        ..AdapterGroups::default()
    };
    let parts: Vec<_> = groups.parts(&layout, 0).collect();
    let measured = raw::GradientNorm { parts: &parts, len: layout.len(), gradients, norm };

    println!("{:>4} {:>10} {:>10}", "step", "loss", "gradient");
    for step in 1..=STEPS {
        let inputs = uniform(&mut random, TOKENS * INPUTS, 1.0);
        trainer.write(x.pointer, &inputs)?;
        // A fresh adapter's magnitude is the norm that is found.
        let magnitude = part(parameters, Part::Magnitude);
        let (magnitude, magnitude_out) = if step == 1 { (0, magnitude) } else { (magnitude, 0) };
        let prepare = raw::Prepare {
            weight,
            lora_a: part(parameters, Part::LoraA),
            lora_b: part(parameters, Part::LoraB),
            magnitude,
            magnitude_out,
            bias: 0,
        };
        // SAFETY: the tensors were allocated above in the shapes of the spec, for these tokens, and
        // live as long as the trainer; one stream orders all their uses.
        unsafe {
            kernels.prepare_raw(&stream, &spec, &workspace, &prepared, &prepare)?;
            kernels.forward_raw(&stream, &spec, &prepared, &workspace, &forward)?;
        }
        // The loss is the trainer's own business: ‖y − x·W*ᵀ‖²/2 per token.
        let found = trainer.read(y.pointer, TOKENS * OUTPUTS)?;
        let per_token = (TOKENS as f32).recip();
        let difference: Vec<f32> =
            found.iter().zip(linear(&inputs, &wanted)).map(|(y, wanted)| y - wanted).collect();
        let loss = difference.iter().map(|d| d * d).sum::<f32>() * per_token / 2.0;
        let grad: Vec<f32> = difference.iter().map(|d| d * per_token).collect();
        trainer.write(grad_output.pointer, &grad)?;
        let adamw = raw::AdamW {
            parts: &parts,
            schedule: raw::Schedule::Host { learning_rate: 0.01, step },
            clip: Some(raw::Clip { max_norm: 1.0, norm }),
            len: layout.len(),
            parameters,
            gradients,
            exp_avg,
            exp_avg_sq,
        };
        // SAFETY: as above.
        unsafe {
            kernels.backward_raw(&stream, &spec, &prepared, &workspace, &backward)?;
            kernels.norm_gradient_raw(&stream, &spec, &prepared, &workspace, &through_the_norm)?;
            kernels.gradient_norm_raw(&stream, &workspace, &measured)?;
            kernels.adamw_raw(&stream, &AdamWConfig::default(), &adamw)?;
        }
        if step == 1 || step % 10 == 0 {
            println!("{step:>4} {loss:>10.6} {:>10.6}", trainer.read(norm, 1)?[0]);
        }
    }
    Ok(())
}
