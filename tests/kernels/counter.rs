//! Seeds that kernels combine with a counter on the device, for captured graphs.

use std::sync::Arc;

use fused_dora::reference::Case;
use fused_dora::{Dropout, DropoutForm, Dtype, Element, Gradients, Kernels, Norm, seed_at};
use fused_dora_testkit::compare;
use fused_dora_testkit::random::{each_dtype_and_norm, fresh_seed, random_case, with_dropout};
use fused_dora_testkit::run::{Layer, Runner};
use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SHAPE: [usize; 4] = [9, 20, 24, 5];

/// The dropouts that a norm axis can have, and none.
fn dropouts(norm: Norm, seed: u64) -> impl Iterator<Item = Option<Dropout>> {
    let dropout = move |form| Dropout::new(0.25, form, seed).expect("a probability");
    let peft = (norm != Norm::Input).then(|| dropout(DropoutForm::Peft));
    [None, Some(dropout(DropoutForm::Adapter))].into_iter().chain(peft.map(Some))
}

fn kernels() -> Arc<Kernels> {
    let context = fused_dora_testkit::device::open().expect("a device");
    Arc::new(Kernels::load(&context).expect("kernels"))
}

fn runner(kernels: &Arc<Kernels>, dropout: Option<Dropout>) -> Runner {
    let runner = Runner::with_kernels(kernels);
    match dropout {
        Some(dropout) => runner.with_dropout(dropout),
        None => runner,
    }
}

/// Forward and backward have the mask of the combined seed, as the reference has it.
#[test]
fn the_mask_is_that_of_the_counter() {
    let kernels = kernels();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    each_dtype_and_norm(|dtype, norm| {
        for dropout in dropouts(norm, random.random()).flatten() {
            let counter = random.random();
            let case = random_case(&mut random, SHAPE, norm, true).rounded(dtype);
            let case = with_dropout(case, &dropout.at(counter));
            let runner = runner(&kernels, Some(dropout)).with_counter(counter);
            let found = runner.run(&case, dtype).expect("the ops");
            let failures = compare::failures(&case, dtype, &found, [None; 6]);
            let failures = failures.expect("a consistent case");
            assert!(failures.is_empty(), "{dropout:?}, {norm:?}, {dtype}\n{}", failures.join("\n"));
        }
    });
}

/// y, dX and the gradients of a micro-batch, bit for bit.
fn bits<E: Element>(runner: &Runner, case: &Case, seed: u64) -> Vec<Vec<u32>> {
    let mut layer = Layer::<E>::new(runner, case).expect("a layer");
    layer.seed = seed;
    let found = layer.micro_batch(case, Gradients::Overwrite).expect("the ops");
    let gradients = layer.gradients().expect("a copy");
    let tensors = found.into_iter().chain(gradients);
    tensors.map(|tensor| tensor.into_iter().map(f32::to_bits).collect()).collect()
}

/// A call with a counter has the bits of one with the combined seeds: also those of the rounding.
#[test]
fn a_counter_is_another_seed() {
    let kernels = kernels();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    each_dtype_and_norm(|dtype, norm| {
        let bits = match dtype {
            Dtype::Bf16 => bits::<bf16>,
            Dtype::F16 => bits::<f16>,
            Dtype::F32 => bits::<f32>,
        };
        for dropout in dropouts(norm, random.random()) {
            let counter = random.random_range(1..1000);
            let case = random_case(&mut random, SHAPE, norm, true).rounded(dtype);
            let of_host = |counter| {
                let runner = runner(&kernels, dropout.map(|dropout| dropout.at(counter)));
                bits(&runner, &case, seed_at(1, counter))
            };
            let of_device =
                |counter| bits(&runner(&kernels, dropout).with_counter(counter), &case, 1);
            let expected = of_host(counter);
            assert_eq!(of_device(counter), expected, "{dropout:?}, {norm:?}, {dtype}");
            let draws = dropout.is_some() || (norm == Norm::Input && dtype != Dtype::F32);
            assert_eq!(of_host(0) != expected, draws, "{dropout:?}, {norm:?}, {dtype}");
        }
    });
}
