//! The model's times of launches, as `docs/PERFORMANCE.md` has them, next to measured ones.

use fused_dora_testkit::bench::record::{FUSED, Record, Results};

/// The page that `cargo xtask limits --write` puts the model's table into.
const PAGE: &str = include_str!("../../../docs/PERFORMANCE.md");

/// What the table's first line begins with.
const HEADER: &str = "| GPU | T | r | plain forward, backward, µs |";

/// The layer that is modelled.
const FEATURES: [usize; 2] = [4096, 4096];

/// GPUs by a part of the names that they give themselves, and the model that is nearest.
const MODELS: [(&str, &str); 6] = [
    ("A100", "A100"),
    ("RTX 4090", "RTX 4090"),
    ("RTX 5090", "RTX 5090"),
    ("H100", "H100"),
    ("H200", "H100"),
    ("GH200", "H100"),
];

/// The plain layer with the crate's own products, which the model's ratios are over.
const OWN_PLAIN: &str = "plain linear (own GEMM)";

/// A row of the table: µs of the plain forward and backward, and ratios of the fused ones.
#[derive(Debug, PartialEq)]
struct Row {
    tokens: usize,
    rank: usize,
    plain_us: [f64; 2],
    /// Forward with norm axis output and input, then backward.
    ratios: [[f64; 2]; 2],
}

/// The model that is nearest to a device.
fn nearest(device: &str) -> Option<&'static str> {
    MODELS.iter().find(|(part, _)| device.contains(part)).map(|&(_, model)| model)
}

/// The rows of a model.
fn rows(page: &str, model: &str) -> Vec<Row> {
    let table = page.lines().skip_while(|line| !line.starts_with(HEADER));
    let lines = table.skip(2).take_while(|line| line.starts_with('|'));
    // A range may follow a number.
    let number = |cell: &str| cell.split_whitespace().next()?.parse::<f64>().ok();
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let &[gpu, tokens, rank, plain, forward, input, backward, input_back, ..] = &cells[..]
        else {
            return None;
        };
        let (plain, plain_back) = plain.split_once(", ")?;
        (gpu == model).then_some(())?;
        Some(Row {
            tokens: tokens.parse().ok()?,
            rank: rank.parse().ok()?,
            plain_us: [number(plain)?, number(plain_back)?],
            ratios: [[number(forward)?, number(input)?], [number(backward)?, number(input_back)?]],
        })
    };
    lines.filter_map(row).collect()
}

/// What was measured and is modelled: of each launch its layer, then plain µs and the fused ratio, both
/// measured and modelled. Empty where nothing was timed.
pub fn compared(results: &[Results]) -> Option<(&'static str, Vec<Vec<String>>)> {
    let layers = results.iter().find(|results| results.bench == "layers" && !results.emulated)?;
    let model = nearest(&layers.device)?;
    let rows = rows(PAGE, model);
    let modelled = |record: &&Record| {
        let bf16 = record.dtype == "bf16" && !record.graph;
        bf16 && [record.in_features, record.out_features] == FEATURES && record.contender == FUSED
    };
    let mut table = Vec::new();
    for fused in layers.records.iter().filter(modelled) {
        let is_plain = |r: &&Record| r.contender == OWN_PLAIN && r.compares_with(fused);
        let (Some(plain), Some(row)) = (
            layers.records.iter().find(is_plain),
            rows.iter().find(|row| [row.tokens, row.rank] == [fused.tokens, fused.rank]),
        ) else {
            continue;
        };
        let Some((time, plain)) = fused.time.zip(plain.time) else { continue };
        let Some(phase) = ["forward", "backward"].iter().position(|&name| name == fused.phase)
        else {
            continue;
        };
        let Some(axis) = ["Output", "Input"].iter().position(|&name| name == fused.norm) else {
            continue;
        };
        table.push(vec![
            format!("{}, norm={} T={} r={}", fused.phase, fused.norm, fused.tokens, fused.rank),
            format!("{:.0}", plain.median_us),
            format!("{:.0}", row.plain_us[phase]),
            format!("{:.2}", time.median_us / plain.median_us),
            format!("{:.2}", row.ratios[phase][axis]),
        ]);
    }
    (!table.is_empty()).then_some((model, table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_rows_of_every_model() {
        for (_, model) in MODELS {
            let rows = rows(PAGE, model);
            let typical = rows.iter().find(|row| [row.tokens, row.rank] == [8192, 16]);
            let typical = typical.expect("the typical layer");
            for ratio in typical.ratios.concat() {
                assert!((0.8..2.0).contains(&ratio), "{model}: {typical:?}");
            }
            assert!(typical.plain_us.iter().all(|&time| time > 100.0), "{model}: {typical:?}");
        }
    }

    #[test]
    fn devices_have_the_nearest_model() {
        assert_eq!(nearest("NVIDIA A100-SXM4-80GB"), Some("A100"));
        assert_eq!(nearest("NVIDIA H200"), Some("H100"));
        assert_eq!(nearest("NVIDIA GeForce RTX 3090"), None);
    }
}
