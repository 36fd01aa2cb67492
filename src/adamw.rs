//! `adamw`: the optimizer's step over one buffer, and the gradient's norm (kernels/adamw/sm80.cu).

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut};

use crate::adapter::{AdapterLayout, Part};
use crate::error::{Error, Result};
use crate::kernels::{Entry, Kernels};
use crate::params::adamw::{
    AdamWParams, CHUNK, GradientNormParams, MAX_PARTS, Part as KernelPart, Parts as KernelParts,
};
use crate::prepare::optional;
use crate::raw;
use crate::spec::{Dtype, check_len};
use crate::workspace::{Needs, Regions, Workspace};

/// CTAs of the norm per multiprocessor.
const NORM_CTAS_PER_SM: usize = 4;

/// A range of a buffer's elements that the optimizer treats alike.
#[derive(Debug, Clone, PartialEq)]
pub struct OptimizerPart {
    /// The elements. A start that is not a multiple of 4 takes a slower path.
    pub range: Range<usize>,
    /// How they are treated.
    pub group: OptimizerGroup,
}

/// How the optimizer treats parameters of one kind. By default they do not decay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerGroup {
    /// What the learning rate is multiplied by; 1 by default.
    pub learning_rate_factor: f64,
    /// λ, the decoupled weight decay: a step takes the group's learning rate times λ off a parameter.
    pub weight_decay: f64,
}

impl Default for OptimizerGroup {
    fn default() -> Self {
        Self { learning_rate_factor: 1.0, weight_decay: 0.0 }
    }
}

/// How the optimizer treats an adapter. By default all learn at the same rate, A and B decay by 0.01
/// and m and the bias do not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdapterGroups {
    /// A.
    pub lora_a: OptimizerGroup,
    /// B: a factor above 1 is LoRA+ (arXiv:2402.12354), which starts from 16.
    pub lora_b: OptimizerGroup,
    /// m.
    pub magnitude: OptimizerGroup,
    /// b.
    pub bias: OptimizerGroup,
}

impl Default for AdapterGroups {
    fn default() -> Self {
        let lasting = OptimizerGroup::default();
        let decaying = OptimizerGroup { weight_decay: 0.01, ..lasting };
        Self { lora_a: decaying, lora_b: decaying, magnitude: lasting, bias: lasting }
    }
}

impl AdapterGroups {
    /// The parts of an adapter whose buffer starts `offset` elements into a larger one.
    pub fn parts(
        self,
        layout: &AdapterLayout,
        offset: usize,
    ) -> impl Iterator<Item = OptimizerPart> {
        let layout = *layout;
        Part::ALL.into_iter().filter_map(move |part| {
            let range = layout.range(part);
            let group = match part {
                Part::LoraA => self.lora_a,
                Part::LoraB => self.lora_b,
                Part::Magnitude => self.magnitude,
                Part::Bias => self.bias,
            };
            (!range.is_empty()).then(|| OptimizerPart {
                range: offset.saturating_add(range.start)..offset.saturating_add(range.end),
                group,
            })
        })
    }
}

/// The constants of AdamW (arXiv:1711.05101); by default 0.9, 0.999 and 1e-8.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// β1, the decay of the running mean of the gradient, in [0, 1).
    pub beta1: f64,
    /// β2, the decay of the running mean of its square, in [0, 1).
    pub beta2: f64,
    /// ε, positive also as an f32.
    pub epsilon: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }
}

/// The learning rate, and the number of the step, which counts from 1.
#[derive(Debug)]
pub enum Schedule<'a> {
    /// Numbers of the host. A captured graph would repeat them at every replay, with a bias
    /// correction that no longer fits: use the other kind there.
    Host {
        /// η.
        learning_rate: f64,
        /// t.
        step: u64,
    },
    /// `[η, t]` on the device, read when the launch runs: write both before each replay of a graph.
    /// An f32 counts to 2²⁴ steps.
    Device(CudaView<'a, f32>),
}

/// Gradients longer than `max_norm` are scaled down to it, by what `norm` holds when the launch
/// runs. A norm that is NaN makes all parameters NaN.
#[derive(Debug)]
pub struct Clip<'a> {
    /// The longest gradient that is left as it is.
    pub max_norm: f64,
    /// `[1]`, the gradient's norm: that of [`Kernels::gradient_norm`], or one over all layers and
    /// devices.
    pub norm: CudaView<'a, f32>,
}

