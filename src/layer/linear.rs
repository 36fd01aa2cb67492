//! `DoraLinear`: a frozen linear layer with adapters that come and go.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut};

use super::{Adapter, Layer, Saved};
use crate::device::{Kernels, Workspace};
use crate::dropout::{Dropout, DropoutForm, uniform};
use crate::dtype::Dtype;
use crate::error::{During, Error, Result};
use crate::layout::AdapterLayout;
use crate::ops::adamw::{AdamW, AdamWConfig, AdapterGroups, Clip, OptimizerPart, Schedule};
use crate::ops::backward::{Backward, Gradients};
use crate::ops::forward::Forward;
use crate::ops::merge::{Merge, Unmerge, check_outputs};
use crate::ops::norm_gradient::NormGradient;
use crate::ops::prepare::{Magnitude, Prepare};
use crate::spec::{DoraSpec, Norm, NormGrad, Scaling};
use crate::tensor::{
    Base, Need, Read, SharedTensor, SharedWeight, Tensors, Write, check_context, check_given,
    check_len, vector,
};

/// A workspace that the layers of one stream share.
pub type SharedWorkspace = Arc<Mutex<Workspace>>;

/// Inputs and outputs of [`DoraLinear::forward`], row-major.
#[derive(Debug)]
pub struct LinearForward<'a> {
    /// T; may be 0.
    pub tokens: usize,
    /// x `[T, I]`.
    pub x: Read<'a>,
    /// y `[T, O]`, written.
    pub y: Write<'a>,
    /// Seed of the stochastic rounding, see [`Forward::seed`].
    pub seed: u64,
    /// Dropout of the adapter's input, in training; without an adapter it drops nothing.
    pub dropout: Option<Dropout>,
    /// For captured graphs: a counter `[1]`, u64, on the device; see [`Forward::counter`].
    pub counter: Option<Read<'a>>,
}

/// Inputs and outputs of [`DoraLinear::backward`], row-major.
#[derive(Debug)]
pub struct LinearBackward<'a> {
    /// T, as in the forward.
    pub tokens: usize,
    /// Whether the adapter's gradients are replaced or added to.
    pub gradients: Gradients,
    /// x `[T, I]`, as given to the forward.
    pub x: Read<'a>,
    /// y `[T, O]`, as the forward wrote it.
    pub y: Read<'a>,
    /// The forward's dropout.
    pub dropout: Option<Dropout>,
    /// The forward's counter, which must not have changed since.
    pub counter: Option<Read<'a>>,
    /// dY `[T, O]`.
    pub grad_output: Read<'a>,
    /// dX `[T, I]`, written; `None` where it is not wanted.
    pub grad_input: Option<Write<'a>>,
}

/// The optimizer's running means for one adapter, of its layout: see [`AdamW`].
#[derive(Debug)]
pub struct Moments {
    exp_avg: CudaSlice<f32>,
    exp_avg_sq: CudaSlice<f32>,
    /// Elements; the buffers have at least one.
    len: usize,
    parts: Vec<OptimizerPart>,
}

impl Moments {
    /// Zeros, for an adapter whose parts learn as `groups` say.
    ///
    /// # Errors
    /// The driver's, e.g. out of memory.
    pub fn new(
        stream: &Arc<CudaStream>,
        layout: &AdapterLayout,
        groups: AdapterGroups,
    ) -> Result<Self> {
        let zeros = || stream.alloc_zeros(layout.len().max(1)).during("allocating moments");
        Ok(Self {
            exp_avg: zeros()?,
            exp_avg_sq: zeros()?,
            len: layout.len(),
            parts: groups.parts(layout, 0).collect(),
        })
    }

    /// The means of the gradients, `exp_avg` of PyTorch's AdamW, laid out as the adapter's
    /// parameters.
    ///
    /// With the parameters, [`exp_avg_sq`](Self::exp_avg_sq) and the number of the step, they are all
    /// that a training needs to go on with the same bits.
    pub fn exp_avg(&self) -> CudaView<'_, f32> {
        self.exp_avg.slice(..self.len)
    }

    /// The means of the gradients, to be restored.
    pub fn exp_avg_mut(&mut self) -> CudaViewMut<'_, f32> {
        self.exp_avg.slice_mut(..self.len)
    }

    /// The means of the squared gradients, `exp_avg_sq` of PyTorch's AdamW, laid out as the adapter's
    /// parameters.
    pub fn exp_avg_sq(&self) -> CudaView<'_, f32> {
        self.exp_avg_sq.slice(..self.len)
    }

    /// The means of the squared gradients, to be restored.
    pub fn exp_avg_sq_mut(&mut self) -> CudaViewMut<'_, f32> {
        self.exp_avg_sq.slice_mut(..self.len)
    }
}

