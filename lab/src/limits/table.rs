//! The limits as text and as Markdown.

use std::fmt::Write as _;

use super::bounds::Ratio;
use super::latency::{Modelled, TOKENS, Wait};
use super::line::{Group, Limit, Line};
use super::report::Evidence;
use crate::witness::devices::CALIBRATION;
use crate::witness::named::RANKS;

const COMMAND: &str = "cargo xtask limits";

/// For a terminal.
pub fn text(evidence: &Evidence) -> String {
    let mut text = format!("{}\n", evidence.note);
    for group in Group::ALL {
        let _ = writeln!(text, "\n== {} ==", group.title());
        let rows: Vec<&Line> = evidence.lines.iter().filter(|line| line.group == group).collect();
        let width = |cell: fn(&Line) -> usize| rows.iter().map(|row| cell(row)).max().unwrap_or(0);
        let what = width(|line| line.what.chars().count());
        let shown = width(|line| line.shown().chars().count());
        for line in rows {
            let row = format!(
                "  {:<what$}  {:>shown$}  {:<8}  {}",
                line.what,
                line.shown(),
                line.limit_shown(),
                line.verdict()
            );
            text += row.trim_end();
            text.push('\n');
        }
    }
    text += "\n== Ways through the main kernels ==\n";
    for w in &evidence.waits {
        let _ = writeln!(
            text,
            "  {:<6}  {:<27}  {:>4} instructions, {:>2} HMMA, {} exposed, {:>2} hasty, {:>5.0} \
             clocks, {:>5.0} with two warps",
            w.architecture, w.way, w.instructions, w.products, w.exposed, w.hasty, w.one, w.two
        );
    }
    text += "\n== Main loops ==\n";
    for l in &evidence.loops {
        let _ = writeln!(
            text,
            "  {:<6}  {:<20}  {:>5} instructions, {:>3} HMMA ({:>4.1} %), {:>2} LDSM, {:>2} LDGSTS, \
             {:>3} narrow accesses",
            l.architecture,
            l.kernel,
            l.instructions,
            l.hmma,
            100.0 * l.hmma as f64 / l.instructions.max(1) as f64,
            l.ldsm,
            l.ldgsts,
            l.narrow
        );
    }
    let _ = writeln!(text, "\n== Forward + backward over plain, by layer ==");
    for (layer, ratios) in by_layer(&evidence.ratios) {
        let cells: Vec<String> =
            ratios.iter().map(|r| format!("{} r={} {:.3}", r.gpu, r.rank, r.ratio)).collect();
        let _ = writeln!(text, "  {layer}: {}", cells.join(", "));
    }
    let failing = evidence.lines.iter().filter(|line| !line.holds).count();
    let _ = writeln!(text, "\n{} lines, {failing} of which fail", evidence.lines.len());
    text
}

/// For a document.
pub fn markdown(evidence: &Evidence) -> String {
    let mut text = format!("{} All tables are written by `{COMMAND}`.\n", evidence.note);
    for group in Group::ALL {
        let _ = write!(text, "\n### {}\n\n{}\n\n", group.title(), group.source());
        text += "| what | number | limit | |\n|---|--:|--:|---|\n";
        for line in evidence.lines.iter().filter(|line| line.group == group && is_listed(line)) {
            let (shown, limit, verdict) = (line.shown(), line.limit_shown(), line.verdict());
            let _ = writeln!(text, "| {} | {shown} | {limit} | {verdict} |", line.what);
        }
        match group {
            Group::MachineCode => loops(evidence, &mut text),
            Group::Bounds => ratios(evidence, &mut text),
            Group::Latency => waits(evidence, &mut text),
            Group::Launches => launches(evidence, &mut text),
            _ => {}
        }
    }
    text
}

/// Whether a document lists a line. Of the many that its other tables have the numbers of, it lists
/// those that miss their goal.
fn is_listed(line: &Line) -> bool {
    let has_table = matches!(line.group, Group::Latency | Group::Launches);
    !has_table || matches!(line.limit, Limit::Toward { goal, .. } if line.value > goal)
}

fn loops(evidence: &Evidence, text: &mut String) {
    *text += "\nAll main loops, per iteration:\n\n\
              | kernel | for | instructions | HMMA | share | LDSM | LDGSTS | accesses under 16 bytes |\n\
              |---|---|--:|--:|--:|--:|--:|--:|\n";
    for l in &evidence.loops {
        let share = 100.0 * l.hmma as f64 / l.instructions.max(1) as f64;
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {share:.1} % | {} | {} | {} |",
            l.kernel, l.architecture, l.instructions, l.hmma, l.ldsm, l.ldgsts, l.narrow
        );
    }
}

