//! A fresh adapter (B = 0, m = c) leaves the layer as it was, to the bit.

use fused_dora::cudarc::driver::CudaStream;
use fused_dora::{
    Base, DoraSpec, Element, Forward, Kernels, Magnitude, Norm, NormGrad, Prepare, Prepared,
    Scaling, Workspace,
};
use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;

struct Fresh<E> {
    y: Vec<E>,
    gain: Vec<f32>,
    norm: Vec<f32>,
    magnitude: Vec<f32>,
    weight: Vec<f32>,
}

/// The output of an adapter whose B is zero.
fn fresh<E: Element>(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    norm: Norm,
    [tokens, inputs, outputs, rank]: [usize; 4],
) -> Fresh<E> {
    let (scaling, detached) = (Scaling::Standard { alpha: 16.0 }, NormGrad::Detached);
    let spec =
        DoraSpec::new(inputs, outputs, rank, scaling, norm, detached, E::DTYPE).expect("a layer");
    let mut random = StdRng::seed_from_u64(11);
    let mut uniform =
        |n: usize| -> Vec<f32> { (0..n).map(|_| random.random_range(-1.0..1.0)).collect() };
    let narrow = |values: Vec<f32>| values.into_iter().map(E::from_f32).collect::<Vec<E>>();
    let weight = narrow(uniform(outputs * inputs));
    let x = stream.clone_htod(&narrow(uniform(tokens * inputs))).expect("x");
    let bias = stream.clone_htod(&narrow(uniform(outputs))).expect("b");
    let lora_a = stream.clone_htod(&uniform((rank * inputs).max(1))).expect("A");
    let lora_b = stream.alloc_zeros::<f32>((outputs * rank).max(1)).expect("B");
    let device_weight = stream.clone_htod(&weight).expect("W");
    let features = spec.magnitude_len();
    let mut magnitude = stream.alloc_zeros::<f32>(features.max(1)).expect("m");
    let mut y = stream.alloc_zeros::<E>(tokens * outputs).expect("y");
    let mut h = stream.alloc_zeros::<E>((tokens * spec.padded_rank()).max(1)).expect("H");
    let mut workspace = Workspace::new(kernels, stream, &[spec], tokens).expect("workspace");
    let mut prepared = Prepared::new(stream, &spec).expect("prepared operands");
    // Twice, as in a training, whose later steps give m: c comes out the same.
    for first in [true, false] {
        let inputs = Prepare {
            weight: (&device_weight).into(),
            lora_a: lora_a.slice(..rank * inputs).into(),
            lora_b: lora_b.slice(..outputs * rank).into(),
            magnitude: match norm {
                Norm::None => Magnitude::None,
                _ if first => Magnitude::Init((&mut magnitude).into()),
                _ => Magnitude::Given((&magnitude).into()),
            },
            bias: None,
        };
        kernels.prepare(stream, &spec, &mut workspace, &mut prepared, inputs).expect("prepare");
    }
    let io = Forward {
        tokens,
        x: (&x).into(),
        base: Base::new(&device_weight).with_bias(Some(&bias)),
        seed: 5,
        dropout: None,
        counter: None,
        z: None,
        y: (&mut y).into(),
        h: h.slice_mut(..tokens * spec.padded_rank()).into(),
    };
    kernels.forward(stream, &spec, &prepared, &mut workspace, io).expect("forward");
    Fresh {
        y: stream.clone_dtoh(&y).expect("y"),
        gain: prepared.read_gain(stream).expect("g"),
        norm: prepared.read_norm(stream).expect("c"),
        magnitude: stream.clone_dtoh(&magnitude).expect("m")[..features].to_vec(),
        weight: weight.into_iter().map(E::to_f32).collect(),
    }
}

fn leaves_the_layer_as_it_was<E: Element>() {
    let context = fused_dora_testkit::device::open().expect("a device");
    let kernels = Kernels::load(&context).expect("kernels");
    let stream = context.default_stream();
    for shape in [[64, 128, 128, 8], [33, 51, 77, 8], [33, 51, 77, 0], [1, 257, 5, 8]] {
        let [_, inputs, outputs, _] = shape;
        // Plain LoRA with B = 0 is the base layer: no gain touches it.
        let base = fresh::<E>(&kernels, &stream, Norm::None, shape);
        let bits = |values: &[E]| -> Vec<u32> {
            values.iter().map(|value| value.to_f32().to_bits()).collect()
        };
        for norm in [Norm::Input, Norm::Output] {
            let dora = fresh::<E>(&kernels, &stream, norm, shape);
            assert!(dora.gain.iter().all(|&g| g == 1.0), "{norm:?}: g {:?}", dora.gain);
            assert_eq!(dora.magnitude, dora.norm, "{norm:?}: m = c");
            assert_eq!(bits(&dora.y), bits(&base.y), "{norm:?} {} {shape:?}", E::DTYPE);
            for (feature, &c) in dora.norm.iter().enumerate() {
                let square = |v: f32| f64::from(v).powi(2);
                let expected: f64 = match norm {
                    Norm::Input => {
                        (0..outputs).map(|i| square(dora.weight[i * inputs + feature])).sum()
                    }
                    _ => (0..inputs).map(|j| square(dora.weight[feature * inputs + j])).sum(),
                };
                approx::assert_relative_eq!(f64::from(c), expected.sqrt(), max_relative = 1e-6);
            }
        }
    }
}

#[test]
fn leaves_the_layer_as_it_was_in_bf16() {
    leaves_the_layer_as_it_was::<bf16>();
}

#[test]
fn leaves_the_layer_as_it_was_in_f16() {
    leaves_the_layer_as_it_was::<f16>();
}

#[test]
fn leaves_the_layer_as_it_was_in_f32() {
    leaves_the_layer_as_it_was::<f32>();
}
