//! Global memory: allocations far apart in one address space, so that a stray access hits nothing.
//!
//! Device addresses are not host addresses. An address is never given out twice, so that the use
//! of a freed allocation is recognised for the rest of the device's life. Every allocation lies at
//! an odd multiple of 256, which is all the alignment that a program may count on, and is
//! surrounded by gaps of at least 16 MiB. Fresh memory holds [`POISON`].
//!
//! For the sanitizer every byte has a shadow byte, which says whether anything wrote to it.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::fmt::Write as _;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The byte that fresh memory holds: all ones reads as NaN in every floating-point format.
pub const POISON: u8 = 0xff;

/// The shadow of a byte that was written to.
pub(crate) const WRITTEN: u8 = 1;
/// Where the addresses of global memory start.
const FIRST_ADDRESS: u64 = 0x0200_0000_0000;
/// How far behind those of one device the addresses of the next start: an address of another device
/// hits nothing.
const DEVICE_SPAN: u64 = 0x0800_0000_0000;
/// Where the addresses of global memory end.
pub(crate) const GLOBAL_END: u64 = 0x7d00_0000_0000;
/// The least distance between two allocations.
const GAP: u64 = 16 << 20;
/// Addresses are odd multiples of this.
const ALIGNMENT: u64 = 256;

/// Why an access of the host to device memory was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The range is not within one live allocation.
    #[error("{bytes} bytes at {address:#x} are not within one allocation: {detail}")]
    OutOfBounds {
        /// Start of the range.
        address: u64,
        /// Length of the range.
        bytes: u64,
        /// Where the range lies.
        detail: String,
    },
    /// The address is not the start of a live allocation.
    #[error("{address:#x} is not the start of an allocation: {detail}")]
    NotAllocated {
        /// The address.
        address: u64,
        /// Where the address lies.
        detail: String,
    },
    /// The address is not a multiple of the word that is to be stored.
    #[error("{address:#x} is not a multiple of {alignment}")]
    Misaligned {
        /// The address.
        address: u64,
        /// What it must be a multiple of.
        alignment: u64,
    },
}

/// Host memory behind one allocation.
#[derive(Debug)]
struct Backing {
    bytes: NonNull<u8>,
    /// [`WRITTEN`] for each byte that was written to, 0 for the others.
    shadow: Option<NonNull<u8>>,
    layout: Layout,
}

// SAFETY: the memory is owned, and reached only through raw pointers under the rules of `Memory`.
unsafe impl Send for Backing {}
// SAFETY: as above.
unsafe impl Sync for Backing {}

impl Backing {
    fn new(bytes: usize, shadowed: bool) -> Option<Self> {
        let layout = Layout::from_size_align(bytes.max(1), ALIGNMENT as usize).ok()?;
        // SAFETY: the layout has a size other than zero.
        let memory = NonNull::new(unsafe { alloc(layout) })?;
        // SAFETY: the memory has `layout.size()` bytes and nobody else knows of it.
        unsafe { memory.as_ptr().write_bytes(POISON, layout.size()) };
        let mut backing = Self { bytes: memory, shadow: None, layout };
        if shadowed {
            // SAFETY: the layout has a size other than zero.
            backing.shadow = Some(NonNull::new(unsafe { alloc_zeroed(layout) })?);
        }
        Some(backing)
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed only here.
        unsafe { dealloc(self.bytes.as_ptr(), self.layout) }
        if let Some(shadow) = self.shadow {
            // SAFETY: as above.
            unsafe { dealloc(shadow.as_ptr(), self.layout) }
        }
    }
}

/// One live allocation.
#[derive(Clone, Debug)]
pub(crate) struct Allocation {
    /// Device address of the first byte.
    pub(crate) base: u64,
    /// Length in bytes.
    pub(crate) bytes: u64,
    /// Whether kernels may write to it.
    pub(crate) constant: bool,
    backing: Arc<Backing>,
}

impl Allocation {
    /// Host address of the first byte.
    pub(crate) fn host(&self) -> *mut u8 {
        self.backing.bytes.as_ptr()
    }

    /// Host address of the first byte's shadow, where the device keeps one.
    pub(crate) fn shadow(&self) -> Option<*mut u8> {
        self.backing.shadow.map(NonNull::as_ptr)
    }
}

/// The allocations as they were at one moment; the memory stays while the table is held.
pub(crate) type Table = Arc<Vec<Allocation>>;

