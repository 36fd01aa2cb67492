//! `norm_gradient` alone.

use fused_dora::reference::{self, Case, Results};
use fused_dora::{Dtype, Element, Norm, NormGrad};
use rand::rngs::StdRng;

use super::compare::Comparison;
use super::random::{normal, random_case};
use super::run::{Layer, Runner};

/// u, the unit roundoff of f32.
pub const U: f64 = 1.0 / (1u64 << 24) as f64;

/// A layer without tokens whose gradients flow through the norm.
pub fn exact_case(random: &mut StdRng, shape: [usize; 3], norm: Norm, dtype: Dtype) -> Case {
    let [inputs, outputs, rank] = shape;
    let case = random_case(random, [0, inputs, outputs, rank], norm, false);
    Case { norm_grad: NormGrad::Exact, ..case }.rounded(dtype)
}

pub fn normals(random: &mut StdRng, count: usize) -> Vec<f64> {
    (0..count).map(|_| f64::from(normal(random) as f32)).collect()
}

#[track_caller]
pub fn assert_close(
    case: &Case,
    dtype: Dtype,
    which: usize,
    found: &[f32],
    expected: &[f64],
    bounds: &[f64],
) {
    let name = Results::NAMES[which];
    let comparison =
        Comparison::new(name, &case.result_shapes()[which], dtype, found, expected, bounds);
    let &Case { in_features, out_features, rank, norm, .. } = case;
    let layer = format!("I={in_features} O={out_features} r={rank} norm {norm:?}");
    assert!(comparison.ok(), "{layer}: {comparison}");
}

/// Gives the op gradients as large as what it takes from them, and compares what is left.
#[track_caller]
pub fn check<E: Element>(runner: &Runner, random: &mut StdRng, case: &Case) {
    let dm = normals(random, case.magnitudes());
    let taken = reference::norm_gradient(case, &dm).expect("a consistent case");
    let given = taken.each_ref().map(|taken| -> Vec<f64> {
        taken.iter().map(|taken| f64::from((taken * normal(random)) as f32)).collect()
    });
    let mut layer = Layer::<E>::new(runner, case).expect("a layer");
    let db = vec![0.0; case.out_features];
    layer.set_gradients([&given[0], &given[1], &dm, &db]).expect("gradients");
    layer.norm_gradient().expect("the op");

    let found = layer.gradients().expect("gradients");
    let exactly = vec![0.0; dm.len()];
    let bounds = reference::norm_gradient_bounds(case, E::DTYPE, &dm, &exactly);
    let bounds = bounds.expect("a consistent case");
    for (i, which) in [2, 3].into_iter().enumerate() {
        let expected: Vec<f64> = given[i].iter().zip(&taken[i]).map(|(g, t)| g - t).collect();
        let bounds: Vec<f64> =
            bounds[i].iter().zip(&expected).map(|(bound, value)| bound + U * value.abs()).collect();
        assert_close(case, E::DTYPE, which, &found[i], &expected, &bounds);
    }
    let unchanged = |found: &[f32], given: &[f64]| {
        found.iter().zip(given).all(|(&found, &given)| f64::from(found) == given)
    };
    assert!(unchanged(&found[2], &dm) && unchanged(&found[3], &db), "dm and db are inputs");
}
