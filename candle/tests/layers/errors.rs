//! Misuse, and what candle's errors say of it.

use crate::common::{Result, host, runtime};
use candle_core::{DType, Device, Error, Tensor};
use candle_nn::{Linear, Module};
use fused_dora_candle::fused_dora::{DropoutForm, Norm, NormGrad, Scaling};
use fused_dora_candle::{DoraConfig, DoraLinear};

const CONFIG: DoraConfig = DoraConfig {
    rank: 2,
    scaling: Scaling::Value(1.0),
    norm: Norm::Input,
    norm_grad: NormGrad::Detached,
    dropout: None,
    train_bias: false,
};

/// [`CONFIG`]'s adapter of a weight `[3, 5]`: A, B and m, each padded to a multiple of 4.
const LEN: usize = 12 + 8 + 8;

fn zeros(shape: &[usize], dtype: DType) -> Tensor {
    Tensor::zeros(shape, dtype, &Device::Cpu).expect("memory")
}

fn weight() -> Tensor {
    zeros(&[3, 5], DType::F32)
}

fn adapt(config: DoraConfig, weight: Tensor, bias: Option<Tensor>) -> Result<DoraLinear> {
    with(config, weight, bias, zeros(&[LEN], DType::F32))
}

fn with(
    config: DoraConfig,
    weight: Tensor,
    bias: Option<Tensor>,
    adapter: Tensor,
) -> Result<DoraLinear> {
    DoraLinear::with_adapter(&runtime(), &config, &Linear::new(weight, bias), adapter)
}

/// The error's message holds all of this.
#[track_caller]
fn says<T>(result: Result<T>, words: &[&str]) {
    let message = result.err().expect("an error").to_string();
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
}

#[test]
fn layers_are_checked_when_they_are_made() {
    says(adapt(CONFIG, zeros(&[3, 5], DType::F64), None), &["F64", "fused-dora"]);
    says(adapt(CONFIG, zeros(&[15], DType::F32), None), &["rank", "2", "1"]);
    let bias = |len| Some(zeros(&[len], DType::F32));
    says(adapt(CONFIG, weight(), bias(4)), &["the bias", "[3]", "[4]"]);
    assert!(adapt(CONFIG, weight(), bias(3)).is_ok());
    let adapter = zeros(&[LEN - 1], DType::F32);
    says(with(CONFIG, weight(), None, adapter), &["the adapter", "[28]", "[27]"]);
    let adapter = zeros(&[LEN], DType::F16);
    says(with(CONFIG, weight(), None, adapter), &["adapters are f32", "F16"]);
    let config = DoraConfig { scaling: Scaling::Value(f32::INFINITY), ..CONFIG };
    says(adapt(config, weight(), None), &["scaling is inf", "finite"]);
    let config = DoraConfig { dropout: Some((1.5, DropoutForm::Adapter)), ..CONFIG };
    says(adapt(config, weight(), None), &["dropout probability is 1.5"]);
    let config = DoraConfig { norm: Norm::None, norm_grad: NormGrad::Exact, ..CONFIG };
    says(adapt(config, weight(), None), &["norm_grad is Exact", "plain LoRA"]);
}

#[test]
fn inputs_are_checked_in_the_forward() -> Result<()> {
    let layer = adapt(CONFIG, weight(), None)?;
    let x = zeros(&[2, 7, 4], DType::F32);
    let error = layer.forward(&x).expect_err("an error");
    assert!(matches!(error, Error::UnexpectedShape { .. } | Error::WithBacktrace { .. }));
    says(layer.forward(&x), &["input features", "[2, 7, 5]", "[2, 7, 4]"]);
    says(layer.forward(&zeros(&[], DType::F32)), &["input features", "[5]", "[]"]);
    says(layer.forward(&zeros(&[2, 5], DType::BF16)), &["dtype", "F32", "BF16"]);
    says(
        layer.part(&zeros(&[9], DType::F32), fused_dora_candle::fused_dora::Part::Magnitude),
        &["narrow"],
    );
    // The layer is as good as before.
    assert_eq!(host(&layer.forward(&zeros(&[2, 5], DType::F32))?)?, [0.0; 6]);
    Ok(())
}

#[test]
fn forms_of_dropout_that_the_axis_has_not() -> Result<()> {
    let config = DoraConfig { dropout: Some((0.1, DropoutForm::Peft)), ..CONFIG };
    let (layer, x) = (adapt(config, weight(), None)?, zeros(&[2, 5], DType::F32));
    says(layer.forward_train(&x), &["Peft with norm axis input", "Adapter"]);
    assert!(layer.forward(&x).is_ok(), "nothing is dropped there");
    Ok(())
}
