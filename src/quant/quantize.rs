//! Packing W, bit by bit as bitsandbytes' CUDA kernels do.

use super::code::{FP8_MAX, dynamic_map, fp8_from_f32, nearest_in_map};
use super::weight::check_shape;
use super::{BlockScales, Code4, Fp8Scales, NESTED_BLOCK, QuantizedWeight, Scales, WeightFormat};
use crate::error::{Error, Result};
use crate::params::{common::THREADS, quantize as params};
use crate::tensor::Element;

const WARP: usize = 32;

impl QuantizedWeight<'static> {
    /// Packs a row-major W `[O, I]`.
    ///
    /// [`Kernels::quantize`](crate::Kernels::quantize) does the same on the device, to the bit. 4-bit
    /// codes and int8 are those of bitsandbytes 0.50's CUDA kernels, with 1/x and 127/x rounded to
    /// nearest where those approximate them, and without their flush of subnormal numbers to 0.
    /// A block of zeros has code 0, which is −1 in NF4,
    /// and the scale 0. The offset of nested scales is their mean, summed in float64. fp8 takes the
    /// largest magnitude over 448 as the scale, and 1 where that is 0.
    ///
    /// # Errors
    /// Those of [`WeightFormat::check`]; [`Error::Shape`] if W has another length than its shape;
    /// [`Error::InvalidSpec`] for a W without elements, with NaN or infinity, or, for int8, with
    /// numbers beyond f16, which bitsandbytes rounds W to.
    pub fn quantize<E: Element>(
        weight: &[E],
        shape: [usize; 2],
        format: WeightFormat,
    ) -> Result<Self> {
        Self::quantize_with(weight, shape, format, None)
    }

    /// The same with the offset of [`BlockScales::Nested`] given; its last bits depend on the order in
    /// which a device sums the scales.
    ///
    /// # Errors
    /// Those of [`quantize`](Self::quantize), and [`Error::InvalidSpec`] for an offset that is not
    /// finite, or that the format does not have.
    pub fn quantize_with_offset<E: Element>(
        weight: &[E],
        shape: [usize; 2],
        format: WeightFormat,
        offset: f32,
    ) -> Result<Self> {
        let is_nested = matches!(format, WeightFormat::Code4 { scales: BlockScales::Nested, .. });
        match offset.is_finite() && is_nested {
            true => Self::quantize_with(weight, shape, format, Some(offset)),
            false => Err(Error::InvalidSpec {
                parameter: "the offset of nested scales",
                value: format!("{offset} for {format}"),
                requirement: "finite, and given for BlockScales::Nested only",
            }),
        }
    }

    fn quantize_with<E: Element>(
        weight: &[E],
        shape: [usize; 2],
        format: WeightFormat,
        offset: Option<f32>,
    ) -> Result<Self> {
        format.check()?;
        check_shape(shape)?;
        let expected = shape[0] * shape[1];
        if weight.len() != expected {
            let (tensor, shape, found) = ("weight", format!("W {shape:?}"), weight.len());
            return Err(Error::Shape { tensor, shape, expected, found });
        }
        let values: Vec<f32> = weight.iter().map(|value| value.to_f32()).collect();
        if let Some(place) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::InvalidSpec {
                parameter: "an element of the weight",
                value: format!("{} (number {place})", values[place]),
                requirement: "finite to be packed",
            });
        }
        let (packed, scales) = match format {
            WeightFormat::Code4 { code, block, scales, .. } => {
                let (packed, absmax) = codes(&values, code, usize::from(block));
                let scales = match scales {
                    BlockScales::F32 => Scales::F32(absmax.into()),
                    BlockScales::Nested => nested(&absmax, offset),
                };
                (packed, scales)
            }
            WeightFormat::Int8Rows => int8(&values, shape[1])?,
            WeightFormat::Fp8 { scales } => fp8(&values, shape, scales),
        };
        Self::new(shape, format, packed, scales)
    }
}

fn largest(values: impl IntoIterator<Item = f32>) -> f32 {
    values.into_iter().fold(0.0, |most: f32, value| most.max(value.abs()))
}

