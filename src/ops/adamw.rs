//! `adamw`: the optimizer's step over one buffer (kernels/adamw/sm80.cu).

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::CudaStream;

use crate::device::{Kernel, Kernels, Launch};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::layout::{AdapterLayout, Part};
#[cfg(doc)]
use crate::ops::forward::Forward;
use crate::params::adamw::{
    AdamWParams, CHUNK, MAX_PARTS, Part as KernelPart, Parts as KernelParts,
};
use crate::tensor::{ElementType, Read, Tensors, Write, vector};

const ADAMW: Kernel = Kernel::f32_only("adamw", "adamw");

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
        let no_decay = OptimizerGroup::default();
        let decay = OptimizerGroup { weight_decay: 0.01, ..no_decay };
        Self { lora_a: decay, lora_b: decay, magnitude: no_decay, bias: no_decay }
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
    /// `[η, t]`, f32, on the device, read when the launch runs: write both before each replay of a graph.
    /// An f32 counts to 2²⁴ steps.
    Device(Read<'a>),
    /// The same, and a counter that seeds are combined with ([`Forward::counter`]).
    Counted {
        /// `[2]`, f32, as of [`Device`](Self::Device).
        numbers: Read<'a>,
        /// `[1]`, u64: the step adds 1 to it. If several calls make up a step, one of them counts,
        /// after the last backward.
        counter: Write<'a>,
    },
}

/// Gradients longer than `max_norm` are scaled down to it, by what `norm` holds when the launch
/// runs. A norm that is NaN makes all parameters NaN.
#[derive(Debug)]
pub struct Clip<'a> {
    /// The longest gradient that is left as it is.
    pub max_norm: f64,
    /// `[1]`, the gradient's norm: that of [`Kernels::gradient_norm`], or one over all layers and
    /// devices. f32.
    pub norm: Read<'a>,
}

/// Inputs and outputs of [`Kernels::adamw`]: four f32 buffers of `len` elements.
#[derive(Debug)]
pub struct AdamW<'a> {
    /// Elements of each buffer.
    pub len: usize,
    /// The ranges to go through, in ascending order and disjoint; elements between them are neither
    /// read nor written. Those of one adapter come from [`AdapterGroups::parts`].
    pub parts: &'a [OptimizerPart],
    /// The learning rate and the number of the step.
    pub schedule: Schedule<'a>,
    /// Whether gradients are clipped.
    pub clip: Option<Clip<'a>>,
    /// The parameters, updated.
    pub parameters: Write<'a>,
    /// The gradients.
    pub gradients: Read<'a>,
    /// The running mean of the gradient, updated; zero before the first step.
    pub exp_avg: Write<'a>,
    /// The running mean of the gradient's square, updated; zero before the first step.
    pub exp_avg_sq: Write<'a>,
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
    /// let (mut exp_avg, mut exp_avg_sq) = (stream.alloc_zeros::<f32>(len)?, stream.alloc_zeros::<f32>(len)?);
    ///
    /// let mut norm = stream.alloc_zeros::<f32>(1)?;
    /// let measured =
    ///     GradientNorm { parts: &parts, len, gradients: (&gradients).into(), norm: (&mut norm).into() };
    /// kernels.gradient_norm(&stream, &mut workspace, measured)?;
    /// let step = AdamW {
    ///     len,
    ///     parts: &parts,
    ///     schedule: Schedule::Host { learning_rate: 1e-3, step: 1 },
    ///     clip: Some(Clip { max_norm: 1.0, norm: (&norm).into() }),
    ///     parameters: (&mut parameters).into(),
    ///     gradients: (&gradients).into(),
    ///     exp_avg: (&mut exp_avg).into(),
    ///     exp_avg_sq: (&mut exp_avg_sq).into(),
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
        let mut t = Tensors::new(self.context(), stream, Dtype::F32)?;
        config.check()?;
        check_parts(io.parts, io.len)?;
        let batches = io.parts.chunks(MAX_PARTS).map(kernel_parts);
        let mut batches: Vec<_> = batches.filter(|parts| parts.chunks > 0).collect();
        let launch = |parts: &KernelParts| {
            Launch::new(ADAMW, Dtype::F32, [parts.chunks.max(1) as usize, 1, 1])
        };
        batches.iter().try_for_each(|parts| self.check_launch(&launch(parts)))?;
        let params = io.params(&mut t, config)?;
        if batches.is_empty() && params.counter != 0 {
            // Without any elements the step is still to be counted.
            batches.push(kernel_parts(&[]));
        }
        let last = batches.len().saturating_sub(1);
        for (index, parts) in batches.into_iter().enumerate() {
            let counter = if index == last { params.counter } else { 0 };
            let (launch, params) = (launch(&parts), AdamWParams { parts, counter, ..params });
            // SAFETY: the struct is the kernel's, each address in it was checked, and the parts lie
            // within the buffers.
            unsafe { self.launch(stream, &launch, &params) }?;
        }
        Ok(())
    }
}

