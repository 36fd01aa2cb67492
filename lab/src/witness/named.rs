//! The loops and turns of the main kernels, found by their source.

use std::fs;
use std::path::Path;

use super::code::{Instruction, Kernel};
use super::flow::Graph;
use super::latencies::Latencies;
use super::pipeline::{Copies, Timing, issue, time};
use super::way::{Choice, Span, find_loop, is_product, kernel, line_with};

/// Ranks that are timed.
pub const RANKS: [usize; 2] = [16, 64];

/// What a way is, which decides how many waits it may expose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// k-steps of a main product.
    Main,
    /// Iterations of a pass over a tensor.
    Pass,
    /// What a tile does once.
    Once,
}

/// One way, timed.
#[derive(Clone, Debug)]
pub struct Named {
    pub name: String,
    pub role: Role,
    pub instructions: usize,
    pub products: usize,
    pub issue: u32,
    pub timing: Timing,
}

/// The named ways of one architecture.
#[derive(Clone, Debug)]
pub struct Ways {
    pub latencies: Latencies,
    pub all: Vec<Named>,
}

impl Ways {
    /// The timing of the way of a name.
    pub fn timing(&self, name: &str) -> Result<&Timing, String> {
        let found = self.all.iter().find(|named| named.name == name);
        found.map(|named| &named.timing).ok_or_else(|| format!("{name}: no such way is timed"))
    }
}

/// Finds code in the kernels' folder.
struct Sources<'a> {
    kernels: &'a Path,
}

impl Sources<'_> {
    fn text(&self, file: &str) -> Result<String, String> {
        let path = self.kernels.join(file);
        fs::read_to_string(&path)
            .map_err(|error| format!("{} cannot be read: {error}", path.display()))
    }

    /// [`Span::block`].
    fn block(&self, file: &str, beginning: &str) -> Result<Span, String> {
        Span::block(file, &self.text(file)?, beginning)
    }

    /// [`line_with`].
    fn line(&self, file: &str, marker: &str) -> Result<usize, String> {
        line_with(file, &self.text(file)?, marker)
    }
}

/// Collects ways, and names those that are not there.
struct Collector<'a> {
    latencies: &'a Latencies,
    all: Vec<Named>,
}

impl Collector<'_> {
    /// `loads` is how many wide loads of global memory the way has at least. With fewer it would
    /// pass by the work that it is named for.
    fn add(
        &mut self,
        name: impl Into<String>,
        role: Role,
        copies: Copies,
        loads: usize,
        way: Option<Vec<&Instruction>>,
    ) -> Result<(), String> {
        let name = name.into();
        let is_whole =
            |way: &Vec<&Instruction>| way.iter().filter(|i| is_wide_load(i)).count() >= loads;
        let way = way.filter(is_whole);
        let way = way.ok_or_else(|| {
            format!(
                "{name}: no way through the code for {} has its products and loads: does \
                 lab/src/witness/named.rs still describe its source?",
                self.latencies.architecture
            )
        })?;
        self.all.push(Named {
            name,
            role,
            instructions: way.len(),
            products: way.iter().filter(|i| is_product(i)).count(),
            issue: issue(&way),
            timing: time(&way, self.latencies, copies),
        });
        Ok(())
    }
}

fn is_wide_load(i: &Instruction) -> bool {
    i.op() == "LDG" && i.has("128")
}

fn is_load(i: &Instruction) -> bool {
    i.op() == "LDG"
}

/// Times all ways. `forward` and `backward` are the kernels of the two files for bf16.
pub fn time_all(
    forward: &[Kernel],
    backward: &[Kernel],
    folder: &Path,
    latencies: Latencies,
) -> Result<Ways, String> {
    let sources = Sources { kernels: folder };
    let mut collector = Collector { latencies: &latencies, all: Vec::new() };
    for (kernels, op, side) in [(backward, "backward", "dX"), (forward, "forward", "y")] {
        for (tiles, suffix) in [("", ""), ("_medium", " medium")] {
            let graph = Graph::new(kernel(kernels, &format!("{op}{tiles}_bf16"))?);
            main_product(&mut collector, &sources, &graph, &format!("{side}{suffix}"))?;
        }
    }
    let graph = Graph::new(kernel(backward, "backward_bf16")?);
    adapter(&mut collector, &sources, &graph)?;
    lora_a(&mut collector, &sources, &graph)?;
    let graph = Graph::new(kernel(forward, "forward_bf16")?);
    low_rank(&mut collector, &sources, &graph)?;
    Ok(Ways { all: collector.all, latencies })
}

fn main_product(
    collector: &mut Collector<'_>,
    sources: &Sources<'_>,
    graph: &Graph<'_>,
    side: &str,
) -> Result<(), String> {
    let whole = sources.block("common/tile/gemm.cuh", "static void accumulate_whole(")?;
    let by = sources.block("common/tile/gemm.cuh", "static void accumulate_by(")?;
    let choice = Choice::default();
    let main = find_loop(graph, &whole, is_product, None);
    let way = main.and_then(|main| choice.through_loop(graph, &main));
    collector.add(format!("{side}: main loop"), Role::Main, Copies::L2, 0, way)?;
    let last = find_loop(graph, &by, is_product, Some(&whole));
    let way = last.and_then(|last| choice.through_loop(graph, &last));
    collector.add(format!("{side}: last steps"), Role::Main, Copies::L2, 0, way)
}

fn with_products(rank: usize, of_16: usize, of_64: usize) -> Option<usize> {
    Some(if rank == RANKS[0] { of_16 } else { of_64 })
}