/// Inputs and outputs of [`Kernels::adamw`]: four buffers of one length.
#[derive(Debug)]
pub struct AdamW<'a> {
    /// The ranges to go through, in ascending order and disjoint; elements between them are neither
    /// read nor written. Those of one adapter come from [`AdapterGroups::parts`].
    pub parts: &'a [OptimizerPart],
    /// The learning rate and the number of the step.
    pub schedule: Schedule<'a>,
    /// Whether gradients are clipped.
    pub clip: Option<Clip<'a>>,
    /// The parameters, updated.
    pub parameters: CudaViewMut<'a, f32>,
    /// The gradients.
    pub gradients: CudaView<'a, f32>,
    /// The running mean of the gradient, updated; zero before the first step.
    pub exp_avg: CudaViewMut<'a, f32>,
    /// The running mean of the gradient's square, updated; zero before the first step.
    pub exp_avg_sq: CudaViewMut<'a, f32>,
}

/// Input and output of [`Kernels::gradient_norm`].
#[derive(Debug)]
pub struct GradientNorm<'a> {
    /// The ranges that count, as for [`AdamW::parts`].
    pub parts: &'a [OptimizerPart],
    /// The gradients.
    pub gradients: CudaView<'a, f32>,
    /// ‖g‖ `[1]`, written.
    pub norm: CudaViewMut<'a, f32>,
}

impl Kernels {
    /// One step of AdamW over the parts of a buffer, of one adapter or of many one behind the
    /// other: one launch per 64 parts.
    ///
    /// With g the (clipped) gradient and η, λ those of the part:
    /// m += (1 − β1)(g − m), v += (1 − β2)(g² − v),
    /// p −= η·(m/(1 − β1ᵗ) / (√(v/(1 − β2ᵗ)) + ε) + λ·p).
    /// Formula: AdamW (arXiv:1711.05101) algorithm 2; [`crate::reference::AdamWStep`] has it, and
    /// bounds on the error, in float64. Nothing is read back or allocated.
    ///
    /// ```
    /// use fused_dora::{
    ///     AdamW, AdamWConfig, AdapterGroups, AdapterLayout, Clip, DoraSpec, Dtype, GradientNorm, Kernels,
    ///     Norm, NormGrad, OptimizerGroup, Scaling, Schedule, Workspace, open_device,
    /// };
    ///
    /// # cuda_emulator::client::select(cuda_emulator::client::Choice::from_env()?)?;
    /// let kernels = Kernels::load(&open_device(0)?)?;
    /// let stream = kernels.context().default_stream();
    /// let spec = |inputs, outputs| {
    ///     let scaling = Scaling::Standard { alpha: 16.0 };
    ///     DoraSpec::new(inputs, outputs, 4, scaling, Norm::Output, NormGrad::Detached, Dtype::Bf16)
    /// };
    /// let layouts = [AdapterLayout::new(&spec(32, 24)?), AdapterLayout::new(&spec(24, 32)?)];
    /// let mut workspace = Workspace::new(&kernels, &stream, &[spec(32, 24)?, spec(24, 32)?], 0)?;
    ///
    /// // Two layers in one buffer; LoRA+: B learns 16 times as fast.
    /// let mut groups = AdapterGroups::default();
    /// groups.lora_b = OptimizerGroup { learning_rate_factor: 16.0, ..groups.lora_b };
    /// let parts: Vec<_> =
    ///     groups.parts(&layouts[0], 0).chain(groups.parts(&layouts[1], layouts[0].len())).collect();
    /// let len = layouts[0].len() + layouts[1].len();
    /// let mut parameters = stream.alloc_zeros::<f32>(len)?;
    /// let gradients = stream.clone_htod(&vec![1.0f32; len])?;
    /// let (mut exp_avg, mut exp_avg_sq) = (stream.alloc_zeros(len)?, stream.alloc_zeros(len)?);
    ///
    /// let mut norm = stream.alloc_zeros::<f32>(1)?;
    /// let measured =
    ///     GradientNorm { parts: &parts, gradients: gradients.as_view(), norm: norm.as_view_mut() };
    /// kernels.gradient_norm(&stream, &mut workspace, measured)?;
    /// let step = AdamW {
    ///     parts: &parts,
    ///     schedule: Schedule::Host { learning_rate: 1e-3, step: 1 },
    ///     clip: Some(Clip { max_norm: 1.0, norm: norm.as_view() }),
    ///     parameters: parameters.as_view_mut(),
    ///     gradients: gradients.as_view(),
    ///     exp_avg: exp_avg.as_view_mut(),
    ///     exp_avg_sq: exp_avg_sq.as_view_mut(),
    /// };
    /// kernels.adamw(&stream, &AdamWConfig::default(), step)?;
    ///
    /// let parameters = stream.clone_dtoh(&parameters)?;
    /// let of_b = layouts[0].range(fused_dora::Part::LoraB).start;
    /// assert!((parameters[0] + 0.001).abs() < 1e-6 && (parameters[of_b] + 0.016).abs() < 1e-5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Before anything is launched: [`Error::Shape`] if the buffers are not of one length,
    /// [`Error::InvalidSpec`] for parts that overlap or reach beyond the buffer and for constants
    /// out of their ranges, [`Error::ContextMismatch`], [`Error::DeviceLimit`]. Afterwards
    /// [`Error::Driver`].
    pub fn adamw(
        &self,
        stream: &Arc<CudaStream>,
        config: &AdamWConfig,
        mut io: AdamW<'_>,
    ) -> Result<()> {
        self.check_stream(stream)?;
        self.check_adamw(&io)?;
        let len = io.parameters.len();
        let (parameters, _guard) = io.parameters.device_ptr_mut(stream);
        let (gradients, _guard) = io.gradients.device_ptr(stream);
        let (exp_avg, _guard) = io.exp_avg.device_ptr_mut(stream);
        let (exp_avg_sq, _guard) = io.exp_avg_sq.device_ptr_mut(stream);
        let (norm, _norm) =
            io.clip.as_ref().map_or((0, None), |clip| optional(clip.norm.device_ptr(stream)));
        let clip = io.clip.as_ref().map(|clip| raw::Clip { max_norm: clip.max_norm, norm });
        let (schedule, _schedule) = match &io.schedule {
            &Schedule::Host { learning_rate, step } => {
                (raw::Schedule::Host { learning_rate, step }, None)
            }
            Schedule::Device(numbers) => {
                let (numbers, guard) = optional(numbers.device_ptr(stream));
                (raw::Schedule::Device(numbers), guard)
            }
        };
        let parts = io.parts;
        let raw =
            raw::AdamW { parts, schedule, clip, len, parameters, gradients, exp_avg, exp_avg_sq };
        // SAFETY: the buffers are of the length given, and their guards order the launches on the
        // stream.
        unsafe { self.adamw_raw(stream, config, &raw) }
    }

