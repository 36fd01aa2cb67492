//! The workspace of a cooperative grid, which cooperative groups know of: a word with its size, and
//! the word by which the blocks of the grid wait for each other.

use crate::launch::{InvalidLaunch, Launch};
use crate::memory::Memory;
use crate::program::{Kernel, Special};

const BYTES: u32 = 8;

/// The workspace of one launch.
pub(super) struct Workspace<'a> {
    memory: &'a Memory,
    /// Zero where the kernel has none.
    pub(super) address: u64,
}

impl<'a> Workspace<'a> {
    /// A workspace for a cooperative launch of a kernel that asks for one.
    pub(super) fn new(
        memory: &'a Memory,
        kernel: &Kernel,
        launch: &Launch,
    ) -> Result<Self, InvalidLaunch> {
        let asks = |special: &Special| matches!(special, Special::Environment(1 | 2));
        let asked = kernel.specials.iter().any(|(special, _)| asks(special));
        if !launch.cooperative || !asked {
            return Ok(Self { memory, address: 0 });
        }
        let address = memory.alloc(BYTES.into()).ok_or(InvalidLaunch::Workspace)?;
        let workspace = Self { memory, address };
        let mut image = [0; BYTES as usize];
        image[..4].copy_from_slice(&BYTES.to_le_bytes());
        match memory.write(address, &image) {
            Ok(()) => Ok(workspace),
            Err(_) => Err(InvalidLaunch::Workspace),
        }
    }
}

impl Drop for Workspace<'_> {
    fn drop(&mut self) {
        if self.address != 0 {
            // It was allocated here, and nobody else frees it.
            drop(self.memory.free(self.address));
        }
    }
}
