//! `DoraLinear`: a frozen linear layer with adapters that come and go.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut};

use crate::adamw::{AdamW, AdamWConfig, AdapterGroups, Clip, OptimizerPart, Schedule};
use crate::adapter::{Adapter, AdapterLayout};
use crate::backward::{Backward, Gradients};
use crate::dropout::{Dropout, DropoutForm, uniform};
use crate::error::{During, Error, Result};
use crate::forward::Forward;
use crate::kernels::Kernels;
use crate::merge::{Merge, Unmerge, check_outputs};
use crate::norm_gradient::NormGradient;
use crate::prepare::{Magnitude, Prepare, Prepared};
use crate::rows::{MatrixView, MatrixViewMut};
use crate::spec::{DoraSpec, Element, Norm, NormGrad, Scaling, check_len};
use crate::workspace::Workspace;

/// A workspace that the layers of one stream share.
pub type SharedWorkspace = Arc<Mutex<Workspace>>;

/// What a forward keeps for its backward: one for each micro-batch that is under way.
#[derive(Debug)]
pub struct Saved<E> {
    h: CudaSlice<E>,
    z: Option<CudaSlice<E>>,
}

/// Inputs and outputs of [`DoraLinear::forward`], row-major.
#[derive(Debug)]
pub struct LinearForward<'a, E> {
    /// T; may be 0.
    pub tokens: usize,
    /// x `[T, I]`.
    pub x: MatrixView<'a, E>,
    /// y `[T, O]`, written.
    pub y: MatrixViewMut<'a, E>,
    /// Seed of the stochastic rounding, see [`Forward::seed`].
    pub seed: u64,
    /// Dropout of the adapter's input, in training; without an adapter it drops nothing.
    pub dropout: Option<Dropout>,
}

/// Inputs and outputs of [`DoraLinear::backward`], row-major.
#[derive(Debug)]
pub struct LinearBackward<'a, E> {
    /// T, as in the forward.
    pub tokens: usize,
    /// Whether the adapter's gradients are replaced or added to.
    pub gradients: Gradients,
    /// x `[T, I]`, as given to the forward.
    pub x: MatrixView<'a, E>,
    /// y `[T, O]`, as the forward wrote it.
    pub y: MatrixView<'a, E>,
    /// The forward's dropout.
    pub dropout: Option<Dropout>,
    /// dY `[T, O]`.
    pub grad_output: MatrixView<'a, E>,
    /// dX `[T, I]`, written; `None` where it is not wanted.
    pub grad_input: Option<MatrixViewMut<'a, E>>,
}

/// The optimizer's running means for one adapter, of its layout: see [`AdamW`].
#[derive(Debug)]
pub struct Moments {
    exp_avg: CudaSlice<f32>,
    exp_avg_sq: CudaSlice<f32>,
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
            parts: groups.parts(layout, 0).collect(),
        })
    }
}

/// A frozen linear layer y = x·Wᵀ + b, W `[O, I]`, and the adapters that are attached to it, of
/// which one at a time may be active. W is shared and never copied; switching adapters costs one
/// `prepare` if the parameters changed meanwhile, and nothing if not.
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
/// let base = DoraLinear::<bf16>::base_spec(24, 16)?;
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
/// layer.merge(merged.as_view_mut(), Some(report.as_view_mut()))?;
/// assert_eq!(stream.clone_dtoh(&merged)?[0], 1.0 + 2.0 / 256.0);
/// assert_eq!(MergeReport::read(&stream, &report.as_view())?.kept(), 1.0);
/// layer.activate(Some("unchanged"))?;
/// layer.merge(merged.as_view_mut(), None)?;
/// assert_eq!(stream.clone_dtoh(&merged)?[0], 1.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct DoraLinear<E> {
    kernels: Arc<Kernels>,
    stream: Arc<CudaStream>,
    workspace: SharedWorkspace,
    weight: Arc<CudaSlice<E>>,
    bias: Option<Arc<CudaSlice<E>>>,
    /// The layer without an adapter.
    base: Adapter<E>,
    adapters: BTreeMap<String, Adapter<E>>,
    active: Option<String>,
}