    /// [`Kernels::adamw`] on device addresses.
    ///
    /// # Safety
    /// As for [`Kernels::forward_raw`], with what [`raw::AdamW`] says.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::InvalidSpec`], [`Error::MissingTensor`],
    /// [`Error::Misaligned`], [`Error::ContextMismatch`], [`Error::DeviceLimit`]. Afterwards
    /// [`Error::Driver`].
    pub unsafe fn adamw_raw(
        &self,
        stream: &Arc<CudaStream>,
        config: &AdamWConfig,
        io: &raw::AdamW<'_>,
    ) -> Result<()> {
        self.check_stream(stream)?;
        config.check()?;
        io.check()?;
        let batches = || io.parts.chunks(MAX_PARTS).map(KernelParts::new);
        for batch in batches() {
            self.check_grid(Entry::AdamW, Dtype::F32, batch.grid())?;
        }
        let (schedule, learning_rate, step) = match io.schedule {
            raw::Schedule::Host { learning_rate, step } => (0, learning_rate, step as f64),
            raw::Schedule::Device(numbers) => (numbers, 0.0, 1.0),
        };
        // 1 − βᵗ, without cancellation.
        let correction = |beta: f64| -(step * beta.ln()).exp_m1();
        let pointers = [io.parameters, io.gradients, io.exp_avg, io.exp_avg_sq];
        for parts in batches().filter(|parts| parts.chunks > 0) {
            let params = AdamWParams {
                parameters: io.parameters,
                gradients: io.gradients,
                exp_avg: io.exp_avg,
                exp_avg_sq: io.exp_avg_sq,
                norm: io.clip.map_or(0, |clip| clip.norm),
                schedule,
                learning_rate: learning_rate as f32,
                correction: correction(config.beta1).recip() as f32,
                correction_sq: correction(config.beta2).sqrt().recip() as f32,
                rate: (1.0 - config.beta1) as f32,
                rate_sq: (1.0 - config.beta2) as f32,
                log_beta1: config.beta1.ln() as f32,
                log_beta2: config.beta2.ln() as f32,
                epsilon: config.epsilon as f32,
                max_norm: io.clip.map_or(0.0, |clip| clip.max_norm as f32),
                aligned: are_aligned(&pointers),
                parts,
            };
            // SAFETY: the struct is the kernel's; the parts lie within the buffers, for which the
            // caller vouches.
            unsafe { self.launch(stream, Entry::AdamW, Dtype::F32, parts.grid(), &params) }?;
        }
        Ok(())
    }

