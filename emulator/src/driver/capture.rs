//! Stream capture: operations become nodes of a graph instead of running.
//!
//! A capture begins in one stream. Other streams join it by waiting for an event that was recorded
//! in it, and must be waited for by the first stream before the capture ends. Whatever a device
//! cannot capture fails, and invalidates the capture.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::{self, ThreadId};

use super::entry::{Out, in_context, initialised, set_optional};
use super::event::Record;
use super::graph::{Graph, Node};
use super::queue::{Operation, Ordering};
use super::state::{self, Driver};
use super::status::{Failure, Result, Status};

/// `CU_STREAM_CAPTURE_MODE_*`: how far a capture restricts other calls.
const MODE_GLOBAL: u32 = 0;
#[cfg(test)]
const MODE_THREAD_LOCAL: u32 = 1;
const MODE_RELAXED: u32 = 2;

/// `CU_STREAM_CAPTURE_STATUS_*`.
const STATUS_NONE: u32 = 0;
const STATUS_ACTIVE: u32 = 1;
const STATUS_INVALIDATED: u32 = 2;

/// A capture that has not ended.
pub(super) struct Capture {
    origin: u64,
    mode: u32,
    thread: ThreadId,
    invalid: bool,
    nodes: Vec<Node>,
    /// Per stream of the capture, the nodes that its next node depends on.
    tails: BTreeMap<u64, Vec<usize>>,
}

impl Driver {
    fn begin_capture(&mut self, stream: u64, mode: u32) -> Result {
        let Some(entry) = self.streams.get_mut(stream) else {
            return Err(state::stale(stream, "stream"));
        };
        if entry.ordering == Ordering::Legacy {
            let reason = "the legacy default stream cannot be captured";
            return Err(Status::STREAM_CAPTURE_UNSUPPORTED.because(reason));
        }
        if entry.capture.is_some() {
            return Err(Status::ILLEGAL_STATE.because("the stream is being captured already"));
        }
        let id = self.next_capture;
        entry.capture = Some(id);
        self.next_capture += 1;
        self.captures.insert(
            id,
            Capture {
                origin: stream,
                mode,
                thread: thread::current().id(),
                invalid: false,
                nodes: Vec::new(),
                tails: BTreeMap::from([(stream, Vec::new())]),
            },
        );
        Ok(())
    }

    fn end_capture(&mut self, context: u64, stream: u64) -> Result<u64> {
        let Some(id) = self.streams.get(stream).and_then(|entry| entry.capture) else {
            return Err(Status::ILLEGAL_STATE.because("the stream is not being captured"));
        };
        let Some(capture) = self.captures.get(&id) else {
            return Err(Status::STREAM_CAPTURE_INVALIDATED.into());
        };
        if capture.origin != stream {
            self.invalidate(id);
            let reason = "the capture was begun in another stream";
            return Err(Status::STREAM_CAPTURE_UNMATCHED.because(reason));
        }
        if capture.mode != MODE_RELAXED && capture.thread != thread::current().id() {
            return Err(Status::STREAM_CAPTURE_WRONG_THREAD.into());
        }
        let Some(capture) = self.abandon_capture(id) else {
            return Err(Status::STREAM_CAPTURE_INVALIDATED.into());
        };
        if capture.invalid {
            return Err(Status::STREAM_CAPTURE_INVALIDATED.into());
        }
        if let Some(stray) = capture.unjoined() {
            let reason = format!("the stream {stray:#x} joined the capture and was not waited for");
            return Err(Status::STREAM_CAPTURE_UNJOINED.because(reason));
        }
        Ok(self.graphs.insert(Graph { context, nodes: capture.nodes }))
    }

    /// Ends a capture without a graph; its streams run their operations again.
    pub(super) fn abandon_capture(&mut self, id: u64) -> Option<Capture> {
        for (_, stream) in self.streams.iter_mut() {
            if stream.capture == Some(id) {
                stream.capture = None;
            }
        }
        self.captures.remove(&id)
    }

    /// Makes a node of an operation that a captured stream was given.
    pub(super) fn record_node(&mut self, id: u64, stream: u64, op: Operation) -> Result {
        let capture = self.active_capture(id)?;
        let node = capture.nodes.len();
        let tail = capture.tails.entry(stream).or_default();
        let depends_on = std::mem::replace(tail, vec![node]);
        capture.nodes.push(Node { op, depends_on });
        Ok(())
    }

