//! The compiled kernels, loaded into a context, and the checks around every launch.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg,
};

use super::arch::Arch;
use super::code::{self, KernelFile};
use super::launch::{Kernel, Launch};
use super::tiling::{F32Math, Tiles, Tiling};
use crate::dtype::Variant;
use crate::error::{During, Error, Result};
use crate::tensor::check_context;

/// The op whose kernels are the smallest.
const SMALLEST_OP: &str = "adamw";

/// A kernel and what the device must give a block of it.
#[derive(Debug, Clone)]
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
///     AdapterLayout, Backward, Base, DoraSpec, Dtype, Forward, Gradients, Kernels, Magnitude, Norm, NormGrad,
///     NormGradient, Part, Prepare, Prepared, Scaling, Workspace, open_device,
/// };
///
/// # cuda_emulator::client::select(cuda_emulator::client::Choice::from_env()?)?;
/// let kernels = Kernels::load(&open_device(0)?)?;
/// let stream = kernels.context().default_stream();
/// let (tokens, inputs, outputs, scaling) = (5, 12, 7, Scaling::RankStabilized { alpha: 8.0 });
/// let spec = DoraSpec::new(inputs, outputs, 4, scaling, Norm::Input, NormGrad::Exact, Dtype::F32)?;
/// let mut workspace = Workspace::new(&kernels, &stream, &[spec], tokens)?;
/// let mut prepared = Prepared::new(&stream, &spec)?;
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
///     weight: (&weight).into(),
///     lora_a: adapter.lora_a.as_view().into(),
///     lora_b: adapter.lora_b.as_view().into(),
///     magnitude: Magnitude::Init(adapter.magnitude.expect("DoRA has a magnitude").into()),
///     bias: None,
/// };
/// kernels.prepare(&stream, &spec, &mut workspace, &mut prepared, inputs_of_prepare)?;
///
/// let mut y = stream.alloc_zeros::<f32>(tokens * outputs)?;
/// let mut h = stream.alloc_zeros::<f32>(tokens * spec.padded_rank())?;
/// let forward = Forward {
///     tokens,
///     base: Base::new(&weight),
///     x: (&x).into(),
///     y: (&mut y).into(),
///     h: (&mut h).into(),
///     z: None,
///     dropout: None,
///     counter: None,
///     seed: 0,
/// };
/// kernels.forward(&stream, &spec, &prepared, &mut workspace, forward)?;
///
/// // With dY = y, the loss is ‖y‖²/2.
/// let grads = layout.view_mut(gradients.as_view_mut())?;
/// let backward = Backward {
///     tokens,
///     gradients: Gradients::Overwrite,
///     base: Base::new(&weight),
///     x: (&x).into(),
///     output: None,
///     z: None,
///     dropout: None,
///     counter: None,
///     grad_output: (&y).into(),
///     h: (&h).into(),
///     grad_input: None,
///     grad_lora_a: grads.lora_a.into(),
///     grad_lora_b: grads.lora_b.into(),
///     grad_magnitude: grads.magnitude.map(Into::into),
///     grad_bias: None,
/// };
/// kernels.backward(&stream, &spec, &prepared, &mut workspace, backward)?;
///
/// // Before the optimizer step: what A and B do to the norm.
/// let adapter = layout.view(parameters.as_view())?;
/// let grads = layout.view_mut(gradients.as_view_mut())?;
/// let through_the_norm = NormGradient {
///     weight: (&weight).into(),
///     lora_a: adapter.lora_a.into(),
///     lora_b: adapter.lora_b.into(),
///     grad_magnitude: grads.magnitude.as_ref().expect("DoRA has a magnitude").as_view().into(),
///     grad_lora_a: grads.lora_a.into(),
///     grad_lora_b: grads.lora_b.into(),
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
    files: Vec<KernelFile>,
    /// What was loaded, by name.
    functions: RwLock<HashMap<(&'static str, Variant), Function>>,
    limits: Limits,
    arch: Arch,
    /// Such as 86.
    capability: u32,
    tiling: Tiling,
}

impl Kernels {
    /// Whether the kernels were compiled into this build.
    pub fn are_built() -> bool {
        code::are_built()
    }

