//! The ways through loops and stretches of code that the witness times: where their source stands,
//! and which of several ways is the one that a well-formed layer takes.

use std::collections::BTreeSet;

use super::code::{Instruction, Kernel};
use super::flow::{Graph, Loop};

/// Lines of a source, `first` to `last`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub file: String,
    pub first: usize,
    pub last: usize,
}

impl Span {
    /// From the one line of a source that has `beginning`, to the brace that closes its block.
    pub fn block(file: &str, text: &str, beginning: &str) -> Result<Self, String> {
        let lines: Vec<&str> = text.lines().collect();
        let first = line_with(file, text, beginning)? - 1;
        let indent = |line: &str| line.len() - line.trim_start().len();
        let closes = |at: &usize| {
            indent(lines[*at]) == indent(lines[first]) && lines[*at].trim_start().starts_with('}')
        };
        let last = (first + 1..lines.len()).find(closes).ok_or_else(|| {
            format!("{file}: the block of `{beginning}` has no end, by its indentation")
        })?;
        Ok(Self { file: file.to_owned(), first: first + 1, last: last + 1 })
    }

    /// Whether an instruction is from these lines, inlined or not.
    pub fn has(&self, instruction: &Instruction) -> bool {
        instruction.frames.iter().any(|frame| {
            (self.first..=self.last).contains(&frame.line)
                && frame
                    .file
                    .strip_suffix(self.file.as_str())
                    .is_some_and(|folder| folder.is_empty() || folder.ends_with('/'))
        })
    }

    fn count(&self, instructions: &[Instruction]) -> usize {
        instructions.iter().filter(|i| self.has(i)).count()
    }
}

/// The number of the one line that has a marker, from 1.
pub fn line_with(file: &str, text: &str, marker: &str) -> Result<usize, String> {
    let lines = text.lines().enumerate();
    let having: Vec<usize> =
        lines.filter(|(_, line)| line.contains(marker)).map(|(at, _)| at + 1).collect();
    match having[..] {
        [line] => Ok(line),
        _ => Err(format!(
            "{file}: {} lines have `{marker}`, by which lab/src/witness/named.rs finds code; \
             exactly one must",
            having.len()
        )),
    }
}

/// Which way to take.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    pub avoid: Vec<Span>,
    pub prefer: Vec<Span>,
    /// So many tensor-core products, if given.
    pub products: Option<usize>,
}

/// Whether it is a tensor-core product.
pub fn is_product(i: &Instruction) -> bool {
    i.op() == "HMMA"
}

/// The weight of an instruction: tensor-core products and wide memory accesses are what a way is
/// for, element-by-element copies and calls are what ragged and rare cases take.
fn weight(i: &Instruction) -> f64 {
    let narrow = ["U16", "S16", "U8", "S8"].iter().any(|modifier| i.has(modifier));
    match i.op() {
        "LDG" | "STG" | "LD" | "ST" if narrow => -300.0,
        "HMMA" => 50.0,
        "LDSM" | "LDGSTS" | "BAR" | "LDGDEPBAR" | "LDG" | "STG" | "STS" | "LDS" | "ATOMG"
        | "RED" => 20.0,
        "CALL" | "EXIT" | "NANOSLEEP" | "YIELD" | "RET" => -500.0,
        _ => -0.02,
    }
}

impl Choice {
    fn weigh(&self, instructions: &[Instruction]) -> f64 {
        let within = |spans: &[Span], i: &Instruction| spans.iter().any(|span| span.has(i));
        let of = |spans: &[Span]| {
            if spans.is_empty() {
                0
            } else {
                instructions.iter().filter(|i| within(spans, i)).count()
            }
        };
        let mut total: f64 = instructions.iter().map(weight).sum();
        // Most of a block: what the compiler hoisted keeps its lines.
        if instructions.len() > 4 && 2 * of(&self.avoid) > instructions.len() {
            total -= 400.0;
        }
        let avoided = |i: &&Instruction| matches!(i.op(), "LDG" | "STG") && within(&self.avoid, i);
        total -= 100.0 * instructions.iter().filter(avoided).count() as f64;
        total + 3.0 * of(&self.prefer) as f64
    }

    fn way<'a>(
        &self,
        graph: &Graph<'a>,
        blocks: &BTreeSet<usize>,
        sources: &[usize],
        sinks: &[usize],
    ) -> Option<Vec<&'a Instruction>> {
        let weigh = |block: usize| self.weigh(graph.instructions(block));
        graph.way(
            blocks,
            sources,
            sinks,
            weigh,
            self.products.map(|count| (is_product as _, count)),
        )
    }

    /// The way through an iteration of a loop.
    pub fn through_loop<'a>(&self, graph: &Graph<'a>, of: &Loop) -> Option<Vec<&'a Instruction>> {
        let goes_back = |block: &usize| graph.successors[*block].contains(&of.header);
        let sinks: Vec<usize> = of.blocks.iter().copied().filter(goes_back).collect();
        self.way(graph, &of.blocks, &[of.header], &sinks)
    }

    /// The way through the code of some lines.
    pub fn through_lines<'a>(
        &self,
        graph: &Graph<'a>,
        span: &Span,
    ) -> Option<Vec<&'a Instruction>> {
        let most = |&block: &usize| {
            let instructions = graph.instructions(block);
            graph.is_reached(block) && 2 * span.count(instructions) > instructions.len()
        };
        let blocks: BTreeSet<usize> = (0..graph.blocks.len()).filter(most).collect();
        let none_of = |edges: &[Vec<usize>]| -> Vec<usize> {
            let outside = |block: &usize| edges[*block].iter().all(|other| !blocks.contains(other));
            blocks.iter().copied().filter(outside).collect()
        };
        let (sources, sinks) = (none_of(&graph.predecessors), none_of(&graph.successors));
        self.way(graph, &blocks, &sources, &sinks)
    }
}

/// Of the innermost loops with instructions of a kind from these lines, and not mostly from
/// `without`, the one with most of them.
pub fn find_loop(
    graph: &Graph<'_>,
    span: &Span,
    is_kind: impl Fn(&Instruction) -> bool,
    without: Option<&Span>,
) -> Option<Loop> {
    let mut found = Vec::new();
    for candidate in graph.loops() {
        let instructions = || candidate.blocks.iter().flat_map(|&b| graph.instructions(b));
        let counted = instructions().filter(|&i| is_kind(i) && span.has(i)).count();
        let others = |without: &Span| instructions().filter(|i| without.has(i)).count();
        let other = without.is_some_and(|without| 2 * others(without) > instructions().count());
        if counted > 0 && !other {
            found.push((counted, std::cmp::Reverse(instructions().count()), candidate));
        }
    }
    let innermost = |(_, _, own): &&(usize, std::cmp::Reverse<usize>, Loop)| {
        let inside = |(_, _, other): &(usize, std::cmp::Reverse<usize>, Loop)| {
            other.header != own.header
                && other.blocks.len() < own.blocks.len()
                && other.blocks.is_subset(&own.blocks)
        };
        !found.iter().any(inside)
    };
    let best = found.iter().filter(innermost);
    best.max_by_key(|(counted, length, l)| (*counted, *length, l.header)).map(|best| best.2.clone())
}

/// The kernel of that name.
pub fn kernel<'a>(kernels: &'a [Kernel], name: &str) -> Result<&'a Kernel, String> {
    let found = kernels.iter().find(|kernel| kernel.name == name);
    found.ok_or_else(|| format!("{name}: no such kernel in the device code"))
}
