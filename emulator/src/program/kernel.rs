//! A kernel that is ready to run, and the device functions that it may call.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::op::Instruction;
use super::operand::Q;
use super::space::{SHARED_WINDOW, Space, WINDOW_BYTES};
use super::special::Special;
use super::watch::Watch;
use crate::counters::InstructionClass;
use crate::ptx::Location;

/// A kernel, ready to run.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) params: Vec<Param>,
    pub(crate) param_bytes: usize,
    /// Shared memory that the kernel's variables take.
    pub(crate) static_shared: u32,
    /// Its variables in shared memory.
    pub(crate) shared: Vec<SharedVariable>,
    /// Where the first of them starts, and where dynamic shared memory does: they lie apart.
    pub(crate) shared_start: u32,
    pub(crate) dynamic_start: u32,
    /// Local memory of a thread that is known to be needed.
    pub(crate) local_bytes: u32,
    /// Whether recursion or `alloca` may need more of it.
    pub(crate) grows: bool,
    /// The register that holds where the free part of the stack starts.
    pub(crate) stack: u16,
    /// Whether it allocates or frees memory.
    pub(crate) uses_heap: bool,
    pub(crate) const_bytes: u32,
    pub(crate) thread_limit: Option<u32>,
    pub(crate) required_block: Option<[u32; 3]>,
    pub(crate) registers: u32,
    /// Registers that may be used before they are written to.
    pub(crate) watch: Watch,
    pub(crate) ptx_version: i32,
    pub(crate) code: Vec<Instruction>,
    /// The class of each instruction.
    pub(crate) classes: Vec<InstructionClass>,
    /// The place of the kernel's first instruction.
    pub(crate) entry: u32,
    pub(crate) functions: Vec<DeviceFunction>,
    pub(crate) places: Vec<Place>,
    pub(crate) source: Arc<SourceText>,
    /// Registers of 32 bits, of 64 bits, and predicates.
    pub(crate) r_count: usize,
    pub(crate) q_count: usize,
    pub(crate) p_count: usize,
    pub(crate) constants32: Vec<(u32, u16)>,
    pub(crate) constants64: Vec<(u64, u16)>,
    pub(crate) specials: Vec<(Special, u16)>,
}

impl Kernel {
    /// The PTX line of an instruction.
    pub(crate) fn ptx_line(&self, pc: u32) -> u32 {
        self.places.get(pc as usize).map_or(0, |place| place.line)
    }

    /// The source file and line of an instruction.
    pub(crate) fn source_at(&self, pc: u32) -> Option<(String, u32)> {
        self.source.location(self.places.get(pc as usize)?.location)
    }

    /// The text of an instruction, on one line.
    pub(crate) fn text_at(&self, pc: u32) -> String {
        let text = self.places.get(pc as usize).and_then(|p| self.source.text.get(p.text.clone()));
        text.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Where an instruction is, in words.
    pub(crate) fn where_is(&self, pc: u32) -> String {
        match self.source_at(pc) {
            Some((file, line)) => format!("{file}:{line} (PTX line {})", self.ptx_line(pc)),
            None => format!("PTX line {}", self.ptx_line(pc)),
        }
    }

    /// Why an address in shared memory may be less aligned than an access needs: the variable there
    /// was declared so.
    pub(crate) fn alignment_at(&self, space: Space, address: u64) -> Option<String> {
        let address = match space {
            Space::Shared => address,
            Space::Generic => address.checked_sub(SHARED_WINDOW).filter(|&a| a < WINDOW_BYTES)?,
            _ => return None,
        };
        let within = |v: &&SharedVariable| {
            address.checked_sub(v.start).is_some_and(|offset| offset < v.bytes)
        };
        let SharedVariable { name, start, align, .. } = self.shared.iter().find(within)?;
        Some(format!(
            "byte {} of the shared variable `{name}`, whose declared alignment is {align}, and \
             which is aligned no further",
            address - start
        ))
    }

    /// The most threads a block may have: the kernel's `.maxntid` or `.reqntid`, or else 1024.
    pub(crate) fn max_threads(&self) -> u32 {
        self.thread_limit.unwrap_or(1024)
    }
}

/// A variable in shared memory.
#[derive(Debug)]
pub(crate) struct SharedVariable {
    pub(crate) name: String,
    /// Where it starts in the state space.
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    /// The alignment that its declaration asks for.
    pub(crate) align: u64,
}

/// A device function that a kernel may call, ready to run.
#[derive(Debug)]
pub(crate) struct DeviceFunction {
    pub(crate) name: String,
    /// What a pointer to it holds.
    pub(crate) address: u64,
    pub(crate) entry: u32,
    /// The register that holds where its frame starts.
    pub(crate) frame: Q,
    /// Bytes of the stack that a call takes.
    pub(crate) frame_bytes: u32,
    /// Results, then parameters, as they lie in the frame.
    pub(crate) formals: Vec<Param>,
    /// The registers that a call must save, where it may be active already.
    pub(crate) saved: Option<SavedRegisters>,
}

/// The registers of a function, by kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct SavedRegisters {
    pub(crate) r: Range<usize>,
    pub(crate) q: Range<usize>,
    pub(crate) p: Range<usize>,
}

/// One parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Where it starts in the parameter image, in bytes.
    pub offset: usize,
    /// Its size in bytes.
    pub size: usize,
    /// Its alignment in bytes.
    pub align: usize,
}

/// What a message says about an instruction.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) line: u32,
    pub(crate) location: Option<Location>,
    pub(crate) text: Range<usize>,
}

/// The text of a module, for messages.
#[derive(Debug)]
pub(crate) struct SourceText {
    pub(crate) text: String,
    pub(crate) files: BTreeMap<u32, String>,
}

impl SourceText {
    /// The file and line of a location.
    pub(crate) fn location(&self, location: Option<Location>) -> Option<(String, u32)> {
        let (file, line) = location?;
        Some((self.files.get(&file)?.clone(), line))
    }
}
