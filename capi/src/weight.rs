//! Packed weights of the C API: their formats, and where they are.

use fused_dora::quant::{BlockScales, Code4, Fp8Scales, NESTED_BLOCK, WeightFormat as Format};
use fused_dora::{
    Dequantize, DoraSpec, ElementType, Error, NestedOffset, NestedScales, NestedTarget, Quantize,
    Result,
};

use crate::arguments::{F32, choose, dtype, read, write};
use crate::types::{DequantizeIo, PackedWeight, QuantizeIo, Weight, WeightFormat};

/// `[O, I]`.
const fn shape(spec: &DoraSpec) -> [usize; 2] {
    [spec.out_features(), spec.in_features()]
}

/// Bytes of codes, scales, and what scales nested scales.
pub(crate) fn lengths(spec: &DoraSpec) -> [usize; 3] {
    let (format, shape) = (spec.weight(), shape(spec));
    format.map_or([0; 3], |format| {
        [format.packed_bytes(shape), format.scales(shape), nested_count(format, shape)]
    })
}

/// What scales nested scales.
const fn nested_count(format: Format, shape: [usize; 2]) -> usize {
    match format.is_nested() {
        true => format.scales(shape).div_ceil(NESTED_BLOCK),
        false => 0,
    }
}

impl WeightFormat {
    /// The packed format; `None` for a dense W.
    pub(crate) fn format(&self) -> Result<Option<Format>> {
        let &Self { kind, block, nested, state, block_rows, block_cols } = self;
        let unused = |fields: &[(&'static str, u32)]| match fields.iter().find(|(_, v)| *v != 0) {
            Some(&(parameter, value)) => Err(Error::InvalidSpec {
                parameter,
                value: value.to_string(),
                requirement: "0 for this kind of weight, which does not have it",
            }),
            None => Ok(()),
        };
        let of_4_bits =
            [("weight.block", block), ("weight.nested", nested), ("weight.state", state)];
        let of_blocks = [("weight.block_rows", block_rows), ("weight.block_cols", block_cols)];
        let code4 = |code| {
            unused(&of_blocks)?;
            let nested = [(0, BlockScales::F32), (1, BlockScales::Nested)];
            Ok(Some(Format::Code4 {
                code,
                block: size("weight.block", block, "a power of two from 32 to 4096")?,
                scales: choose("weight.nested", self.nested, &nested, "0 or 1")?,
                state: dtype("weight.state", state)?,
            }))
        };
        let fp8 = |scales| {
            unused(&of_4_bits)?;
            Ok(Some(Format::Fp8 { scales }))
        };
        match weight_kind(kind)? {
            Weight::Nf4 => code4(Code4::Nf4),
            Weight::Fp4 => code4(Code4::Fp4),
            Weight::Fp8Blocks => {
                let requirement = "at most 65535";
                let rows = size("weight.block_rows", block_rows, requirement)?;
                let cols = size("weight.block_cols", block_cols, requirement)?;
                fp8(Fp8Scales::Blocks { rows, cols })
            }
            kind => {
                unused(&of_blocks)?;
                match kind {
                    Weight::Fp8Tensor => fp8(Fp8Scales::Tensor),
                    Weight::Fp8Rows => fp8(Fp8Scales::Rows),
                    Weight::Int8 => unused(&of_4_bits).map(|()| Some(Format::Int8Rows)),
                    _ => unused(&of_4_bits).map(|()| None),
                }
            }
        }
    }
}

fn weight_kind(kind: u32) -> Result<Weight> {
    let kinds = [
        (Weight::Dense as u32, Weight::Dense),
        (Weight::Nf4 as u32, Weight::Nf4),
        (Weight::Fp4 as u32, Weight::Fp4),
        (Weight::Int8 as u32, Weight::Int8),
        (Weight::Fp8Tensor as u32, Weight::Fp8Tensor),
        (Weight::Fp8Rows as u32, Weight::Fp8Rows),
        (Weight::Fp8Blocks as u32, Weight::Fp8Blocks),
    ];
    let requirement = "a FUSED_DORA_WEIGHT: 0 (dense), 1 (nf4), 2 (fp4), 3 (int8), 4 (fp8_tensor), \
                       5 (fp8_rows) or 6 (fp8_blocks)";
    choose("the kind of the weight", kind, &kinds, requirement)
}

/// A size that a format keeps in 16 bits.
fn size(parameter: &'static str, value: u32, requirement: &'static str) -> Result<u16> {
    let wrong = |_| Error::InvalidSpec { parameter, value: value.to_string(), requirement };
    u16::try_from(value).map_err(wrong)
}

/// The kind that a spec's format has.
const fn kind_of(format: Option<Format>) -> Weight {
    match format {
        Some(Format::Code4 { code: Code4::Nf4, .. }) => Weight::Nf4,
        Some(Format::Code4 { code: Code4::Fp4, .. }) => Weight::Fp4,
        Some(Format::Int8Rows) => Weight::Int8,
        Some(Format::Fp8 { scales: Fp8Scales::Tensor }) => Weight::Fp8Tensor,
        Some(Format::Fp8 { scales: Fp8Scales::Rows }) => Weight::Fp8Rows,
        Some(Format::Fp8 { scales: Fp8Scales::Blocks { .. } }) => Weight::Fp8Blocks,
        // This interface makes no specs of other formats.
        _ => Weight::Dense,
    }
}

/// W as the caller gives it: dense or packed.
///
/// # Safety
/// The addresses other than 0 are of the tensors that the fields name, with the lengths that they say.
pub(crate) unsafe fn weight(
    dense: u64,
    packed: &PackedWeight,
    spec: &DoraSpec,
) -> Result<fused_dora::Weight<'static>> {
    let Some(format) = packed.format_of(spec)? else {
        packed.check_absent()?;
        // SAFETY: the caller vouches for the address.
        return Ok(unsafe { read(&dense, spec.dtype().into()) }.into());
    };
    if dense != 0 {
        let reason = "packed has W's codes: leave the address of a dense W 0";
        return Err(Error::UnexpectedTensor { tensor: "weight", reason });
    }
    // SAFETY: the caller vouches for the addresses.
    unsafe { packed.packed(format, spec) }.map(Into::into)
}

