//! Reads of registers that a thread may not have written. The decoder finds the registers to watch;
//! this module records which lanes have written to them.

use crate::exec::context::*;
use crate::exec::warp::Warp;
use crate::fault::FaultKind;
use crate::program::{Op, RegisterClass, TRUE, Test};

impl Warp {
    /// Looks at an instruction that reads or writes watched registers, before it is executed.
    #[cold]
    pub(crate) fn watch(
        &mut self,
        machine: &Machine,
        pc: u32,
        active: u32,
        mask: u32,
    ) -> Result<(), Box<Stop>> {
        let watch = &machine.context.kernel.watch;
        let Some(watched) = watch.instructions.get(&pc) else { return Ok(()) };
        if self.defined.is_empty() {
            return Ok(());
        }
        let instruction = &machine.context.kernel.code[pc as usize];
        let mut moved = u32::MAX;
        for read in &watched.reads {
            let defined = self.defined[read.number];
            let is = |test: Test| {
                read.class == RegisterClass::Predicate
                    && test.predicate == read.slot
                    && test.predicate != TRUE
            };
            let (needed, chosen) = match instruction.op {
                _ if is(instruction.guard) => (active, 0),
                Op::Select32 { test, .. } | Op::Select64 { test, .. } if is(test) => (mask, 0),
                Op::Select32 { a, b, test, .. } | Op::Select64 { a, b, test, .. } => {
                    let first = self.test(test);
                    let chosen = |slot: u16, lanes: u32| if slot == read.slot { lanes } else { 0 };
                    (0, chosen(a, first) | chosen(b, !first))
                }
                _ if watched.moves => (0, u32::MAX),
                _ => (mask, 0),
            };
            moved &= defined | !chosen;
            let missing = needed & !defined;
            if missing != 0 {
                let name = &watch.registers[read.number];
                let detail =
                    format!("lanes {} never wrote to the register `{name}`", lanes_of(missing));
                let lane = missing.trailing_zeros();
                return Err(Stop::lane(FaultKind::UninitializedRegister, lane, detail));
            }
        }
        for &write in &watched.writes {
            self.defined[write] = self.defined[write] & !mask | moved & mask;
        }
        Ok(())
    }
}
