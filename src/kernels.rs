//! The compiled kernels, loaded into a context, and the checks around every launch.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, DeviceRepr, DeviceSlice, DriverError,
    LaunchConfig, PushKernelArg, sys,
};
use cudarc::nvrtc::Ptx;

use crate::error::{During, Error, Result};
use crate::f32_math::F32Math;
use crate::params::common;
use crate::spec::{DoraSpec, Dtype, NormGrad};
use crate::tiles::{Tiles, Tiling};

mod embedded {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// Threads of every kernel's block.
pub(crate) const THREADS: u32 = common::THREADS as u32;

/// bf16 tensor cores and cp.async came with Ampere.
const NEEDED_CAPABILITY: (i32, i32) = (8, 0);

/// One kernel, whatever its dtype.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    Prepare,
    Forward,
    ForwardMedium,
    ForwardTf32x3,
    ForwardMediumTf32x3,
    ForwardSmall,
    ForwardDropout,
    ForwardPeftDropout,
    Backward,
    BackwardMedium,
    BackwardTf32x3,
    BackwardMediumTf32x3,
    BackwardSmall,
    BackwardDropout,
    AdamW,
    GradientNorm,
    NormGradient,
    NormGradientFinish,
    Merge,
    Unmerge,
    Decompose,
}

impl Entry {
    const ALL: [Self; 21] = [
        Self::Prepare,
        Self::Forward,
        Self::ForwardMedium,
        Self::ForwardTf32x3,
        Self::ForwardMediumTf32x3,
        Self::ForwardSmall,
        Self::ForwardDropout,
        Self::ForwardPeftDropout,
        Self::Backward,
        Self::BackwardMedium,
        Self::BackwardTf32x3,
        Self::BackwardMediumTf32x3,
        Self::BackwardSmall,
        Self::BackwardDropout,
        Self::AdamW,
        Self::GradientNorm,
        Self::NormGradient,
        Self::NormGradientFinish,
        Self::Merge,
        Self::Unmerge,
        Self::Decompose,
    ];

    /// The entry point's name up to the dtype, and its op.
    const fn name(self) -> (&'static str, &'static str) {
        match self {
            Self::Prepare => ("prepare", "prepare"),
            Self::Forward => ("forward", "forward"),
            Self::ForwardMedium => ("forward_medium", "forward"),
            Self::ForwardTf32x3 => ("forward_tf32x3", "forward"),
            Self::ForwardMediumTf32x3 => ("forward_medium_tf32x3", "forward"),
            Self::ForwardSmall => ("forward_few_tokens", "forward"),
            Self::ForwardDropout => ("forward_dropout", "forward"),
            Self::ForwardPeftDropout => ("forward_peft_dropout", "forward"),
            Self::Backward => ("backward", "backward"),
            Self::BackwardMedium => ("backward_medium", "backward"),
            Self::BackwardTf32x3 => ("backward_tf32x3", "backward"),
            Self::BackwardMediumTf32x3 => ("backward_medium_tf32x3", "backward"),
            Self::BackwardSmall => ("backward_few_tokens", "backward"),
            Self::BackwardDropout => ("backward_dropout", "backward"),
            Self::AdamW => ("adamw", "adamw"),
            Self::GradientNorm => ("gradient_norm", "adamw"),
            Self::NormGradient => ("norm_gradient", "norm_gradient"),
            Self::NormGradientFinish => ("norm_gradient_finish", "norm_gradient"),
            Self::Merge => ("merge", "merge"),
            Self::Unmerge => ("unmerge", "merge"),
            Self::Decompose => ("decompose", "decompose"),
        }
    }

    /// Whether training a layer of the spec launches it.
    fn trains(self, spec: &DoraSpec) -> bool {
        match self {
            Self::Merge | Self::Unmerge | Self::Decompose => false,
            Self::NormGradient | Self::NormGradientFinish => spec.norm_grad() == NormGrad::Exact,
            Self::ForwardTf32x3
            | Self::ForwardMediumTf32x3
            | Self::BackwardTf32x3
            | Self::BackwardMediumTf32x3 => spec.dtype() == Dtype::F32,
            _ => true,
        }
    }

    /// The dtype that a kernel is named by: adapters are f32 beside weights of any dtype.
    const fn suffix(self, dtype: Dtype) -> Dtype {
        match self {
            Self::AdamW | Self::GradientNorm => Dtype::F32,
            _ => dtype,
        }
    }
}

/// The images of a kernel file, one per dtype or one for all, and what is loaded of them.
#[derive(Debug)]
struct File {
    op: &'static str,
    images: Vec<Cow<'static, str>>,
    modules: [OnceLock<Arc<CudaModule>>; Dtype::ALL.len()],
}

/// A kernel and what the device must give a block of it.
#[derive(Debug)]
struct Function {
    function: CudaFunction,
    shared_bytes: u64,
    max_threads: u64,
}

