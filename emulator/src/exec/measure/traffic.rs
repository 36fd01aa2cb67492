//! Global memory that requests touch, in 32-byte sectors and in bytes.
//!
//! A request moves whole sectors between a multiprocessor and the L2 cache (CUDA C++ Programming
//! Guide, "Device Memory Accesses": transactions of 32 bytes). Over a launch every byte is counted
//! once: with an L2 cache that holds all that a launch touches, that is what device memory moves.
//! What a launch discards from L2 before it ends is not written.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::counters::Counters;
use crate::exec::alu::lanes::LANES;
use crate::memory::{Table, find};

pub(crate) const SECTOR_BYTES: u64 = 32;
/// Sectors that a request may touch: an aligned access of a lane lies in one, or in one and the
/// next where it is as long as a sector.
const MOST_SECTORS: usize = 2 * LANES;

/// The sectors that a request touches: the number of each, and a bit for each byte.
pub(crate) struct Request {
    sectors: [(u64, u32); MOST_SECTORS],
    count: usize,
}

impl Request {
    /// The sectors of lanes that touch so many bytes, at most 32, from an address on.
    pub(crate) fn new(lanes: impl Iterator<Item = (u64, u32)>) -> Self {
        let mut request = Self { sectors: [(0, 0); MOST_SECTORS], count: 0 };
        for (address, bytes) in lanes {
            let bits = ((1_u64 << bytes) - 1) << (address % SECTOR_BYTES);
            let sector = address / SECTOR_BYTES;
            request.touch(sector, bits as u32);
            request.touch(sector + 1, (bits >> SECTOR_BYTES) as u32);
        }
        request
    }

    fn touch(&mut self, sector: u64, bits: u32) {
        if bits == 0 {
            return;
        }
        // Lanes mostly touch the sector of the lane before them.
        let known = self.sectors[..self.count].iter().rposition(|known| known.0 == sector);
        let at = known.unwrap_or(self.count);
        self.count = self.count.max(at + 1);
        self.sectors[at] = (sector, self.sectors[at].1 | bits);
    }

    fn touched(&self) -> &[(u64, u32)] {
        &self.sectors[..self.count]
    }

    /// How many sectors it touches.
    pub(crate) fn sectors(&self) -> u64 {
        self.count as u64
    }

    /// The fewest sectors that hold as many bytes.
    pub(crate) fn least_sectors(&self) -> u64 {
        let bytes: u64 = self.touched().iter().map(|(_, bits)| u64::from(bits.count_ones())).sum();
        bytes.div_ceil(SECTOR_BYTES)
    }
}

/// The bytes of a sector that a launch touched: a bit for each.
#[derive(Default)]
struct Touched {
    /// Read before they were written.
    read: AtomicU32,
    written: AtomicU32,
}

/// The global memory that a launch touched.
pub(crate) struct Traffic {
    /// The sectors of each allocation, by its place in the table.
    allocations: Vec<OnceLock<Box<[Touched]>>>,
}

impl Traffic {
    pub(crate) fn new(table: &Table) -> Self {
        Self { allocations: table.iter().map(|_| OnceLock::new()).collect() }
    }

    pub(crate) fn read(&self, table: &Table, request: &Request) {
        self.visit(table, request, |touched, bits| {
            let known = touched.written.load(Ordering::Relaxed);
            let new = bits & !(known | touched.read.load(Ordering::Relaxed));
            if new != 0 {
                touched.read.fetch_or(new, Ordering::Relaxed);
            }
        });
    }

    pub(crate) fn write(&self, table: &Table, request: &Request) {
        self.visit(table, request, |touched, bits| {
            if bits & !touched.written.load(Ordering::Relaxed) != 0 {
                touched.written.fetch_or(bits, Ordering::Relaxed);
            }
        });
    }

    /// What it takes back, device memory is not written.
    pub(crate) fn discard(&self, table: &Table, request: &Request) {
        self.visit(table, request, |touched, bits| {
            touched.written.fetch_and(!bits, Ordering::Relaxed);
        });
    }

    fn visit(&self, table: &Table, request: &Request, visit: impl Fn(&Touched, u32)) {
        let mut last = 0;
        for &(sector, bits) in request.touched() {
            let address = sector * SECTOR_BYTES;
            let inside = |at: usize| {
                let allocation = table.get(at)?;
                let offset = address.checked_sub(allocation.base)?;
                (offset < allocation.bytes).then_some((at, offset))
            };
            // Allocations start at multiples of a sector, so a sector belongs to one at most.
            let place = inside(last).or_else(|| inside(find(table, address, 1)?));
            let Some((at, offset)) = place else { continue };
            last = at;
            let sectors = self.allocations[at].get_or_init(|| {
                let sectors = table[at].bytes.div_ceil(SECTOR_BYTES);
                (0..sectors).map(|_| Touched::default()).collect()
            });
            visit(&sectors[(offset / SECTOR_BYTES) as usize], bits);
        }
    }

    /// Counts what was moved, when the launch is over.
    pub(crate) fn add_to(&self, counters: &mut Counters) {
        let sectors = self.allocations.iter().filter_map(OnceLock::get).flatten();
        for touched in sectors {
            let read = touched.read.load(Ordering::Relaxed);
            let written = touched.written.load(Ordering::Relaxed);
            counters.dram_bytes_read += u64::from(read.count_ones());
            counters.dram_bytes_written += u64::from(written.count_ones());
            counters.dram_sectors_read += u64::from(read != 0);
            counters.dram_sectors_written += u64::from(written != 0);
        }
    }
}
