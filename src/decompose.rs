//! `decompose`: how far a weight has moved, in magnitude and in direction (kernels/decompose/sm80.cu).

use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut};

use crate::error::{During, Error, Result};
use crate::forward::are_aligned;
use crate::kernels::{Entry, Kernels};
use crate::merge::{check_factors, check_weight, starts_at_quads};
use crate::params::common::TILE;
use crate::params::decompose::{DecomposeParams, MOMENTS};
use crate::prepare::Prepared;
use crate::raw::{self, present};
use crate::spec::{DoraSpec, Dtype, Element, Norm, check_len};
use crate::workspace::{Needs, Regions, Split, Workspace};

/// How far a weight has moved from where it was, as the DoRA paper (arXiv:2402.09353, §3.2, eqs. 3
/// and 4) takes it apart: with w_n the columns of W (or the rows, as the axis says) and t_n those of
/// W_t.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decomposition {
    /// ΔM, the mean over n of |‖t_n‖ − ‖w_n‖|; in the weight's own unit.
    pub magnitude: f64,
    /// ΔD, the mean over n of 1 − cos(t_n, w_n), from 0 to 2. Where w_n or t_n is 0 there is no
    /// direction to change: such features add 0. NaN in a weight makes both NaN.
    pub direction: f64,
}

impl Decomposition {
    /// Elements of the buffer that the op writes its result to.
    pub const LEN: usize = 2;

    /// Reads a result back, when the op has run.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Driver`].
    pub fn read(stream: &Arc<CudaStream>, buffer: &CudaView<'_, f64>) -> Result<Self> {
        check_result(buffer.len())?;
        let during = "reading a decomposition";
        let mut result = [0.0; Self::LEN];
        stream.memcpy_dtoh(buffer, &mut result).during(during)?;
        stream.synchronize().during(during)?;
        let [magnitude, direction] = result;
        Ok(Self { magnitude, direction })
    }
}

/// Inputs and output of [`Kernels::decompose`], row-major and contiguous. `E` is W's type, `F` that
/// of W_t.
#[derive(Debug)]
pub struct Decompose<'a, E, F> {
    /// Which vectors are compared: columns ([`Norm::Input`], as in the paper) or rows
    /// ([`Norm::Output`]).
    pub axis: Norm,
    /// W `[O, I]`.
    pub weight: CudaView<'a, E>,
    /// W_t `[O, I]`.
    pub changed: CudaView<'a, F>,
    /// `[Decomposition::LEN]`, written: what [`Decomposition::read`] reads.
    pub result: CudaViewMut<'a, f64>,
}

/// Inputs and output of [`Kernels::decompose_adapter`], row-major and contiguous.
#[derive(Debug)]
pub struct DecomposeAdapter<'a, E> {
    /// Which vectors are compared: columns ([`Norm::Input`], as in the paper) or rows
    /// ([`Norm::Output`]). It need not be the adapter's norm axis.
    pub axis: Norm,
    /// W `[O, I]`, as given to `prepare`.
    pub weight: CudaView<'a, E>,
    /// A `[r, I]`, as given to `prepare`.
    pub lora_a: CudaView<'a, f32>,
    /// B `[O, r]`, as given to `prepare`.
    pub lora_b: CudaView<'a, f32>,
    /// `[Decomposition::LEN]`, written: what [`Decomposition::read`] reads.
    pub result: CudaViewMut<'a, f64>,
}

