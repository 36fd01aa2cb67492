//! What the benches compare the fused layer with computes the same layer.

use std::sync::Arc;

use fused_dora::cudarc::driver::{CudaSlice, CudaStream};
use fused_dora::reference::{Case, Results, evaluate};
use fused_dora::{Dtype, Element, Kernels, Norm};
use fused_dora_benches::baseline::{Form, Gemm, Inputs, Unfused};
use fused_dora_testkit::random::{NORMS, fresh_seed, random_case};
use fused_dora_testkit::{compare, device::open_choice, run::spec};
use half::{bf16, f16};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// A batch beyond one tile, features that are no multiples of a tile, ranks below 16 and above.
const SHAPES: [[usize; 4]; 2] = [[72, 136, 200, 8], [136, 264, 72, 24]];

type MakeGemm = fn(&Arc<Kernels>) -> Gemm;

/// The kernels, a stream, and everything that products are taken from: cuBLASLt on a GPU, where the
/// tests are built with it.
fn device() -> (Arc<Kernels>, Arc<CudaStream>, Vec<MakeGemm>) {
    let device = open_choice(None).expect("a device");
    let kernels = Arc::new(Kernels::load(&device.context).expect("kernels"));
    let stream = kernels.context().default_stream();
    let mut gemms: Vec<MakeGemm> = vec![Gemm::own];
    if cfg!(feature = "cublaslt") && !device.is_emulated() {
        gemms.push(|kernels| {
            Gemm::cublaslt(&kernels.context().default_stream()).expect("cuBLASLt's library")
        });
    }
    (kernels, stream, gemms)
}

/// W' of the case, which is what merging it makes of W.
fn merged(case: &Case) -> Vec<f64> {
    let &Case { in_features, out_features, rank, scaling, .. } = case;
    let norms = case.norms().expect("a consistent case");
    let at = |i: usize, j: usize| {
        let products =
            (0..rank).map(|k| case.lora_b[i * rank + k] * case.lora_a[k * in_features + j]);
        let v = case.weight[i * in_features + j] + scaling * products.sum::<f64>();
        match case.norm {
            Norm::None => v,
            Norm::Input => v * case.magnitude[j] / norms[j],
            Norm::Output => v * case.magnitude[i] / norms[i],
        }
    };
    let all = (0..out_features).flat_map(|i| (0..in_features).map(move |j| (i, j)));
    all.map(|(i, j)| at(i, j)).collect()
}

fn upload<E: Element>(stream: &Arc<CudaStream>, values: &[f64]) -> CudaSlice<E> {
    let values: Vec<E> = values.iter().map(|&value| E::from_f32(value as f32)).collect();
    stream.clone_htod(&values).expect("memory")
}

/// What a form computes of a case, without db, which it does not have.
fn run<E: Element + Default>(
    gemm: Gemm,
    stream: &Arc<CudaStream>,
    case: &Case,
    forms: &[Form],
) -> Vec<[Vec<f32>; 5]> {
    let upload_f32 = |values: &[f64]| upload::<f32>(stream, values);
    let (x, dy) = (upload(stream, &case.input), upload(stream, &case.grad_output));
    let (weight, merged) = (upload(stream, &case.weight), upload(stream, &merged(case)));
    let magnitude = if case.magnitude.is_empty() { &[0.0][..] } else { &case.magnitude };
    let inputs = Inputs::<E> {
        tokens: case.tokens,
        batches: vec![[&x, &dy]],
        weight: &weight,
        merged: &merged,
        lora_a: &upload_f32(&case.lora_a),
        lora_b: &upload_f32(&case.lora_b),
        magnitude: &upload_f32(magnitude),
    };
    let spec = spec(case, E::DTYPE).expect("a layer");
    let mut unfused = Unfused::new(stream, vec![gemm], &spec, &inputs).expect("memory and NVRTC");
    let mut results = |form: &Form| {
        unfused.prepare(*form).expect("the ops");
        unfused.forward(*form, 0).expect("the ops");
        unfused.backward(*form, 0).expect("the ops");
        let [y, dx] = unfused.of_tokens().expect("memory");
        let [da, db, mut dm] = unfused.of_adapter().expect("memory");
        dm.truncate(case.magnitude.len());
        let [y, dx] = [y, dx].map(|values| values.into_iter().map(E::to_f32).collect());
        [y, dx, da, db, dm]
    };
    forms.iter().map(&mut results).collect()
}

