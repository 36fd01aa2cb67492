//! Packed weights: what bitsandbytes and the definitions of fp8 give, bit by bit, and what is refused.

#[cfg(feature = "peft")]
mod files;
mod golden;

use fused_dora::quant::{BlockScales, Code4, Fp8Scales, QuantizedWeight, Scales, WeightFormat};
use fused_dora::{Dtype, Error};

const NF4: WeightFormat = WeightFormat::Code4 {
    code: Code4::Nf4,
    block: 64,
    scales: BlockScales::F32,
    state: Dtype::Bf16,
};
const NESTED: WeightFormat = WeightFormat::Code4 {
    code: Code4::Fp4,
    block: 32,
    scales: BlockScales::Nested,
    state: Dtype::F32,
};
const GRID: WeightFormat = WeightFormat::Fp8 { scales: Fp8Scales::Blocks { rows: 128, cols: 128 } };

fn nested(codes: usize, absmax: usize, map: usize, offset: f32) -> Scales<'static> {
    let (codes, absmax, map) = (vec![0; codes], vec![1.0; absmax], vec![0.5; map]);
    Scales::Nested { codes: codes.into(), absmax: absmax.into(), map: map.into(), offset }
}

/// A packed weight with bytes of 0 that is refused, by its lengths or by its values.
fn refused(
    shape: [usize; 2],
    format: WeightFormat,
    bytes: usize,
    scales: impl Into<Scales<'static>>,
) -> String {
    let made = QuantizedWeight::new(shape, format, vec![0; bytes], scales);
    match made.and_then(|made| made.check_values()) {
        Ok(()) => panic!("{format} {shape:?} is taken"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn lengths_that_contradict_the_format_are_refused() {
    let ones = |count: usize| vec![1.0; count];
    // 3×43 elements: 65 bytes, 3 blocks of 64.
    for (error, parts) in [
        (refused([3, 43], NF4, 64, ones(3)), ["the packed weight holds 64", "needs 65", "[3, 43]"]),
        (refused([3, 43], NF4, 66, ones(3)), ["the packed weight holds 66", "needs 65", "nf4"]),
        (refused([3, 43], NF4, 65, ones(2)), ["absmax holds 2", "needs 3", "blocks of 64"]),
        // 100×100 elements: 313 blocks of 32, 2 of 256 blocks.
        (
            refused([100, 100], NESTED, 5000, nested(312, 2, 256, 0.0)),
            ["absmax holds 312", "needs 313", "nested"],
        ),
        (
            refused([100, 100], NESTED, 5000, nested(313, 1, 256, 0.0)),
            ["nested_absmax holds 1", "needs 2", "fp4"],
        ),
        (
            refused([100, 100], NESTED, 5000, nested(313, 2, 255, 0.0)),
            ["nested_quant_map holds 255", "needs 256", "fp4"],
        ),
        (
            refused([3, 43], WeightFormat::Int8Rows, 129, ones(43)),
            ["SCB holds 43", "needs 3", "a scale per row"],
        ),
        (
            refused([129, 128], GRID, 129 * 128, ones(1)),
            ["weight_scale_inv holds 1", "needs 2", "128×128"],
        ),
        (refused([3, 43], NF4, 65, nested(3, 1, 256, 0.0)), ["nested", "must be", "f32"]),
        (refused([100, 100], NESTED, 5000, ones(313)), ["f32", "must be", "nested"]),
        (refused([0, 43], NF4, 0, ones(0)), ["[0, 43]", "must be", "at least 1"]),
    ] {
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
    }
}

#[test]
fn block_sizes_that_do_not_exist_are_refused() {
    let of = |block| WeightFormat::Code4 {
        code: Code4::Nf4,
        block,
        scales: BlockScales::F32,
        state: Dtype::Bf16,
    };
    for block in [0, 16, 48, 8192, 65535] {
        let error = refused([8, 8], of(block), 32, vec![1.0]);
        assert!(error.contains(&block.to_string()) && error.contains("32 to 4096"), "{error}");
    }
    for block in [32, 64, 4096] {
        of(block).check().expect("a size of bitsandbytes");
    }
    let empty = WeightFormat::Fp8 { scales: Fp8Scales::Blocks { rows: 0, cols: 128 } };
    let error = empty.check().expect_err("no rows").to_string();
    assert!(error.contains("[0, 128]"), "{error}");
}

#[test]
fn values_that_are_not_finite_are_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0] {
        let error = refused([2, 64], NF4, 64, vec![1.0, bad]);
        assert!(error.contains("absmax is") && error.contains("(number 1)"), "{error}");
        let error = refused([2, 4], WeightFormat::Int8Rows, 8, vec![bad, 1.0]);
        assert!(error.contains("SCB is") && error.contains("(number 0)"), "{error}");
    }
    let error = refused([4, 8], NESTED, 16, nested(1, 1, 256, f32::NAN));
    assert!(error.contains("nested_offset is NaN"), "{error}");
    // Below 0 by its offset, which bitsandbytes' own files may have.
    let low = QuantizedWeight::new([4, 8], NESTED, vec![0; 16], nested(1, 1, 256, -0.6));
    low.expect("right lengths").check_values().expect("harmless");
    for code in [0x7f, 0xff] {
        let weight = QuantizedWeight::new([1, 2], GRID, vec![0, code], vec![1.0]);
        let error = weight.expect("right lengths").check_values().expect_err("NaN").to_string();
        assert!(error.contains("NaN (number 1)"), "{error}");
    }
}

#[test]
fn weights_that_cannot_be_packed_are_refused() {
    let pack = |values: &[f32], format| {
        let error = QuantizedWeight::quantize(values, [2, 2], format).expect_err("refused");
        (matches!(error, Error::Shape { .. }), error.to_string())
    };
    let (is_shape, error) = pack(&[0.0; 3], NF4);
    assert!(is_shape && error.contains("holds 3") && error.contains("needs 4"), "{error}");
    for bad in [f32::NAN, f32::INFINITY] {
        let (_, error) = pack(&[0.0, 0.0, bad, 0.0], GRID);
        assert!(error.contains("(number 2)") && error.contains("finite"), "{error}");
    }
    let (_, error) = pack(&[0.0, 1e5, 0.0, 0.0], WeightFormat::Int8Rows);
    assert!(error.contains("row 0") && error.contains("f16"), "{error}");
    for (format, offset) in [(NF4, 0.1), (NESTED, f32::NAN)] {
        let made = QuantizedWeight::quantize_with_offset(&[0.0f32; 4], [2, 2], format, offset);
        let error = made.expect_err("refused").to_string();
        assert!(error.contains("offset"), "{error}");
    }
}