impl Kernels {
    /// ΔM and ΔD between two dense weights of `spec`'s features, of which nothing else counts here:
    /// one launch, which reads both once.
    ///
    /// Accurate also where W_t has hardly moved: differences and sums are f64, and no formula
    /// cancels; [`crate::reference::decompose`] has the bound on the error. Formulas: DoRA
    /// (arXiv:2402.09353) §3.2, eqs. 3 and 4.
    ///
    /// ```
    /// use fused_dora::{
    ///     Decompose, Decomposition, DoraSpec, Dtype, Kernels, Norm, NormGrad, Scaling, Workspace,
    ///     open_device,
    /// };
    ///
    /// # cuda_emulator::client::select(cuda_emulator::client::Choice::from_env()?)?;
    /// let kernels = Kernels::load(&open_device(0)?)?;
    /// let stream = kernels.context().default_stream();
    /// let scaling = Scaling::Value(1.0);
    /// let spec = DoraSpec::new(3, 2, 0, scaling, Norm::None, NormGrad::Detached, Dtype::F32)?;
    /// let mut workspace = Workspace::new(&kernels, &stream, &[spec], 0)?;
    /// // One row is twice as long, the other one turned by 90°.
    /// let before = stream.clone_htod(&[3.0f32, 0.0, 4.0, 1.0, 0.0, 0.0])?;
    /// let after = stream.clone_htod(&[6.0f32, 0.0, 8.0, 0.0, 1.0, 0.0])?;
    /// let mut result = stream.alloc_zeros::<f64>(Decomposition::LEN)?;
    /// let io = Decompose {
    ///     axis: Norm::Output,
    ///     weight: before.as_view(),
    ///     changed: after.as_view(),
    ///     result: result.as_view_mut(),
    /// };
    /// kernels.decompose(&stream, &spec, &mut workspace, io)?;
    /// let moved = Decomposition::read(&stream, &result.as_view())?;
    /// assert!((moved.magnitude - 2.5).abs() < 1e-12 && (moved.direction - 0.5).abs() < 1e-12);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Before anything is launched: [`Error::InvalidSpec`] for an axis of [`Norm::None`],
    /// [`Error::Dtype`], [`Error::Shape`], [`Error::WorkspaceTooSmall`],
    /// [`Error::ContextMismatch`], [`Error::DeviceLimit`]. Afterwards [`Error::Driver`].
    pub fn decompose<E: Element, F: Element>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        workspace: &mut Workspace,
        mut io: Decompose<'_, E, F>,
    ) -> Result<()> {
        self.check_stream(stream)?;
        spec.check_dtype::<E>()?;
        check_weight("weight", spec, io.weight.len())?;
        check_weight("changed", spec, io.changed.len())?;
        check_result(io.result.len())?;
        self.check_buffer(&io.weight)?;
        self.check_buffer(&io.changed)?;
        self.check_buffer(&io.result)?;
        self.check_buffer(workspace.buffer())?;
        let (scratch, _guard) = workspace.lend(stream);
        let (weight, _guard) = io.weight.device_ptr(stream);
        let (changed, _guard) = io.changed.device_ptr(stream);
        let (result, _guard) = io.result.device_ptr_mut(stream);
        let (axis, changed_dtype) = (io.axis, F::DTYPE);
        let raw = raw::Decompose { axis, weight, changed, changed_dtype, result };
        // SAFETY: each buffer was checked against its shape, and its guard orders the launch on the
        // stream.
        unsafe { self.decompose_raw(stream, spec, &scratch, &raw) }
    }

    /// [`Kernels::decompose`] on device addresses.
    ///
    /// # Safety
    /// As for [`Kernels::forward_raw`], with what [`raw::Decompose`] says.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::InvalidSpec`] for an axis of [`Norm::None`],
    /// [`Error::MissingTensor`], [`Error::Misaligned`], [`Error::WorkspaceTooSmall`],
    /// [`Error::ContextMismatch`], [`Error::DeviceLimit`]. Afterwards [`Error::Driver`].
    pub unsafe fn decompose_raw(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        workspace: &raw::Workspace,
        io: &raw::Decompose,
    ) -> Result<()> {
        present("changed", io.changed, io.changed_dtype.bytes())?;
        let rows = spec.in_features();
        let operands = Operands {
            axis: io.axis,
            weight: io.weight,
            changed: io.changed,
            changed_dtype: io.changed_dtype,
            lora_a: 0,
            lora_b: 0,
            gain: 0,
            result: io.result,
            aligned: starts_at_quads(rows, io.weight, spec.dtype())
                && starts_at_quads(rows, io.changed, io.changed_dtype),
        };
        // SAFETY: passed on to the caller.
        unsafe { self.launch_decompose(stream, spec, workspace, operands) }
    }

    /// ΔM and ΔD between W and an adapted W_t = V∘g, which is not formed: one launch, which reads W
    /// once. Otherwise like [`Kernels::decompose`].
    ///
    /// # Errors
    /// Those of [`Kernels::decompose`], and [`Error::NotPrepared`].
    pub fn decompose_adapter<E: Element>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared<E>,
        workspace: &mut Workspace,
        mut io: DecomposeAdapter<'_, E>,
    ) -> Result<()> {
        self.check_stream(stream)?;
        prepared.check(self, spec)?;
        check_weight("weight", spec, io.weight.len())?;
        check_factors(self, spec, &io.lora_a, &io.lora_b)?;
        check_result(io.result.len())?;
        self.check_buffer(&io.weight)?;
        self.check_buffer(&io.result)?;
        self.check_buffer(workspace.buffer())?;
        let (scratch, _guard) = workspace.lend(stream);
        let (prepared, _guards) = prepared.lend(stream);
        let (weight, _guard) = io.weight.device_ptr(stream);
        let (lora_a, _guard) = io.lora_a.device_ptr(stream);
        let (lora_b, _guard) = io.lora_b.device_ptr(stream);
        let (result, _guard) = io.result.device_ptr_mut(stream);
        let raw = raw::DecomposeAdapter { axis: io.axis, weight, lora_a, lora_b, result };
        // SAFETY: each buffer was checked against its shape, and its guard orders the launch on the
        // stream.
        unsafe { self.decompose_adapter_raw(stream, spec, &prepared, &scratch, &raw) }
    }

    /// [`Kernels::decompose_adapter`] on device addresses.
    ///
    /// # Safety
    /// As for [`Kernels::forward_raw`], with what [`raw::DecomposeAdapter`] says; of `prepared`,
    /// the gain alone is read.
    ///
    /// # Errors
    /// Those of [`Kernels::decompose_raw`].
    pub unsafe fn decompose_adapter_raw(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &raw::Prepared,
        workspace: &raw::Workspace,
        io: &raw::DecomposeAdapter,
    ) -> Result<()> {
        if spec.rank() > 0 {
            present("lora_A", io.lora_a, size_of::<f32>())?;
            present("lora_B", io.lora_b, size_of::<f32>())?;
        }
        let operands = Operands {
            axis: io.axis,
            weight: io.weight,
            changed: 0,
            changed_dtype: spec.dtype(),
            lora_a: io.lora_a,
            lora_b: io.lora_b,
            gain: prepared.present_gain(spec)?,
            result: io.result,
            aligned: starts_at_quads(spec.in_features(), io.weight, spec.dtype()),
        };
        // SAFETY: passed on to the caller.
        unsafe { self.launch_decompose(stream, spec, workspace, operands) }
    }

    /// # Safety
    /// That of the op.
    unsafe fn launch_decompose(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        workspace: &raw::Workspace,
        operands: Operands,
    ) -> Result<()> {
        self.check_stream(stream)?;
        let axis = operands.axis;
        if axis == Norm::None {
            return Err(Error::InvalidSpec {
                parameter: "axis",
                value: "None".to_owned(),
                requirement: "Input (columns) or Output (rows)",
            });
        }
        present("weight", operands.weight, spec.dtype().bytes())?;
        present("result", operands.result, size_of::<f64>())?;
        let plan = Plan::new(spec, axis, self.sm_count());
        let grid = [plan.strips, plan.split.count, 1];
        self.check_grid(Entry::Decompose, spec.dtype(), grid)?;
        let scratch = workspace.parts(plan.needs(), 0)?;
        let params = DecomposeParams {
            weight: operands.weight,
            changed: operands.changed,
            lora_a: operands.lora_a,
            lora_b: operands.lora_b,
            gain: operands.gain,
            result: operands.result,
            partials: scratch.regions + plan.partials as u64,
            strip_sums: scratch.regions + plan.strip_sums as u64,
            strip_counters: scratch.counters,
            counter: scratch.counters + (plan.strips * size_of::<u32>()) as u64,
            scaling: spec.scaling(),
            in_features: spec.in_features() as i32,
            out_features: spec.out_features() as i32,
            rank: spec.rank() as i32,
            gain_on_input: i32::from(spec.norm() == Norm::Input),
            on_input: i32::from(axis == Norm::Input),
            changed_dtype: operands.changed_dtype as i32,
            split_tiles: (plan.split.len / TILE) as i32,
            aligned: i32::from(operands.aligned),
            aligned_a: i32::from(are_aligned(
                Dtype::F32,
                &[spec.in_features()],
                &[operands.lora_a],
            )),
            aligned_b: i32::from(are_aligned(Dtype::F32, &[spec.rank()], &[operands.lora_b])),
            ..Default::default()
        };
        // SAFETY: the struct is the kernel's; the caller vouches for the addresses.
        unsafe { self.launch(stream, Entry::Decompose, spec.dtype(), grid, &params) }
    }
}

