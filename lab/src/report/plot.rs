//! Times by tokens and by rank, and their ratios to the plain layer's.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use fused_dora_testkit::bench::record::{MICRO_BATCH, Record, Results};

/// What ratios are to: of plain layers the first, whose products are those of all other layers of
/// separate ops.
const PLAIN: &str = "plain linear";

/// The phases that are drawn.
const PHASES: [&str; 3] = [MICRO_BATCH, "forward", "backward"];

const SIZE: (u32, u32) = (960, 500);
/// Where the names of the curves begin.
const LEGEND_LEFT: i32 = 720;
const LEGEND_STEP: i32 = 24;
const COLORS: [RGBColor; 9] = [
    RGBColor(214, 39, 40),
    RGBColor(127, 127, 127),
    RGBColor(188, 189, 34),
    RGBColor(31, 119, 180),
    RGBColor(23, 190, 207),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(140, 86, 75),
];

/// A file next to the report.
pub struct Picture {
    pub file: String,
    pub title: String,
}

/// What a picture's horizontal axis is.
#[derive(Clone, Copy)]
struct Axis {
    /// As in file names.
    name: &'static str,
    label: &'static str,
    of: fn(&Record) -> usize,
    /// What must be the same in all of a picture.
    fixed: fn(&Record) -> [usize; 3],
}

const AXES: [Axis; 2] = [
    Axis {
        name: "tokens",
        label: "tokens",
        of: |record| record.tokens,
        fixed: |record| [record.in_features, record.out_features, record.rank],
    },
    Axis {
        name: "rank",
        label: "rank",
        of: |record| record.rank,
        fixed: |record| [record.in_features, record.out_features, record.tokens],
    },
];

/// A contender's name, its color, and its points.
type Curve = (String, RGBColor, Vec<(f64, f64)>);

/// Draws what there are times of.
pub fn draw_all(folder: &Path, results: &[Results]) -> Result<Vec<Picture>, Box<dyn Error>> {
    let layers = results.iter().filter(|results| results.bench.starts_with("layer"));
    let records = layers.flat_map(|results| &results.records);
    let timed = |record: &&Record| {
        PHASES.contains(&record.phase.as_str()) && !record.graph && record.time.is_some()
    };
    let records: Vec<&Record> = records.filter(timed).collect();
    let mut kinds: Vec<[&str; 3]> = Vec::new();
    for record in &records {
        let kind = [record.phase.as_str(), record.dtype.as_str(), record.norm.as_str()];
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let mut pictures = Vec::new();
    for [phase, dtype, norm] in kinds {
        let of_kind = |record: &&&Record| {
            [&record.phase, &record.dtype, &record.norm] == [phase, dtype, norm]
        };
        let of_kind: Vec<&Record> = records.iter().filter(of_kind).copied().collect();
        for axis in AXES {
            let Some(of_layer) = longest(&of_kind, axis) else { continue };
            let layer = of_layer[0];
            let (inputs, outputs) = (layer.in_features, layer.out_features);
            let fixed = match axis.name {
                "tokens" => format!("r={}", layer.rank),
                _ => format!("T={}", layer.tokens),
            };
            let of = format!("{dtype}, norm {norm}, I={inputs}, O={outputs}, {fixed}");
            let name = format!("{}-{dtype}-{}", axis.name, norm.to_lowercase());
            let curves = curves(&of_layer, axis);
            let ratios = ratios(&curves);
            let what = [("time", "µs", curves), ("ratio", "time / that of plain linear", ratios)];
            for (what, label, curves) in what.into_iter().filter(|(.., curves)| !curves.is_empty())
            {
                let title = format!("{phase}, {what} by {}: {of}", axis.label);
                let part = if phase == MICRO_BATCH { "" } else { &format!("{phase}-") };
                let file = format!("{part}{what}-by-{name}.svg");
                let path = folder.join(&file);
                draw(&path, &title, axis.label, label, &curves)
                    .map_err(|error| format!("{} cannot be drawn: {error}", path.display()))?;
                pictures.push(Picture { file, title });
            }
        }
    }
    Ok(pictures)
}

/// The records of the layer that most values of the axis were measured of, two at least.
fn longest<'a>(records: &[&'a Record], axis: Axis) -> Option<Vec<&'a Record>> {
    let of_layer = |layer: &&'a Record| -> Vec<&'a Record> {
        let fixed = (axis.fixed)(layer);
        records.iter().filter(|record| (axis.fixed)(record) == fixed).copied().collect()
    };
    let values = |records: &Vec<&Record>| {
        let mut values: Vec<usize> = records.iter().map(|record| (axis.of)(record)).collect();
        values.sort_unstable();
        values.dedup();
        values.len()
    };
    let longest = records.iter().map(of_layer).max_by_key(|records| values(records))?;
    (values(&longest) > 1).then_some(longest)
}

/// The time of each contender, in the order of the axis.
fn curves(records: &[&Record], axis: Axis) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    for record in records {
        let Some(time) = record.time else { continue };
        let point = ((axis.of)(record) as f64, time.median_us);
        match curves.iter_mut().find(|(name, ..)| *name == record.contender) {
            Some((.., points)) => points.push(point),
            None => {
                let color = COLORS[curves.len() % COLORS.len()];
                curves.push((record.contender.clone(), color, vec![point]));
            }
        }
    }
    curves.iter_mut().for_each(|(.., points)| points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    curves
}

/// The curves, each point over that of the first plain layer; none if there is no such layer.
fn ratios(curves: &[Curve]) -> Vec<Curve> {
    let Some((.., base)) = curves.iter().find(|(name, ..)| name.starts_with(PLAIN)) else {
        return Vec::new();
    };
    let of = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
        let at = |x: f64| base.iter().find(|point| point.0 == x);
        points.iter().filter_map(|&(x, y)| Some((x, y / at(x)?.1))).collect()
    };
    curves.iter().map(|(name, color, points)| (name.clone(), *color, of(points))).collect()
}

fn draw(
    path: &Path,
    title: &str,
    x_label: &str,
    y_label: &str,
    curves: &[Curve],
) -> Result<(), Box<dyn Error>> {
    let points = || curves.iter().flat_map(|(.., points)| points);
    let mut ticks: Vec<f64> = points().map(|point| point.0).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    let (Some(&first), Some(&last)) = (ticks.first(), ticks.last()) else { return Ok(()) };
    let lowest = points().map(|point| point.1).fold(f64::MAX, f64::min);
    let highest = points().map(|point| point.1).fold(f64::MIN_POSITIVE, f64::max);

    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, _) = root.split_horizontally(LEGEND_LEFT - 16);
    let mut chart = ChartBuilder::on(&left)
        .caption(title, ("sans-serif", 16))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(
            (first..last).log_scale().with_key_points(ticks),
            (lowest / 1.2..highest * 1.2).log_scale().base(2.0),
        )?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc(x_label)
        .y_desc(y_label)
        .x_label_formatter(&|value| format!("{value:.0}"))
        .y_label_formatter(&|value| format!("{value}"))
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 16))
        .draw()?;
    for (i, (name, color, points)) in curves.iter().enumerate() {
        chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?;
        chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, color.filled())))?;
        let y = 60 + LEGEND_STEP * i as i32;
        let line = [(LEGEND_LEFT, y), (LEGEND_LEFT + 24, y)];
        root.draw(&PathElement::new(line, color.stroke_width(3)))?;
        let place = (LEGEND_LEFT + 32, y - 7);
        root.draw(&Text::new(name.as_str(), place, ("sans-serif", 14)))?;
    }
    root.present()?;
    Ok(())
}
