//! `quantize`: W packed on the device, and `dequantize`: W back (kernels/quantize/sm80.cu).

use std::sync::Arc;

use cudarc::driver::CudaStream;

use crate::device::{Kernel, Kernels, Launch, Needs, Regions, Workspace};
use crate::error::{Error, Result};
use crate::params::common::{Packing, THREADS};
use crate::params::quantize::{DequantizeParams, NESTED_BLOCK, QuantizeParams};
use crate::quant::{Code4, Fp8Scales, WeightFormat};
use crate::spec::DoraSpec;
use crate::tensor::{ElementType, Need, Read, Tensors, Weight, Write, check_given, matrix, vector};

const CODE4: Kernel = Kernel::new("quantize", "quantize_code4");
const MEAN: Kernel = Kernel::new("quantize", "quantize_mean");
const SCALES: Kernel = Kernel::new("quantize", "quantize_scales");
const LARGEST: Kernel = Kernel::new("quantize", "quantize_largest");
const REGIONS: Kernel = Kernel::new("quantize", "quantize_regions");
const DEQUANTIZE: Kernel = Kernel::new("quantize", "dequantize");

/// CTAs per multiprocessor, where each takes several of what there is.
const CTAS_PER_SM: usize = 8;

/// Warps of a CTA, each with a block of W.
const WARPS: usize = THREADS / 32;

/// Input and outputs of [`Kernels::quantize`], row-major and contiguous.
#[derive(Debug)]
pub struct Quantize<'a> {
    /// W `[O, I]`, of the spec's dtype. NaN and infinity make codes of no meaning.
    pub weight: Read<'a>,
    /// The packed elements, u8, written: [`WeightFormat::packed_bytes`] of them.
    pub elements: Write<'a>,
    /// The scales, written: [`WeightFormat::scales`] numbers, f32; with nested scales u8.
    pub scales: Write<'a>,
    /// What nested scales are made of.
    pub nested: Option<NestedTarget<'a>>,
}

/// Where [`Kernels::quantize`] writes what makes nested scales.
#[derive(Debug)]
pub struct NestedTarget<'a> {
    /// `nested_absmax`, f32, written: one per 256 blocks.
    pub absmax: Write<'a>,
    /// `nested_quant_map`, f32 `[256]`, read: [`quant::dynamic_map`](crate::quant::dynamic_map).
    pub map: Read<'a>,
    /// `nested_offset`.
    pub offset: NestedOffset<'a>,
}

/// What is taken from nested scales before they are packed.
#[derive(Debug)]
pub enum NestedOffset<'a> {
    /// A number, such as that of a file.
    Given(f32),
    /// The mean of all scales, f32 `[1]`, written: read it back for
    /// [`NestedScales::offset`](crate::NestedScales::offset).
    Mean(Write<'a>),
}

/// Input and output of [`Kernels::dequantize`], row-major and contiguous.
#[derive(Debug)]
pub struct Dequantize<'a> {
    /// The packed W.
    pub weight: Weight<'a>,
    /// W `[O, I]`, of the spec's dtype, written.
    pub target: Write<'a>,
}