/// The forms that compute exactly what the fused layer of this norm axis does, and how many of
/// their results do: all, or y and dX of what trains nothing.
fn counterparts(norm: Norm) -> Vec<(Form, usize)> {
    let all = match norm {
        Norm::None => vec![(Form::LoraPeft, 4), (Form::LoraAddmm, 4)],
        Norm::Output => vec![(Form::DoraPeft, 5), (Form::DoraDense, 5), (Form::DoraFormed, 5)],
        Norm::Input => vec![(Form::DoraFormed, 5)],
    };
    all.into_iter().chain([(Form::Merged, 2), (Form::Plain, 2)]).collect()
}

/// The case of the frozen layer alone.
fn without_adapter(case: &Case) -> Case {
    let (lora_a, lora_b) = (vec![0.0; case.lora_a.len()], vec![0.0; case.lora_b.len()]);
    Case { norm: Norm::None, lora_a, lora_b, magnitude: Vec::new(), ..case.clone() }
}

/// Calls `check` with each tensor that a form computes of a random case in each norm axis: what it
/// is, the case, the tensor's index in the results, and what was found.
fn each_tensor<E: Element + Default>(
    shape: [usize; 4],
    check: impl Fn(&str, &Case, usize, &[f32]),
) {
    let (kernels, stream, gemms) = device();
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for (norm, gemm) in NORMS.into_iter().flat_map(|norm| gemms.iter().map(move |g| (norm, g))) {
        let case = random_case(&mut random, shape, norm, false).rounded(E::DTYPE);
        let pairs = counterparts(norm);
        let forms: Vec<Form> = pairs.iter().map(|&(form, _)| form).collect();
        let found = run::<E>(gemm(&kernels), &stream, &case, &forms);
        for ((form, compared), found) in pairs.into_iter().zip(found) {
            let case = if form == Form::Plain { without_adapter(&case) } else { case.clone() };
            for (i, found) in found[..compared].iter().enumerate() {
                let of = (form.name(), gemm(&kernels).name());
                let what = format!("{} by {}, {shape:?}, norm {norm:?}", of.0, of.1);
                check(&what, &case, i, found);
            }
        }
    }
}

/// In f32 every form is within the bounds of the fused layer.
#[test]
fn every_form_is_the_layer() {
    for shape in SHAPES {
        each_tensor::<f32>(shape, |what, case, i, found| {
            let expected = evaluate(case).expect("a consistent case");
            let bounds = compare::bounds(case, Dtype::F32).expect("a consistent case");
            let (expected, bounds) = (expected.tensors()[i], bounds.tensors()[i]);
            let (name, shapes) = (Results::NAMES[i], case.result_shapes());
            let comparison =
                compare::Comparison::new(name, &shapes[i], Dtype::F32, found, expected, bounds);
            assert!(comparison.ok(), "{what}: {comparison}");
        });
    }
}

/// In 16 bit the forms round what lies between ops, too: no more than eight times in a row, each
/// time by up to ε, so that a tensor is off by up to 8ε of its own norm.
fn in_16_bit<E: Element + Default>(epsilon: f64) {
    each_tensor::<E>(SHAPES[0], |what, case, i, found| {
        let expected = evaluate(case).expect("a consistent case");
        let expected = expected.tensors()[i];
        assert_eq!(found.len(), expected.len());
        let pairs = found.iter().zip(expected);
        let errors: f64 =
            pairs.map(|(&found, expected)| (f64::from(found) - expected).powi(2)).sum();
        let error = (errors / expected.iter().map(|value| value * value).sum::<f64>()).sqrt();
        let name = Results::NAMES[i];
        assert!(error <= 8.0 * epsilon, "{what}: {name} is off by {error:.2e} of its norm");
    });
}

#[test]
fn every_form_in_bf16() {
    in_16_bit::<bf16>(2f64.powi(-8));
}

#[test]
fn every_form_in_f16() {
    in_16_bit::<f16>(2f64.powi(-11));
}