    /// The kernels, for `context`.
    ///
    /// The driver translates a kernel's PTX for the GPU when the kernel is loaded, and keeps the
    /// result on disk for the next process. A workspace loads the kernels that train its specs
    /// ([`Workspace::new`](crate::Workspace::new)); others are loaded at their first launch.
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
        let files = KernelFile::all(replaced)?;
        let found = context.compute_capability().during("reading the compute capability")?;
        let arch = Arch::of(found)?;
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
        let context = context.clone();
        let capability = (10 * found.0 + found.1) as u32;
        let functions = RwLock::default();
        let kernels = Self { context, files, functions, limits, arch, capability, tiling };
        kernels.file(SMALLEST_OP)?.probe(&kernels.context, capability)?;
        Ok(kernels)
    }

    /// The same with f32 products of this kind, whatever the device.
    #[doc(hidden)]
    pub fn with_f32_math(mut self, f32_math: F32Math) -> Self {
        self.tiling.f32_math = f32_math;
        self
    }

    /// Takes `tiles` for the products with W wherever they can be, instead of the size that the
    /// heuristic would choose: to measure and to test them. Workspaces made before may be too small
    /// then.
    pub fn with_tiles(mut self, tiles: Option<Tiles>) -> Self {
        self.tiling.forced = tiles;
        self
    }

    /// The context that the kernels were loaded into.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Multiprocessors of the device, which the splits of small problems aim to fill.
    pub(crate) const fn sm_count(&self) -> usize {
        self.tiling.sm_count
    }

    /// The architecture that kernels are chosen for.
    pub(crate) const fn arch(&self) -> Arch {
        self.arch
    }

    pub(crate) const fn tiling(&self) -> Tiling {
        self.tiling
    }

    /// Whether a stream is of the kernels' context.
    pub(crate) fn check_stream(&self, stream: &CudaStream) -> Result<()> {
        check_context(&self.context, stream)
    }

    /// Queues a launch with one parameter struct, after checking it against the device's limits.
    ///
    /// # Safety
    /// `params` must be the struct that the kernel declares, and every pointer in it valid on
    /// `stream` for what the kernel does with it.
    pub(crate) unsafe fn launch<P: DeviceRepr>(
        &self,
        stream: &CudaStream,
        launch: &Launch,
        params: &P,
    ) -> Result<()> {
        let function = self.checked(launch)?;
        let [width, height, depth] = launch.grid.map(|blocks| blocks as u32);
        let config = LaunchConfig {
            grid_dim: (width, height, depth),
            block_dim: (launch.block, 1, 1),
            shared_mem_bytes: launch.shared_bytes,
        };
        // SAFETY: the caller vouches for the parameters; the configuration was checked.
        unsafe { stream.launch_builder(&function.function).arg(params).launch(config) }
            .during(launch.kernel.name)?;
        Ok(())
    }

    /// Checks a launch against the device's limits: an op of several launches checks all of them
    /// before the first.
    pub(crate) fn check_launch(&self, launch: &Launch) -> Result<()> {
        self.checked(launch).map(drop)
    }

    /// The function of a launch that the device can do.
    fn checked(&self, launch: &Launch) -> Result<Function> {
        let function = self.function(launch.kernel, launch.variant)?;
        let fewer = "use fewer tokens or a smaller rank per call";
        let none = "this GPU cannot run this kernel";
        let threads = self.limits.threads.min(function.max_threads);
        let shared_bytes = function.shared_bytes + u64::from(launch.shared_bytes);
        let [width, height, depth] = launch.grid.map(|blocks| blocks as u64);
        let checks = [
            ("a grid width", width, self.limits.grid[0], fewer),
            ("a grid height", height, self.limits.grid[1], fewer),
            ("a grid depth", depth, self.limits.grid[2], fewer),
            ("a block", launch.block.into(), threads, none),
            ("shared memory per block", shared_bytes, self.limits.shared_bytes, none),
        ];
        for (what, needed, limit, remedy) in checks {
            if needed > limit {
                let kernel = launch.kernel.name;
                return Err(Error::DeviceLimit { kernel, what, needed, limit, remedy });
            }
        }
        Ok(function)
    }

    /// Loads a kernel, where that is not done.
    pub(crate) fn load_kernel(&self, kernel: Kernel, variant: impl Into<Variant>) -> Result<()> {
        self.function(kernel, variant.into()).map(drop)
    }

    /// A kernel, loaded if it is not yet.
    fn function(&self, kernel: Kernel, variant: Variant) -> Result<Function> {
        let variant = kernel.variant(variant);
        let key = (kernel.name, variant);
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = functions.get(&key) {
            return Ok(found.clone());
        }
        drop(functions);
        let module =
            self.file(kernel.op)?.module(&self.context, self.capability, kernel, variant)?;
        let new = Function::load(&module, &kernel.entry(variant.dtype))?;
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        Ok(functions.entry(key).or_insert(new).clone())
    }

    /// The file of an op for this architecture. An op without kernels of its own for the
    /// architecture runs the oldest one's.
    fn file(&self, op: &str) -> Result<&KernelFile> {
        let of_op = || self.files.iter().filter(|file| file.op == op);
        let own = of_op().find(|file| file.arch == self.arch.name());
        own.or_else(|| of_op().next()).ok_or(Error::KernelsNotBuilt)
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
