//! Graphs: what a capture recorded, instantiated and replayed.
//!
//! A replay runs the nodes in the order of their capture, which is an order that their dependencies
//! allow. Kernel parameters and launch sizes are those of the capture; host memory is read when
//! the graph runs.

use std::ffi::c_char;
use std::sync::Arc;

use super::entry::{Out, in_context, initialised, set_optional};
use super::queue::Operation;
use super::state::{self, Driver};
use super::status::{Result, Status};

const FLAG_AUTO_FREE_ON_LAUNCH: u64 = 1;
const FLAG_UPLOAD: u64 = 2;
const FLAG_DEVICE_LAUNCH: u64 = 4;
const FLAG_USE_NODE_PRIORITY: u64 = 8;
const FLAGS: u64 = 15;

/// `CU_GRAPH_NODE_TYPE_*`.
const NODE_KERNEL: u32 = 0;
const NODE_MEMCPY: u32 = 1;
const NODE_MEMSET: u32 = 2;
const NODE_HOST: u32 = 3;
const NODE_GRAPH: u32 = 4;
const NODE_EMPTY: u32 = 5;

/// What a capture recorded.
pub(super) struct Graph {
    pub(super) context: u64,
    pub(super) nodes: Vec<Node>,
}

/// An operation and the nodes that must have run before it.
pub(super) struct Node {
    pub(super) op: Operation,
    pub(super) depends_on: Vec<usize>,
}

/// The node that a node handle stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeName {
    pub(super) graph: u64,
    index: usize,
}

/// A graph that can be launched.
pub(super) struct Exec {
    pub(super) context: u64,
    ops: Arc<[Operation]>,
}

impl Driver {
    fn graph(&self, handle: u64) -> Result<&Graph> {
        self.graphs.get(handle).ok_or_else(|| state::stale(handle, "graph"))
    }

    fn exec(&self, context: u64, handle: u64) -> Result<&Exec> {
        match self.execs.get(handle) {
            Some(exec) if exec.context == context => Ok(exec),
            Some(_) => {
                let reason = "the graph was instantiated in a context that is not current";
                Err(Status::INVALID_CONTEXT.because(reason))
            }
            None => Err(state::stale(handle, "executable graph")),
        }
    }

    fn instantiate(&mut self, graph: u64, flags: u64) -> Result<u64> {
        let graph = self.graph(graph)?;
        if flags & !FLAGS != 0 {
            return Err(Status::INVALID_VALUE.because(format!("{flags:#x} has unknown flags")));
        }
        if flags & FLAG_DEVICE_LAUNCH != 0 {
            if flags & FLAG_AUTO_FREE_ON_LAUNCH != 0 {
                let reason = "a graph launched from the device cannot free memory on launch";
                return Err(Status::INVALID_VALUE.because(reason));
            }
            let reason = "graphs cannot be launched from the device";
            return Err(Status::NOT_SUPPORTED.because(reason));
        }
        // Uploading and priorities change when things happen, not what happens.
        let _ = flags & (FLAG_UPLOAD | FLAG_USE_NODE_PRIORITY);
        let ops = graph.nodes.iter().map(|node| node.op.clone()).collect();
        let exec = Exec { context: graph.context, ops };
        Ok(self.execs.insert(exec))
    }

    /// The handle of a node, the same one at each call.
    fn node_handle(&mut self, graph: u64, index: usize) -> u64 {
        let name = NodeName { graph, index };
        let known = self.nodes.iter().find(|(_, known)| **known == name).map(|(&handle, _)| handle);
        known.unwrap_or_else(|| self.nodes.insert(name))
    }

    fn node_type(&self, handle: u64) -> Result<u32> {
        let name = self.nodes.get(handle).ok_or_else(|| state::stale(handle, "graph node"))?;
        let node = self.graph(name.graph)?.nodes.get(name.index);
        Ok(node.map_or(NODE_EMPTY, |node| type_of(&node.op)))
    }
}

fn type_of(op: &Operation) -> u32 {
    match op {
        Operation::Launch(_) => NODE_KERNEL,
        Operation::Fill { .. } => NODE_MEMSET,
        Operation::Call { .. } => NODE_HOST,
        Operation::Graph(_) => NODE_GRAPH,
        Operation::Rows(rows) => rows.first().map_or(NODE_EMPTY, type_of),
        Operation::Free(_) | Operation::Record(_) | Operation::Wait(_) => NODE_EMPTY,
        _ => NODE_MEMCPY,
    }
}

