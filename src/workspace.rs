//! Scratch memory of the ops, asked for once and shared by all layers of a stream.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, SyncOnDrop};

use crate::error::{During, Error, Result};
use crate::kernels::Kernels;
use crate::raw::{self, WorkspaceSize};
use crate::spec::DoraSpec;
use crate::{adamw, backward, decompose, forward, merge, norm_gradient, prepare};

/// Regions start at multiples of this many bytes, like allocations.
pub(crate) const ALIGNMENT: usize = 256;

/// Hands out consecutive aligned regions.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Regions {
    end: usize,
}

impl Regions {
    /// The offset of a new region of `count` elements of `size` bytes.
    pub(crate) fn take(&mut self, count: usize, size: usize) -> usize {
        let offset = self.end;
        let bytes = count.saturating_mul(size).checked_next_multiple_of(ALIGNMENT);
        self.end = offset.saturating_add(bytes.unwrap_or(usize::MAX));
        offset
    }

    /// Bytes handed out so far.
    pub(crate) fn bytes(&self) -> usize {
        self.end
    }
}

/// How one contraction is cut for the device: `count` chunks of `len` (the last may be shorter).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Split {
    pub(crate) len: usize,
    pub(crate) count: usize,
    /// At least `count`, and for a larger `total` never less: what memory is sized by.
    pub(crate) capacity: usize,
}

impl Split {
    /// Cuts `total` into multiples of `unit`, so that with `others` CTAs per chunk about two waves
    /// of CTAs fill the device.
    pub(crate) fn new(total: usize, unit: usize, others: usize, sm_count: usize) -> Self {
        let wanted = (2 * sm_count).div_ceil(others.max(1));
        let capacity = wanted.clamp(1, total.div_ceil(unit).max(1));
        let len = total.div_ceil(capacity).next_multiple_of(unit).max(unit);
        Self { len, count: total.div_ceil(len).max(1), capacity }
    }
}

/// What one op keeps in the workspace: counters first (zero between launches), then its regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) counters: usize,
    pub(crate) bytes: usize,
}

/// Counters of a launch whose tiles wait for each other (Board in the kernels).
pub(crate) const fn board_counters(events: usize) -> usize {
    2 + events
}

/// Scratch memory for calls of up to `max_tokens` tokens, for any of the specs it was made for.
///
/// Its contents mean nothing between calls, so layers can share one. Calls that share one must be on
/// one stream, or be ordered by events.
#[derive(Debug)]
pub struct Workspace {
    buffer: CudaSlice<u8>,
    counters_end: usize,
}

impl Workspace {
    /// Allocates a workspace on `stream` that fits calls of up to `max_tokens` tokens for each of
    /// `specs`, and loads the kernels that train them ([`Kernels::load`]).
    ///
    /// # Errors
    /// The driver's, e.g. out of memory; [`Workspace::bytes`] tells the size beforehand.
    pub fn new(
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        specs: &[DoraSpec],
        max_tokens: usize,
    ) -> Result<Self> {
        kernels.check_stream(stream)?;
        let Layout { counters_end, total } = Layout::new(kernels, specs, max_tokens)?;
        kernels.load_training(specs)?;
        let during = "allocating the workspace";
        // SAFETY: only the counters are read before they are written, and they are zeroed below.
        let mut buffer = unsafe { stream.alloc::<u8>(total) }.during(during)?;
        stream.memset_zeros(&mut buffer.slice_mut(..counters_end)).during(during)?;
        Ok(Self { buffer, counters_end })
    }

    /// Bytes of device memory that [`Workspace::new`] would allocate.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] if `max_tokens` is beyond what kernels can index.
    pub fn bytes(kernels: &Kernels, specs: &[DoraSpec], max_tokens: usize) -> Result<usize> {
        Ok(Layout::new(kernels, specs, max_tokens)?.total)
    }

    /// The scratch memory, for the check of its context.
    pub(crate) fn buffer(&self) -> &CudaSlice<u8> {
        &self.buffer
    }

    /// Its size, for the checks of an op.
    pub(crate) fn size(&self) -> WorkspaceSize {
        WorkspaceSize { bytes: self.buffer.len(), counter_bytes: self.counters_end }
    }

    /// Its address, and the guard that orders its use on the stream.
    pub(crate) fn lend<'a>(
        &'a mut self,
        stream: &'a CudaStream,
    ) -> (raw::Workspace, SyncOnDrop<'a>) {
        let size = self.size();
        let (pointer, guard) = self.buffer.device_ptr_mut(stream);
        (raw::Workspace { pointer, size }, guard)
    }
}

/// How a workspace is laid out.
pub(crate) struct Layout {
    /// Where the counters end and the regions start, in bytes.
    pub(crate) counters_end: usize,
    pub(crate) total: usize,
}

impl Layout {
    /// For calls of up to `tokens` tokens, for any of `specs`.
    pub(crate) fn new(kernels: &Kernels, specs: &[DoraSpec], tokens: usize) -> Result<Self> {
        let sm_count = kernels.sm_count();
        let mut needs = adamw::needs(sm_count);
        for spec in specs {
            spec.check_tokens(tokens)?;
            let of_ops = [
                prepare::needs(spec, sm_count),
                forward::needs(spec, tokens, kernels.tiling()),
                backward::needs(spec, tokens, kernels.tiling()),
                norm_gradient::needs(spec, sm_count),
                merge::needs(spec, sm_count),
            ];
            for op in of_ops.into_iter().chain(decompose::needs(spec, sm_count)) {
                needs.counters = needs.counters.max(op.counters);
                needs.bytes = needs.bytes.max(op.bytes);
            }
        }
        let counters_end = needs.counters.saturating_mul(size_of::<u32>());
        let counters_end = counters_end.checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX);
        Ok(Self { counters_end, total: counters_end.saturating_add(needs.bytes) })
    }
}

impl WorkspaceSize {
    /// Whether `needs` fits.
    pub(crate) fn check(&self, needs: Needs, tokens: usize) -> Result<()> {
        let counters = needs.counters.saturating_mul(size_of::<u32>());
        let needed = self.counter_bytes.max(counters).saturating_add(needs.bytes);
        let available = self.bytes;
        if counters > self.counter_bytes || needed > available {
            return Err(Error::WorkspaceTooSmall { tokens, needed, available });
        }
        Ok(())
    }
}

impl raw::Workspace {
    /// Device addresses of the counters and of the regions, if `needs` fits.
    pub(crate) fn parts(&self, needs: Needs, tokens: usize) -> Result<Parts> {
        raw::present("the workspace", self.pointer, ALIGNMENT)?;
        self.size.check(needs, tokens)?;
        let regions = self.pointer + self.size.counter_bytes as u64;
        Ok(Parts { counters: self.pointer, regions })
    }
}

/// Where the parts of a workspace start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts {
    pub(crate) counters: u64,
    pub(crate) regions: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::f32_math::F32Math;
    use crate::tiles::Tiling;
    use crate::{Dtype, Norm, NormGrad, Scaling};

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
