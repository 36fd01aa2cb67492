//! `merge` and `unmerge`: the adapted weight W', and back from it (kernels/merge/sm80.cu).

use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaView};

use super::prepared::Prepared;
use crate::device::{Kernel, Kernels, Launch, Needs, Regions, Workspace};
use crate::error::{During, Error, Result};
use crate::params::common::TILE;
use crate::params::merge::{MergeParams, SUMS};
use crate::spec::{DoraSpec, Norm};
use crate::tensor::{
    ElementType, Placed, PlacedWeight, Read, Tensors, Weight, Write, check_len, matrix, vector,
};

const MERGE: Kernel = Kernel::new("merge", "merge");
const UNMERGE: Kernel = Kernel::new("merge", "unmerge");

/// CTAs per multiprocessor.
const CTAS_PER_SM: usize = 4;

/// What a merge made of the adapter's change to the weight.
///
/// With Δ = W' − W as the adapter has it, and E the error that rounding W' to its dtype made, both
/// over all elements. A weight of 16 bits loses most of a small Δ: see [`kept`](Self::kept).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MergeReport {
    /// ‖Δ‖².
    pub change_squared: f64,
    /// ‖E‖².
    pub error_squared: f64,
    /// ⟨E, Δ⟩.
    pub error_along_change: f64,
}

impl MergeReport {
    /// Elements of the buffer that a merge writes its report to.
    pub const LEN: usize = SUMS;

    /// Reads a report back, when the merge has run.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Driver`].
    pub fn read(stream: &Arc<CudaStream>, buffer: &CudaView<'_, f64>) -> Result<Self> {
        check_len("report", buffer.len(), vector(("sums", SUMS)))?;
        let during = "reading a merge's report";
        let mut sums = [0.0; SUMS];
        stream.memcpy_dtoh(buffer, &mut sums).during(during)?;
        stream.synchronize().during(during)?;
        let [change_squared, error_squared, error_along_change] = sums;
        Ok(Self { change_squared, error_squared, error_along_change })
    }

    /// The share of the change that is left, ⟨Δ + E, Δ⟩/‖Δ‖²: 1 where nothing is lost, 0 where W'
    /// is W. 1 if there is no change.
    pub fn kept(&self) -> f64 {
        if self.change_squared == 0.0 {
            return 1.0;
        }
        1.0 + self.error_along_change / self.change_squared
    }

    /// ‖E‖/‖Δ‖: how far the change is off. 0 if there is neither.
    pub fn relative_error(&self) -> f64 {
        if self.error_squared == 0.0 {
            return 0.0;
        }
        (self.error_squared / self.change_squared).sqrt()
    }
}

/// Inputs and outputs of [`Kernels::merge`], row-major and contiguous.
#[derive(Debug)]
pub struct Merge<'a> {
    /// W `[O, I]`, as given to `prepare`.
    pub weight: Weight<'a>,
    /// A `[r, I]`, f32, as given to `prepare`.
    pub lora_a: Read<'a>,
    /// B `[O, r]`, f32, as given to `prepare`.
    pub lora_b: Read<'a>,
    /// W' `[O, I]`, written; bf16, f16 or f32.
    pub merged: Write<'a>,
    /// `[MergeReport::LEN]`, f64, written: what [`MergeReport::read`] reads.
    pub report: Option<Write<'a>>,
}

/// Inputs and outputs of [`Kernels::unmerge`], row-major and contiguous.
#[derive(Debug)]
pub struct Unmerge<'a> {
    /// W' `[O, I]`, as [`Kernels::merge`] wrote it.
    pub merged: Read<'a>,
    /// A `[r, I]`, f32, as given to the merge.
    pub lora_a: Read<'a>,
    /// B `[O, r]`, f32, as given to the merge.
    pub lora_b: Read<'a>,
    /// W `[O, I]`, written.
    pub weight: Write<'a>,
}

/// A weight that another one replaces where it lies, row-major and contiguous.
#[derive(Debug)]
pub struct InPlace<'a> {
    /// W `[O, I]`, which W' replaces, or the other way round.
    pub weight: Write<'a>,
    /// A `[r, I]`, f32, as given to `prepare`.
    pub lora_a: Read<'a>,
    /// B `[O, r]`, f32, as given to `prepare`.
    pub lora_b: Read<'a>,
}

