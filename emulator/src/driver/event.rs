//! Events: marks in streams that can be waited for and that keep a time.
//!
//! The time is the emulator's wall clock at the moment the mark was reached. It says how long the
//! emulator took and nothing about a device.

use std::time::Instant;

use super::entry::{Out, in_context, initialised};
use super::queue::{Operation, Ordering, Point, Stream};
use super::state::{self, Driver};
use super::status::{Result, Status};

const FLAG_DISABLE_TIMING: u32 = 2;
const FLAG_INTERPROCESS: u32 = 4;
const FLAGS: u32 = 7;
/// `CU_EVENT_RECORD_EXTERNAL` and `CU_EVENT_WAIT_EXTERNAL`.
const FLAG_EXTERNAL: u32 = 1;

/// An event of a context.
pub(super) struct Event {
    pub(super) context: u64,
    timing: bool,
    pub(super) record: Record,
}

/// What an event marks.
#[derive(Clone)]
pub(super) enum Record {
    /// Nothing: it was never recorded and counts as complete.
    Never,
    /// A place in a stream, and when the stream got there.
    Queued { point: Point, at: Option<Instant> },
    /// Nodes of a capture.
    Captured { capture: u64, nodes: Vec<usize> },
}

impl Driver {
    fn event(&self, handle: u64) -> Result<&Event> {
        self.events.get(handle).ok_or_else(|| state::stale(handle, "event"))
    }

    /// Whether everything before a point has run; a stream that is gone had finished.
    fn is_reached(&self, point: Point) -> bool {
        self.streams.get(point.stream).is_none_or(|stream| stream.has_run(point.position))
    }

    fn record_event(&mut self, context: u64, event: u64, stream: u64) -> Result {
        if self.event(event)?.context != context {
            let reason = "the event and the stream belong to different contexts";
            return Err(Status::INVALID_HANDLE.because(reason));
        }
        let capture = self.streams.get(stream).and_then(|entry| entry.capture);
        let record = match capture {
            Some(id) => self.capture_point(id, stream)?,
            None => {
                self.submit(stream, Operation::Record(event))?;
                let position = self.streams.get(stream).map_or(0, |entry| entry.issued());
                let point = Point { stream, position };
                let at = self.is_reached(point).then(Instant::now);
                Record::Queued { point, at }
            }
        };
        if let Some(entry) = self.events.get_mut(event) {
            entry.record = record;
        }
        Ok(())
    }

    /// Lets an event mark all that a context was given so far.
    fn record_all(&mut self, context: u64, event: u64) -> Result {
        let streams = self.streams_outside_captures(context)?;
        let point = |stream| {
            let position = self.streams.get(stream).map_or(0, |entry| entry.issued());
            Point { stream, position }
        };
        let points: Vec<Point> = streams.into_iter().map(point).collect();
        let gather = match self.context(context)?.gather {
            Some(stream) => stream,
            None => {
                let stream = Stream::new(context, Ordering::NonBlocking, 0, 0);
                let stream = self.streams.insert(stream);
                *self.context_mut(context)?.gather.insert(stream)
            }
        };
        self.submit(gather, Operation::Wait(points))?;
        self.record_event(context, event, gather)
    }

    /// Lets all later work of a context follow an event: what comes before the event runs now.
    fn wait_with_all(&mut self, context: u64, event: u64) -> Result {
        if let Record::Captured { capture, .. } = self.event(event)?.record {
            self.invalidate(capture);
            let reason = "the event was recorded in a capture";
            return Err(Status::STREAM_CAPTURE_UNSUPPORTED.because(reason));
        }
        self.streams_outside_captures(context)?;
        if let Some(point) = self.marked_point(event)? {
            self.drain(point);
        }
        Ok(())
    }

    /// The streams of a context, none of which may be captured; captures that are there end.
    fn streams_outside_captures(&mut self, context: u64) -> Result<Vec<u64>> {
        let own = self.streams.iter().filter(|(_, stream)| stream.context == context);
        let streams: Vec<u64> = own.map(|(&handle, _)| handle).collect();
        let mut result = Ok(());
        for &stream in &streams {
            let what = "an event of all streams";
            let status = Status::STREAM_CAPTURE_UNSUPPORTED;
            result = result.and(self.refuse_in_capture(stream, status, what));
        }
        result.map(|()| streams)
    }

    fn wait_event(&mut self, stream: u64, event: u64) -> Result {
        // The event may belong to another context: that is how contexts wait for each other.
        match self.event(event)?.record.clone() {
            Record::Never => Ok(()),
            Record::Captured { capture, nodes } => self.join_capture(stream, capture, &nodes),
            Record::Queued { point, .. } => {
                let what = "the event was recorded outside of the capture and awaited";
                self.refuse_in_capture(stream, Status::STREAM_CAPTURE_ISOLATION, what)?;
                if point.stream == stream || self.is_reached(point) {
                    return Ok(());
                }
                self.submit(stream, Operation::Wait(vec![point]))
            }
        }
    }

    /// The place that an event marks, for calls that a captured event does not allow.
    fn marked_point(&self, event: u64) -> Result<Option<Point>> {
        match &self.event(event)?.record {
            Record::Never => Ok(None),
            Record::Queued { point, .. } => Ok(Some(*point)),
            Record::Captured { .. } => Err(Status::CAPTURED_EVENT.into()),
        }
    }

