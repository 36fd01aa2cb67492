//! Every op in every dtype on every norm axis, once per setting of a list: the quick ones of
//! the trials that the mutation tests also run, and layers on every kind of tiles.

use std::sync::Arc;

use fused_dora::{Dtype, Element, F32Math, Kernels, Tiles};
use fused_dora_testkit::compare;
use fused_dora_testkit::device::is_repeated;
use fused_dora_testkit::random::{NORMS, fresh_seed, random_case};
use fused_dora_testkit::run::Runner;
use fused_dora_testkit::settings::{Setting, on_device};
use fused_dora_testkit::trials::trials;
use half::{bf16, f16};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// T, I, O and r: several tiles of every kind, ragged.
const SHAPE: [usize; 4] = [150, 200, 140, 20];

/// Tokens that the tiles for few tokens take.
const FEW_TOKENS: usize = 9;

/// All ops in one dtype under one setting.
fn every_op<E: Element>(setting: Setting) {
    if is_repeated("the settings are in the list") {
        return;
    }
    println!("{setting}");
    let seed = fresh_seed();
    on_device(&setting.config(), |device| {
        let kernels = Arc::new(Kernels::load(&device.context).expect("kernels"));
        for trial in trials::<E>(seed).into_iter().filter(|trial| trial.quick) {
            if let Err(failure) = (trial.run)(&kernels) {
                panic!("{setting}: {}: {failure}", trial.name);
            }
        }
        let mut random = StdRng::seed_from_u64(seed);
        let maths = match E::DTYPE {
            Dtype::F32 => &[F32Math::Fma, F32Math::Tf32x3][..],
            Dtype::Bf16 | Dtype::F16 => &[F32Math::Fma],
        };
        for tiles in [Tiles::Large, Tiles::Medium, Tiles::Small] {
            for &math in maths {
                let kernels = Kernels::load(&device.context).expect("kernels");
                let kernels = Arc::new(kernels.with_tiles(Some(tiles)).with_f32_math(math));
                for norm in NORMS {
                    let [tokens, inputs, outputs, rank] = SHAPE;
                    let tokens = if tiles == Tiles::Small { FEW_TOKENS } else { tokens };
                    let shape = [tokens, inputs, outputs, rank];
                    let case = random_case(&mut random, shape, norm, true).rounded(E::DTYPE);
                    let runner = Runner::with_kernels(&kernels);
                    let found = runner.run(&case, E::DTYPE).expect("the ops");
                    let failures = compare::failures(&case, E::DTYPE, &found, [None; 6]);
                    let failures = failures.expect("a consistent case");
                    assert!(
                        failures.is_empty(),
                        "{setting}: {tiles:?} tiles, {math:?}, norm {norm:?}, {}\n{}",
                        E::DTYPE,
                        failures.join("\n")
                    );
                }
            }
        }
    });
}

#[test]
fn every_op_in_bf16_by_default() {
    every_op::<bf16>(Setting::LIST[0]);
}

#[test]
fn every_op_in_f16_by_default() {
    every_op::<f16>(Setting::LIST[0]);
}

#[test]
fn every_op_in_f32_by_default() {
    every_op::<f32>(Setting::LIST[0]);
}

#[test]
fn every_op_in_bf16_with_exact_sums_and_jitter() {
    every_op::<bf16>(Setting::LIST[1]);
}

#[test]
fn every_op_in_f16_with_exact_sums_and_jitter() {
    every_op::<f16>(Setting::LIST[1]);
}

#[test]
fn every_op_in_f32_with_exact_sums_and_jitter() {
    every_op::<f32>(Setting::LIST[1]);
}

#[test]
fn every_op_in_bf16_with_truncated_sums() {
    every_op::<bf16>(Setting::LIST[2]);
}

#[test]
fn every_op_in_f16_with_truncated_sums() {
    every_op::<f16>(Setting::LIST[2]);
}

#[test]
fn every_op_in_f32_with_truncated_sums() {
    every_op::<f32>(Setting::LIST[2]);
}