impl Kernels {
    /// The adapted weight W' = V∘g, for export: then a plain linear layer computes what the adapted
    /// one does. One launch, which reads W once and writes W' once, in any dtype.
    ///
    /// Computed in f32 as W + Δ, Δ = (g − 1)∘W + g∘(s·B·A), and rounded once;
    /// [`crate::reference::merge`] has the bound on the error. g is that of `prepared`: keep it for
    /// [`Kernels::unmerge`], since W' does not determine c. Formula: DoRA (arXiv:2402.09353)
    /// eq. 5.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::Dtype`], [`Error::Shape`], [`Error::NotPrepared`],
    /// [`Error::WorkspaceTooSmall`], [`Error::ContextMismatch`]. Afterwards [`Error::Driver`].
    pub fn merge(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared,
        workspace: &mut Workspace,
        mut io: Merge<'_>,
    ) -> Result<()> {
        let mut t = Tensors::new(self.context(), stream, spec.dtype())?;
        let shape = matrix(spec.outputs(), spec.inputs());
        let merged = io.merged.element();
        let (source, target) = (
            t.weight_placed(&io.weight, spec)?,
            t.write_as(merged, "merged", &mut io.merged, shape)?,
        );
        let report = report(&mut t, &mut io.report)?;
        let weights = Weights { kernel: MERGE, source, target, merged, report };
        self.convert(stream, spec, prepared, workspace, (&io.lora_a, &io.lora_b), t, weights)
    }

    /// [`Kernels::merge`] over W, in its own dtype.
    ///
    /// # Errors
    /// Those of [`Kernels::merge`].
    pub fn merge_in_place<'a>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared,
        workspace: &mut Workspace,
        mut io: InPlace<'a>,
        report_to: Option<Write<'a>>,
    ) -> Result<()> {
        let mut report_to = report_to;
        let mut t = Tensors::new(self.context(), stream, spec.dtype())?;
        let merged = spec.dtype().into();
        let shape = matrix(spec.outputs(), spec.inputs());
        let weight = t.write_as(merged, "weight", &mut io.weight, shape)?;
        let report = report(&mut t, &mut report_to)?;
        let weights =
            Weights { kernel: MERGE, source: weight.into(), target: weight, merged, report };
        self.convert(stream, spec, prepared, workspace, (&io.lora_a, &io.lora_b), t, weights)
    }

    /// The weight W = W'/g − s·B·A that [`Kernels::merge`] made W' of. One launch, after the gains
    /// have been read back: not for the hot path.
    ///
    /// Exact arithmetic on W' as it was rounded, and one rounding to W's dtype: an element is off
    /// by the two roundings, that of W' magnified by 1/|g|, as [`crate::reference::unmerge`] bounds
    /// it. Where W' is f32 and W is not, that gives W's own bits back, except for elements that are
    /// small compared with |W'/g| or |s·B·A|.
    ///
    /// `prepared`, A and B must be as they were when W' was made; in another process,
    /// [`Prepared::for_unmerge`] of its gains will do.
    ///
    /// # Errors
    /// [`Error::LostFeature`] if a gain is 0 or not finite: W' holds nothing of W there; and those
    /// of [`Kernels::merge`]. Nothing has been written then.
    pub fn unmerge(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared,
        workspace: &mut Workspace,
        mut io: Unmerge<'_>,
    ) -> Result<()> {
        let mut t = Tensors::new(self.context(), stream, spec.dtype())?;
        let shape = matrix(spec.outputs(), spec.inputs());
        let merged = io.merged.element();
        let (source, target) = (
            t.read_as(merged, "merged", &io.merged, shape)?,
            t.write_as(spec.dtype().into(), "weight", &mut io.weight, shape)?,
        );
        let weights = Weights { kernel: UNMERGE, source: source.into(), target, merged, report: 0 };
        self.convert(stream, spec, prepared, workspace, (&io.lora_a, &io.lora_b), t, weights)
    }

    /// [`Kernels::unmerge`] over W', in W's dtype.
    ///
    /// # Errors
    /// Those of [`Kernels::unmerge`].
    pub fn unmerge_in_place(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared,
        workspace: &mut Workspace,
        mut io: InPlace<'_>,
    ) -> Result<()> {
        let mut t = Tensors::new(self.context(), stream, spec.dtype())?;
        let merged = spec.dtype().into();
        let shape = matrix(spec.outputs(), spec.inputs());
        let weight = t.write_as(merged, "weight", &mut io.weight, shape)?;
        let weights =
            Weights { kernel: UNMERGE, source: weight.into(), target: weight, merged, report: 0 };
        self.convert(stream, spec, prepared, workspace, (&io.lora_a, &io.lora_b), t, weights)
    }

    /// What all of them have in common.
    #[expect(clippy::too_many_arguments, reason = "one call of four ops, all of it needed")]
    fn convert<'t>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &'t Prepared,
        workspace: &'t mut Workspace,
        (lora_a, lora_b): (&'t Read<'_>, &'t Read<'_>),
        mut t: Tensors<'t>,
        weights: Weights,
    ) -> Result<()> {
        let Weights { kernel, source, target, merged, report } = weights;
        let merged_dtype = merged.dtype().ok_or(Error::InvalidSpec {
            parameter: "merged_dtype",
            value: merged.to_string(),
            requirement: "bf16, f16 or f32",
        })?;
        if source.data.elements == target.address && merged_dtype != spec.dtype() {
            return Err(Error::InvalidSpec {
                parameter: "merged_dtype",
                value: merged.to_string(),
                requirement: "W's own dtype if W' replaces W",
            });
        }
        if spec.weight().is_some() && (kernel == UNMERGE || source.data.elements == target.address)
        {
            return Err(Error::InvalidSpec {
                parameter: "the weight",
                value: spec.weight().map_or_else(String::new, |format| format.to_string()),
                requirement: "dense for a merge in place and for an unmerge: V does not land on the \
                              codes of a packed W, so merge into another tensor, and take the packed \
                              W again instead of an unmerge",
            });
        }
        let gain = prepared.read_gains(&mut t, spec)?.gain;
        let launch = Launch::new(kernel, spec.variant(), [ctas(spec, self.sm_count()), 1, 1]);
        self.check_launch(&launch)?;
        let mut scratch = workspace.scratch(&mut t, needs(spec, self.sm_count()), 0)?;
        let (lora_a, lora_b) = factors(&mut t, spec, lora_a, lora_b)?;
        if kernel == UNMERGE {
            check_gains(&t, spec, gain)?;
        }
        let params = MergeParams {
            weight: source.data,
            target: target.address,
            lora_a: lora_a.address,
            lora_b: lora_b.address,
            gain,
            report,
            partials: scratch.region(0),
            counter: scratch.counters(1),
            scaling: spec.scaling(),
            in_features: spec.in_features() as i32,
            out_features: spec.out_features() as i32,
            rank: spec.rank() as i32,
            gain_on_input: i32::from(spec.norm() == Norm::Input),
            merged_dtype: merged_dtype as i32,
            aligned: (source.starts_at_quads && target.starts_at_quads).into(),
            aligned_a: lora_a.aligned.into(),
            aligned_b: lora_b.aligned.into(),
            ..MergeParams::default()
        };
        // SAFETY: the struct is the kernel's, and each address in it was checked. One thread reads
        // and then writes an element of source and target, which may be one buffer.
        unsafe { self.launch(stream, &launch, &params) }
    }
}

