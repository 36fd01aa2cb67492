//! What the tests share: a device, and layers in candle's tensors.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Linear, VarBuilder, VarMap};
use cuda_emulator::client::{self, Choice};
use fused_dora_candle::fused_dora::reference::Case;
use fused_dora_candle::fused_dora::{Dtype, Norm, NormGrad, Part, Scaling};
use fused_dora_candle::{DoraConfig, DoraLinear, Runtime};

pub use candle_core::Result;

thread_local! {
    static RUNTIME: Runtime = {
        client::select(Choice::from_env().expect("a choice")).expect("a device");
        Runtime::new(&Device::Cpu).expect("kernels")
    };
}

/// The runtime of a test, on the device that `CUDA_EMULATOR_DEVICE` names. Other tests have others,
/// so that none takes its seeds.
pub fn runtime() -> Runtime {
    RUNTIME.with(Runtime::clone)
}

pub fn candle_dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::Bf16 => DType::BF16,
        Dtype::F16 => DType::F16,
        Dtype::F32 => DType::F32,
    }
}

/// A tensor of values that the dtype can hold.
pub fn tensor(values: &[f64], shape: &[usize], dtype: DType) -> Result<Tensor> {
    Tensor::from_slice(values, shape, &Device::Cpu)?.to_dtype(dtype)
}

pub fn host(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// The case's frozen layer.
pub fn linear(case: &Case, dtype: Dtype) -> Result<Linear> {
    let dtype = candle_dtype(dtype);
    let weight = tensor(&case.weight, &[case.out_features, case.in_features], dtype)?;
    let bias = case.bias.as_ref().map(|bias| tensor(bias, &[case.out_features], dtype));
    Ok(Linear::new(weight, bias.transpose()?))
}

pub fn config(case: &Case, train_bias: bool) -> DoraConfig {
    DoraConfig {
        rank: case.rank,
        scaling: Scaling::Value(case.scaling as f32),
        norm: case.norm,
        norm_grad: case.norm_grad,
        dropout: None,
        train_bias,
    }
}

/// The case's adapter, its values in a variable.
pub fn adapted(case: &Case, dtype: Dtype, config: &DoraConfig) -> Result<(DoraLinear, Var)> {
    let linear = linear(case, dtype)?;
    let fresh = VarMap::new();
    let vb = VarBuilder::from_varmap(&fresh, DType::F32, &Device::Cpu);
    let layer = DoraLinear::new(&runtime(), config, &linear, vb)?;
    let var = Var::from_tensor(layer.adapter())?;
    var.set(&Tensor::new(adapter_values(case, &layer), &Device::Cpu)?)?;
    Ok((layer, var))
}

/// The case's adapter in one buffer.
pub fn adapter_values(case: &Case, layer: &DoraLinear) -> Vec<f32> {
    let layout = layer.layout();
    let mut values = vec![0.0; layout.len()];
    let bias = case.bias.as_deref().unwrap_or_default();
    let of_parts = [&case.lora_a, &case.lora_b, &case.magnitude, bias];
    for (part, from) in Part::ALL.into_iter().zip(of_parts) {
        let to = values[layout.range(part)].iter_mut();
        to.zip(from).for_each(|(to, &from)| *to = from as f32);
    }
    values
}

/// The gradients of the parts that the adapter has, and nothing for others.
pub fn parts(layer: &DoraLinear, gradient: &Tensor) -> Result<[Vec<f32>; 4]> {
    let mut found = [const { Vec::new() }; 4];
    for (found, part) in found.iter_mut().zip(Part::ALL) {
        if let Some(part) = layer.part(gradient, part)? {
            *found = host(&part)?;
        }
    }
    Ok(found)
}

/// The gradients of the norm that there can be.
pub fn norm_grads(norm: Norm) -> &'static [NormGrad] {
    match norm {
        Norm::None => &[NormGrad::Detached],
        Norm::Input | Norm::Output => &[NormGrad::Detached, NormGrad::Exact],
    }
}