/// What a launch may ask of the device.
#[derive(Debug, Clone, Copy)]
struct Limits {
    grid: [u64; 3],
    threads: u64,
    shared_bytes: u64,
}

/// All kernels, loaded into one context. Load once and share; launching needs only `&self`.
///
/// ```
/// use fused_dora::{
///     AdapterLayout, Backward, DoraSpec, Dtype, Forward, Gradients, Kernels, Magnitude, Norm, NormGrad,
///     NormGradient, Part, Prepare, Prepared, Scaling, Workspace, open_device,
/// };
///
/// # cuda_emulator::client::select(cuda_emulator::client::Choice::from_env()?)?;
/// let kernels = Kernels::load(&open_device(0)?)?;
/// let stream = kernels.context().default_stream();
/// let (tokens, inputs, outputs, scaling) = (5, 12, 7, Scaling::RankStabilized { alpha: 8.0 });
/// let spec = DoraSpec::new(inputs, outputs, 4, scaling, Norm::Input, NormGrad::Exact, Dtype::F32)?;
/// let mut workspace = Workspace::new(&kernels, &stream, &[spec], tokens)?;
/// let mut prepared = Prepared::<f32>::new(&stream, &spec)?;
///
/// let waves = |len: usize| (0..len).map(|i| (i as f32).sin()).collect::<Vec<_>>();
/// let weight = stream.clone_htod(&waves(outputs * inputs))?;
/// let x = stream.clone_htod(&waves(tokens * inputs))?;
/// // A, B and m, and their gradients: a buffer each.
/// let layout = AdapterLayout::new(&spec);
/// let mut parameters = waves(layout.len());
/// parameters[layout.range(Part::LoraB)].fill(0.0);
/// let mut parameters = stream.clone_htod(&parameters)?;
/// let mut gradients = stream.alloc_zeros::<f32>(layout.len())?;
///
/// // A fresh adapter: m becomes the norm of W's columns.
/// let adapter = layout.view_mut(parameters.as_view_mut())?;
/// let inputs_of_prepare = Prepare {
///     weight: weight.as_view(),
///     lora_a: adapter.lora_a.as_view(),
///     lora_b: adapter.lora_b.as_view(),
///     magnitude: adapter.magnitude.map_or(Magnitude::None, Magnitude::Init),
///     bias: None,
/// };
/// kernels.prepare(&stream, &spec, &mut workspace, &mut prepared, inputs_of_prepare)?;
///
/// let mut y = stream.alloc_zeros::<f32>(tokens * outputs)?;
/// let mut h = stream.alloc_zeros::<f32>(tokens * spec.padded_rank())?;
/// let forward = Forward {
///     tokens,
///     x: x.as_view().into(),
///     weight: weight.as_view(),
///     bias: None,
///     seed: 0,
///     dropout: None,
///     z: None,
///     y: y.as_view_mut().into(),
///     h: h.as_view_mut(),
/// };
/// kernels.forward(&stream, &spec, &prepared, &mut workspace, forward)?;
///
/// // With dY = y, the loss is ‖y‖²/2.
/// let grads = layout.view_mut(gradients.as_view_mut())?;
/// let mut backward = Backward {
///     tokens,
///     gradients: Gradients::Overwrite,
///     x: x.as_view().into(),
///     weight: weight.as_view(),
///     bias: None,
///     output: None,
///     z: None,
///     dropout: None,
///     grad_output: y.as_view().into(),
///     h: h.as_view(),
///     grad_input: None,
///     grad_lora_a: grads.lora_a,
///     grad_lora_b: grads.lora_b,
///     grad_magnitude: grads.magnitude,
///     grad_bias: None,
/// };
/// kernels.backward(&stream, &spec, &prepared, &mut workspace, &mut backward)?;
///
/// // Before the optimizer step: what A and B do to the norm.
/// let adapter = layout.view(parameters.as_view())?;
/// let grads = layout.view_mut(gradients.as_view_mut())?;
/// let through_the_norm = NormGradient {
///     weight: weight.as_view(),
///     lora_a: adapter.lora_a,
///     lora_b: adapter.lora_b,
///     grad_magnitude: grads.magnitude.as_ref().expect("DoRA has a magnitude").as_view(),
///     grad_lora_a: grads.lora_a,
///     grad_lora_b: grads.lora_b,
/// };
/// kernels.norm_gradient(&stream, &spec, &prepared, &mut workspace, through_the_norm)?;
///
/// // m scales all of y: Σ dm·m = Σ dY·y = ‖y‖².
/// let (parameters, gradients) = (stream.clone_dtoh(&parameters)?, stream.clone_dtoh(&gradients)?);
/// let along_m: f32 = layout.range(Part::Magnitude).map(|i| parameters[i] * gradients[i]).sum();
/// let squared: f32 = stream.clone_dtoh(&y)?.iter().map(|y| y * y).sum();
/// assert!((along_m / squared - 1.0).abs() < 1e-5, "{along_m} {squared}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Kernels {
    context: Arc<CudaContext>,
    files: Vec<File>,
    functions: [[OnceLock<Function>; Dtype::ALL.len()]; Entry::ALL.len()],
    limits: Limits,
    tiling: Tiling,
}

