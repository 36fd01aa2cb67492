//! Occupancy: how many blocks of a kernel a multiprocessor of the profile would hold.
//!
//! The registers are an estimate (see [`crate::EntryPoint::register_estimate`]), and so is what
//! follows from them.

use std::ffi::c_int;

use crate::{EntryPoint, Profile};

use super::entry::{Out, in_context, read};
use super::function::thread_limit;
use super::launch::{LaunchConfiguration, blocks_per_sm};
use super::state::Driver;
use super::status::{Result, Status};

/// `CU_OCCUPANCY_DISABLE_CACHING_OVERRIDE`: the only flag, of no meaning here.
const FLAGS: u32 = 1;

/// The function of the program that says how much dynamic shared memory a block size needs.
type SharedOfBlock = Option<unsafe extern "C" fn(c_int) -> usize>;

impl Driver {
    fn resident_blocks(&self, handle: u64, threads: c_int, dynamic_shared: usize) -> Result<u32> {
        let entry = self.function(handle)?;
        let profile = &self.platform()?.profile;
        let threads = positive(threads, "threads of a block")?;
        let limit = thread_limit(&entry.function, profile);
        let dynamic = u32::try_from(dynamic_shared).unwrap_or(u32::MAX);
        if threads > limit || dynamic > entry.dynamic_shared_limit {
            return Ok(0);
        }
        Ok(blocks_per_sm(&entry.function, threads, dynamic, profile))
    }

    /// The block size that fills a multiprocessor best, the largest of equals, and the grid that
    /// fills the device with it.
    fn best_block(
        &self,
        handle: u64,
        limit: c_int,
        shared: impl Fn(u32) -> usize,
    ) -> Result<(c_int, c_int)> {
        let entry = self.function(handle)?;
        let profile = &self.platform()?.profile;
        let mut most = thread_limit(&entry.function, profile);
        if limit < 0 {
            let reason = format!("a block of at most {limit} threads");
            return Err(Status::INVALID_VALUE.because(reason));
        }
        if limit > 0 {
            most = most.min(limit as u32);
        }
        let fit = best(&entry.function, profile, most, entry.dynamic_shared_limit, shared);
        let (threads, blocks) = fit.ok_or_else(|| {
            Status::INVALID_VALUE.because("no block of the kernel fits a multiprocessor")
        })?;
        Ok(((blocks * profile.sm_count) as c_int, threads as c_int))
    }
}

fn best(
    function: &EntryPoint,
    profile: &Profile,
    most: u32,
    shared_limit: u32,
    shared: impl Fn(u32) -> usize,
) -> Option<(u32, u32)> {
    let mut best: Option<(u32, u32)> = None;
    let warps = most.div_ceil(profile.warp_size);
    for count in (1..=warps).rev() {
        let threads = (count * profile.warp_size).min(most);
        let Ok(dynamic) = u32::try_from(shared(threads)) else {
            continue;
        };
        if dynamic > shared_limit {
            continue;
        }
        let blocks = blocks_per_sm(function, threads, dynamic, profile);
        if blocks > 0 && best.is_none_or(|(t, b)| threads * blocks > t * b) {
            best = Some((threads, blocks));
        }
    }
    best
}

fn positive(value: c_int, what: &str) -> Result<u32> {
    match u32::try_from(value) {
        Ok(value) if value > 0 => Ok(value),
        _ => Err(Status::INVALID_VALUE.because(format!("{value} {what}"))),
    }
}

