//! `merge` and `unmerge`: the adapted weight W', and back from it (kernels/merge/sm80.cu).

use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, result};

use crate::error::{During, Error, Result};
use crate::forward::are_aligned;
use crate::kernels::{Entry, Kernels};
use crate::params::common::TILE;
use crate::params::merge::{MergeParams, SUMS};
use crate::prepare::{Prepared, optional};
use crate::raw;
use crate::spec::{DoraSpec, Dtype, Element, Norm, check_len};
use crate::workspace::{Needs, Regions, Workspace};

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
        check_len("report", buffer.len(), ("1", 1), ("sums", SUMS))?;
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

/// Inputs and outputs of [`Kernels::merge`], row-major and contiguous. `E` is W's type, `F` that of
/// W'.
#[derive(Debug)]
pub struct Merge<'a, E, F> {
    /// W `[O, I]`, as given to `prepare`.
    pub weight: CudaView<'a, E>,
    /// A `[r, I]`, as given to `prepare`.
    pub lora_a: CudaView<'a, f32>,
    /// B `[O, r]`, as given to `prepare`.
    pub lora_b: CudaView<'a, f32>,
    /// W' `[O, I]`, written.
    pub merged: CudaViewMut<'a, F>,
    /// `[MergeReport::LEN]`, written: what [`MergeReport::read`] reads.
    pub report: Option<CudaViewMut<'a, f64>>,
}

/// Inputs and outputs of [`Kernels::unmerge`], row-major and contiguous. `E` is W's type, `F` that
/// of W'.
#[derive(Debug)]
pub struct Unmerge<'a, E, F> {
    /// W' `[O, I]`, as [`Kernels::merge`] wrote it.
    pub merged: CudaView<'a, F>,
    /// A `[r, I]`, as given to the merge.
    pub lora_a: CudaView<'a, f32>,
    /// B `[O, r]`, as given to the merge.
    pub lora_b: CudaView<'a, f32>,
    /// W `[O, I]`, written.
    pub weight: CudaViewMut<'a, E>,
}

/// A weight that another one replaces where it lies, row-major and contiguous.
#[derive(Debug)]
pub struct InPlace<'a, E> {
    /// W `[O, I]`, which W' replaces, or the other way round.
    pub weight: CudaViewMut<'a, E>,
    /// A `[r, I]`, as given to `prepare`.
    pub lora_a: CudaView<'a, f32>,
    /// B `[O, r]`, as given to `prepare`.
    pub lora_b: CudaView<'a, f32>,
}

