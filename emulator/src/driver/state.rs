//! The state behind the driver API: one table per kind of object, behind one lock.
//!
//! The lock is held while a function runs, kernels included. A kernel uses every core itself, so
//! little is lost, and the order in which work runs depends on nothing but the order of the calls.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::ThreadId;

use crate::{Config, Counters, Device, MeasuredLaunch, Profile};

use super::capture::Capture;
use super::event::Event;
use super::graph::{Exec, Graph, NodeName};
use super::handle::{Kind, Table};
use super::host::HostAllocation;
use super::module::{LoadedFunction, LoadedModule};
use super::pool::Pool;
use super::queue::Stream;
use super::status::{Failure, Result, Status};

/// The driver of this process.
pub(super) static DRIVER: LazyLock<Mutex<Driver>> = LazyLock::new(|| Mutex::new(Driver::new()));

thread_local! {
    /// The contexts that this thread made current, the current one last.
    static CONTEXT_STACK: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    /// How far captures restrict this thread: the mode of `cuThreadExchangeStreamCaptureMode`.
    static CAPTURE_MODE: Cell<u32> = const { Cell::new(0) };
}

/// Everything the driver knows.
pub(super) struct Driver {
    pub(super) platform: Option<Platform>,
    /// The configuration for the contexts to come, where a client chose one.
    pub(super) config: Option<Config>,
    pub(super) contexts: Table<Context>,
    /// Of each device.
    pub(super) primaries: Vec<Primary>,
    pub(super) streams: Table<Stream>,
    pub(super) events: Table<Event>,
    pub(super) modules: Table<LoadedModule>,
    pub(super) functions: Table<LoadedFunction>,
    pub(super) graphs: Table<Graph>,
    pub(super) execs: Table<Exec>,
    pub(super) nodes: Table<NodeName>,
    pub(super) pools: Table<Pool>,
    pub(super) captures: BTreeMap<u64, Capture>,
    pub(super) next_capture: u64,
    pub(super) host: BTreeMap<usize, HostAllocation>,
    /// What the driver itself and the contexts that are gone counted.
    pub(super) counted: Counters,
    /// The counters at their latest reset.
    pub(super) counted_before: Counters,
    /// What was measured of the launches since then.
    pub(super) launches: Vec<MeasuredLaunch>,
    /// The report of the latest fault.
    pub(super) last_fault: String,
}

/// What `cuInit` settled.
#[derive(Clone)]
pub(super) struct Platform {
    pub(super) profile: Profile,
    /// Whether the device offers memory pools (`CUDA_EMULATOR_MEMORY_POOLS`).
    pub(super) memory_pools: bool,
    /// Whether work waits in its stream until something needs it (`CUDA_EMULATOR_STREAMS`).
    pub(super) lazy: bool,
    /// Whether every launch is awaited (`CUDA_LAUNCH_BLOCKING`).
    pub(super) launch_blocking: bool,
}

/// The primary context of a device.
#[derive(Clone, Default)]
pub(super) struct Primary {
    /// Its handle, which stays the same when it is released and retained again.
    pub(super) handle: Option<u64>,
    pub(super) users: u32,
    pub(super) flags: u32,
}

/// One context: an address space with its streams and its sticky error.
pub(super) struct Context {
    pub(super) device: Arc<Device>,
    /// The number of the device that it is of.
    pub(super) ordinal: usize,
    pub(super) flags: u32,
    pub(super) cache_config: u32,
    pub(super) limits: BTreeMap<u32, usize>,
    /// The error that every call returns once a kernel has failed.
    pub(super) sticky: Option<Failure>,
    pub(super) allocations: BTreeMap<u64, Allocation>,
    /// The stream behind the handles 0 and 1.
    pub(super) legacy: u64,
    /// The streams behind the handle 2.
    pub(super) per_thread: HashMap<ThreadId, u64>,
    pub(super) default_pool: u64,
    /// The stream in which events of the whole context wait, once there is one.
    pub(super) gather: Option<u64>,
}

