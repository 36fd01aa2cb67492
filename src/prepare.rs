//! `prepare`: norms, gains and packed operands, once per change of A, B or m (kernels/prepare.cu).

use std::sync::Arc;

use cudarc::driver::{
    CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr,
};

use crate::error::{During, Error, Result};
use crate::forward::are_aligned;
use crate::kernels::{Entry, Kernels, THREADS};
use crate::spec::{DoraSpec, Element, Norm, check_len};
use crate::workspace::{Needs, Regions, Split, Workspace};

/// Features whose norm one CTA computes (kStrip).
const STRIP: usize = 64;

/// Elements that a CTA of a plain LoRA's packing takes, about.
const PACK_PER_CTA: usize = 16 * THREADS as usize;

/// The kernel's PrepareParams.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct PrepareParams {
    weight: u64,
    lora_a: u64,
    lora_b: u64,
    magnitude: u64,
    magnitude_out: u64,
    norm: u64,
    gain: u64,
    a: u64,
    sb: u64,
    gsb: u64,
    partials: u64,
    counters: u64,
    scaling: f32,
    in_features: i32,
    out_features: i32,
    rank: i32,
    padded_rank: i32,
    norm_on_input: i32,
    has_norm: i32,
    split_tiles: i32,
    aligned: i32,
    aligned_a: i32,
    aligned_b: i32,
    _padding: i32,
}

// SAFETY: a C struct of plain values, laid out as the kernel declares it.
unsafe impl DeviceRepr for PrepareParams {}

/// `prepare_geometry` of the kernel file.
#[doc(hidden)]
pub const GEOMETRY: [usize; 3] = [STRIP, THREADS as usize, size_of::<PrepareParams>()];

/// What the other ops need of an adapter: c, g and the packed operands, on the device.
///
/// Valid until A, B or m change; then call [`Kernels::prepare`] again.
#[derive(Debug)]
pub struct Prepared<E> {
    spec: DoraSpec,
    ready: bool,
    pub(crate) norm: CudaSlice<f32>,
    pub(crate) gain: CudaSlice<f32>,
    pub(crate) a: CudaSlice<E>,
    pub(crate) sb: CudaSlice<E>,
    gsb: Option<CudaSlice<E>>,
}

impl<E: Element> Prepared<E> {
    /// Allocates the buffers for `spec` on `stream`: R·(I + O) elements of `E` (R·O more for norm
    /// axis output) and twice the magnitude's length in f32.
    ///
    /// # Errors
    /// [`Error::Dtype`] if `E` is not the spec's dtype, or the driver's, e.g. out of memory.
    pub fn new(stream: &Arc<CudaStream>, spec: &DoraSpec) -> Result<Self> {
        spec.check_dtype::<E>()?;
        let during = "allocating prepared operands";
        // Plain LoRA has no norm; an allocation still needs a byte.
        let features = spec.magnitude_len().max(1);
        let rank = spec.padded_rank();
        // SAFETY: every buffer is written by prepare before any op reads it (see `ready`).
        let packed = |rows: usize| unsafe { stream.alloc::<E>(rows.saturating_mul(rank)) };
        let gsb = match spec.norm() {
            Norm::Output => Some(packed(spec.out_features()).during(during)?),
            Norm::None | Norm::Input => None,
        };
        Ok(Self {
            spec: *spec,
            ready: false,
            // SAFETY: as above.
            norm: unsafe { stream.alloc(features) }.during(during)?,
            // SAFETY: as above.
            gain: unsafe { stream.alloc(features) }.during(during)?,
            a: packed(spec.in_features()).during(during)?,
            sb: packed(spec.out_features()).during(during)?,
            gsb,
        })
    }

    /// c, the norm of V along the axis: `[I]` or `[O]`; meaningless for plain LoRA.
    pub fn norm(&self) -> CudaView<'_, f32> {
        self.norm.as_view()
    }

    /// g = m/c (0 where c = 0): `[I]` or `[O]`; meaningless for plain LoRA.
    pub fn gain(&self) -> CudaView<'_, f32> {
        self.gain.as_view()
    }

    /// What dY is contracted with for P: g∘(s·B), or s·B where the output has no gain.
    pub(crate) fn gsb(&self) -> &CudaSlice<E> {
        self.gsb.as_ref().unwrap_or(&self.sb)
    }

    pub(crate) fn check(&self, kernels: &Kernels, spec: &DoraSpec) -> Result<()> {
        spec.check_dtype::<E>()?;
        kernels.check_buffer(&self.a)?;
        if self.spec != *spec {
            return Err(Error::NotPrepared { problem: "were made for another spec" });
        }
        if !self.ready {
            return Err(Error::NotPrepared { problem: "have not been computed yet" });
        }
        Ok(())
    }
}