/// A frozen linear layer y = x·Wᵀ + b, W `[O, I]`, and the adapters that are attached to it. One at
/// a time may be active. W is shared and never copied. Switching adapters costs one `prepare` if
/// the parameters changed meanwhile, and nothing if not.
///
/// Forward, backward and optimizer step launch kernels and do nothing else: memory is allocated when
/// adapters, [`Saved`] and [`Moments`] are made.
///
/// The crate's page has an example of training; here, adapters are switched, and merged for export:
///
/// ```
/// use std::sync::{Arc, Mutex};
///
/// use fused_dora::{
///     Adapter, DoraLinear, DoraSpec, Dtype, Kernels, MergeReport, Norm, NormGrad, Part, Scaling,
///     Workspace, open_device,
/// };
/// use half::bf16;
///
/// # cuda_emulator::client::select(cuda_emulator::client::Choice::from_env()?)?;
/// let kernels = Arc::new(Kernels::load(&open_device(0)?)?);
/// let stream = kernels.context().default_stream();
/// let base = DoraLinear::base_spec(24, 16, Dtype::Bf16)?;
/// let lora = |rank, scaling| {
///     DoraSpec::new(24, 16, rank, scaling, Norm::None, NormGrad::Detached, Dtype::Bf16)
/// };
/// let specs = [lora(2, Scaling::Value(1.0))?, lora(0, Scaling::Value(1.0))?];
/// let workspace = Workspace::new(&kernels, &stream, &[base, specs[0], specs[1]], 8)?;
/// let weight = Arc::new(stream.clone_htod(&[bf16::ONE; 16 * 24])?);
/// let workspace = Arc::new(Mutex::new(workspace));
/// let mut layer = DoraLinear::new(&kernels, &stream, &workspace, [16, 24], weight, None)?;
///
/// // Two adapters of one weight; those of a checkpoint are copied in.
/// for (name, spec) in ["shifted", "unchanged"].into_iter().zip(specs) {
///     layer.attach(name, Adapter::new(&stream, &spec, false)?)?;
/// }
/// let adapter = layer.adapter_mut("shifted")?;
/// let factors = ..adapter.layout().range(Part::LoraB).end;
/// let values = vec![1.0f32 / 16.0; factors.end];
/// stream.memcpy_htod(&values, &mut adapter.parameters_mut().slice_mut(factors))?;
///
/// // In f32, W' keeps all of the change, 2/256.
/// let mut report = stream.alloc_zeros::<f64>(MergeReport::LEN)?;
/// let mut merged = stream.alloc_zeros::<f32>(16 * 24)?;
/// layer.activate(Some("shifted"))?;
/// layer.merge(&mut merged, Some((&mut report).into()))?;
/// assert_eq!(stream.clone_dtoh(&merged)?[0], 1.0 + 2.0 / 256.0);
/// assert_eq!(MergeReport::read(&stream, &report.as_view())?.kept(), 1.0);
/// layer.activate(Some("unchanged"))?;
/// layer.merge(&mut merged, None)?;
/// assert_eq!(stream.clone_dtoh(&merged)?[0], 1.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct DoraLinear {
    kernels: Arc<Kernels>,
    stream: Arc<CudaStream>,
    workspace: SharedWorkspace,
    weight: SharedWeight,
    bias: Option<SharedTensor>,
    /// The layer without an adapter.
    base: Adapter,
    adapters: BTreeMap<String, Adapter>,
    active: Option<String>,
}

