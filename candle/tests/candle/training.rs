//! What candle's optimizers, variables and checkpoints do with a layer.

use std::env;
use std::fs;
use std::thread;

use crate::common::{
    Result, adapted, candle_dtype, config, host, linear, norm_grads, runtime, tensor,
};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{AdamW, Linear, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap};
use fused_dora_candle::fused_dora::reference::Case;
use fused_dora_candle::fused_dora::{Dtype, Norm, NormGrad, Part, Scaling};
use fused_dora_candle::{DoraConfig, DoraLinear, Runtime};
use fused_dora_testkit::random::{NORMS, fresh_seed, random_case};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// A layer whose parts all need padding in the adapter's buffer.
fn case(norm: Norm) -> Case {
    let mut random = StdRng::seed_from_u64(fresh_seed());
    random_case(&mut random, [10, 17, 13, 3], norm, true).rounded(Dtype::Bf16)
}

fn input(case: &Case) -> Result<Tensor> {
    tensor(&case.input, &[case.tokens, case.in_features], DType::BF16)
}

fn variables(map: &VarMap) -> VarBuilder<'static> {
    VarBuilder::from_varmap(map, DType::BF16, &Device::Cpu)
}

/// The gradient of ‖y‖² with regard to the adapter.
fn gradient(y: &Tensor, adapter: &Var) -> Result<Vec<f32>> {
    let grads = y.to_dtype(DType::F32)?.sqr()?.sum_all()?.backward()?;
    host(grads.get(adapter).expect("a gradient"))
}

#[test]
fn candles_adamw_trains() -> Result<()> {
    for norm in NORMS {
        for (&norm_grad, dtype) in norm_grads(norm).iter().zip([Dtype::Bf16, Dtype::F32]) {
            let case = Case { norm_grad, ..case(norm) };
            let (map, config) = (VarMap::new(), config(&case, true));
            let frozen = linear(&case, dtype)?;
            let layer = DoraLinear::new(&runtime(), &config, &frozen, variables(&map))?;
            // The case's own adapter is what is to be learnt.
            let x = input(&case)?.to_dtype(candle_dtype(dtype))?;
            let target = adapted(&case, dtype, &config)?.0.forward(&x)?.to_dtype(DType::F32)?;
            let params = ParamsAdamW { lr: 0.02, weight_decay: 0.0, ..Default::default() };
            let mut adamw = AdamW::new(map.all_vars(), params)?;
            let mut losses = Vec::new();
            for _ in 0..20 {
                let y = layer.forward_train(&x)?.to_dtype(DType::F32)?;
                let loss = (y - &target)?.sqr()?.mean_all()?;
                losses.push(loss.to_scalar::<f32>()?);
                adamw.backward_step(&loss)?;
            }
            let (first, last) = (losses[0], losses[losses.len() - 1]);
            assert!(last < 0.5 * first, "{norm:?} {norm_grad:?} {dtype}: {losses:?}");
        }
    }
    Ok(())
}

#[test]
fn padding_stays_zero() -> Result<()> {
    let case = case(Norm::Output);
    let (layer, adapter) = adapted(&case, Dtype::Bf16, &config(&case, true))?;
    let gradient = gradient(&layer.forward(&input(&case)?)?, &adapter)?;
    let layout = layer.layout();
    assert!(layout.len() > layout.parameters());
    let is_padding = |index: &usize| !Part::ALL.iter().any(|&p| layout.range(p).contains(index));
    let of_padding: Vec<f32> = (0..layout.len()).filter(is_padding).map(|i| gradient[i]).collect();
    assert_eq!(of_padding, vec![0.0; layout.len() - layout.parameters()]);
    Ok(())
}

#[test]
fn a_fresh_adapter_changes_nothing() -> Result<()> {
    let plain = DoraConfig {
        rank: 0,
        scaling: Scaling::Value(1.0),
        norm: Norm::None,
        norm_grad: NormGrad::Detached,
        dropout: None,
        train_bias: false,
    };
    for norm in NORMS {
        for train_bias in [false, true] {
            let (case, map) = (case(norm), VarMap::new());
            let (frozen, x) = (linear(&case, Dtype::Bf16)?, input(&case)?);
            let config = config(&case, train_bias);
            let layer = DoraLinear::new(&runtime(), &config, &frozen, variables(&map))?;
            let a = layer.part(layer.adapter(), Part::LoraA)?.expect("A");
            let bound = 1.0 / (case.in_features as f32).sqrt();
            let spread = host(&a)?.into_iter().fold(0f32, |spread, a| spread.max(a.abs()));
            assert!((0.5 * bound..=bound).contains(&spread), "{spread} of {bound}");
            let nothing = Tensor::zeros(0, DType::F32, &Device::Cpu)?;
            let base = DoraLinear::with_adapter(&runtime(), &plain, &frozen, nothing)?;
            assert_eq!(host(&layer.forward(&x)?)?, host(&base.forward(&x)?)?, "{norm:?}");
        }
    }
    Ok(())
}

