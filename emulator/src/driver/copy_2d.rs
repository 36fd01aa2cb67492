//! Copies of rectangles: rows that lie a pitch apart, in device or host memory.

use std::ffi::c_void;

use super::copy::{CopyEnd, Planned};
use super::entry::{in_context, read};
use super::queue::Operation;
use super::state::Driver;
use super::status::{Result, Status};

/// `CU_MEMORYTYPE_*`.
const MEMORY_HOST: u32 = 1;
const MEMORY_DEVICE: u32 = 2;
const MEMORY_ARRAY: u32 = 3;
const MEMORY_UNIFIED: u32 = 4;

/// `CU_DEVICE_ATTRIBUTE_MAX_PITCH`.
pub(super) const MAX_PITCH: usize = i32::MAX as usize;

/// One end of a copy as the driver API describes it.
#[repr(C)]
#[derive(Clone, Copy)]
struct End {
    x_bytes: usize,
    y: usize,
    memory: u32,
    host: *mut c_void,
    device: u64,
    array: *mut c_void,
    pitch: usize,
}

/// A copy of a rectangle: `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Rectangle {
    src: End,
    dst: End,
    width: usize,
    height: usize,
}

impl End {
    /// Where a row starts.
    fn row(&self, driver: &Driver, context: u64, row: usize) -> Result<CopyEnd> {
        let offset = self
            .y
            .checked_add(row)
            .and_then(|row| row.checked_mul(self.pitch))
            .and_then(|bytes| bytes.checked_add(self.x_bytes))
            .ok_or_else(|| Status::INVALID_VALUE.because("a rectangle beyond all memory"))?;
        match self.memory {
            MEMORY_HOST => Ok(CopyEnd::Host((self.host as usize).wrapping_add(offset))),
            MEMORY_DEVICE => Ok(CopyEnd::Device(self.device.wrapping_add(offset as u64))),
            MEMORY_UNIFIED => driver.place(context, self.device.wrapping_add(offset as u64)),
            MEMORY_ARRAY => Err(Status::NOT_SUPPORTED.because("arrays are not supported")),
            other => Err(Status::INVALID_VALUE.because(format!("{other} is not a memory type"))),
        }
    }
}

impl Driver {
    /// Checks all rows and makes one operation of them; nothing for an empty rectangle.
    fn plan_rectangle(&self, context: u64, area: &Rectangle) -> Result<Option<Planned>> {
        if area.width == 0 || area.height == 0 {
            return Ok(None);
        }
        for (end, name) in [(&area.src, "source"), (&area.dst, "destination")] {
            let (width, offset, pitch) = (area.width, end.x_bytes, end.pitch);
            let fits = width.checked_add(offset).is_some_and(|bytes| bytes <= pitch);
            if area.height > 1 && !fits || pitch > MAX_PITCH {
                let reason = format!(
                    "rows of {width} bytes from byte {offset} on in a {name} with a pitch of {pitch}"
                );
                return Err(Status::INVALID_VALUE.because(reason));
            }
        }
        let (mut pageable, mut waits, mut rows) = (false, false, Vec::new());
        for row in 0..area.height {
            let dst = area.dst.row(self, context, row)?;
            let src = area.src.row(self, context, row)?;
            let planned = self.plan(context, dst, src, area.width)?;
            pageable |= planned.pageable;
            waits |= planned.waits;
            rows.push(planned.op);
        }
        Ok(Some(Planned { op: Operation::Rows(rows.into()), pageable, waits }))
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpy2D_v2(copy: *const Rectangle) -> Status {
    in_context("cuMemcpy2D_v2", |driver, context| {
        // SAFETY: `copy` is null or readable, by the convention of the driver API.
        let area = unsafe { read(copy) }?;
        match driver.plan_rectangle(context, &area)? {
            Some(planned) => driver.issue_now(context, planned),
            None => Ok(()),
        }
    })
}

/// The emulated device copies from and to any alignment: this is `cuMemcpy2D_v2`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpy2DUnaligned_v2(copy: *const Rectangle) -> Status {
    // SAFETY: passed on from the caller.
    unsafe { cuMemcpy2D_v2(copy) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpy2DAsync_v2(copy: *const Rectangle, stream: u64) -> Status {
    in_context("cuMemcpy2DAsync_v2", |driver, context| {
        // SAFETY: `copy` is null or readable, by the convention of the driver API.
        let area = unsafe { read(copy) }?;
        let stream = driver.stream(context, stream)?;
        match driver.plan_rectangle(context, &area)? {
            Some(planned) => driver.issue(context, stream, planned),
            None => Ok(()),
        }
    })
}
