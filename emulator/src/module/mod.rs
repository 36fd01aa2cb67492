//! Modules: PTX text, checked and decoded once, with its variables in device memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::Config;
use crate::memory::Memory;
use crate::profile::Profile;
use crate::program::{Kernel, Param};

mod load;

/// Why a module was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// The text is not PTX, or holds something that the emulator does not know.
    #[error("PTX line {line}{}: {message}", .source_line.as_ref()
        .map(|(file, line)| format!(" ({file}:{line})")).unwrap_or_default())]
    Parse {
        /// The line in the PTX text, from 1.
        line: u32,
        /// The CUDA source file and line, where the module has line information.
        source_line: Option<(String, u32)>,
        /// What was wrong.
        message: String,
    },
    /// The image is not PTX text.
    #[error("the image is not PTX text: {0}")]
    NotPtx(String),
    /// The PTX version is newer than this device's driver knows.
    #[error("PTX version {}.{} is newer than the supported {}.{}", .found.0, .found.1,
        .supported.0, .supported.1)]
    UnsupportedVersion {
        /// The module's version.
        found: (u32, u32),
        /// The newest supported version.
        supported: (u32, u32),
    },
    /// The module is built for a newer device, or for one feature set that this device lacks.
    #[error("the module is for {target}, which a device of compute capability {}.{} cannot run",
        .device.0, .device.1)]
    TargetTooNew {
        /// The module's target, such as `sm_90a`.
        target: String,
        /// The device's compute capability.
        device: (u32, u32),
    },
    /// The module's variables do not fit into device memory.
    #[error("out of memory: the variable `{name}` needs {bytes} bytes")]
    OutOfMemory {
        /// The variable.
        name: String,
        /// Its size.
        bytes: u64,
    },
}

/// A loaded module.
#[derive(Debug)]
pub struct Module {
    functions: BTreeMap<String, Arc<EntryPoint>>,
    variables: BTreeMap<String, (u64, u64)>,
    unloaded: Arc<AtomicBool>,
}

impl Module {
    pub(crate) fn load(
        ptx: &str,
        profile: &Profile,
        config: &Config,
        memory: &Memory,
    ) -> Result<Module, ModuleError> {
        let unloaded = Arc::new(AtomicBool::new(false));
        let mut variables = BTreeMap::new();
        let loaded = load::load(ptx, profile, config, memory, &mut variables);
        let kernels = match loaded {
            Ok(kernels) => kernels,
            Err(error) => {
                variables.values().for_each(|&(address, _)| drop(memory.free(address)));
                return Err(error);
            }
        };
        let functions = kernels
            .into_iter()
            .map(|kernel| {
                let unloaded = unloaded.clone();
                (kernel.name.clone(), Arc::new(EntryPoint { kernel, unloaded }))
            })
            .collect();
        Ok(Module { functions, variables, unloaded })
    }

    /// Whether one of its kernels allocates memory.
    pub(crate) fn uses_heap(&self) -> bool {
        self.functions.values().any(|function| function.kernel.uses_heap)
    }

    pub(crate) fn unload(&self, memory: &Memory) {
        if !self.unloaded.swap(true, Ordering::AcqRel) {
            // A variable that the program freed by its address is an error that `free` reported.
            self.variables.values().for_each(|&(address, _)| drop(memory.free(address)));
        }
    }

    /// The kernel of that name.
    pub fn function(&self, name: &str) -> Option<Arc<EntryPoint>> {
        self.functions.get(name).cloned()
    }

    /// The names of the kernels, sorted.
    pub fn function_names(&self) -> Vec<&str> {
        self.functions.keys().map(String::as_str).collect()
    }

    /// The device address and the size in bytes of a `.global` or `.const` variable.
    pub fn global(&self, name: &str) -> Option<(u64, u64)> {
        self.variables.get(name).copied()
    }
}

/// A kernel of a loaded module.
#[derive(Debug)]
pub struct EntryPoint {
    pub(crate) kernel: Kernel,
    unloaded: Arc<AtomicBool>,
}

impl EntryPoint {
    /// The kernel's name.
    pub fn name(&self) -> &str {
        &self.kernel.name
    }

    /// The kernel's parameters, in order.
    pub fn params(&self) -> &[Param] {
        &self.kernel.params
    }

    /// The size of the parameter image in bytes.
    pub fn param_bytes(&self) -> usize {
        self.kernel.param_bytes
    }

    /// Static shared memory of a block in bytes.
    pub fn static_shared(&self) -> u32 {
        self.kernel.static_shared
    }

    /// Local memory of a thread in bytes.
    pub fn local_bytes(&self) -> u32 {
        self.kernel.local_bytes
    }

    /// Constant memory of the module in bytes.
    pub fn const_bytes(&self) -> u32 {
        self.kernel.const_bytes
    }

    /// The most threads a block may have: the kernel's `.maxntid` or `.reqntid`, or else 1024.
    pub fn max_threads(&self) -> u32 {
        self.kernel.max_threads()
    }

    /// 32-bit registers that a thread would need: those live at once at the worst place. A compiler
    /// for a device may need a few more or fewer.
    pub fn register_estimate(&self) -> u32 {
        self.kernel.registers
    }

    /// The module's PTX version as CUDA's attributes write it: ten times major plus minor.
    pub fn ptx_version(&self) -> i32 {
        self.kernel.ptx_version
    }

    /// Whether the module was unloaded.
    pub(crate) fn is_unloaded(&self) -> bool {
        self.unloaded.load(Ordering::Acquire)
    }
}