    /// The state of an event that is recorded in a captured stream.
    pub(super) fn capture_point(&mut self, id: u64, stream: u64) -> Result<Record> {
        let capture = self.active_capture(id)?;
        let nodes = capture.tails.get(&stream).cloned().unwrap_or_default();
        Ok(Record::Captured { capture: id, nodes })
    }

    /// Lets a stream wait for nodes of a capture; a stream outside of it joins.
    pub(super) fn join_capture(&mut self, stream: u64, id: u64, nodes: &[usize]) -> Result {
        if !self.captures.contains_key(&id) {
            let reason = "the event was recorded in a capture that has ended";
            return Err(Status::CAPTURED_EVENT.because(reason));
        }
        self.active_capture(id)?;
        let entry = self.streams.get_mut(stream).ok_or_else(|| state::stale(stream, "stream"))?;
        match entry.capture {
            None if entry.ordering == Ordering::Legacy => {
                self.invalidate(id);
                let reason = "the legacy default stream cannot join a capture";
                return Err(Status::STREAM_CAPTURE_IMPLICIT.because(reason));
            }
            None => entry.capture = Some(id),
            Some(own) if own != id => {
                self.invalidate(own);
                self.invalidate(id);
                return Err(Status::STREAM_CAPTURE_MERGE.into());
            }
            Some(_) => {}
        }
        let tail = self.active_capture(id)?.tails.entry(stream).or_default();
        tail.extend_from_slice(nodes);
        tail.sort_unstable();
        tail.dedup();
        Ok(())
    }

    /// The capture of this number, unless an error has invalidated it.
    fn active_capture(&mut self, id: u64) -> Result<&mut Capture> {
        match self.captures.get_mut(&id) {
            Some(capture) if !capture.invalid => Ok(capture),
            _ => Err(Status::STREAM_CAPTURE_INVALIDATED.into()),
        }
    }

    pub(super) fn invalidate(&mut self, id: u64) {
        if let Some(capture) = self.captures.get_mut(&id) {
            capture.invalid = true;
        }
    }

    /// Refuses a call on a stream that is being captured, and invalidates the capture.
    pub(super) fn refuse_in_capture(
        &mut self,
        stream: u64,
        status: Status,
        what: &'static str,
    ) -> Result {
        match self.streams.get(stream).and_then(|entry| entry.capture) {
            Some(id) => {
                self.invalidate(id);
                Err(status.because(format!("{what} while the stream is being captured")))
            }
            None => Ok(()),
        }
    }

    /// Refuses a call that could disturb a capture under way, as its mode and this thread's mode
    /// demand.
    pub(super) fn refuse_unsafe_call(&mut self) -> Result {
        let own_mode = state::capture_mode(None);
        if own_mode == MODE_RELAXED {
            return Ok(());
        }
        let thread = thread::current().id();
        let disturbed = self.captures.iter_mut().find(|(_, capture)| {
            capture.mode != MODE_RELAXED && capture.thread == thread
                || capture.mode == MODE_GLOBAL && own_mode == MODE_GLOBAL
        });
        match disturbed {
            None => Ok(()),
            Some((_, capture)) => {
                capture.invalid = true;
                Err(unsafe_call())
            }
        }
    }

    fn capture_status(&self, stream: u64) -> (u32, u64) {
        match self.streams.get(stream).and_then(|entry| entry.capture) {
            None => (STATUS_NONE, 0),
            Some(id) if self.captures.get(&id).is_some_and(|capture| !capture.invalid) => {
                (STATUS_ACTIVE, id)
            }
            Some(_) => (STATUS_INVALIDATED, 0),
        }
    }

    /// The capture state of the stream behind a handle; the legacy stream has none of its own.
    fn query_capture(&mut self, context: u64, handle: u64) -> Result<(u32, u64)> {
        let stream = self.stream(context, handle)?;
        let is_legacy =
            self.streams.get(stream).is_some_and(|entry| entry.ordering == Ordering::Legacy);
        let blocking_capture = self.streams.iter().any(|(_, entry)| {
            entry.context == context
                && entry.ordering == Ordering::Blocking
                && entry.capture.is_some()
        });
        if is_legacy && blocking_capture {
            return Err(Status::STREAM_CAPTURE_IMPLICIT.into());
        }
        Ok(self.capture_status(stream))
    }
}

fn unsafe_call() -> Failure {
    let reason = "the call could disturb a stream capture that is under way";
    Status::STREAM_CAPTURE_UNSUPPORTED.because(reason)
}

