//! The device: memory, modules and launches behind one shared handle.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::counters::{Counters, MeasuredLaunch};
use crate::fault::Fault;
use crate::heap::Heap;
use crate::memory::{Memory, MemoryError};
use crate::module::{Function, Module, ModuleError};
use crate::profile::Profile;

/// How a matrix instruction adds up its products. Tensor cores do not add as IEEE 754 would, and
/// differ by chip: numeric tests should pass under each of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accumulator {
    /// One fused multiply-add in f32 after the other, in the order of k.
    #[default]
    Sequential,
    /// Products and sums in f64, rounded to f32 once.
    ExactF64,
    /// Blocks of products aligned to the largest exponent, truncated and added as integers.
    AlignedTruncate,
}

/// Settings of a device that no real one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Threads of the host that run blocks. One makes a launch deterministic to the last bit, even
    /// where its blocks race with atomics.
    pub threads: usize,
    /// How matrix instructions add.
    pub accumulator: Accumulator,
    /// Whether approximate instructions err as far as the instruction set lets them, instead of
    /// being as exact as their type allows.
    pub jitter: bool,
    /// The schedule: another than 0 permutes the order of blocks and that of the warps of a block,
    /// and lets warps give way to each other more often.
    pub seed: u64,
    /// Warp instructions after which a block is taken for stuck.
    pub watchdog: u64,
    /// The newest PTX version that modules may have: (major, minor).
    pub ptx_version: (u32, u32),
    /// Whether reads of memory and registers that nothing wrote, races, and copies that nothing
    /// waited for are faults. It costs time.
    pub sanitizer: bool,
    /// Whether launches are measured: the counters that say so, and a record of every launch. It
    /// costs time, and memory for each launch until [`Device::take_launches`].
    pub measure: bool,
}

impl Default for Config {
    /// Takes the number of threads from `CUDA_EMULATOR_THREADS`, or else one per processor; the
    /// sanitizer is on unless `CUDA_EMULATOR_SANITIZER` is 0; launches are measured where
    /// `CUDA_EMULATOR_MEASURE` is 1.
    fn default() -> Self {
        let threads = std::env::var("CUDA_EMULATOR_THREADS")
            .ok()
            .and_then(|value| value.trim().parse().ok())
            .filter(|&threads| threads > 0)
            .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
            .unwrap_or(1);
        Self {
            threads,
            accumulator: Accumulator::default(),
            jitter: false,
            seed: 0,
            watchdog: 1 << 32,
            ptx_version: (9, 5),
            sanitizer: std::env::var("CUDA_EMULATOR_SANITIZER")
                .map_or(true, |value| value.trim() != "0"),
            measure: std::env::var("CUDA_EMULATOR_MEASURE").is_ok_and(|value| value.trim() == "1"),
        }
    }
}

/// What a fresh context of CUDA gives to a thread's stack.
const STACK_LIMIT: u32 = 1 << 10;
/// What a fresh context of CUDA gives to the heap of kernels.
const HEAP_BYTES: u64 = 8 << 20;

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
    /// The kernel's parameters, laid out as [`Function::params`] says.
    pub params: &'a [u8],
    /// Whether all blocks must be resident at once.
    pub cooperative: bool,
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

/// An emulated device. All methods take it shared; it locks within.
#[derive(Debug)]
pub struct Device {
    profile: Profile,
    config: Config,
    memory: Memory,
    counters: Mutex<Counters>,
    /// What was measured of each launch.
    launches: Mutex<Vec<MeasuredLaunch>>,
    stack_limit: AtomicU32,
    heap: Heap,
    /// Held shared by launches and exclusively by accesses of the host.
    activity: RwLock<()>,
}

impl Device {
    /// A device of that profile with the default settings.
    pub fn new(profile: Profile) -> Device {
        Self::with_config(profile, Config::default())
    }

    /// A device of that profile.
    pub fn with_config(profile: Profile, config: Config) -> Device {
        Self::numbered(profile, config, 0)
    }

    /// One of several devices, each with addresses of its own.
    pub(crate) fn numbered(profile: Profile, config: Config, ordinal: u32) -> Device {
        Device {
            profile,
            config,
            memory: Memory::new(profile.total_memory, config.sanitizer, ordinal),
            counters: Mutex::default(),
            launches: Mutex::default(),
            stack_limit: AtomicU32::new(STACK_LIMIT),
            heap: Heap::new(HEAP_BYTES),
            activity: RwLock::new(()),
        }
    }

    /// The limits and capabilities of the device.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The settings of the device.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Bytes that recursive calls and `alloca` may take of a thread's stack.
    pub fn stack_limit(&self) -> u32 {
        self.stack_limit.load(Ordering::Relaxed)
    }

    /// Sets what [`Device::stack_limit`] says for later launches.
    pub fn set_stack_limit(&self, bytes: u32) {
        self.stack_limit.store(bytes, Ordering::Relaxed);
    }