    /// ‖g‖ over the parts of a gradient buffer, for [`Clip`]: one launch per 64 parts. The squares
    /// are summed in f64, in a fixed order, so that nothing overflows and the norm is rounded once.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::Shape`], [`Error::InvalidSpec`] for parts that overlap
    /// or reach beyond the buffer, [`Error::ContextMismatch`], [`Error::WorkspaceTooSmall`].
    /// Afterwards [`Error::Driver`].
    pub fn gradient_norm(
        &self,
        stream: &Arc<CudaStream>,
        workspace: &mut Workspace,
        mut io: GradientNorm<'_>,
    ) -> Result<()> {
        self.check_stream(stream)?;
        self.check_buffer(workspace.buffer())?;
        self.check_buffer(&io.gradients)?;
        self.check_buffer(&io.norm)?;
        check_len("norm", io.norm.len(), ("1", 1), ("1", 1))?;
        let needs = needs(self.sm_count());
        workspace.size().check(needs, 0)?;
        let (parts, len) = (io.parts, io.gradients.len());
        let (scratch, _guard) = workspace.lend(stream);
        let (gradients, _guard) = io.gradients.device_ptr(stream);
        let (norm, _guard) = io.norm.device_ptr_mut(stream);
        let raw = raw::GradientNorm { parts, len, gradients, norm };
        // SAFETY: the gradients are of the length given, the norm holds one element, and the guards
        // order the launches on the stream.
        unsafe { self.gradient_norm_raw(stream, &scratch, &raw) }
    }

    /// [`Kernels::gradient_norm`] on device addresses.
    ///
    /// # Safety
    /// As for [`Kernels::forward_raw`], with what [`raw::GradientNorm`] says.
    ///
    /// # Errors
    /// Those of [`Kernels::adamw_raw`], and [`Error::WorkspaceTooSmall`].
    pub unsafe fn gradient_norm_raw(
        &self,
        stream: &Arc<CudaStream>,
        workspace: &raw::Workspace,
        io: &raw::GradientNorm<'_>,
    ) -> Result<()> {
        self.check_stream(stream)?;
        check_parts(io.parts, io.len)?;
        let single = size_of::<f32>();
        raw::present("norm", io.norm, single)?;
        if has_elements(io.parts) {
            raw::present("gradients", io.gradients, single)?;
        }
        let scratch = workspace.parts(needs(self.sm_count()), 0)?;
        let batch = |index| io.parts.chunks(MAX_PARTS).nth(index).unwrap_or_default();
        // Without any parts the norm, 0, is still to be written.
        let launches = io.parts.len().div_ceil(MAX_PARTS).max(1);
        // As many CTAs in each launch, so that each adds to its own partial sum.
        let chunks = (0..launches).map(|index| KernelParts::new(batch(index)).chunks as usize);
        let ctas = chunks.max().unwrap_or(0).clamp(1, NORM_CTAS_PER_SM * self.sm_count().max(1));
        for index in 0..launches {
            let params = GradientNormParams {
                gradients: io.gradients,
                norm: io.norm,
                partials: scratch.regions,
                counter: scratch.counters,
                first: i32::from(index == 0),
                last: i32::from(index + 1 == launches),
                aligned: are_aligned(&[io.gradients]),
                parts: KernelParts::new(batch(index)),
                ..Default::default()
            };
            let grid = [ctas, 1, 1];
            // SAFETY: the struct is the kernel's; the parts lie within the gradients, for which the
            // caller vouches, and the workspace holds a partial sum per CTA.
            unsafe { self.launch(stream, Entry::GradientNorm, Dtype::F32, grid, &params) }?;
        }
        Ok(())
    }

    /// Whether the buffers are of one length, and in the kernels' context.
    fn check_adamw(&self, io: &AdamW<'_>) -> Result<()> {
        for buffer in [&io.parameters, &io.exp_avg, &io.exp_avg_sq] {
            self.check_buffer(buffer)?;
        }
        self.check_buffer(&io.gradients)?;
        let (one, elements) = (("1", 1), ("elements", io.parameters.len()));
        check_len("gradients", io.gradients.len(), one, elements)?;
        check_len("exp_avg", io.exp_avg.len(), one, elements)?;
        check_len("exp_avg_sq", io.exp_avg_sq.len(), one, elements)?;
        if let Schedule::Device(numbers) = &io.schedule {
            self.check_buffer(numbers)?;
            check_len("schedule", numbers.len(), one, ("learning rate and step", 2))?;
        }
        if let Some(clip) = &io.clip {
            self.check_buffer(&clip.norm)?;
            check_len("norm", clip.norm.len(), one, one)?;
        }
        Ok(())
    }
}

