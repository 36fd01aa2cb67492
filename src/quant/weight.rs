//! A packed W on the host.

use std::borrow::Cow;

use super::code::fp8_to_f32;
use super::{BlockScales, Fp8Scales, NESTED_BLOCK, WeightFormat};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::tensor::Element;

/// f32(1/127), which bitsandbytes multiplies by.
const ONE_127TH: f32 = 0.007_874_016;

/// A packed W `[O, I]` on the host, with borrowed or own bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedWeight<'a> {
    shape: [usize; 2],
    format: WeightFormat,
    packed: Cow<'a, [u8]>,
    scales: Scales<'a>,
}

/// The scales of a packed W, as files have them.
#[derive(Debug, Clone, PartialEq)]
pub enum Scales<'a> {
    /// f32: the largest magnitudes of blocks (`absmax`) or rows (`SCB`), or fp8's factors.
    F32(Cow<'a, [f32]>),
    /// [`BlockScales::Nested`]: block b has the scale `map[codes[b]]·absmax[b / 256] + offset`.
    Nested {
        /// A place in the map per block.
        codes: Cow<'a, [u8]>,
        /// A scale per 256 blocks.
        absmax: Cow<'a, [f32]>,
        /// 256 numbers.
        map: Cow<'a, [f32]>,
        /// What is added to all of them.
        offset: f32,
    },
}

impl<'a> From<&'a [f32]> for Scales<'a> {
    fn from(scales: &'a [f32]) -> Self {
        Self::F32(scales.into())
    }
}

impl From<Vec<f32>> for Scales<'_> {
    fn from(scales: Vec<f32>) -> Self {
        Self::F32(scales.into())
    }
}