/// Where the magnitude m comes from.
#[derive(Debug)]
pub enum Magnitude<'a> {
    /// Plain LoRA has none.
    None,
    /// The trained m, `[I]` or `[O]`.
    Given(CudaView<'a, f32>),
    /// A fresh adapter: m = c is written here, and g is exactly 1.
    Init(CudaViewMut<'a, f32>),
}

/// Inputs of [`Kernels::prepare`], row-major and contiguous.
#[derive(Debug)]
pub struct Prepare<'a, E> {
    /// W `[O, I]`, frozen.
    pub weight: CudaView<'a, E>,
    /// A `[r, I]`, f32 master.
    pub lora_a: CudaView<'a, f32>,
    /// B `[O, r]`, f32 master.
    pub lora_b: CudaView<'a, f32>,
    /// m `[I]` or `[O]`, f32 master.
    pub magnitude: Magnitude<'a>,
}

impl Kernels {
    /// Computes c = ‖W + s·B·A‖ and g = m/c in f32 and packs A, s·B (and g∘s·B) for the tensor
    /// cores: one launch, to be repeated after each change of A, B or m.
    ///
    /// c has a relative error below 1e-5, and about 1e-7 where nothing cancels, whatever the dtype
    /// and however tensor cores round: features of which V = W + s·B·A leaves less than a quarter
    /// of W are summed again in twice the precision of f32, which takes longer.
    /// Formula: DoRA (arXiv:2402.09353) eq. 5.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::Dtype`], [`Error::Shape`], [`Error::NotPrepared`] if
    /// `prepared` was made for another spec, [`Error::MissingTensor`] or
    /// [`Error::UnexpectedTensor`] for the magnitude, [`Error::WorkspaceTooSmall`],
    /// [`Error::DeviceLimit`], [`Error::ContextMismatch`]. Afterwards [`Error::Driver`].
    pub fn prepare<E: Element>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        workspace: &mut Workspace,
        prepared: &mut Prepared<E>,
        mut inputs: Prepare<'_, E>,
    ) -> Result<()> {
        self.check_stream(stream)?;
        spec.check_dtype::<E>()?;
        if prepared.spec != *spec {
            return Err(Error::NotPrepared { problem: "were made for another spec" });
        }
        check(spec, &inputs)?;
        self.check_buffer(&inputs.weight)?;
        self.check_buffer(&inputs.lora_a)?;
        self.check_buffer(&inputs.lora_b)?;
        match &inputs.magnitude {
            Magnitude::None => {}
            Magnitude::Given(m) => self.check_buffer(m)?,
            Magnitude::Init(m) => self.check_buffer(m)?,
        }
        self.check_buffer(&prepared.a)?;
        self.check_buffer(workspace.buffer())?;
        let plan = Plan::new(spec, self.sm_count());
        let grid = [plan.strips, plan.split.count, 1];
        self.check_grid(Entry::Prepare, E::DTYPE, grid)?;
        let scratch = workspace.reserve(stream, plan.needs(), 0, None)?;

        let (weight, _guard) = inputs.weight.device_ptr(stream);
        let (lora_a, _guard) = inputs.lora_a.device_ptr(stream);
        let (lora_b, _guard) = inputs.lora_b.device_ptr(stream);
        let ((magnitude, _given), (magnitude_out, _init)) = match &mut inputs.magnitude {
            Magnitude::None => ((0, None), (0, None)),
            Magnitude::Given(m) => (optional(m.device_ptr(stream)), (0, None)),
            Magnitude::Init(m) => ((0, None), optional(m.device_ptr_mut(stream))),
        };
        let (norm, _guard) = prepared.norm.device_ptr_mut(stream);
        let (gain, _guard) = prepared.gain.device_ptr_mut(stream);
        let (a, _guard) = prepared.a.device_ptr_mut(stream);
        let (sb, _guard) = prepared.sb.device_ptr_mut(stream);
        let (gsb, _gsb) = match &mut prepared.gsb {
            Some(gsb) => optional(gsb.device_ptr_mut(stream)),
            None => (0, None),
        };
        let params = PrepareParams {
            weight,
            lora_a,
            lora_b,
            magnitude,
            magnitude_out,
            norm,
            gain,
            a,
            sb,
            gsb,
            partials: scratch.regions,
            counters: scratch.counters,
            scaling: spec.scaling(),
            in_features: spec.in_features() as i32,
            out_features: spec.out_features() as i32,
            rank: spec.rank() as i32,
            padded_rank: spec.padded_rank() as i32,
            norm_on_input: i32::from(spec.norm() == Norm::Input),
            has_norm: i32::from(spec.norm() != Norm::None),
            split_tiles: (plan.split.len / STRIP) as i32,
            aligned: i32::from(are_aligned::<E>(&[spec.in_features()], &[weight])),
            aligned_a: i32::from(are_aligned::<f32>(&[spec.in_features()], &[lora_a])),
            aligned_b: i32::from(are_aligned::<f32>(&[spec.rank()], &[lora_b])),
            _padding: 0,
        };
        prepared.ready = false;
        // SAFETY: the struct is the kernel's; each buffer was checked against the shape that the
        // kernel accesses, and its guard orders this launch on the stream.
        unsafe {
            self.launch(stream, Entry::Prepare, E::DTYPE, grid, &params)?;
        }
        prepared.ready = true;
        Ok(())
    }
}

