//! `loss.svg`: the training loss of all methods.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use crate::METHODS;

/// Each point is the mean loss of so many steps, the last of which is the point's.
pub const WINDOW: usize = 10;

/// Where the logarithmic axis ends at the latest.
const LOWEST_LOSS: f64 = 1e-6;

const SIZE: (u32, u32) = (800, 500);
/// One per method.
pub const COLORS: [RGBColor; METHODS.len()] = [
    RGBColor(120, 120, 120),
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(23, 190, 207),
    RGBColor(255, 127, 14),
    RGBColor(148, 103, 189),
];

/// Draws one curve per method.
pub fn loss_curves(
    path: &Path,
    title: &str,
    curves: &[(&str, &[f32])],
) -> Result<(), Box<dyn Error>> {
    let curves: Vec<_> = curves.iter().map(|&(name, losses)| (name, smoothed(losses))).collect();
    let points = || curves.iter().flat_map(|(_, points)| points);
    let steps = points().map(|point| point.0).fold(1.0, f64::max);
    let losses = || points().map(|point| point.1);
    if losses().any(|loss| !loss.is_finite()) {
        return Err("the loss is not finite: lower the learning rate (--lr)".into());
    }
    let lowest = losses().fold(f64::MAX, f64::min).max(LOWEST_LOSS);
    let highest = losses().fold(lowest, f64::max);

    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..steps, (lowest / 1.2..highest * 1.2).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("step")
        .y_desc(format!("training loss (cross-entropy, mean of {WINDOW} steps)"))
        .x_label_formatter(&|step| format!("{step:.0}"))
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 16))
        .draw()?;
    for ((name, points), color) in curves.into_iter().zip(COLORS) {
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], color.stroke_width(3)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .legend_area_size(32)
        .margin(12)
        .label_font(("sans-serif", 15))
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}

/// `(step, mean loss of the last WINDOW steps)`; over fewer at the start.
fn smoothed(losses: &[f32]) -> Vec<(f64, f64)> {
    (1..=losses.len())
        .map(|step| {
            let window = &losses[step.saturating_sub(WINDOW)..step];
            let sum: f64 = window.iter().map(|&loss| f64::from(loss)).sum();
            (step as f64, sum / window.len() as f64)
        })
        .collect()
}
