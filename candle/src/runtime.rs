//! What the layers of a device share: kernels, a stream, scratch memory and seeds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use candle_core::{Device, Result};
use fused_dora::cudarc::driver::CudaStream;
use fused_dora::{DoraSpec, Kernels, Workspace, open_device};

use crate::error::{OrCandle, out_of_reach};

/// The kernels on one device, and what layers share there: one for all layers of a model. Clones
/// are the same runtime.
///
/// The scratch memory grows with the largest batch. On a CUDA device candle launches on CUDA's
/// per-thread stream: where several host threads share a runtime, each waits for the work of the
/// one before it.
#[derive(Debug, Clone)]
pub struct Runtime {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    kernels: Kernels,
    stream: Arc<CudaStream>,
    scratch: Mutex<Scratch>,
    seeds: AtomicU64,
}

/// A workspace for the calls that there were so far.
#[derive(Debug)]
struct Scratch {
    workspace: Option<Workspace>,
    specs: Vec<DoraSpec>,
    tokens: usize,
    /// The host thread that used it last.
    thread: ThreadId,
}

impl Runtime {
    /// Loads the kernels for tensors of `device`: where that is the CPU, tensors go to the first
    /// CUDA device that the driver has, be it emulated, and results come back. Tensors of a CUDA
    /// device stay there, and kernels are launched on candle's own stream (feature `cuda`).
    ///
    /// # Errors
    /// Those of [`open_device`] and [`Kernels::load`]; a device that is neither.
    pub fn new(device: &Device) -> Result<Self> {
        let stream = match device {
            Device::Cpu => open_device(0).or_candle()?.default_stream(),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => device.cuda_stream(),
            other => return Err(out_of_reach(other)),
        };
        let kernels = Kernels::load(stream.context()).or_candle()?;
        let thread = thread::current().id();
        let scratch = Mutex::new(Scratch { workspace: None, specs: Vec::new(), tokens: 0, thread });
        let shared = Shared { kernels, stream, scratch, seeds: AtomicU64::new(1) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The kernels.
    pub fn kernels(&self) -> &Kernels {
        &self.shared.kernels
    }

    /// The stream that they are launched on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.shared.stream
    }

    /// Starts the seeds of dropout and stochastic rounding anew: each
    /// [`forward_train`](crate::DoraLinear::forward_train) takes the next one. A fresh runtime
    /// starts with 1.
    pub fn set_seed(&self, seed: u64) {
        self.shared.seeds.store(seed, Ordering::Relaxed);
    }

    pub(crate) fn next_seed(&self) -> u64 {
        self.shared.seeds.fetch_add(1, Ordering::Relaxed)
    }

    /// Runs an op with scratch memory that is large enough.
    pub(crate) fn with_workspace(
        &self,
        spec: &DoraSpec,
        tokens: usize,
        op: impl FnOnce(&mut Workspace) -> fused_dora::Result<()>,
    ) -> Result<()> {
        let Shared { kernels, stream, scratch, .. } = &*self.shared;
        let mut scratch = scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let Scratch { workspace, specs, tokens: most, thread: last } = &mut *scratch;
        let thread = thread::current().id();
        if *last != thread {
            // Its stream may be another one, on which nothing here would wait.
            stream.context().synchronize().or_candle()?;
            *last = thread;
        }
        let known = specs.contains(spec);
        let workspace = match workspace {
            Some(workspace) if known && tokens <= *most => workspace,
            _ => {
                let mut wanted = specs.clone();
                wanted.extend((!known).then_some(*spec));
                let needed = tokens.max(*most);
                let made = Workspace::new(kernels, stream, &wanted, needed).or_candle()?;
                (*specs, *most) = (wanted, needed);
                workspace.insert(made)
            }
        };
        op(workspace).or_candle()
    }
}