/// Hands out as many handles as the caller has room for, and how many there are.
///
/// # Safety
/// `count` is null or readable and writable; `list` is null or has room for `*count` handles.
unsafe fn hand_out(handles: &[u64], list: *mut u64, count: *mut usize) -> Result {
    // SAFETY: the caller's promise.
    let out = unsafe { Out::new(count) }?;
    if list.is_null() {
        out.set(handles.len());
        return Ok(());
    }
    // SAFETY: `count` is not null, as `Out::new` has found.
    let room = unsafe { count.read() };
    let given = room.min(handles.len());
    for index in 0..room {
        let handle = handles.get(index).copied().unwrap_or(0);
        // SAFETY: the caller's list has room for `room` handles.
        unsafe { list.add(index).write(handle) };
    }
    out.set(given);
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(
    exec: *mut u64,
    graph: u64,
    flags: u64,
) -> Status {
    in_context("cuGraphInstantiateWithFlags", |driver, _| {
        // SAFETY: `exec` is null or writable, by the convention of the driver API.
        let exec = unsafe { Out::new(exec) }?;
        exec.set(driver.instantiate(graph, flags)?);
        Ok(())
    })
}

/// The form of CUDA 11: there is never a node to blame nor a message to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiate_v2(
    exec: *mut u64,
    graph: u64,
    error_node: *mut u64,
    log: *mut c_char,
    log_size: usize,
) -> Status {
    in_context("cuGraphInstantiate_v2", |driver, _| {
        // SAFETY: each is null or writable, by the convention of the driver API.
        let (exec, error_node) = unsafe { (Out::new(exec)?, Out::optional(error_node)?) };
        set_optional(error_node, 0);
        // SAFETY: the log is null or has `log_size` bytes, by the convention of the driver API.
        unsafe { super::entry::write_text("", log, log_size) };
        exec.set(driver.instantiate(graph, 0)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphLaunch(exec: u64, stream: u64) -> Status {
    in_context("cuGraphLaunch", |driver, context| {
        let ops = Arc::clone(&driver.exec(context, exec)?.ops);
        let stream = driver.stream(context, stream)?;
        driver.submit(stream, Operation::Graph(ops))
    })
}

/// The emulated device has nothing to upload: the handles are checked.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphUpload(exec: u64, stream: u64) -> Status {
    in_context("cuGraphUpload", |driver, context| {
        driver.exec(context, exec)?;
        driver.stream(context, stream).map(|_| ())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphExecDestroy(exec: u64) -> Status {
    initialised("cuGraphExecDestroy", |driver| match driver.execs.remove(exec) {
        Some(_) => Ok(()),
        None => Err(state::stale(exec, "executable graph")),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphDestroy(graph: u64) -> Status {
    initialised("cuGraphDestroy", |driver| match driver.graphs.remove(graph) {
        Some(_) => {
            driver.nodes.retain(|name| name.graph != graph);
            Ok(())
        }
        None => Err(state::stale(graph, "graph")),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphGetNodes(graph: u64, list: *mut u64, count: *mut usize) -> Status {
    initialised("cuGraphGetNodes", |driver| {
        let total = driver.graph(graph)?.nodes.len();
        let handles: Vec<u64> = (0..total).map(|index| driver.node_handle(graph, index)).collect();
        // SAFETY: the convention of the driver API is what `hand_out` asks for.
        unsafe { hand_out(&handles, list, count) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphNodeGetDependencies(
    node: u64,
    list: *mut u64,
    count: *mut usize,
) -> Status {
    initialised("cuGraphNodeGetDependencies", |driver| {
        let name = *driver.nodes.get(node).ok_or_else(|| state::stale(node, "graph node"))?;
        let depends_on = driver
            .graph(name.graph)?
            .nodes
            .get(name.index)
            .map_or(Vec::new(), |node| node.depends_on.clone());
        let handles: Vec<u64> =
            depends_on.iter().map(|&index| driver.node_handle(name.graph, index)).collect();
        // SAFETY: the convention of the driver API is what `hand_out` asks for.
        unsafe { hand_out(&handles, list, count) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphNodeGetType(node: u64, kind: *mut u32) -> Status {
    initialised("cuGraphNodeGetType", |driver| {
        // SAFETY: `kind` is null or writable, by the convention of the driver API.
        let kind = unsafe { Out::new(kind) }?;
        kind.set(driver.node_type(node)?);
        Ok(())
    })
}
