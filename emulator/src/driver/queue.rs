//! Streams as queues of operations, and the moment at which an operation runs.
//!
//! An operation runs as late as the program allows: when a synchronisation, a synchronous copy or
//! a full queue asks for it, and then only after everything that it must wait for. Work that one
//! stream needs from another without waiting for it is therefore still undone when it is read,
//! and the missing wait shows. `CUDA_EMULATOR_STREAMS=eager` runs every operation at once instead.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::copy::{self, HostRange};
use super::event::Record;
use super::launch::KernelLaunch;
use super::state::Driver;
use super::status::{Failure, Result, Status};

/// A full queue runs its oldest operation, as a device's queues are bounded too.
const QUEUE_LIMIT: usize = 1024;

/// How a stream relates to the legacy default stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ordering {
    /// It is the legacy default stream.
    Legacy,
    /// It waits for the legacy stream, and the legacy stream for it.
    Blocking,
    /// They do not wait for each other.
    NonBlocking,
}

/// A stream of a context.
pub(super) struct Stream {
    pub(super) context: u64,
    pub(super) ordering: Ordering,
    pub(super) flags: u32,
    pub(super) priority: i32,
    /// The capture that records the operations instead of running them.
    pub(super) capture: Option<u64>,
    queue: VecDeque<(u64, Operation)>,
    issued: u64,
    done: u64,
}

impl Stream {
    /// A stream without work.
    pub(super) fn new(context: u64, ordering: Ordering, flags: u32, priority: i32) -> Self {
        let queue = VecDeque::new();
        Self { context, ordering, flags, priority, capture: None, queue, issued: 0, done: 0 }
    }

    /// How many operations the stream was given so far.
    pub(super) fn issued(&self) -> u64 {
        self.issued
    }

    /// Whether the operations up to a position have run.
    pub(super) fn has_run(&self, position: u64) -> bool {
        self.done >= position
    }

    /// Whether operations wait in the stream.
    pub(super) fn is_pending(&self) -> bool {
        self.done < self.issued
    }
}

/// A place in a stream: everything up to it must have run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) stream: u64,
    pub(super) position: u64,
}

/// An operation of a stream or a node of a graph.
#[derive(Clone)]
pub(super) enum Operation {
    /// A kernel launch.
    Launch(Arc<KernelLaunch>),
    /// A copy to the device of bytes that were taken over at the call.
    Upload { dst: u64, data: Arc<[u8]> },
    /// A copy to the device from host memory that stays in place.
    UploadPinned { dst: u64, src: HostRange },
    /// A copy to the host.
    Download { dst: HostRange, src: u64 },
    /// A copy within the context.
    Copy { dst: u64, src: u64, bytes: usize },
    /// A copy from one context to another.
    CopyAcross { dst_context: u64, dst: u64, src_context: u64, src: u64, bytes: usize },
    /// A copy within the host.
    HostCopy { dst: HostRange, src: usize },
    /// A fill with elements of one, two or four bytes.
    Fill { dst: u64, pattern: Pattern, count: usize },
    /// The release of device memory.
    Free(u64),
    /// The completion of an event.
    Record(u64),
    /// Nothing before these points have been reached.
    Wait(Vec<Point>),
    /// A call of a function of the program.
    Call { function: HostFunction, argument: usize },
    /// The rows of a two-dimensional copy or fill.
    Rows(Arc<[Operation]>),
    /// The nodes of a graph.
    Graph(Arc<[Operation]>),
}

/// A function of the program that a stream calls.
pub(super) type HostFunction = unsafe extern "C" fn(*mut std::ffi::c_void);

/// What a fill repeats.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pattern {
    Byte(u8),
    Half(u16),
    Word(u32),
}

