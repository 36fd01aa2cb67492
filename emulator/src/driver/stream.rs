//! Streams: creation, destruction, queries and host functions.

use std::ffi::{c_int, c_void};

use super::entry::{Out, in_context, set_optional};
use super::queue::{HostFunction, Operation, Ordering, Stream};
use super::state::Driver;
use super::status::{Result, Status};

const FLAG_NON_BLOCKING: u32 = 1;
/// Priorities from the least to the greatest; the emulator keeps them and takes no notice.
pub(super) const PRIORITIES: (c_int, c_int) = (0, -5);

impl Driver {
    fn create_stream(&mut self, context: u64, flags: u32, priority: c_int) -> Result<u64> {
        let ordering = match flags {
            0 => Ordering::Blocking,
            FLAG_NON_BLOCKING => Ordering::NonBlocking,
            _ => {
                let reason = format!("{flags:#x} has unknown flags");
                return Err(Status::INVALID_VALUE.because(reason));
            }
        };
        let priority = priority.clamp(PRIORITIES.1, PRIORITIES.0);
        Ok(self.streams.insert(Stream::new(context, ordering, flags, priority)))
    }

    /// The stream that a program may destroy: one that it created.
    fn own_stream(&mut self, context: u64, handle: u64) -> Result<u64> {
        if handle <= 2 {
            let reason = "the default streams cannot be destroyed";
            return Err(Status::INVALID_HANDLE.because(reason));
        }
        self.stream(context, handle)
    }

    /// Refuses to wait for a stream while it is captured.
    fn refuse_wait(&mut self, stream: u64) -> Result {
        let status = Status::STREAM_CAPTURE_UNSUPPORTED;
        self.refuse_in_capture(stream, status, "the stream was queried or awaited")?;
        let legacy = self.streams.get(stream).map(|entry| (entry.context, entry.ordering));
        let Some((context, Ordering::Legacy)) = legacy else {
            return Ok(());
        };
        let captured = self.streams.iter().any(|(_, entry)| {
            entry.context == context
                && entry.ordering == Ordering::Blocking
                && entry.capture.is_some()
        });
        if captured { Err(Status::STREAM_CAPTURE_IMPLICIT.into()) } else { Ok(()) }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut u64, flags: u32) -> Status {
    in_context("cuStreamCreate", |driver, context| {
        // SAFETY: `stream` is null or writable, by the convention of the driver API.
        let stream = unsafe { Out::new(stream) }?;
        stream.set(driver.create_stream(context, flags, 0)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(
    stream: *mut u64,
    flags: u32,
    priority: c_int,
) -> Status {
    in_context("cuStreamCreateWithPriority", |driver, context| {
        // SAFETY: `stream` is null or writable, by the convention of the driver API.
        let stream = unsafe { Out::new(stream) }?;
        stream.set(driver.create_stream(context, flags, priority)?);
        Ok(())
    })
}

/// The work that waits in the stream runs before the stream goes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(stream: u64) -> Status {
    in_context("cuStreamDestroy_v2", |driver, context| {
        let stream = driver.own_stream(context, stream)?;
        if let Some(capture) = driver.streams.get(stream).and_then(|entry| entry.capture) {
            driver.abandon_capture(capture);
        }
        driver.drain_stream(stream);
        driver.streams.remove(stream);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamSynchronize(stream: u64) -> Status {
    in_context("cuStreamSynchronize", |driver, context| {
        let stream = driver.stream(context, stream)?;
        driver.refuse_wait(stream)?;
        driver.wait_as_legacy(context, stream);
        driver.count_synchronisation();
        driver.finish_stream(context, stream)
    })
}

/// Reports a stream with waiting work as not ready, and runs one operation of it, so that a
/// program which asks again and again comes to an end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamQuery(stream: u64) -> Status {
    in_context("cuStreamQuery", |driver, context| {
        let stream = driver.stream(context, stream)?;
        driver.refuse_wait(stream)?;
        if driver.streams.get(stream).is_some_and(Stream::is_pending) {
            driver.step(stream);
            driver.check_sticky(context)?;
            return Err(Status::NOT_READY.into());
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetPriority(stream: u64, priority: *mut c_int) -> Status {
    in_context("cuStreamGetPriority", |driver, context| {
        // SAFETY: `priority` is null or writable, by the convention of the driver API.
        let priority = unsafe { Out::new(priority) }?;
        let stream = driver.stream(context, stream)?;
        priority.set(driver.streams.get(stream).map_or(0, |entry| entry.priority));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetFlags(stream: u64, flags: *mut u32) -> Status {
    in_context("cuStreamGetFlags", |driver, context| {
        // SAFETY: `flags` is null or writable, by the convention of the driver API.
        let flags = unsafe { Out::new(flags) }?;
        let stream = driver.stream(context, stream)?;
        flags.set(driver.streams.get(stream).map_or(0, |entry| entry.flags));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetId(stream: u64, id: *mut u64) -> Status {
    in_context("cuStreamGetId", |driver, context| {
        // SAFETY: `id` is null or writable, by the convention of the driver API.
        let id = unsafe { Out::new(id) }?;
        id.set(driver.stream(context, stream)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetCtx(stream: u64, context_out: *mut u64) -> Status {
    in_context("cuStreamGetCtx", |driver, context| {
        // SAFETY: `context_out` is null or writable, by the convention of the driver API.
        let out = unsafe { Out::new(context_out) }?;
        let owner = match stream {
            0..=2 => context,
            _ => match driver.streams.get(stream) {
                Some(entry) => entry.context,
                None => return Err(super::state::stale(stream, "stream")),
            },
        };
        out.set(owner);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetStreamPriorityRange(
    least: *mut c_int,
    greatest: *mut c_int,
) -> Status {
    in_context("cuCtxGetStreamPriorityRange", |_, _| {
        // SAFETY: both are null or writable, by the convention of the driver API.
        let (least, greatest) = unsafe { (Out::optional(least)?, Out::optional(greatest)?) };
        set_optional(least, PRIORITIES.0);
        set_optional(greatest, PRIORITIES.1);
        Ok(())
    })
}

/// The function runs when the work before it has run, in the thread that asks for that work, while
/// other driver calls of the process wait. It must not call the driver, nor wait for a thread that
/// does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchHostFunc(
    stream: u64,
    function: Option<HostFunction>,
    argument: *mut c_void,
) -> Status {
    in_context("cuLaunchHostFunc", |driver, context| {
        let Some(function) = function else {
            return Err(Status::INVALID_VALUE.because("the function is null"));
        };
        let stream = driver.stream(context, stream)?;
        driver.submit(stream, Operation::Call { function, argument: argument as usize })
    })
}