/// Device addresses of what is compared, 0 for what this kind of comparison has not.
struct Operands {
    axis: Norm,
    weight: u64,
    changed: u64,
    changed_dtype: Dtype,
    lora_a: u64,
    lora_b: u64,
    gain: u64,
    result: u64,
    aligned: bool,
}

fn check_result(found: usize) -> Result<()> {
    check_len("result", found, ("1", 1), ("ΔM and ΔD", Decomposition::LEN))
}

/// The launch for one spec and axis.
struct Plan {
    strips: usize,
    split: Split,
    partials: usize,
    strip_sums: usize,
    bytes: usize,
}

impl Plan {
    fn new(spec: &DoraSpec, axis: Norm, sm_count: usize) -> Self {
        let (features, summed) = match axis {
            Norm::Input => (spec.in_features(), spec.out_features()),
            Norm::Output | Norm::None => (spec.out_features(), spec.in_features()),
        };
        let strips = features.div_ceil(TILE);
        let split = Split::new(summed, TILE, strips, sm_count);
        let mut regions = Regions::default();
        let partials =
            regions.take((split.capacity * MOMENTS).saturating_mul(features), size_of::<f64>());
        let strip_sums = regions.take(2 * strips, size_of::<f64>());
        Self { strips, split, partials, strip_sums, bytes: regions.bytes() }
    }

    fn needs(&self) -> Needs {
        Needs { counters: self.strips + 1, bytes: self.bytes }
    }
}

/// Of either axis.
pub(crate) fn needs(spec: &DoraSpec, sm_count: usize) -> [Needs; 2] {
    [Norm::Input, Norm::Output].map(|axis| Plan::new(spec, axis, sm_count).needs())
}