#[test]
fn checkpoints_restore_the_layer() -> Result<()> {
    let case = case(Norm::Input);
    let (frozen, x, config) = (linear(&case, Dtype::Bf16)?, input(&case)?, config(&case, true));
    let new = |vb: VarBuilder<'_>| DoraLinear::new(&runtime(), &config, &frozen, vb.pp("query"));
    let mut map = VarMap::new();
    let layer = new(variables(&map))?;
    let trained = Tensor::rand(-0.5f32, 0.5, layer.layout().len(), &Device::Cpu)?;
    map.set_one("query.adapter", &trained)?;
    let expected = host(&layer.forward(&x)?)?;

    // Of another map, after its layer was made.
    let file =
        env::temp_dir().join(format!("fused-dora-candle-{}.safetensors", std::process::id()));
    map.save(&file)?;
    let mut other = VarMap::new();
    let restored = new(variables(&other))?;
    assert_ne!(host(&restored.forward(&x)?)?, expected);
    other.load(&file)?;
    assert_eq!(host(&restored.forward(&x)?)?, expected);
    // Of the map that has it: nothing is initialised.
    assert_eq!(host(&new(variables(&map))?.forward(&x)?)?, expected);
    // As a constant of the file.
    let bytes = fs::read(&file)?;
    fs::remove_file(&file)?;
    let vb = VarBuilder::from_buffered_safetensors(bytes, DType::BF16, &Device::Cpu)?;
    let constant = new(vb.clone())?;
    let y = constant.forward(&x)?;
    assert_eq!(host(&y)?, expected);
    assert!(!y.track_op());
    let missing = DoraLinear::new(&runtime(), &config, &frozen, vb.pp("key"));
    let message = missing.expect_err("there is no such tensor").to_string();
    assert!(message.contains("key.adapter"), "{message}");
    Ok(())
}

#[test]
fn backwards_are_of_the_values_that_their_forwards_saw() -> Result<()> {
    for norm in NORMS {
        let norm_grad = norm_grads(norm)[norm_grads(norm).len() - 1];
        let case = Case { norm_grad, ..case(norm) };
        let (layer, adapter) = adapted(&case, Dtype::Bf16, &config(&case, true))?;
        let x = input(&case)?;
        let expected = gradient(&layer.forward(&x)?, &adapter)?;
        let (y, prepared) = (layer.forward(&x)?, layer.prepare()?);
        adapter.set(&(adapter.as_tensor() * 0.5)?)?;
        assert_eq!(gradient(&y, &adapter)?, expected, "{norm:?}: a change before the backward");
        let again = prepared.forward(&x)?;
        assert_eq!(host(&again)?, host(&y)?, "{norm:?}: prepared before the change");
        assert_eq!(gradient(&again, &adapter)?, expected);
        let changed = layer.forward(&x)?;
        assert_ne!(host(&changed)?, host(&y)?);
        assert_ne!(gradient(&changed, &adapter)?, expected);
    }
    Ok(())
}

