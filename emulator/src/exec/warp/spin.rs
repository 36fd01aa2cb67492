//! Loops that wait: a warp that reads the same again and again gives way to those that it may wait
//! for, and a loop that nothing can end is found.

use super::{Part, Pause, Warp};
use crate::exec::alu::lanes::{V32, V64};

/// Turns of a loop that read the same before its warp gives way.
const PATIENCE: u32 = 3;

/// Runs in a row without an effect after which a warp may be in a loop that nothing ends: runs that
/// end because it gives way, and runs that use up their share.
const QUIET_WAITS: u32 = 8;
const QUIET_SHARES: u32 = 64;

/// What a warp has done of late.
#[derive(Default)]
pub(crate) struct Spin {
    /// Whether the warp has changed anything but its registers.
    effect: bool,
    /// What accesses that are not weak have read since the last turn of a loop, mixed; 0 for none.
    read: u64,
    /// The same of the turn before.
    read_before: u64,
    /// Turns in a row that read the same.
    repeats: u32,
    /// Runs in a row without an effect.
    quiet: u32,
    before: Option<Box<Snapshot>>,
    /// How often the warp has run since then, and after how many times that is given up.
    age: u32,
    patience: u32,
    /// The number of effects of the launch since which the warp does the same again and again.
    stuck: Option<u64>,
}

/// What decides how a warp goes on, apart from memory.
struct Snapshot {
    /// The effects of the launch by then.
    effects: u64,
    parts: Vec<Part>,
    r: Vec<V32>,
    q: Vec<V64>,
    p: Vec<u32>,
}

impl Spin {
    /// Notes that the warp has changed something that others can see, or memory of its own.
    #[inline(always)]
    pub(crate) fn has_effect(&mut self) {
        self.effect = true;
        self.read_before = 0;
    }

    /// Notes what an access that is not weak has read.
    pub(crate) fn has_read(&mut self, pc: u32, values: impl Iterator<Item = u64>) {
        let mix =
            |all: u64, value: u64| (all ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ all >> 29;
        self.read = values.fold(mix(self.read, u64::from(pc) + 1), mix) | 1;
    }

    /// A loop starts its next turn. Whether it seems to wait for others.
    #[inline(always)]
    pub(crate) fn turns(&mut self) -> bool {
        if self.read == 0 {
            return false;
        }
        let read = std::mem::take(&mut self.read);
        self.repeats = if read == self.read_before { self.repeats + 1 } else { 0 };
        self.read_before = read;
        self.repeats >= PATIENCE
    }

    /// Since which of the launch's effects the warp does the same again and again.
    pub(crate) fn stuck(&self) -> Option<u64> {
        self.stuck
    }
}

impl Warp {
    /// Looks whether a warp that has run is where it was before, when the launch had had that many
    /// effects. Whether it had one itself.
    pub(crate) fn has_run(&mut self, pause: Pause, effects: u64) -> bool {
        let enough = match pause {
            Pause::Sleep => QUIET_WAITS,
            Pause::Quantum => QUIET_SHARES,
            // Others learn of it.
            Pause::Barrier(_) | Pause::Done => 0,
        };
        if std::mem::take(&mut self.spin.effect) || enough == 0 {
            (self.spin.quiet, self.spin.before, self.spin.stuck) = (0, None, None);
            return true;
        }
        self.spin.quiet += 1;
        if self.spin.quiet < enough {
            return false;
        }
        let before = self.spin.before.as_ref().filter(|before| before.effects == effects);
        if before.is_some_and(|before| before.is_of(self)) {
            self.spin.stuck = Some(effects);
            return false;
        }
        self.spin.stuck = None;
        self.spin.age += 1;
        let known = before.is_some();
        if !known || self.spin.age >= self.spin.patience {
            self.spin.patience = if known { 2 * self.spin.patience } else { 1 };
            self.spin.age = 0;
            self.spin.before = Some(Box::new(Snapshot::of(self, effects)));
        }
        false
    }
}

impl Snapshot {
    fn of(warp: &Warp, effects: u64) -> Self {
        let (r, q, p) = (warp.r.clone(), warp.q.clone(), warp.p.clone());
        Self { effects, parts: warp.parts.clone(), r, q, p }
    }

    fn is_of(&self, warp: &Warp) -> bool {
        // Which part runs next depends on how long each has run.
        self.parts == warp.parts && self.p == warp.p && self.r == warp.r && self.q == warp.q
    }
}
