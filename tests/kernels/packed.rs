//! Ops on a packed W give the bits of the same ops on the W that it stands for.

use fused_dora::quant::{BlockScales, Code4, Fp8Scales, QuantizedWeight, WeightFormat};
use fused_dora::reference::{Case, Results};
use fused_dora::{Dropout, DropoutForm, Dtype, Element, Norm, NormGrad};
use fused_dora_testkit::compare::failures;
use fused_dora_testkit::random::{NORMS, fresh_seed, random_case};
use fused_dora_testkit::run::Runner;
use half::{bf16, f16};
use rand::SeedableRng;
use rand::rngs::StdRng;

fn runner() -> Runner {
    let context = fused_dora_testkit::device::open().expect("a device");
    Runner::new(&context).expect("kernels")
}

/// One of each kind, and of each size of blocks that decides how chunks are read.
fn formats() -> Vec<WeightFormat> {
    let code4 = |code, block, scales, state| WeightFormat::Code4 { code, block, scales, state };
    let mut formats = vec![WeightFormat::Int8Rows];
    formats.extend(
        [
            (Code4::Nf4, 64, BlockScales::F32, Dtype::Bf16),
            (Code4::Nf4, 64, BlockScales::Nested, Dtype::Bf16),
            (Code4::Nf4, 32, BlockScales::F32, Dtype::F16),
            (Code4::Fp4, 4096, BlockScales::Nested, Dtype::F32),
        ]
        .map(|(code, block, scales, state)| code4(code, block, scales, state)),
    );
    let blocks = |rows, cols| Fp8Scales::Blocks { rows, cols };
    let scales = [Fp8Scales::Tensor, Fp8Scales::Rows, blocks(128, 128), blocks(16, 20)];
    formats.extend(scales.map(|scales| WeightFormat::Fp8 { scales }));
    formats
}

/// The case with W rounded to what a format holds, and W packed in it.
fn packed<E: Element>(mut case: Case, format: WeightFormat) -> (Case, QuantizedWeight<'static>) {
    let values: Vec<f32> = case.weight.iter().map(|&value| value as f32).collect();
    let shape = [case.out_features, case.in_features];
    let packed = QuantizedWeight::quantize(&values, shape, format).expect("a packed W");
    let stands_for: Vec<E> = packed.dequantize();
    case.weight = stands_for.iter().map(|value| f64::from(value.to_f32())).collect();
    let norms = case.norms().expect("a consistent case");
    case.magnitude = norms.iter().map(|c| 1.1 * c).collect();
    (case.rounded(E::DTYPE), packed)
}

fn check<E: Element>(runner: impl Fn() -> Runner, case: Case, format: WeightFormat) {
    let (case, packed) = packed::<E>(case, format);
    let dense = runner().run(&case, E::DTYPE).expect("a run on a dense W");
    let found = runner().with_packed(packed).run(&case, E::DTYPE).expect("a run on a packed W");
    let &Case { tokens, in_features, out_features, rank, norm, .. } = &case;
    let what = format!(
        "{format}, {}: T={tokens} I={in_features} O={out_features} r={rank} norm {norm:?}",
        E::DTYPE
    );
    for ((name, dense), found) in Results::NAMES.iter().zip(&dense).zip(&found) {
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(bits(dense) == bits(found), "{what}: {name} differs");
    }
    let failures = failures(&case, E::DTYPE, &found, [None; 6]).expect("a consistent case");
    assert!(failures.is_empty(), "{what}: {}", failures.join("\n"));
}

/// Large, medium and small tiles, rows that are aligned and rows that are not, odd rows that start
/// inside a byte.
const SHAPES: [[usize; 4]; 5] = [
    [140, 136, 160, 19],
    [140, 131, 75, 5],
    [40, 160, 132, 3],
    [7, 67, 83, 4],
    [300, 128, 256, 16],
];

fn all_formats<E: Element>() {
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for (at, format) in formats().into_iter().enumerate() {
        for (nth, norm) in NORMS.into_iter().enumerate() {
            let shape = SHAPES[(at + nth) % SHAPES.len()];
            let mut case = random_case(&mut random, shape, norm, nth == 0);
            if norm != Norm::None {
                case.norm_grad = NormGrad::Exact;
            }
            check::<E>(runner, case, format);
        }
    }
}

#[test]
fn ops_on_packed_weights_in_bf16() {
    all_formats::<bf16>();
}

#[test]
fn ops_on_packed_weights_in_f16() {
    all_formats::<f16>();
}

#[test]
fn ops_on_packed_weights_in_f32() {
    all_formats::<f32>();
}

#[test]
fn dropout_on_packed_weights() {
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let (code, scales) = (Code4::Nf4, BlockScales::Nested);
    let format = WeightFormat::Code4 { code, block: 64, scales, state: Dtype::Bf16 };
    for (form, norm) in [
        (DropoutForm::Peft, Norm::Output),
        (DropoutForm::Adapter, Norm::Input),
        (DropoutForm::Adapter, Norm::None),
    ] {
        let dropout = Dropout::new(0.3, form, 7).expect("a probability");
        for shape in [[140, 136, 160, 19], [70, 83, 150, 3]] {
            let case = random_case(&mut random, shape, norm, true);
            let case = fused_dora_testkit::random::with_dropout(case, &dropout);
            check::<bf16>(|| runner().with_dropout(dropout), case, format);
        }
    }
}
