//! What all warps of a launch share, and how an instruction stops one.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

use crate::config::Config;
use crate::counters::Counters;
use crate::exec::alu::lanes::Wide;
use crate::exec::measure::{Measure, Traffic};
use crate::exec::sanitize::global::GlobalShadow;
use crate::exec::sanitize::shared::Shadow;
use crate::fault::{Fault, FaultKind};
use crate::heap::Heap;
use crate::memory::{Memory, Table};
use crate::program::{Kernel, SHARED_BASE};

/// What all warps of a launch share.
pub(crate) struct Context<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) table: Table,
    pub(crate) memory: &'a Memory,
    pub(crate) heap: &'a Heap,
    /// The parameter image; atomics, as all memory that loads may reach.
    pub(crate) param_words: Vec<AtomicU64>,
    pub(crate) param_bytes: usize,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    /// Where a block's shared memory ends, with the gaps between variables.
    pub(crate) shared_bytes: u32,
    pub(crate) dynamic_shared: u32,
    /// Local memory of a thread, the stack included.
    pub(crate) local_bytes: u32,
    pub(crate) config: Config,
    pub(crate) sm_count: u32,
    pub(crate) launch: u64,
    /// Memory by which the blocks of a cooperative grid wait for each other; zero for other grids.
    pub(crate) workspace: u64,
    pub(crate) wide: Wide,
    pub(crate) stop: AtomicBool,
    /// How often a warp has run and changed what others may see.
    pub(crate) effects: AtomicU64,
    /// The first fault, by the order of blocks.
    pub(crate) fault: Mutex<Option<(u64, Fault)>>,
    /// What the sanitizer knows of global memory, where it is on.
    pub(crate) global_shadow: Option<GlobalShadow>,
    /// The global memory that the launch touched, where it is measured.
    pub(crate) traffic: Option<Traffic>,
}

impl Context<'_> {
    /// Host address of the parameter image.
    pub(crate) fn params(&self) -> *mut u8 {
        self.param_words.as_ptr().cast_mut().cast()
    }

    /// Bytes of local memory that a thread takes on the host.
    pub(crate) fn local_stride(&self) -> usize {
        self.local_bytes.next_multiple_of(16) as usize
    }

    /// The index in the block of a thread, by its number.
    pub(crate) fn thread(&self, number: u32) -> [u32; 3] {
        let [x, y, _] = self.block;
        [number % x, number / x % y, number / x / y]
    }
}

/// What a warp reaches while it runs.
pub(crate) struct Machine<'a> {
    pub(crate) context: &'a Context<'a>,
    pub(crate) shared: &'a mut Shared,
    pub(crate) counters: &'a mut Counters,
    /// What is measured, where it is.
    pub(crate) measure: Option<&'a mut Measure>,
    /// The place of the memory access that runs.
    pub(crate) pc: u32,
    /// The block that runs, by its position in the grid.
    pub(crate) block: u32,
}

/// Shared memory of a block.
pub(crate) struct Shared {
    words: Vec<u128>,
    bytes: usize,
    /// Where the first variable is: a part before it only shifts their alignment.
    start: usize,
    /// What the sanitizer knows of it, where it is on.
    shadow: Option<Box<Shadow>>,
}

impl Shared {
    pub(crate) fn new(context: &Context, shadow: Option<Shadow>) -> Self {
        let (bytes, start) = (context.shared_bytes as usize, context.kernel.shared_start as usize);
        let words = vec![u128::MAX; bytes.div_ceil(16)];
        Self { words, bytes, start, shadow: shadow.map(Box::new) }
    }

    /// Fills it with poison, for a block.
    pub(crate) fn reset(&mut self, block: u32) {
        self.words.fill(u128::MAX);
        if let Some(shadow) = &mut self.shadow {
            shadow.reset(block);
        }
    }

    /// What the sanitizer knows of it, where it is on.
    #[inline(always)]
    pub(crate) fn shadow(&mut self) -> Option<&mut Shadow> {
        self.shadow.as_deref_mut()
    }

    /// What may be accessed: its address, its length in bytes, and its host address.
    pub(crate) fn region(&mut self) -> (u64, u64, *mut u8) {
        let (start, length) = (self.start, self.bytes - self.start);
        (SHARED_BASE + start as u64, length as u64, self.host().wrapping_add(start))
    }

    /// Host address of the first byte; what may be accessed starts further on.
    pub(crate) fn host(&mut self) -> *mut u8 {
        self.words.as_mut_ptr().cast()
    }
}

/// Why an instruction stops the launch; the warp adds where.
#[derive(Debug)]
pub(crate) struct Stop {
    pub(crate) kind: FaultKind,
    pub(crate) lane: Option<u32>,
    pub(crate) address: Option<u64>,
    pub(crate) detail: String,
}

impl Stop {
    pub(crate) fn new(kind: FaultKind, detail: impl Into<String>) -> Box<Self> {
        Box::new(Self { kind, lane: None, address: None, detail: detail.into() })
    }

    pub(crate) fn at(
        kind: FaultKind,
        lane: usize,
        address: u64,
        detail: impl Into<String>,
    ) -> Box<Self> {
        let (lane, address) = (Some(lane as u32), Some(address));
        Box::new(Self { kind, lane, address, detail: detail.into() })
    }

    pub(crate) fn lane(kind: FaultKind, lane: u32, detail: impl Into<String>) -> Box<Self> {
        Box::new(Self { kind, lane: Some(lane), address: None, detail: detail.into() })
    }
}

/// The lanes of a mask, in words: `0-7, 12`.
pub(crate) fn lanes_of(mask: u32) -> String {
    let mut ranges = Vec::new();
    let mut lane = 0;
    while lane < 32 {
        let run = (mask >> lane).trailing_ones();
        match run {
            0 => lane += 1,
            1 => ranges.push(lane.to_string()),
            _ => ranges.push(format!("{lane}-{}", lane + run - 1)),
        }
        lane += run;
    }
    if ranges.is_empty() { "none".to_owned() } else { ranges.join(", ") }
}

/// The lanes of a mask, in order.
pub(crate) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (lane < 32).then_some(lane as usize)
    })
}