/// dY's pass, and what follows it.
fn adapter(
    collector: &mut Collector<'_>,
    sources: &Sources<'_>,
    graph: &Graph<'_>,
) -> Result<(), String> {
    const FILE: &str = "backward/sm80/adapter.cuh";
    let tile = sources.block(FILE, "void adapter_tile(")?;
    let again = sources.block("backward/sm80/recomputed_z.cuh", "static float sum(")?;
    let plain = sources.block(FILE, "if (!p.output_gain) {")?;
    let scaled = sources.block(FILE, "void add_scaled(")?;
    let without_bias = sources.block(FILE, "void add(float dy, float y) {")?;
    let with_bias = sources.block(FILE, "void add(float dy, float y, float b) {")?;
    let load = sources.block(FILE, "if (p.aligned) {")?;
    let pass = find_loop(graph, &tile, is_product, Some(&again));
    for rank in RANKS {
        for (kind, loads, avoid, prefer) in [
            ("output axis", 4, vec![&plain, &with_bias], vec![&scaled, &load, &without_bias]),
            (
                "output axis with a bias",
                4,
                vec![&plain, &without_bias],
                vec![&scaled, &load, &with_bias],
            ),
            ("input axis", 0, vec![&scaled, &load, &with_bias, &without_bias], vec![&plain]),
        ] {
            let [avoid, prefer] = [avoid, prefer].map(|spans| spans.into_iter().cloned().collect());
            let choice = Choice { avoid, prefer, products: with_products(rank, 24, 64) };
            let way = pass.as_ref().and_then(|pass| choice.through_loop(graph, pass));
            let name = format!("dY pass, {kind}, r={rank}");
            collector.add(name, Role::Pass, Copies::Dram, loads, way)?;
        }
    }
    let sum = sources.block(FILE, "void finish_p(")?;
    let way = find_loop(graph, &sum, is_load, None)
        .and_then(|sum| Choice::default().through_loop(graph, &sum));
    collector.add("P of 4 strips", Role::Pass, Copies::L2, 16, way)?;
    let columns = sources.block(FILE, "ColumnSums of_column(")?;
    let way = Choice::default().through_lines(graph, &columns);
    collector.add("column sums", Role::Once, Copies::L2, 0, way)?;
    let turn = sources.block(FILE, "void add_strip(")?;
    let last = sources.block(FILE, "if (turn.add_tile(sum_b, grad_b")?;
    turns(collector, sources, graph, "dB's turn", &turn, last, 16)
}

/// What CTAs do in turn, until the last one, which stores the gradient. Loads of ranks that are not
/// there have predicates: the way is the same for all ranks.
fn turns(
    collector: &mut Collector<'_>,
    sources: &Sources<'_>,
    graph: &Graph<'_>,
    name: &str,
    turn: &Span,
    last: Span,
    loads: usize,
) -> Result<(), String> {
    let store = sources.block("common/schedule/reduce.cuh", "void store_gradient(")?;
    // The block begins behind the line that adds.
    let last = Span { first: last.first + 1, ..last };
    let choice = Choice { avoid: vec![store, last], ..Choice::default() };
    collector.add(name, Role::Once, Copies::L2, loads, choice.through_lines(graph, turn))
}

/// dA's product and its turns.
fn lora_a(
    collector: &mut Collector<'_>,
    sources: &Sources<'_>,
    graph: &Graph<'_>,
) -> Result<(), String> {
    const FILE: &str = "backward/sm80/lora_a.cuh";
    let tile = sources.block(FILE, "void lora_a_tile(")?;
    let pass = find_loop(graph, &tile, is_product, None);
    for rank in RANKS {
        let choice = Choice { products: with_products(rank, 4, 16), ..Choice::default() };
        let way = pass.as_ref().and_then(|pass| choice.through_loop(graph, pass));
        collector.add(format!("dA, r={rank}"), Role::Pass, Copies::Dram, 0, way)?;
    }
    let last = sources.block(FILE, "if (turn.add_tile(sums, mma, p.rank - m0")?;
    let wait = sources.line(FILE, "turn.wait();")?;
    let turn = Span { first: wait, ..tile };
    turns(collector, sources, graph, "dA's turn", &turn, last, 8)
}

/// H's pass, and the sum of its parts.
fn low_rank(
    collector: &mut Collector<'_>,
    sources: &Sources<'_>,
    graph: &Graph<'_>,
) -> Result<(), String> {
    const FILE: &str = "forward/sm80/low_rank.cuh";
    let tile = sources.block(FILE, "void low_rank_tile(")?;
    let scale = sources.block(FILE, "void scale_tile(")?;
    let pass = find_loop(graph, &tile, is_product, None);
    for rank in RANKS {
        let products = with_products(rank, 4, 16);
        let output = Choice { avoid: vec![scale.clone()], products, ..Choice::default() };
        let input = Choice { prefer: vec![scale.clone()], products, ..Choice::default() };
        for (axis, loads, choice) in [("output", 0, output), ("input", 0, input)] {
            let way = pass.as_ref().and_then(|pass| choice.through_loop(graph, pass));
            let name = format!("H tile, {axis} axis, r={rank}");
            collector.add(name, Role::Pass, Copies::Dram, loads, way)?;
        }
    }
    let parts = sources.block("common/schedule/split_k.cuh", "static bool add(MMA& mma")?;
    let way = find_loop(graph, &parts, is_load, None)
        .and_then(|parts| Choice::default().through_loop(graph, &parts));
    collector.add("H, two parts of a sum", Role::Pass, Copies::L2, 16, way)
}