#[derive(Debug)]
struct State {
    /// Live allocations by ascending address.
    live: Table,
    /// Freed ranges by ascending address.
    freed: Vec<(u64, u64)>,
    next: u64,
    in_use: u64,
}

/// The global memory of a device.
#[derive(Debug)]
pub(crate) struct Memory {
    total: u64,
    shadowed: bool,
    state: Mutex<State>,
}

impl Memory {
    /// Memory of that many bytes of the device with this ordinal; `shadowed` notes what was written
    /// to.
    pub(crate) fn new(total: u64, shadowed: bool, ordinal: u32) -> Self {
        let next = FIRST_ADDRESS + u64::from(ordinal) * DEVICE_SPAN;
        let state = State { live: Table::default(), freed: Vec::new(), next, in_use: 0 };
        Self { total, shadowed, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn alloc(&self, bytes: u64) -> Option<u64> {
        self.alloc_as(bytes, false)
    }

    /// Allocates memory that only the host may write to.
    pub(crate) fn alloc_constant(&self, bytes: u64) -> Option<u64> {
        self.alloc_as(bytes, true)
    }

    fn alloc_as(&self, bytes: u64, constant: bool) -> Option<u64> {
        let mut state = self.state();
        if bytes > self.total - state.in_use {
            return None;
        }
        let base = state.next.next_multiple_of(2 * ALIGNMENT) + ALIGNMENT;
        let next = base.checked_add(bytes)?.checked_add(GAP)?;
        if next > GLOBAL_END {
            return None;
        }
        let backing = Arc::new(Backing::new(usize::try_from(bytes).ok()?, self.shadowed)?);
        let allocation = Allocation { base, bytes, constant, backing };
        // Addresses only grow, so the table stays sorted.
        Arc::make_mut(&mut state.live).push(allocation);
        state.next = next;
        state.in_use += bytes;
        Some(base)
    }

    pub(crate) fn free(&self, address: u64) -> Result<(), MemoryError> {
        let mut state = self.state();
        let Ok(at) = state.live.binary_search_by_key(&address, |a| a.base) else {
            let detail = state.describe(address, 1);
            return Err(MemoryError::NotAllocated { address, detail });
        };
        let bytes = Arc::make_mut(&mut state.live).remove(at).bytes;
        let slot = state.freed.partition_point(|&(base, _)| base < address);
        state.freed.insert(slot, (address, bytes));
        state.in_use -= bytes;
        Ok(())
    }

    pub(crate) fn in_use(&self) -> u64 {
        self.state().in_use
    }

    pub(crate) fn allocation_of(&self, address: u64) -> Option<(u64, u64)> {
        let table = self.table();
        let at = find(&table, address, 0)?;
        Some((table[at].base, table[at].bytes))
    }

    /// The live allocations.
    pub(crate) fn table(&self) -> Table {
        self.state().live.clone()
    }

    /// Whether the address lies in an allocation that was freed.
    pub(crate) fn was_freed(&self, address: u64) -> bool {
        let state = self.state();
        state.freed_range(address).is_some()
    }

    /// Where a range lies, in words.
    pub(crate) fn describe(&self, address: u64, bytes: u64) -> String {
        self.state().describe(address, bytes)
    }

    /// The allocation that holds a range, and the host addresses of the range's start and of its
    /// shadow's.
    fn range(&self, address: u64, bytes: u64) -> Result<Range, MemoryError> {
        let table = self.table();
        match find(&table, address, bytes) {
            Some(at) => {
                let offset = (address - table[at].base) as usize;
                // SAFETY: `find` placed the range inside of the allocation.
                let host = unsafe { table[at].host().add(offset) };
                // SAFETY: as above; the shadow is as long.
                let shadow = table[at].shadow().map(|shadow| unsafe { shadow.add(offset) });
                Ok(Range { _table: table, host, shadow })
            }
            None => {
                let detail = self.describe(address, bytes);
                Err(MemoryError::OutOfBounds { address, bytes, detail })
            }
        }
    }

    /// Copies from the host; no kernel may run meanwhile.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let range = self.range(address, bytes.len() as u64)?;
        // SAFETY: the range is inside of an allocation that the table keeps, and the device's
        // activity lock keeps kernels and other copies out.
        unsafe { range.host.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        range.mark_written(bytes.len());
        Ok(())
    }

    /// Copies to the host; no kernel may run meanwhile.
    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        let range = self.range(address, bytes.len() as u64)?;
        // SAFETY: as in `write`.
        unsafe { range.host.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies within the device; no kernel may run meanwhile.
    pub(crate) fn copy(&self, dst: u64, src: u64, bytes: u64) -> Result<(), MemoryError> {
        let (from, to) = (self.range(src, bytes)?, self.range(dst, bytes)?);
        // SAFETY: as in `write`; `copy_from` allows the ranges to overlap.
        unsafe { to.host.copy_from(from.host, bytes as usize) };
        if let (Some(from), Some(to)) = (from.shadow, to.shadow) {
            // SAFETY: as above. What was not written to is not after it was copied either.
            unsafe { to.copy_from(from, bytes as usize) };
        }
        Ok(())
    }

    /// Repeats a pattern; no kernel may run meanwhile.
    pub(crate) fn fill(&self, address: u64, pattern: &[u8], count: u64) -> Result<(), MemoryError> {
        let alignment = pattern.len() as u64;
        if !address.is_multiple_of(alignment) {
            return Err(MemoryError::Misaligned { address, alignment });
        }
        let bytes = count.saturating_mul(alignment);
        let range = self.range(address, bytes)?;
        range.mark_written(bytes as usize);
        // SAFETY: as in `write`; the slice ends with this function.
        let memory = unsafe { std::slice::from_raw_parts_mut(range.host, bytes as usize) };
        if let [byte] = pattern {
            memory.fill(*byte);
        } else {
            memory.chunks_exact_mut(pattern.len()).for_each(|word| word.copy_from_slice(pattern));
        }
        Ok(())
    }
}

/// A range inside of an allocation.
struct Range {
    /// Keeps the allocation.
    _table: Table,
    host: *mut u8,
    shadow: Option<*mut u8>,
}

impl Range {
    /// Notes that its first bytes were written to; no kernel may run meanwhile.
    fn mark_written(&self, bytes: usize) {
        if let Some(shadow) = self.shadow {
            // SAFETY: callers stay within the range; nobody else touches it, as in `write`.
            unsafe { shadow.write_bytes(WRITTEN, bytes) };
        }
    }
}

/// The index of the allocation that holds a range.
pub(crate) fn find(table: &[Allocation], address: u64, bytes: u64) -> Option<usize> {
    let at = table.partition_point(|a| a.base <= address).checked_sub(1)?;
    let offset = address - table[at].base;
    (offset <= table[at].bytes && bytes <= table[at].bytes - offset).then_some(at)
}

impl State {
    fn freed_range(&self, address: u64) -> Option<(u64, u64)> {
        let at = self.freed.partition_point(|&(base, _)| base <= address).checked_sub(1)?;
        let (base, bytes) = self.freed[at];
        (address - base < bytes).then_some((base, bytes))
    }

    fn describe(&self, address: u64, bytes: u64) -> String {
        if let Some((base, size)) = self.freed_range(address) {
            let offset = address - base;
            return format!("byte {offset} of the {size}-byte allocation at {base:#x}, freed");
        }
        let above = self.live.partition_point(|a| a.base <= address);
        let mut text = String::new();
        let before = above.checked_sub(1).map(|at| &self.live[at]);
        let after = self.live.get(above);
        let past = before.map(|a| (a, address - a.base));
        let ahead = after.map(|a| (a, a.base - address));
        let nearer_before = match (past, ahead) {
            (Some((a, offset)), Some((_, distance))) => offset.saturating_sub(a.bytes) <= distance,
            (past, _) => past.is_some(),
        };
        if let (true, Some((a, offset))) = (nearer_before, past) {
            let (size, base) = (a.bytes, a.base);
            if offset < size {
                let beyond = (offset + bytes).saturating_sub(size);
                let _ = write!(text, "{beyond} of the {bytes} bytes lie past the end of ");
                let _ = write!(text, "the {size}-byte allocation at {base:#x}");
            } else {
                let distance = offset - size;
                let _ = write!(text, "{distance} bytes past the end of ");
                let _ = write!(text, "the {size}-byte allocation at {base:#x}");
            }
        } else if let Some((a, distance)) = ahead {
            let (size, base) = (a.bytes, a.base);
            let _ = write!(text, "{distance} bytes before the {size}-byte allocation at {base:#x}");
        } else {
            text.push_str("no memory is allocated");
        }
        text
    }
}