fn lock(workspace: &SharedWorkspace) -> MutexGuard<'_, Workspace> {
    workspace.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DoraLinear {
    /// The spec of the layer without an adapter: the workspace must be made with it, and with the
    /// specs of the adapters to come.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if a number of features is 0 or beyond 2³⁰.
    pub fn base_spec(in_features: usize, out_features: usize, dtype: Dtype) -> Result<DoraSpec> {
        let (scaling, norm) = (Scaling::Value(1.0), Norm::None);
        DoraSpec::new(in_features, out_features, 0, scaling, norm, NormGrad::Detached, dtype)
    }

    /// A layer with W `[O, I]` and perhaps b `[O]`, both frozen, on `stream`. W's dtype is the
    /// layer's. On a packed W, the specs of the workspace and of adapters have its format
    /// ([`DoraSpec::with_weight`]).
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Dtype`], [`Error::InvalidSpec`], [`Error::ContextMismatch`], or the
    /// driver's.
    pub fn new(
        kernels: &Arc<Kernels>,
        stream: &Arc<CudaStream>,
        workspace: &SharedWorkspace,
        [out_features, in_features]: [usize; 2],
        weight: impl Into<SharedWeight>,
        bias: Option<SharedTensor>,
    ) -> Result<Self> {
        let weight = weight.into();
        let spec = Self::base_spec(in_features, out_features, weight.dtype())?;
        let spec = weight.format().map_or(Ok(spec), |format| spec.with_weight(format))?;
        {
            let (weight, bias) = (weight.read(), bias.as_ref().map(SharedTensor::read));
            let mut tensors = Tensors::new(kernels.context(), stream, spec.dtype())?;
            tensors.weight(&weight, &spec)?;
            tensors.read_vector_if_given("bias", &bias, spec.outputs())?;
        }
        Ok(Self {
            kernels: kernels.clone(),
            stream: stream.clone(),
            workspace: workspace.clone(),
            weight,
            bias,
            base: Adapter::new(stream, &spec, false)?,
            adapters: BTreeMap::new(),
            active: None,
        })
    }

    /// Attaches an adapter under a name; it is not active yet.
    ///
    /// # Errors
    /// [`Error::Adapter`] if the name is taken or the adapter is for other features or another dtype,
    /// with the adapter's own numbers. The adapter is then dropped.
    pub fn attach(&mut self, name: impl Into<String>, adapter: Adapter) -> Result<()> {
        let name = name.into();
        let features = |spec: &DoraSpec| [spec.out_features(), spec.in_features()];
        let (own, base) = (features(adapter.spec()), features(self.base.spec()));
        let (dtype, needed) = (adapter.spec().dtype(), self.base.spec().dtype());
        if dtype != needed {
            let problem = format!("computes in {dtype}, and the layer's weight is {needed}");
            return Err(Error::Adapter { name, problem });
        }
        if own != base {
            let problem = format!("is for a weight {own:?}, and the layer's is {base:?}");
            return Err(Error::Adapter { name, problem });
        }
        let [given, needed] = [self.base.spec(), adapter.spec()].map(|spec| spec.weight());
        if given != needed {
            return Err(Error::weight_format(needed, given));
        }
        if self.adapters.contains_key(&name) {
            let problem = "is attached already: detach it first".to_owned();
            return Err(Error::Adapter { name, problem });
        }
        check_context(self.kernels.context(), adapter.parameters.stream())?;
        self.adapters.insert(name, adapter);
        Ok(())
    }

    /// Takes an adapter off; where it was active, none is afterwards.
    ///
    /// # Errors
    /// [`Error::Adapter`] if there is none of that name.
    pub fn detach(&mut self, name: &str) -> Result<Adapter> {
        let adapter = self.adapters.remove(name).ok_or_else(|| unknown(name))?;
        self.active.take_if(|active| active == name);
        Ok(adapter)
    }

    /// Makes an adapter the one that forward and backward use; `None` for the base layer alone.
    ///
    /// # Errors
    /// [`Error::Adapter`] if there is none of that name.
    pub fn activate(&mut self, name: Option<&str>) -> Result<()> {
        if let Some(name) = name.filter(|&name| !self.adapters.contains_key(name)) {
            return Err(unknown(name));
        }
        self.active = name.map(str::to_owned);
        Ok(())
    }

    /// The name of the active adapter.
    pub fn active(&self) -> Option<&str> {
        self.active.as_deref()
    }

    /// The adapters by name.
    pub fn adapters(&self) -> impl Iterator<Item = (&str, &Adapter)> {
        self.adapters.iter().map(|(name, adapter)| (name.as_str(), adapter))
    }

    /// An adapter.
    ///
    /// # Errors
    /// [`Error::Adapter`] if there is none of that name.
    pub fn adapter(&self, name: &str) -> Result<&Adapter> {
        self.adapters.get(name).ok_or_else(|| unknown(name))
    }

    /// An adapter, to be changed.
    ///
    /// # Errors
    /// [`Error::Adapter`] if there is none of that name.
    pub fn adapter_mut(&mut self, name: &str) -> Result<&mut Adapter> {
        self.adapters.get_mut(name).ok_or_else(|| unknown(name))
    }

    /// Gives a fresh adapter its first parameters: A uniform within ±1/√I (PEFT's default), drawn
    /// from `seed`, B = 0, m = c, so that the layer computes what it did before, and the base
    /// layer's bias where the adapter trains one. Copies from and to the host.
    ///
    /// # Errors
    /// [`Error::Adapter`] if there is none of that name, and those of [`Kernels::prepare`].
    pub fn initialise(&mut self, name: &str, seed: u64) -> Result<()> {
        let during = "initialising an adapter";
        let Self { kernels, stream, workspace, weight, bias, adapters, .. } = self;
        let adapter = adapters.get_mut(name).ok_or_else(|| unknown(name))?;
        let spec = *adapter.spec();
        let bound = 1.0 / (spec.in_features() as f32).sqrt();
        let lora_a: Vec<f32> = (0..(spec.rank() * spec.in_features()) as u64)
            .map(|index| bound * (2.0 * uniform(seed, index) - 1.0))
            .collect();
        adapter.generation += 1;
        let len = adapter.layout.len();
        stream.memset_zeros(&mut adapter.parameters).during(during)?;
        let parts = adapter.layout.view_mut(adapter.parameters.slice_mut(..len))?;
        let mut target = parts.lora_a;
        if !lora_a.is_empty() {
            stream.memcpy_htod(&lora_a, &mut target).during(during)?;
        }
        if let (Some(mut target), Some(bias)) = (parts.bias, bias) {
            let bias = bias.to_f32(stream).during(during)?;
            stream.memcpy_htod(&bias, &mut target).during(during)?;
        }
        let Some(magnitude) = parts.magnitude else { return Ok(()) };
        let zeros = stream.alloc_zeros::<f32>((spec.rank() * spec.out_features()).max(1));
        let zeros = zeros.during(during)?;
        let values = stream.clone_htod(&if lora_a.is_empty() { vec![0.0] } else { lora_a });
        let values = values.during(during)?;
        let inputs = Prepare {
            weight: weight.read(),
            lora_a: values.slice(..spec.rank() * spec.in_features()).into(),
            lora_b: zeros.slice(..spec.rank() * spec.out_features()).into(),
            magnitude: Magnitude::Init(magnitude.into()),
            bias: None,
        };
        Layer::new(stream, &spec)?.prepare(kernels, stream, &mut lock(workspace), inputs)
    }

    /// Room for what forwards of up to `max_tokens` tokens keep, for any of the attached adapters;
    /// `form` is that of the dropout, if there will be any: its kernels are loaded, too.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if `max_tokens` is beyond 2³⁰, or the driver's, e.g. out of memory.
    pub fn saved(&self, max_tokens: usize, form: Option<DropoutForm>) -> Result<Saved> {
        let adapters = self.adapters.values().map(|adapter| *adapter.spec());
        let specs: Vec<_> = adapters.chain([*self.base.spec()]).collect();
        for (spec, form) in specs.iter().filter_map(|spec| Some((spec, form?))) {
            // With this norm axis, a forward refuses that form.
            if spec.norm() != Norm::Input || form != DropoutForm::Peft {
                self.kernels.load_dropout(spec, form)?;
            }
        }
        Saved::new(&self.stream, &specs, max_tokens, form)
    }

    /// y of the base layer with the active adapter: one launch, and one more where the adapter's
    /// parameters changed since it was used last.
    ///
    /// While the stream is captured into a graph, and ever after, the second launch is made each
    /// time: launches of the graph may change the parameters, and the host does not see them.
    ///
    /// # Errors
    /// Those of [`Kernels::prepare`] and [`Kernels::forward`]; [`Error::Shape`] if `saved` is for
    /// fewer tokens or a smaller rank.
    pub fn forward(&mut self, saved: &mut Saved, io: LinearForward<'_>) -> Result<()> {
        let Self { kernels, stream, workspace, weight, bias, base, adapters, active } = self;
        let adapter = active.as_ref().and_then(|name| adapters.get_mut(name));
        let has_adapter = adapter.is_some();
        let adapter = adapter.unwrap_or(base);
        let workspace = &mut lock(workspace);
        let dropout = io.dropout.filter(|_| has_adapter);
        saved.has_counter = io.counter.is_some();
        let (h, z) = saved.write(&adapter.layer, io.tokens, dropout.as_ref())?;
        adapter.prepare(kernels, stream, workspace, weight.read())?;
        let io = Forward {
            tokens: io.tokens,
            base: Base::new(weight.read()).with_bias(bias.as_ref().map(SharedTensor::read)),
            x: io.x,
            y: io.y,
            h,
            z,
            dropout,
            seed: io.seed,
            counter: io.counter,
        };
        adapter.layer.forward(kernels, stream, workspace, io)
    }

    /// The gradients of x and of the active adapter, into the adapter's buffer: one launch.
    /// For [`NormGrad::Exact`], call [`DoraLinear::finish_gradients`] once the
    /// micro-batches of a step are through.
    ///
    /// # Errors
    /// Those of [`Kernels::backward`]; [`Error::NotPrepared`] if the adapter was changed since its
    /// forward; [`Error::MissingTensor`] or [`Error::UnexpectedTensor`] if the forward had a counter
    /// and this has none, or the other way round.
    pub fn backward(&mut self, saved: &Saved, io: LinearBackward<'_>) -> Result<()> {
        let Self { kernels, stream, workspace, weight, bias, base, adapters, active } = self;
        let adapter = active.as_ref().and_then(|name| adapters.get_mut(name));
        let has_adapter = adapter.is_some();
        let adapter = adapter.unwrap_or(base);
        adapter.check_prepared("are of parameters that changed since the forward")?;
        let dropout = io.dropout.filter(|_| has_adapter);
        let need = match saved.has_counter {
            true => Need::Required("the forward took one"),
            false => Need::Excluded("the forward took none"),
        };
        check_given("counter", io.counter.is_some(), need)?;
        let (h, z) = saved.read(&adapter.layer, io.tokens, dropout.as_ref())?;
        let len = adapter.layout.len();
        let gradients = adapter.layout.view_mut(adapter.gradients.slice_mut(..len))?;
        let io = Backward {
            tokens: io.tokens,
            gradients: io.gradients,
            base: Base::new(weight.read()).with_bias(bias.as_ref().map(SharedTensor::read)),
            x: io.x,
            output: Some(io.y),
            z,
            dropout,
            counter: io.counter,
            grad_output: io.grad_output,
            h,
            grad_input: io.grad_input,
            grad_lora_a: gradients.lora_a.into(),
            grad_lora_b: gradients.lora_b.into(),
            grad_magnitude: gradients.magnitude.map(Into::into),
            grad_bias: gradients.bias.map(Into::into),
        };
        adapter.layer.backward(kernels, stream, &mut lock(workspace), io)
    }

    /// Completes the gradients of the active adapter where they flow through the norm: once per
    /// optimizer step ([`Kernels::norm_gradient`]). Otherwise it does nothing.
    ///
    /// # Errors
    /// Those of [`Kernels::norm_gradient`].
    pub fn finish_gradients(&mut self) -> Result<()> {
        let Self { kernels, stream, workspace, weight, adapters, active, .. } = self;
        let Some(adapter) = active.as_ref().and_then(|name| adapters.get_mut(name)) else {
            return Ok(());
        };
        let len = adapter.layout.len();
        let parameters = adapter.layout.view(adapter.parameters.slice(..len))?;
        let gradients = adapter.layout.view_mut(adapter.gradients.slice_mut(..len))?;
        // Plain LoRA has no magnitude, and nothing to complete.
        let Some(grad_magnitude) = &gradients.magnitude else { return Ok(()) };
        let io = NormGradient {
            weight: weight.read(),
            lora_a: parameters.lora_a.into(),
            lora_b: parameters.lora_b.into(),
            grad_magnitude: grad_magnitude.as_view().into(),
            grad_lora_a: gradients.lora_a.into(),
            grad_lora_b: gradients.lora_b.into(),
        };
        adapter.layer.finish(kernels, stream, &mut lock(workspace), io)
    }

    /// One step of AdamW on the active adapter: one launch. To step all layers in one launch, lay
    /// their adapters into one buffer and call [`Kernels::adamw`] on it.
    ///
    /// # Errors
    /// Those of [`Kernels::adamw`]; [`Error::NoActiveAdapter`] if none is active.
    pub fn adamw(
        &mut self,
        config: &AdamWConfig,
        schedule: Schedule<'_>,
        clip: Option<Clip<'_>>,
        moments: &mut Moments,
    ) -> Result<()> {
        let Self { kernels, stream, adapters, active, .. } = self;
        let adapter = active_of(adapters, active, "adamw")?;
        let len = adapter.layout.len();
        check_len("moments", moments.len, vector(("elements", len)))?;
        let io = AdamW {
            len,
            parts: &moments.parts,
            schedule,
            clip,
            parameters: adapter.parameters.slice_mut(..len).into(),
            gradients: adapter.gradients.slice(..len).into(),
            exp_avg: moments.exp_avg.slice_mut(..len).into(),
            exp_avg_sq: moments.exp_avg_sq.slice_mut(..len).into(),
        };
        kernels.adamw(stream, config, io)?;
        adapter.generation += 1;
        Ok(())
    }

    /// W' `[O, I]` of the active adapter, for export: with it, and with the adapter's bias where it
    /// trains one, a layer without adapters computes what this one does. One launch, and one more
    /// where the adapter's parameters changed since they were used last; W stays as it is.
    ///
    /// `report` is `[MergeReport::LEN]`, for [`MergeReport::read`](crate::MergeReport::read).
    /// Rounding and formula: [`Kernels::merge`].
    ///
    /// # Errors
    /// Those of [`Kernels::prepare`] and [`Kernels::merge`]; [`Error::NoActiveAdapter`] if none is active.
    pub fn merge<'a>(
        &mut self,
        merged: impl Into<Write<'a>>,
        mut report: Option<Write<'a>>,
    ) -> Result<()> {
        let Self { kernels, stream, workspace, weight, adapters, active, .. } = self;
        let (adapter, mut merged) = (active_of(adapters, active, "merge")?, merged.into());
        check_outputs(kernels, stream, adapter.spec(), &mut merged, &mut report)?;
        let workspace = &mut lock(workspace);
        adapter.prepare(kernels, stream, workspace, weight.read())?;
        let parameters = adapter.layout.view(adapter.parameters())?;
        let io = Merge {
            weight: weight.read(),
            lora_a: parameters.lora_a.into(),
            lora_b: parameters.lora_b.into(),
            merged,
            report,
        };
        kernels.merge(stream, adapter.spec(), adapter.prepared(), workspace, io)
    }

    /// W `[O, I]`, into `weight`, from the W' that [`DoraLinear::merge`] made of it with the active
    /// adapter, whose parameters must not have changed since. One launch, after the gains have been
    /// read back. How near it comes: [`Kernels::unmerge`].
    ///
    /// # Errors
    /// Those of [`Kernels::unmerge`]; [`Error::NoActiveAdapter`] if none is active, [`Error::NotPrepared`]
    /// if its parameters changed since the merge, or may have, in a graph.
    pub fn unmerge<'a>(
        &mut self,
        merged: impl Into<Read<'a>>,
        weight: impl Into<Write<'a>>,
    ) -> Result<()> {
        let Self { kernels, stream, workspace, adapters, active, .. } = self;
        let adapter = active_of(adapters, active, "unmerge")?;
        adapter.check_prepared("are of parameters that changed since the merge")?;
        adapter.check_seen()?;
        let parameters = adapter.layout.view(adapter.parameters())?;
        let io = Unmerge {
            merged: merged.into(),
            lora_a: parameters.lora_a.into(),
            lora_b: parameters.lora_b.into(),
            weight: weight.into(),
        };
        let workspace = &mut lock(workspace);
        kernels.unmerge(stream, adapter.spec(), adapter.prepared(), workspace, io)
    }
}

/// The active adapter, which `call` needs.
fn active_of<'a>(
    adapters: &'a mut BTreeMap<String, Adapter>,
    active: &Option<String>,
    call: &'static str,
) -> Result<&'a mut Adapter> {
    let adapter = active.as_ref().and_then(|name| adapters.get_mut(name));
    adapter.ok_or(Error::NoActiveAdapter { call })
}

fn unknown(name: &str) -> Error {
    let problem = "is not attached: attach it first".to_owned();
    Error::Adapter { name: name.to_owned(), problem }
}
