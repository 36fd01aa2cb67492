//! Every op, in every dtype, against the float64 reference: golden cases, ragged random shapes,
//! and the edge values.

use fused_dora::reference::{Case, Results};
use fused_dora::{Dropout, DropoutForm, Dtype, F32Math, Norm, NormGrad};
use fused_dora_testkit::case::CaseFile;
use fused_dora_testkit::compare;
use fused_dora_testkit::random::{
    NORMS, each_dtype_and_norm, fresh_seed, random_case, with_dropout,
};
use fused_dora_testkit::run::Runner;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn runner() -> Runner {
    let context = fused_dora_testkit::device::open().expect("a device");
    Runner::new(&context).expect("kernels")
}

/// One for each way of multiplying f32 matrices.
fn f32_runners() -> [Runner; 2] {
    let context = fused_dora_testkit::device::open().expect("a device");
    [F32Math::Fma, F32Math::Tf32x3].map(|math| Runner::by_math(&context, math).expect("kernels"))
}

/// Runs `case` in `dtype` and compares all tensors, with `expected` values where there are some
/// and with the reference's elsewhere.
#[track_caller]
fn check(runner: &Runner, name: &str, case: &Case, expected: [Option<&[f64]>; 6], dtype: Dtype) {
    let found = runner.run(case, dtype).expect("the ops");
    let failures = compare::failures(case, dtype, &found, expected).expect("a consistent case");
    let &Case { tokens, in_features, out_features, rank, norm, .. } = case;
    assert!(
        failures.is_empty(),
        "{name}: T={tokens} I={in_features} O={out_features} r={rank} norm {norm:?} {dtype}\n{}",
        failures.join("\n")
    );
}

fn golden(runner: &Runner, dtype: Dtype) {
    let folder = fused_dora_testkit::workspace().join("tests/golden");
    let mut detached = 0;
    for entry in std::fs::read_dir(folder).expect("tests/golden") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let file = CaseFile::read(&path).expect("a golden case");
        detached += usize::from(file.case.norm_grad == NormGrad::Detached);
        let expected = file.expected.each_ref().map(Option::as_deref);
        check(runner, &file.name, &file.case, expected, dtype);
    }
    assert_eq!(detached, 9, "golden cases with the norm detached, of 19");
}

#[test]
fn golden_cases_in_bf16() {
    golden(&runner(), Dtype::Bf16);
}

#[test]
fn golden_cases_in_f16() {
    golden(&runner(), Dtype::F16);
}

#[test]
fn golden_cases_in_f32() {
    golden(&runner(), Dtype::F32);
}

fn ragged(runner: &Runner, dtype: Dtype) {
    let mut random = StdRng::seed_from_u64(fresh_seed());
    // Tile edges and one past them, then whatever comes.
    let mut shapes = vec![
        [1, 1, 1, 1],
        [128, 128, 128, 16],
        [129, 136, 264, 17],
        [65, 127, 129, 16],
        [40, 72, 200, 72],
        [200, 24, 16, 130],
        [2, 257, 3, 5],
        [300, 8, 8, 8],
        [129, 136, 264, 0],
        [65, 51, 77, 0],
    ];
    for _ in 0..8 {
        let mut up_to = |limit| random.random_range(1..=limit);
        shapes.push([up_to(200), up_to(200), up_to(200), up_to(40)]);
    }
    for (i, shape) in shapes.into_iter().enumerate() {
        for (j, norm) in NORMS.into_iter().enumerate() {
            let case = random_case(&mut random, shape, norm, (i + j) % 2 == 0);
            check(runner, "random", &case.rounded(dtype), [None; 6], dtype);
        }
    }
}

#[test]
fn ragged_shapes_in_bf16() {
    ragged(&runner(), Dtype::Bf16);
}

#[test]
fn ragged_shapes_in_f16() {
    ragged(&runner(), Dtype::F16);
}

#[test]
fn ragged_shapes_in_f32() {
    f32_runners().iter().for_each(|runner| ragged(runner, Dtype::F32));
}

/// Shapes whose rows would be aligned, in buffers that are not.
#[test]
fn tensors_off_every_boundary() {
    let runner = runner().with_offset(1);
    let mut random = StdRng::seed_from_u64(fresh_seed());
    each_dtype_and_norm(|dtype, norm| {
        for rank in [16, 0] {
            let case = random_case(&mut random, [48, 64, 96, rank], norm, true);
            check(&runner, "off by one", &case.rounded(dtype), [None; 6], dtype);
        }
    });
}

/// Rows that lie further apart than they are long, on 16-byte boundaries and off them.
#[test]
fn rows_with_gaps() {
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for (gap, shape) in [(8, [70, 64, 136, 16]), (3, [70, 64, 136, 16]), (5, [33, 21, 35, 3])] {
        let runner = runner().with_gap(gap);
        each_dtype_and_norm(|dtype, norm| {
            let case = random_case(&mut random, shape, norm, true);
            check(&runner, "rows with gaps", &case.rounded(dtype), [None; 6], dtype);
        });
    }
}

/// Dropout in both forms, with the mask that the counter gives.
#[test]
fn dropout() {
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let shapes = [[70, 64, 136, 16], [33, 21, 35, 3], [130, 150, 40, 70], [9, 40, 24, 0]];
    for (i, shape) in shapes.into_iter().enumerate() {
        for form in [DropoutForm::Adapter, DropoutForm::Peft] {
            let probability = [0.1, 0.5, 0.0, 0.3][i];
            let dropout = Dropout::new(probability, form, random.random()).expect("a probability");
            let runner = runner().with_dropout(dropout);
            each_dtype_and_norm(|dtype, norm| {
                if (form, norm) == (DropoutForm::Peft, Norm::Input) {
                    return;
                }
                let case = random_case(&mut random, shape, norm, i % 2 == 0).rounded(dtype);
                let case = with_dropout(case, &dropout);
                check(&runner, &format!("dropout {form:?}"), &case, [None; 6], dtype);
            });
        }
    }
}

