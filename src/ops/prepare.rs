//! `prepare`: norms, gains and packed operands, once per change of A, B or m
//! (kernels/prepare/sm80.cu).

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::prepared::{Operands, Prepared, State, balances};
use crate::device::{Kernel, Kernels, Launch, Needs, Regions, Split, THREADS, Workspace};
use crate::error::{Error, Result};
use crate::params::prepare::{Part as Phase, PrepareParams, STRIP};
use crate::spec::{DoraSpec, Norm};
use crate::tensor::{ElementType, Need, Read, Tensors, Weight, Write, check_given, matrix, vector};

const PREPARE: Kernel = Kernel::new("prepare", "prepare");
const BALANCE: Kernel = Kernel::new("prepare", "prepare_balance");

/// Elements that a CTA of a plain LoRA's packing takes, about.
const PACK_PER_CTA: usize = 16 * THREADS as usize;

/// Words that the CTAs of `prepare_balance` share.
const BALANCE_WORDS: usize = 2;

/// Where the magnitude m comes from.
#[derive(Debug)]
pub enum Magnitude<'a> {
    /// Plain LoRA has none.
    None,
    /// The trained m, `[I]` or `[O]`, f32.
    Given(Read<'a>),
    /// A fresh adapter: m = c is written here, f32, and g is exactly 1.
    Init(Write<'a>),
    /// W is one of the shards that each norm sums over: `prepare` goes as far as the shard's Σ V²
    /// ([`Prepared::squared_norms_mut`]), and [`Kernels::finish_prepare`] takes the magnitude.
    Sharded,
}

impl<'a, R: Into<Read<'a>>> From<Option<R>> for Magnitude<'a> {
    /// The trained m, if the adapter has one.
    fn from(magnitude: Option<R>) -> Self {
        magnitude.map_or(Self::None, |magnitude| Self::Given(magnitude.into()))
    }
}

/// Inputs of [`Kernels::prepare`], row-major and contiguous.
#[derive(Debug)]
pub struct Prepare<'a> {
    /// W `[O, I]`, frozen.
    pub weight: Weight<'a>,
    /// A `[r, I]`, f32 master.
    pub lora_a: Read<'a>,
    /// B `[O, r]`, f32 master.
    pub lora_b: Read<'a>,
    /// m `[I]` or `[O]`, f32 master.
    pub magnitude: Magnitude<'a>,
    /// b `[O]`, f32 master, where the bias is trained: then forward and backward use it instead of
    /// the base layer's.
    pub bias: Option<Read<'a>>,
}

