//! `prepare`: norms, gains and packed operands, once per change of A, B or m (kernels/prepare/sm80.cu).

use std::sync::Arc;

use cudarc::driver::{
    CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, SyncOnDrop,
};

use crate::error::{During, Error, Result};
use crate::forward::are_aligned;
use crate::kernels::{Entry, Kernels, THREADS};
use crate::params::prepare::{Part, PrepareParams, STRIP};
use crate::raw::{self, absent_or, present};
use crate::spec::{DoraSpec, Dtype, Element, Norm, check_len};
use crate::workspace::{Needs, Regions, Split, Workspace};

/// Elements that a CTA of a plain LoRA's packing takes, about.
const PACK_PER_CTA: usize = 16 * THREADS as usize;

/// What prepared operands hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing yet.
    Empty,
    /// The gains alone, for an unmerge.
    Gains,
    /// Packed operands, and squared norms where norms and gains will be.
    Squares,
    /// All of it.
    Ready,
}

/// What the other ops need of an adapter: c, g and the packed operands, on the device.
///
/// Valid until A, B or m change; then call [`Kernels::prepare`] again.
#[derive(Debug)]
pub struct Prepared<E> {
    spec: DoraSpec,
    state: State,
    pub(crate) norm: CudaSlice<f32>,
    pub(crate) gain: CudaSlice<f32>,
    pub(crate) a: CudaSlice<E>,
    pub(crate) sb: CudaSlice<E>,
    gsb: Option<CudaSlice<E>>,
    bias: CudaSlice<E>,
    has_bias: bool,
}

impl<E: Element> Prepared<E> {
    /// Allocates the buffers for `spec` on `stream`: R·(I + O) + O elements of `E` (R·O more for
    /// norm axis output) and twice the magnitude's length in f32.
    ///
    /// # Errors
    /// [`Error::Dtype`] if `E` is not the spec's dtype, or the driver's, e.g. out of memory.
    pub fn new(stream: &Arc<CudaStream>, spec: &DoraSpec) -> Result<Self> {
        spec.check_dtype::<E>()?;
        let during = "allocating prepared operands";
        // Plain LoRA has no norm, rank 0 nothing packed; an allocation still needs a byte.
        let features = spec.magnitude_len().max(1);
        let rank = spec.padded_rank();
        // SAFETY: every buffer is written by prepare before any op reads it (see `state`).
        let packed = |rows: usize| unsafe { stream.alloc::<E>(rows.saturating_mul(rank).max(1)) };
        let gsb = match spec.norm() {
            Norm::Output => Some(packed(spec.out_features()).during(during)?),
            Norm::None | Norm::Input => None,
        };
        Ok(Self {
            spec: *spec,
            state: State::Empty,
            // SAFETY: as above.
            norm: unsafe { stream.alloc(features) }.during(during)?,
            // SAFETY: as above.
            gain: unsafe { stream.alloc(features) }.during(during)?,
            a: packed(spec.in_features()).during(during)?,
            sb: packed(spec.out_features()).during(during)?,
            gsb,
            // SAFETY: as above.
            bias: unsafe { stream.alloc(spec.out_features()) }.during(during)?,
            has_bias: false,
        })
    }

    /// Operands for [`Kernels::unmerge`] alone, with the gains `[I]` or `[O]` that were read back
    /// from [`Prepared::gain`] when W' was made; none for plain LoRA.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Dtype`], or the driver's.
    pub fn for_unmerge(stream: &Arc<CudaStream>, spec: &DoraSpec, gain: &[f32]) -> Result<Self> {
        let features = spec.magnitude_len();
        check_len("gain", gain.len(), ("1", 1), ("features", features))?;
        let mut prepared = Self::new(stream, spec)?;
        if features > 0 {
            stream.memcpy_htod(gain, &mut prepared.gain).during("uploading gains")?;
        }
        prepared.state = State::Gains;
        Ok(prepared)
    }

