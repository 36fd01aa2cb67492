//! Copies between host and device.
//!
//! A copy names device memory by an address inside a live allocation and must stay inside it.
//! Host memory that is not page-locked is read at the call of an asynchronous copy to the device,
//! and a copy into it waits for the stream: so a driver does it too. Page-locked memory is touched
//! when the copy runs.

use std::ffi::c_void;
use std::sync::Arc;

use crate::MemoryError;

use super::entry::in_context;
use super::queue::Operation;
use super::state::Driver;
use super::status::{Failure, Result, Status};

/// A range of host memory, by address: it belongs to the program.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostRange {
    pub(super) address: usize,
    pub(super) bytes: usize,
}

impl HostRange {
    /// The bytes.
    ///
    /// # Safety
    /// The range is readable memory that nobody writes to meanwhile.
    pub(super) unsafe fn as_slice<'a>(self) -> &'a [u8] {
        // SAFETY: the caller's promise; a driver call with a null address was refused.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.bytes) }
    }

    /// The bytes.
    ///
    /// # Safety
    /// The range is writable memory that nobody else uses meanwhile.
    pub(super) unsafe fn as_mut_slice<'a>(self) -> &'a mut [u8] {
        // SAFETY: the caller's promise; a driver call with a null address was refused.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut u8, self.bytes) }
    }

    /// Copies as many bytes from another address, which may overlap.
    ///
    /// # Safety
    /// Both ranges are memory of the program that nobody else uses meanwhile.
    pub(super) unsafe fn copy_from(self, source: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            std::ptr::copy(source as *const u8, self.address as *mut u8, self.bytes);
        }
    }
}

/// The failure of a copy or fill that was fine when it was issued, and is not when it runs.
pub(super) fn broken(error: &MemoryError) -> Failure {
    Status::ILLEGAL_ADDRESS.because(format!("a copy or fill in a stream failed: {error}"))
}

/// One end of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyEnd {
    /// An address of the device.
    Device(u64),
    /// An address of the host.
    Host(usize),
}

/// A copy that was checked and not yet issued.
pub(super) struct Planned {
    pub(super) op: Operation,
    /// Whether it touches host memory that is not page-locked.
    pub(super) pageable: bool,
    /// Whether the host waits for it.
    pub(super) waits: bool,
}

impl Driver {
    /// Checks that a range lies inside one live allocation of the context.
    pub(super) fn check_range(&self, context: u64, address: u64, bytes: usize) -> Result {
        let Some((start, allocation)) = self.context(context)?.allocation_at(address) else {
            let reason = format!("{address:#x} is not in device memory of this context");
            return Err(Status::INVALID_VALUE.because(reason));
        };
        if allocation.doomed {
            let reason = format!("the memory at {start:#x} was given to cuMemFreeAsync before");
            return Err(Status::INVALID_VALUE.because(reason));
        }
        let room = allocation.bytes - (address - start);
        if bytes as u64 > room {
            let (size, beyond) = (allocation.bytes, bytes as u64 - room);
            let reason = format!(
                "{bytes} bytes at {address:#x} reach {beyond} bytes beyond the allocation of \
                 {size} bytes at {start:#x}"
            );
            return Err(Status::INVALID_VALUE.because(reason));
        }
        Ok(())
    }

    /// What an address is, where that is for the driver to find out.
    pub(super) fn place(&self, context: u64, address: u64) -> Result<CopyEnd> {
        let known = self.context(context)?.allocation_at(address);
        Ok(if known.is_some() { CopyEnd::Device(address) } else { CopyEnd::Host(address as usize) })
    }

    /// Checks a copy of at least one byte and makes an operation of it.
    pub(super) fn plan(
        &self,
        context: u64,
        dst: CopyEnd,
        src: CopyEnd,
        bytes: usize,
    ) -> Result<Planned> {
        let mut pageable = false;
        for place in [dst, src] {
            match place {
                CopyEnd::Device(address) => self.check_range(context, address, bytes)?,
                CopyEnd::Host(address) => {
                    let range = HostRange { address, bytes };
                    check_host(range)?;
                    pageable |= !self.is_pinned(range);
                }
            }
        }
        let op = match (dst, src) {
            (CopyEnd::Device(dst), CopyEnd::Device(src)) => Operation::Copy { dst, src, bytes },
            (CopyEnd::Device(dst), CopyEnd::Host(address)) => {
                let src = HostRange { address, bytes };
                if pageable {
                    // SAFETY: the caller passed readable memory of this size, by the convention of
                    // the driver API.
                    let data = Arc::from(unsafe { src.as_slice() });
                    return Ok(Planned {
                        op: Operation::Upload { dst, data },
                        pageable,
                        waits: false,
                    });
                }
                Operation::UploadPinned { dst, src }
            }
            (CopyEnd::Host(address), CopyEnd::Device(src)) => {
                Operation::Download { dst: HostRange { address, bytes }, src }
            }
            (CopyEnd::Host(address), CopyEnd::Host(src)) => {
                Operation::HostCopy { dst: HostRange { address, bytes }, src }
            }
        };
        Ok(Planned { op, pageable, waits: pageable })
    }

    /// Gives a planned copy to a stream, and waits for it where a driver would.
    pub(super) fn issue(&mut self, context: u64, stream: u64, planned: Planned) -> Result {
        if planned.pageable {
            // A graph would keep the address of memory that the program may free or reuse.
            let what = "host memory that is not page-locked was copied";
            self.refuse_in_capture(stream, Status::STREAM_CAPTURE_UNSUPPORTED, what)?;
        }
        self.submit(stream, planned.op)?;
        if planned.waits {
            self.count_synchronisation();
            self.finish_stream(context, stream)?;
        }
        Ok(())
    }

