//! Promises that hold however a device adds and in whichever order it runs: norms where V nearly
//! cancels, under every way that tensor cores may add, and the same bits under every schedule.

use cuda_emulator::{Accumulator, Config};
use fused_dora::reference::Case;
use fused_dora::{Element, Gradients, Norm, NormGrad};
use fused_dora_testkit::device::is_repeated;
use fused_dora_testkit::random::{NORMS, cancelling_case, fresh_seed, random_case};
use fused_dora_testkit::run::{Layer, Runner};
use fused_dora_testkit::settings;
use half::{bf16, f16};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Why there is nothing to repeat under other settings.
const OWN: &str = "it has schedules and ways of adding of its own";

/// Runs `visit` on a device of these settings, without the sanitizer, which other tests have on.
fn on_device<T>(config: Config, visit: impl FnOnce(&Runner) -> T) -> T {
    let config = Config { sanitizer: false, ..config };
    settings::on_device(&config, |device| visit(&Runner::new(&device.context).expect("kernels")))
}

fn norms_survive_cancellation<E: Element>(runner: &Runner, random: &mut StdRng, smallest: f64) {
    let shape = [0, 200, 130, 20];
    for norm in [Norm::Input, Norm::Output] {
        // On both sides of where norms are summed again, too.
        for left in [0.5, 0.3, 0.2, 1e-1, 1e-2, 1e-3] {
            let case = cancelling_case(random, shape, norm, E::DTYPE, left);
            let [found, _] = Layer::<E>::new(runner, &case)
                .and_then(|layer| layer.norm_and_gain())
                .expect("c and g");
            let expected = case.norms().expect("a consistent case");
            let square = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>();
            let ratio = (square(&expected) / square(&case.weight)).sqrt();
            assert!(ratio >= smallest && ratio <= 1.01 * left + 1e-3, "{left}: {ratio}");
            for (found, expected) in found.into_iter().zip(expected) {
                let error = (f64::from(found) / expected - 1.0).abs();
                let layer = format!("{norm:?} {} ‖V‖/‖W‖ = {ratio:.1e}", E::DTYPE);
                assert!(error <= 1e-5, "{layer}: c {found:e}, expected {expected:e}: {error:.1e}");
            }
        }
    }
}

/// A norm has a relative error of at most 1e-5 even where V = W + s·B·A leaves a thousandth of W
/// (as small as rounding W to bf16 allows).
#[test]
fn norms_survive_cancellation_however_tensor_cores_add() {
    if is_repeated(OWN) {
        return;
    }
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for accumulator in
        [Accumulator::Sequential, Accumulator::ExactF64, Accumulator::AlignedTruncate]
    {
        println!("{accumulator:?}");
        on_device(Config { accumulator, ..Config::default() }, |runner| {
            norms_survive_cancellation::<bf16>(runner, &mut random, 1e-3);
            norms_survive_cancellation::<f16>(runner, &mut random, 9e-4);
            norms_survive_cancellation::<f32>(runner, &mut random, 9e-4);
        });
    }
}

/// Everything that two micro-batches of a layer compute, as bits.
fn bits<E: Element>(runner: &Runner, case: &Case) -> Vec<u32> {
    let mut layer = Layer::<E>::new(runner, case).expect("a layer");
    let [y, dx] = layer.micro_batch(case, Gradients::Overwrite).expect("a micro-batch");
    layer.micro_batch(case, Gradients::Accumulate).expect("a micro-batch");
    if case.norm != Norm::None {
        layer.norm_gradient().expect("the op");
    }
    let [c, g] = layer.norm_and_gain().expect("c and g");
    let [da, db, dm, dbias] = layer.gradients().expect("gradients");
    let all = [c, g, y, dx, da, db, dm, dbias];
    all.into_iter().flatten().map(f32::to_bits).collect()
}

/// The same inputs give the same bits in whichever order warps and blocks run: several blocks of
/// every kernel, several chunks of every sum.
#[test]
fn the_same_bits_under_every_schedule() {
    if is_repeated(OWN) {
        return;
    }
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let cases: Vec<Case> = NORMS
        .into_iter()
        .map(|norm| {
            let case = random_case(&mut random, [150, 150, 140, 20], norm, true);
            let norm_grad = if norm == Norm::None { case.norm_grad } else { NormGrad::Exact };
            Case { norm_grad, ..case }
        })
        .collect();
    let run = |seed, threads| {
        on_device(Config { seed, threads, ..Config::default() }, |runner| {
            let of_each =
                |case| [bits::<bf16>, bits::<f16>, bits::<f32>].map(|run| run(runner, case));
            cases.iter().map(of_each).collect::<Vec<_>>()
        })
    };
    let expected = run(0, 1);
    assert_eq!(run(0, 1), expected, "run to run");
    for seed in 1..=3 {
        // One thread keeps the blocks in the seed's order; more let them race.
        for threads in [1, 3] {
            assert!(run(seed, threads) == expected, "seed {seed}, {threads} threads");
        }
    }
}
