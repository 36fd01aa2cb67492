//! Scratch memory of the ops, asked for once and shared by all layers of a stream.

use super::memory::{ALIGNMENT, DeviceMemory};
use crate::error::{Error, Result};
use crate::tensor::Tensors;

/// Scratch memory for calls of up to `max_tokens` tokens, for any of the specs it was made for.
///
/// Its contents mean nothing between calls, and layers can share one. Calls that share one must be
/// on one stream, or be ordered by events.
#[derive(Debug)]
pub struct Workspace {
    pub(crate) memory: DeviceMemory,
    pub(crate) size: WorkspaceSize,
}

/// What a workspace holds, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WorkspaceSize {
    /// The first bytes, which hold counters: zero before and after every launch.
    pub(crate) counters: usize,
    pub(crate) total: usize,
}

impl WorkspaceSize {
    /// What the largest of several needs takes.
    pub(crate) fn new(needs: Needs) -> Self {
        let counters = needs.counters.saturating_mul(size_of::<u32>());
        let counters = counters.checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX);
        Self { counters, total: counters.saturating_add(needs.bytes) }
    }
}

impl Workspace {
    /// The scratch memory of a call of so many tokens, if the workspace has as much.
    pub(crate) fn scratch<'t>(
        &'t mut self,
        tensors: &mut Tensors<'t>,
        needs: Needs,
        tokens: usize,
    ) -> Result<Scratch> {
        let counters = needs.counters.saturating_mul(size_of::<u32>());
        let needed = self.size.counters.max(counters).saturating_add(needs.bytes);
        let available = self.size.total;
        if counters > self.size.counters || needed > available {
            return Err(Error::WorkspaceTooSmall { tokens, needed, available });
        }
        let address = self.memory.write(tensors)?;
        Ok(Scratch { next_counter: address, regions: address + self.size.counters as u64 })
    }
}

/// What one op keeps in the workspace: counters first (zero between launches), then its regions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) counters: usize,
    pub(crate) bytes: usize,
}

impl Needs {
    /// What does for either.
    pub(crate) fn max(self, other: Self) -> Self {
        let counters = self.counters.max(other.counters);
        Self { counters, bytes: self.bytes.max(other.bytes) }
    }
}

/// Counters of a launch whose tiles wait for each other (TileQueue in the kernels).
pub(crate) const fn queue_counters(events: usize) -> usize {
    2 + events
}

/// The scratch memory of one call, as addresses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scratch {
    next_counter: u64,
    regions: u64,
}

impl Scratch {
    /// The address of the next `count` counters.
    pub(crate) fn counters(&mut self, count: usize) -> u64 {
        let first = self.next_counter;
        self.next_counter += (count * size_of::<u32>()) as u64;
        first
    }

    /// The address of the region that [`Regions::take`] put at `offset`.
    pub(crate) const fn region(&self, offset: usize) -> u64 {
        self.regions + offset as u64
    }
}

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
    pub(crate) const fn bytes(&self) -> usize {
        self.end
    }
}

/// How one contraction is cut for the device: `count` chunks of `len` (the last may be shorter).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Split {
    pub(crate) len: usize,
    pub(crate) count: usize,
    /// At least `count`, and never less for a larger `total`: memory is sized by it.
    pub(crate) capacity: usize,
}

impl Split {
    /// Cuts `total` into multiples of `unit`: with `others` CTAs per chunk, about two waves of CTAs
    /// fill the device.
    pub(crate) fn new(total: usize, unit: usize, others: usize, sm_count: usize) -> Self {
        let wanted = (2 * sm_count).div_ceil(others.max(1));
        let capacity = wanted.clamp(1, total.div_ceil(unit).max(1));
        let len = total.div_ceil(capacity).next_multiple_of(unit).max(unit);
        Self { len, count: total.div_ceil(len).max(1), capacity }
    }
}