    /// Bytes of the heap that kernels allocate from.
    pub fn heap_bytes(&self) -> u64 {
        self.heap.bytes()
    }

    /// Sets the size of the heap; `false` once a module that uses it was loaded.
    pub fn set_heap_bytes(&self, bytes: u64) -> bool {
        self.heap.resize(bytes)
    }

    pub(crate) fn heap(&self) -> &Heap {
        &self.heap
    }

    /// Allocates global memory, filled with poison; `None` when there is not enough.
    pub fn alloc(&self, bytes: u64) -> Option<u64> {
        let address = self.memory.alloc(bytes)?;
        self.count(|counters| counters.allocations += 1);
        Some(address)
    }

    /// Frees an allocation by its address.
    pub fn free(&self, ptr: u64) -> Result<(), MemoryError> {
        self.memory.free(ptr)?;
        self.count(|counters| counters.frees += 1);
        Ok(())
    }

    /// Copies bytes from the host to the device.
    pub fn write(&self, dst: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.count(|counters| counters.copies_htod += 1);
        let _host = self.activity.write().unwrap_or_else(PoisonError::into_inner);
        self.memory.write(dst, bytes)
    }

    /// Copies bytes from the device to the host.
    pub fn read(&self, src: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        self.count(|counters| counters.copies_dtoh += 1);
        let _host = self.activity.write().unwrap_or_else(PoisonError::into_inner);
        self.memory.read(src, bytes)
    }

    /// Copies bytes within the device; the ranges must not overlap.
    pub fn copy(&self, dst: u64, src: u64, bytes: u64) -> Result<(), MemoryError> {
        self.count(|counters| counters.copies_dtod += 1);
        let _host = self.activity.write().unwrap_or_else(PoisonError::into_inner);
        self.memory.copy(dst, src, bytes)
    }

    /// Fills `count` bytes.
    pub fn fill8(&self, dst: u64, value: u8, count: u64) -> Result<(), MemoryError> {
        self.fill(dst, &[value], count)
    }

    /// Fills `count` 16-bit words; the address must be a multiple of 2.
    pub fn fill16(&self, dst: u64, value: u16, count: u64) -> Result<(), MemoryError> {
        self.fill(dst, &value.to_le_bytes(), count)
    }

    /// Fills `count` 32-bit words; the address must be a multiple of 4.
    pub fn fill32(&self, dst: u64, value: u32, count: u64) -> Result<(), MemoryError> {
        self.fill(dst, &value.to_le_bytes(), count)
    }

    fn fill(&self, dst: u64, pattern: &[u8], count: u64) -> Result<(), MemoryError> {
        self.count(|counters| counters.memsets += 1);
        let _host = self.activity.write().unwrap_or_else(PoisonError::into_inner);
        self.memory.fill(dst, pattern, count)
    }

    /// Bytes of global memory that are allocated, modules included.
    pub fn memory_in_use(&self) -> u64 {
        self.memory.in_use()
    }

    /// The start and size of the live allocation that holds an address.
    pub fn allocation_of(&self, address: u64) -> Option<(u64, u64)> {
        self.memory.allocation_of(address)
    }

    /// Loads a module of PTX text and gives its variables device memory.
    pub fn load_module(&self, ptx: &str) -> Result<Arc<Module>, ModuleError> {
        let module = Module::load(ptx, &self.profile, &self.config, &self.memory)?;
        if module.uses_heap() && !self.heap.place(&self.memory) {
            module.unload(&self.memory);
            let bytes = self.heap.bytes();
            return Err(ModuleError::OutOfMemory { name: "malloc".to_owned(), bytes });
        }
        Ok(Arc::new(module))
    }

    /// Frees a module's variables; its functions can no longer be launched.
    pub fn unload_module(&self, module: &Arc<Module>) {
        module.unload(&self.memory);
    }

    /// Runs a kernel to its end.
    pub fn launch(&self, function: &Function, launch: &Launch) -> Result<(), LaunchError> {
        self.count(|counters| counters.launches += 1);
        let _kernel = self.activity.read().unwrap_or_else(PoisonError::into_inner);
        let (counted, result) = crate::exec::launch(self, function, launch);
        self.count(|counters| *counters += counted);
        if self.config.measure {
            let measured = MeasuredLaunch {
                kernel: function.name().to_owned(),
                grid: launch.grid,
                block: launch.block,
                static_shared: function.static_shared(),
                dynamic_shared: launch.dynamic_shared,
                counters: counted,
            };
            self.launches.lock().unwrap_or_else(PoisonError::into_inner).push(measured);
        }
        result
    }

    /// What was measured of each launch since the device was made or this was called, in order;
    /// nothing unless [`Config::measure`] is set. A launch that failed is there with what it did.
    pub fn take_launches(&self) -> Vec<MeasuredLaunch> {
        std::mem::take(&mut self.launches.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What was counted since the device was made.
    pub fn counters(&self) -> Counters {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    fn count(&self, add: impl FnOnce(&mut Counters)) {
        add(&mut self.counters.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
