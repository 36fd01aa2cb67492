//! Outputs and gradients, against candle's own autograd on the composed ops in float64.

use crate::common::{
    Result, adapted, candle_dtype, config, host, norm_grads, parts, runtime, tensor,
};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::Module;
use fused_dora_candle::DoraConfig;
use fused_dora_candle::fused_dora::reference::Case;
use fused_dora_candle::fused_dora::{Dropout, DropoutForm, Dtype, Norm, NormGrad};
use fused_dora_testkit::compare::failures;
use fused_dora_testkit::random::{each_dtype_and_norm, fresh_seed, random_case, with_dropout};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// T, I, O and r: rows of x are 16-byte aligned, and those of y are not.
const SHAPE: [usize; 4] = [22, 24, 19, 3];

/// y and the gradients of x, A, B, m and b, as candle derives them from the formulas.
fn composed(case: &Case) -> Result<[Vec<f64>; 6]> {
    let Case { tokens, in_features: inputs, out_features: outputs, rank, .. } = *case;
    let var = |values: &[f64], shape: &[usize]| {
        Var::from_tensor(&Tensor::from_slice(values, shape, &Device::Cpu)?)
    };
    let x = var(&case.input, &[tokens, inputs])?;
    let w = tensor(&case.weight, &[outputs, inputs], DType::F64)?;
    let (a, b) = (var(&case.lora_a, &[rank, inputs])?, var(&case.lora_b, &[outputs, rank])?);
    let m = var(&case.magnitude, &[case.magnitude.len()])?;
    let bias = var(case.bias.as_deref().unwrap_or(&vec![0.0; outputs]), &[outputs])?;

    let v = (&w + (b.matmul(&a)? * case.scaling)?)?;
    let c = v.sqr()?.sum(if case.norm == Norm::Input { 0 } else { 1 })?.sqrt()?;
    let c = if case.norm_grad == NormGrad::Exact { c } else { c.detach() };
    let gain = if case.norm == Norm::None { c.ones_like()? } else { m.div(&c)? };
    let xs = if case.norm == Norm::Input { x.broadcast_mul(&gain)? } else { x.as_tensor().clone() };
    let ones = vec![1.0; tokens * inputs];
    let mask = case.dropout.as_ref().map_or(&ones, |dropout| &dropout.mask);
    let dropped = (&xs * tensor(mask, &[tokens, inputs], DType::F64)?)?;
    let low_rank = (dropped.matmul(&a.t()?)?.matmul(&b.t()?)? * case.scaling)?;
    let base = xs.matmul(&w.t()?)?;
    let z = match (case.norm, &case.dropout) {
        (Norm::Output, Some(dropout)) if dropout.form == DropoutForm::Peft => {
            let of_dropped = dropped.matmul(&w.t()?)?;
            ((base - &of_dropped)? + (of_dropped + low_rank)?.broadcast_mul(&gain)?)?
        }
        (Norm::Output, _) => (base + low_rank)?.broadcast_mul(&gain)?,
        _ => (base + low_rank)?,
    };
    let y = z.broadcast_add(&bias)?;
    let grad_output = tensor(&case.grad_output, &[tokens, outputs], DType::F64)?;
    let grads = (&y * grad_output)?.sum_all()?.backward()?;
    let flat = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f64>();
    let of = |var: &Var| grads.get(var).map_or(Ok(Vec::new()), flat);
    Ok([flat(&y)?, of(&x)?, of(&a)?, of(&b)?, of(&m)?, of(&bias)?])
}

/// The same by the fused layer, of a batch `[2, T/2, I]`; with dropout as in training.
fn fused(case: &Case, dtype: Dtype, config: &DoraConfig) -> Result<[Vec<f32>; 6]> {
    let (layer, adapter) = adapted(case, dtype, config)?;
    let rows = [2, case.tokens / 2];
    let shape = [rows[0], rows[1], case.in_features];
    let x = Var::from_tensor(&tensor(&case.input, &shape, candle_dtype(dtype))?)?;
    let y = match config.dropout {
        Some(_) => layer.forward_train(&x)?,
        None => layer.forward(&x)?,
    };
    let shape = [rows[0], rows[1], case.out_features];
    assert_eq!(y.dims(), shape);
    let grad_output = tensor(&case.grad_output, &shape, DType::F64)?;
    let grads = (y.to_dtype(DType::F64)? * grad_output)?.sum_all()?.backward()?;
    let of = |var: &Var| grads.get(var).expect("a gradient");
    assert_eq!(of(&x).dims(), x.dims());
    let [a, b, m, bias] = parts(&layer, of(&adapter))?;
    Ok([host(&y)?, host(of(&x))?, a, b, m, bias])
}

fn check(case: &Case, dtype: Dtype, config: &DoraConfig) -> Result<()> {
    let expected = composed(case)?;
    let mut found = fused(case, dtype, config)?;
    if !config.train_bias {
        assert!(found[5].is_empty(), "a frozen bias has no gradient");
        found[5] = expected[5].iter().map(|&value| value as f32).collect();
    }
    let expected = expected.each_ref().map(|values| Some(values.as_slice()));
    let wrong = failures(case, dtype, &found, expected).expect("a consistent case");
    assert!(wrong.is_empty(), "{:?} {:?}:\n{}", case.norm, config, wrong.join("\n"));
    Ok(())
}

fn seeded() -> StdRng {
    StdRng::seed_from_u64(fresh_seed())
}

/// Visits a random case for each dtype, norm axis and gradient of the norm.
fn each_case(bias: bool, mut visit: impl FnMut(Case, Dtype) -> Result<()>) -> Result<()> {
    let (mut random, mut done) = (seeded(), Ok(()));
    each_dtype_and_norm(|dtype, norm| {
        let case = random_case(&mut random, SHAPE, norm, bias).rounded(dtype);
        for &norm_grad in norm_grads(norm) {
            if done.is_ok() {
                done = visit(Case { norm_grad, ..case.clone() }, dtype);
            }
        }
    });
    done
}

#[test]
fn gradients_are_those_of_autograd() -> Result<()> {
    each_case(true, |case, dtype| check(&case, dtype, &config(&case, true)))
}

#[test]
fn a_frozen_bias_stays_out_of_the_adapter() -> Result<()> {
    each_case(true, |case, dtype| check(&case, dtype, &config(&case, false)))?;
    each_case(false, |case, dtype| check(&case, dtype, &config(&case, false)))
}

#[test]
fn magnitudes_train_alone() -> Result<()> {
    let mut random = seeded();
    for norm in [Norm::Input, Norm::Output] {
        let case = random_case(&mut random, [6, 16, 8, 0], norm, false).rounded(Dtype::Bf16);
        check(&case, Dtype::Bf16, &config(&case, false))?;
    }
    Ok(())
}

#[test]
fn dropout_has_a_mask_for_each_step() -> Result<()> {
    let runtime = runtime();
    let forms = [
        (Norm::None, DropoutForm::Adapter),
        (Norm::Input, DropoutForm::Adapter),
        (Norm::Output, DropoutForm::Adapter),
        (Norm::Output, DropoutForm::Peft),
    ];
    let mut random = seeded();
    for (seed, (norm, form)) in (7..).zip(forms) {
        let dropout = Dropout::new(0.25, form, seed).expect("a probability");
        let case = random_case(&mut random, SHAPE, norm, true).rounded(Dtype::F16);
        let case = with_dropout(case, &dropout);
        let config = DoraConfig { dropout: Some((0.25, form)), ..config(&case, true) };
        runtime.set_seed(seed);
        check(&case, Dtype::F16, &config)?;
    }
    Ok(())
}