/// What differs between the merges and the unmerges.
struct Weights {
    kernel: Kernel,
    source: PlacedWeight,
    target: Placed,
    /// The type of W'.
    merged: ElementType,
    report: u64,
}

/// A and B, checked.
pub(super) fn factors<'t>(
    t: &mut Tensors<'t>,
    spec: &DoraSpec,
    lora_a: &'t Read<'_>,
    lora_b: &'t Read<'_>,
) -> Result<(Placed, Placed)> {
    let (f32, ranks) = (ElementType::F32, spec.ranks());
    Ok((
        t.read_as(f32, "lora_A", lora_a, matrix(ranks, spec.inputs()))?,
        t.read_as(f32, "lora_B", lora_b, matrix(spec.outputs(), ranks))?,
    ))
}

/// Whether what a merge writes is of the right shape and in the kernels' context: for a layer that
/// has to prepare its adapter before the merge.
pub(crate) fn check_outputs(
    kernels: &Kernels,
    stream: &CudaStream,
    spec: &DoraSpec,
    merged: &mut Write<'_>,
    report_to: &mut Option<Write<'_>>,
) -> Result<()> {
    let mut t = Tensors::new(kernels.context(), stream, spec.dtype())?;
    let (element, shape) = (merged.element(), matrix(spec.outputs(), spec.inputs()));
    t.write_as(element, "merged", merged, shape)?;
    report(&mut t, report_to).map(drop)
}

fn report<'t>(t: &mut Tensors<'t>, report: &'t mut Option<Write<'_>>) -> Result<u64> {
    t.write_as_if_given(ElementType::F64, "report", report, vector(("sums", SUMS)))
}

/// Whether W' determines W, for all features. Reads the gains back.
fn check_gains(t: &Tensors<'_>, spec: &DoraSpec, gain: u64) -> Result<()> {
    let axis = match spec.norm() {
        Norm::None => return Ok(()),
        Norm::Input => "input",
        Norm::Output => "output",
    };
    let mut gains = vec![0.0f32; spec.magnitude_len()];
    // SAFETY: the prepared operands have as many gains at the address.
    unsafe { t.download(&mut gains, gain) }.during("reading the gains")?;
    match gains.iter().position(|gain| *gain == 0.0 || !gain.is_finite()) {
        Some(feature) => Err(Error::LostFeature { axis, feature, gain: gains[feature] }),
        None => Ok(()),
    }
}

fn ctas(spec: &DoraSpec, sm_count: usize) -> usize {
    let tiles = spec.in_features().div_ceil(TILE) * spec.out_features().div_ceil(TILE);
    tiles.min(CTAS_PER_SM * sm_count.max(1))
}

/// A partial sum of each kind per CTA.
pub(super) fn needs(spec: &DoraSpec, sm_count: usize) -> Needs {
    let mut regions = Regions::default();
    regions.take(ctas(spec, sm_count) * SUMS, size_of::<f64>());
    Needs { counters: 1, bytes: regions.bytes() }
}
