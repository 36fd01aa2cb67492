//! Measuring: what a profiler would count of a kernel, where `Config::measure` asks for it.
//!
//! The hooks in the executor are a test of one pointer each. Executed instructions are counted by
//! straight runs of code: a run adds one at its first place and takes one away behind its last, so
//! that the sums along the code are the counts of its instructions.

mod banks;
mod traffic;

use self::banks::Banks;
use self::traffic::SECTOR_BYTES;
use crate::counters::{ByClass, Counters};
use crate::exec::alu::lanes::LANES;
use crate::exec::context::*;
use crate::exec::memory::access::Intent;
use crate::exec::warp::Warp;
use crate::program::{Address, AtomicOp, CopyOp, DISCARDED, Space};
use crate::program::{Kernel, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_BYTES};

pub(crate) use traffic::Traffic;

/// What the blocks measured that one thread of the host ran, one after the other.
pub(crate) struct Measure {
    counters: Counters,
    /// Runs that start at a place, less runs that end before it.
    visits: Vec<i64>,
    banks: Banks,
}

/// What an instruction does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    /// Reads and writes, one lane after the other.
    Update,
}

impl Measure {
    pub(crate) fn new(kernel: &Kernel) -> Box<Self> {
        let visits = vec![0; kernel.code.len() + 1];
        Box::new(Self { counters: Counters::default(), visits, banks: Banks::new() })
    }

    #[cold]
    fn visit(&mut self, pc: u32, runs: i64) {
        self.visits[pc as usize] += runs;
    }

    /// All that was measured.
    pub(crate) fn counters(&self, kernel: &Kernel) -> Counters {
        let (mut by_class, mut times) = (ByClass::default(), 0);
        for (&class, visits) in kernel.classes.iter().zip(&self.visits) {
            times += visits;
            by_class.add(class, times.unsigned_abs());
        }
        Counters { by_class, ..self.counters }
    }

    #[inline(never)]
    fn shared(&mut self, mask: u32, bytes: u32, kind: Kind, address: impl Fn(usize) -> u64) {
        let merged = kind != Kind::Update;
        self.counters.shared_wavefronts += self.banks.wavefronts(mask, bytes, merged, address);
        self.counters.least_shared_wavefronts += banks::least_wavefronts(mask, bytes);
    }

    /// `lanes` are the lanes' addresses and how many bytes they move.
    fn global(&mut self, context: &Context, kind: Kind, lanes: impl Iterator<Item = (u64, u32)>) {
        let Some(traffic) = &context.traffic else { return };
        let request = traffic::Request::new(lanes);
        if request.sectors() == 0 {
            return;
        }
        if kind != Kind::Write {
            self.counters.global_loads += 1;
            self.counters.sectors_read += request.sectors();
            self.counters.least_sectors_read += request.least_sectors();
            traffic.read(&context.table, &request);
        }
        if kind != Kind::Read {
            self.counters.global_stores += 1;
            self.counters.sectors_written += request.sectors();
            self.counters.least_sectors_written += request.least_sectors();
            traffic.write(&context.table, &request);
        }
    }
}

impl Machine<'_> {
    /// A straight run of code begins at a place.
    #[inline(always)]
    pub(crate) fn enter(&mut self, pc: u32) {
        if let Some(measure) = &mut self.measure {
            measure.visit(pc, 1);
        }
    }

    /// It ended before a place.
    #[inline(always)]
    pub(crate) fn leave(&mut self, pc: u32) {
        if let Some(measure) = &mut self.measure {
            measure.visit(pc, -1);
        }
    }
}

impl Warp {
    /// Counts a load or a store.
    #[inline(always)]
    pub(crate) fn measure(
        &self,
        machine: &mut Machine,
        address: &Address,
        bytes: u32,
        mask: u32,
        intent: Intent,
    ) {
        if machine.measure.is_some() {
            let kind = match intent {
                Intent::Read => Kind::Read,
                Intent::Write => Kind::Write,
                Intent::ReadConstant => return,
            };
            self.measure_access(machine, address, mask, kind, |_| bytes);
        }
    }

    /// Notes what device memory is spared by a discard.
    #[inline(always)]
    pub(crate) fn measure_discard(&self, machine: &Machine, address: &Address, mask: u32) {
        let Some(traffic) = &machine.context.traffic else { return };
        for lane in lanes(mask) {
            let start = self.address(address, lane);
            let sectors = (start..start + u64::from(DISCARDED)).step_by(SECTOR_BYTES as usize);
            let request =
                traffic::Request::new(sectors.map(|sector| (sector, SECTOR_BYTES as u32)));
            traffic.discard(&machine.context.table, &request);
        }
    }

    /// Counts an atomic.
    #[inline(always)]
    pub(crate) fn measure_atomic(&self, machine: &mut Machine, op: &AtomicOp, mask: u32) {
        if machine.measure.is_some() {
            self.measure_access(machine, &op.address, mask, Kind::Update, |_| op.ty.bytes());
        }
    }

    /// Counts an asynchronous copy, of whose source the lanes read so many bytes.
    #[inline(always)]
    pub(crate) fn measure_copy(
        &self,
        machine: &mut Machine,
        op: &CopyOp,
        read: &[u8; LANES],
        mask: u32,
    ) {
        if machine.measure.is_some() {
            self.measure_access(machine, &op.from, mask, Kind::Read, |lane| read[lane].into());
            self.measure_access(machine, &op.to, mask, Kind::Write, |_| op.bytes);
        }
    }

    /// Counts a load of matrices whose rows' host addresses were found for the lanes of a mask. Its
    /// targets may be written already, and with them the register of the address.
    #[inline(always)]
    pub(crate) fn measure_matrices(&self, machine: &mut Machine, mask: u32) {
        const ROW_BYTES: u32 = 16;
        if let Some(measure) = machine.measure.as_deref_mut() {
            let start = machine.shared.host().addr();
            let offset = |lane: usize| (self.pointers[lane].addr() - start) as u64;
            measure.shared(mask, ROW_BYTES, Kind::Read, offset);
        }
    }

    #[cold]
    fn measure_access(
        &self,
        machine: &mut Machine,
        address: &Address,
        mask: u32,
        kind: Kind,
        bytes: impl Fn(usize) -> u32,
    ) {
        let Some(measure) = machine.measure.as_deref_mut() else { return };
        let at = |lane: usize| self.address(address, lane);
        let [shared, local, global] = spaces(address.space, mask, at);
        if shared != 0 {
            measure.shared(shared, bytes(shared.trailing_zeros() as usize), kind, at);
        }
        if local != 0 {
            measure.counters.local_requests += 1;
        }
        if global != 0 {
            let moved = lanes(global).map(|lane| (at(lane), bytes(lane)));
            measure.global(machine.context, kind, moved);
        }
    }
}

/// The lanes of a mask that reach shared, local and global memory. The value of a generic address
/// shows which it is. Parameters are none of these.
fn spaces(space: Space, mask: u32, address: impl Fn(usize) -> u64) -> [u32; 3] {
    match space {
        Space::Shared => [mask, 0, 0],
        Space::Local => [0, mask, 0],
        Space::Global => [0, 0, mask],
        Space::Param => [0; 3],
        Space::Generic => {
            let within = |start: u64| {
                let inside = |&lane: &usize| address(lane).wrapping_sub(start) < WINDOW_BYTES;
                lanes(mask).filter(inside).fold(0, |all, lane| all | 1 << lane)
            };
            let (shared, local) = (within(SHARED_WINDOW), within(LOCAL_WINDOW));
            [shared, local, mask & !(shared | local | within(PARAM_WINDOW))]
        }
    }
}
