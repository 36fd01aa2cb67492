//! Whether control fields are decoded right, by what must hold in any code that a compiler made.

use std::collections::BTreeMap;

use super::code::{Instruction, Kernel};
use super::control::SCOREBOARDS;
use super::flow::Graph;

/// Instructions whose latency varies and that write a register.
const VARIABLE: [&str; 12] =
    ["LDG", "LDS", "LDSM", "MUFU", "SHFL", "S2R", "ATOMG", "I2F", "F2I", "LD", "FCHK", "LDL"];
/// Shared memory answers in order: the last one's scoreboard covers several loads. It stands within
/// so many instructions.
const IN_ORDER: [&str; 2] = ["LDS", "LDSM"];
const WITHIN: usize = 40;

/// What was counted of one or of several kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    pub instructions: usize,
    pub waits: usize,
    /// Instructions that wait for a scoreboard that nothing on any way to them sets. Compilers
    /// leave a few.
    pub unset: usize,
    /// Reads of a load's register before its scoreboard is waited for.
    pub early: usize,
    /// Scoreboards beyond those that there are.
    pub beyond: usize,
    /// Results of variable latency without a scoreboard.
    pub lacking: usize,
    /// BSYNC that do not stand before the target of their BSSY: the flow of control goes elsewhere.
    pub odd_syncs: usize,
}

impl Checked {
    /// Checks a kernel.
    pub fn new(kernel: &Kernel) -> Self {
        let graph = Graph::new(kernel);
        let code = &kernel.code;
        let is_beyond = |scoreboard: Option<u8>| scoreboard.is_some_and(|s| s >= SCOREBOARDS);
        let beyond = |i: &&Instruction| is_beyond(i.control.write) || is_beyond(i.control.read);
        Self {
            instructions: code.len(),
            waits: code.iter().map(|i| i.control.waits().count()).sum(),
            unset: unset(&graph),
            early: (0..graph.blocks.len()).map(|block| early(graph.instructions(block))).sum(),
            beyond: code.iter().filter(beyond).count(),
            lacking: (0..code.len()).filter(|&at| is_lacking(code, at)).count(),
            odd_syncs: graph.odd_syncs,
        }
    }

    /// The sums of two.
    pub fn and(self, other: Self) -> Self {
        Self {
            instructions: self.instructions + other.instructions,
            waits: self.waits + other.waits,
            unset: self.unset + other.unset,
            early: self.early + other.early,
            beyond: self.beyond + other.beyond,
            lacking: self.lacking + other.lacking,
            odd_syncs: self.odd_syncs + other.odd_syncs,
        }
    }
}

/// Instructions that wait for a scoreboard that nothing on any way to them sets.
fn unset(graph: &Graph<'_>) -> usize {
    // A bit for each scoreboard that may be set.
    let through = |block: usize, mut set: u8| {
        let mut unset = 0;
        for i in graph.instructions(block) {
            unset += usize::from(i.control.wait & !set != 0);
            set &= !i.control.wait;
            for scoreboard in [i.control.write, i.control.read].into_iter().flatten() {
                set |= 1 << scoreboard;
            }
        }
        (set, unset)
    };
    let mut into = vec![0_u8; graph.blocks.len()];
    let mut work: Vec<usize> = (0..graph.blocks.len()).collect();
    while let Some(block) = work.pop() {
        let (set, _) = through(block, into[block]);
        for &to in &graph.successors[block] {
            if into[to] | set != into[to] {
                into[to] |= set;
                work.push(to);
            }
        }
    }
    let reached = (0..graph.blocks.len()).filter(|&block| graph.is_reached(block));
    reached.map(|block| through(block, into[block]).1).sum()
}

/// Reads within a block of registers whose load was not waited for.
fn early(instructions: &[Instruction]) -> usize {
    let mut open: BTreeMap<u32, u8> = BTreeMap::new();
    let mut early = 0;
    for i in instructions {
        open.retain(|_, scoreboard| i.control.wait >> *scoreboard & 1 == 0);
        let (written, read) = i.registers();
        early += read.iter().filter(|register| open.contains_key(register)).count();
        for register in written {
            open.remove(&register);
            if let Some(scoreboard) = i.control.write.filter(|_| VARIABLE.contains(&i.op())) {
                open.insert(register, scoreboard);
            }
        }
    }
    early
}

/// Whether a result of variable latency has no scoreboard, of its own or of a later load that comes
/// after it.
fn is_lacking(code: &[Instruction], at: usize) -> bool {
    let i = &code[at];
    let later = || code[at + 1..].iter().take(WITHIN);
    let covered = |j: &Instruction| j.op() == i.op() && j.control.write.is_some();
    VARIABLE.contains(&i.op())
        && i.control.write.is_none()
        && !i.registers().0.is_empty()
        && !(IN_ORDER.contains(&i.op()) && later().any(covered))
}
