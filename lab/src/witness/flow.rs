//! Control flow: basic blocks, dominators, natural loops, and one way through a set of blocks.

use std::collections::{BTreeMap, BTreeSet};

use super::code::{Instruction, Kernel};

/// Instructions behind which a block ends.
const ENDS: [&str; 8] = ["BRA", "BRX", "BRXU", "JMP", "EXIT", "RET", "CALL", "BSYNC"];

/// A natural loop: the block that all ways into it pass, and its blocks.
#[derive(Clone, Debug)]
pub struct Loop {
    pub header: usize,
    pub blocks: BTreeSet<usize>,
}

/// The blocks of a kernel and the edges between them.
pub struct Graph<'a> {
    pub kernel: &'a Kernel,
    /// First instruction and end of each.
    pub blocks: Vec<(usize, usize)>,
    pub successors: Vec<Vec<usize>>,
    pub predecessors: Vec<Vec<usize>>,
    /// The immediate dominator of each block that can be reached.
    dominator: Vec<Option<usize>>,
    /// Each block's place in an order in which dominators come first.
    place: Vec<usize>,
    /// BSYNC that do not stand before the target of their BSSY.
    pub odd_syncs: usize,
}

/// How many instructions of a kind a way must have.
pub type Exactly = Option<(fn(&Instruction) -> bool, usize)>;

/// The best way to a block: its weight, and the block before it with its number of counted
/// instructions.
type Best = (f64, Option<(usize, usize)>);

impl<'a> Graph<'a> {
    pub fn new(kernel: &'a Kernel) -> Self {
        let code = &kernel.code;
        let mut leaders = BTreeSet::from([0]);
        leaders.extend(kernel.labels.iter().map(|label| label.1).filter(|&at| at < code.len()));
        let ends = code.iter().enumerate().filter(|(_, i)| ENDS.contains(&i.op()));
        leaders.extend(ends.map(|(at, _)| at + 1).filter(|&at| at < code.len()));
        let starts: Vec<usize> = leaders.into_iter().collect();
        let ends = starts.iter().skip(1).copied().chain([code.len()]);
        let blocks: Vec<_> = starts.iter().copied().zip(ends).collect();
        let count = blocks.len();
        let mut graph = Self {
            kernel,
            blocks,
            successors: vec![Vec::new(); count],
            predecessors: vec![Vec::new(); count],
            dominator: vec![None; count],
            place: vec![usize::MAX; count],
            odd_syncs: 0,
        };
        for block in 0..count {
            graph.successors[block] = graph.after(block, &starts);
        }
        for block in 0..count {
            for to in graph.successors[block].clone() {
                graph.predecessors[to].push(block);
            }
        }
        graph.dominate();
        graph
    }

    /// The blocks that can follow a block.
    fn after(&mut self, block: usize, starts: &[usize]) -> Vec<usize> {
        let (code, end) = (&self.kernel.code, self.blocks[block].1);
        let last = &code[end - 1];
        let at = |instruction: usize| starts.partition_point(|&start| start <= instruction) - 1;
        let label = |name: &str| {
            let found = self.kernel.labels.iter().find(|(label, _)| label == name);
            found.map(|label| label.1).filter(|&at| at < code.len())
        };
        let next = (end < code.len()).then(|| at(end));
        let mut successors = Vec::new();
        let jumps = matches!(last.op(), "EXIT" | "RET" | "BRX" | "BRXU");
        let calls = last.op() == "CALL" && last.guard.is_none() && !last.has("NOINC");
        if jumps || calls {
            if last.guard.is_some() {
                successors.extend(next);
            }
            if last.op().starts_with("BRX") {
                // A table, which nvdisasm names in a comment.
                let words = last
                    .operands
                    .split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.');
                let labels = words.filter(|word| word.starts_with(".L_x_"));
                successors.extend(labels.filter_map(label).map(at));
            }
            return successors;
        }
        let target = last.target().and_then(label);
        if let ("BRA" | "JMP", Some(target)) = (last.op(), target) {
            let predicate = last.operands.trim_start_matches('!');
            let predicate = predicate.strip_prefix('U').unwrap_or(predicate);
            let is_predicate = predicate
                .strip_prefix('P')
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
            if last.guard.is_some() || is_predicate || last.has("DIV") {
                successors.extend(next);
            }
            if !successors.contains(&at(target)) {
                successors.push(at(target));
            }
            return successors;
        }
        if last.op() == "BSYNC" {
            let register = last.operands.trim();
            let of_register = |i: &&Instruction| {
                i.op() == "BSSY" && i.arguments().first().is_some_and(|first| *first == register)
            };
            let join = code[..end].iter().rev().find(of_register);
            let target = join.and_then(|join| label(join.target()?));
            self.odd_syncs += usize::from(target.is_some_and(|target| target != end));
        }
        successors.extend(next);
        successors
    }