/// Codes of 4 bits, two a byte, and the blocks' scales.
fn codes(values: &[f32], code: Code4, block: usize) -> (Vec<u8>, Vec<f32>) {
    let (mut packed, mut absmax) = (Vec::new(), Vec::new());
    for values in values.chunks(block) {
        let most = largest(values.iter().copied());
        // ∞ for a block of zeros: 0·∞ is NaN, which has code 0.
        let factor = 1.0 / most;
        absmax.push(most);
        for pair in values.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0.0);
            packed.push(code.nearest(pair[0] * factor) << 4 | code.nearest(low * factor));
        }
    }
    (packed, absmax)
}

/// The blocks' scales in bytes, a scale per 256 of them, the map and the offset.
fn nested(scales: &[f32], offset: Option<f32>) -> Scales<'static> {
    let offset = offset.unwrap_or_else(|| mean(scales));
    let (map, mut codes, mut absmax) = (dynamic_map(), Vec::new(), Vec::new());
    for block in scales.chunks(NESTED_BLOCK) {
        let rest = block.iter().map(|scale| scale - offset);
        let most = largest(rest.clone());
        let factor = 1.0 / most;
        absmax.push(most);
        codes.extend(rest.map(|value| nearest_in_map(&map, value * factor)));
    }
    Scales::Nested { codes: codes.into(), absmax: absmax.into(), map: map.into(), offset }
}

/// The mean, summed in f64 in the order of the kernel: threads of 256 scales have two each, lanes of a
/// warp add across, then warps in their order, then blocks in theirs.
fn mean(scales: &[f32]) -> f32 {
    const { assert!(NESTED_BLOCK == params::NESTED_BLOCK, "the kernel's blocks") };
    let of_block = |block: &[f32]| {
        let at = |index: usize| block.get(index).map_or(0.0, |&scale| f64::from(scale));
        let mut of_threads: Vec<f64> = (0..THREADS).map(|t| at(t) + at(t + THREADS)).collect();
        let of_warp = |lanes: &mut [f64]| {
            for mask in [16, 8, 4, 2, 1] {
                (0..mask).for_each(|lane| lanes[lane] += lanes[lane + mask]);
            }
            lanes[0]
        };
        of_threads.chunks_mut(WARP).map(of_warp).fold(0.0, |sum, of_warp| sum + of_warp)
    };
    let sum = scales.chunks(NESTED_BLOCK).map(of_block).fold(0.0, |sum: f64, block| sum + block);
    (sum / scales.len() as f64) as f32
}

/// Signed bytes, and the rows' largest magnitudes in f16.
fn int8(values: &[f32], cols: usize) -> Result<(Vec<u8>, Scales<'static>)> {
    let (mut packed, mut most_of_rows) = (Vec::new(), Vec::new());
    for (number, row) in values.chunks(cols).enumerate() {
        let row: Vec<f32> = row.iter().map(|&value| half::f16::from_f32(value).to_f32()).collect();
        let most = largest(row.iter().copied());
        if !most.is_finite() {
            return Err(Error::InvalidSpec {
                parameter: "an element of the weight",
                value: format!("infinite in f16 (row {number})"),
                requirement: "finite in f16, which int8 is made from: take fp8 or a 4-bit format",
            });
        }
        let factor = if most == 0.0 { 0.0 } else { 127.0 / most };
        most_of_rows.push(most);
        packed.extend(row.iter().map(|value| (value * factor).round_ties_even() as i8 as u8));
    }
    Ok((packed, most_of_rows.into()))
}

/// fp8 codes, and their scales.
fn fp8(values: &[f32], [rows, cols]: [usize; 2], scales: Fp8Scales) -> (Vec<u8>, Scales<'static>) {
    let (height, width) = match scales {
        Fp8Scales::Tensor => (rows, cols),
        Fp8Scales::Rows => (1, cols),
        Fp8Scales::Blocks { rows, cols } => (usize::from(rows), usize::from(cols)),
    };
    let across = cols.div_ceil(width);
    let mut factors = vec![0.0f32; rows.div_ceil(height) * across];
    let block = |element: usize| element / cols / height * across + element % cols / width;
    for (element, value) in values.iter().enumerate() {
        let most = &mut factors[block(element)];
        *most = most.max(value.abs());
    }
    for factor in &mut factors {
        *factor = if *factor == 0.0 { 1.0 } else { *factor / FP8_MAX };
    }
    let scaled = values.iter().enumerate().map(|(element, value)| value / factors[block(element)]);
    (scaled.map(fp8_from_f32).collect(), factors.into())
}
