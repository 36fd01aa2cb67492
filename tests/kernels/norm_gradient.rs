//! `norm_gradient` alone, against the float64 reference: what it takes from dA and dB for a given
//! dm; and gradients that accumulate over micro-batches, with one such op for all of them.

use fused_dora::reference::{self, Case, Results};
use fused_dora::{Dtype, Element, Gradients, Norm, NormGrad};
use fused_dora_testkit::compare;
use fused_dora_testkit::norm_gradient::{U, assert_close, check, exact_case, normals};
use fused_dora_testkit::random::{NORMS, fresh_seed, random_case};
use fused_dora_testkit::run::{Layer, Runner};
use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn runner() -> Runner {
    let context = fused_dora_testkit::device::open().expect("a device");
    Runner::new(&context).expect("kernels")
}

fn alone<E: Element>() {
    let runner = runner();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    // Tile edges and one past them, a rank of two rank tiles, r above both dimensions, many chunks.
    let mut shapes = vec![
        [1, 1, 1],
        [128, 64, 16],
        [129, 65, 17],
        [64, 128, 64],
        [72, 40, 130],
        [3, 5, 9],
        [8, 700, 5],
        [700, 8, 5],
        [257, 320, 33],
    ];
    for _ in 0..6 {
        let mut up_to = |limit| random.random_range(1..=limit);
        shapes.push([up_to(300), up_to(300), up_to(40)]);
    }
    for shape in shapes {
        for norm in [Norm::Input, Norm::Output] {
            let case = exact_case(&mut random, shape, norm, E::DTYPE);
            check::<E>(&runner, &mut random, &case);
        }
    }
}

#[test]
fn alone_in_bf16() {
    alone::<bf16>();
}

#[test]
fn alone_in_f16() {
    alone::<f16>();
}

#[test]
fn alone_in_f32() {
    alone::<f32>();
}

/// Layers that are taken in two passes of rows, one of them in two of ranks, too.
#[test]
fn passes() {
    let runner = runner();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let case = exact_case(&mut random, [512, 2401, 70], Norm::Output, Dtype::F32);
    check::<f32>(&runner, &mut random, &case);
    let case = exact_case(&mut random, [520, 5200, 40], Norm::Input, Dtype::Bf16);
    check::<bf16>(&runner, &mut random, &case);
}

/// Shapes whose rows would be aligned, in buffers that are not.
#[test]
fn off_every_boundary() {
    let runner = runner().with_offset(1);
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for norm in [Norm::Input, Norm::Output] {
        let case = exact_case(&mut random, [64, 96, 16], norm, Dtype::Bf16);
        check::<bf16>(&runner, &mut random, &case);
    }
}

/// A layer of the size that Llama models have, where sums are long.
#[test]
fn llama_sized() {
    let runner = runner();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for norm in [Norm::Input, Norm::Output] {
        let case = exact_case(&mut random, [2048, 2048, 16], norm, Dtype::Bf16);
        check::<bf16>(&runner, &mut random, &case);
    }
}

/// Sums whose terms all have one sign: what tensor cores cut off each time would add up.
#[test]
fn sums_of_one_sign() {
    let runner = runner();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for norm in [Norm::Input, Norm::Output] {
        let mut case = exact_case(&mut random, [1024, 1024, 8], norm, Dtype::Bf16);
        for tensor in [&mut case.weight, &mut case.lora_a, &mut case.lora_b] {
            tensor.iter_mut().for_each(|value| *value = value.abs());
        }
        case.magnitude = case.norms().expect("a consistent case");
        check::<bf16>(&runner, &mut random, &case.rounded(Dtype::Bf16));
    }
}

/// Where c = 0 there is nothing to flow through, and where m = 0 nothing flows: no NaN either way.
#[test]
fn zero_norms_and_magnitudes() {
    fn zeros<E: Element>(runner: &Runner, random: &mut StdRng, norm: Norm) {
        let mut case = exact_case(random, [20, 24, 4], norm, E::DTYPE);
        let (row, col) = (5, 7);
        case.weight[row * case.in_features..][..case.in_features].fill(0.0);
        (0..case.out_features).for_each(|i| case.weight[i * case.in_features + col] = 0.0);
        case.lora_b[row * case.rank..][..case.rank].fill(0.0);
        (0..case.rank).for_each(|k| case.lora_a[k * case.in_features + col] = 0.0);
        case.magnitude[2] = 0.0;
        check::<E>(runner, random, &case);
    }
    let runner = runner();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for norm in [Norm::Input, Norm::Output] {
        zeros::<bf16>(&runner, &mut random, norm);
        zeros::<f16>(&runner, &mut random, norm);
        zeros::<f32>(&runner, &mut random, norm);
    }
}

/// One layer and several micro-batches of it, of 0 to 40 tokens.
fn micro_batches(random: &mut StdRng, norm: Norm, dtype: Dtype) -> Vec<Case> {
    let mut layer = random_case(random, [40, 72, 136, 6], norm, true).rounded(dtype);
    if norm != Norm::None {
        layer.norm_grad = NormGrad::Exact;
    }
    [40, 1, 0, 23]
        .map(|tokens| {
            let input = normals(random, tokens * layer.in_features);
            let grad_output = normals(random, tokens * layer.out_features);
            Case { tokens, input, grad_output, ..layer.clone() }.rounded(dtype)
        })
        .to_vec()
}