    /// c, the norm of V along the axis: `[I]` or `[O]`; meaningless for plain LoRA.
    pub fn norm(&self) -> CudaView<'_, f32> {
        self.norm.as_view()
    }

    /// g = m/c (0 where c = 0): `[I]` or `[O]`; meaningless for plain LoRA.
    pub fn gain(&self) -> CudaView<'_, f32> {
        self.gain.as_view()
    }

    /// The trained bias `[O]`, rounded to `E`: what the forward and the backward take as their
    /// bias. `None` unless the last [`Kernels::prepare`] was given one.
    pub fn bias(&self) -> Option<CudaView<'_, E>> {
        (self.state == State::Ready && self.has_bias).then(|| self.bias.as_view())
    }

    /// Σ V² of a shard, `[I]` or `[O]`, after a [`Kernels::prepare`] with [`Magnitude::Sharded`]:
    /// to be replaced by its sum over the shards ([`AllReduce`](crate::AllReduce)) before
    /// [`Kernels::finish_prepare`]. `None` at any other time.
    pub fn squared_norms_mut(&mut self) -> Option<CudaViewMut<'_, f32>> {
        (self.state == State::Squares).then(|| self.norm.as_view_mut())
    }

    /// The addresses, to be read, and the guards that order their use on the stream.
    pub(crate) fn lend<'a>(
        &'a self,
        stream: &'a CudaStream,
    ) -> (raw::Prepared, [Option<SyncOnDrop<'a>>; 5]) {
        let has_norm = self.spec.norm() != Norm::None;
        let present = |there: bool, (pointer, guard): (u64, SyncOnDrop<'a>)| match there {
            true => (pointer, Some(guard)),
            false => (0, None),
        };
        let has_rank = self.spec.rank() > 0;
        let (norm, norm_guard) = present(has_norm, self.norm.device_ptr(stream));
        let (gain, gain_guard) = present(has_norm, self.gain.device_ptr(stream));
        let (a, a_guard) = present(has_rank, self.a.device_ptr(stream));
        let (sb, sb_guard) = present(has_rank, self.sb.device_ptr(stream));
        let (gsb, gsb_guard) = match &self.gsb {
            Some(gsb) => present(has_rank, gsb.device_ptr(stream)),
            None => (0, None),
        };
        let prepared = raw::Prepared { norm, gain, a, sb, gsb, bias: 0 };
        (prepared, [norm_guard, gain_guard, a_guard, sb_guard, gsb_guard])
    }

    /// Whether all operands are there.
    pub(crate) fn check(&self, kernels: &Kernels, spec: &DoraSpec) -> Result<()> {
        self.check_gain(kernels, spec)?;
        match self.state {
            State::Gains => Err(Error::NotPrepared { problem: "have nothing but their gains" }),
            _ => Ok(()),
        }
    }

    /// Whether the gains are there.
    pub(crate) fn check_gain(&self, kernels: &Kernels, spec: &DoraSpec) -> Result<()> {
        spec.check_dtype::<E>()?;
        kernels.check_buffer(&self.a)?;
        if self.spec != *spec {
            return Err(Error::NotPrepared { problem: "were made for another spec" });
        }
        match self.state {
            State::Gains | State::Ready => Ok(()),
            State::Empty => Err(Error::NotPrepared { problem: "have not been computed yet" }),
            State::Squares => {
                let problem = "are those of a shard that finish_prepare has not completed";
                Err(Error::NotPrepared { problem })
            }
        }
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
    /// W is one of the shards that each norm sums over: `prepare` goes as far as the shard's Σ V²
    /// ([`Prepared::squared_norms_mut`]), and [`Kernels::finish_prepare`] takes the magnitude.
    Sharded,
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
    /// b `[O]`, f32 master, where the bias is trained: see [`Prepared::bias`].
    pub bias: Option<CudaView<'a, f32>>,
}

impl Kernels {
    /// Computes c = ‖W + s·B·A‖ and g = m/c in f32 and packs A, s·B (and g∘s·B) for the tensor
    /// cores, and a trained bias: one launch, to be repeated after each change of A, B, m or b.
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
        self.check_magnitude(&inputs.magnitude)?;
        inputs.bias.as_ref().map_or(Ok(()), |bias| self.check_buffer(bias))?;
        self.check_buffer(&prepared.a)?;
        self.check_buffer(workspace.buffer())?;
        let plan = Plan::new(spec, self.sm_count());
        self.check_grid(Entry::Prepare, E::DTYPE, plan.grid())?;
        workspace.size().check(plan.needs(), 0)?;

        let (scratch, _guard) = workspace.lend(stream);
        let (weight, _guard) = inputs.weight.device_ptr(stream);
        let (lora_a, _guard) = inputs.lora_a.device_ptr(stream);
        let (lora_b, _guard) = inputs.lora_b.device_ptr(stream);
        let sharded = matches!(inputs.magnitude, Magnitude::Sharded);
        let ([magnitude, magnitude_out], _guard) = inputs.magnitude.lend(stream);
        let (bias, _bias) =
            inputs.bias.as_ref().map_or((0, None), |bias| optional(bias.device_ptr(stream)));
        let (norm, _guard) = prepared.norm.device_ptr_mut(stream);
        let (gain, _guard) = prepared.gain.device_ptr_mut(stream);
        let (a, _guard) = prepared.a.device_ptr_mut(stream);
        let (sb, _guard) = prepared.sb.device_ptr_mut(stream);
        let (gsb, _gsb) = match &mut prepared.gsb {
            Some(gsb) => optional(gsb.device_ptr_mut(stream)),
            None => (0, None),
        };
        let (packed_bias, _guard) = prepared.bias.device_ptr_mut(stream);
        let raw = raw::Prepare { weight, lora_a, lora_b, magnitude, magnitude_out, bias };
        let targets = raw::Prepared { norm, gain, a, sb, gsb, bias: packed_bias };
        prepared.state = State::Empty;
        // SAFETY: each buffer was checked against its shape, and its guard orders the launch on the
        // stream.
        unsafe {
            match sharded {
                false => self.prepare_raw(stream, spec, &scratch, &targets, &raw),
                true => self.prepare_shard_raw(stream, spec, &scratch, &targets, &raw),
            }
        }?;
        prepared.state = if sharded { State::Squares } else { State::Ready };
        prepared.has_bias = bias != 0;
        Ok(())
    }

    /// Completes what [`Kernels::prepare`] began with [`Magnitude::Sharded`]: c and g from Σ V²
    /// over all shards, which is where [`Prepared::squared_norms_mut`] points by now, and g∘s·B.
    /// One small launch, which does not read W. c is as exact as that of a whole weight: squares
    /// are positive, so that nothing cancels when they are added up.
    ///
    /// `lora_b` is B `[O, r]` as `prepare` got it; the magnitude `[I]` or `[O]` is that of the
    /// shard's spec. Which gradients are partial then: [`parallel`](crate::parallel).
    ///
    /// # Errors
    /// Before anything is launched: [`Error::NotPrepared`] unless `prepare` came before,
    /// [`Error::Dtype`], [`Error::Shape`], [`Error::MissingTensor`] for the magnitude,
    /// [`Error::DeviceLimit`], [`Error::ContextMismatch`]. Afterwards [`Error::Driver`].
    pub fn finish_prepare<E: Element>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &mut Prepared<E>,
        lora_b: CudaView<'_, f32>,
        mut magnitude: Magnitude<'_>,
    ) -> Result<()> {
        self.check_stream(stream)?;
        spec.check_dtype::<E>()?;
        if prepared.spec != *spec {
            return Err(Error::NotPrepared { problem: "were made for another spec" });
        }
        if prepared.state != State::Squares {
            return Err(Error::NotPrepared { problem: "hold no squared norms of a shard" });
        }
        check_len("lora_B", lora_b.len(), ("O", spec.out_features()), ("r", spec.rank()))?;
        check_magnitude(spec, &magnitude)?;
        if matches!(magnitude, Magnitude::Sharded) {
            let reason = "the norms are complete now, and the gains are m/c";
            return Err(Error::MissingTensor { tensor: "magnitude", reason });
        }
        self.check_buffer(&lora_b)?;
        self.check_magnitude(&magnitude)?;
        self.check_buffer(&prepared.a)?;

        let (lora_b, _guard) = lora_b.device_ptr(stream);
        let ([magnitude, magnitude_out], _guard) = magnitude.lend(stream);
        let (norm, _guard) = prepared.norm.device_ptr_mut(stream);
        let (gain, _guard) = prepared.gain.device_ptr_mut(stream);
        let (gsb, _gsb) = match &mut prepared.gsb {
            Some(gsb) => optional(gsb.device_ptr_mut(stream)),
            None => (0, None),
        };
        let (a, _guard) = prepared.a.device_ptr(stream);
        let (sb, _guard) = prepared.sb.device_ptr(stream);
        let targets = raw::Prepared { norm, gain, a, sb, gsb, bias: 0 };
        let raw = raw::Prepare { weight: 0, lora_a: 0, lora_b, magnitude, magnitude_out, bias: 0 };
        prepared.state = State::Empty;
        // SAFETY: each buffer was checked against its shape, and its guard orders the launch on the
        // stream.
        unsafe { self.finish_prepare_raw(stream, spec, &targets, &raw) }?;
        prepared.state = State::Ready;
        Ok(())
    }

    /// Whether the magnitude lives in the kernels' context.
    fn check_magnitude(&self, magnitude: &Magnitude<'_>) -> Result<()> {
        match magnitude {
            Magnitude::None | Magnitude::Sharded => Ok(()),
            Magnitude::Given(m) => self.check_buffer(m),
            Magnitude::Init(m) => self.check_buffer(m),
        }
    }

    /// [`Kernels::prepare`] on device addresses: writes what `prepared` names.
    ///
    /// # Safety
    /// Every address that is not 0 is one of the kernels' context, of memory that holds what
    /// [`raw::Prepare`] says or has room for what [`raw::Prepared`] says, valid until the stream
    /// has run the launch, and ordered on it against other uses; what is written overlaps with
    /// nothing else.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::MissingTensor`], [`Error::UnexpectedTensor`],
    /// [`Error::Misaligned`], [`Error::WorkspaceTooSmall`], [`Error::DeviceLimit`],
    /// [`Error::ContextMismatch`]. Afterwards [`Error::Driver`].
    pub unsafe fn prepare_raw(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        workspace: &raw::Workspace,
        prepared: &raw::Prepared,
        inputs: &raw::Prepare,
    ) -> Result<()> {
        check_magnitude_raw(spec, inputs)?;
        // SAFETY: the caller's promise.
        unsafe { self.prepare_part(stream, spec, workspace, prepared, inputs, Part::Whole) }
    }

    /// [`Kernels::prepare`] with [`Magnitude::Sharded`] on device addresses: writes Σ V² of
    /// the shard to `prepared.norm`, and no gains. The magnitude's addresses are not used.
    ///
    /// # Safety
    /// As for [`Kernels::prepare_raw`].
    ///
    /// # Errors
    /// As [`Kernels::prepare_raw`]; [`Error::UnexpectedTensor`] for plain LoRA.
    pub unsafe fn prepare_shard_raw(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        workspace: &raw::Workspace,
        prepared: &raw::Prepared,
        inputs: &raw::Prepare,
    ) -> Result<()> {
        check_has_magnitude(spec)?;
        // SAFETY: the caller's promise.
        unsafe { self.prepare_part(stream, spec, workspace, prepared, inputs, Part::Squares) }
    }

    /// One launch that reads W.
    ///
    /// # Safety
    /// As for [`Kernels::prepare_raw`].
    unsafe fn prepare_part(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        workspace: &raw::Workspace,
        prepared: &raw::Prepared,
        inputs: &raw::Prepare,
        part: Part,
    ) -> Result<()> {
        self.check_stream(stream)?;
        let plan = Plan::new(spec, self.sm_count());
        self.check_grid(Entry::Prepare, spec.dtype(), plan.grid())?;
        let scratch = workspace.parts(plan.needs(), 0)?;
        check_raw(spec, prepared, inputs)?;
        let params = PrepareParams {
            partials: scratch.regions,
            counters: scratch.counters,
            ..PrepareParams::new(spec, &plan, prepared, inputs, part)
        };
        // SAFETY: the struct is the kernel's; the caller vouches for the addresses.
        unsafe { self.launch(stream, Entry::Prepare, spec.dtype(), plan.grid(), &params) }
    }

    /// [`Kernels::finish_prepare`] on device addresses: Σ V² over all shards is where
    /// `prepared.norm` points, which becomes c. Of `inputs`, B and the magnitude's addresses are
    /// used.
    ///
    /// # Safety
    /// As for [`Kernels::prepare_raw`].
    ///
    /// # Errors
    /// As [`Kernels::prepare_raw`]; [`Error::UnexpectedTensor`] for plain LoRA.
    pub unsafe fn finish_prepare_raw(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &raw::Prepared,
        inputs: &raw::Prepare,
    ) -> Result<()> {
        self.check_stream(stream)?;
        check_has_magnitude(spec)?;
        check_magnitude_raw(spec, inputs)?;
        prepared.check(spec)?;
        if spec.rank() > 0 {
            present("lora_B", inputs.lora_b, size_of::<f32>())?;
        }
        let plan = Plan::new(spec, self.sm_count());
        let grid = [plan.strips, 1, 1];
        let params = PrepareParams::new(spec, &plan, prepared, inputs, Part::Gains);
        // SAFETY: the struct is the kernel's; the caller vouches for the addresses.
        unsafe { self.launch(stream, Entry::Prepare, spec.dtype(), grid, &params) }
    }
}

