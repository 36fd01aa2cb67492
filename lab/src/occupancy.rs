//! Occupancy: how many blocks of a kernel a multiprocessor holds, and what keeps it from more.
//!
//! The rules are those of the CUDA toolkit's `cuda_occupancy.h`.

use cuda_emulator::profile::Profile;
use serde::{Deserialize, Serialize};

/// A multiprocessor's parts, each with its share of the warps and of the registers.
const PARTITIONS: u32 = 4;
/// Registers are given to warps in units of this.
const REGISTER_UNIT: u32 = 256;
/// Shared memory is given to blocks in units of this many bytes.
const SHARED_UNIT: u32 = 128;

/// The blocks that a multiprocessor holds at once, by each of its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occupancy {
    pub by_registers: u32,
    pub by_shared: u32,
    pub by_threads: u32,
    pub by_blocks: u32,
}

impl Occupancy {
    /// The occupancy of blocks of `threads` with so many registers each and `shared` bytes.
    pub fn new(device: &Profile, threads: u32, registers: u32, shared: u32) -> Self {
        let warps = threads.div_ceil(device.warp_size).max(1);
        let per_warp = (registers.max(1) * device.warp_size).next_multiple_of(REGISTER_UNIT);
        let warps_of_registers = device.registers_per_sm / PARTITIONS / per_warp * PARTITIONS;
        let shared = (shared + device.shared_reserved_per_block).next_multiple_of(SHARED_UNIT);
        Self {
            by_registers: warps_of_registers / warps,
            by_shared: device.shared_per_sm / shared.max(1),
            by_threads: device.max_threads_per_sm / device.warp_size / warps,
            by_blocks: device.max_blocks_per_sm,
        }
    }

    fn limits(&self) -> [(&'static str, u32); 4] {
        [
            ("registers", self.by_registers),
            ("shared memory", self.by_shared),
            ("threads", self.by_threads),
            ("blocks", self.by_blocks),
        ]
    }

    /// Blocks per multiprocessor.
    pub fn blocks(&self) -> u32 {
        self.limits().iter().map(|limit| limit.1).min().unwrap_or(0)
    }

    /// What keeps it from more blocks.
    pub fn limited_by(&self) -> Vec<&'static str> {
        let blocks = self.blocks();
        self.limits().into_iter().filter(|limit| limit.1 == blocks).map(|limit| limit.0).collect()
    }
}
