//! Everything that can go wrong, with the numbers and what to do about it.

use std::fmt;

use cudarc::driver::DriverError;

use crate::dtype::ElementType;
use crate::quant::WeightFormat;

/// The crate's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. All checks happen before anything is launched: after an error other than
/// [`Error::Driver`] no buffer has been touched.
///
/// | misuse | error |
/// |---|---|
/// | a layer without input or output features | [`InvalidSpec`](Error::InvalidSpec) |
/// | features, a rank or tokens beyond 2³⁰ | [`InvalidSpec`](Error::InvalidSpec) |
/// | a scaling that is not finite | [`InvalidSpec`](Error::InvalidSpec) |
/// | plain LoRA with a gradient through its norm | [`InvalidSpec`](Error::InvalidSpec) |
/// | a dropout probability outside of 0 … 1 − 2⁻¹⁶ | [`InvalidSpec`](Error::InvalidSpec) |
/// | PEFT's dropout with norm axis input | [`InvalidSpec`](Error::InvalidSpec) |
/// | a decomposition along no axis | [`InvalidSpec`](Error::InvalidSpec) |
/// | optimizer parts that overlap, go backwards or leave their buffer | [`InvalidSpec`](Error::InvalidSpec) |
/// | an optimizer's constant, rate or norm outside of its range | [`InvalidSpec`](Error::InvalidSpec) |
/// | a merge over W itself into another dtype, by address | [`InvalidSpec`](Error::InvalidSpec) |
/// | W' of a merge, or W_t of a decomposition, in f64 | [`InvalidSpec`](Error::InvalidSpec) |
/// | a packed format that does not exist, or numbers that cannot be packed | [`InvalidSpec`](Error::InvalidSpec) |
/// | the optimizer's step 0 | [`InvalidSpec`](Error::InvalidSpec) |
/// | a tensor of another length than its shape's | [`Shape`](Error::Shape) |
/// | an adapter's buffer of another length than its layout's | [`Shape`](Error::Shape) |
/// | a packed weight with parts of other lengths than its shape's | [`Shape`](Error::Shape) |
/// | a [`Saved`](crate::Saved) made for fewer tokens | [`Shape`](Error::Shape) |
/// | rows that overlap, or start more than 2³⁰ elements apart | [`Stride`](Error::Stride) |
/// | a row stride of a tensor that must be contiguous | [`Stride`](Error::Stride) |
/// | a device address that no element can have | [`Misaligned`](Error::Misaligned) |
/// | memory of the caller that starts at no multiple of 256 bytes | [`Misaligned`](Error::Misaligned) |
/// | x, W, b, y, H, z, or a gradient of x or y, of another dtype than the spec's | [`Dtype`](Error::Dtype) |
/// | parameters, their gradients, or a buffer of the optimizer that are not f32 | [`Dtype`](Error::Dtype) |
/// | a merge's report, or a decomposition's result, that is not f64 | [`Dtype`](Error::Dtype) |
/// | DoRA without a magnitude, or without room for its gradient | [`MissingTensor`](Error::MissingTensor) |
/// | the backward of norm axis output without y | [`MissingTensor`](Error::MissingTensor) |
/// | PEFT's dropout without z | [`MissingTensor`](Error::MissingTensor) |
/// | an address of 0 for a tensor, a context or memory that is needed | [`MissingTensor`](Error::MissingTensor) |
/// | plain LoRA with a magnitude, or room for its gradient | [`UnexpectedTensor`](Error::UnexpectedTensor) |
/// | z without PEFT's dropout | [`UnexpectedTensor`](Error::UnexpectedTensor) |
/// | an adapter with a trained bias, in a file of adapters | [`UnexpectedTensor`](Error::UnexpectedTensor) |
/// | `norm_gradient` of plain LoRA, or of a detached norm | [`NoNormGradient`](Error::NoNormGradient) |
/// | an op before `prepare` | [`NotPrepared`](Error::NotPrepared) |
/// | operands that were prepared for another spec | [`NotPrepared`](Error::NotPrepared) |
/// | an op between `prepare` of a shard and `finish_prepare`, or `finish_prepare` by itself | [`NotPrepared`](Error::NotPrepared) |
/// | operands for an unmerge in an op that takes more | [`NotPrepared`](Error::NotPrepared) |
/// | a backward or unmerge of [`DoraLinear`](crate::DoraLinear) after a change of the parameters | [`NotPrepared`](Error::NotPrepared) |
/// | a dense W for a spec of a packed one, or another format | [`WeightFormat`](Error::WeightFormat) |
/// | parts of a packed W on the device of other lengths than its shape's | [`Shape`](Error::Shape) |
/// | packed elements that are not u8, or scales of another type than the format's | [`Dtype`](Error::Dtype) |
/// | nested scales without their parts | [`MissingTensor`](Error::MissingTensor) |
/// | nested parts for a format without nested scales | [`UnexpectedTensor`](Error::UnexpectedTensor) |
/// | packing or unpacking for a spec without a packed format, or by an offset that is not finite | [`InvalidSpec`](Error::InvalidSpec) |
/// | a merge in place, or an unmerge, of a packed W | [`InvalidSpec`](Error::InvalidSpec) |
/// | a workspace made for less | [`WorkspaceTooSmall`](Error::WorkspaceTooSmall) |
/// | memory of the caller with too few bytes | [`MemoryTooSmall`](Error::MemoryTooSmall) |
/// | `unmerge` where a gain is 0 | [`LostFeature`](Error::LostFeature) |
/// | an adapter's name that is not attached, or is already | [`Adapter`](Error::Adapter) |
/// | an adapter for other features, or another dtype, than its layer's | [`Adapter`](Error::Adapter) |
/// | a step, merge or unmerge of [`DoraLinear`](crate::DoraLinear) while no adapter is active | [`NoActiveAdapter`](Error::NoActiveAdapter) |
/// | a rank that takes a larger grid than the device has | [`DeviceLimit`](Error::DeviceLimit) |
/// | a stream, a buffer or an adapter of another CUDA context | [`ContextMismatch`](Error::ContextMismatch) |
/// | buffers of different lengths, or a rank that has left, in a sum over ranks | [`Ranks`](Error::Ranks) |
/// | a device that is not there | [`NoDevice`](Error::NoDevice) |
/// | no CUDA driver | [`DriverMissing`](Error::DriverMissing) |
/// | a driver older than the NVRTC that compiled the kernels | [`PtxTooNew`](Error::PtxTooNew) |
/// | a GPU before Ampere | [`UnsupportedArchitecture`](Error::UnsupportedArchitecture) |
/// | a build without NVRTC | [`KernelsNotBuilt`](Error::KernelsNotBuilt) |
/// | more memory than the device has | [`Driver`](Error::Driver) |
/// | a fault on the device | [`Driver`](Error::Driver) |
///
/// Launches are asynchronous: a fault on the device comes back from the first call that notices, of
/// this crate or another. With `CUDA_LAUNCH_BLOCKING=1` in the environment that is the op itself,
/// which the error names.
#[non_exhaustive]
#[derive(thiserror::Error)]
pub enum Error {
    /// A layer that cannot exist, or a setting of an op that makes no sense.
    #[error("{parameter} is {value}: it must be {requirement}")]
    InvalidSpec {
        /// The parameter's name.
        parameter: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        requirement: &'static str,
    },
    /// A buffer of the wrong length.
    #[error("{tensor} holds {found} elements, but {shape} needs {expected}")]
    Shape {
        /// The tensor's name.
        tensor: &'static str,
        /// The shape it must have, with its numbers.
        shape: String,
        /// Elements that shape needs.
        expected: usize,
        /// Elements the buffer holds.
        found: usize,
    },
    /// Rows that overlap, or lie too far apart.
    #[error(
        "{tensor} has its rows {stride} elements apart, but they are {cols} long: the stride must \
         be at least that and at most {limit}"
    )]
    Stride {
        /// The tensor's name.
        tensor: &'static str,
        /// The stride given.
        stride: usize,
        /// The length of a row.
        cols: usize,
        /// The largest stride that kernels can index.
        limit: usize,
    },
    /// A device address that no element can have.
    #[error(
        "{tensor} is at address {address:#x}, which is not a multiple of {alignment} bytes: align it"
    )]
    Misaligned {
        /// The tensor's name.
        tensor: &'static str,
        /// The address given.
        address: u64,
        /// What it must be a multiple of.
        alignment: usize,
    },
    /// A tensor of another type than the op takes.
    #[error("{tensor} holds {found}, but {needed} is needed: convert it, or make a spec per dtype")]
    Dtype {
        /// The tensor's name.
        tensor: &'static str,
        /// The type of its elements.
        found: ElementType,
        /// The type that they must have.
        needed: ElementType,
    },
    /// A tensor that this kind of layer needs was not given.
    #[error("{tensor} is missing: {reason}")]
    MissingTensor {
        /// The tensor's name.
        tensor: &'static str,
        /// Why it is needed.
        reason: &'static str,
    },
    /// A tensor that this kind of layer does not have was given.
    #[error("{tensor} was given, but {reason}: leave it out")]
    UnexpectedTensor {
        /// The tensor's name.
        tensor: &'static str,
        /// Why it has no place here.
        reason: &'static str,
    },
    /// `norm_gradient` for a layer whose gradients do not flow through a norm.
    #[error("there is no gradient through the norm: {reason}")]
    NoNormGradient {
        /// Why there is none, and what to do.
        reason: &'static str,
    },
    /// The prepared operands were never computed, or belong to another spec.
    #[error(
        "the prepared operands {problem}: call prepare with this spec after each change of A, B or m"
    )]
    NotPrepared {
        /// What is wrong with them.
        problem: &'static str,
    },
    /// W in another format than the spec's.
    #[error(
        "the weight is {given}, and the spec's is {spec}: make the spec with DoraSpec::with_weight for \
         the packed weight that the ops get, or give them a dense one"
    )]
    WeightFormat {
        /// The spec's format.
        spec: String,
        /// That of the weight.
        given: String,
    },
    /// The workspace was made for less.
    #[error(
        "the workspace holds {available} bytes, but {tokens} tokens of this layer need {needed}: \
         make it with this spec among its specs and max_tokens >= {tokens}"
    )]
    WorkspaceTooSmall {
        /// Tokens of this call.
        tokens: usize,
        /// Bytes needed.
        needed: usize,
        /// Bytes there.
        available: usize,
    },
    /// Memory of the caller that is too small for its purpose.
    #[error("{memory} has {available} bytes but needs {needed}: ask {size_from} for the size")]
    MemoryTooSmall {
        /// What the memory is for.
        memory: &'static str,
        /// Bytes given.
        available: usize,
        /// Bytes needed.
        needed: usize,
        /// The function that returns that number.
        size_from: &'static str,
    },
    /// A merged weight that no longer determines what the weight was.
    #[error(
        "cannot unmerge: the gain of {axis} feature {feature} is {gain}, and W' no longer determines \
         W there: load the base weight from its file"
    )]
    LostFeature {
        /// The norm axis.
        axis: &'static str,
        /// The first such feature.
        feature: usize,
        /// Its g = m/c.
        gain: f32,
    },
    /// An adapter that is not there, or does not fit its layer.
    #[error("the adapter `{name}` {problem}")]
    Adapter {
        /// The adapter's name.
        name: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A call that needs an active adapter.
    #[error("no adapter is active: call `activate` before `{call}`")]
    NoActiveAdapter {
        /// The call.
        call: &'static str,
    },
    /// A launch that the device cannot do.
    #[error("{kernel} needs {what} of {needed}, but the device allows {limit}: {remedy}")]
    DeviceLimit {
        /// The kernel.
        kernel: &'static str,
        /// Which quantity.
        what: &'static str,
        /// How much the launch needs.
        needed: u64,
        /// How much the device has.
        limit: u64,
        /// What to do.
        remedy: &'static str,
    },
    /// The GPU predates the instructions that the kernels use.
    #[error(
        "the device has compute capability {}.{}, the kernels need {}.{} (Ampere) or later",
        found.0, found.1, needed.0, needed.1
    )]
    UnsupportedArchitecture {
        /// The device's compute capability.
        found: (i32, i32),
        /// The lowest one that will do.
        needed: (i32, i32),
    },
    /// The crate was compiled without NVRTC.
    #[error(
        "the kernels were not compiled into this build, because no NVRTC was found: run `cargo xtask \
         nvrtc` in a checkout of fused-dora (it fetches NVRTC into your cache folder, where every \
         build finds it), or install CUDA or `pip install nvidia-cuda-nvrtc-cu12` in the active \
         environment, or set FUSED_DORA_NVRTC to libnvrtc; then build again"
    )]
    KernelsNotBuilt,
    /// No CUDA driver library could be opened.
    #[error(
        "no CUDA driver found (tried {}): install NVIDIA's driver, or use the emulated device",
        tried.join("; ")
    )]
    DriverMissing {
        /// Each name tried, with the loader's answer.
        tried: Vec<String>,
    },
    /// The device asked for is not there.
    #[error("CUDA device {ordinal} does not exist: the driver sees {count} device(s), from 0")]
    NoDevice {
        /// The ordinal asked for.
        ordinal: usize,
        /// How many the driver sees.
        count: usize,
    },
    /// The kernels' PTX is newer than the driver understands (CUDA error 222).
    #[error(
        "{kernel} is PTX {ptx}, newer than the driver (CUDA {}.{}) can translate: update the \
         driver to R520 or later, or build with an older NVRTC (FUSED_DORA_NVRTC)",
        driver / 1000, driver % 1000 / 10
    )]
    PtxTooNew {
        /// The kernel file.
        kernel: &'static str,
        /// Its `.version`.
        ptx: String,
        /// The driver's version, as CUDA counts (12040 is 12.4).
        driver: i32,
    },
    /// A stream of one context, kernels loaded in another.
    #[error(
        "the stream and the kernels belong to different CUDA contexts: load kernels per context"
    )]
    ContextMismatch,
    /// Something went wrong between ranks.
    #[error("rank {rank} of {ranks}: {problem}")]
    Ranks {
        /// The rank that reports it.
        rank: usize,
        /// How many there are.
        ranks: usize,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The driver reported an error.
    #[error("{during}: CUDA driver error: {source}")]
    Driver {
        /// What the crate was doing.
        during: &'static str,
        /// The driver's answer.
        source: DriverError,
    },
}

impl Error {
    /// A weight in another format than its spec's; `None` is dense.
    pub(crate) fn weight_format(spec: Option<WeightFormat>, given: Option<WeightFormat>) -> Self {
        let name = |format: Option<WeightFormat>| {
            format.map_or_else(|| "dense".to_owned(), |format| format.to_string())
        };
        Self::WeightFormat { spec: name(spec), given: name(given) }
    }
}

/// The message, as [`Display`](fmt::Display): a `main` that returns an error prints it this way, and
/// the message has the numbers and what to do.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Names what was being done when a driver call failed.
pub(crate) trait During<T> {
    fn during(self, what: &'static str) -> Result<T>;
}

impl<T> During<T> for std::result::Result<T, DriverError> {
    fn during(self, what: &'static str) -> Result<T> {
        self.map_err(|source| Error::Driver { during: what, source })
    }
}
