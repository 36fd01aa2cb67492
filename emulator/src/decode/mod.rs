//! From parsed PTX to instructions that the executor runs.
//!
//! A kernel is decoded once, when its module is loaded: names become register numbers and
//! addresses, device functions are expanded where they are called, and whatever the emulator does
//! not know refuses the module.

mod arithmetic;
mod atomics;
mod class;
mod control;
mod conversion;
mod decoder;
mod forms;
mod functions;
mod liveness;
mod logic;
mod lower;
mod memory;
mod modifiers;
mod operands;
mod table;
mod unwritten;
mod warp;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::counters::InstructionClass;
use crate::device::Config;
use crate::exec::op::Instruction;
use crate::exec::{Special, Watch};
use crate::memory::Memory;
use crate::module::{ModuleError, Param};
use crate::profile::Profile;
use crate::ptx::{self, Initial, Location, Problem, Tree, Variable, VariableSpace};

use self::decoder::Decoder;
pub use self::forms::{Form, Needs, Slot, supported_forms};
pub(crate) use self::functions::{Function, Saved};

/// What a message says about an instruction.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) line: u32,
    pub(crate) location: Option<Location>,
    pub(crate) text: Range<usize>,
}

/// The text of a module, for messages.
#[derive(Debug)]
pub(crate) struct Source {
    text: String,
    files: BTreeMap<u32, String>,
}

/// A kernel, ready to run.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) params: Vec<Param>,
    pub(crate) param_bytes: usize,
    /// Shared memory that the kernel's variables take.
    pub(crate) static_shared: u32,
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
    pub(crate) max_threads: Option<u32>,
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
    pub(crate) functions: Vec<Function>,
    places: Vec<Place>,
    source: Arc<Source>,
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
    pub(crate) fn place(&self, pc: u32) -> u32 {
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
            Some((file, line)) => format!("{file}:{line} (PTX line {})", self.place(pc)),
            None => format!("PTX line {}", self.place(pc)),
        }
    }
}

impl Source {
    fn location(&self, location: Option<Location>) -> Option<(String, u32)> {
        let (file, line) = location?;
        Some((self.files.get(&file)?.clone(), line))
    }
}

/// Loads a module: its kernels, and its variables with their addresses and sizes.
pub(crate) fn load(
    text: &str,
    profile: &Profile,
    config: &Config,
    memory: &Memory,
    variables: &mut BTreeMap<String, (u64, u64)>,
) -> Result<Vec<Kernel>, ModuleError> {
    if !text.contains(".version") {
        return Err(ModuleError::NotPtx("it has no `.version` directive".to_owned()));
    }
    check_version(text, config)?;
    let files = BTreeMap::new();
    let source = Source { text: text.to_owned(), files };
    let tree = ptx::parse(text).map_err(|problem| parse_error(problem, &source))?;
    let source = Arc::new(Source { files: tree.files.clone(), ..source });
    check_target(&tree.target, profile)?;
    allocate(&tree, memory, variables)?;
    initialise(&tree, memory, variables).map_err(|problem| parse_error(problem, &source))?;
    let kernels = tree.functions.iter().filter(|f| f.is_kernel && f.body.is_some());
    kernels
        .map(|function| {
            Decoder::kernel(&tree, variables, source.clone(), function, config.jitter)
                .map_err(|problem| parse_error(problem, &source))
        })
        .collect()
}

fn parse_error(problem: Problem, source: &Source) -> ModuleError {
    let Problem { line, location, message } = problem;
    ModuleError::Parse { line, source_line: source.location(location), message }
}

/// Checks the version before anything else: a newer text need not parse.
fn check_version(text: &str, config: &Config) -> Result<(), ModuleError> {
    let line = text.lines().map(str::trim).find_map(|line| line.strip_prefix(".version"));
    let Some((major, minor)) = line.and_then(|version| version.trim().split_once('.')) else {
        return Ok(());
    };
    let minor: String = minor.chars().take_while(char::is_ascii_digit).collect();
    if let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) {
        let (found, supported) = ((major, minor), config.ptx_version);
        if found > supported {
            return Err(ModuleError::UnsupportedVersion { found, supported });
        }
    }
    Ok(())
}

/// The number of a target such as `sm_80` or `sm_90a`, or zero.
fn target_number(target: &str) -> u32 {
    let number = target.strip_prefix("sm_").or_else(|| target.strip_prefix("compute_"));
    let digits = number.map_or("", |n| n.trim_end_matches(|c: char| c.is_ascii_lowercase()));
    digits.parse().unwrap_or(0)
}

/// Checks that the device can run code for a target such as `sm_80` or `sm_90a`.
fn check_target(target: &str, profile: &Profile) -> Result<(), ModuleError> {
    let (device, name) = (profile.compute_capability, target.to_owned());
    let number = target_number(target);
    if number == 0 {
        return Err(ModuleError::NotPtx(format!("unknown target `{target}`")));
    }
    let wanted = (number / 10, number % 10);
    let fits = match target.as_bytes().last() {
        Some(b'a') => wanted == device,
        Some(b'f') => wanted.0 == device.0 && wanted <= device,
        _ => wanted <= device,
    };
    if fits { Ok(()) } else { Err(ModuleError::TargetTooNew { target: name, device }) }
}

fn in_device_memory(variable: &&Variable) -> bool {
    matches!(variable.space, VariableSpace::Global | VariableSpace::Const)
}

fn allocate(
    tree: &Tree,
    memory: &Memory,
    variables: &mut BTreeMap<String, (u64, u64)>,
) -> Result<(), ModuleError> {
    for variable in tree.variables.iter().filter(in_device_memory) {
        let bytes = variable.bytes.unwrap_or(0);
        let name = variable.name.clone();
        if variable.external || variable.bytes.is_none() || variable.align > 256 {
            return Err(ModuleError::Parse {
                line: variable.line,
                source_line: None,
                message: format!(
                    "the variable `{name}` is defined elsewhere, has no size, or needs an \
                     alignment beyond 256 bytes"
                ),
            });
        }
        let address = match variable.space {
            VariableSpace::Const => memory.alloc_constant(bytes),
            _ => memory.alloc(bytes),
        };
        let Some(address) = address else { return Err(ModuleError::OutOfMemory { name, bytes }) };
        variables.insert(name, (address, bytes));
    }
    Ok(())
}

/// Writes initial values; what a module leaves out is zero.
fn initialise(
    tree: &Tree,
    memory: &Memory,
    variables: &BTreeMap<String, (u64, u64)>,
) -> Result<(), Problem> {
    for variable in tree.variables.iter().filter(in_device_memory) {
        let (address, bytes) = variables[&variable.name];
        let fail = |message: String| Problem::new(variable.line, message);
        let mut image = vec![0; bytes as usize];
        let width = variable.ty.bytes() as usize;
        for (index, initial) in variable.initial.iter().enumerate() {
            let value = match initial {
                Initial::Bits(bits) => *bits,
                Initial::Address(name, offset) => variables
                    .get(name)
                    .map(|(address, _)| *address)
                    .or_else(|| functions::function_address(tree, name))
                    .map(|address| address.wrapping_add(*offset as u64))
                    .ok_or_else(|| fail(format!("`{name}` has no address in device memory")))?,
            };
            image
                .get_mut(index * width..(index + 1) * width)
                .ok_or_else(|| fail(format!("too many initial values for `{}`", variable.name)))?
                .copy_from_slice(&value.to_le_bytes()[..width]);
        }
        memory.write(address, &image).map_err(|error| fail(error.to_string()))?;
    }
    Ok(())
}