impl Kernels {
    /// The adapted weight W' = V∘g, for export: then a plain linear layer computes what the adapted
    /// one does. One launch, which reads W once and writes W' once, in any dtype.
    ///
    /// Computed in f32 as W + Δ, Δ = (g − 1)∘W + g∘(s·B·A), and rounded once;
    /// [`crate::reference::merge`] has the bound on the error. g is that of `prepared`: keep it for
    /// [`Kernels::unmerge`], since W' does not tell what c was. Formula: DoRA (arXiv:2402.09353)
    /// eq. 5.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::Dtype`], [`Error::Shape`], [`Error::NotPrepared`],
    /// [`Error::WorkspaceTooSmall`], [`Error::ContextMismatch`]. Afterwards [`Error::Driver`].
    pub fn merge<E: Element, F: Element>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared<E>,
        workspace: &mut Workspace,
        mut io: Merge<'_, E, F>,
    ) -> Result<()> {
        self.check_stream(stream)?;
        check_weight("weight", spec, io.weight.len())?;
        self.check_buffer(&io.weight)?;
        check_outputs(self, spec, ("merged", &io.merged), io.report.as_ref())?;
        let (source, _guard) = io.weight.device_ptr(stream);
        let (target, _guard) = io.merged.device_ptr_mut(stream);
        let conversion = Conversion {
            entry: Entry::Merge,
            source,
            target,
            merged: F::DTYPE,
            lora_a: io.lora_a,
            lora_b: io.lora_b,
            report: io.report,
        };
        self.convert(stream, spec, prepared, workspace, conversion)
    }

    /// [`Kernels::merge`] over W, in its own dtype.
    ///
    /// # Errors
    /// Those of [`Kernels::merge`].
    pub fn merge_in_place<E: Element>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared<E>,
        workspace: &mut Workspace,
        mut io: InPlace<'_, E>,
        report: Option<CudaViewMut<'_, f64>>,
    ) -> Result<()> {
        self.check_stream(stream)?;
        check_outputs(self, spec, ("weight", &io.weight), report.as_ref())?;
        let (weight, _guard) = io.weight.device_ptr_mut(stream);
        let conversion = Conversion {
            entry: Entry::Merge,
            source: weight,
            target: weight,
            merged: E::DTYPE,
            lora_a: io.lora_a,
            lora_b: io.lora_b,
            report,
        };
        self.convert(stream, spec, prepared, workspace, conversion)
    }

    /// The weight W = W'/g − s·B·A that [`Kernels::merge`] made W' of. One launch, after the gains
    /// have been read back: not for the hot path.
    ///
    /// Exact arithmetic on W' as it was rounded, and one rounding to W's dtype: an element is off
    /// by the two roundings, that of W' magnified by 1/|g|, as [`crate::reference::unmerge`] bounds
    /// it. Where W' is f32 and W is not, that gives W's own bits back, but for elements that are
    /// small beside |W'/g| or |s·B·A|.
    ///
    /// `prepared`, A and B must be as they were when W' was made; in another process,
    /// [`Prepared::for_unmerge`] of its gains will do.
    ///
    /// # Errors
    /// [`Error::LostFeature`] if a gain is 0 or not finite: W' holds nothing of W there; and those
    /// of [`Kernels::merge`]. Nothing has been written then.
    pub fn unmerge<E: Element, F: Element>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared<E>,
        workspace: &mut Workspace,
        mut io: Unmerge<'_, E, F>,
    ) -> Result<()> {
        self.check_stream(stream)?;
        check_weight("weight", spec, io.weight.len())?;
        check_weight("merged", spec, io.merged.len())?;
        self.check_buffer(&io.weight)?;
        self.check_buffer(&io.merged)?;
        let (source, _guard) = io.merged.device_ptr(stream);
        let (target, _guard) = io.weight.device_ptr_mut(stream);
        let conversion = Conversion {
            entry: Entry::Unmerge,
            source,
            target,
            merged: F::DTYPE,
            lora_a: io.lora_a,
            lora_b: io.lora_b,
            report: None,
        };
        self.convert(stream, spec, prepared, workspace, conversion)
    }

    /// [`Kernels::unmerge`] over W', in W's dtype.
    ///
    /// # Errors
    /// Those of [`Kernels::unmerge`].
    pub fn unmerge_in_place<E: Element>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared<E>,
        workspace: &mut Workspace,
        mut io: InPlace<'_, E>,
    ) -> Result<()> {
        self.check_stream(stream)?;
        check_weight("weight", spec, io.weight.len())?;
        self.check_buffer(&io.weight)?;
        let (weight, _guard) = io.weight.device_ptr_mut(stream);
        let conversion = Conversion {
            entry: Entry::Unmerge,
            source: weight,
            target: weight,
            merged: E::DTYPE,
            lora_a: io.lora_a,
            lora_b: io.lora_b,
            report: None,
        };
        self.convert(stream, spec, prepared, workspace, conversion)
    }

    fn convert<E: Element>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared<E>,
        workspace: &mut Workspace,
        mut conversion: Conversion<'_>,
    ) -> Result<()> {
        prepared.check_gain(self, spec)?;
        check_factors(self, spec, &conversion.lora_a, &conversion.lora_b)?;
        self.check_buffer(workspace.buffer())?;
        workspace.size().check(needs(spec, self.sm_count()), 0)?;
        let (scratch, _guard) = workspace.lend(stream);
        let (prepared, _guards) = prepared.lend(stream);
        let (lora_a, _guard) = conversion.lora_a.device_ptr(stream);
        let (lora_b, _guard) = conversion.lora_b.device_ptr(stream);
        let (report, _report) = match &mut conversion.report {
            Some(report) => optional(report.device_ptr_mut(stream)),
            None => (0, None),
        };
        let Conversion { entry, source, target, merged, .. } = conversion;
        let addresses = Addresses { entry, source, target, merged, lora_a, lora_b, report };
        // SAFETY: each buffer was checked against its shape, and its guard, here or in the caller,
        // orders the launch on the stream.
        unsafe { self.convert_raw(stream, spec, &prepared, &scratch, &addresses) }
    }

    /// [`Kernels::merge`] on device addresses, also in place: `weight` and `merged` may be one.
    ///
    /// # Safety
    /// As for [`Kernels::forward_raw`], with what [`raw::Merge`] says; of `prepared`, the gain
    /// alone is read.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::MissingTensor`], [`Error::Misaligned`],
    /// [`Error::InvalidSpec`] for another dtype in place, [`Error::WorkspaceTooSmall`],
    /// [`Error::DeviceLimit`], [`Error::ContextMismatch`]. Afterwards [`Error::Driver`].
    pub unsafe fn merge_raw(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &raw::Prepared,
        workspace: &raw::Workspace,
        io: &raw::Merge,
    ) -> Result<()> {
        let addresses = Addresses {
            entry: Entry::Merge,
            source: io.weight,
            target: io.merged,
            merged: io.merged_dtype,
            lora_a: io.lora_a,
            lora_b: io.lora_b,
            report: io.report,
        };
        // SAFETY: passed on to the caller.
        unsafe { self.convert_raw(stream, spec, prepared, workspace, &addresses) }
    }

    /// [`Kernels::unmerge`] on device addresses, also in place: `merged` and `weight` may be one.
    /// The gains are read back first, which waits for the stream.
    ///
    /// # Safety
    /// As for [`Kernels::merge_raw`], with what [`raw::Unmerge`] says.
    ///
    /// # Errors
    /// [`Error::LostFeature`], and those of [`Kernels::merge_raw`].
    pub unsafe fn unmerge_raw(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &raw::Prepared,
        workspace: &raw::Workspace,
        io: &raw::Unmerge,
    ) -> Result<()> {
        let addresses = Addresses {
            entry: Entry::Unmerge,
            source: io.merged,
            target: io.weight,
            merged: io.merged_dtype,
            lora_a: io.lora_a,
            lora_b: io.lora_b,
            report: 0,
        };
        // SAFETY: passed on to the caller.
        unsafe { self.convert_raw(stream, spec, prepared, workspace, &addresses) }
    }

    /// # Safety
    /// That of the op.
    unsafe fn convert_raw(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &raw::Prepared,
        workspace: &raw::Workspace,
        io: &Addresses,
    ) -> Result<()> {
        self.check_stream(stream)?;
        let [source_dtype, target_dtype] = io.dtypes(spec);
        io.check(spec)?;
        let gain = prepared.present_gain(spec)?;
        let grid = [ctas(spec, self.sm_count()), 1, 1];
        self.check_grid(io.entry, spec.dtype(), grid)?;
        let scratch = workspace.parts(needs(spec, self.sm_count()), 0)?;
        if io.entry == Entry::Unmerge {
            // SAFETY: passed on to the caller.
            unsafe { check_gains(stream, spec, gain) }?;
        }
        let aligned = starts_at_quads(spec.in_features(), io.source, source_dtype)
            && starts_at_quads(spec.in_features(), io.target, target_dtype);
        let params = MergeParams {
            source: io.source,
            target: io.target,
            lora_a: io.lora_a,
            lora_b: io.lora_b,
            gain,
            report: io.report,
            partials: scratch.regions,
            counter: scratch.counters,
            scaling: spec.scaling(),
            in_features: spec.in_features() as i32,
            out_features: spec.out_features() as i32,
            rank: spec.rank() as i32,
            gain_on_input: i32::from(spec.norm() == Norm::Input),
            merged_dtype: io.merged as i32,
            aligned: i32::from(aligned),
            aligned_a: i32::from(are_aligned(Dtype::F32, &[spec.in_features()], &[io.lora_a])),
            aligned_b: i32::from(are_aligned(Dtype::F32, &[spec.rank()], &[io.lora_b])),
            ..Default::default()
        };
        // SAFETY: the struct is the kernel's; the caller vouches for the addresses. Each element of
        // source and target is read and then written by one thread, so that they may be one buffer.
        unsafe { self.launch(stream, io.entry, spec.dtype(), grid, &params) }
    }
}

