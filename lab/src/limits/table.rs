//! The limits as text and as Markdown.

use std::fmt::Write as _;

use super::bounds::Ratio;
use super::line::{Group, Line};
use super::report::Evidence;

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
        for line in evidence.lines.iter().filter(|line| line.group == group) {
            let (shown, limit, verdict) = (line.shown(), line.limit_shown(), line.verdict());
            let _ = writeln!(text, "| {} | {shown} | {limit} | {verdict} |", line.what);
        }
        match group {
            Group::MachineCode => loops(evidence, &mut text),
            Group::Bounds => ratios(evidence, &mut text),
            _ => {}
        }
    }
    text
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
