//! Adapters on their way through PEFT's files.

use std::collections::BTreeMap;

use crate::common::{Result, adapted, config, host, linear, runtime, tensor};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, VarBuilder, VarMap};
use fused_dora_candle::fused_dora::peft::{LayerAdapter, PeftCheckpoint};
use fused_dora_candle::fused_dora::reference::Case;
use fused_dora_candle::fused_dora::{Dtype, Norm, NormGrad, Scaling};
use fused_dora_candle::{DoraConfig, DoraLinear};
use fused_dora_testkit::random::{fresh_seed, random_case};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// A layer whose parts all need padding in the adapter's buffer.
fn case(norm: Norm) -> Case {
    let mut random = StdRng::seed_from_u64(fresh_seed());
    random_case(&mut random, [10, 17, 13, 3], norm, true)
}

/// A layer with a fresh adapter.
fn fresh(case: &Case, config: &DoraConfig) -> Result<DoraLinear> {
    let vb = VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu);
    DoraLinear::new(&runtime(), config, &linear(case, Dtype::F32)?, vb)
}

#[track_caller]
fn says<T>(result: Result<T>, words: &[&str]) {
    let message = result.err().expect("an error").to_string();
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
}

#[test]
fn adapters_pass_through_files() -> Result<()> {
    for norm in [Norm::None, Norm::Output] {
        let case = case(norm);
        let (layer, _) = adapted(&case, Dtype::F32, &config(&case, false))?;
        let folder = tempfile::tempdir()?;
        let layers = BTreeMap::from([("encoder.query".to_owned(), layer.to_peft()?)]);
        let write = |layers| PeftCheckpoint::new(layers)?.write(&folder, Dtype::F32);
        write(layers).expect("a checkpoint");

        let checkpoint = PeftCheckpoint::read(&folder).expect("what was written");
        let adapter = &checkpoint.layers["encoder.query"];
        let other = fresh(&case, &DoraConfig::of_peft(adapter, NormGrad::Exact))?;
        let x = tensor(&case.input, &[case.tokens, case.in_features], DType::F32)?;
        let expected = host(&layer.forward(&x)?)?;
        assert_ne!(host(&other.forward(&x)?)?, expected, "{norm:?}");
        other.load_peft(adapter)?;
        assert_eq!(host(&other.forward(&x)?)?, expected, "{norm:?}");
        assert_eq!(other.to_peft()?, layer.to_peft()?);
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let case = case(Norm::Output);
    let config = config(&case, false);
    let layer = fresh(&case, &config)?;
    let before = host(layer.adapter())?;
    let adapter = layer.to_peft()?;
    let refuse = |shape: [usize; 2], rank, scaling, norm, words: &[&str]| {
        let [outputs, inputs] = shape;
        let magnitude = if norm == Norm::Input { inputs } else { outputs };
        let ones = |count| vec![1.0; count];
        let (a, b, m) = (ones(rank * inputs), ones(rank * outputs), ones(magnitude));
        let other = LayerAdapter::new(shape, rank, scaling, norm, a, b, m).expect("an adapter");
        says(layer.load_peft(&other), words);
    };
    refuse([13, 18], 3, 2.0, Norm::Output, &["[13, 18]", "[13, 17]", "of_peft"]);
    refuse([13, 17], 4, 2.0, Norm::Output, &["rank 4", "rank 3"]);
    refuse([13, 17], 3, 2.5, Norm::Output, &["scaling 2.5", "scaling 2"]);
    refuse([13, 17], 3, 2.0, Norm::Input, &["Input norm", "Output norm"]);
    assert_eq!(host(layer.adapter())?, before);

    let values = Tensor::new(before, &Device::Cpu)?;
    let frozen = linear(&case, Dtype::F32)?;
    let constant = DoraLinear::with_adapter(&runtime(), &config, &frozen, values)?;
    says(constant.load_peft(&adapter), &["constant", "VarMap"]);
    let biased = fresh(&case, &DoraConfig { train_bias: true, ..config })?;
    says(biased.to_peft(), &["bias", "train_bias"]);
    Ok(())
}

#[test]
fn a_config_is_that_of_the_adapter() -> Result<()> {
    let case = case(Norm::Output);
    let adapter = fresh(&case, &config(&case, false))?.to_peft()?;
    let expected = DoraConfig {
        rank: 3,
        scaling: Scaling::Value(2.0),
        norm: Norm::Output,
        norm_grad: NormGrad::Exact,
        dropout: None,
        train_bias: false,
    };
    assert_eq!(DoraConfig::of_peft(&adapter, NormGrad::Exact), expected);
    Ok(())
}