/// What the merges and the unmerges have in common.
struct Conversion<'a> {
    entry: Entry,
    source: u64,
    target: u64,
    /// The dtype of W'.
    merged: Dtype,
    lora_a: CudaView<'a, f32>,
    lora_b: CudaView<'a, f32>,
    report: Option<CudaViewMut<'a, f64>>,
}

/// The same, by address.
struct Addresses {
    entry: Entry,
    source: u64,
    target: u64,
    /// The dtype of W'.
    merged: Dtype,
    lora_a: u64,
    lora_b: u64,
    report: u64,
}

impl Addresses {
    /// The dtypes of source and target.
    fn dtypes(&self, spec: &DoraSpec) -> [Dtype; 2] {
        match self.entry {
            Entry::Unmerge => [self.merged, spec.dtype()],
            _ => [spec.dtype(), self.merged],
        }
    }

    /// Checks what can be told from the numbers.
    fn check(&self, spec: &DoraSpec) -> Result<()> {
        let names = match self.entry {
            Entry::Unmerge => ["merged", "weight"],
            _ => ["weight", "merged"],
        };
        let dtypes = self.dtypes(spec);
        raw::present(names[0], self.source, dtypes[0].bytes())?;
        raw::present(names[1], self.target, dtypes[1].bytes())?;
        if self.source == self.target && dtypes[0] != dtypes[1] {
            return Err(Error::InvalidSpec {
                parameter: "merged_dtype",
                value: self.merged.to_string(),
                requirement: "W's own where W' takes the place of W",
            });
        }
        if spec.rank() > 0 {
            raw::present("lora_A", self.lora_a, size_of::<f32>())?;
            raw::present("lora_B", self.lora_b, size_of::<f32>())?;
        }
        raw::absent_or("report", self.report, size_of::<f64>())
    }
}