impl PrepareParams {
    /// All but where the scratch memory is.
    fn new(
        spec: &DoraSpec,
        plan: &Plan,
        prepared: &raw::Prepared,
        inputs: &raw::Prepare,
        part: Part,
    ) -> Self {
        Self {
            weight: inputs.weight,
            lora_a: inputs.lora_a,
            lora_b: inputs.lora_b,
            magnitude: inputs.magnitude,
            magnitude_out: inputs.magnitude_out,
            bias: inputs.bias,
            norm: prepared.norm,
            gain: prepared.gain,
            a: prepared.a,
            sb: prepared.sb,
            gsb: prepared.gsb,
            packed_bias: prepared.bias,
            partials: 0,
            counters: 0,
            scaling: spec.scaling(),
            in_features: spec.in_features() as i32,
            out_features: spec.out_features() as i32,
            rank: spec.rank() as i32,
            padded_rank: spec.padded_rank() as i32,
            norm_on_input: i32::from(spec.norm() == Norm::Input),
            has_norm: i32::from(spec.norm() != Norm::None),
            split_tiles: (plan.split.len / STRIP) as i32,
            aligned: i32::from(are_aligned(spec.dtype(), &[spec.in_features()], &[inputs.weight])),
            aligned_a: i32::from(are_aligned(Dtype::F32, &[spec.in_features()], &[inputs.lora_a])),
            aligned_b: i32::from(are_aligned(Dtype::F32, &[spec.rank()], &[inputs.lora_b])),
            part,
        }
    }
}

