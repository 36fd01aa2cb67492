//! How many kernels a step launches.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Linear, Module, VarBuilder, VarMap};
use cuda_emulator::client::{self, Choice, Selected};
use fused_dora_candle::fused_dora::{NormGrad, Scaling};
use fused_dora_candle::{DoraConfig, DoraLinear, Runtime};
use fused_dora_testkit::random::{NORMS, norm_grads};

#[test]
fn launches_are_those_that_the_readme_names() -> Result<()> {
    let Ok(Selected::Emulated(emulator)) = client::select(Choice::Emulated) else {
        panic!("the emulated device");
    };
    let launches = || emulator.counters().launches;
    let runtime = Runtime::new(&Device::Cpu)?;
    let linear = Linear::new(Tensor::ones((9, 16), DType::F32, &Device::Cpu)?, None);
    let x = Tensor::ones((4, 16), DType::F32, &Device::Cpu)?;
    for norm in NORMS {
        for &norm_grad in norm_grads(norm) {
            let (scaling, dropout) = (Scaling::Value(1.0), None);
            let config =
                DoraConfig { rank: 2, scaling, norm, norm_grad, dropout, train_bias: false };
            let map = VarMap::new();
            let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
            let layer = DoraLinear::new(&runtime, &config, &linear, vb)?;
            let mut counts = vec![launches()];
            let y = layer.forward_train(&x)?;
            counts.push(launches());
            y.sum_all()?.backward()?;
            counts.push(launches());
            let prepared = layer.prepare()?;
            counts.push(launches());
            prepared.forward(&x)?;
            counts.push(launches());
            let steps: Vec<u64> = counts.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let through_the_norm = if norm_grad == NormGrad::Exact { 2 } else { 0 };
            assert_eq!(steps, [2, 1 + through_the_norm, 1, 1], "{norm:?} {norm_grad:?}");
        }
    }
    Ok(())
}