impl AdamW<'_> {
    /// The kernel's parameters without the parts: each tensor is checked here, once.
    fn params<'t>(&'t mut self, t: &mut Tensors<'t>, config: &AdamWConfig) -> Result<AdamWParams> {
        let (f32, elements) = (ElementType::F32, vector(("elements", self.len)));
        let device = vector(("learning rate and step", 2));
        let mut counter = 0;
        let (schedule, learning_rate, step) = match &mut self.schedule {
            &mut Schedule::Host { learning_rate, step } => {
                require("learning_rate", learning_rate, is_rate, "finite and not negative")?;
                if step == 0 {
                    let (value, requirement) = (step.to_string(), "at least 1");
                    return Err(Error::InvalidSpec { parameter: "step", value, requirement });
                }
                (0, learning_rate, step as f64)
            }
            Schedule::Device(numbers) => {
                (t.read_as(f32, "schedule", numbers, device)?.address, 0.0, 1.0)
            }
            Schedule::Counted { numbers, counter: counted } => {
                let one = vector(("1", 1));
                counter = t.write_as(ElementType::U64, "counter", counted, one)?.address;
                (t.read_as(f32, "schedule", numbers, device)?.address, 0.0, 1.0)
            }
        };
        let (norm, max_norm) = match &self.clip {
            Some(Clip { max_norm, norm }) => {
                require("max_norm", *max_norm, is_positive, "positive and finite as an f32")?;
                (t.read_as(f32, "norm", norm, vector(("1", 1)))?.address, *max_norm)
            }
            None => (0, 0.0),
        };
        let parameters = t.write_as(f32, "parameters", &mut self.parameters, elements)?;
        let gradients = t.read_as(f32, "gradients", &self.gradients, elements)?;
        let exp_avg = t.write_as(f32, "exp_avg", &mut self.exp_avg, elements)?;
        let exp_avg_sq = t.write_as(f32, "exp_avg_sq", &mut self.exp_avg_sq, elements)?;
        let buffers = [parameters, gradients, exp_avg, exp_avg_sq];
        // 1 − βᵗ, without cancellation.
        let correction = |beta: f64| -(step * beta.ln()).exp_m1();
        Ok(AdamWParams {
            parameters: parameters.address,
            gradients: gradients.address,
            exp_avg: exp_avg.address,
            exp_avg_sq: exp_avg_sq.address,
            norm,
            schedule,
            counter,
            learning_rate: learning_rate as f32,
            correction: correction(config.beta1).recip() as f32,
            correction_sq: correction(config.beta2).sqrt().recip() as f32,
            rate: (1.0 - config.beta1) as f32,
            rate_sq: (1.0 - config.beta2) as f32,
            log_beta1: config.beta1.ln() as f32,
            log_beta2: config.beta2.ln() as f32,
            epsilon: config.epsilon as f32,
            max_norm: max_norm as f32,
            aligned: buffers.iter().all(|buffer| buffer.starts_aligned()).into(),
            ..AdamWParams::default()
        })
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

/// At most [`MAX_PARTS`] parts for the kernel; any of them may be empty.
pub(super) fn kernel_parts(parts: &[OptimizerPart]) -> KernelParts {
    let mut all = KernelParts { count: parts.len() as u32, ..KernelParts::default() };
    for (slot, OptimizerPart { range, group }) in all.part.iter_mut().zip(parts) {
        *slot = KernelPart {
            start: range.start as i64,
            len: range.len() as i64,
            first_chunk: all.chunks,
            learning_rate_factor: group.learning_rate_factor as f32,
            weight_decay: group.weight_decay as f32,
            ..KernelPart::default()
        };
        let more = u32::try_from(range.len().div_ceil(CHUNK)).unwrap_or(u32::MAX);
        all.chunks = all.chunks.saturating_add(more);
    }
    all
}

/// Whether parts are in order, disjoint, and within a buffer of `len` elements.
pub(super) fn check_parts(parts: &[OptimizerPart], len: usize) -> Result<()> {
    let mut end = 0;
    for OptimizerPart { range, group } in parts {
        if range.start < end || range.end < range.start || range.end > len {
            return Err(Error::InvalidSpec {
                parameter: "a part of the optimizer",
                value: format!("{range:?} of {len} elements, behind a part that ends at {end}"),
                requirement: "a range within the buffer, after the part before it",
            });
        }
        end = range.end;
        let finite = "finite and not negative";
        require("learning_rate_factor", group.learning_rate_factor, is_rate, finite)?;
        require("weight_decay", group.weight_decay, is_rate, finite)?;
    }
    Ok(())
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

/// The kernels that train a layer.
pub(super) const fn kernels() -> &'static [Kernel] {
    &[ADAMW]
}
