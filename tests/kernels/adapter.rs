//! An adapter in one buffer: its layout and views, and a step of a layer whose parameters and
//! gradients lie in such buffers.

use std::sync::Arc;

use fused_dora::cudarc::driver::{CudaContext, CudaStream};
use fused_dora::reference::{Case, Results, evaluate};
use fused_dora::{
    AdapterLayout, Backward, Base, DoraSpec, Dtype, Element, Error, Forward, Gradients, Kernels,
    Norm, NormGrad, Part, Prepare, Prepared, Scaling, Workspace,
};
use fused_dora_testkit::compare::{self, Comparison};
use fused_dora_testkit::random::{fresh_seed, random_case};
use half::{bf16, f16};
use rand::SeedableRng;
use rand::rngs::StdRng;

const POISON: f32 = f32::from_bits(u32::MAX);

fn context() -> Arc<CudaContext> {
    fused_dora_testkit::device::open().expect("a device")
}

fn spec(norm: Norm, rank: usize) -> DoraSpec {
    DoraSpec::new(7, 5, rank, Scaling::Value(1.0), norm, NormGrad::Detached, Dtype::F32)
        .expect("a layer")
}

#[test]
fn parts_are_aligned_and_in_order() {
    let none = 0..0;
    // I = 7, O = 5: A of rank 3 has 21 elements and 3 of padding, B 15 and 1.
    let lora = AdapterLayout::new(&spec(Norm::None, 3));
    assert_eq!(Part::ALL.map(|part| lora.range(part)), [0..21, 24..39, 40..40, 40..40]);
    assert_eq!((lora.len(), lora.parameters()), (40, 36));
    let dora = AdapterLayout::with_bias(&spec(Norm::Input, 3));
    assert_eq!(Part::ALL.map(|part| dora.range(part)), [0..21, 24..39, 40..47, 48..53]);
    assert_eq!((dora.len(), dora.parameters()), (56, 48));
    let magnitude = AdapterLayout::new(&spec(Norm::Output, 0));
    assert_eq!(Part::ALL.map(|part| magnitude.range(part)), [none.clone(), none, 0..5, 8..8]);
    assert_eq!((magnitude.len(), magnitude.parameters()), (8, 5));
    let nothing = AdapterLayout::new(&spec(Norm::None, 0));
    assert!(nothing.is_empty() && !magnitude.is_empty());
}

#[test]
fn views_are_the_parts() {
    let stream = context().default_stream();
    for (norm, rank) in [(Norm::Input, 3), (Norm::Output, 0), (Norm::None, 2)] {
        for layout in [AdapterLayout::new, AdapterLayout::with_bias].map(|of| of(&spec(norm, rank)))
        {
            let numbered: Vec<f32> = (0..layout.len()).map(|i| i as f32).collect();
            let mut buffer = stream.clone_htod(&numbered).expect("memory");
            let view = layout.view(buffer.as_view()).expect("a buffer of the layout's length");
            let parts = [Some(view.lora_a), Some(view.lora_b), view.magnitude, view.bias];
            for (part, view) in Part::ALL.into_iter().zip(parts) {
                let found = match view {
                    Some(view) if !view.is_empty() => stream.clone_dtoh(&view).expect("a copy"),
                    _ => Vec::new(),
                };
                assert_eq!(found, numbered[layout.range(part)], "{norm:?} {rank} {part:?}");
            }

            // What is written through the parts, all at once, is there; the rest is untouched.
            let view = layout.view_mut(buffer.as_view_mut()).expect("likewise");
            let mut parts = [Some(view.lora_a), Some(view.lora_b), view.magnitude, view.bias];
            for part in parts.iter_mut().flatten().filter(|part| !part.is_empty()) {
                stream.memset_zeros(part).expect("memory");
            }
            let found = stream.clone_dtoh(&buffer).expect("a copy");
            for (i, value) in found.into_iter().enumerate() {
                let is_part = Part::ALL.iter().any(|&part| layout.range(part).contains(&i));
                assert_eq!(value, if is_part { 0.0 } else { i as f32 }, "{norm:?} {rank}: {i}");
            }
        }
    }
}