impl Magnitude<'_> {
    /// The addresses of m and of room for a fresh one, of which one is 0, and the guards.
    fn lend<'a>(&'a mut self, stream: &'a CudaStream) -> ([u64; 2], Option<SyncOnDrop<'a>>) {
        match self {
            Self::None | Self::Sharded => ([0, 0], None),
            Self::Given(m) => {
                let (m, guard) = m.device_ptr(stream);
                ([m, 0], Some(guard))
            }
            Self::Init(m) => {
                let (m, guard) = m.device_ptr_mut(stream);
                ([0, m], Some(guard))
            }
        }
    }
}

fn check_raw(spec: &DoraSpec, prepared: &raw::Prepared, inputs: &raw::Prepare) -> Result<()> {
    let (bytes, single) = (spec.dtype().bytes(), size_of::<f32>());
    present("weight", inputs.weight, bytes)?;
    if spec.rank() > 0 {
        present("lora_A", inputs.lora_a, single)?;
        present("lora_B", inputs.lora_b, single)?;
    }
    absent_or("bias", inputs.bias, single)?;
    if inputs.bias != 0 {
        present("the packed bias", prepared.bias, bytes)?;
    }
    prepared.check(spec)
}

/// Plain LoRA has no magnitude; else one of the two is given.
fn check_magnitude_raw(spec: &DoraSpec, inputs: &raw::Prepare) -> Result<()> {
    let single = size_of::<f32>();
    match (spec.norm(), inputs.magnitude, inputs.magnitude_out) {
        (Norm::None, 0, 0) => Ok(()),
        (Norm::None, ..) => check_has_magnitude(spec),
        (_, m, 0) => present("magnitude", m, single),
        (_, 0, m) => present("magnitude_out", m, single),
        _ => {
            let reason = "a fresh magnitude is asked for as well";
            Err(Error::UnexpectedTensor { tensor: "magnitude", reason })
        }
    }
}