/// Whether what a merge writes is of the right shape and in the kernels' context.
pub(crate) fn check_outputs<F>(
    kernels: &Kernels,
    spec: &DoraSpec,
    (tensor, merged): (&'static str, &CudaViewMut<'_, F>),
    report: Option<&CudaViewMut<'_, f64>>,
) -> Result<()> {
    check_weight(tensor, spec, merged.len())?;
    kernels.check_buffer(merged)?;
    let Some(report) = report else { return Ok(()) };
    kernels.check_buffer(report)?;
    check_len("report", report.len(), ("1", 1), ("sums", SUMS))
}

/// Whether A and B are of the layer's shape and in the kernels' context.
pub(crate) fn check_factors(
    kernels: &Kernels,
    spec: &DoraSpec,
    lora_a: &CudaView<'_, f32>,
    lora_b: &CudaView<'_, f32>,
) -> Result<()> {
    kernels.check_buffer(lora_a)?;
    kernels.check_buffer(lora_b)?;
    let rank = ("r", spec.rank());
    check_len("lora_A", lora_a.len(), rank, ("I", spec.in_features()))?;
    check_len("lora_B", lora_b.len(), ("O", spec.out_features()), rank)
}

/// Whether all rows of such a matrix start at multiples of four elements.
pub(crate) fn starts_at_quads(row_length: usize, pointer: u64, dtype: Dtype) -> bool {
    row_length.is_multiple_of(4) && pointer.is_multiple_of(4 * dtype.bytes() as u64)
}

pub(crate) fn check_weight(tensor: &'static str, spec: &DoraSpec, found: usize) -> Result<()> {
    check_len(tensor, found, ("O", spec.out_features()), ("I", spec.in_features()))
}

/// Whether W can be told from W', for all features.
///
/// # Safety
/// `gain` is the address of as many gains as the spec has, ordered on the stream.
unsafe fn check_gains(stream: &CudaStream, spec: &DoraSpec, gain: u64) -> Result<()> {
    let axis = match spec.norm() {
        Norm::None => return Ok(()),
        Norm::Input => "input",
        Norm::Output => "output",
    };
    let during = "reading the gains";
    let mut gains = vec![0.0f32; spec.magnitude_len()];
    stream.context().bind_to_thread().during(during)?;
    // SAFETY: the caller vouches for the address; the vector lives until the copy is through.
    unsafe { result::memcpy_dtoh_async(&mut gains, gain, stream.cu_stream()) }.during(during)?;
    stream.synchronize().during(during)?;
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
pub(crate) fn needs(spec: &DoraSpec, sm_count: usize) -> Needs {
    let mut regions = Regions::default();
    regions.take(ctas(spec, sm_count) * SUMS, size_of::<f64>());
    Needs { counters: 1, bytes: regions.bytes() }
}