fn ratios(evidence: &Evidence, text: &mut String) {
    let layers = by_layer(&evidence.ratios);
    let Some((_, first)) = layers.first() else { return };
    *text += "\nForward + backward over plain, by layer, T = 8192:\n\n| layer |";
    for r in first {
        let _ = write!(text, " {} r={} |", r.gpu, r.rank);
    }
    let _ = writeln!(text, "\n|---|{}", "--:|".repeat(first.len()));
    for (layer, ratios) in &layers {
        let _ = write!(text, "| {layer} |");
        for r in ratios {
            let _ = write!(text, " {:.3} |", r.ratio);
        }
        text.push('\n');
    }
}

/// The modelled launches of one GPU, number of tokens and rank: forward and backward, norm axis
/// output and input of each.
fn of_layer<'a>(
    evidence: &'a Evidence,
    gpu: &str,
    tokens: usize,
    rank: usize,
) -> Vec<&'a Modelled> {
    let of_layer = |m: &&Modelled| m.gpu == gpu && m.tokens == tokens && m.rank == rank;
    evidence.launches.iter().filter(of_layer).collect()
}

/// The GPUs that are modelled, in their order.
fn gpus(evidence: &Evidence) -> Vec<&str> {
    let mut gpus: Vec<&str> = evidence.launches.iter().map(|m| m.gpu.as_str()).collect();
    gpus.dedup();
    gpus
}

/// A step's forward and backward over the plain ones.
fn both(forward: &Modelled, backward: &Modelled) -> f64 {
    (forward.fused + backward.fused) / (forward.plain + backward.plain)
}

fn launches(evidence: &Evidence, text: &mut String) {
    *text += "\nFused over plain, with the range for latencies of 0.8 to 1.25 times and shares of \
              the tensor cores of 0.95 to 1.05 times what is assumed. The bound is that of forward \
              and backward together (\"Modelled bounds\").\n\n\
              | GPU | T | r | plain forward, backward, µs | forward, output | input | backward, \
              output | input | both, output | input | bound, output | input |\n\
              |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n";
    for gpu in gpus(evidence) {
        for (tokens, rank) in TOKENS.iter().flat_map(|t| RANKS.map(|rank| (*t, rank))) {
            let of_layer = of_layer(evidence, gpu, tokens, rank);
            let [out, input, back_out, back_input] = of_layer[..] else { continue };
            let _ = write!(
                text,
                "| {gpu} | {tokens} | {rank} | {:.0}, {:.0} |",
                out.plain, back_out.plain
            );
            for m in &of_layer {
                let _ = write!(text, " {:.2}", m.ratio);
                if let Some([least, most]) = m.range {
                    let _ = write!(text, " ({least:.2}–{most:.2})");
                }
                *text += " |";
            }
            let _ = write!(text, " {:.2} | {:.2} |", both(out, back_out), both(input, back_input));
            for axis in ["output", "input"] {
                match bound(evidence, gpu, tokens, rank, axis) {
                    Some(bound) => drop(write!(text, " {bound:.2} |")),
                    None => *text += " |",
                }
            }
            text.push('\n');
        }
    }
    *text += "\nThe clock and the share of the tensor cores' rate that the model assumes:\n\n";
    *text += CALIBRATION;
    products(evidence, text);
    *text += "\nNobody has published times of these kernels, and no ratio has been checked on a \
              GPU. The ratios may be trusted to about ±0.05 at T = 8192 and ±0.1 at T = 2048. At \
              T = 512 they are mostly how the tiles of the last wave fall. The model has no DRAM \
              bandwidth, bank conflicts, instruction cache or power limit.\n";
}

fn products(evidence: &Evidence, text: &mut String) {
    *text += "\nThe modelled rate of the plain kernel, and published rates of square products in \
              TFLOP/s, by hand with `mma.sync` and by cuBLAS (A100 PCIe of 300 W and RTX 5090 at \
              400 W: github.com/gau-nernst/learn-cuda, 02b_matmul_sm80; H100 SXM: \
              github.com/waynehacking8/blackwell-tensorcore-kernels):\n\n\
              | GPU | product | modelled | published, by hand | cuBLAS |\n|---|---|--:|--:|--:|\n";
    for p in &evidence.products {
        let by_hand = p.by_hand.map_or(String::new(), |rate| format!("{rate:.0}"));
        let _ = writeln!(
            text,
            "| {} | {}³ | {:.0} | {by_hand} | {:.0} |",
            p.gpu, p.size, p.modelled, p.cublas
        );
    }
}