    /// Issues a copy in a stream.
    fn copy(
        &mut self,
        context: u64,
        stream: u64,
        dst: CopyEnd,
        src: CopyEnd,
        bytes: usize,
    ) -> Result {
        if bytes == 0 {
            return Ok(());
        }
        let planned = self.plan(context, dst, src, bytes)?;
        self.issue(context, stream, planned)
    }

    /// Issues a copy in the legacy stream and waits for it.
    fn copy_now(&mut self, context: u64, dst: CopyEnd, src: CopyEnd, bytes: usize) -> Result {
        if bytes == 0 {
            return Ok(());
        }
        let planned = self.plan(context, dst, src, bytes)?;
        self.issue_now(context, planned)
    }

    /// Gives a planned copy to the legacy stream and waits for it.
    pub(super) fn issue_now(&mut self, context: u64, planned: Planned) -> Result {
        self.refuse_unsafe_call()?;
        let stream = self.context(context)?.legacy;
        self.issue(context, stream, Planned { waits: true, ..planned })
    }
}

fn check_host(range: HostRange) -> Result {
    if range.address == 0 {
        return Err(Status::INVALID_VALUE.because("the host address is null"));
    }
    if range.bytes > isize::MAX as usize {
        let reason = format!("{} bytes are more than an address space holds", range.bytes);
        return Err(Status::INVALID_VALUE.because(reason));
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoD_v2(dst: u64, src: *const c_void, bytes: usize) -> Status {
    in_context("cuMemcpyHtoD_v2", |driver, context| {
        driver.copy_now(context, CopyEnd::Device(dst), CopyEnd::Host(src as usize), bytes)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoH_v2(dst: *mut c_void, src: u64, bytes: usize) -> Status {
    in_context("cuMemcpyDtoH_v2", |driver, context| {
        driver.copy_now(context, CopyEnd::Host(dst as usize), CopyEnd::Device(src), bytes)
    })
}

/// A copy within the device does not make the host wait.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoD_v2(dst: u64, src: u64, bytes: usize) -> Status {
    in_context("cuMemcpyDtoD_v2", |driver, context| {
        driver.refuse_unsafe_call()?;
        let stream = driver.context(context)?.legacy;
        driver.copy(context, stream, CopyEnd::Device(dst), CopyEnd::Device(src), bytes)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpy(dst: u64, src: u64, bytes: usize) -> Status {
    in_context("cuMemcpy", |driver, context| {
        let (dst, src) = (driver.place(context, dst)?, driver.place(context, src)?);
        driver.copy_now(context, dst, src, bytes)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    dst: u64,
    src: *const c_void,
    bytes: usize,
    stream: u64,
) -> Status {
    in_context("cuMemcpyHtoDAsync_v2", |driver, context| {
        let stream = driver.stream(context, stream)?;
        driver.copy(context, stream, CopyEnd::Device(dst), CopyEnd::Host(src as usize), bytes)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    dst: *mut c_void,
    src: u64,
    bytes: usize,
    stream: u64,
) -> Status {
    in_context("cuMemcpyDtoHAsync_v2", |driver, context| {
        let stream = driver.stream(context, stream)?;
        driver.copy(context, stream, CopyEnd::Host(dst as usize), CopyEnd::Device(src), bytes)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(
    dst: u64,
    src: u64,
    bytes: usize,
    stream: u64,
) -> Status {
    in_context("cuMemcpyDtoDAsync_v2", |driver, context| {
        let stream = driver.stream(context, stream)?;
        driver.copy(context, stream, CopyEnd::Device(dst), CopyEnd::Device(src), bytes)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyAsync(dst: u64, src: u64, bytes: usize, stream: u64) -> Status {
    in_context("cuMemcpyAsync", |driver, context| {
        let stream = driver.stream(context, stream)?;
        let (dst, src) = (driver.place(context, dst)?, driver.place(context, src)?);
        driver.copy(context, stream, dst, src, bytes)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyPeerAsync(
    dst: u64,
    dst_context: u64,
    src: u64,
    src_context: u64,
    bytes: usize,
    stream: u64,
) -> Status {
    in_context("cuMemcpyPeerAsync", |driver, context| {
        let stream = driver.stream(context, stream)?;
        if bytes == 0 {
            return Ok(());
        }
        driver.check_range(dst_context, dst, bytes)?;
        driver.check_range(src_context, src, bytes)?;
        driver.submit(stream, Operation::CopyAcross { dst_context, dst, src_context, src, bytes })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyPeer(
    dst: u64,
    dst_context: u64,
    src: u64,
    src_context: u64,
    bytes: usize,
) -> Status {
    in_context("cuMemcpyPeer", |driver, context| {
        driver.refuse_unsafe_call()?;
        driver.drain_context(src_context);
        driver.drain_context(dst_context);
        let stream = driver.context(context)?.legacy;
        if bytes == 0 {
            return Ok(());
        }
        driver.check_range(dst_context, dst, bytes)?;
        driver.check_range(src_context, src, bytes)?;
        driver
            .submit(stream, Operation::CopyAcross { dst_context, dst, src_context, src, bytes })?;
        driver.finish_stream(context, stream)
    })
}
