//! The heap that kernels allocate from: one allocation of global memory, in parts.
//!
//! It outlives launches and modules, as CUDA's does. A part that a kernel frees may be given out
//! again, so that a use after free inside of the heap goes unnoticed.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::memory::Memory;

/// Parts start at multiples of this.
const ALIGNMENT: u64 = 16;

#[derive(Debug, Default)]
struct State {
    bytes: u64,
    /// Where it lies in global memory, once a module needs it.
    base: Option<u64>,
    /// Parts that are in use, by offset, with their lengths.
    parts: BTreeMap<u64, u64>,
}

/// The heap of a device.
#[derive(Debug, Default)]
pub(crate) struct Heap(Mutex<State>);

impl Heap {
    pub(crate) fn new(bytes: u64) -> Self {
        Self(Mutex::new(State { bytes, ..State::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// Changes its size; `false` when it is in use already.
    pub(crate) fn resize(&self, bytes: u64) -> bool {
        let mut state = self.state();
        if state.base.is_some() {
            return false;
        }
        state.bytes = bytes;
        true
    }

    /// Gives it a place in global memory; `false` when there is not enough.
    pub(crate) fn place(&self, memory: &Memory) -> bool {
        let mut state = self.state();
        if state.base.is_none() {
            state.base = memory.alloc(state.bytes);
        }
        state.base.is_some()
    }

    /// The address of that many bytes, or zero when there is no room.
    pub(crate) fn allocate(&self, bytes: u64) -> u64 {
        let mut state = self.state();
        let Some(base) = state.base else { return 0 };
        let Some(length) = bytes.max(1).checked_next_multiple_of(ALIGNMENT) else { return 0 };
        // The first gap that is long enough.
        let mut start = 0;
        for (&offset, &used) in &state.parts {
            if offset - start >= length {
                break;
            }
            start = offset + used;
        }
        if state.bytes - start < length {
            return 0;
        }
        state.parts.insert(start, length);
        base + start
    }

    /// Gives a part back; `false` when none starts at the address.
    pub(crate) fn free(&self, address: u64) -> bool {
        let mut state = self.state();
        let Some(offset) = state.base.and_then(|base| address.checked_sub(base)) else {
            return false;
        };
        state.parts.remove(&offset).is_some()
    }
}
