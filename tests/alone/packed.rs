//! What device memory and shared memory move for a packed W.

use std::sync::{Arc, Mutex};

use cuda_emulator::{Config, Counters};
use fused_dora::quant::{BlockScales, Code4, QuantizedWeight, WeightFormat};
use fused_dora::{
    DoraLinear, Dtype, Gradients, Kernels, LinearBackward, LinearForward, SharedWeight, Workspace,
};
use fused_dora_testkit::device::Device;
use fused_dora_testkit::settings::on_device;
use half::bf16;

const SHAPE: [usize; 2] = [512, 1024];
const FEW_TOKENS: usize = 64;
/// Bytes of a sector of DRAM.
const SECTOR: u64 = 32;
/// What may be read beyond W's bytes.
const MOST: f64 = 1.02;

/// What a forward and a backward of the base layer do; `None` on a GPU, which does not count.
fn counted(device: &Device, format: Option<WeightFormat>, tokens: usize) -> Option<[Counters; 2]> {
    let kernels = Arc::new(Kernels::load(&device.context).expect("kernels"));
    let stream = device.context.default_stream();
    let [outputs, inputs] = SHAPE;
    let values: Vec<f32> = (0..outputs * inputs).map(|i| (i as f32).sin() / 8.0).collect();
    let mut base = DoraLinear::base_spec(inputs, outputs, Dtype::Bf16).expect("a layer");
    let weight: SharedWeight = match format {
        None => {
            let dense: Vec<bf16> = values.iter().copied().map(bf16::from_f32).collect();
            Arc::new(stream.clone_htod(&dense).expect("memory")).into()
        }
        Some(format) => {
            base = base.with_weight(format).expect("a format");
            let packed = QuantizedWeight::quantize(&values, SHAPE, format).expect("a packed W");
            SharedWeight::packed(&stream, Dtype::Bf16, &packed).expect("memory")
        }
    };
    let workspace = Workspace::new(&kernels, &stream, &[base], tokens).expect("memory");
    let workspace = Arc::new(Mutex::new(workspace));
    let layer = DoraLinear::new(&kernels, &stream, &workspace, SHAPE, weight, None);
    let mut layer = layer.expect("a layer");
    let x = stream.clone_htod(&vec![bf16::ONE; tokens * inputs]).expect("memory");
    let mut y = stream.clone_htod(&vec![bf16::ONE; tokens * outputs]).expect("memory");
    let mut grad_input = stream.alloc_zeros::<bf16>(tokens * inputs).expect("memory");
    let mut saved = layer.saved(tokens, None).expect("memory");
    let counters = || {
        stream.synchronize().expect("no fault");
        device.counters()
    };
    let before = counters()?;
    let io = LinearForward {
        tokens,
        x: (&x).into(),
        y: (&mut y).into(),
        seed: 0,
        dropout: None,
        counter: None,
    };
    layer.forward(&mut saved, io).expect("a forward");
    let between = counters()?;
    let io = LinearBackward {
        tokens,
        gradients: Gradients::Overwrite,
        x: (&x).into(),
        y: (&y).into(),
        dropout: None,
        counter: None,
        grad_output: (&y).into(),
        grad_input: Some((&mut grad_input).into()),
    };
    layer.backward(&saved, io).expect("a backward");
    Some([between - before, counters()? - between])
}

const fn nf4(scales: BlockScales) -> WeightFormat {
    WeightFormat::Code4 { code: Code4::Nf4, block: 64, scales, state: Dtype::Bf16 }
}

/// The loops that decode ahead meet in no bank of shared memory.
#[test]
fn decoding_ahead_adds_no_bank_conflicts() {
    let config = Config { measure: true, ..Config::default() };
    for tokens in [128, 65] {
        let read = |format| on_device(&config, |device| counted(device, format, tokens));
        let Some((dense, packed)) = read(None).zip(read(Some(nf4(BlockScales::F32)))) else {
            return;
        };
        for (dense, packed) in dense.iter().zip(&packed) {
            assert_eq!(packed.bank_conflicts(), dense.bank_conflicts(), "{tokens} tokens");
        }
    }
}

/// Of up to 64 tokens a forward reads W once, at its packed size.
#[test]
fn a_packed_weight_is_read_at_its_size() {
    let config = Config { measure: true, ..Config::default() };
    let elements = (SHAPE[0] * SHAPE[1]) as f64;
    let formats = [(BlockScales::F32, 0.5 + 4.0 / 64.0), (BlockScales::Nested, 0.5 + 1.0 / 64.0)];
    for (scales, bytes) in formats {
        let format = nf4(scales);
        let read = |format| on_device(&config, |device| counted(device, format, FEW_TOKENS));
        let Some(([dense, _], [packed, _])) = read(None).zip(read(Some(format))) else { return };
        let [dense, packed] = [dense, packed].map(|counted| SECTOR * counted.dram_sectors_read);
        // x and what else is read are the same.
        let of_weight = packed as f64 - (dense as f64 - 2.0 * elements);
        let ratio = of_weight / (bytes * elements);
        assert!((0.99..=MOST).contains(&ratio), "{format}: {ratio:.4} times its bytes");
    }
}
