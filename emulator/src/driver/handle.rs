//! Handles of driver objects.
//!
//! A handle is a number that no machine takes for an address: its top byte names the kind of
//! object and the rest is a serial number that is never given out twice. A stale handle, a handle of
//! another kind and a number that was never a handle are therefore recognised without following a
//! pointer.

use std::collections::BTreeMap;
use std::collections::btree_map;

/// The kinds of objects that have handles; the value is the top byte of the handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Context = 0xc1,
    Stream = 0xc2,
    Event = 0xc3,
    Module = 0xc4,
    Function = 0xc5,
    Graph = 0xc6,
    GraphExec = 0xc7,
    GraphNode = 0xc8,
    Pool = 0xc9,
}

const KIND_SHIFT: u32 = 56;
/// Handles are multiples of 16, like the addresses that programs expect to see.
const SERIAL_SHIFT: u32 = 4;

/// The live objects of one kind.
#[derive(Debug)]
pub(super) struct Table<T> {
    kind: Kind,
    next: u64,
    live: BTreeMap<u64, T>,
}

impl<T> Table<T> {
    /// An empty table of objects of the given kind.
    pub(super) const fn new(kind: Kind) -> Self {
        Self { kind, next: 1, live: BTreeMap::new() }
    }

    /// Takes an object in and returns its handle.
    pub(super) fn insert(&mut self, object: T) -> u64 {
        let handle = self.reserve();
        self.live.insert(handle, object);
        handle
    }

    /// A handle without an object, for [`Self::revive`].
    pub(super) fn reserve(&mut self) -> u64 {
        let handle = (u64::from(self.kind as u8) << KIND_SHIFT) | (self.next << SERIAL_SHIFT);
        self.next += 1;
        handle
    }

    /// Puts an object behind a reserved handle: for the primary context, whose handle stays the
    /// same however often it is released and retained.
    pub(super) fn revive(&mut self, handle: u64, object: T) {
        self.live.insert(handle, object);
    }

    /// The live object behind a handle.
    pub(super) fn get(&self, handle: u64) -> Option<&T> {
        self.live.get(&handle)
    }

    /// The live object behind a handle.
    pub(super) fn get_mut(&mut self, handle: u64) -> Option<&mut T> {
        self.live.get_mut(&handle)
    }

    /// Ends the life of an object; its handle never becomes valid again.
    pub(super) fn remove(&mut self, handle: u64) -> Option<T> {
        self.live.remove(&handle)
    }

    /// All live objects in the order of their creation.
    pub(super) fn iter(&self) -> btree_map::Iter<'_, u64, T> {
        self.live.iter()
    }

    /// All live objects in the order of their creation.
    pub(super) fn iter_mut(&mut self) -> btree_map::IterMut<'_, u64, T> {
        self.live.iter_mut()
    }

    /// Ends the life of every object for which `keep` is false.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.live.retain(|_, object| keep(object));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_handle_stays_dead() {
        let mut table = Table::new(Kind::Event);
        let first = table.insert("first");
        assert_eq!(table.remove(first), Some("first"));
        let second = table.insert("second");
        assert_ne!(first, second);
        assert_eq!(table.get(first), None);
        assert_eq!(table.get(second), Some(&"second"));
    }

    #[test]
    fn kinds_do_not_share_handles() {
        let mut events = Table::new(Kind::Event);
        let mut streams = Table::new(Kind::Stream);
        assert_ne!(events.insert(()), streams.insert(()));
    }
}