fn check_flags(flags: u32) -> Result {
    if flags & !FLAGS != 0 {
        return Err(Status::INVALID_VALUE.because(format!("{flags:#x} has unknown flags")));
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: *mut c_int,
    function: u64,
    threads: c_int,
    dynamic_shared: usize,
) -> Status {
    in_context("cuOccupancyMaxActiveBlocksPerMultiprocessor", |driver, _| {
        // SAFETY: `blocks` is null or writable, by the convention of the driver API.
        let blocks = unsafe { Out::new(blocks) }?;
        blocks.set(driver.resident_blocks(function, threads, dynamic_shared)? as c_int);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    blocks: *mut c_int,
    function: u64,
    threads: c_int,
    dynamic_shared: usize,
    flags: u32,
) -> Status {
    in_context("cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags", |driver, _| {
        // SAFETY: `blocks` is null or writable, by the convention of the driver API.
        let blocks = unsafe { Out::new(blocks) }?;
        check_flags(flags)?;
        blocks.set(driver.resident_blocks(function, threads, dynamic_shared)? as c_int);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxPotentialBlockSize(
    grid: *mut c_int,
    block: *mut c_int,
    function: u64,
    shared_of_block: SharedOfBlock,
    dynamic_shared: usize,
    limit: c_int,
) -> Status {
    // SAFETY: passed on from the caller.
    unsafe {
        cuOccupancyMaxPotentialBlockSizeWithFlags(
            grid,
            block,
            function,
            shared_of_block,
            dynamic_shared,
            limit,
            0,
        )
    }
}

/// The program's function runs while other driver calls wait; it must not call the driver.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxPotentialBlockSizeWithFlags(
    grid: *mut c_int,
    block: *mut c_int,
    function: u64,
    shared_of_block: SharedOfBlock,
    dynamic_shared: usize,
    limit: c_int,
    flags: u32,
) -> Status {
    in_context("cuOccupancyMaxPotentialBlockSizeWithFlags", |driver, _| {
        // SAFETY: both are null or writable, by the convention of the driver API.
        let (grid, block) = unsafe { (Out::new(grid)?, Out::new(block)?) };
        check_flags(flags)?;
        let shared = |threads: u32| match shared_of_block {
            None => dynamic_shared,
            Some(of_block) => {
                let mut bytes = 0;
                super::entry::run_host_function(|| {
                    // SAFETY: the program gave the function for such calls.
                    bytes = unsafe { of_block(threads as c_int) };
                });
                bytes
            }
        };
        let (blocks, threads) = driver.best_block(function, limit, shared)?;
        grid.set(blocks);
        block.set(threads);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    bytes: *mut usize,
    function: u64,
    blocks: c_int,
    threads: c_int,
) -> Status {
    in_context("cuOccupancyAvailableDynamicSMemPerBlock", |driver, _| {
        // SAFETY: `bytes` is null or writable, by the convention of the driver API.
        let bytes = unsafe { Out::new(bytes) }?;
        let blocks = positive(blocks, "blocks")?;
        let threads = positive(threads, "threads of a block")?;
        let entry = driver.function(function)?;
        let profile = &driver.platform()?.profile;
        if blocks_per_sm(&entry.function, threads, 0, profile) < blocks {
            let reason = format!("{blocks} blocks of {threads} threads do not fit");
            return Err(Status::INVALID_VALUE.because(reason));
        }
        let share = profile.shared_per_sm / blocks;
        let taken = entry.function.static_shared() + profile.shared_reserved_per_block;
        let optin = profile.shared_per_block_optin.saturating_sub(entry.function.static_shared());
        bytes.set(share.saturating_sub(taken).min(optin) as usize);
        Ok(())
    })
}

/// Clusters hold one block each.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveClusters(
    clusters: *mut c_int,
    function: u64,
    configuration: *const LaunchConfiguration,
) -> Status {
    in_context("cuOccupancyMaxActiveClusters", |driver, _| {
        // SAFETY: null or writable, and null or readable, by the convention of the driver API.
        let (clusters, shape) = unsafe { (Out::new(clusters)?, read(configuration)?.shape()?) };
        let threads = c_int::try_from(shape.threads()).unwrap_or(c_int::MAX);
        let shared = shape.dynamic_shared as usize;
        let blocks = driver.resident_blocks(function, threads, shared)?;
        clusters.set((blocks * driver.platform()?.profile.sm_count) as c_int);
        Ok(())
    })
}

/// Clusters hold one block each.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxPotentialClusterSize(
    size: *mut c_int,
    function: u64,
    configuration: *const LaunchConfiguration,
) -> Status {
    in_context("cuOccupancyMaxPotentialClusterSize", |driver, _| {
        // SAFETY: null or writable, and null or readable, by the convention of the driver API.
        let size = unsafe {
            read(configuration)?.shape()?;
            Out::new(size)?
        };
        driver.function(function)?;
        size.set(1);
        Ok(())
    })
}