impl Kernels {
    /// Packs a W of `spec`'s features and dtype in the format of `spec`, in one launch: two for fp8 with
    /// one scale and for nested scales with an offset that is given, three with their mean. Nothing else in
    /// `spec` counts.
    ///
    /// The codes and scales are bit for bit those of
    /// [`QuantizedWeight::quantize`](crate::quant::QuantizedWeight::quantize), on every device: all
    /// divisions are rounded to nearest. The op does not look for NaN and infinity in W, nor, for int8,
    /// for numbers beyond f16, all of which the host refuses.
    ///
    /// ```
    /// use fused_dora::quant::{QuantizedWeight, Scales, WeightFormat};
    /// use fused_dora::{Dequantize, DoraLinear, Dtype, Kernels, PackedWeight, Quantize, Workspace, open_device};
    ///
    /// # cuda_emulator::client::select(cuda_emulator::client::Choice::from_env()?)?;
    /// let kernels = Kernels::load(&open_device(0)?)?;
    /// let stream = kernels.context().default_stream();
    /// let (shape, format) = ([3, 40], WeightFormat::Int8Rows);
    /// let spec = DoraLinear::base_spec(shape[1], shape[0], Dtype::F32)?.with_weight(format)?;
    /// let mut workspace = Workspace::new(&kernels, &stream, &[spec], 0)?;
    /// let values: Vec<f32> = (0..120).map(|i| (i as f32).sin()).collect();
    /// let weight = stream.clone_htod(&values)?;
    /// let mut elements = stream.alloc_zeros::<u8>(format.packed_bytes(shape))?;
    /// let mut scales = stream.alloc_zeros::<f32>(format.scales(shape))?;
    /// let io = Quantize {
    ///     weight: (&weight).into(),
    ///     elements: (&mut elements).into(),
    ///     scales: (&mut scales).into(),
    ///     nested: None,
    /// };
    /// kernels.quantize(&stream, &spec, &mut workspace, io)?;
    /// let on_host = QuantizedWeight::quantize(&values, shape, format)?;
    /// assert_eq!(stream.clone_dtoh(&elements)?, on_host.packed());
    /// assert_eq!(Scales::from(stream.clone_dtoh(&scales)?), *on_host.scales());
    ///
    /// // And back. Other ops read the packed W itself.
    /// let (elements, scales) = ((&elements).into(), (&scales).into());
    /// let weight = PackedWeight { format, elements, scales, nested: None }.into();
    /// let mut unpacked = stream.alloc_zeros::<f32>(120)?;
    /// let target = (&mut unpacked).into();
    /// kernels.dequantize(&stream, &spec, Dequantize { weight, target })?;
    /// assert_eq!(stream.clone_dtoh(&unpacked)?, on_host.dequantize::<f32>());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Before anything is launched: [`Error::InvalidSpec`] for a spec without a packed format,
    /// [`Error::Dtype`], [`Error::Shape`], [`Error::MissingTensor`] and [`Error::UnexpectedTensor`] for
    /// nested scales, [`Error::WorkspaceTooSmall`], [`Error::ContextMismatch`],
    /// [`Error::DeviceLimit`]. Afterwards [`Error::Driver`].
    pub fn quantize(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        workspace: &mut Workspace,
        mut io: Quantize<'_>,
    ) -> Result<()> {
        let mut t = Tensors::new(self.context(), stream, spec.dtype())?;
        let format = packed_format(spec)?;
        let plan = Plan::new(spec, format, self.sm_count());
        let mut scratch = workspace.scratch(&mut t, plan.needs(), 0)?;
        let (f32, u8) = (ElementType::F32, ElementType::U8);
        let shape = [spec.out_features(), spec.in_features()];
        let mut params = QuantizeParams {
            source: t.read("weight", &io.weight, matrix(spec.outputs(), spec.inputs()))?,
            codes: t
                .write_as(
                    u8,
                    "the packed weight",
                    &mut io.elements,
                    vector(("bytes", format.packed_bytes(shape))),
                )?
                .address,
            sums: scratch.region(plan.sums),
            largest: scratch.region(plan.largest),
            counter: scratch.counters(1),
            scale_count: plan.scales as i64,
            rows: spec.out_features() as i32,
            cols: spec.in_features() as i32,
            ..QuantizeParams::default()
        };
        let element = if format.is_nested() { u8 } else { f32 };
        let to = vector(("scales", plan.scales));
        let scales = t.write_as(element, format.scales_name(), &mut io.scales, to)?.address;
        let need = match format.is_nested() {
            true => Need::Required("the format has nested scales"),
            false => Need::Excluded("the format has no nested scales"),
        };
        check_given("nested_absmax", io.nested.is_some(), need)?;
        let mut launches = Vec::new();
        let launch = |kernel, ctas| Launch::new(kernel, spec.variant(), [ctas, 1, 1]);
        params.scales = scales;
        match format {
            WeightFormat::Code4 { code, block, .. } => {
                params.packing = match code {
                    Code4::Nf4 => Packing::Nf4,
                    Code4::Fp4 => Packing::Fp4,
                };
                params.block_shift = block.trailing_zeros() as i32;
                launches.push(launch(CODE4, plan.scales.div_ceil(WARPS).min(plan.ctas)));
            }
            WeightFormat::Int8Rows => {
                params.packing = Packing::Int8;
                (params.region_rows, params.region_cols) = (1, params.cols);
                launches.push(launch(REGIONS, plan.scales.min(plan.ctas)));
            }
            WeightFormat::Fp8 { scales: of } => {
                params.packing = Packing::Fp8;
                (params.region_rows, params.region_cols) = (1, params.cols);
                let mut regions = plan.scales;
                match of {
                    Fp8Scales::Tensor => {
                        params.one_scale = 1;
                        regions = spec.out_features();
                        launches.push(launch(LARGEST, plan.ctas));
                    }
                    Fp8Scales::Rows => {}
                    Fp8Scales::Blocks { rows, cols } => {
                        // A block that is larger than W ends with it.
                        params.region_rows = i32::from(rows).min(params.rows);
                        params.region_cols = i32::from(cols).min(params.cols);
                    }
                }
                launches.push(launch(REGIONS, regions.min(plan.ctas)));
            }
        }
        if let Some(nested) = &mut io.nested {
            let outer = vector(("scales", plan.nested));
            let absmax = t.write_as(f32, "nested_absmax", &mut nested.absmax, outer)?;
            let map = t.read_as(f32, "nested_quant_map", &nested.map, vector(("codes", 256)))?;
            (params.nested_absmax, params.map) = (absmax.address, map.address);
            // Before they are packed, scales are in the workspace.
            (params.nested_codes, params.scales) = (scales, scratch.region(plan.unpacked));
            match &mut nested.offset {
                NestedOffset::Given(offset) if offset.is_finite() => params.offset = *offset,
                NestedOffset::Given(offset) => {
                    return Err(Error::InvalidSpec {
                        parameter: "the offset of nested scales",
                        value: offset.to_string(),
                        requirement: "a finite number",
                    });
                }
                NestedOffset::Mean(mean) => {
                    let one = vector(("1", 1));
                    params.mean = t.write_as(f32, "nested_offset", mean, one)?.address;
                    launches.push(launch(MEAN, plan.nested));
                }
            }
            launches.push(launch(SCALES, plan.nested));
        }
        launches.iter().try_for_each(|launch| self.check_launch(launch))?;
        for launch in &launches {
            // SAFETY: the struct is the kernel's, each address in it was checked, and the workspace has
            // what the plan needs.
            unsafe { self.launch(stream, launch, &params) }?;
        }
        Ok(())
    }

