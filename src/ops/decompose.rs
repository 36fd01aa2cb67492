//! `decompose`: how far magnitudes and directions have moved (kernels/decompose/sm80.cu).

use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaView};

use super::merge::factors;
use super::prepared::Prepared;
use crate::device::{Kernel, Kernels, Launch, Needs, Regions, Split, Workspace};
use crate::error::{During, Error, Result};
use crate::params::common::TILE;
use crate::params::decompose::{DecomposeParams, MOMENTS};
use crate::spec::{DoraSpec, Norm};
use crate::tensor::{Dim, ElementType, Read, Tensors, Weight, Write, check_len, matrix, vector};

const DECOMPOSE: Kernel = Kernel::new("decompose", "decompose");

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
        check_len("result", buffer.len(), result_shape())?;
        let during = "reading a decomposition";
        let mut result = [0.0; Self::LEN];
        stream.memcpy_dtoh(buffer, &mut result).during(during)?;
        stream.synchronize().during(during)?;
        let [magnitude, direction] = result;
        Ok(Self { magnitude, direction })
    }
}

/// Inputs and output of [`Kernels::decompose`], row-major and contiguous.
#[derive(Debug)]
pub struct Decompose<'a> {
    /// Which vectors are compared: columns ([`Norm::Input`], as in the paper) or rows
    /// ([`Norm::Output`]).
    pub axis: Norm,
    /// W `[O, I]`.
    pub weight: Weight<'a>,
    /// W_t `[O, I]`; bf16, f16 or f32.
    pub changed: Read<'a>,
    /// `[Decomposition::LEN]`, f64, written: what [`Decomposition::read`] reads.
    pub result: Write<'a>,
}

/// Inputs and output of [`Kernels::decompose_adapter`], row-major and contiguous.
#[derive(Debug)]
pub struct DecomposeAdapter<'a> {
    /// Which vectors are compared: columns ([`Norm::Input`], as in the paper) or rows
    /// ([`Norm::Output`]). It need not be the adapter's norm axis.
    pub axis: Norm,
    /// W `[O, I]`, as given to `prepare`.
    pub weight: Weight<'a>,
    /// A `[r, I]`, f32, as given to `prepare`.
    pub lora_a: Read<'a>,
    /// B `[O, r]`, f32, as given to `prepare`.
    pub lora_b: Read<'a>,
    /// `[Decomposition::LEN]`, f64, written: what [`Decomposition::read`] reads.
    pub result: Write<'a>,
}

impl Kernels {
    /// ΔM and ΔD between two dense weights of `spec`'s features. Nothing else in `spec` counts.
    /// The op is one launch, which reads both once.
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
    ///     weight: (&before).into(),
    ///     changed: (&after).into(),
    ///     result: (&mut result).into(),
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
    pub fn decompose(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        workspace: &mut Workspace,
        io: Decompose<'_>,
    ) -> Result<()> {
        let Decompose { axis, weight, changed, mut result } = io;
        let mut t = Tensors::new(self.context(), stream, spec.dtype())?;
        let element = changed.element();
        let changed_dtype = element.dtype().ok_or(Error::InvalidSpec {
            parameter: "the dtype of changed",
            value: element.to_string(),
            requirement: "bf16, f16 or f32",
        })?;
        let shape = matrix(spec.outputs(), spec.inputs());
        let changed = t.read_as(element, "changed", &changed, shape)?;
        let of_kind = DecomposeParams {
            changed: changed.address,
            changed_dtype: changed_dtype as i32,
            aligned: changed.starts_at_quads.into(),
            ..DecomposeParams::default()
        };
        self.decompose_by(stream, spec, workspace, (axis, &weight, &mut result), t, of_kind)
    }

    /// ΔM and ΔD between W and an adapted W_t = V∘g, which is not formed: one launch, which reads W
    /// once. Otherwise like [`Kernels::decompose`].
    ///
    /// # Errors
    /// Those of [`Kernels::decompose`], and [`Error::NotPrepared`].
    pub fn decompose_adapter(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &Prepared,
        workspace: &mut Workspace,
        io: DecomposeAdapter<'_>,
    ) -> Result<()> {
        let DecomposeAdapter { axis, weight, lora_a, lora_b, mut result } = io;
        let mut t = Tensors::new(self.context(), stream, spec.dtype())?;
        let gain = prepared.read(&mut t, spec)?.gain;
        let (lora_a, lora_b) = factors(&mut t, spec, &lora_a, &lora_b)?;
        let of_kind = DecomposeParams {
            lora_a: lora_a.address,
            lora_b: lora_b.address,
            gain,
            changed_dtype: spec.dtype() as i32,
            aligned: 1,
            aligned_a: lora_a.aligned.into(),
            aligned_b: lora_b.aligned.into(),
            ..DecomposeParams::default()
        };
        self.decompose_by(stream, spec, workspace, (axis, &weight, &mut result), t, of_kind)
    }

    /// What both have in common.
    fn decompose_by<'t>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        workspace: &'t mut Workspace,
        (axis, weight, result): (Norm, &'t Weight<'_>, &'t mut Write<'_>),
        mut t: Tensors<'t>,
        of_kind: DecomposeParams,
    ) -> Result<()> {
        if axis == Norm::None {
            return Err(Error::InvalidSpec {
                parameter: "axis",
                value: "None".to_owned(),
                requirement: "Input (columns) or Output (rows)",
            });
        }
        let plan = Plan::new(spec, axis, self.sm_count());
        let launch = Launch::new(DECOMPOSE, spec.variant(), [plan.strips, plan.split.count, 1]);
        self.check_launch(&launch)?;
        let mut scratch = workspace.scratch(&mut t, plan.needs(), 0)?;
        let weight = t.weight_placed(weight, spec)?;
        let params = DecomposeParams {
            weight: weight.data,
            result: t.write_as(ElementType::F64, "result", result, result_shape())?.address,
            partials: scratch.region(plan.partials),
            strip_sums: scratch.region(plan.strip_sums),
            strip_counters: scratch.counters(plan.strips),
            counter: scratch.counters(1),
            scaling: spec.scaling(),
            in_features: spec.in_features() as i32,
            out_features: spec.out_features() as i32,
            rank: spec.rank() as i32,
            gain_on_input: i32::from(spec.norm() == Norm::Input),
            on_input: i32::from(axis == Norm::Input),
            split_tiles: (plan.split.len / TILE) as i32,
            aligned: of_kind.aligned & i32::from(weight.starts_at_quads),
            ..of_kind
        };
        // SAFETY: the struct is the kernel's, and each address in it was checked.
        unsafe { self.launch(stream, &launch, &params) }
    }
}

/// The shape of a result.
const fn result_shape() -> [Dim; 2] {
    vector(("ΔM and ΔD", Decomposition::LEN))
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

/// For either axis.
pub(super) fn needs(spec: &DoraSpec, sm_count: usize) -> Needs {
    let along = |axis| Plan::new(spec, axis, sm_count).needs();
    along(Norm::Input).max(along(Norm::Output))
}