fn check_has_magnitude(spec: &DoraSpec) -> Result<()> {
    match spec.norm() {
        Norm::Input | Norm::Output => Ok(()),
        Norm::None => {
            let reason = "plain LoRA has no magnitude";
            Err(Error::UnexpectedTensor { tensor: "magnitude", reason })
        }
    }
}

impl raw::Prepared {
    /// Checks that the addresses are there that ops of this spec read.
    pub(crate) fn check(&self, spec: &DoraSpec) -> Result<()> {
        let (bytes, single) = (spec.dtype().bytes(), size_of::<f32>());
        if spec.norm() != Norm::None {
            present("the norm", self.norm, single)?;
            present("the gain", self.gain, single)?;
        }
        if spec.rank() == 0 {
            return Ok(());
        }
        present("the packed A", self.a, bytes)?;
        present("the packed sB", self.sb, bytes)?;
        if spec.norm() == Norm::Output {
            present("the packed g∘sB", self.gsb, bytes)?;
        }
        Ok(())
    }

    /// The address of the gain, which must be there; 0 for plain LoRA.
    pub(crate) fn present_gain(&self, spec: &DoraSpec) -> Result<u64> {
        if spec.norm() == Norm::None {
            return Ok(0);
        }
        present("the gain", self.gain, size_of::<f32>())?;
        Ok(self.gain)
    }

    /// What dY is contracted with for P: g∘(s·B), or s·B where the output has no gain.
    pub(crate) fn contracted(&self, spec: &DoraSpec) -> u64 {
        if spec.norm() == Norm::Output { self.gsb } else { self.sb }
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
    if let Some(bias) = &inputs.bias {
        check_len("bias", bias.len(), ("1", 1), rows)?;
    }
    check_magnitude(spec, &inputs.magnitude)
}

fn check_magnitude(spec: &DoraSpec, magnitude: &Magnitude<'_>) -> Result<()> {
    let found = match (magnitude, spec.norm()) {
        (Magnitude::None, Norm::None) => return Ok(()),
        (Magnitude::None, _) => {
            let reason = "DoRA scales each feature by m/c; use Magnitude::Init for a new adapter";
            return Err(Error::MissingTensor { tensor: "magnitude", reason });
        }
        (_, Norm::None) => return check_has_magnitude(spec),
        (Magnitude::Sharded, _) => return Ok(()),
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

    fn grid(&self) -> [usize; 3] {
        [self.strips, self.split.count, 1]
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