/// A device pointer and the guard that orders its use, where the tensor may be absent.
pub(crate) fn optional<G>((pointer, guard): (u64, G)) -> (u64, Option<G>) {
    (pointer, Some(guard))
}

fn check<E>(spec: &DoraSpec, inputs: &Prepare<'_, E>) -> Result<()> {
    let (rows, cols) = (("O", spec.out_features()), ("I", spec.in_features()));
    let rank = ("r", spec.rank());
    check_len("weight", inputs.weight.len(), rows, cols)?;
    check_len("lora_A", inputs.lora_a.len(), rank, cols)?;
    check_len("lora_B", inputs.lora_b.len(), rows, rank)?;
    let found = match (&inputs.magnitude, spec.norm()) {
        (Magnitude::None, Norm::None) => return Ok(()),
        (Magnitude::None, _) => {
            let reason = "DoRA scales each feature by m/c; use Magnitude::Init for a new adapter";
            return Err(Error::MissingTensor { tensor: "magnitude", reason });
        }
        (_, Norm::None) => {
            let reason = "plain LoRA has no magnitude";
            return Err(Error::UnexpectedTensor { tensor: "magnitude", reason });
        }
        (Magnitude::Given(m), _) => m.len(),
        (Magnitude::Init(m), _) => m.len(),
    };
    check_magnitude_len("magnitude", spec, found)
}

pub(crate) fn check_magnitude_len(
    tensor: &'static str,
    spec: &DoraSpec,
    found: usize,
) -> Result<()> {
    let axis = if spec.norm() == Norm::Input { "I" } else { "O" };
    check_len(tensor, found, ("1", 1), (axis, spec.magnitude_len()))
}

/// The launch for one spec.
struct Plan {
    features: usize,
    strips: usize,
    split: Split,
}

impl Plan {
    fn new(spec: &DoraSpec, sm_count: usize) -> Self {
        let (features, summed) = match spec.norm() {
            Norm::Input => (spec.in_features(), spec.out_features()),
            Norm::Output => (spec.out_features(), spec.in_features()),
            Norm::None => {
                let elements = (spec.in_features() + spec.out_features()) * spec.padded_rank();
                let strips = elements.div_ceil(PACK_PER_CTA).clamp(1, 2 * sm_count.max(1));
                return Self {
                    features: 0,
                    strips,
                    split: Split { len: 0, count: 1, capacity: 1 },
                };
            }
        };
        let strips = features.div_ceil(STRIP);
        Self { features, strips, split: Split::new(summed, STRIP, strips, sm_count) }
    }

    fn needs(&self) -> Needs {
        let mut regions = Regions::default();
        regions.take(self.split.capacity.saturating_mul(self.features), size_of::<f32>());
        Needs { counters: self.strips, bytes: regions.bytes() }
    }
}

pub(crate) fn needs(spec: &DoraSpec, sm_count: usize) -> Needs {
    Plan::new(spec, sm_count).needs()
}