/// The modelled bound of a 4096×4096 layer's forward and backward over plain, where there is one.
fn bound(evidence: &Evidence, gpu: &str, tokens: usize, rank: usize, axis: &str) -> Option<f64> {
    let ratio = evidence.ratios.iter().find(|r| {
        r.gpu == gpu
            && (r.outputs, r.inputs, r.rank) == (4096, 4096, rank)
            && r.norm_axis.ends_with(axis)
            && tokens == super::bounds::TOKENS
    });
    ratio.map(|ratio| ratio.ratio)
}

fn waits(evidence: &Evidence, text: &mut String) {
    let mut architectures: Vec<&str> =
        evidence.waits.iter().map(|w| w.architecture.as_str()).collect();
    architectures.dedup();
    *text += "\nExposed waits and hasty loads of an iteration, and its clocks for one warp on a \
              scheduler and until each of two is through:\n\n| way |";
    for architecture in &architectures {
        let _ = write!(text, " {architecture} exposed, hasty | clocks |");
    }
    let _ = writeln!(text, "\n|---|{}", "--:|--:|".repeat(architectures.len()));
    let first = architectures.first().copied().unwrap_or_default();
    for way in evidence.waits.iter().filter(|w| w.architecture == first) {
        let _ = write!(text, "| {} |", way.way);
        let same = |w: &&Wait| w.way == way.way;
        for w in evidence.waits.iter().filter(same) {
            let _ = write!(text, " {}, {} | {:.0}, {:.0} |", w.exposed, w.hasty, w.one, w.two);
        }
        text.push('\n');
    }
}

/// What to expect, for the beginning of a document.
pub fn expectation(evidence: &Evidence) -> String {
    let ratios = |gpus: &[&str], tokens: usize| {
        let of =
            |m: &&Modelled| gpus.contains(&m.gpu.as_str()) && (m.tokens, m.rank) == (tokens, 16);
        range(evidence.launches.iter().filter(of).map(|m| m.ratio), 2)
    };
    let groups = [&["A100"] as &[&str], &["RTX 4090", "RTX 5090"], &["H100"]];
    let [a100, geforce, h100] = groups.map(|gpus| ratios(gpus, 8192));
    let [a100_few, geforce_few, h100_few] = groups.map(|gpus| ratios(gpus, 2048));
    let [a100_plain, rtx5090_plain, h100_plain] =
        ["A100", "RTX 5090", "H100"].map(|gpu| plain_over_cublas(evidence, gpu));
    format!(
        "**What to expect, by a model that no GPU has checked** (4096×4096, bf16, r = 16): over \
         its own\nplain products, forward or backward takes {a100} times as long on A100, \
         {geforce} on\nGeForce RTX 4090 and 5090, and {h100} on H100 at T = 8192 (±0.05), and \
         {a100_few},\n{geforce_few} and {h100_few} at T = 2048 (±0.1). Forward with norm axis \
         input takes longest.\n**Over cuBLAS**, multiply by what the plain products take over its \
         published rates: {a100_plain} on\nA100 (of 300 W), 1.0 on RTX 4090, {rtx5090_plain} on \
         RTX 5090, and {h100_plain} on H100, where\ncuBLAS uses wgmma. \"Modelled time of a launch\", below, \
         has all ratios, and what they rest on.\n"
    )
}

/// The time of plain products over cuBLAS's published one, if they have the modelled rate, and if
/// they have that of the published kernel by hand.
fn plain_over_cublas(evidence: &Evidence, gpu: &str) -> String {
    let products = evidence.products.iter().filter(|p| p.gpu == gpu && p.size >= 4096);
    let ratios = products.flat_map(|p| {
        let rates = [Some(p.modelled), p.by_hand];
        rates.into_iter().flatten().map(|rate| p.cublas / rate)
    });
    range(ratios, 1)
}

/// The least and the largest of some numbers.
fn range(numbers: impl Iterator<Item = f64>, decimals: usize) -> String {
    let widest = numbers.fold(None, |range: Option<(f64, f64)>, number| {
        let (least, most) = range.unwrap_or((number, number));
        Some((least.min(number), most.max(number)))
    });
    match widest {
        Some((least, most)) => {
            let [least, most] = [least, most].map(|number| format!("{number:.decimals$}"));
            if least == most { least } else { format!("{least} to {most}") }
        }
        None => "(not modelled)".to_owned(),
    }
}

/// The ratios of one shape and norm axis after another.
fn by_layer(ratios: &[Ratio]) -> Vec<(String, Vec<&Ratio>)> {
    let mut layers: Vec<(String, Vec<&Ratio>)> = Vec::new();
    for r in ratios {
        let layer = format!("{}×{}, {}", r.outputs, r.inputs, r.norm_axis);
        match layers.iter_mut().find(|known| known.0 == layer) {
            Some(known) => known.1.push(r),
            None => layers.push((layer, vec![r])),
        }
    }
    layers
}