impl<'a> QuantizedWeight<'a> {
    /// A packed W of its parts.
    ///
    /// # Errors
    /// Those of [`WeightFormat::check`]; [`Error::InvalidSpec`] for a W without elements, and for
    /// scales that are nested where the format's are not, or the other way round; [`Error::Shape`]
    /// where a part has another length than the shape and the format need.
    pub fn new(
        shape: [usize; 2],
        format: WeightFormat,
        packed: impl Into<Cow<'a, [u8]>>,
        scales: impl Into<Scales<'a>>,
    ) -> Result<Self> {
        let (packed, scales) = (packed.into(), scales.into());
        format.check()?;
        check_shape(shape)?;
        let is_nested = matches!(format, WeightFormat::Code4 { scales: BlockScales::Nested, .. });
        let check = |tensor: &'static str, found: usize, expected: usize| match found == expected {
            true => Ok(()),
            false => Err(Error::Shape {
                tensor,
                shape: format!("W {shape:?} ({format})"),
                expected,
                found,
            }),
        };
        check("the packed weight", packed.len(), format.packed_bytes(shape))?;
        let count = format.scales(shape);
        match &scales {
            Scales::F32(scales) if !is_nested => check(format.scales_name(), scales.len(), count)?,
            Scales::Nested { codes, absmax, map, .. } if is_nested => {
                check("absmax", codes.len(), count)?;
                check("nested_absmax", absmax.len(), count.div_ceil(NESTED_BLOCK))?;
                check("nested_quant_map", map.len(), 256)?;
            }
            _ => {
                return Err(Error::InvalidSpec {
                    parameter: "the scales of a packed weight",
                    value: if is_nested { "f32" } else { "nested" }.to_owned(),
                    requirement: "those that its format says: nested for BlockScales::Nested, and \
                                  f32 for all other formats",
                });
            }
        }
        Ok(Self { shape, format, packed, scales })
    }

    /// The same with bytes of its own.
    pub fn into_owned(self) -> QuantizedWeight<'static> {
        let Self { shape, format, packed, scales } = self;
        let scales = match scales {
            Scales::F32(scales) => Scales::F32(scales.into_owned().into()),
            Scales::Nested { codes, absmax, map, offset } => Scales::Nested {
                codes: codes.into_owned().into(),
                absmax: absmax.into_owned().into(),
                map: map.into_owned().into(),
                offset,
            },
        };
        QuantizedWeight { shape, format, packed: packed.into_owned().into(), scales }
    }

    /// `[O, I]`.
    pub const fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// How it is stored.
    pub const fn format(&self) -> WeightFormat {
        self.format
    }

    /// The packed elements.
    pub fn packed(&self) -> &[u8] {
        &self.packed
    }

    /// The scales.
    pub const fn scales(&self) -> &Scales<'a> {
        &self.scales
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::F32(scales) => size_of_val(&**scales),
            Scales::Nested { codes, absmax, map, offset } => {
                codes.len() + size_of_val(&**absmax) + size_of_val(&**map) + size_of_val(offset)
            }
        };
        self.packed.len() + scales
    }

    /// The scale by its number: of a block, a row, or W.
    pub fn scale(&self, number: usize) -> f32 {
        match &self.scales {
            Scales::F32(scales) => scales[number],
            // A product and a sum, as bitsandbytes has them: not fused.
            Scales::Nested { codes, absmax, map, offset } => {
                map[usize::from(codes[number])] * absmax[number / NESTED_BLOCK] + offset
            }
        }
    }

    /// Refuses numbers that make W infinite or NaN. Kernels do not look for them.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] with the first one and its place: a scale that is NaN or infinite, a
    /// scale below 0 that is stored as such, an fp8 code of NaN. A nested scale may come out a little
    /// below 0.
    pub fn check_values(&self) -> Result<()> {
        let wrong = |parameter, place: usize, value: f32, requirement| {
            Err(Error::InvalidSpec {
                parameter,
                value: format!("{value} (number {place})"),
                requirement,
            })
        };
        let is_bad = |value: &f32| !value.is_finite() || *value < 0.0;
        let what = "finite and not below 0: the file is damaged";
        match &self.scales {
            Scales::F32(scales) => {
                if let Some(place) = scales.iter().position(is_bad) {
                    return wrong(self.format.scales_name(), place, scales[place], what);
                }
            }
            Scales::Nested { absmax, map, offset, .. } => {
                if let Some(place) = absmax.iter().position(is_bad) {
                    return wrong("nested_absmax", place, absmax[place], what);
                }
                if let Some(place) = map.iter().position(|value| !value.is_finite()) {
                    return wrong("nested_quant_map", place, map[place], "finite");
                }
                if !offset.is_finite() {
                    return wrong("nested_offset", 0, *offset, "finite");
                }
            }
        }
        let nan = |code: &u8| code & 0x7f == 0x7f;
        match self.format {
            WeightFormat::Fp8 { .. } => match self.packed.iter().position(nan) {
                Some(place) => {
                    let needed = "a number: codes 0x7f and 0xff are NaN";
                    wrong("an fp8 element of the weight", place, f32::NAN, needed)
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// W in row-major order: round_T(round_S(exact)), where exact is the format's formula in f32,
    /// S is [`WeightFormat::state`] and T the type of the elements.
    pub fn dequantize<E: Element>(&self) -> Vec<E> {
        self.rows::<E>().flatten().collect()
    }

    /// The rows of [`dequantize`](Self::dequantize), one at a time.
    pub fn rows<E: Element>(&self) -> impl Iterator<Item = Vec<E>> + '_ {
        let mut values = vec![0.0; self.shape[1]];
        (0..self.shape[0]).map(move |row| {
            self.row(row, &mut values);
            values.iter().map(|value| E::from_f32(*value)).collect()
        })
    }

    /// One row of W, rounded to S.
    ///
    /// # Panics
    /// If there is no such row, or the target has another length than a row.
    pub fn row(&self, row: usize, target: &mut [f32]) {
        let [_, cols] = self.shape;
        assert_eq!(target.len(), cols, "a row has {cols} elements");
        let first = row * cols;
        match self.format {
            WeightFormat::Code4 { code, block, state, .. } => {
                let (table, block) = (code.table(), usize::from(block));
                let mut known = (usize::MAX, 0.0);
                for (element, value) in (first..).zip(target) {
                    if element / block != known.0 {
                        known = (element / block, self.scale(element / block));
                    }
                    let pair = self.packed[element / 2];
                    let code = if element % 2 == 0 { pair >> 4 } else { pair & 15 };
                    *value = rounded(table[usize::from(code)] * known.1, state);
                }
            }
            WeightFormat::Int8Rows => {
                let scale = self.scale(row);
                for (value, q) in target.iter_mut().zip(&self.packed[first..]) {
                    *value = f32::from(*q as i8) * scale * ONE_127TH;
                }
            }
            WeightFormat::Fp8 { scales } => {
                let (start, width) = match scales {
                    Fp8Scales::Tensor => (0, cols),
                    Fp8Scales::Rows => (row, cols),
                    Fp8Scales::Blocks { rows, cols: width } => {
                        let width = usize::from(width);
                        (row / usize::from(rows) * cols.div_ceil(width), width)
                    }
                };
                let packed = self.packed[first..first + cols].chunks(width);
                for (number, (codes, values)) in packed.zip(target.chunks_mut(width)).enumerate() {
                    let scale = self.scale(start + number);
                    for (value, code) in values.iter_mut().zip(codes) {
                        *value = fp8_to_f32(*code) * scale;
                    }
                }
            }
        }
    }
}

/// Refuses a W without elements.
pub(super) fn check_shape(shape: [usize; 2]) -> Result<()> {
    match shape.contains(&0) || shape[0].checked_mul(shape[1]).is_none() {
        true => Err(Error::InvalidSpec {
            parameter: "the shape of a packed weight",
            value: format!("{shape:?}"),
            requirement: "[O, I], each at least 1",
        }),
        false => Ok(()),
    }
}

/// A number rounded to a type, as f32.
fn rounded(value: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::Bf16 => half::bf16::from_f32(value).to_f32(),
        Dtype::F16 => half::f16::from_f32(value).to_f32(),
        Dtype::F32 => value,
    }
}