impl Driver {
    /// A stream of the context, by the handle that a program passes.
    pub(super) fn stream(&mut self, context: u64, handle: u64) -> Result<u64> {
        match handle {
            0 | 1 => Ok(self.context(context)?.legacy),
            2 => {
                let thread = std::thread::current().id();
                if let Some(&stream) = self.context(context)?.per_thread.get(&thread) {
                    return Ok(stream);
                }
                let stream = Stream::new(context, Ordering::Blocking, 0, 0);
                let stream = self.streams.insert(stream);
                self.context_mut(context)?.per_thread.insert(thread, stream);
                Ok(stream)
            }
            _ => match self.streams.get(handle) {
                Some(stream) if stream.context == context => Ok(handle),
                Some(_) => {
                    let reason = "the stream belongs to a context that is not current";
                    Err(Status::INVALID_CONTEXT.because(reason))
                }
                None => Err(super::state::stale(handle, "stream")),
            },
        }
    }

    /// Gives an operation to a stream, or to the capture that records the stream.
    pub(super) fn submit(&mut self, stream: u64, op: Operation) -> Result {
        let (context, ordering, capture) = match self.streams.get(stream) {
            Some(entry) => (entry.context, entry.ordering, entry.capture),
            None => return Err(super::state::stale(stream, "stream")),
        };
        if let Some(capture) = capture {
            return self.record_node(capture, stream, op);
        }
        let waits = self.implicit_waits(context, ordering)?;
        if !waits.is_empty() {
            self.push(stream, Operation::Wait(waits));
        }
        self.push(stream, op);
        if !self.platform()?.lazy {
            self.drain_stream(stream);
        }
        Ok(())
    }

    /// What the legacy stream's rule makes the next operation of a stream wait for.
    fn implicit_waits(&self, context: u64, ordering: Ordering) -> Result<Vec<Point>> {
        let rival = match ordering {
            Ordering::NonBlocking => return Ok(Vec::new()),
            Ordering::Legacy => Ordering::Blocking,
            Ordering::Blocking => Ordering::Legacy,
        };
        let mut waits = Vec::new();
        for (&handle, stream) in self.streams.iter() {
            if stream.context != context || stream.ordering != rival {
                continue;
            }
            if stream.capture.is_some() {
                let reason = "the legacy default stream would wait for a stream that is captured";
                return Err(Status::STREAM_CAPTURE_IMPLICIT.because(reason));
            }
            if stream.is_pending() {
                waits.push(Point { stream: handle, position: stream.issued });
            }
        }
        Ok(waits)
    }

    fn push(&mut self, stream: u64, op: Operation) {
        let Some(entry) = self.streams.get_mut(stream) else {
            return;
        };
        entry.issued += 1;
        let position = entry.issued;
        entry.queue.push_back((position, op));
        if entry.queue.len() > QUEUE_LIMIT {
            self.step(stream);
        }
    }

    /// Runs the operations of a stream up to a point, and before them what they wait for.
    pub(super) fn drain(&mut self, point: Point) {
        while let Some(entry) = self.streams.get_mut(point.stream) {
            if entry.has_run(point.position) {
                return;
            }
            let context = entry.context;
            let Some((position, op)) = entry.queue.pop_front() else {
                return;
            };
            if let Err(failure) = self.perform(context, &op) {
                self.break_context(context, &failure);
            }
            if let Some(entry) = self.streams.get_mut(point.stream) {
                entry.done = entry.done.max(position);
            }
        }
    }

    /// Runs the oldest waiting operation of a stream.
    pub(super) fn step(&mut self, stream: u64) {
        if let Some(position) = self.streams.get(stream).map(|entry| entry.done + 1) {
            self.drain(Point { stream, position });
        }
    }

    /// Runs everything that was given to a stream so far.
    pub(super) fn drain_stream(&mut self, stream: u64) {
        if let Some(position) = self.streams.get(stream).map(Stream::issued) {
            self.drain(Point { stream, position });
        }
    }