/// A projection of the size that Llama models have, in many tiles and chunks of every kind.
fn llama_sized(norm: Norm) {
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let case = random_case(&mut random, [256, 2048, 2048, 16], norm, false);
    check(&runner(), "Llama-sized", &case.rounded(Dtype::Bf16), [None; 6], Dtype::Bf16);
}

#[test]
fn llama_sized_layer_with_norms_of_inputs() {
    llama_sized(Norm::Input);
}

#[test]
fn llama_sized_layer_with_norms_of_outputs() {
    llama_sized(Norm::Output);
}

#[test]
fn no_tokens_give_zero_gradients() {
    let runner = runner();
    let mut random = StdRng::seed_from_u64(1);
    each_dtype_and_norm(|dtype, norm| {
        for rank in [3, 0] {
            let case = random_case(&mut random, [0, 20, 12, rank], norm, true);
            let found = runner.run(&case, dtype).expect("the ops");
            let shapes = case.result_shapes();
            for ((tensor, shape), name) in found.iter().zip(shapes).zip(Results::NAMES) {
                assert_eq!(tensor.len(), shape.iter().product::<usize>(), "{name}");
                assert!(tensor.iter().all(|&value| value == 0.0), "{name}: {tensor:?}");
            }
        }
    });
}

/// A zero row and a zero column of V have no direction: g and dm are 0 there, and nothing is NaN.
#[test]
fn zero_norms_are_finite() {
    let runner = runner();
    let mut random = StdRng::seed_from_u64(2);
    let mut run = |dtype, norm, rank| {
        let mut case = random_case(&mut random, [9, 20, 24, rank], norm, true);
        let (row, col) = (5, 7);
        for j in 0..case.in_features {
            case.weight[row * case.in_features + j] = 0.0;
        }
        for i in 0..case.out_features {
            case.weight[i * case.in_features + col] = 0.0;
        }
        case.lora_b[row * case.rank..][..case.rank].fill(0.0);
        for k in 0..case.rank {
            case.lora_a[k * case.in_features + col] = 0.0;
        }
        check(&runner, "zero norms", &case.rounded(dtype), [None; 6], dtype);
    };
    each_dtype_and_norm(|dtype, norm| [4, 0].into_iter().for_each(|rank| run(dtype, norm, rank)));
}

/// m = 0 and tiny m: dm comes from z itself, not from y/g. A bias that hides g·z likewise.
#[test]
fn tiny_gains_and_large_biases() {
    let runner = runner();
    let mut random = StdRng::seed_from_u64(3);
    let mut run = |dtype, norm, has_bias| {
        let mut case = random_case(&mut random, [70, 40, 150, 4], norm, has_bias);
        for (i, m) in case.magnitude.iter_mut().enumerate() {
            *m *= [1.0, 0.0, 1e-4, -1e-3, -1.0][i % 5];
        }
        if let Some(bias) = &mut case.bias {
            for (i, b) in bias.iter_mut().enumerate() {
                *b *= [1.0, 30.0, 300.0, 1e4][i % 4];
            }
        }
        check(&runner, "tiny gains", &case.rounded(dtype), [None; 6], dtype);
    };
    each_dtype_and_norm(|dtype, norm| [true, false].into_iter().for_each(|b| run(dtype, norm, b)));
}

#[test]
fn same_inputs_give_the_same_bits() {
    let runner = runner();
    let mut random = StdRng::seed_from_u64(4);
    each_dtype_and_norm(|dtype, norm| {
        let case = random_case(&mut random, [150, 90, 140, 9], norm, true);
        let bits = || {
            let found = runner.run(&case, dtype).expect("the ops");
            found.map(|tensor| tensor.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        assert_eq!(bits(), bits());
    });
}

/// A gain too close to 1 for round-to-nearest to notice still moves the output, on average by what
/// it should: with W the identity, y is x∘g as rounded.
#[test]
fn small_gains_are_right_on_average() {
    if fused_dora_testkit::device::is_repeated("statistics of one schedule are enough") {
        return;
    }
    let runner = runner();
    let (tokens, features) = (4096, 8);
    let mut case = Case {
        tokens,
        in_features: features,
        out_features: features,
        rank: 1,
        scaling: 1.0,
        norm: Norm::Input,
        norm_grad: NormGrad::Detached,
        input: vec![1.0; tokens * features],
        weight: vec![0.0; features * features],
        bias: None,
        lora_a: vec![0.0; features],
        lora_b: vec![0.0; features],
        magnitude: vec![0.0; features],
        grad_output: vec![0.0; tokens * features],
        dropout: None,
    };
    (0..features).for_each(|i| case.weight[i * features + i] = 1.0);
    for dtype in [Dtype::Bf16, Dtype::F16] {
        for change in [1e-3, -1e-3, 1e-4] {
            case.magnitude.fill(1.0 + change);
            let [output, ..] = runner.run(&case, dtype).expect("the ops");
            let mean = output.iter().map(|&y| f64::from(y)).sum::<f64>() / output.len() as f64;
            let slope = (mean - 1.0) / change;
            // Steps of one ulp, at most 2⁻⁷ taken with probability change/ulp: the mean of 32768
            // has a standard deviation of sqrt(change·ulp/32768).
            let deviation = (2f64.powi(-7) / change.abs() / output.len() as f64).sqrt();
            assert!(
                (slope - 1.0).abs() < 5.0 * deviation,
                "{dtype}: g = 1 + {change:e} moved y by {slope:.3} of that, ±{deviation:.3}"
            );
        }
    }
}
