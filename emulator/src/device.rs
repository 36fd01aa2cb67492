//! The device: memory, modules and launches behind one shared handle.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::config::Config;
use crate::counters::{Counters, MeasuredLaunch};
use crate::exec::{self, Hardware};
use crate::heap::Heap;
use crate::launch::{InvalidLaunch, Launch, LaunchError};
use crate::memory::{Memory, MemoryError};
use crate::module::{EntryPoint, Module, ModuleError};
use crate::profile::Profile;

/// What a fresh context of CUDA gives to a thread's stack.
const STACK_LIMIT: u32 = 1 << 10;
/// What a fresh context of CUDA gives to the heap of kernels.
const HEAP_BYTES: u64 = 8 << 20;

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

    fn hardware(&self) -> Hardware<'_> {
        Hardware {
            profile: &self.profile,
            config: self.config,
            memory: &self.memory,
            heap: &self.heap,
            stack_limit: self.stack_limit(),
        }
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
    pub fn launch(&self, function: &EntryPoint, launch: &Launch) -> Result<(), LaunchError> {
        self.count(|counters| counters.launches += 1);
        let _kernel = self.activity.read().unwrap_or_else(PoisonError::into_inner);
        let (counted, result) = if function.is_unloaded() {
            (Counters::default(), Err(InvalidLaunch::Unloaded.into()))
        } else {
            exec::launch(&self.hardware(), &function.kernel, launch)
        };
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

    fn count(&self, add: impl FnOnce(&mut Counters)) {
        add(&mut self.counters.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
