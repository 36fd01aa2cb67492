//! What a step asks of the driver: few launches, and nothing else. Counted by the emulated device;
//! alone in its process, because the counters are the process's.

mod common;

use std::sync::{Mutex, PoisonError};

use common::device::{Choice, open_choice};
use fused_dora::{
    Backward, DoraSpec, Dtype, Forward, Gradients, Kernels, Magnitude, Norm, NormGrad,
    NormGradient, Prepare, Prepared, Scaling, Workspace,
};
use half::bf16;

/// The counters are the process's: one test at a time.
static COUNTERS: Mutex<()> = Mutex::new(());

const TOKENS: usize = 40;
const INPUTS: usize = 64;
const OUTPUTS: usize = 96;
const RANK: usize = 8;

#[test]
fn few_launches_and_nothing_else() {
    let _alone = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
    let device = open_choice(Some(Choice::Emulated)).expect("the emulated device");
    let stream = device.context.default_stream();
    let kernels = Kernels::load(&device.context).expect("kernels");
    let counted = |what: &str, expected: u64, op: &mut dyn FnMut()| {
        stream.synchronize().expect("no fault");
        let before = device.counters().expect("the emulated device counts");
        op();
        stream.synchronize().expect("no fault");
        let after = device.counters().expect("the emulated device counts");
        assert_eq!(after.launches - before.launches, expected, "launches of {what}");
        let others = |c: &cuda_emulator::Counters| {
            [c.allocations, c.frees, c.copies_htod, c.copies_dtoh, c.copies_dtod, c.memsets]
        };
        assert_eq!(others(&after), others(&before), "{what}: allocations, copies and fills");
        // The one is this test's own.
        assert_eq!(after.synchronizations - before.synchronizations, 1, "{what}");
    };

    for norm in [Norm::None, Norm::Input, Norm::Output] {
        let scaling = Scaling::RankStabilized { alpha: 4.0 };
        let norm_grad = if norm == Norm::None { NormGrad::Detached } else { NormGrad::Exact };
        let spec = DoraSpec::new(INPUTS, OUTPUTS, RANK, scaling, norm, norm_grad, Dtype::Bf16)
            .expect("spec");
        let bf16s = |n: usize| stream.alloc_zeros::<bf16>(n).expect("memory");
        let f32s = |n: usize| stream.alloc_zeros::<f32>(n.max(1)).expect("memory");
        let (x, weight) = (bf16s(TOKENS * INPUTS), bf16s(OUTPUTS * INPUTS));
        let (mut y, mut h) = (bf16s(TOKENS * OUTPUTS), bf16s(TOKENS * spec.padded_rank()));
        let (grad_output, mut grad_input) = (bf16s(TOKENS * OUTPUTS), bf16s(TOKENS * INPUTS));
        let (lora_a, lora_b) = (f32s(RANK * INPUTS), f32s(OUTPUTS * RANK));
        let (mut grad_a, mut grad_b) = (f32s(RANK * INPUTS), f32s(OUTPUTS * RANK));
        let (m, mut grad_m) = (f32s(spec.magnitude_len()), f32s(spec.magnitude_len()));
        let mut workspace = Workspace::new(&kernels, &stream, &[spec], TOKENS).expect("memory");
        let mut prepared = Prepared::new(&stream, &spec).expect("memory");
        let has_norm = norm != Norm::None;

        counted("prepare", 1, &mut || {
            let inputs = Prepare {
                weight: weight.as_view(),
                lora_a: lora_a.as_view(),
                lora_b: lora_b.as_view(),
                magnitude: match has_norm {
                    true => Magnitude::Given(m.as_view()),
                    false => Magnitude::None,
                },
            };
            kernels
                .prepare(&stream, &spec, &mut workspace, &mut prepared, inputs)
                .expect("prepare");
        });
        counted("forward", 2, &mut || {
            let io = Forward {
                tokens: TOKENS,
                x: x.as_view(),
                weight: weight.as_view(),
                bias: None,
                seed: 0,
                y: y.as_view_mut(),
                h: h.as_view_mut(),
            };
            kernels.forward(&stream, &spec, &prepared, &mut workspace, io).expect("forward");
        });
        let mut backward = |with_grad_input: bool| {
            let mut io = Backward {
                tokens: TOKENS,
                gradients: Gradients::Overwrite,
                x: x.as_view(),
                weight: weight.as_view(),
                bias: None,
                output: Some(y.as_view()),
                grad_output: grad_output.as_view(),
                h: h.as_view(),
                grad_input: with_grad_input.then(|| grad_input.as_view_mut()),
                grad_lora_a: grad_a.as_view_mut(),
                grad_lora_b: grad_b.as_view_mut(),
                grad_magnitude: has_norm.then(|| grad_m.as_view_mut()),
                grad_bias: None,
            };
            kernels.backward(&stream, &spec, &prepared, &mut workspace, &mut io).expect("backward");
        };
        counted("backward", 3, &mut || backward(true));
        let without = if norm == Norm::Input { 3 } else { 2 };
        counted("backward of a first layer", without, &mut || backward(false));
        if has_norm {
            counted("norm_gradient", 2, &mut || {
                let io = NormGradient {
                    weight: weight.as_view(),
                    lora_a: lora_a.as_view(),
                    lora_b: lora_b.as_view(),
                    grad_magnitude: grad_m.as_view(),
                    grad_lora_a: grad_a.as_view_mut(),
                    grad_lora_b: grad_b.as_view_mut(),
                };
                kernels
                    .norm_gradient(&stream, &spec, &prepared, &mut workspace, io)
                    .expect("norm_gradient");
            });
        }
    }
}

