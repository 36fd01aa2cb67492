//! What a step asks of the driver: few launches, and nothing else.

use fused_dora::quant::{BlockScales, Code4, Fp8Scales, WeightFormat, dynamic_map};
use fused_dora::{
    AdamW, AdamWConfig, AdapterGroups, AdapterLayout, Backward, Base, Clip, Decompose,
    DecomposeAdapter, Decomposition, Dequantize, DoraLinear, DoraSpec, Dtype, Forward,
    GradientNorm, Gradients, Kernels, Magnitude, Merge, MergeReport, NestedOffset, NestedScales,
    NestedTarget, Norm, NormGrad, NormGradient, PackedWeight, Prepare, Prepared, Quantize, Scaling,
    Schedule, Workspace,
};
use fused_dora_testkit::device::open_choice;
use fused_dora_testkit::settings::alone;
use half::bf16;

const TOKENS: usize = 40;
const INPUTS: usize = 64;
const OUTPUTS: usize = 96;
const RANK: usize = 8;

#[test]
fn few_launches_and_nothing_else() {
    let _alone = alone();
    let device = open_choice(None).expect("a device");
    let stream = device.context.default_stream();
    let kernels = Kernels::load(&device.context).expect("kernels");
    let counted = |what: &str, expected: u64, op: &mut dyn FnMut()| {
        stream.synchronize().expect("no fault");
        let before = device.counters();
        op();
        stream.synchronize().expect("no fault");
        // A GPU does not count.
        let Some((before, after)) = before.zip(device.counters()) else { return };
        assert_eq!(after.launches - before.launches, expected, "launches of {what}");
        let others = |c: &cuda_emulator::Counters| {
            [c.allocations, c.frees, c.copies_htod, c.copies_dtoh, c.copies_dtod, c.memsets]
        };
        assert_eq!(others(&after), others(&before), "{what}: allocations, copies and fills");
        // The one is this test's own.
        assert_eq!(after.synchronizations - before.synchronizations, 1, "{what}");
    };

    let norms = [Norm::None, Norm::Input, Norm::Output];
    for (norm, rank) in norms.into_iter().flat_map(|norm| [(norm, RANK), (norm, 0)]) {
        let scaling = Scaling::RankStabilized { alpha: 4.0 };
        let norm_grad = if norm == Norm::None { NormGrad::Detached } else { NormGrad::Exact };
        let spec = DoraSpec::new(INPUTS, OUTPUTS, rank, scaling, norm, norm_grad, Dtype::Bf16)
            .expect("spec");
        let bf16s = |n: usize| stream.alloc_zeros::<bf16>(n.max(1)).expect("memory");
        let f32s = |n: usize| stream.alloc_zeros::<f32>(n.max(1)).expect("memory");
        let (x, weight) = (bf16s(TOKENS * INPUTS), bf16s(OUTPUTS * INPUTS));
        let (mut y, mut h) = (bf16s(TOKENS * OUTPUTS), bf16s(TOKENS * spec.padded_rank()));
        let (grad_output, mut grad_input) = (bf16s(TOKENS * OUTPUTS), bf16s(TOKENS * INPUTS));
        let (len_h, len_a, len_b) = (TOKENS * spec.padded_rank(), rank * INPUTS, OUTPUTS * rank);
        let (lora_a, lora_b, bias) = (f32s(len_a), f32s(len_b), f32s(OUTPUTS));
        let (mut grad_a, mut grad_b) = (f32s(len_a), f32s(len_b));
        let (m, mut grad_m) = (f32s(spec.magnitude_len()), f32s(spec.magnitude_len()));
        let mut workspace = Workspace::new(&kernels, &stream, &[spec], TOKENS).expect("memory");
        let mut prepared = Prepared::new(&stream, &spec).expect("memory");
        let has_norm = norm != Norm::None;

        counted("prepare", 1, &mut || {
            let inputs = Prepare {
                weight: (&weight).into(),
                lora_a: lora_a.slice(..len_a).into(),
                lora_b: lora_b.slice(..len_b).into(),
                magnitude: match has_norm {
                    true => Magnitude::Given((&m).into()),
                    false => Magnitude::None,
                },
                bias: Some((&bias).into()),
            };
            kernels
                .prepare(&stream, &spec, &mut workspace, &mut prepared, inputs)
                .expect("prepare");
        });
        if has_norm {
            counted("prepare of a shard", 1, &mut || {
                let inputs = Prepare {
                    weight: (&weight).into(),
                    lora_a: lora_a.slice(..len_a).into(),
                    lora_b: lora_b.slice(..len_b).into(),
                    magnitude: Magnitude::Sharded,
                    bias: Some((&bias).into()),
                };
                kernels
                    .prepare(&stream, &spec, &mut workspace, &mut prepared, inputs)
                    .expect("prepare");
            });
            counted("finish_prepare", 1, &mut || {
                let (lora_b, m) = (lora_b.slice(..len_b), Magnitude::Given((&m).into()));
                kernels.finish_prepare(&stream, &spec, &mut prepared, lora_b, m).expect("gains");
            });
        }
        counted("forward", 1, &mut || {
            let io = Forward {
                tokens: TOKENS,
                x: (&x).into(),
                base: Base::new(&weight),
                seed: 0,
                dropout: None,
                counter: None,
                z: None,
                y: (&mut y).into(),
                h: h.slice_mut(..len_h).into(),
            };
            kernels.forward(&stream, &spec, &prepared, &mut workspace, io).expect("forward");
        });
        let mut backward = |with_grad_input: bool| {
            let io = Backward {
                tokens: TOKENS,
                gradients: Gradients::Overwrite,
                x: (&x).into(),
                base: Base::new(&weight),
                output: (norm == Norm::Output).then(|| (&y).into()),
                z: None,
                dropout: None,
                counter: None,
                grad_output: (&grad_output).into(),
                h: h.slice(..len_h).into(),
                grad_input: with_grad_input.then(|| (&mut grad_input).into()),
                grad_lora_a: grad_a.slice_mut(..len_a).into(),
                grad_lora_b: grad_b.slice_mut(..len_b).into(),
                grad_magnitude: has_norm.then(|| (&mut grad_m).into()),
                grad_bias: None,
            };
            kernels.backward(&stream, &spec, &prepared, &mut workspace, io).expect("backward");
        };
        counted("backward", 1, &mut || backward(true));
        // Of a frozen base layer nothing is wanted then.
        let of_first = u64::from(has_norm || rank > 0);
        counted("backward of a first layer", of_first, &mut || backward(false));

        if has_norm && rank > 0 {
            counted("norm_gradient", 2, &mut || {
                let io = NormGradient {
                    weight: (&weight).into(),
                    lora_a: lora_a.slice(..len_a).into(),
                    lora_b: lora_b.slice(..len_b).into(),
                    grad_magnitude: (&grad_m).into(),
                    grad_lora_a: grad_a.slice_mut(..len_a).into(),
                    grad_lora_b: grad_b.slice_mut(..len_b).into(),
                };
                kernels
                    .norm_gradient(&stream, &spec, &prepared, &mut workspace, io)
                    .expect("norm_gradient");
            });
        }
        let (mut merged, mut report) =
            (f32s(OUTPUTS * INPUTS), stream.alloc_zeros::<f64>(MergeReport::LEN).expect("memory"));
        counted("merge", 1, &mut || {
            let io = Merge {
                weight: (&weight).into(),
                lora_a: lora_a.slice(..len_a).into(),
                lora_b: lora_b.slice(..len_b).into(),
                merged: (&mut merged).into(),
                report: Some((&mut report).into()),
            };
            kernels.merge(&stream, &spec, &prepared, &mut workspace, io).expect("merge");
        });

        let mut result = stream.alloc_zeros::<f64>(Decomposition::LEN).expect("memory");
        counted("decompose", 1, &mut || {
            let io = Decompose {
                axis: Norm::Output,
                weight: (&weight).into(),
                changed: (&merged).into(),
                result: (&mut result).into(),
            };
            kernels.decompose(&stream, &spec, &mut workspace, io).expect("decompose");
        });
        counted("decompose_adapter", 1, &mut || {
            let io = DecomposeAdapter {
                axis: Norm::Input,
                weight: (&weight).into(),
                lora_a: lora_a.slice(..len_a).into(),
                lora_b: lora_b.slice(..len_b).into(),
                result: (&mut result).into(),
            };
            kernels
                .decompose_adapter(&stream, &spec, &prepared, &mut workspace, io)
                .expect("decompose");
        });

        let layout = AdapterLayout::with_bias(&spec);
        let parts: Vec<_> = AdapterGroups::default().parts(&layout, 0).collect();
        let mut buffers = [0; 4].map(|_| f32s(layout.len()));
        let [parameters, gradients, exp_avg, exp_avg_sq] = &mut buffers;
        let mut length = f32s(1);
        counted("gradient_norm", 1, &mut || {
            let io = GradientNorm {
                len: gradients.len(),
                parts: &parts,
                gradients: (&*gradients).into(),
                norm: (&mut length).into(),
            };
            kernels.gradient_norm(&stream, &mut workspace, io).expect("the norm");
        });
        counted("adamw", 1, &mut || {
            let io = AdamW {
                len: gradients.len(),
                parts: &parts,
                schedule: Schedule::Host { learning_rate: 1e-3, step: 1 },
                clip: Some(Clip { max_norm: 1.0, norm: (&length).into() }),
                parameters: parameters.as_view_mut().into(),
                gradients: gradients.as_view().into(),
                exp_avg: exp_avg.as_view_mut().into(),
                exp_avg_sq: exp_avg_sq.as_view_mut().into(),
            };
            kernels.adamw(&stream, &AdamWConfig::default(), io).expect("a step");
        });
    }
}

