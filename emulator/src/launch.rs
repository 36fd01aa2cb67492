//! A launch of a kernel, and why it may fail.

use crate::fault::Fault;
use crate::profile::Profile;
use crate::program::Kernel;

/// One launch of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block in bytes.
    pub dynamic_shared: u32,
    /// The dynamic shared memory in bytes that the function's attribute allows.
    pub dynamic_shared_limit: u32,
    /// The kernel's parameters, laid out as [`EntryPoint::params`](crate::EntryPoint::params) says.
    pub params: &'a [u8],
    /// Whether all blocks must be resident at once.
    pub cooperative: bool,
}

impl Launch<'_> {
    /// Checks a launch against the limits of the kernel and the device.
    pub(crate) fn check(&self, kernel: &Kernel, profile: &Profile) -> Result<(), InvalidLaunch> {
        let beyond = |size: [u32; 3], limit: [u32; 3]| {
            size.iter().zip(limit).any(|(&size, limit)| size == 0 || size > limit)
        };
        let Launch { grid, block, .. } = *self;
        if beyond(grid, profile.max_grid) {
            return Err(InvalidLaunch::Grid { grid, limit: profile.max_grid });
        }
        if beyond(block, profile.max_block) {
            return Err(InvalidLaunch::Block { block, limit: profile.max_block });
        }
        let threads: u64 = block.iter().map(|&size| u64::from(size)).product();
        let limit = kernel.max_threads().min(profile.max_threads_per_block);
        if threads > u64::from(limit) {
            return Err(InvalidLaunch::Threads { threads, limit });
        }
        if let Some(required) = kernel.required_block.filter(|&required| required != block) {
            return Err(InvalidLaunch::RequiredBlock { block, required });
        }
        let dynamic = self.dynamic_shared;
        if dynamic > self.dynamic_shared_limit {
            return Err(InvalidLaunch::DynamicShared { dynamic, limit: self.dynamic_shared_limit });
        }
        let (fixed, limit) = (kernel.static_shared, profile.shared_per_block_optin);
        if u64::from(fixed) + u64::from(dynamic) > u64::from(limit) {
            return Err(InvalidLaunch::Shared { fixed, dynamic, limit });
        }
        let (given, expected) = (self.params.len(), kernel.param_bytes);
        if given != expected {
            return Err(InvalidLaunch::Params { given, expected });
        }
        if self.cooperative {
            let blocks: u64 = grid.iter().map(|&size| u64::from(size)).product();
            let threads = threads.next_multiple_of(u64::from(profile.warp_size));
            let by_threads = u64::from(profile.max_threads_per_sm) / threads;
            let shared = u64::from(fixed) + u64::from(dynamic);
            let by_shared = u64::from(profile.shared_per_sm)
                / (shared + u64::from(profile.shared_reserved_per_block));
            let per_sm = by_threads.min(by_shared).min(u64::from(profile.max_blocks_per_sm));
            let limit = per_sm * u64::from(profile.sm_count);
            if blocks > limit {
                return Err(InvalidLaunch::Cooperative { blocks, limit });
            }
        }
        Ok(())
    }
}

/// Why a launch was refused before it started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidLaunch {
    /// A grid without blocks, or with more than the device takes.
    #[error("a grid of {grid:?} blocks is not within 1 to {limit:?}")]
    Grid {
        /// What was asked for.
        grid: [u32; 3],
        /// The device's limit.
        limit: [u32; 3],
    },
    /// A block without threads, or with more along an axis than the device takes.
    #[error("a block of {block:?} threads is not within 1 to {limit:?}")]
    Block {
        /// What was asked for.
        block: [u32; 3],
        /// The device's limit.
        limit: [u32; 3],
    },
    /// More threads than the kernel or the device takes.
    #[error("a block of {threads} threads exceeds the limit of {limit}")]
    Threads {
        /// Threads of the block.
        threads: u64,
        /// The smaller of the kernel's and the device's limit.
        limit: u32,
    },
    /// A block shape other than the kernel's `.reqntid`.
    #[error("a block of {block:?} threads is not the {required:?} that the kernel requires")]
    RequiredBlock {
        /// What was asked for.
        block: [u32; 3],
        /// What the kernel requires.
        required: [u32; 3],
    },
    /// More dynamic shared memory than the function's attribute allows.
    #[error(
        "{dynamic} bytes of dynamic shared memory exceed the {limit} bytes that the function's \
         attribute allows"
    )]
    DynamicShared {
        /// Bytes asked for.
        dynamic: u32,
        /// Bytes allowed.
        limit: u32,
    },
    /// More shared memory than a block of the device can have.
    #[error(
        "{fixed} bytes of static and {dynamic} bytes of dynamic shared memory exceed the device's \
         {limit} bytes"
    )]
    Shared {
        /// Static bytes of the kernel.
        fixed: u32,
        /// Dynamic bytes asked for.
        dynamic: u32,
        /// The device's limit.
        limit: u32,
    },
    /// No device memory is left for what the blocks of a cooperative grid wait by.
    #[error("no device memory is left for the workspace of a cooperative grid")]
    Workspace,
    /// A parameter image of the wrong size.
    #[error("{given} bytes of parameters were given where the kernel takes {expected}")]
    Params {
        /// Bytes given.
        given: usize,
        /// Bytes the kernel takes.
        expected: usize,
    },
    /// A cooperative grid that is not resident as a whole.
    #[error("a cooperative grid of {blocks} blocks exceeds the {limit} that can be resident")]
    Cooperative {
        /// Blocks asked for.
        blocks: u64,
        /// Blocks that can be resident.
        limit: u64,
    },
    /// The function belongs to a module that was unloaded.
    #[error("the kernel's module was unloaded")]
    Unloaded,
}

/// Why a launch did not complete.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// The launch was refused; nothing ran.
    #[error("invalid launch: {0}")]
    Invalid(#[from] InvalidLaunch),
    /// The kernel did something that it must not; memory holds what it wrote until then.
    #[error("{0}")]
    Fault(Box<Fault>),
}

impl From<Fault> for LaunchError {
    fn from(fault: Fault) -> Self {
        Self::Fault(Box::new(fault))
    }
}
