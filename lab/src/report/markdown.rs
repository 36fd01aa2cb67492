//! `REPORT.md`.

use std::fmt::Write as _;

use super::machine::Machine;
use super::model;
use super::plot::Picture;
use fused_dora_testkit::bench::record::{
    ALONE, Counts, FUSED, MICRO_BATCH, Peaks, Record, Results,
};

/// What times are.
const OF_TIMES: &str = "\
Times are medians between two CUDA events around each run, with inputs that alternate and an L2
cache that was filled with something else by reading it. Bytes and operations are those that an op
cannot do without: inputs and outputs once, two operations per multiply-add. The bound is the longer of both at the GPU's
published peaks. Where layers are compared, they ran in turns, and ratios are of the fused layer's
time to theirs.
";

/// What counts are.
const OF_COUNTS: &str = "\
No time was measured: the emulated device counts. DRAM bytes are those that device memory moves,
once per launch; L2 bytes those between multiprocessors and the L2 cache; operations are 4096 per
tensor-core product (f32 layers have none). Of layers of separate ops, launches in which the
crate's own GEMM scales, adds, transposes or converts are left out, all but the addends that they
read, since a library's products do so in themselves. Ratios are of the fused layer's count to
theirs.
";

/// The whole text.
pub fn report(machine: &Machine, results: &[Results], pictures: &[Picture]) -> String {
    let emulated = results.iter().any(|results| results.emulated);
    let mut text = format!("# Benchmarks: {}\n\n", machine.device);
    let rows = machine.facts().into_iter().map(|(name, value)| vec![name.into(), value.into()]);
    table(&mut text, &["machine", ""], rows.collect());
    text += if emulated { OF_COUNTS } else { OF_TIMES };
    for results in results {
        bench(&mut text, results);
    }
    if let Some((gpu, rows)) = model::compared(results) {
        let _ = writeln!(text, "\n## Model and measurement\n");
        let _ = writeln!(
            text,
            "The model is that of docs/PERFORMANCE.md for {gpu}. Plain is the same kernel without \
             adapter and norm; ratios are of the fused launch to it.\n"
        );
        let heads = ["launch", "plain, µs", "modelled", "ratio", "modelled"];
        table(&mut text, &heads, rows);
    }
    if !pictures.is_empty() {
        text += "\n## Pictures\n\n";
        for Picture { file, title } in pictures {
            let _ = writeln!(text, "![{title}]({file})\n");
        }
    }
    text
}

/// A micro-batch of the largest 16-bit layer that was compared, on both norm axes and without one.
///
/// # Errors
/// Where the bench `layer` has not run.
pub fn largest(results: &[Results]) -> Result<String, String> {
    let layer = results.iter().find(|results| results.bench == "layer");
    let layer = layer.ok_or("no results of `cargo bench --bench layer`")?;
    let size = |r: &Record| r.tokens * r.in_features * r.out_features;
    let compared = |r: &&Record| r.phase == MICRO_BATCH && r.dtype == "bf16";
    let most = layer.records.iter().filter(compared).map(size).max().unwrap_or(0);
    let of_largest = |r: &&Record| compared(r) && size(r) == most;
    let records: Vec<_> = layer.records.iter().filter(of_largest).cloned().collect();
    let mut text = if layer.emulated { OF_COUNTS } else { OF_TIMES }.to_owned();
    text += "\n";
    comparisons(&mut text, layer, groups(&records));
    Ok(text)
}

/// Records of the same layer in the same phase, together.
fn groups(records: &[Record]) -> Vec<Vec<&Record>> {
    let mut groups: Vec<Vec<&Record>> = Vec::new();
    for record in records {
        match groups.iter_mut().find(|group| group[0].compares_with(record)) {
            Some(group) => group.push(record),
            None => groups.push(vec![record]),
        }
    }
    groups
}

/// One bench: the op by itself, then each phase that was compared.
fn bench(text: &mut String, results: &Results) {
    let _ = write!(text, "\n## {}\n\n", results.bench);
    let groups = groups(&results.records);
    let is_compared = |group: &Vec<&Record>| group[0].phase != ALONE;
    let (compared, alone): (Vec<_>, Vec<_>) = groups.into_iter().partition(is_compared);
    let alone: Vec<&Record> = alone.concat();
    if !alone.is_empty() {
        if results.emulated {
            let heads = ["layer", "launches", "DRAM MB", "L2 MB", "MFLOP"];
            table(text, &heads, alone.iter().map(|record| counts(record)).collect());
        } else {
            let heads = ["layer", "time", "GB/s", "TFLOP/s", "% of the bound"];
            let peaks = results.peaks.as_ref();
            table(text, &heads, alone.iter().map(|record| times(record, peaks)).collect());
        }
    }
    comparisons(text, results, compared);
    for left_out in &results.left_out {
        let _ = writeln!(text, "- left out: {left_out}");
    }
}