fn lock(workspace: &SharedWorkspace) -> MutexGuard<'_, Workspace> {
    workspace.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<E: Element> DoraLinear<E> {
    /// The spec of the layer without an adapter: the workspace must be made with it, and with the
    /// specs of the adapters to come.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if a number of features is 0 or beyond 2³⁰.
    pub fn base_spec(in_features: usize, out_features: usize) -> Result<DoraSpec> {
        let (scaling, norm) = (Scaling::Value(1.0), Norm::None);
        DoraSpec::new(in_features, out_features, 0, scaling, norm, NormGrad::Detached, E::DTYPE)
    }

    /// A layer with W `[O, I]` and perhaps b `[O]`, both frozen, on `stream`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::InvalidSpec`], [`Error::ContextMismatch`], or the driver's.
    pub fn new(
        kernels: &Arc<Kernels>,
        stream: &Arc<CudaStream>,
        workspace: &SharedWorkspace,
        [out_features, in_features]: [usize; 2],
        weight: Arc<CudaSlice<E>>,
        bias: Option<Arc<CudaSlice<E>>>,
    ) -> Result<Self> {
        kernels.check_stream(stream)?;
        let spec = Self::base_spec(in_features, out_features)?;
        check_len("weight", weight.len(), ("O", out_features), ("I", in_features))?;
        kernels.check_buffer(&*weight)?;
        if let Some(bias) = &bias {
            check_len("bias", bias.len(), ("1", 1), ("O", out_features))?;
            kernels.check_buffer(&**bias)?;
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
    /// [`Error::Adapter`] if the name is taken or the adapter is for other features, with the
    /// adapter's own numbers. The adapter is then dropped.
    pub fn attach(&mut self, name: impl Into<String>, adapter: Adapter<E>) -> Result<()> {
        let name = name.into();
        let features = |spec: &DoraSpec| [spec.out_features(), spec.in_features()];
        let (own, base) = (features(&adapter.spec), features(&self.base.spec));
        if own != base {
            let problem = format!("is for a weight {own:?}, and the layer's is {base:?}");
            return Err(Error::Adapter { name, problem });
        }
        if self.adapters.contains_key(&name) {
            let problem = "is attached already: detach it first".to_owned();
            return Err(Error::Adapter { name, problem });
        }
        self.kernels.check_buffer(&adapter.parameters)?;
        self.adapters.insert(name, adapter);
        Ok(())
    }

    /// Takes an adapter off; where it was active, none is afterwards.
    ///
    /// # Errors
    /// [`Error::Adapter`] if there is none of that name.
    pub fn detach(&mut self, name: &str) -> Result<Adapter<E>> {
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
    pub fn adapters(&self) -> impl Iterator<Item = (&str, &Adapter<E>)> {
        self.adapters.iter().map(|(name, adapter)| (name.as_str(), adapter))
    }

    /// An adapter.
    ///
    /// # Errors
    /// [`Error::Adapter`] if there is none of that name.
    pub fn adapter(&self, name: &str) -> Result<&Adapter<E>> {
        self.adapters.get(name).ok_or_else(|| unknown(name))
    }

    /// An adapter, to be changed.
    ///
    /// # Errors
    /// [`Error::Adapter`] if there is none of that name.
    pub fn adapter_mut(&mut self, name: &str) -> Result<&mut Adapter<E>> {
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
        let spec = adapter.spec;
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
            let bias = stream.clone_dtoh(&**bias).during(during)?;
            let bias: Vec<f32> = bias.into_iter().map(Element::to_f32).collect();
            stream.memcpy_htod(&bias, &mut target).during(during)?;
        }
        let Some(magnitude) = parts.magnitude else { return Ok(()) };
        let zeros = stream.alloc_zeros::<f32>((spec.rank() * spec.out_features()).max(1));
        let zeros = zeros.during(during)?;
        let values = stream.clone_htod(&if lora_a.is_empty() { vec![0.0] } else { lora_a });
        let values = values.during(during)?;
        let inputs = Prepare {
            weight: weight.as_view(),
            lora_a: values.slice(..spec.rank() * spec.in_features()),
            lora_b: zeros.slice(..spec.rank() * spec.out_features()),
            magnitude: Magnitude::Init(magnitude),
            bias: None,
        };
        let mut prepared = Prepared::new(stream, &spec)?;
        kernels.prepare(stream, &spec, &mut lock(workspace), &mut prepared, inputs)
    }

    /// Room for what forwards of up to `max_tokens` tokens keep, for any of the attached adapters;
    /// `form` is that of the dropout, if there will be any.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if `max_tokens` is beyond 2³⁰, or the driver's, e.g. out of memory.
    pub fn saved(&self, max_tokens: usize, form: Option<DropoutForm>) -> Result<Saved<E>> {
        self.base.spec.check_tokens(max_tokens)?;
        let ranks = self.adapters.values().map(|adapter| adapter.spec.padded_rank());
        let on_output = self.adapters.values().any(|a| a.spec.norm() == Norm::Output);
        let zeros = |cols: usize| {
            let elements = max_tokens.saturating_mul(cols).max(1);
            self.stream.alloc_zeros::<E>(elements).during("allocating what a forward keeps")
        };
        let keeps_z = on_output && form == Some(DropoutForm::Peft);
        Ok(Saved {
            h: zeros(ranks.max().unwrap_or(0))?,
            z: keeps_z.then(|| zeros(self.base.spec.out_features())).transpose()?,
        })
    }

    /// y of the base layer with the active adapter: one launch, and one more where the adapter's
    /// parameters changed since it was used last.
    ///
    /// # Errors
    /// Those of [`Kernels::prepare`] and [`Kernels::forward`]; [`Error::Shape`] if `saved` is for
    /// fewer tokens or a smaller rank.
    pub fn forward(&mut self, saved: &mut Saved<E>, io: LinearForward<'_, E>) -> Result<()> {
        let Self { kernels, stream, workspace, weight, bias, base, adapters, active } = self;
        let adapter = active.as_ref().and_then(|name| adapters.get_mut(name));
        let has_adapter = adapter.is_some();
        let adapter = adapter.unwrap_or(base);
        let workspace = &mut lock(workspace);
        let dropout = io.dropout.filter(|_| has_adapter);
        let peft = Dropout::check(dropout.as_ref(), &adapter.spec)?;
        let (h_len, z_len) = saved_lens(saved, &adapter.spec, io.tokens, peft)?;
        adapter.prepare(kernels, stream, workspace, weight)?;
        let frozen = bias.as_ref().map(|bias| bias.as_view());
        let io = Forward {
            tokens: io.tokens,
            x: io.x,
            weight: weight.as_view(),
            bias: adapter.prepared.bias().or(frozen),
            seed: io.seed,
            dropout,
            z: saved.z.as_mut().filter(|_| peft).map(|z| z.slice_mut(..z_len)),
            y: io.y,
            h: saved.h.slice_mut(..h_len),
        };
        kernels.forward(stream, &adapter.spec, &adapter.prepared, workspace, io)
    }

    /// The gradients of x and of the active adapter, into the adapter's buffer: one launch.
    /// For [`NormGrad::Exact`], call [`DoraLinear::finish_gradients`] once the
    /// micro-batches of a step are through.
    ///
    /// # Errors
    /// Those of [`Kernels::backward`]; [`Error::NotPrepared`] if the adapter was changed since its
    /// forward.
    pub fn backward(&mut self, saved: &Saved<E>, io: LinearBackward<'_, E>) -> Result<()> {
        let Self { kernels, stream, workspace, weight, bias, base, adapters, active } = self;
        let adapter = active.as_ref().and_then(|name| adapters.get_mut(name));
        let has_adapter = adapter.is_some();
        let adapter = adapter.unwrap_or(base);
        adapter.check_prepared("are of parameters that changed since the forward")?;
        let spec = &adapter.spec;
        let dropout = io.dropout.filter(|_| has_adapter);
        let peft = Dropout::check(dropout.as_ref(), spec)?;
        let (h_len, z_len) = saved_lens(saved, spec, io.tokens, peft)?;
        let frozen = bias.as_ref().map(|bias| bias.as_view());
        let len = adapter.layout.len();
        let gradients = adapter.layout.view_mut(adapter.gradients.slice_mut(..len))?;
        let mut io = Backward {
            tokens: io.tokens,
            gradients: io.gradients,
            x: io.x,
            weight: weight.as_view(),
            bias: adapter.prepared.bias().or(frozen),
            output: (spec.norm() == Norm::Output && !peft).then_some(io.y),
            z: saved.z.as_ref().filter(|_| peft).map(|z| z.slice(..z_len)),
            dropout,
            grad_output: io.grad_output,
            h: saved.h.slice(..h_len),
            grad_input: io.grad_input,
            grad_lora_a: gradients.lora_a,
            grad_lora_b: gradients.lora_b,
            grad_magnitude: gradients.magnitude,
            grad_bias: gradients.bias,
        };
        kernels.backward(stream, spec, &adapter.prepared, &mut lock(workspace), &mut io)
    }

    /// Completes the gradients of the active adapter where they flow through the norm: once per
    /// optimizer step, two launches. Otherwise it does nothing.
    ///
    /// # Errors
    /// Those of [`Kernels::norm_gradient`].
    pub fn finish_gradients(&mut self) -> Result<()> {
        let Self { kernels, stream, workspace, weight, adapters, active, .. } = self;
        let Some(adapter) = active.as_ref().and_then(|name| adapters.get_mut(name)) else {
            return Ok(());
        };
        if adapter.spec.norm_grad() == NormGrad::Detached {
            return Ok(());
        }
        let len = adapter.layout.len();
        let parameters = adapter.layout.view(adapter.parameters.slice(..len))?;
        let gradients = adapter.layout.view_mut(adapter.gradients.slice_mut(..len))?;
        let Some(grad_magnitude) = &gradients.magnitude else { return Ok(()) };
        let io = NormGradient {
            weight: weight.as_view(),
            lora_a: parameters.lora_a,
            lora_b: parameters.lora_b,
            grad_magnitude: grad_magnitude.as_view(),
            grad_lora_a: gradients.lora_a,
            grad_lora_b: gradients.lora_b,
        };
        let workspace = &mut lock(workspace);
        kernels.norm_gradient(stream, &adapter.spec, &adapter.prepared, workspace, io)
    }

    /// One step of AdamW on the active adapter: one launch. To step all layers in one launch, lay
    /// their adapters into one buffer and call [`Kernels::adamw`] on it.
    ///
    /// # Errors
    /// Those of [`Kernels::adamw`]; [`Error::Adapter`] if none is active.
    pub fn adamw(
        &mut self,
        config: &AdamWConfig,
        schedule: Schedule<'_>,
        clip: Option<Clip<'_>>,
        moments: &mut Moments,
    ) -> Result<()> {
        let Self { kernels, stream, adapters, active, .. } = self;
        let adapter = active_of(adapters, active, "its optimizer step")?;
        let len = adapter.layout.len();
        check_len("moments", moments.exp_avg.len(), ("1", 1), ("elements", len.max(1)))?;
        let io = AdamW {
            parts: &moments.parts,
            schedule,
            clip,
            parameters: adapter.parameters.slice_mut(..len),
            gradients: adapter.gradients.slice(..len),
            exp_avg: moments.exp_avg.slice_mut(..len),
            exp_avg_sq: moments.exp_avg_sq.slice_mut(..len),
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
    /// Those of [`Kernels::prepare`] and [`Kernels::merge`]; [`Error::Adapter`] if none is active.
    pub fn merge<F: Element>(
        &mut self,
        merged: CudaViewMut<'_, F>,
        report: Option<CudaViewMut<'_, f64>>,
    ) -> Result<()> {
        let Self { kernels, stream, workspace, weight, adapters, active, .. } = self;
        let adapter = active_of(adapters, active, "it is merged")?;
        let workspace = &mut lock(workspace);
        check_outputs(kernels, &adapter.spec, ("merged", &merged), report.as_ref())?;
        adapter.prepare(kernels, stream, workspace, weight)?;
        let parameters = adapter.layout.view(adapter.parameters())?;
        let (lora_a, lora_b) = (parameters.lora_a, parameters.lora_b);
        let io = Merge { weight: weight.as_view(), lora_a, lora_b, merged, report };
        kernels.merge(stream, &adapter.spec, &adapter.prepared, workspace, io)
    }

    /// W `[O, I]`, into `weight`, from the W' that [`DoraLinear::merge`] made of it with the active
    /// adapter, whose parameters must not have changed since. One launch, after the gains have been
    /// read back. How near it comes: [`Kernels::unmerge`].
    ///
    /// # Errors
    /// Those of [`Kernels::unmerge`]; [`Error::Adapter`] if none is active, [`Error::NotPrepared`]
    /// if its parameters changed since the merge.
    pub fn unmerge<F: Element>(
        &mut self,
        merged: CudaView<'_, F>,
        weight: CudaViewMut<'_, E>,
    ) -> Result<()> {
        let Self { kernels, stream, workspace, adapters, active, .. } = self;
        let adapter = active_of(adapters, active, "its weight is unmerged")?;
        adapter.check_prepared("are of parameters that changed since the merge")?;
        let parameters = adapter.layout.view(adapter.parameters())?;
        let (lora_a, lora_b) = (parameters.lora_a, parameters.lora_b);
        let io = Unmerge { merged, lora_a, lora_b, weight };
        kernels.unmerge(stream, &adapter.spec, &adapter.prepared, &mut lock(workspace), io)
    }
}

/// The active adapter, which is needed for this.
fn active_of<'a, E>(
    adapters: &'a mut BTreeMap<String, Adapter<E>>,
    active: &Option<String>,
    before: &str,
) -> Result<&'a mut Adapter<E>> {
    active.as_ref().and_then(|name| adapters.get_mut(name)).ok_or_else(|| {
        let problem = format!("is none: activate one before {before}");
        Error::Adapter { name: String::new(), problem }
    })
}

fn unknown(name: &str) -> Error {
    let problem = "is not attached: attach it first".to_owned();
    Error::Adapter { name: name.to_owned(), problem }
}

/// The elements of H and z of a call, if `saved` has room for them.
fn saved_lens<E>(
    saved: &Saved<E>,
    spec: &DoraSpec,
    tokens: usize,
    peft: bool,
) -> Result<(usize, usize)> {
    let h = tokens.saturating_mul(spec.padded_rank());
    let z = if peft { tokens.saturating_mul(spec.out_features()) } else { 0 };
    let z_room = saved.z.as_ref().map_or(0, CudaSlice::len);
    for (tensor, needed, found, cols) in [
        ("the saved H", h, saved.h.len(), spec.padded_rank()),
        ("the saved z", z, z_room, spec.out_features()),
    ] {
        if needed > found {
            let shape = format!("[T={tokens}, {cols}]");
            return Err(Error::Shape { tensor, shape, expected: needed, found });
        }
    }
    Ok((h, z))
}