#[test]
fn micro_batches_add_up() -> Result<()> {
    let case = Case { norm_grad: NormGrad::Exact, ..case(Norm::Output) };
    let (layer, adapter) = adapted(&case, Dtype::F32, &config(&case, false))?;
    let x = input(&case)?.to_dtype(DType::F32)?;
    let whole = gradient(&layer.forward(&x)?, &adapter)?;
    let step = layer.prepare()?;
    let mut sum = vec![0f32; whole.len()];
    for rows in [0..4, 4..10] {
        let y = step.forward(&x.narrow(0, rows.start, rows.len())?)?;
        let part = gradient(&y, &adapter)?;
        sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    let size = whole.iter().fold(0f32, |size, value| size.max(value.abs()));
    for (sum, whole) in sum.iter().zip(&whole) {
        assert!((sum - whole).abs() < 1e-5 * size, "{sum} {whole} of {size}");
    }
    Ok(())
}

#[test]
fn what_needs_no_gradient_gets_none() -> Result<()> {
    let case = case(Norm::Output);
    let (layer, adapter) = adapted(&case, Dtype::Bf16, &config(&case, false))?;
    let x = Var::from_tensor(&input(&case)?)?;
    let loss = |y: Tensor| y.to_dtype(DType::F32)?.sqr()?.sum_all();
    let grads = loss(layer.forward(&x.as_detached_tensor())?)?.backward()?;
    assert!(grads.get(&adapter).is_some() && grads.get(&x).is_none());
    let constant = layer.prepare()?.detach();
    let grads = loss(constant.forward(&x)?)?.backward()?;
    assert!(grads.get(&adapter).is_none() && grads.get(&x).is_some());
    let y = constant.forward(&x.as_detached_tensor())?;
    assert!(!y.track_op(), "nothing is kept for a backward");
    Ok(())
}

#[test]
fn inputs_have_any_shape() -> Result<()> {
    let case = case(Norm::Input);
    let (layer, adapter) = adapted(&case, Dtype::Bf16, &config(&case, true))?;
    let x = input(&case)?;
    let y = layer.forward(&x)?;
    let columns = x.t()?.contiguous()?.t()?;
    assert!(!columns.is_contiguous());
    assert_eq!(host(&layer.forward(&columns)?)?, host(&y)?);
    let first = layer.forward(&x.get(0)?)?;
    assert_eq!(first.dims(), [case.out_features]);
    assert_eq!(host(&first)?, host(&y.get(0)?)?);
    // A row of a storage's middle.
    let last = layer.forward(&x.narrow(0, case.tokens - 1, 1)?)?;
    assert_eq!(last.dims(), [1, case.out_features]);
    let none = layer.forward(&x.narrow(0, 0, 0)?)?;
    assert_eq!(none.dims(), [0, case.out_features]);
    assert!(gradient(&none, &adapter)?.iter().all(|&gradient| gradient == 0.0));
    Ok(())
}

#[test]
fn seeds_repeat_a_step() -> Result<()> {
    let case = case(Norm::Input);
    let config = config(&case, false);
    let (layer, _) = adapted(&case, Dtype::Bf16, &config)?;
    // Of its own: steps of other tests take seeds, too.
    let runtime = Runtime::new(&Device::Cpu)?;
    let (frozen, adapter) = (linear(&case, Dtype::Bf16)?, layer.adapter().clone());
    let layer = DoraLinear::with_adapter(&runtime, &config, &frozen, adapter)?;
    let x = input(&case)?;
    runtime.set_seed(3);
    let (first, second) = (host(&layer.forward_train(&x)?)?, host(&layer.forward_train(&x)?)?);
    assert_ne!(first, second, "x∘g is rounded anew");
    runtime.set_seed(3);
    assert_eq!(host(&layer.forward_train(&x)?)?, first);
    assert_eq!(host(&layer.forward(&x)?)?, host(&layer.forward(&x)?)?);
    Ok(())
}

#[test]
fn a_runtime_grows_with_its_layers() -> Result<()> {
    // The device is chosen by the first one.
    let _first = runtime();
    let runtime = Runtime::new(&Device::Cpu)?;
    let mut random = StdRng::seed_from_u64(fresh_seed());
    for (tokens, norm) in [(3, Norm::Output), (300, Norm::Output), (5, Norm::Input)] {
        let shape = [tokens, 17, 13, 3];
        let case = random_case(&mut random, shape, norm, true).rounded(Dtype::Bf16);
        let (expected, adapter) = adapted(&case, Dtype::Bf16, &config(&case, false))?;
        let (config, frozen) = (config(&case, false), linear(&case, Dtype::Bf16)?);
        let values = adapter.as_tensor().clone();
        let found = DoraLinear::with_adapter(&runtime, &config, &frozen, values)?;
        let x = input(&case)?;
        let (found, expected) = (found.forward(&x)?, expected.forward(&x)?);
        assert_eq!(host(&found)?, host(&expected)?);
        assert_eq!(gradient(&found, &adapter)?, gradient(&expected, &adapter)?);
    }
    Ok(())
}

#[test]
fn threads_share_a_layer() -> Result<()> {
    let case = Case { norm_grad: NormGrad::Exact, ..case(Norm::Input) };
    let (layer, adapter) = adapted(&case, Dtype::Bf16, &config(&case, true))?;
    let (layer, adapter, x) = (&layer, &adapter, &input(&case)?);
    let expected = gradient(&layer.forward(x)?, adapter)?;
    thread::scope(|scope| {
        let worker = || (0..4).map(|_| gradient(&layer.forward(x)?, adapter)).collect();
        let workers: Vec<_> = (0..3).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            let found: Result<Vec<Vec<f32>>> = worker.join().expect("a thread");
            found?.iter().for_each(|found| assert_eq!(found, &expected));
        }
        Ok(())
    })
}

#[test]
fn frozen_tensors_are_constants() -> Result<()> {
    let case = case(Norm::Output);
    let frozen = linear(&case, Dtype::Bf16)?;
    let weight = Var::from_tensor(frozen.weight())?;
    let linear = Linear::new(weight.as_tensor().clone(), None);
    let map = VarMap::new();
    let layer = DoraLinear::new(&runtime(), &config(&case, false), &linear, variables(&map))?;
    let y = layer.forward(&input(&case)?)?;
    let grads = y.to_dtype(DType::F32)?.sum_all()?.backward()?;
    assert!(grads.get(&weight).is_none());
    Ok(())
}

#[test]
fn merged_layers_are_plain_ones() -> Result<()> {
    for norm in NORMS {
        for train_bias in [false, true] {
            let case = case(norm);
            let (layer, _) = adapted(&case, Dtype::F32, &config(&case, train_bias))?;
            let x = input(&case)?.to_dtype(DType::F32)?;
            let merged = layer.merge(DType::F32)?;
            assert!(!merged.weight().track_op() && merged.bias().is_some());
            let (found, expected) = (merged.forward(&x)?, layer.forward(&x)?);
            for (found, expected) in host(&found)?.into_iter().zip(host(&expected)?) {
                assert!((found - expected).abs() < 1e-5, "{norm:?}: {found} {expected}");
            }
            assert_eq!(layer.merge(DType::BF16)?.weight().dtype(), DType::BF16);
            assert!(layer.merge(DType::F64).is_err());
        }
    }
    Ok(())
}