/// A workspace for one token less: nothing runs, nothing is written.
#[test]
fn a_refused_backward_launches_nothing() {
    let _alone = alone();
    let device = open_choice(None).expect("a device");
    let stream = device.context.default_stream();
    let kernels = Kernels::load(&device.context).expect("kernels");
    // What the backward keeps, dY∘g, is more than what other ops need.
    let (inputs, outputs, rank, tokens) = (8, 2048, 8, 65);
    let (scaling, detached) = (Scaling::Standard { alpha: 16.0 }, NormGrad::Detached);
    let spec = DoraSpec::new(inputs, outputs, rank, scaling, Norm::Output, detached, Dtype::Bf16)
        .expect("a layer");
    let bf16s = |n: usize| stream.alloc_zeros::<bf16>(n).expect("memory");
    let f32s = |n: usize| stream.alloc_zeros::<f32>(n).expect("memory");
    let (x, weight, dy) =
        (bf16s(tokens * inputs), bf16s(outputs * inputs), bf16s(tokens * outputs));
    let h = bf16s(tokens * spec.padded_rank());
    let (lora_a, lora_b) = (f32s(rank * inputs), f32s(outputs * rank));
    let (mut grad_a, mut grad_b) = (f32s(rank * inputs), f32s(outputs * rank));
    let (m, mut grad_m, y) = (f32s(outputs), f32s(outputs), bf16s(tokens * outputs));
    let mut workspace = Workspace::new(&kernels, &stream, &[spec], tokens - 1).expect("memory");
    let mut prepared = Prepared::new(&stream, &spec).expect("memory");
    let adapter = Prepare {
        weight: (&weight).into(),
        lora_a: (&lora_a).into(),
        lora_b: (&lora_b).into(),
        magnitude: Magnitude::Given((&m).into()),
        bias: None,
    };
    kernels.prepare(&stream, &spec, &mut workspace, &mut prepared, adapter).expect("prepare");
    stream.synchronize().expect("no fault");
    let before = device.launches();
    let io = Backward {
        tokens,
        gradients: Gradients::Overwrite,
        x: (&x).into(),
        base: Base::new(&weight),
        output: Some((&y).into()),
        z: None,
        dropout: None,
        counter: None,
        grad_output: (&dy).into(),
        h: (&h).into(),
        grad_input: None,
        grad_lora_a: (&mut grad_a).into(),
        grad_lora_b: (&mut grad_b).into(),
        grad_magnitude: Some((&mut grad_m).into()),
        grad_bias: None,
    };
    let refused = kernels.backward(&stream, &spec, &prepared, &mut workspace, io);
    assert!(
        matches!(refused, Err(fused_dora::Error::WorkspaceTooSmall { tokens: 65, .. })),
        "{refused:?}"
    );
    stream.synchronize().expect("no fault");
    assert_eq!(device.launches(), before);
}