impl Kernels {
    /// Computes c = ‖W + s·B·A‖ and g = m/c in f32 and packs A, s·B (and g∘s·B) for the tensor
    /// cores, and a trained bias: one launch, to be repeated after each change of A, B, m or b. In
    /// f16 a small launch comes first. It looks for the largest |s·B|, and the operands of the
    /// gradients are then scaled by a power of two, so that small adapters are normal numbers in them.
    ///
    /// c has a relative error below 1e-5, and about 1e-7 where nothing cancels, whatever the dtype
    /// and however tensor cores round: where V = W + s·B·A leaves less than a quarter of a feature of
    /// W, the kernel sums that feature again in twice the precision of f32, which takes longer.
    /// Formula: DoRA (arXiv:2402.09353) eq. 5.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::Dtype`], [`Error::Shape`], [`Error::NotPrepared`] if
    /// `prepared` was made for another spec, [`Error::MissingTensor`] or
    /// [`Error::UnexpectedTensor`] for the magnitude, [`Error::Misaligned`],
    /// [`Error::WorkspaceTooSmall`], [`Error::DeviceLimit`], [`Error::ContextMismatch`]. Afterwards
    /// [`Error::Driver`].
    pub fn prepare(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        workspace: &mut Workspace,
        prepared: &mut Prepared,
        mut inputs: Prepare<'_>,
    ) -> Result<()> {
        let plan = Plan::new(spec, self.sm_count());
        let launch = Launch::new(PREPARE, spec.variant(), plan.grid());
        let is_sharded = matches!(inputs.magnitude, Magnitude::Sharded);
        let has_bias = inputs.bias.is_some();
        {
            let mut t = Tensors::new(self.context(), stream, spec.dtype())?;
            self.check_launch(&launch)?;
            let balance = plan.balance(spec);
            balance.as_ref().map_or(Ok(()), |launch| self.check_launch(launch))?;
            prepared.check_spec(spec)?;
            let operands = prepared.layout.operands(prepared.memory.write(&mut t)?);
            let mut scratch = workspace.scratch(&mut t, plan.needs(), 0)?;
            let (inputs_dim, outputs) = (spec.inputs(), spec.outputs());
            let f32 = ElementType::F32;
            let weight = t.weight(&inputs.weight, spec)?;
            let aligned = t.aligned();
            let lora_a =
                t.read_as(f32, "lora_A", &inputs.lora_a, matrix(spec.ranks(), inputs_dim))?;
            let lora_b = t.read_as(f32, "lora_B", &inputs.lora_b, matrix(outputs, spec.ranks()))?;
            let (magnitude, magnitude_out) = inputs.magnitude.take(&mut t, spec)?;
            let bias = t.read_as_if_given(f32, "bias", &inputs.bias, vector(outputs))?.address;
            let params = PrepareParams {
                weight,
                lora_a: lora_a.address,
                lora_b: lora_b.address,
                magnitude,
                magnitude_out,
                bias,
                partials: scratch.region(0),
                counters: scratch.counters(plan.strips),
                balance_words: scratch.counters(BALANCE_WORDS),
                aligned,
                aligned_a: lora_a.aligned.into(),
                aligned_b: lora_b.aligned.into(),
                part: if is_sharded { Phase::Squares } else { Phase::Whole },
                ..params(spec, &plan, &operands)
            };
            prepared.state = State::Empty;
            for launch in balance.iter().chain([&launch]) {
                // SAFETY: the struct is the kernel's, and each address in it was checked.
                unsafe { self.launch(stream, launch, &params) }?;
            }
        }
        prepared.state = if is_sharded { State::Squares } else { State::Ready };
        prepared.has_bias = has_bias;
        Ok(())
    }

    /// Completes what [`Kernels::prepare`] began with [`Magnitude::Sharded`]: c and g from Σ V²
    /// over all shards, which [`Prepared::squared_norms_mut`] must hold by now, and g∘s·B. One small
    /// launch, which does not read W. c is as exact as for a whole weight: squares are positive, and
    /// nothing cancels in their sum.
    ///
    /// `lora_b` is B `[O, r]` as `prepare` got it; the magnitude `[I]` or `[O]` is that of the
    /// shard's spec. Which gradients are partial then: [`parallel`](crate::parallel).
    ///
    /// # Errors
    /// Before anything is launched: [`Error::NotPrepared`] unless `prepare` came before,
    /// [`Error::Dtype`], [`Error::Shape`], [`Error::MissingTensor`] for the magnitude,
    /// [`Error::Misaligned`], [`Error::DeviceLimit`], [`Error::ContextMismatch`]. Afterwards
    /// [`Error::Driver`].
    pub fn finish_prepare<'a>(
        &self,
        stream: &Arc<CudaStream>,
        spec: &DoraSpec,
        prepared: &mut Prepared,
        lora_b: impl Into<Read<'a>>,
        mut magnitude: Magnitude<'_>,
    ) -> Result<()> {
        let plan = Plan::new(spec, self.sm_count());
        let launch = Launch::new(PREPARE, spec.variant(), [plan.strips, 1, 1]);
        let lora_b = lora_b.into();
        {
            let mut t = Tensors::new(self.context(), stream, spec.dtype())?;
            self.check_launch(&launch)?;
            prepared.check_spec(spec)?;
            if prepared.state != State::Squares {
                return Err(Error::NotPrepared { problem: "hold no squared norms of a shard" });
            }
            if matches!(magnitude, Magnitude::Sharded) {
                let reason = "the norms are complete now, and the gains are m/c";
                return Err(Error::MissingTensor { tensor: "magnitude", reason });
            }
            let operands = prepared.layout.operands(prepared.memory.write(&mut t)?);
            let shape = matrix(spec.outputs(), spec.ranks());
            let lora_b = t.read_as(ElementType::F32, "lora_B", &lora_b, shape)?;
            let (magnitude, magnitude_out) = magnitude.take(&mut t, spec)?;
            let params = PrepareParams {
                lora_b: lora_b.address,
                magnitude,
                magnitude_out,
                aligned_b: lora_b.aligned.into(),
                part: Phase::Gains,
                ..params(spec, &plan, &operands)
            };
            prepared.state = State::Empty;
            // SAFETY: the struct is the kernel's, and each address in it was checked.
            unsafe { self.launch(stream, &launch, &params) }?;
        }
        prepared.state = State::Ready;
        Ok(())
    }
}