/// The fused layer compared with what it replaces, a table for each group.
fn comparisons(text: &mut String, results: &Results, compared: Vec<Vec<&Record>>) {
    if let (Some(products), false) = (&results.products, compared.is_empty()) {
        let _ = writeln!(text, "Against layers of separate ops, with products of {products}:\n");
    }
    for group in compared {
        let _ = writeln!(text, "{}, {}\n", group[0].phase_and_way(), group[0].layer());
        if let Some(clocks) = &group[0].clocks {
            let _ = writeln!(text, "{}\n", clocks.line());
        }
        let Some(fused) = group.iter().find(|record| record.contender == FUSED) else { continue };
        if results.emulated {
            let heads = ["", "launches", "ratio", "DRAM MB", "ratio", "L2 MB", "MFLOP"];
            let rows = group.iter().map(|record| counts_beside(record, fused));
            table(text, &heads, rows.collect());
        } else {
            let heads = ["", "time", "quartiles", "ratio"];
            table(text, &heads, group.iter().map(|record| times_beside(record, fused)).collect());
        }
    }
}

fn times(record: &Record, peaks: Option<&Peaks>) -> Vec<String> {
    let Some(time) = record.time else { return vec![record.layer()] };
    let (work, micro) = (record.total(), time.median_us);
    let share = peaks.and_then(|peaks| record.bound_us(peaks)).map(|bound| 100.0 * bound / micro);
    vec![
        record.layer(),
        format!("{micro:.1} µs"),
        if work.bytes > 0 { format!("{:.0}", work.bytes as f64 / micro / 1e3) } else { unknown() },
        if work.flop > 0 { format!("{:.1}", work.flop as f64 / micro / 1e6) } else { unknown() },
        share.map_or_else(unknown, |share| format!("{share:.0}")),
    ]
}

fn times_beside(record: &Record, fused: &Record) -> Vec<String> {
    let (Some(time), Some(fused)) = (record.time, fused.time) else {
        return vec![record.contender.clone()];
    };
    let [low, high] = time.quartiles_us;
    vec![
        record.contender.clone(),
        format!("{:.1} µs", time.median_us),
        format!("{low:.1}–{high:.1}"),
        format!("{:.3}", fused.median_us / time.median_us),
    ]
}

fn counts(record: &Record) -> Vec<String> {
    let Some(counts) = record.counts else { return vec![record.layer()] };
    vec![
        record.layer(),
        counts.launches.to_string(),
        megabytes(counts.dram_bytes),
        megabytes(counts.l2_bytes),
        operations(&counts),
    ]
}

fn counts_beside(record: &Record, fused: &Record) -> Vec<String> {
    let (Some(counts), Some(fused)) = (record.counts, fused.counts) else {
        return vec![record.contender.clone()];
    };
    let ratio = |fused: u64, other: u64| format!("{:.2}", fused as f64 / other as f64);
    vec![
        record.contender.clone(),
        counts.launches.to_string(),
        ratio(fused.launches, counts.launches),
        megabytes(counts.dram_bytes),
        ratio(fused.dram_bytes, counts.dram_bytes),
        megabytes(counts.l2_bytes),
        operations(&counts),
    ]
}

fn operations(counts: &Counts) -> String {
    if counts.mma > 0 { format!("{:.2}", counts.flop() as f64 / 1e6) } else { unknown() }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.3}", bytes as f64 / 1e6)
}

fn unknown() -> String {
    "–".to_owned()
}

/// Columns of one width, the first to the left and the others to the right.
fn table(text: &mut String, heads: &[&str], rows: Vec<Vec<String>>) {
    let heads: Vec<String> = heads.iter().map(|&head| head.to_owned()).collect();
    let all = || [&heads].into_iter().chain(&rows);
    let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_else(unknown);
    let width = |column| all().map(|row| cell(row, column).chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heads.len()).map(|column| width(column).max(3)).collect();
    for (i, row) in all().enumerate() {
        for (column, width) in widths.iter().enumerate() {
            let cell = cell(row, column);
            let _ = match column {
                0 => write!(text, "| {cell:width$} "),
                _ => write!(text, "| {cell:>width$} "),
            };
        }
        *text += "|\n";
        if i == 0 {
            for (column, &width) in widths.iter().enumerate() {
                let line = "-".repeat(width);
                let _ = match column {
                    0 => write!(text, "| {line} "),
                    _ => write!(text, "| {}: ", &line[1..]),
                };
            }
            *text += "|\n";
        }
    }
    *text += "\n";
}