impl Kernels {
    /// Whether the kernels were compiled into this build.
    pub fn are_built() -> bool {
        embedded::FILES.iter().flat_map(|(.., images)| *images).all(Option::is_some)
    }

    /// The kernels, for `context`.
    ///
    /// The driver translates a kernel file's PTX for the GPU, and keeps the result, when one of its
    /// kernels is needed: for training, when a workspace is made for specs of a dtype; for merging
    /// and analysis, at the first launch.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`] if the crate was compiled without NVRTC,
    /// [`Error::UnsupportedArchitecture`] before Ampere, [`Error::PtxTooNew`] if the driver is
    /// older than the NVRTC that compiled the kernels, or the driver's error.
    pub fn load(context: &Arc<CudaContext>) -> Result<Self> {
        Self::load_with(context, &[])
    }

    /// The kernels with other PTX, or none, for the files that `replaced` names, such as
    /// `forward/sm80.cu`; for the tests of what depends on it.
    ///
    /// # Errors
    /// As [`Kernels::load`].
    #[doc(hidden)]
    pub fn load_with(
        context: &Arc<CudaContext>,
        replaced: &[(&str, Option<&str>)],
    ) -> Result<Self> {
        type Embedded = (&'static str, &'static str, &'static [Option<&'static str>]);
        let file = |&(op, architecture, embedded): &Embedded| {
            let name = format!("{op}/{architecture}.cu");
            let images: Option<_> = match replaced.iter().find(|(file, _)| *file == name) {
                Some((_, ptx)) => ptx.map(|ptx| vec![Cow::Owned(ptx.to_owned())]),
                None => embedded.iter().map(|ptx| ptx.map(Cow::Borrowed)).collect(),
            };
            let images = images.ok_or(Error::KernelsNotBuilt)?;
            Ok(File { op, images, modules: Default::default() })
        };
        let files = embedded::FILES.iter().map(file).collect::<Result<Vec<_>>>()?;
        let found = context.compute_capability().during("reading the compute capability")?;
        if found < NEEDED_CAPABILITY {
            return Err(Error::UnsupportedArchitecture { found, needed: NEEDED_CAPABILITY });
        }
        let attribute = |which| {
            let value = context.attribute(which).during("reading the device's limits")?;
            Ok::<_, Error>(u64::try_from(value).unwrap_or(0))
        };
        let limits = Limits {
            grid: [
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z)?,
            ],
            threads: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK)?,
        };
        let sm_count = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let tiling = Tiling { sm_count, forced: None, f32_math: F32Math::of(found) };
        let functions = Default::default();
        let kernels = Self { context: context.clone(), files, functions, limits, tiling };
        // The smallest file tells whether the driver takes the PTX.
        kernels.function(Entry::AdamW, Dtype::F32)?;
        Ok(kernels)
    }

    /// The same with f32 products of this kind, whatever the device.
    #[doc(hidden)]
    pub fn with_f32_math(mut self, f32_math: F32Math) -> Self {
        self.tiling.f32_math = f32_math;
        self
    }

    /// Loads what training layers of the specs takes, where that is not done.
    pub(crate) fn load_training(&self, specs: &[DoraSpec]) -> Result<()> {
        for spec in specs {
            for entry in Entry::ALL.into_iter().filter(|entry| entry.trains(spec)) {
                self.function(entry, spec.dtype())?;
            }
        }
        Ok(())
    }

    /// The context that the kernels were loaded into.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Multiprocessors of the device, which the splits of small problems aim to fill.
    pub(crate) fn sm_count(&self) -> usize {
        self.tiling.sm_count
    }

    /// Takes `tiles` for the products with W wherever they can be, instead of those that the
    /// numbers of tokens and features speak for: to measure and to test them. Workspaces made before
    /// may be too small then.
    pub fn with_tiles(mut self, tiles: Option<Tiles>) -> Self {
        self.tiling.forced = tiles;
        self
    }

    pub(crate) fn tiling(&self) -> Tiling {
        self.tiling
    }

    pub(crate) fn check_stream(&self, stream: &CudaStream) -> Result<()> {
        if stream.context().cu_ctx() == self.context.cu_ctx() {
            return Ok(());
        }
        Err(Error::ContextMismatch)
    }

    /// Whether a buffer lives in the kernels' context: another's address means nothing here.
    pub(crate) fn check_buffer<T>(&self, buffer: &impl DeviceSlice<T>) -> Result<()> {
        self.check_stream(buffer.stream())
    }

    /// Launches `entry` with one parameter struct, after checking it against the device's limits.
    ///
    /// # Safety
    /// `params` must be the struct that the kernel declares, and every pointer in it valid on
    /// `stream` for what the kernel does with it.
    pub(crate) unsafe fn launch<P: DeviceRepr>(
        &self,
        stream: &CudaStream,
        entry: Entry,
        dtype: Dtype,
        grid: [usize; 3],
        params: &P,
    ) -> Result<()> {
        self.check_grid(entry, dtype, grid)?;
        let function = self.function(entry, dtype)?;
        let config = LaunchConfig {
            grid_dim: (grid[0] as u32, grid[1] as u32, grid[2] as u32),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the caller vouches for the parameters; the configuration was checked.
        unsafe { stream.launch_builder(&function.function).arg(params).launch(config) }
            .during(entry.name().0)?;
        Ok(())
    }

    fn file(&self, op: &str) -> Option<&File> {
        self.files.iter().find(|file| file.op == op)
    }

    /// A kernel, loaded if it is not yet.
    fn function(&self, entry: Entry, dtype: Dtype) -> Result<&Function> {
        let slot = &self.functions[entry as usize][dtype as usize];
        if let Some(function) = slot.get() {
            return Ok(function);
        }
        let (name, op) = entry.name();
        let dtype = entry.suffix(dtype);
        let file = self.file(op).ok_or(Error::KernelsNotBuilt)?;
        let module = file.module(&self.context, dtype)?;
        let function = Function::load(module, &format!("{name}_{dtype}"))?;
        Ok(slot.get_or_init(|| function))
    }

    /// Checks a launch against the device's limits, so that an op of several launches fails
    /// before its first.
    pub(crate) fn check_grid(&self, entry: Entry, dtype: Dtype, grid: [usize; 3]) -> Result<()> {
        let (kernel, _) = entry.name();
        let function = self.function(entry, dtype)?;
        const GRID: [&str; 3] = ["a grid width", "a grid height", "a grid depth"];
        let fewer = "use fewer tokens or a smaller rank per call";
        let none = "this GPU cannot run this kernel";
        let threads = self.limits.threads.min(function.max_threads);
        let checks = [
            (GRID[0], grid[0] as u64, self.limits.grid[0], fewer),
            (GRID[1], grid[1] as u64, self.limits.grid[1], fewer),
            (GRID[2], grid[2] as u64, self.limits.grid[2], fewer),
            ("a block", THREADS.into(), threads, none),
            ("shared memory per block", function.shared_bytes, self.limits.shared_bytes, none),
        ];
        for (what, needed, limit, cure) in checks {
            if needed > limit {
                return Err(Error::DeviceLimit { kernel, what, needed, limit, cure });
            }
        }
        Ok(())
    }
}

