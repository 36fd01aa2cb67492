//! What a device counts: calls from the host, and the work of its kernels.

use std::ops::AddAssign;

/// Counts since the device was made. Instructions are counted per warp.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Kernels launched.
    pub launches: u64,
    /// Allocations made.
    pub allocations: u64,
    /// Allocations freed.
    pub frees: u64,
    /// Copies from the host to the device.
    pub copies_htod: u64,
    /// Copies from the device to the host.
    pub copies_dtoh: u64,
    /// Copies from the device to the device.
    pub copies_dtod: u64,
    /// Fills of device memory.
    pub memsets: u64,
    /// Synchronisations of the host with the device; counted by the driver.
    pub synchronizations: u64,
    /// Warp instructions executed.
    pub instructions: u64,
    /// Matrix multiply-accumulate instructions executed.
    pub mma: u64,
    /// Warp instructions that read or wrote global memory.
    pub global_requests: u64,
    /// Bytes that lanes read from global memory.
    pub global_bytes_read: u64,
    /// Bytes that lanes wrote to global memory.
    pub global_bytes_written: u64,
    /// Warp instructions that read or wrote shared memory.
    pub shared_requests: u64,
    /// Arrivals of warps at barriers of the block.
    pub barriers: u64,
    /// Atomic warp instructions.
    pub atomics: u64,
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.launches += other.launches;
        self.allocations += other.allocations;
        self.frees += other.frees;
        self.copies_htod += other.copies_htod;
        self.copies_dtoh += other.copies_dtoh;
        self.copies_dtod += other.copies_dtod;
        self.memsets += other.memsets;
        self.synchronizations += other.synchronizations;
        self.instructions += other.instructions;
        self.mma += other.mma;
        self.global_requests += other.global_requests;
        self.global_bytes_read += other.global_bytes_read;
        self.global_bytes_written += other.global_bytes_written;
        self.shared_requests += other.shared_requests;
        self.barriers += other.barriers;
        self.atomics += other.atomics;
    }
}
