//! From parsed PTX to instructions that the executor runs.
//!
//! A kernel is decoded once, when its module is loaded: names become register numbers and
//! addresses, device functions are expanded where they are called, and whatever the emulator does
//! not know refuses the module.

mod allocate;
mod arithmetic;
mod atomics;
mod carry;
mod control;
mod conversion;
mod decoder;
mod forms;
mod fragment;
mod functions;
mod guesses;
mod liveness;
mod logic;
mod lower;
mod matrix;
mod memory;
mod modifiers;
mod operands;
mod set;
mod table;
mod unwritten;
mod video;
mod warp;

pub use self::forms::{Form, Needs, Slot, supported_forms};
pub(crate) use self::functions::function_address;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::decoder::Decoder;
use crate::program::{Kernel, SourceText};
use crate::ptx::{FunctionTree, Problem, Tree};

/// Decodes a kernel and the functions that it may call. Approximations have errors with `jitter`.
pub(crate) fn kernel(
    tree: &Tree,
    variables: &BTreeMap<String, (u64, u64)>,
    source: Arc<SourceText>,
    function: &FunctionTree,
    jitter: bool,
) -> Result<Kernel, Problem> {
    Decoder::kernel(tree, variables, source, function, jitter)
}