    /// Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm".
    fn dominate(&mut self) {
        let mut order = Vec::new();
        let mut seen = vec![false; self.blocks.len()];
        let mut stack = vec![(0, 0)];
        seen[0] = true;
        while let Some((block, tried)) = stack.last_mut() {
            let block = *block;
            let left = &self.successors[block][*tried..];
            if let Some(ahead) = left.iter().position(|&to| !seen[to]) {
                let to = left[ahead];
                *tried += ahead + 1;
                seen[to] = true;
                stack.push((to, 0));
            } else {
                order.push(block);
                stack.pop();
            }
        }
        order.reverse();
        for (place, &block) in order.iter().enumerate() {
            self.place[block] = place;
        }
        self.dominator[0] = Some(0);
        let mut changed = true;
        while changed {
            changed = false;
            for &block in &order[1..] {
                let known = self.predecessors[block].iter().copied();
                let known = known.filter(|&p| self.dominator[p].is_some());
                let new = known.reduce(|a, b| self.common(a, b));
                if self.dominator[block] != new {
                    (self.dominator[block], changed) = (new, true);
                }
            }
        }
    }

    /// The nearest block that dominates both.
    fn common(&self, mut a: usize, mut b: usize) -> usize {
        let up = |block: usize| self.dominator[block].unwrap_or(0);
        while a != b {
            while self.place[a] > self.place[b] {
                a = up(a);
            }
            while self.place[b] > self.place[a] {
                b = up(b);
            }
        }
        a
    }

    pub fn is_reached(&self, block: usize) -> bool {
        self.dominator[block].is_some()
    }

    fn dominates(&self, above: usize, mut block: usize) -> bool {
        while let Some(up) = self.dominator[block] {
            if block == above {
                return true;
            }
            if up == block {
                return false;
            }
            block = up;
        }
        false
    }

    /// The instructions of a block.
    pub fn instructions(&self, block: usize) -> &'a [Instruction] {
        let (first, end) = self.blocks[block];
        &self.kernel.code[first..end]
    }

    /// All natural loops.
    pub fn loops(&self) -> Vec<Loop> {
        let mut loops: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (block, successors) in self.successors.iter().enumerate() {
            let back = |&&header: &&usize| self.is_reached(block) && self.dominates(header, block);
            for &header in successors.iter().filter(back) {
                let body = loops.entry(header).or_insert_with(|| BTreeSet::from([header]));
                let mut stack = vec![block];
                while let Some(block) = stack.pop() {
                    if body.insert(block) {
                        let reached = |&&before: &&usize| self.is_reached(before);
                        stack.extend(self.predecessors[block].iter().filter(reached));
                    }
                }
            }
        }
        loops.into_iter().map(|(header, blocks)| Loop { header, blocks }).collect()
    }

    /// The way from a source to a sink with the largest weight, with exactly so many instructions
    /// of a kind where that is asked for. Edges back to a dominator are cut: the way goes through
    /// an inner loop once.
    pub fn way(
        &self,
        blocks: &BTreeSet<usize>,
        sources: &[usize],
        sinks: &[usize],
        weigh: impl Fn(usize) -> f64,
        exactly: Exactly,
    ) -> Option<Vec<&'a Instruction>> {
        let mut order: Vec<usize> = blocks.iter().copied().collect();
        order.sort_by_key(|&block| self.place[block]);
        let count = |block: usize| {
            let counted = |(is_kind, _): (fn(&Instruction) -> bool, usize)| {
                self.instructions(block).iter().filter(|i| is_kind(i)).count()
            };
            exactly.map_or(0, counted)
        };
        // By block and by the number of counted instructions so far.
        let mut best: BTreeMap<usize, BTreeMap<usize, Best>> = BTreeMap::new();
        for &source in sources {
            let of_source = best.entry(source).or_default();
            of_source.insert(count(source), (weigh(source), None));
        }
        for block in order {
            for (number, (weight, _)) in best.get(&block).cloned().unwrap_or_default() {
                let inside = |&&to: &&usize| blocks.contains(&to) && !self.dominates(to, block);
                for &to in self.successors[block].iter().filter(inside) {
                    let total = number + count(to);
                    if exactly.is_some_and(|(_, most)| total > most) {
                        continue;
                    }
                    let weight = weight + weigh(to);
                    let entry = best.entry(to).or_default().entry(total);
                    let entry = entry.or_insert((f64::NEG_INFINITY, None));
                    if entry.0 < weight {
                        *entry = (weight, Some((block, number)));
                    }
                }
            }
        }
        let ends = sinks.iter().flat_map(|&sink| {
            let of_sink = best.get(&sink).into_iter().flatten();
            of_sink.map(move |(&number, &(weight, _))| (weight, sink, number))
        });
        let right = |end: &(f64, usize, usize)| exactly.is_none_or(|(_, wanted)| end.2 == wanted);
        let by_weight = |a: &(f64, usize, usize), b: &(f64, usize, usize)| {
            a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2)))
        };
        let (_, mut block, mut number) = ends.filter(right).max_by(by_weight)?;
        let mut way = vec![block];
        while let Some((_, Some((before, so_far)))) = best.get(&block)?.get(&number).copied() {
            way.push(before);
            (block, number) = (before, so_far);
        }
        Some(way.into_iter().rev().flat_map(|block| self.instructions(block)).collect())
    }
}
