//! What the threads of a warp do together: shuffles, votes, matches and reductions.

use super::Warp;
use crate::exec::alu::lanes::LANES;
use crate::exec::context::{Machine, lanes};
use crate::program::*;

/// What a lane reads from a lane that does not take part: the value is undefined.
const UNDEFINED: u32 = u32::MAX;

impl Warp {
    /// Executes a shuffle among the lanes of the mask.
    pub(crate) fn shuffle(&mut self, machine: &Machine, op: &ShuffleOp, mask: u32) {
        let values = self.r[op.value as usize];
        let offsets = &self.r[op.lane as usize].0;
        let clamps = &self.r[op.clamp as usize].0;
        let mut results = values;
        let mut sources = std::array::from_fn(Some);
        let mut in_range = 0;
        for lane in 0..LANES as u32 {
            let (offset, clamp) = (offsets[lane as usize] & 31, clamps[lane as usize]);
            let segment = clamp >> 8 & 31;
            let clamp = clamp & 31;
            let last = (lane & segment) | (clamp & !segment);
            let first = lane & segment;
            let (source, valid) = match op.mode {
                ShuffleMode::Up => {
                    (lane.wrapping_sub(offset), lane as i32 - offset as i32 >= last as i32)
                }
                ShuffleMode::Down => (lane + offset, lane + offset <= last),
                ShuffleMode::Butterfly => (lane ^ offset, lane ^ offset <= last),
                ShuffleMode::Index => {
                    let source = first | (offset & !segment & 31);
                    (source, source <= last)
                }
            };
            if valid {
                in_range |= 1 << lane;
                let here = (mask >> source & 1 != 0).then_some(source as usize);
                results.0[lane as usize] = here.map_or(UNDEFINED, |source| values.0[source]);
                sources[lane as usize] = here;
            }
        }
        if let Some(watched) = &op.watched {
            self.watch_shuffle(watched, &sources, mask);
        }
        self.put32(machine.context.wide, op.target, &results, mask);
        if let Target::P(p) = op.in_range {
            self.put_bits(p, in_range, mask);
        }
    }

    /// Executes a collective among the lanes of the mask.
    pub(crate) fn collective(&mut self, op: &CollectiveOp, mask: u32) {
        match op.collective {
            Collective::Barrier => {}
            Collective::Vote { vote, target, test } => {
                let holds = self.test(test) & mask;
                let value = match vote {
                    Vote::All => u64::from(holds == mask),
                    Vote::Any => u64::from(holds != 0),
                    Vote::Uniform => u64::from(holds == mask || holds == 0),
                    Vote::Ballot => u64::from(holds),
                };
                self.put_all(target, value, mask);
            }
            Collective::MatchAny { target, value } => {
                let values: [u64; LANES] = std::array::from_fn(|lane| self.get(value, lane));
                for lane in lanes(mask) {
                    let same = lanes(mask).filter(|&other| values[other] == values[lane]);
                    let same = same.fold(0, |all, other| all | 1 << other);
                    self.r[target as usize].0[lane] = same;
                }
            }
            Collective::MatchAll { target, all, value } => {
                let mut values = lanes(mask).map(|lane| self.get(value, lane));
                let first = values.next();
                let same = values.all(|value| Some(value) == first);
                self.put_all(target, if same { u64::from(mask) } else { 0 }, mask);
                self.put_all(all, u64::from(same), mask);
            }
            Collective::Redux { redux, target, value } => {
                let register = self.r[value as usize].0;
                let values = lanes(mask).map(|lane| register[lane]);
                let of_signed = |pick: fn(i32, i32) -> i32| {
                    let values = lanes(mask).map(|lane| register[lane] as i32);
                    values.reduce(pick).unwrap_or(0) as u32
                };
                let result = match redux {
                    Redux::Add => values.fold(0, u32::wrapping_add),
                    Redux::MinU => values.min().unwrap_or(0),
                    Redux::MaxU => values.max().unwrap_or(0),
                    Redux::MinS => of_signed(i32::min),
                    Redux::MaxS => of_signed(i32::max),
                    Redux::And => values.fold(u32::MAX, |all, value| all & value),
                    Redux::Or => values.fold(0, |all, value| all | value),
                    Redux::Xor => values.fold(0, |all, value| all ^ value),
                };
                self.put_all(Target::R(target, 32), u64::from(result), mask);
            }
            Collective::Elect { target, elected } => {
                let leader = mask.trailing_zeros();
                self.put_all(target, u64::from(leader), mask);
                self.put_bits(elected, 1 << leader, mask);
            }
        }
    }

    /// Writes the same value in all lanes of a mask.
    pub(crate) fn put_all(&mut self, target: Target, value: u64, mask: u32) {
        lanes(mask).for_each(|lane| self.put(target, lane, value));
    }
}