impl Weight {
    fn name(self) -> String {
        match self {
            Self::Dense => "dense",
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
            Self::Int8 => "int8",
            Self::Fp8Tensor => "fp8 with one scale",
            Self::Fp8Rows => "fp8 with a scale per row",
            Self::Fp8Blocks => "fp8 with a scale per block",
        }
        .to_owned()
    }
}

impl PackedWeight {
    /// The spec's format, which the tag must name; `None` for a dense W.
    fn format_of(&self, spec: &DoraSpec) -> Result<Option<Format>> {
        let (kind, needed) = (weight_kind(self.kind)?, spec.weight());
        if kind == kind_of(needed) {
            return Ok(needed);
        }
        let name = needed.map_or("dense".to_owned(), |format| format.to_string());
        Err(Error::WeightFormat { spec: name, given: kind.name() })
    }

    /// Nothing may be packed next to a dense W.
    fn check_absent(&self) -> Result<()> {
        let parts = [
            ("packed.codes", self.codes),
            ("packed.scales", self.scales),
            ("packed.nested_absmax", self.nested_absmax),
            ("packed.nested_map", self.nested_map),
        ];
        match parts.iter().find(|(_, address)| *address != 0) {
            Some(&(tensor, _)) => {
                let reason = "packed.kind is 0, which means a dense W";
                Err(Error::UnexpectedTensor { tensor, reason })
            }
            None => Ok(()),
        }
    }

    /// Checks the lengths.
    fn check(&self, format: Format, spec: &DoraSpec) -> Result<()> {
        let shape = shape(spec);
        let check = |tensor, found: usize, expected: usize| match found == expected {
            true => Ok(()),
            false => {
                let shape = format!("W {shape:?} ({format})");
                Err(Error::Shape { tensor, shape, expected, found })
            }
        };
        check("packed.codes", self.code_bytes, format.packed_bytes(shape))?;
        check("packed.scales", self.scale_count, format.scales(shape))?;
        check("packed.nested_absmax", self.nested_count, nested_count(format, shape))
    }

    fn check_offset(&self) -> Result<()> {
        if self.nested_offset.is_finite() {
            return Ok(());
        }
        Err(Error::InvalidSpec {
            parameter: "packed.nested_offset",
            value: self.nested_offset.to_string(),
            requirement: "a finite number",
        })
    }

    /// # Safety
    /// That of [`weight`].
    unsafe fn packed(
        &self,
        format: Format,
        spec: &DoraSpec,
    ) -> Result<fused_dora::PackedWeight<'static>> {
        self.check(format, spec)?;
        self.check_offset()?;
        let is_nested = self.nested_absmax != 0 || self.nested_map != 0 || format.is_nested();
        let scales = if format.is_nested() { ElementType::U8 } else { F32 };
        // SAFETY: the caller vouches for the addresses.
        unsafe {
            Ok(fused_dora::PackedWeight {
                format,
                elements: read(&self.codes, ElementType::U8),
                scales: read(&self.scales, scales),
                nested: is_nested.then(|| NestedScales {
                    absmax: read(&self.nested_absmax, F32),
                    map: read(&self.nested_map, F32),
                    offset: self.nested_offset,
                }),
            })
        }
    }
}

impl QuantizeIo {
    /// # Safety
    /// The addresses other than 0 are of the tensors that the fields name, with the lengths that they
    /// say.
    pub(crate) unsafe fn arguments(&self, spec: &DoraSpec) -> Result<Quantize<'static>> {
        let packed = &self.packed;
        let format = packed.format_of(spec)?;
        format.map_or(Ok(()), |format| packed.check(format, spec))?;
        let is_nested = format.is_some_and(Format::is_nested);
        if self.offset != 0 && !is_nested {
            let reason = "the format has no nested scales";
            return Err(Error::UnexpectedTensor { tensor: "offset", reason });
        }
        let takes_nested = is_nested || packed.nested_absmax != 0 || packed.nested_map != 0;
        // SAFETY: the caller vouches for the addresses.
        unsafe {
            Ok(Quantize {
                weight: read(&self.weight, spec.dtype().into()),
                elements: write(&packed.codes, ElementType::U8),
                scales: write(&packed.scales, if is_nested { ElementType::U8 } else { F32 }),
                nested: takes_nested.then(|| NestedTarget {
                    absmax: write(&packed.nested_absmax, F32),
                    map: read(&packed.nested_map, F32),
                    offset: match self.offset {
                        0 => NestedOffset::Given(packed.nested_offset),
                        mean => NestedOffset::Mean(write(&mean, F32)),
                    },
                }),
            })
        }
    }
}

impl DequantizeIo {
    /// # Safety
    /// That of [`QuantizeIo::arguments`].
    pub(crate) unsafe fn arguments(&self, spec: &DoraSpec) -> Result<Dequantize<'static>> {
        // SAFETY: the caller vouches for the addresses.
        unsafe {
            Ok(Dequantize {
                weight: weight(0, &self.packed, spec)?,
                target: write(&self.target, spec.dtype().into()),
            })
        }
    }
}
