//! Reads of registers that a thread may not have written. The decoder finds the registers to watch;
//! this module records which of their bits nothing has written to, lane by lane.

use crate::exec::alu::lanes::LANES;
use crate::exec::context::*;
use crate::exec::warp::Warp;
use crate::fault::FaultKind;
use crate::program::{Part, WatchedShuffle};

/// The bits of a register that nothing wrote, for each lane.
type Unwritten = [u64; LANES];

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
        if self.unwritten.is_empty() {
            return Ok(());
        }
        let guard = watched.guard.iter().map(|&number| (number, active));
        let uses = watched.uses.iter().map(|&number| (number, mask));
        for (number, needed) in guard.chain(uses) {
            let unwritten = &self.unwritten[number];
            let missing = lanes(needed).filter(|&lane| unwritten[lane] != 0);
            let missing = missing.fold(0_u32, |missing, lane| missing | 1 << lane);
            if missing != 0 {
                return Err(self.never_written(machine, number, missing));
            }
        }
        // A register may be both read and written: what all hold is found first.
        let after: Vec<(usize, Unwritten)> =
            watched.writes.iter().map(|(number, parts)| (*number, self.moved(parts))).collect();
        for (number, unwritten) in after {
            let bits = watch.registers[number].bits;
            lanes(mask).for_each(|lane| self.unwritten[number][lane] = unwritten[lane] & bits);
        }
        Ok(())
    }

    /// The bits of a result that come from such as nothing wrote.
    fn moved(&self, parts: &[Part<usize>]) -> Unwritten {
        let mut result = [0; LANES];
        for part in parts {
            let taken = part.when.map_or(u32::MAX, |test| self.test(test));
            let from = &self.unwritten[part.from];
            lanes(taken).for_each(|lane| result[lane] |= part.moved(from[lane]));
        }
        result
    }

    fn never_written(&self, machine: &Machine, number: usize, missing: u32) -> Box<Stop> {
        let register = &machine.context.kernel.watch.registers[number];
        let (name, first) = (&register.name, missing.trailing_zeros());
        let lanes = lanes_of(missing);
        let bits = self.unwritten[number][first as usize];
        let detail = match bits == register.bits {
            true => format!("lanes {lanes} never wrote to the register `{name}`"),
            false => format!(
                "lanes {lanes} never wrote to all of the register `{name}`: lane {first} lacks the \
                 bits {bits:#x}"
            ),
        };
        Stop::lane(FaultKind::UninitializedRegister, first, detail)
    }

    /// Notes what a shuffle moved: each lane's source, or nothing where that does not take part.
    pub(crate) fn watch_shuffle(
        &mut self,
        watched: &WatchedShuffle,
        sources: &[Option<usize>; LANES],
        mask: u32,
    ) {
        if self.unwritten.is_empty() {
            return;
        }
        let value = watched.value.map_or([0; LANES], |value| self.unwritten[value]);
        for lane in lanes(mask) {
            let missing = u64::from(u32::MAX);
            let unwritten = sources[lane].map_or(missing, |source| value[source]);
            self.unwritten[watched.target][lane] = unwritten;
        }
    }
}