#[test]
fn a_buffer_of_another_length() {
    let stream = context().default_stream();
    let layout = AdapterLayout::new(&spec(Norm::Output, 3));
    let mut buffer = stream.alloc_zeros(47).expect("memory");
    for error in [
        layout.view(buffer.as_view()).map(drop).expect_err("47 of 48"),
        layout.view_mut(buffer.as_view_mut()).map(drop).expect_err("47 of 48"),
    ] {
        assert!(matches!(error, Error::Shape { expected: 48, found: 47, .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.contains("lora_A of 21, lora_B of 15, magnitude of 5"), "{message}");
    }
}

/// The buffers of one adapter and the padding between its parts.
struct Buffers {
    layout: AdapterLayout,
    stream: Arc<CudaStream>,
}

impl Buffers {
    /// The case's parameters in one buffer, its padding NaN.
    fn parameters(&self, case: &Case) -> Vec<f32> {
        let mut host = vec![POISON; self.layout.len()];
        let bias = case.bias.as_deref().unwrap_or_default();
        let parts = [&case.lora_a, &case.lora_b, &case.magnitude, bias];
        for (part, values) in Part::ALL.into_iter().zip(parts) {
            let range = self.layout.range(part);
            host[range].iter_mut().zip(values).for_each(|(to, &from)| *to = from as f32);
        }
        host
    }

    fn assert_padding(&self, buffer: &[f32]) {
        for (i, value) in buffer.iter().enumerate() {
            if !Part::ALL.iter().any(|&part| self.layout.range(part).contains(&i)) {
                assert_eq!(value.to_bits(), POISON.to_bits(), "padding {i}: {value}");
            }
        }
    }
}

/// One forward and backward; the results in the order of [`Results::NAMES`].
fn step<E: Element>(kernels: &Kernels, buffers: &Buffers, case: &Case) -> [Vec<f32>; 6] {
    let Buffers { layout, stream } = buffers;
    let (inputs, outputs, tokens) = (case.in_features, case.out_features, case.tokens);
    let spec = fused_dora_testkit::run::spec(case, E::DTYPE).expect("a layer");
    let upload = |values: &[f64]| {
        let values: Vec<E> = values.iter().map(|&value| E::from_f32(value as f32)).collect();
        stream.clone_htod(&values).expect("memory")
    };
    let poisoned =
        |n: usize| stream.clone_htod(&vec![E::from_f32(POISON); n.max(1)]).expect("memory");
    let (x, weight, dy) = (upload(&case.input), upload(&case.weight), upload(&case.grad_output));
    let (mut y, mut dx) = (poisoned(tokens * outputs), poisoned(tokens * inputs));
    let mut h = poisoned(tokens * spec.padded_rank());
    let parameters = stream.clone_htod(&buffers.parameters(case)).expect("memory");
    let mut gradients = stream.clone_htod(&vec![POISON; layout.len()]).expect("memory");
    let mut workspace = Workspace::new(kernels, stream, &[spec], tokens).expect("memory");
    let mut prepared = Prepared::new(stream, &spec).expect("memory");

    let adapter = layout.view(parameters.as_view()).expect("the layout's length");
    let adapter = Prepare {
        weight: (&weight).into(),
        lora_a: adapter.lora_a.into(),
        lora_b: adapter.lora_b.into(),
        magnitude: adapter.magnitude.into(),
        bias: adapter.bias.map(Into::into),
    };
    assert!(!prepared.has_bias(), "nothing is prepared");
    kernels.prepare(stream, &spec, &mut workspace, &mut prepared, adapter).expect("prepare");
    let io = Forward {
        tokens,
        x: (&x).into(),
        base: Base::new(&weight),
        seed: 1,
        dropout: None,
        counter: None,
        z: None,
        y: (&mut y).into(),
        h: h.slice_mut(..tokens * spec.padded_rank()).into(),
    };
    kernels.forward(stream, &spec, &prepared, &mut workspace, io).expect("forward");
    let grad = layout.view_mut(gradients.as_view_mut()).expect("the layout's length");
    let io = Backward {
        tokens,
        gradients: Gradients::Overwrite,
        x: (&x).into(),
        base: Base::new(&weight),
        output: (case.norm == Norm::Output).then(|| (&y).into()),
        z: None,
        dropout: None,
        counter: None,
        grad_output: (&dy).into(),
        h: h.slice(..tokens * spec.padded_rank()).into(),
        grad_input: Some((&mut dx).into()),
        grad_lora_a: grad.lora_a.into(),
        grad_lora_b: grad.lora_b.into(),
        grad_magnitude: grad.magnitude.map(Into::into),
        grad_bias: grad.bias.map(Into::into),
    };
    kernels.backward(stream, &spec, &prepared, &mut workspace, io).expect("backward");

    let gradients = stream.clone_dtoh(&gradients).expect("a copy");
    buffers.assert_padding(&gradients);
    let host = |buffer| {
        let values: Vec<E> = stream.clone_dtoh(buffer).expect("a copy");
        values.into_iter().map(Element::to_f32).collect()
    };
    let [a, b, m, bias] = Part::ALL.map(|part| gradients[layout.range(part)].to_vec());
    [host(&y), host(&dx), a, b, m, bias]
}

fn trained_biases<E: Element>() {
    let context = context();
    let stream = context.default_stream();
    let kernels = Kernels::load(&context).expect("kernels");
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for shape in [[33, 37, 53, 3], [20, 64, 32, 16], [33, 37, 53, 0]] {
        for norm in [Norm::None, Norm::Input, Norm::Output] {
            let layer = random_case(&mut random, shape, norm, true);
            // The bias is an f32 master, which the op rounds.
            let bias = layer.rounded(Dtype::F32).bias;
            let case = Case { bias, ..layer.rounded(E::DTYPE) };
            let spec = fused_dora_testkit::run::spec(&case, E::DTYPE).expect("a layer");
            let layout = AdapterLayout::with_bias(&spec);
            let buffers = Buffers { layout, stream: stream.clone() };
            let found = step::<E>(&kernels, &buffers, &case);
            let expected = evaluate(&case).expect("a consistent case");
            let bounds = compare::bounds(&case, E::DTYPE).expect("a consistent case");
            for (i, name) in Results::NAMES.into_iter().enumerate() {
                let shape = &case.result_shapes()[i];
                let (expected, bounds) = (expected.tensors()[i], bounds.tensors()[i]);
                let comparison =
                    Comparison::new(name, shape, E::DTYPE, &found[i], expected, bounds);
                assert!(comparison.ok(), "{norm:?} {shape:?}\n{comparison}");
            }
        }
    }
}

#[test]
fn trained_biases_in_bf16() {
    trained_biases::<bf16>();
}

#[test]
fn trained_biases_in_f16() {
    trained_biases::<f16>();
}

#[test]
fn trained_biases_in_f32() {
    trained_biases::<f32>();
}
