//! Functions that the device provides to kernels: printing, assertions and the heap.

use std::io::Write as _;

use super::Warp;
use super::print::{Specification, Wanted};
use crate::exec::context::*;
use crate::exec::memory::access::{Intent, read_byte};
use crate::fault::FaultKind;
use crate::memory::{POISON, find};
use crate::program::{Builtin, Q, Space};

/// The longest string that is read from device memory.
const MOST_CHARACTERS: u64 = 4096;

/// Makes memory of the heap as good as new: filled with poison, and written and read by nobody.
fn renew(context: &Context, address: u64, bytes: u64) {
    let Some(at) = find(&context.table, address, bytes) else { return };
    let allocation = &context.table[at];
    let (offset, count) = ((address - allocation.base) as usize, bytes as usize);
    // SAFETY: `find` found the bytes within the allocation, and the heap gives them to one thread.
    unsafe { allocation.host().add(offset).write_bytes(POISON, count) };
    if let Some(shadow) = allocation.shadow() {
        // SAFETY: as above; the shadow is as long.
        unsafe { shadow.add(offset).write_bytes(0, count) };
    }
    if let Some(global) = &context.global_shadow {
        global.forget(at, offset, count);
    }
}

impl Warp {
    /// Calls a function of the device for each lane of the mask.
    pub(crate) fn builtin(
        &mut self,
        machine: &mut Machine,
        builtin: Builtin,
        frame: Option<Q>,
        mask: u32,
    ) -> Result<(), Box<Stop>> {
        for lane in lanes(mask) {
            let frame = self.frame(frame, lane);
            let at = |offset: u32| frame + u64::from(offset);
            match builtin {
                Builtin::Print { format, arguments, result } => {
                    let format = self.word(machine, Space::Local, at(format), 8, lane)?;
                    let arguments = self.word(machine, Space::Local, at(arguments), 8, lane)?;
                    let (text, converted) = self.print(machine, format, arguments, lane)?;
                    let mut out = std::io::stdout().lock();
                    // A closed standard output is not the kernel's fault.
                    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
                    self.set_result(machine, at(result), &converted.to_le_bytes(), lane)?;
                }
                Builtin::AssertFail { message, file, line, function } => {
                    let text = |warp: &mut Self, machine: &mut Machine, offset| {
                        let address = warp.word(machine, Space::Local, at(offset), 8, lane)?;
                        warp.text(machine, address, lane)
                    };
                    let line = self.word(machine, Space::Local, at(line), 4, lane)?;
                    let message = text(self, machine, message)?;
                    let file = text(self, machine, file)?;
                    let function = text(self, machine, function)?;
                    let detail = format!("`{message}` in {function}, {file}:{line}");
                    return Err(Stop::lane(FaultKind::Assertion, lane as u32, detail));
                }
                Builtin::Allocate { bytes, result } => {
                    let bytes = self.word(machine, Space::Local, at(bytes), 8, lane)?;
                    let address = machine.context.heap.allocate(bytes);
                    if address != 0 {
                        renew(machine.context, address, bytes);
                    }
                    self.set_result(machine, at(result), &address.to_le_bytes(), lane)?;
                }
                Builtin::Free { pointer } => {
                    let address = self.word(machine, Space::Local, at(pointer), 8, lane)?;
                    if address != 0 && !machine.context.heap.free(address) {
                        let detail = "`free` of what is no live allocation of `malloc`";
                        let kind = FaultKind::IllegalOperand;
                        return Err(Stop::at(kind, lane, address, detail));
                    }
                }
            }
        }
        Ok(())
    }

    fn set_result(
        &mut self,
        machine: &mut Machine,
        address: u64,
        value: &[u8],
        lane: usize,
    ) -> Result<(), Box<Stop>> {
        let (bytes, intent) = (value.len() as u64, Intent::Write);
        let to = self.translate_lane(machine, Space::Local, address, bytes, bytes, intent, lane)?;
        // SAFETY: `translate_lane` found these bytes in the thread's local memory.
        unsafe { to.copy_from_nonoverlapping(value.as_ptr(), value.len()) };
        self.local_is_written(to, value.len());
        Ok(())
    }

    fn word(
        &mut self,
        machine: &mut Machine,
        space: Space,
        address: u64,
        bytes: u64,
        lane: usize,
    ) -> Result<u64, Box<Stop>> {
        let intent = Intent::Read;
        let from = self.translate_lane(machine, space, address, bytes, bytes, intent, lane)?;
        let mut value = [0; 8];
        for (at, byte) in value.iter_mut().enumerate().take(bytes as usize) {
            // SAFETY: `translate_lane` found `bytes` bytes here.
            *byte = unsafe { read_byte(from.wrapping_add(at)) };
        }
        Ok(u64::from_le_bytes(value))
    }

    fn text(
        &mut self,
        machine: &mut Machine,
        address: u64,
        lane: usize,
    ) -> Result<String, Box<Stop>> {
        let mut bytes = Vec::new();
        for at in 0..MOST_CHARACTERS {
            match self.word(machine, Space::Generic, address + at, 1, lane)? {
                0 => break,
                byte => bytes.push(byte as u8),
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Formats what `printf` prints, and counts the arguments.
    fn print(
        &mut self,
        machine: &mut Machine,
        format: u64,
        arguments: u64,
        lane: usize,
    ) -> Result<(String, u32), Box<Stop>> {
        let format = self.text(machine, format, lane)?;
        let mut out = String::new();
        let mut rest = format.as_str();
        let (mut at, mut converted) = (arguments, 0);
        let mut next = |warp: &mut Self, machine: &mut Machine, bytes: u64| {
            let place = at.checked_next_multiple_of(bytes).unwrap_or(at);
            at = place.wrapping_add(bytes);
            converted += 1;
            warp.word(machine, Space::Generic, place, bytes, lane)
        };
        while let Some(percent) = rest.find('%') {
            out.push_str(&rest[..percent]);
            rest = &rest[percent + 1..];
            let star = || -> Result<i32, Box<Stop>> { Ok(next(self, machine, 4)? as i32) };
            let Some((specification, length)) = Specification::parse(rest, star)? else {
                // `%%`, or what is no conversion.
                out.push('%');
                rest = rest.strip_prefix('%').unwrap_or(rest);
                continue;
            };
            rest = &rest[length..];
            let text = match specification.wanted() {
                Wanted::Number(bytes) => specification.number(next(self, machine, bytes)?),
                Wanted::Text => {
                    let address = next(self, machine, 8)?;
                    let text = self.text(machine, address, lane)?;
                    specification.text(&text)
                }
            };
            out.push_str(&text);
        }
        out.push_str(rest);
        Ok((out, converted))
    }
}
