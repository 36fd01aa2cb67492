//! The rows about packed weights.

use fused_dora::Dtype;
use fused_dora::quant::{BlockScales, Code4, QuantizedWeight, WeightFormat};

use super::Table;

pub(super) fn all(table: &mut Table) {
    let blocks = |block| WeightFormat::Code4 {
        code: Code4::Nf4,
        block,
        scales: BlockScales::F32,
        state: Dtype::Bf16,
    };
    let pack = |values: &[f32], format| {
        QuantizedWeight::quantize(values, [2, 64], format).map(|weight| weight.bytes())
    };
    table.row(
        "a packed format that does not exist, or numbers that cannot be packed",
        [
            pack(&[0.0; 128], blocks(48)),
            pack(&[f32::NAN; 128], blocks(64)),
            pack(&[1e6; 128], WeightFormat::Int8Rows),
        ],
    );
    let unpack = |bytes: usize, scales: usize| {
        let weight = QuantizedWeight::new([2, 64], blocks(64), vec![0; bytes], vec![1.0; scales]);
        weight.map(|weight| weight.bytes())
    };
    table.row(
        "a packed weight with parts of other lengths than its shape's",
        [unpack(63, 2), unpack(64, 1), pack(&[0.0; 127], blocks(64))],
    );
}