    fn elapsed(&self, start: u64, end: u64) -> Result<f32> {
        let time = |handle| {
            let event = self.event(handle)?;
            if !event.timing {
                return Err(Status::INVALID_HANDLE.because("the event was created without timing"));
            }
            match &event.record {
                Record::Queued { point, at: Some(at) } if self.is_reached(*point) => Ok(*at),
                Record::Queued { .. } => Err(Status::NOT_READY.into()),
                Record::Never => Err(Status::INVALID_HANDLE.because("the event was not recorded")),
                Record::Captured { .. } => Err(Status::CAPTURED_EVENT.into()),
            }
        };
        let (start, end): (Instant, Instant) = (time(start)?, time(end)?);
        let milliseconds = match end.checked_duration_since(start) {
            Some(time) => time.as_secs_f64(),
            None => -start.duration_since(end).as_secs_f64(),
        } * 1e3;
        Ok(milliseconds as f32)
    }
}

/// Checks the flags of a record or a wait: that of external nodes is the only one.
fn check_external(flags: u32) -> Result {
    match flags {
        0 => Ok(()),
        FLAG_EXTERNAL => {
            let reason = "external event nodes of graphs are not supported";
            Err(Status::NOT_SUPPORTED.because(reason))
        }
        _ => Err(Status::INVALID_VALUE.because(format!("{flags:#x} has unknown flags"))),
    }
}

/// Runs a function on an event, in the context of the event rather than the current one.
fn with_event(
    name: &'static str,
    event: u64,
    body: impl FnOnce(&mut Driver, u64) -> Result,
) -> Status {
    initialised(name, |driver| {
        let context = driver.event(event)?.context;
        driver.check_sticky(context)?;
        body(driver, context)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut u64, flags: u32) -> Status {
    in_context("cuEventCreate", |driver, context| {
        // SAFETY: `event` is null or writable, by the convention of the driver API.
        let event = unsafe { Out::new(event) }?;
        if flags & !FLAGS != 0 {
            return Err(Status::INVALID_VALUE.because(format!("{flags:#x} has unknown flags")));
        }
        if flags & FLAG_INTERPROCESS != 0 && flags & FLAG_DISABLE_TIMING == 0 {
            let reason = "events that are shared between processes have no timing";
            return Err(Status::INVALID_VALUE.because(reason));
        }
        if flags & FLAG_INTERPROCESS != 0 {
            let reason = "events cannot be shared between processes";
            return Err(Status::NOT_SUPPORTED.because(reason));
        }
        let timing = flags & FLAG_DISABLE_TIMING == 0;
        event.set(driver.events.insert(Event { context, timing, record: Record::Never }));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(event: u64) -> Status {
    with_event("cuEventDestroy_v2", event, |driver, _| {
        driver.events.remove(event);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(event: u64, stream: u64) -> Status {
    in_context("cuEventRecord", |driver, context| {
        let stream = driver.stream(context, stream)?;
        driver.record_event(context, event, stream)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecordWithFlags(event: u64, stream: u64, flags: u32) -> Status {
    in_context("cuEventRecordWithFlags", |driver, context| {
        check_external(flags)?;
        let stream = driver.stream(context, stream)?;
        driver.record_event(context, event, stream)
    })
}

/// Reports an event whose work has not run as not ready, and runs one operation of its stream, so
/// that a program which asks again and again comes to an end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventQuery(event: u64) -> Status {
    with_event("cuEventQuery", event, |driver, context| match driver.marked_point(event)? {
        Some(point) if !driver.is_reached(point) => {
            driver.step(point.stream);
            driver.check_sticky(context)?;
            Err(Status::NOT_READY.into())
        }
        _ => Ok(()),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventSynchronize(event: u64) -> Status {
    with_event("cuEventSynchronize", event, |driver, context| {
        if let Some(point) = driver.marked_point(event)? {
            driver.drain(point);
        }
        driver.count_synchronisation();
        driver.check_sticky(context)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(
    milliseconds: *mut f32,
    start: u64,
    end: u64,
) -> Status {
    with_event("cuEventElapsedTime", start, |driver, _| {
        // SAFETY: `milliseconds` is null or writable, by the convention of the driver API.
        let milliseconds = unsafe { Out::new(milliseconds) }?;
        milliseconds.set(driver.elapsed(start, end)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(
    milliseconds: *mut f32,
    start: u64,
    end: u64,
) -> Status {
    // SAFETY: passed on from the caller.
    unsafe { cuEventElapsedTime(milliseconds, start, end) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitEvent(stream: u64, event: u64, flags: u32) -> Status {
    in_context("cuStreamWaitEvent", |driver, context| {
        check_external(flags)?;
        let stream = driver.stream(context, stream)?;
        driver.wait_event(stream, event)
    })
}

/// Records an event behind all work that a context was given so far.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxRecordEvent(context: u64, event: u64) -> Status {
    initialised("cuCtxRecordEvent", |driver| {
        driver.check_sticky(context)?;
        driver.record_all(context, event)
    })
}

/// Lets all later work of a context wait for an event.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxWaitEvent(context: u64, event: u64) -> Status {
    initialised("cuCtxWaitEvent", |driver| {
        driver.check_sticky(context)?;
        driver.wait_with_all(context, event)?;
        driver.check_sticky(context)
    })
}