/// A piece of device memory that a program may name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allocation {
    pub(super) bytes: u64,
    pub(super) origin: Origin,
    /// Whether a stream will free it: it must not be freed again.
    pub(super) doomed: bool,
}

/// Where device memory came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// `cuMemAlloc`.
    Plain,
    /// A memory pool.
    Pool(u64),
    /// A variable of a module.
    Variable(u64),
}

impl Context {
    /// The allocation that holds an address, with its start.
    pub(super) fn allocation_at(&self, address: u64) -> Option<(u64, Allocation)> {
        let (&start, &allocation) = self.allocations.range(..=address).next_back()?;
        (address - start < allocation.bytes).then_some((start, allocation))
    }
}

impl Driver {
    fn new() -> Self {
        Self {
            platform: None,
            config: None,
            contexts: Table::new(Kind::Context),
            primaries: Vec::new(),
            streams: Table::new(Kind::Stream),
            events: Table::new(Kind::Event),
            modules: Table::new(Kind::Module),
            functions: Table::new(Kind::Function),
            graphs: Table::new(Kind::Graph),
            execs: Table::new(Kind::GraphExec),
            nodes: Table::new(Kind::GraphNode),
            pools: Table::new(Kind::Pool),
            captures: BTreeMap::new(),
            next_capture: 1,
            host: BTreeMap::new(),
            counted: Counters::default(),
            counted_before: Counters::default(),
            launches: Vec::new(),
            last_fault: String::new(),
        }
    }

    /// What `cuInit` settled, or the error of a driver that was not initialised.
    pub(super) fn platform(&self) -> Result<&Platform> {
        self.platform.as_ref().ok_or_else(|| Status::NOT_INITIALIZED.into())
    }

    /// The context that is current to this thread.
    pub(super) fn current_context(&self) -> Result<u64> {
        let Some(handle) = current_handle() else {
            return Err(Status::INVALID_CONTEXT.because("no context is current to this thread"));
        };
        match self.contexts.get(handle) {
            Some(_) => Ok(handle),
            None => Err(Status::CONTEXT_IS_DESTROYED.into()),
        }
    }

    /// A live context.
    pub(super) fn context(&self, handle: u64) -> Result<&Context> {
        self.contexts.get(handle).ok_or_else(|| no_context(handle))
    }

    /// A live context.
    pub(super) fn context_mut(&mut self, handle: u64) -> Result<&mut Context> {
        self.contexts.get_mut(handle).ok_or_else(|| no_context(handle))
    }

    /// Fails with the error that a kernel of this context left.
    pub(super) fn check_sticky(&self, context: u64) -> Result {
        match &self.context(context)?.sticky {
            Some(failure) => Err(failure.clone()),
            None => Ok(()),
        }
    }
}

fn no_context(handle: u64) -> super::status::Failure {
    Status::INVALID_CONTEXT.because(format!("{handle:#x} is not a live context"))
}

/// The error for a handle that names no live object.
pub(super) fn stale(handle: u64, what: &str) -> super::status::Failure {
    Status::INVALID_HANDLE.because(format!("{handle:#x} is not a live {what}"))
}

/// The handle that is current to this thread, live or not.
pub(super) fn current_handle() -> Option<u64> {
    CONTEXT_STACK.with_borrow(|stack| stack.last().copied())
}

/// Makes a context current on top of the others.
pub(super) fn push_current(handle: u64) {
    CONTEXT_STACK.with_borrow_mut(|stack| stack.push(handle));
}

/// Takes the current context off the stack.
pub(super) fn pop_current() -> Option<u64> {
    CONTEXT_STACK.with_borrow_mut(Vec::pop)
}

/// The capture mode of this thread; sets a new one where given.
pub(super) fn capture_mode(new: Option<u32>) -> u32 {
    match new {
        Some(mode) => CAPTURE_MODE.replace(mode),
        None => CAPTURE_MODE.get(),
    }
}