impl Capture {
    /// A stream whose nodes the first stream does not depend on at the end.
    fn unjoined(&self) -> Option<u64> {
        let mut reached = BTreeSet::new();
        let mut open = self.tails.get(&self.origin).cloned().unwrap_or_default();
        while let Some(node) = open.pop() {
            if reached.insert(node) {
                open.extend(&self.nodes[node].depends_on);
            }
        }
        self.tails
            .iter()
            .find(|(_, tail)| tail.iter().any(|node| !reached.contains(node)))
            .map(|(&stream, _)| stream)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamBeginCapture_v2(stream: u64, mode: u32) -> Status {
    in_context("cuStreamBeginCapture_v2", |driver, context| {
        if mode > MODE_RELAXED {
            return Err(Status::INVALID_VALUE.because(format!("{mode} is not a capture mode")));
        }
        let stream = driver.stream(context, stream)?;
        driver.begin_capture(stream, mode)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(stream: u64, graph: *mut u64) -> Status {
    in_context("cuStreamEndCapture", |driver, context| {
        // SAFETY: `graph` is null or writable, by the convention of the driver API.
        let graph = unsafe { Out::new(graph) }?;
        graph.set(0);
        let stream = driver.stream(context, stream)?;
        graph.set(driver.end_capture(context, stream)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamIsCapturing(stream: u64, status: *mut u32) -> Status {
    in_context("cuStreamIsCapturing", |driver, context| {
        // SAFETY: `status` is null or writable, by the convention of the driver API.
        let status = unsafe { Out::new(status) }?;
        status.set(driver.query_capture(context, stream)?.0);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetCaptureInfo(
    stream: u64,
    status: *mut u32,
    id: *mut u64,
) -> Status {
    in_context("cuStreamGetCaptureInfo", |driver, context| {
        // SAFETY: both are null or writable, by the convention of the driver API.
        let (status, id) = unsafe { (Out::new(status)?, Out::optional(id)?) };
        let (state, number) = driver.query_capture(context, stream)?;
        status.set(state);
        set_optional(id, number);
        Ok(())
    })
}

/// The graph and the dependencies of a capture under way are not handed out: asking for them is an
/// error, and null pointers in their place are what most programs pass.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetCaptureInfo_v2(
    stream: u64,
    status: *mut u32,
    id: *mut u64,
    graph: *mut u64,
    dependencies: *mut *const u64,
    dependency_count: *mut usize,
) -> Status {
    if graph.is_null() && dependencies.is_null() && dependency_count.is_null() {
        // SAFETY: passed on from the caller.
        return unsafe { cuStreamGetCaptureInfo(stream, status, id) };
    }
    in_context("cuStreamGetCaptureInfo_v2", |_, _| {
        let reason = "the graph of a capture under way cannot be inspected";
        Err(Status::NOT_SUPPORTED.because(reason))
    })
}

/// As `cuStreamGetCaptureInfo_v2`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetCaptureInfo_v3(
    stream: u64,
    status: *mut u32,
    id: *mut u64,
    graph: *mut u64,
    dependencies: *mut *const u64,
    _edges: *mut *const u8,
    dependency_count: *mut usize,
) -> Status {
    // SAFETY: passed on from the caller.
    unsafe { cuStreamGetCaptureInfo_v2(stream, status, id, graph, dependencies, dependency_count) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuThreadExchangeStreamCaptureMode(mode: *mut u32) -> Status {
    initialised("cuThreadExchangeStreamCaptureMode", |_| {
        // SAFETY: `mode` is null or readable and writable, by the convention of the driver API.
        let (out, wanted) = unsafe { (Out::new(mode)?, mode.read()) };
        if wanted > MODE_RELAXED {
            return Err(Status::INVALID_VALUE.because(format!("{wanted} is not a capture mode")));
        }
        out.set(state::capture_mode(Some(wanted)));
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(depends_on: &[usize]) -> Node {
        Node { op: Operation::Wait(Vec::new()), depends_on: depends_on.to_vec() }
    }

    #[test]
    fn a_stream_that_nobody_waits_for_is_unjoined() {
        let mut capture = Capture {
            origin: 1,
            mode: MODE_THREAD_LOCAL,
            thread: thread::current().id(),
            invalid: false,
            nodes: vec![node(&[]), node(&[0]), node(&[0])],
            tails: BTreeMap::from([(1, vec![1]), (2, vec![2])]),
        };
        assert_eq!(capture.unjoined(), Some(2));
        capture.tails.insert(1, vec![1, 2]);
        assert_eq!(capture.unjoined(), None);
    }
}
