//! Fills of device memory with elements of one, two or four bytes.

use super::entry::in_context;
use super::queue::{Operation, Pattern};
use super::state::Driver;
use super::status::{Result, Status};

impl Pattern {
    fn bytes(self) -> usize {
        match self {
            Self::Byte(_) => 1,
            Self::Half(_) => 2,
            Self::Word(_) => 4,
        }
    }
}

impl Driver {
    fn fill(
        &mut self,
        context: u64,
        stream: u64,
        dst: u64,
        pattern: Pattern,
        count: usize,
    ) -> Result {
        if count == 0 {
            return Ok(());
        }
        let size = pattern.bytes();
        if !dst.is_multiple_of(size as u64) {
            let reason = format!("{dst:#x} is not aligned to elements of {size} bytes");
            return Err(Status::INVALID_VALUE.because(reason));
        }
        let bytes = count.checked_mul(size).ok_or_else(|| {
            Status::INVALID_VALUE.because(format!("{count} elements are more than memory holds"))
        })?;
        self.check_range(context, dst, bytes)?;
        self.submit(stream, Operation::Fill { dst, pattern, count })
    }

    /// Issues a fill in the legacy stream; the host does not wait for it.
    fn fill_now(&mut self, context: u64, dst: u64, pattern: Pattern, count: usize) -> Result {
        self.refuse_unsafe_call()?;
        let stream = self.context(context)?.legacy;
        self.fill(context, stream, dst, pattern, count)
    }

    /// Issues one fill for each row of a pitched area.
    fn fill_rows(&mut self, context: u64, stream: u64, area: Area, pattern: Pattern) -> Result {
        let Area { dst, pitch, width, height } = area;
        if width == 0 || height == 0 {
            return Ok(());
        }
        let row = width.checked_mul(pattern.bytes()).filter(|&row| height == 1 || row <= pitch);
        let Some(row) = row else {
            let reason = format!("a row of {width} elements is longer than the pitch of {pitch}");
            return Err(Status::INVALID_VALUE.because(reason));
        };
        let last = (height - 1).checked_mul(pitch).and_then(|last| dst.checked_add(last as u64));
        let Some(last) = last else {
            let reason =
                format!("{height} rows with a pitch of {pitch} are more than memory holds");
            return Err(Status::INVALID_VALUE.because(reason));
        };
        self.check_range(context, last, row)?;
        let mut rows = Vec::with_capacity(height);
        for index in 0..height {
            let start = dst + (index * pitch) as u64;
            if !start.is_multiple_of(pattern.bytes() as u64) {
                let reason = format!("row {index} at {start:#x} is not aligned to its elements");
                return Err(Status::INVALID_VALUE.because(reason));
            }
            self.check_range(context, start, row)?;
            rows.push(Operation::Fill { dst: start, pattern, count: width });
        }
        self.submit(stream, Operation::Rows(rows.into()))
    }
}

/// A pitched area: `height` rows of `width` elements, `pitch` bytes apart.
#[derive(Clone, Copy)]
struct Area {
    dst: u64,
    pitch: usize,
    width: usize,
    height: usize,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8_v2(dst: u64, value: u8, count: usize) -> Status {
    in_context("cuMemsetD8_v2", |driver, context| {
        driver.fill_now(context, dst, Pattern::Byte(value), count)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD16_v2(dst: u64, value: u16, count: usize) -> Status {
    in_context("cuMemsetD16_v2", |driver, context| {
        driver.fill_now(context, dst, Pattern::Half(value), count)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD32_v2(dst: u64, value: u32, count: usize) -> Status {
    in_context("cuMemsetD32_v2", |driver, context| {
        driver.fill_now(context, dst, Pattern::Word(value), count)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8Async(dst: u64, value: u8, count: usize, stream: u64) -> Status {
    in_context("cuMemsetD8Async", |driver, context| {
        let stream = driver.stream(context, stream)?;
        driver.fill(context, stream, dst, Pattern::Byte(value), count)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD16Async(
    dst: u64,
    value: u16,
    count: usize,
    stream: u64,
) -> Status {
    in_context("cuMemsetD16Async", |driver, context| {
        let stream = driver.stream(context, stream)?;
        driver.fill(context, stream, dst, Pattern::Half(value), count)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD32Async(
    dst: u64,
    value: u32,
    count: usize,
    stream: u64,
) -> Status {
    in_context("cuMemsetD32Async", |driver, context| {
        let stream = driver.stream(context, stream)?;
        driver.fill(context, stream, dst, Pattern::Word(value), count)
    })
}

macro_rules! fills_2d {
    ($($now:ident $later:ident $element:ty => $pattern:path;)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $now(
            dst: u64,
            pitch: usize,
            value: $element,
            width: usize,
            height: usize,
        ) -> Status {
            in_context(stringify!($now), |driver, context| {
                driver.refuse_unsafe_call()?;
                let stream = driver.context(context)?.legacy;
                let area = Area { dst, pitch, width, height };
                driver.fill_rows(context, stream, area, $pattern(value))
            })
        }

        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $later(
            dst: u64,
            pitch: usize,
            value: $element,
            width: usize,
            height: usize,
            stream: u64,
        ) -> Status {
            in_context(stringify!($later), |driver, context| {
                let stream = driver.stream(context, stream)?;
                let area = Area { dst, pitch, width, height };
                driver.fill_rows(context, stream, area, $pattern(value))
            })
        }
    )*};
}

fills_2d! {
    cuMemsetD2D8_v2 cuMemsetD2D8Async u8 => Pattern::Byte;
    cuMemsetD2D16_v2 cuMemsetD2D16Async u16 => Pattern::Half;
    cuMemsetD2D32_v2 cuMemsetD2D32Async u32 => Pattern::Word;
}