/// Packing takes a launch, two for one scale of all of W and for nested scales, and one more for their
/// mean. Unpacking takes one.
#[test]
fn few_launches_to_pack() {
    let _alone = alone();
    let device = open_choice(None).expect("a device");
    let stream = device.context.default_stream();
    let kernels = Kernels::load(&device.context).expect("kernels");
    let code4 = |scales| {
        let (code, block, state) = (Code4::Nf4, 64, Dtype::Bf16);
        WeightFormat::Code4 { code, block, scales, state }
    };
    let fp8 = |scales| WeightFormat::Fp8 { scales };
    let shape = [OUTPUTS, INPUTS];
    let weight = stream.alloc_zeros::<bf16>(OUTPUTS * INPUTS).expect("memory");
    let map = stream.clone_htod(&dynamic_map()).expect("memory");
    for (format, given, launches) in [
        (code4(BlockScales::F32), None, 1),
        (code4(BlockScales::Nested), None, 3),
        (code4(BlockScales::Nested), Some(0.5), 2),
        (WeightFormat::Int8Rows, None, 1),
        (fp8(Fp8Scales::Tensor), None, 2),
        (fp8(Fp8Scales::Rows), None, 1),
        (fp8(Fp8Scales::Blocks { rows: 16, cols: 16 }), None, 1),
    ] {
        let spec = DoraLinear::base_spec(INPUTS, OUTPUTS, Dtype::Bf16).expect("a layer");
        let spec = spec.with_weight(format).expect("a format");
        let mut workspace = Workspace::new(&kernels, &stream, &[spec], 0).expect("memory");
        let (bytes, count) = (format.packed_bytes(shape), format.scales(shape));
        let mut elements = stream.alloc_zeros::<u8>(bytes).expect("memory");
        let mut codes = stream.alloc_zeros::<u8>(count).expect("memory");
        let mut floats = stream.alloc_zeros::<f32>(count).expect("memory");
        let mut absmax = stream.alloc_zeros::<f32>(count.div_ceil(256)).expect("memory");
        let mut mean = stream.alloc_zeros::<f32>(1).expect("memory");
        let mut target = stream.alloc_zeros::<bf16>(OUTPUTS * INPUTS).expect("memory");
        stream.synchronize().expect("no fault");
        let before = device.counters();
        let scales = if format.is_nested() { (&mut codes).into() } else { (&mut floats).into() };
        let nested = format.is_nested().then(|| NestedTarget {
            absmax: (&mut absmax).into(),
            map: (&map).into(),
            offset: given
                .map_or_else(|| NestedOffset::Mean((&mut mean).into()), NestedOffset::Given),
        });
        let io =
            Quantize { weight: (&weight).into(), elements: (&mut elements).into(), scales, nested };
        kernels.quantize(&stream, &spec, &mut workspace, io).expect("quantize");
        let between = device.counters();
        let (scales, nested) = match format.is_nested() {
            true => {
                let (absmax, map) = ((&absmax).into(), (&map).into());
                ((&codes).into(), Some(NestedScales { absmax, map, offset: 0.5 }))
            }
            false => ((&floats).into(), None),
        };
        let weight = PackedWeight { format, elements: (&elements).into(), scales, nested };
        let io = Dequantize { weight: weight.into(), target: (&mut target).into() };
        kernels.dequantize(&stream, &spec, io).expect("dequantize");
        stream.synchronize().expect("no fault");
        // A GPU does not count.
        let Some(((before, between), after)) = before.zip(between).zip(device.counters()) else {
            continue;
        };
        assert_eq!(between.launches - before.launches, launches, "{format}");
        assert_eq!(after.launches - before.launches, launches + 1, "{format}");
        assert_eq!(after.allocations, before.allocations, "{format}");
        assert_eq!(after.copies_dtoh, before.copies_dtoh, "{format}");
    }
}
