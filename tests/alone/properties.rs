//! Random layers, of any shape, axis, alignment and option, against the float64 reference, on a
//! device of random settings.
//!
//! `PROPTEST_CASES` is their number per dtype, and `FUSED_DORA_TEST_SEED` repeats a run, settings
//! included. A layer that fails is made smaller until it is the smallest one that does.

use std::sync::Arc;

use fused_dora::{Dropout, DropoutForm, Dtype, Kernels, Norm, NormGrad};
use fused_dora_testkit::compare;
use fused_dora_testkit::random::{fresh_seed, random_case, with_dropout};
use fused_dora_testkit::run::Runner;
use fused_dora_testkit::settings::{Setting, on_device};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestCaseResult, TestError, TestRng, TestRunner};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Layers per dtype, unless `PROPTEST_CASES` is another number.
const CASES: u32 = 150;

/// The layers come in batches. The first runs on a device of default settings, and each other one on
/// a device of its own random settings.
const BATCHES: u32 = 3;

/// A layer and how its tensors lie in memory; its values come of the seed.
#[derive(Debug, Clone)]
struct Layer {
    tokens: usize,
    in_features: usize,
    out_features: usize,
    rank: usize,
    norm: Norm,
    norm_grad: NormGrad,
    bias: bool,
    dropout: Option<(f32, DropoutForm)>,
    /// Elements between the rows of x, y and their gradients.
    gap: usize,
    /// Elements before each tensor in its allocation.
    offset: usize,
    seed: u64,
}

/// Any number of features or tokens, with those that fill vectors and those within one tile as
/// likely as the others.
fn dimension() -> impl Strategy<Value = usize> {
    prop_oneof![1..=300_usize, (1..=37_usize).prop_map(|vectors| 8 * vectors), 1..=40_usize]
}

fn norms() -> impl Strategy<Value = (Norm, NormGrad)> {
    use {Norm::*, NormGrad::*};
    let all = [(None, Detached), (Input, Detached), (Input, Exact)];
    prop::sample::select([&all[..], &[(Output, Detached), (Output, Exact)]].concat())
}

/// PEFT's form of dropout has no norm axis input.
fn dropouts(norm: Norm) -> impl Strategy<Value = Option<(f32, DropoutForm)>> {
    let forms = match norm {
        Norm::Input => vec![DropoutForm::Adapter],
        Norm::None | Norm::Output => vec![DropoutForm::Adapter, DropoutForm::Peft],
    };
    prop::option::of((0.0..0.9_f32, prop::sample::select(forms)))
}

/// Elements by which memory is moved: none, whole vectors, and others.
fn shift() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), Just(8), 1..=9_usize]
}

fn layers() -> impl Strategy<Value = Layer> {
    let options = norms().prop_flat_map(|(norm, norm_grad)| {
        (Just(norm), Just(norm_grad), any::<bool>(), dropouts(norm))
    });
    let shape =
        (dimension(), dimension(), dimension(), prop_oneof![9 => 1..=96_usize, 1 => Just(0)]);
    (shape, options, shift(), shift(), any::<u64>()).prop_map(
        |((tokens, in_features, out_features, rank), options, gap, offset, seed)| {
            let (norm, norm_grad, bias, dropout) = options;
            Layer {
                tokens,
                in_features,
                out_features,
                rank,
                norm,
                norm_grad,
                bias,
                dropout,
                gap,
                offset,
                seed,
            }
        },
    )
}

fn check(kernels: &Arc<Kernels>, dtype: Dtype, layer: &Layer) -> TestCaseResult {
    let &Layer { tokens, in_features, out_features, rank, .. } = layer;
    let shape = [tokens, in_features, out_features, rank];
    let random = &mut StdRng::seed_from_u64(layer.seed);
    let mut case = random_case(random, shape, layer.norm, layer.bias).rounded(dtype);
    case.norm_grad = layer.norm_grad;
    let mut runner = Runner::with_kernels(kernels).with_gap(layer.gap).with_offset(layer.offset);
    if let Some((probability, form)) = layer.dropout {
        let dropout = Dropout::new(probability, form, layer.seed).expect("a probability");
        case = with_dropout(case, &dropout);
        runner = runner.with_dropout(dropout);
    }
    let fail = |error: &dyn std::fmt::Display| TestCaseError::fail(error.to_string());
    let found = runner.run(&case, dtype).map_err(|error| fail(&error))?;
    let failures = compare::failures(&case, dtype, &found, [None; 6]);
    let failures = failures.map_err(|error| fail(&error))?;
    prop_assert!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

fn layers_are_right(dtype: Dtype) {
    let default = ProptestConfig::default();
    let cases = std::env::var_os("PROPTEST_CASES").map_or(CASES, |_| default.cases);
    let seed = fresh_seed();
    let mut random = StdRng::seed_from_u64(seed ^ dtype as u64);
    for batch in 0..BATCHES {
        let setting = if batch == 0 { Setting::DEFAULT } else { Setting::random(&mut random) };
        println!("{dtype}: {setting}");
        let cases = cases / BATCHES + u32::from(batch < cases % BATCHES);
        let config = ProptestConfig { cases, failure_persistence: None, ..default.clone() };
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..10].copy_from_slice(&[dtype as u8, batch as u8]);
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(config, random);
        let result =
            on(setting, |kernels| runner.run(&layers(), |layer| check(kernels, dtype, &layer)));
        if let Err(error) = result {
            let plainer = simplest(dtype, setting, &error);
            panic!("{dtype}: {setting} (fails with {plainer}, too): {error}");
        }
    }
}

/// Runs `visit` with kernels on a device of this setting.
fn on<T>(setting: Setting, visit: impl FnOnce(&Arc<Kernels>) -> T) -> T {
    on_device(&setting.config(), |device| {
        visit(&Arc::new(Kernels::load(&device.context).expect("kernels")))
    })
}

/// The plainest setting under which the smallest layer that failed fails as well.
fn simplest(dtype: Dtype, setting: Setting, error: &TestError<Layer>) -> Setting {
    let TestError::Fail(_, layer) = error else { return setting };
    let Setting { seed, accumulator, jitter } = setting;
    let plainer = [
        Setting::DEFAULT,
        Setting { accumulator, ..Setting::DEFAULT },
        Setting { seed, ..Setting::DEFAULT },
        Setting { jitter, ..Setting::DEFAULT },
    ];
    let fails = |setting: &Setting| on(*setting, |kernels| check(kernels, dtype, layer)).is_err();
    plainer.into_iter().find(fails).unwrap_or(setting)
}

#[test]
fn random_layers_in_bf16() {
    layers_are_right(Dtype::Bf16);
}

#[test]
fn random_layers_in_f16() {
    layers_are_right(Dtype::F16);
}

#[test]
fn random_layers_in_f32() {
    layers_are_right(Dtype::F32);
}