    /// Unpacks a W of `spec`'s features and format to its dtype, in one launch: what all other ops decode
    /// where they read it. Bit for bit
    /// [`QuantizedWeight::dequantize`](crate::quant::QuantizedWeight::dequantize).
    ///
    /// # Errors
    /// Before anything is launched: [`Error::InvalidSpec`] for a spec without a packed format,
    /// [`Error::WeightFormat`], [`Error::Dtype`], [`Error::Shape`], [`Error::ContextMismatch`],
    /// [`Error::DeviceLimit`]. Afterwards [`Error::Driver`].
    pub fn dequantize(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        mut io: Dequantize<'_>,
    ) -> Result<()> {
        let mut t = Tensors::new(self.context(), stream, spec.dtype())?;
        packed_format(spec)?;
        let weight = t.weight(&io.weight, spec)?;
        let shape = matrix(spec.outputs(), spec.inputs());
        let params = DequantizeParams {
            weight,
            target: t.write("target", &mut io.target, shape)?,
            rows: spec.out_features() as i32,
            cols: spec.in_features() as i32,
            aligned: t.aligned(),
            ..DequantizeParams::default()
        };
        let ctas = CTAS_PER_SM * self.sm_count().max(1);
        let of_cta = THREADS * 16 / ElementType::from(spec.dtype()).bytes();
        let across = spec.in_features().div_ceil(of_cta).min(ctas);
        let down = spec.out_features().min((ctas / across).max(1));
        let launch = Launch::new(DEQUANTIZE, spec.variant(), [down, across, 1]);
        // SAFETY: the struct is the kernel's, and each address in it was checked.
        unsafe { self.launch(stream, &launch, &params) }
    }
}

fn packed_format(spec: &DoraSpec) -> Result<WeightFormat> {
    spec.weight().ok_or(Error::InvalidSpec {
        parameter: "the format of the spec's weight",
        value: "dense".to_owned(),
        requirement: "a packed one: make the spec with DoraSpec::with_weight",
    })
}

/// The scratch memory and the numbers of one spec.
struct Plan {
    /// CTAs at most, of kernels that take what there is in turns.
    ctas: usize,
    scales: usize,
    /// Blocks of 256 nested scales.
    nested: usize,
    unpacked: usize,
    sums: usize,
    largest: usize,
    bytes: usize,
}

impl Plan {
    fn new(spec: &DoraSpec, format: WeightFormat, sm_count: usize) -> Self {
        let scales = format.scales([spec.out_features(), spec.in_features()]);
        let kept = if format.is_nested() { scales } else { 0 };
        let nested = kept.div_ceil(NESTED_BLOCK);
        let ctas = CTAS_PER_SM * sm_count.max(1);
        let mut regions = Regions::default();
        let unpacked = regions.take(kept, size_of::<f32>());
        let sums = regions.take(nested, size_of::<f64>());
        let largest = regions.take(ctas, size_of::<f32>());
        Self { ctas, scales, nested, unpacked, sums, largest, bytes: regions.bytes() }
    }

    const fn needs(&self) -> Needs {
        Needs { counters: 1, bytes: self.bytes }
    }
}

/// Nothing for a dense W.
pub(super) fn needs(spec: &DoraSpec, sm_count: usize) -> Needs {
    let plan = spec.weight().map(|format| Plan::new(spec, format, sm_count));
    plan.map_or_else(Needs::default, |plan| plan.needs())
}
