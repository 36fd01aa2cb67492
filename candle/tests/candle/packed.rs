//! Layers on packed weights.

use std::collections::HashMap;

use candle_core::{DType, Device, Var};
use candle_nn::{Linear, Module, VarBuilder};
use fused_dora_candle::DoraLinear;
use fused_dora_candle::fused_dora::quant::{BlockScales, Code4, QuantizedWeight, WeightFormat};
use fused_dora_candle::fused_dora::{Dtype, Norm, NormGrad};
use fused_dora_testkit::random::{fresh_seed, random_case};
use half::bf16;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::common::{Result, config, host, runtime, tensor};

/// y and the gradients of x and of the adapter are the bits of the layer on the W that the packed one
/// stands for.
#[test]
fn a_packed_base_is_as_what_it_stands_for() -> Result<()> {
    let mut random = StdRng::seed_from_u64(fresh_seed());
    let (code, scales) = (Code4::Nf4, BlockScales::Nested);
    let nf4 = WeightFormat::Code4 { code, block: 64, scales, state: Dtype::Bf16 };
    for norm in [Norm::Input, Norm::Output] {
        let mut case = random_case(&mut random, [22, 72, 19, 3], norm, true);
        case.norm_grad = NormGrad::Exact;
        let shape = [case.out_features, case.in_features];
        let values: Vec<f32> = case.weight.iter().map(|&value| value as f32).collect();
        let packed = QuantizedWeight::quantize(&values, shape, nf4).expect("a packed W");
        let stands_for: Vec<f64> =
            packed.dequantize::<bf16>().iter().map(|value| value.to_f64()).collect();
        let dense = tensor(&stands_for, &shape, DType::BF16)?;
        let bias = case.bias.as_deref().expect("a bias");
        let bias = tensor(bias, &[shape[0]], DType::BF16)?;
        let config = config(&case, false);

        let fresh = VarBuilder::zeros(DType::F32, &Device::Cpu);
        let linear = Linear::new(dense, Some(bias.clone()));
        let len = DoraLinear::new(&runtime(), &config, &linear, fresh)?.layout().len();
        let values: Vec<f32> = (0..len).map(|i| ((i as f32).sin() + 1.5) / 8.0).collect();
        let results = [false, true].map(|is_packed| -> Result<[Vec<f32>; 3]> {
            let adapter = Var::from_slice(&values, len, &Device::Cpu)?;
            let tensors = HashMap::from([("adapter".to_owned(), adapter.as_tensor().clone())]);
            let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
            let layer = match is_packed {
                true => {
                    let bias = Some(&bias);
                    DoraLinear::packed(&runtime(), &config, DType::BF16, &packed, bias, vb)
                }
                false => DoraLinear::new(&runtime(), &config, &linear, vb),
            }?;
            let x = tensor(&case.input, &[case.tokens, case.in_features], DType::BF16)?;
            let x = Var::from_tensor(&x)?;
            let y = layer.forward(&x)?;
            let grads = y.sqr()?.sum_all()?.backward()?;
            let of = |var: &Var| host(grads.get(var).expect("a gradient"));
            Ok([host(&y)?, of(&x)?, of(&adapter)?])
        });
        let [dense, packed] = results;
        assert_eq!(dense?, packed?, "{norm:?}");
    }
    Ok(())
}