/// What follows from the spec alone, and where the operands go.
fn params(spec: &DoraSpec, plan: &Plan, operands: &Operands) -> PrepareParams {
    PrepareParams {
        norm: operands.norm,
        gain: operands.gain,
        a: operands.a,
        sb: operands.sb,
        gsb: operands.gsb,
        balanced_a: operands.balanced_a,
        balanced_sb: operands.balanced_sb,
        balance: operands.balance,
        packed_bias: operands.bias,
        scaling: spec.scaling(),
        in_features: spec.in_features() as i32,
        out_features: spec.out_features() as i32,
        rank: spec.rank() as i32,
        padded_rank: spec.padded_rank() as i32,
        norm_on_input: i32::from(spec.norm() == Norm::Input),
        has_norm: i32::from(spec.norm() != Norm::None),
        split_tiles: (plan.split.len / STRIP) as i32,
        ..PrepareParams::default()
    }
}

impl Magnitude<'_> {
    /// The addresses of m and of room for a fresh one, checked; 0 for what is not there.
    fn take<'t>(&'t mut self, t: &mut Tensors<'t>, spec: &DoraSpec) -> Result<(u64, u64)> {
        let need = match spec.norm() {
            Norm::None => Need::Excluded("plain LoRA has no magnitude"),
            Norm::Input | Norm::Output => Need::Required(
                "DoRA scales each feature by m/c; use Magnitude::Init for a new adapter",
            ),
        };
        check_given("magnitude", !matches!(self, Self::None), need)?;
        let shape = vector(spec.magnitudes());
        match self {
            Self::None | Self::Sharded => Ok((0, 0)),
            Self::Given(m) => Ok((t.read_as(ElementType::F32, "magnitude", m, shape)?.address, 0)),
            Self::Init(m) => Ok((0, t.write_as(ElementType::F32, "magnitude", m, shape)?.address)),
        }
    }
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
                let split = Split { len: 0, count: 1, capacity: 1 };
                return Self { features: 0, strips, split };
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
        Needs { counters: self.strips + BALANCE_WORDS, bytes: regions.bytes() }
    }

    /// The launch that looks for the largest |s·B|, where that is needed.
    fn balance(&self, spec: &DoraSpec) -> Option<Launch> {
        let elements = spec.out_features() * spec.rank();
        let ctas = elements.div_ceil(PACK_PER_CTA);
        balances(spec).then(|| Launch::new(BALANCE, spec.variant(), [ctas, 1, 1]))
    }
}

pub(super) fn needs(spec: &DoraSpec, sm_count: usize) -> Needs {
    Plan::new(spec, sm_count).needs()
}

/// The kernels that train a layer.
pub(super) fn kernels(spec: &DoraSpec) -> &'static [Kernel] {
    if balances(spec) { &[PREPARE, BALANCE] } else { &[PREPARE] }
}
