//! What device memory moves for a packed W.

use std::sync::{Arc, Mutex};

use cuda_emulator::Config;
use fused_dora::quant::{BlockScales, Code4, QuantizedWeight, WeightFormat};
use fused_dora::{DoraLinear, Dtype, Kernels, LinearForward, SharedWeight, Workspace};
use fused_dora_testkit::device::Device;
use fused_dora_testkit::settings::on_device;
use half::bf16;

const SHAPE: [usize; 2] = [512, 1024];
const TOKENS: usize = 64;
/// Bytes of a sector of DRAM.
const SECTOR: u64 = 32;
/// What may be read beyond W's bytes.
const MOST: f64 = 1.02;

/// The bytes that a forward of the base layer reads from device memory; `None` on a GPU, which does not
/// count.
fn bytes_read(device: &Device, format: Option<WeightFormat>) -> Option<u64> {
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
    let workspace = Workspace::new(&kernels, &stream, &[base], TOKENS).expect("memory");
    let workspace = Arc::new(Mutex::new(workspace));
    let layer = DoraLinear::new(&kernels, &stream, &workspace, SHAPE, weight, None);
    let mut layer = layer.expect("a layer");
    let x = stream.clone_htod(&vec![bf16::ONE; TOKENS * inputs]).expect("memory");
    let mut y = stream.alloc_zeros::<bf16>(TOKENS * outputs).expect("memory");
    let mut saved = layer.saved(TOKENS, None).expect("memory");
    stream.synchronize().expect("no fault");
    let before = device.counters()?;
    let (x, y) = ((&x).into(), (&mut y).into());
    let io = LinearForward { tokens: TOKENS, x, y, seed: 0, dropout: None, counter: None };
    layer.forward(&mut saved, io).expect("a forward");
    stream.synchronize().expect("no fault");
    let after = device.counters()?;
    Some(SECTOR * (after.dram_sectors_read - before.dram_sectors_read))
}

/// Of up to 64 tokens a forward reads W once, at its packed size.
#[test]
fn a_packed_weight_is_read_at_its_size() {
    let config = Config { measure: true, ..Config::default() };
    let elements = (SHAPE[0] * SHAPE[1]) as f64;
    let formats = [(BlockScales::F32, 0.5 + 4.0 / 64.0), (BlockScales::Nested, 0.5 + 1.0 / 64.0)];
    for (scales, bytes) in formats {
        let code = Code4::Nf4;
        let format = WeightFormat::Code4 { code, block: 64, scales, state: Dtype::Bf16 };
        let read = |format| on_device(&config, |device| bytes_read(device, format));
        let Some((dense, packed)) = read(None).zip(read(Some(format))) else { return };
        // x and what else is read are the same.
        let of_weight = packed as f64 - (dense as f64 - 2.0 * elements);
        let ratio = of_weight / (bytes * elements);
        assert!((0.99..=MOST).contains(&ratio), "{format}: {ratio:.4} times its bytes");
    }
}
