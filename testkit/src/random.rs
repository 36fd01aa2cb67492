//! Layers of random inputs.

use fused_dora::reference::{Case, CaseDropout};
use fused_dora::{Dropout, Dtype, Norm, NormGrad};
use rand::Rng;
use rand::rngs::StdRng;

/// Every norm axis, and none.
pub const NORMS: [Norm; 3] = [Norm::None, Norm::Input, Norm::Output];

/// The gradients through the norm that there can be.
pub fn norm_grads(norm: Norm) -> &'static [NormGrad] {
    match norm {
        Norm::None => &[NormGrad::Detached],
        Norm::Input | Norm::Output => &[NormGrad::Detached, NormGrad::Exact],
    }
}

/// Calls `visit` for every dtype on every norm axis, and without a norm.
pub fn each_dtype_and_norm(mut visit: impl FnMut(Dtype, Norm)) {
    for dtype in Dtype::ALL {
        NORMS.into_iter().for_each(|norm| visit(dtype, norm));
    }
}

/// A standard normal deviate, nearly: twelve uniforms make a bell of unit variance.
pub fn normal(random: &mut StdRng) -> f64 {
    (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0
}

/// A seed of this run's own, or `FUSED_DORA_TEST_SEED` to repeat one.
pub fn fresh_seed() -> u64 {
    let given = std::env::var("FUSED_DORA_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("FUSED_DORA_TEST_SEED={seed}");
    seed
}

/// A layer of normal inputs: x and dY of unit variance, W and the adapter of a trained layer's
/// sizes, m near the norm.
pub fn random_case(random: &mut StdRng, shape: [usize; 4], norm: Norm, bias: bool) -> Case {
    let [tokens, in_features, out_features, rank] = shape;
    let mut normal = |count: usize, deviation: f64| -> Vec<f64> {
        (0..count).map(|_| deviation * normal(random)).collect()
    };
    let mut case = Case {
        tokens,
        in_features,
        out_features,
        rank,
        scaling: 2.0,
        norm,
        norm_grad: NormGrad::Detached,
        input: normal(tokens * in_features, 1.0),
        weight: normal(out_features * in_features, 0.05),
        bias: bias.then(|| normal(out_features, 0.1)),
        lora_a: normal(rank * in_features, 1.0 / (in_features as f64).sqrt()),
        lora_b: normal(out_features * rank, 0.02),
        magnitude: Vec::new(),
        grad_output: normal(tokens * out_features, 1.0),
        dropout: None,
    };
    case.magnitude = vec![0.0; case.magnitudes()];
    let norms = case.norms().expect("a consistent case");
    case.magnitude = norms.iter().map(|c| c * random.random_range(0.8..1.25)).collect();
    case
}

/// A layer with W = −s·B·A/(1 + `left`), rounded to the dtype: of W, V leaves about `left`, or what
/// the rounding does.
pub fn cancelling_case(
    random: &mut StdRng,
    shape: [usize; 4],
    norm: Norm,
    dtype: Dtype,
    left: f64,
) -> Case {
    let mut case = random_case(random, shape, norm, false);
    // Not a power of two, so that rounding s·B would show.
    case.scaling = f64::from(0.7f32);
    case.lora_b.iter_mut().for_each(|b| *b = normal(random));
    case = case.rounded(dtype);
    let Case { in_features, out_features, rank, scaling, lora_a, lora_b, weight, .. } = &mut case;
    for i in 0..*out_features {
        for j in 0..*in_features {
            let products = (0..*rank).map(|k| lora_b[i * *rank + k] * lora_a[k * *in_features + j]);
            weight[i * *in_features + j] = -*scaling * products.sum::<f64>() / (1.0 + left);
        }
    }
    case.rounded(dtype)
}

/// The case with this dropout, by the mask that its counter gives.
pub fn with_dropout(case: Case, dropout: &Dropout) -> Case {
    let mask = dropout.mask(case.tokens, case.in_features).into_iter().map(f64::from).collect();
    Case { dropout: Some(CaseDropout { form: dropout.form(), mask }), ..case }
}