impl File {
    /// The module that has a dtype's kernels, loaded if it is not yet.
    fn module(&self, context: &Arc<CudaContext>, dtype: Dtype) -> Result<&Arc<CudaModule>> {
        let slot = &self.modules[dtype as usize];
        if let Some(module) = slot.get() {
            return Ok(module);
        }
        let image = self.images.get(dtype as usize).unwrap_or(&self.images[0]);
        let module = load_image(context, self.op, image)?;
        Ok(slot.get_or_init(|| module))
    }
}

impl Function {
    fn load(module: &Arc<CudaModule>, name: &str) -> Result<Self> {
        let during = "finding a kernel";
        let function = module.load_function(name).during(during)?;
        let shared_bytes = function.shared_size_bytes().during(during)?.max(0) as u64;
        let max_threads = function.max_threads_per_block().during(during)?.max(0) as u64;
        Ok(Self { function, shared_bytes, max_threads })
    }
}

/// Loads one PTX image; for the test of an image newer than the driver.
#[doc(hidden)]
pub fn load_image(
    context: &Arc<CudaContext>,
    kernel: &'static str,
    ptx: &str,
) -> Result<Arc<CudaModule>> {
    match context.load_module(Ptx::from_src(ptx)) {
        Ok(module) => Ok(module),
        Err(DriverError(sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION)) => {
            let ptx = ptx
                .lines()
                .find_map(|line| line.trim().strip_prefix(".version"))
                .map_or_else(|| "of unknown version".to_owned(), |v| v.trim().to_owned());
            Err(Error::PtxTooNew { kernel, ptx, driver: driver_version() })
        }
        Err(source) => Err(Error::Driver { during: "loading kernels", source }),
    }
}

fn driver_version() -> i32 {
    let mut version = 0;
    // SAFETY: the pointer is valid for the call; on failure the version stays 0.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_or(0, |()| version)
}