    /// Runs everything that was given to the streams of a context so far.
    pub(super) fn drain_context(&mut self, context: u64) {
        let streams: Vec<u64> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.context == context)
            .map(|(&handle, _)| handle)
            .collect();
        for stream in streams {
            self.drain_stream(stream);
        }
    }

    /// Runs everything that was given to any stream so far.
    pub(super) fn drain_all(&mut self) {
        let contexts: Vec<u64> = self.contexts.iter().map(|(&handle, _)| handle).collect();
        for context in contexts {
            self.drain_context(context);
        }
    }

    /// Lets the legacy stream wait for what it must before it is awaited itself: the work of the
    /// blocking streams. Other streams wait for what their operations wait for.
    pub(super) fn wait_as_legacy(&mut self, context: u64, stream: u64) {
        let ordering = self.streams.get(stream).map(|entry| entry.ordering);
        if ordering != Some(Ordering::Legacy) {
            return;
        }
        for point in self.implicit_waits(context, Ordering::Legacy).unwrap_or_default() {
            self.drain(point);
        }
    }

    /// Waits for a stream and reports what went wrong in its context.
    pub(super) fn finish_stream(&mut self, context: u64, stream: u64) -> Result {
        self.drain_stream(stream);
        self.check_sticky(context)
    }

    /// Leaves the error of a failed operation with its context and gives up the work behind it.
    fn break_context(&mut self, context: u64, failure: &Failure) {
        let report = match &failure.detail {
            Some(detail) => detail.to_string(),
            None => failure.to_string(),
        };
        if let Some(entry) = self.contexts.get_mut(context) {
            let earlier = format!("an earlier kernel or copy of this context failed: {report}");
            entry.sticky.get_or_insert_with(|| failure.status.because(earlier));
        }
        eprintln!("cuda-emulator: {}\n{report}", failure.status.name());
        self.last_fault = report;
        for (_, stream) in self.streams.iter_mut() {
            if stream.context == context {
                stream.queue.clear();
                stream.done = stream.issued;
            }
        }
    }

    /// Runs one operation.
    fn perform(&mut self, context: u64, op: &Operation) -> Result {
        let device = Arc::clone(&self.context(context)?.device);
        match op {
            Operation::Launch(launch) => launch.run(&device),
            Operation::Upload { dst, data } => {
                device.write(*dst, data).map_err(|error| copy::broken(&error))
            }
            Operation::UploadPinned { dst, src } => {
                // SAFETY: pinned memory outlives the queued operations: they run before it is
                // freed; its contents are the program's to leave alone until then.
                let data = unsafe { src.as_slice() };
                device.write(*dst, data).map_err(|error| copy::broken(&error))
            }
            Operation::Download { dst, src } => {
                // SAFETY: as above, or the call that queued it has not returned yet.
                let data = unsafe { dst.as_mut_slice() };
                device.read(*src, data).map_err(|error| copy::broken(&error))
            }
            Operation::Copy { dst, src, bytes } => {
                device.copy(*dst, *src, *bytes as u64).map_err(|error| copy::broken(&error))
            }
            Operation::CopyAcross { dst_context, dst, src_context, src, bytes } => {
                let mut data = vec![0; *bytes];
                let source = &self.context(*src_context)?.device;
                source.read(*src, &mut data).map_err(|error| copy::broken(&error))?;
                let target = &self.context(*dst_context)?.device;
                target.write(*dst, &data).map_err(|error| copy::broken(&error))
            }
            Operation::HostCopy { dst, src } => {
                // SAFETY: both ranges are pinned or their call has not returned yet; they may
                // overlap.
                unsafe { dst.copy_from(*src) };
                Ok(())
            }
            Operation::Fill { dst, pattern, count } => {
                let result = match *pattern {
                    Pattern::Byte(value) => device.fill8(*dst, value, *count as u64),
                    Pattern::Half(value) => device.fill16(*dst, value, *count as u64),
                    Pattern::Word(value) => device.fill32(*dst, value, *count as u64),
                };
                result.map_err(|error| copy::broken(&error))
            }
            Operation::Free(address) => self.release(context, *address),
            Operation::Record(event) => {
                if let Some(event) = self.events.get_mut(*event)
                    && let Record::Queued { at, .. } = &mut event.record
                {
                    *at = Some(Instant::now());
                }
                Ok(())
            }
            Operation::Wait(points) => {
                for &point in points {
                    self.drain(point);
                }
                Ok(())
            }
            Operation::Call { function, argument } => {
                // SAFETY: the program gave the function and its argument for this call.
                super::entry::run_host_function(|| unsafe { function(*argument as *mut _) });
                Ok(())
            }
            Operation::Rows(ops) | Operation::Graph(ops) => {
                for op in ops.iter() {
                    self.perform(context, op)?;
                }
                Ok(())
            }
        }
    }
}