/// What the micro-batches' gradients add up to, and how far a run that adds them up in f32 may be
/// from it.
fn summed(batches: &[Case], dtype: Dtype) -> (Results, Results) {
    let sum = |results: Vec<Results>| {
        results.into_iter().reduce(|mut sum, results| {
            for (sum, values) in sum.tensors_mut().into_iter().zip(results.tensors()) {
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
            sum
        })
    };
    let evaluate = |case| reference::evaluate(case).expect("a consistent case");
    // dX and y are of different shapes; only the parameters' gradients are looked at.
    let only_gradients = |mut results: Results| {
        (results.output, results.grad_input) = (Vec::new(), Vec::new());
        results
    };
    let each: Vec<_> = batches.iter().map(|case| only_gradients(evaluate(case))).collect();
    let bound = |case| only_gradients(compare::bounds(case, dtype).expect("a consistent case"));
    let mut bounds = sum(batches.iter().map(bound).collect()).expect("micro-batches");
    // Each addition rounds a partial sum.
    for results in &each {
        for (bounds, values) in bounds.tensors_mut().into_iter().zip(results.tensors()) {
            let rounding = batches.len() as f64 * U;
            bounds.iter_mut().zip(values).for_each(|(bound, v)| *bound += rounding * v.abs());
        }
    }
    (sum(each).expect("micro-batches"), bounds)
}

/// Gradients accumulate over micro-batches, an empty one among them; one `norm_gradient` of the
/// accumulated dm makes them exact.
fn accumulates<E: Element>() {
    let runner = runner();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for norm in NORMS {
        let batches = micro_batches(&mut random, norm, E::DTYPE);
        // The poisoned gradients are overwritten by the first micro-batch.
        let mut layer = Layer::<E>::new(&runner, &batches[0]).expect("a layer");
        for (i, batch) in batches.iter().enumerate() {
            let gradients = if i == 0 { Gradients::Overwrite } else { Gradients::Accumulate };
            layer.micro_batch(batch, gradients).expect("a micro-batch");
        }
        if norm != Norm::None {
            layer.norm_gradient().expect("the op");
        }
        let found = layer.gradients().expect("gradients");
        let (expected, bounds) = summed(&batches, E::DTYPE);
        for (i, found) in found.iter().enumerate() {
            let (expected, bounds) = (expected.tensors()[i + 2], bounds.tensors()[i + 2]);
            assert_close(&batches[0], E::DTYPE, i + 2, found, expected, bounds);
        }
    }
}

#[test]
fn accumulates_in_bf16() {
    accumulates::<bf16>();
}

#[test]
fn accumulates_in_f16() {
    accumulates::<f16>();
}

#[test]
fn accumulates_in_f32() {
    accumulates::<f32>();
}

/// The correction of the accumulated dm is the sum of the corrections of each micro-batch's dm.
#[test]
fn deferred_is_the_sum_of_each() {
    let runner = runner();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for norm in [Norm::Input, Norm::Output] {
        let batches = micro_batches(&mut random, norm, Dtype::F32);
        let mut deferred = Layer::<f32>::new(&runner, &batches[0]).expect("a layer");
        let mut each = [vec![0.0f64; batches[0].lora_a.len()], vec![0.0; batches[0].lora_b.len()]];
        for (i, batch) in batches.iter().enumerate() {
            let gradients = if i == 0 { Gradients::Overwrite } else { Gradients::Accumulate };
            deferred.micro_batch(batch, gradients).expect("a micro-batch");
            let mut alone = Layer::<f32>::new(&runner, &batches[0]).expect("a layer");
            alone.micro_batch(batch, Gradients::Overwrite).expect("a micro-batch");
            alone.norm_gradient().expect("the op");
            let [da, db, ..] = alone.gradients().expect("gradients");
            for (sum, values) in each.iter_mut().zip([da, db]) {
                sum.iter_mut().zip(values).for_each(|(sum, v)| *sum += f64::from(v));
            }
        }
        deferred.norm_gradient().expect("the op");
        let found = deferred.gradients().expect("gradients");
        // Both are within the bounds of the same sum.
        let (_, bounds) = summed(&batches, Dtype::F32);
        for (i, which) in [2, 3].into_iter().enumerate() {
            let bounds: Vec<f64> = bounds.tensors()[which].iter().map(|b| 2.0 * b).collect();
            assert_close(&batches[0], Dtype::F32, which, &found[i], &each[i], &bounds);
        }
    }
}

/// A micro-batch without tokens leaves accumulated gradients as they are, to the bit.
#[test]
fn no_tokens_leave_gradients_alone() {
    let runner = runner();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for norm in NORMS {
        let batches = micro_batches(&mut random, norm, Dtype::Bf16);
        let (empty, shapes) = (&batches[2], batches[2].result_shapes());
        assert_eq!(empty.tokens, 0);
        let given: [Vec<f64>; 4] =
            std::array::from_fn(|i| normals(&mut random, shapes[i + 2].iter().product()));
        let mut layer = Layer::<bf16>::new(&runner, &batches[0]).expect("a layer");
        layer.set_gradients(given.each_ref().map(Vec::as_slice)).expect("gradients");
        layer.micro_batch(empty, Gradients::Accumulate).expect("a micro-batch");
        let found = layer.gradients().expect("gradients");
        for (found, given) in found.iter().zip(&given) {
            assert!(found.iter().zip(given).all(|(&found, &given)| f64::from(found) == given));
        }
    }
}