impl AdamWConfig {
    fn check(&self) -> Result<()> {
        let decay = |beta: f64| (0.0..1.0).contains(&beta);
        require("beta1", self.beta1, decay, "at least 0 and less than 1")?;
        require("beta2", self.beta2, decay, "at least 0 and less than 1")?;
        require("epsilon", self.epsilon, is_positive, "positive and finite as an f32")
    }
}

impl raw::AdamW<'_> {
    /// Checks what can be told from the numbers.
    fn check(&self) -> Result<()> {
        let single = size_of::<f32>();
        match self.schedule {
            raw::Schedule::Host { learning_rate, step } => {
                require("learning_rate", learning_rate, is_rate, "finite and not negative")?;
                if step == 0 {
                    let (value, requirement) = (step.to_string(), "at least 1");
                    return Err(Error::InvalidSpec { parameter: "step", value, requirement });
                }
            }
            raw::Schedule::Device(numbers) => raw::present("schedule", numbers, single)?,
        }
        if let Some(clip) = self.clip {
            raw::present("norm", clip.norm, single)?;
            require("max_norm", clip.max_norm, is_positive, "positive and finite as an f32")?;
        }
        check_parts(self.parts, self.len)?;
        if !has_elements(self.parts) {
            return Ok(());
        }
        raw::present("parameters", self.parameters, single)?;
        raw::present("gradients", self.gradients, single)?;
        raw::present("exp_avg", self.exp_avg, single)?;
        raw::present("exp_avg_sq", self.exp_avg_sq, single)
    }
}

impl KernelParts {
    /// Of at most [`MAX_PARTS`] parts, any of which may be empty.
    fn new(parts: &[OptimizerPart]) -> Self {
        let mut part = [KernelPart::default(); MAX_PARTS];
        let mut chunks = 0_u32;
        for (slot, OptimizerPart { range, group }) in part.iter_mut().zip(parts) {
            *slot = KernelPart {
                start: range.start as i64,
                len: range.len() as i64,
                first_chunk: chunks,
                learning_rate_factor: group.learning_rate_factor as f32,
                weight_decay: group.weight_decay as f32,
                ..Default::default()
            };
            let more = u32::try_from(range.len().div_ceil(CHUNK)).unwrap_or(u32::MAX);
            chunks = chunks.saturating_add(more);
        }
        Self { part, count: parts.len() as u32, chunks }
    }

    fn grid(&self) -> [usize; 3] {
        [self.chunks as usize, 1, 1]
    }
}

/// Whether parts are in order, disjoint, and within a buffer of `len` elements.
fn check_parts(parts: &[OptimizerPart], len: usize) -> Result<()> {
    let mut end = 0;
    for OptimizerPart { range, group } in parts {
        if range.start < end || range.end < range.start || range.end > len {
            return Err(Error::InvalidSpec {
                parameter: "a part of the optimizer",
                value: format!("{range:?} of {len} elements, behind a part that ends at {end}"),
                requirement: "a range within the buffer, behind the part before it",
            });
        }
        end = range.end;
        let finite = "finite and not negative";
        require("learning_rate_factor", group.learning_rate_factor, is_rate, finite)?;
        require("weight_decay", group.weight_decay, is_rate, finite)?;
    }
    Ok(())
}

fn has_elements(parts: &[OptimizerPart]) -> bool {
    parts.iter().any(|part| !part.range.is_empty())
}

fn is_rate(value: f64) -> bool {
    (value as f32).is_finite() && value >= 0.0
}

fn is_positive(value: f64) -> bool {
    (value as f32).is_finite() && value as f32 > 0.0
}

fn require(
    parameter: &'static str,
    value: f64,
    holds: impl FnOnce(f64) -> bool,
    requirement: &'static str,
) -> Result<()> {
    if holds(value) {
        return Ok(());
    }
    Err(Error::InvalidSpec { parameter, value: format!("{value:?}"), requirement })
}

fn are_aligned(pointers: &[u64]) -> i32 {
    i32::from(crate::forward::are_aligned(Dtype::F32, &[], pointers))
}

/// A partial sum per CTA of the norm.
pub(crate) fn needs(sm_count: usize) -> Needs {
    let mut regions = Regions::default();
    regions.take(NORM_CTAS_PER_SM * sm_count.max(1), size_of::<f64>());
    Needs { counters: 1, bytes: regions.bytes() }
}