/// A workspace that fits `backward_adapter` and not `backward_input`: nothing runs, nothing is
/// written.
#[test]
fn a_refused_backward_launches_nothing() {
    let _alone = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
    let device = open_choice(Some(Choice::Emulated)).expect("the emulated device");
    let stream = device.context.default_stream();
    let kernels = Kernels::load(&device.context).expect("kernels");
    let (inputs, outputs, rank, tokens) = (784, 10, 8, 65);
    let (scaling, detached) = (Scaling::Standard { alpha: 16.0 }, NormGrad::Detached);
    let spec = DoraSpec::new(inputs, outputs, rank, scaling, Norm::None, detached, Dtype::Bf16)
        .expect("a layer");
    let bf16s = |n: usize| stream.alloc_zeros::<bf16>(n).expect("memory");
    let f32s = |n: usize| stream.alloc_zeros::<f32>(n).expect("memory");
    let (x, weight, dy) =
        (bf16s(tokens * inputs), bf16s(outputs * inputs), bf16s(tokens * outputs));
    let h = bf16s(tokens * spec.padded_rank());
    let (lora_a, lora_b) = (f32s(rank * inputs), f32s(outputs * rank));
    let (mut grad_a, mut grad_b) = (f32s(rank * inputs), f32s(outputs * rank));
    let mut workspace = Workspace::new(&kernels, &stream, &[spec], tokens - 1).expect("memory");
    let mut prepared = Prepared::new(&stream, &spec).expect("memory");
    let adapter = Prepare {
        weight: weight.as_view(),
        lora_a: lora_a.as_view(),
        lora_b: lora_b.as_view(),
        magnitude: Magnitude::None,
    };
    kernels.prepare(&stream, &spec, &mut workspace, &mut prepared, adapter).expect("prepare");
    stream.synchronize().expect("no fault");
    let before = device.launches();
    let mut io = Backward {
        tokens,
        gradients: Gradients::Overwrite,
        x: x.as_view(),
        weight: weight.as_view(),
        bias: None,
        output: None,
        grad_output: dy.as_view(),
        h: h.as_view(),
        grad_input: None,
        grad_lora_a: grad_a.as_view_mut(),
        grad_lora_b: grad_b.as_view_mut(),
        grad_magnitude: None,
        grad_bias: None,
    };
    let refused = kernels.backward(&stream, &spec, &prepared, &mut workspace, &mut io);
    assert!(
        matches!(refused, Err(fused_dora::Error::WorkspaceTooSmall { tokens: 65, .. })),
        "{refused:?}"
    );
    stream.synchronize().expect("no fault");
    assert_eq!(device.launches(), before);
}
