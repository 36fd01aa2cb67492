//! What a workspace must hold for all ops, and the kernels that train a layer.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::{
    adamw, backward, decompose, forward, gradient_norm, merge, norm_gradient, prepare, quantize,
};
use crate::device::{DeviceMemory, Kernel, Kernels, Needs, Workspace, WorkspaceSize};
use crate::dropout::{Dropout, DropoutForm};
use crate::dtype::Dtype;
use crate::error::{During, Result};
use crate::spec::DoraSpec;
use crate::tensor::Tensors;

/// What the largest op needs, of calls of up to `tokens` tokens for any of `specs`.
fn size(kernels: &Kernels, specs: &[DoraSpec], tokens: usize) -> Result<WorkspaceSize> {
    let mut needs = gradient_norm::needs(kernels.sm_count());
    for spec in specs {
        spec.check_tokens(tokens)?;
        let of_ops = [
            prepare::needs(spec, kernels.sm_count()),
            forward::needs(spec, tokens, kernels.tiling()),
            backward::needs(spec, tokens, kernels.tiling()),
            norm_gradient::needs(spec, kernels.sm_count()),
            merge::needs(spec, kernels.sm_count()),
            decompose::needs(spec, kernels.sm_count()),
            quantize::needs(spec, kernels.sm_count()),
        ];
        needs = of_ops.into_iter().fold(needs, Needs::max);
    }
    Ok(WorkspaceSize::new(needs))
}

/// Loads the kernels that train layers of the specs without dropout, where that is not done.
fn load_training(kernels: &Kernels, specs: &[DoraSpec], max_tokens: usize) -> Result<()> {
    for kernel in [gradient_norm::kernels(), adamw::kernels()].into_iter().flatten() {
        kernels.load_kernel(*kernel, Dtype::F32)?;
    }
    let tiling = kernels.tiling();
    for spec in specs {
        let of_ops: [&[Kernel]; 2] = [prepare::kernels(spec), norm_gradient::kernels(spec)];
        let products = forward::kernels(spec, max_tokens, tiling)
            .chain(backward::kernels(spec, max_tokens, tiling));
        for kernel in of_ops.into_iter().flatten().copied().chain(products) {
            kernels.load_kernel(kernel, spec.variant())?;
        }
    }
    Ok(())
}

impl Kernels {
    /// Loads the kernels of calls with dropout, for layers of a spec, where that is not done.
    /// [`DoraLinear::saved`](crate::DoraLinear::saved) does so for its layer. Others need it before
    /// they capture a step with dropout, unless they run one first.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`](crate::Error::InvalidSpec) if the norm axis does not take the form, and
    /// those of [`Kernels::load`].
    pub fn load_dropout(&self, spec: &DoraSpec, form: DropoutForm) -> Result<()> {
        let mode = Dropout::mode(Some(&Dropout::new(0.0, form, 0)?), spec)?;
        for kernel in [forward::dropout_kernel(mode), backward::dropout_kernel(mode)] {
            self.load_kernel(kernel, spec.variant())?;
        }
        Ok(())
    }
}

impl Workspace {
    /// Allocates a workspace on `stream` that fits calls of up to `max_tokens` tokens for each of
    /// `specs`.
    ///
    /// It also loads the kernels of these calls ([`Kernels::load`]), except those for dropout
    /// ([`Kernels::load_dropout`]).
    /// A kernel that is not loaded is loaded at its first launch, which cannot be while a stream is
    /// captured: run a step before you capture one.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`](crate::Error::InvalidSpec) if `max_tokens` is beyond what kernels can
    /// index, or the driver's, e.g. out of memory; [`Workspace::bytes`] returns the size beforehand.
    pub fn new(
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        specs: &[DoraSpec],
        max_tokens: usize,
    ) -> Result<Self> {
        kernels.check_stream(stream)?;
        let size = size(kernels, specs, max_tokens)?;
        load_training(kernels, specs, max_tokens)?;
        let during = "allocating the workspace";
        let memory = DeviceMemory::allocate(stream, size.total, during)?;
        let workspace = Self { memory, size };
        workspace.zero_counters(kernels, stream)
    }

    /// A workspace in memory of the caller: `bytes` at `address`, a multiple of 256; otherwise like
    /// [`Workspace::new`].
    ///
    /// # Safety
    /// The memory is of the kernels' context, unused by anything else, and outlives the workspace and
    /// the work that uses it.
    ///
    /// # Errors
    /// [`Error::MissingTensor`](crate::Error::MissingTensor),
    /// [`Error::Misaligned`](crate::Error::Misaligned),
    /// [`Error::MemoryTooSmall`](crate::Error::MemoryTooSmall), and those of [`Workspace::new`].
    pub unsafe fn at_address(
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        specs: &[DoraSpec],
        max_tokens: usize,
        address: u64,
        bytes: usize,
    ) -> Result<Self> {
        kernels.check_stream(stream)?;
        let size = size(kernels, specs, max_tokens)?;
        let ask = "Workspace::bytes";
        let memory = DeviceMemory::lent("the workspace", address, bytes, size.total, ask)?;
        load_training(kernels, specs, max_tokens)?;
        Self { memory, size }.zero_counters(kernels, stream)
    }

    /// Bytes of device memory that [`Workspace::new`] would allocate.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`](crate::Error::InvalidSpec) if `max_tokens` is beyond what kernels can
    /// index.
    pub fn bytes(kernels: &Kernels, specs: &[DoraSpec], max_tokens: usize) -> Result<usize> {
        Ok(size(kernels, specs, max_tokens)?.total)
    }

    fn zero_counters(mut self, kernels: &Kernels, stream: &Arc<CudaStream>) -> Result<Self> {
        let bytes = self.size.counters;
        {
            let mut tensors = Tensors::new(kernels.context(), stream, Dtype::F32)?;
            let address = self.memory.write(&mut tensors)?;
            // SAFETY: the block holds the counters, which nothing uses yet.
            unsafe { tensors.zero(address, bytes) }.during("zeroing the workspace's counters")?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{F32Math, Tiling};
    use crate::{Norm, NormGrad, Scaling};

    /// A workspace for some number of tokens must do for every smaller one.
    #[test]
    fn needs_grow_with_the_tokens() {
        let shapes =
            [[64, 10, 8], [896, 896, 16], [2048, 2048, 64], [4096, 4096, 16], [70, 9, 200]];
        for [inputs, outputs, rank] in shapes {
            for norm in [Norm::None, Norm::Input, Norm::Output] {
                for (dtype, sm_count) in [(Dtype::Bf16, 108), (Dtype::F32, 132), (Dtype::F16, 16)] {
                    let scaling = Scaling::Value(1.0);
                    let detached = NormGrad::Detached;
                    let spec = DoraSpec::new(inputs, outputs, rank, scaling, norm, detached, dtype)
                        .expect("a layer");
                    let f32_math = F32Math::Fma;
                    let tiling = Tiling { sm_count, forced: None, f32_math };
                    let needs = |tokens| {
                        [
                            forward::needs(&spec, tokens, tiling),
                            backward::needs(&spec, tokens, tiling),
                        ]
                    };
                    for tokens in 0..1300 {
                        for (less, more) in needs(tokens).into_iter().zip(needs(tokens + 1)) {
                            let grows = less.bytes <= more.bytes && less.counters <= more.counters;
                            assert!(grows, "{spec:?}: {tokens} tokens {less:?}, one more {more:?}");
                        }
                    }
                }
            }
        }
    }
}
