//! `minilm.svg`: loss and accuracy of a training.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

/// Each point is the mean of so many steps, the last of which is the point's.
const WINDOW: usize = 10;

const SIZE: (u32, u32) = (1000, 440);
const GREY: RGBColor = RGBColor(120, 120, 120);
const BLUE: RGBColor = RGBColor(31, 119, 180);
const RED: RGBColor = RGBColor(214, 39, 40);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Points = Vec<(f64, f64)>;

/// Draws both curves by step.
pub fn curves(
    path: &Path,
    method: &str,
    losses: &[f64],
    right: &[f64],
    test: &[(f64, f64)],
    baseline: f64,
) -> crate::Result<()> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (left_half, right_half) = root.split_horizontally(SIZE.0 / 2);
    let steps = losses.len().max(1) as f64;
    let losses = smoothed(losses);
    let highest = losses.iter().map(|point| point.1).fold(0.1, f64::max);
    let title = format!("{method}: loss, mean of {WINDOW} steps");
    chart(&left_half, &title, steps, 1.05 * highest, &[("training", losses, BLUE)])?;
    let head = vec![(0.0, baseline), (steps, baseline)];
    let curves = [
        ("training", smoothed(right), BLUE),
        ("test", test.to_vec(), RED),
        ("head alone", head, GREY),
    ];
    chart(&right_half, &format!("{method}: accuracy"), steps, 1.0, &curves)?;
    root.present()?;
    Ok(())
}

fn chart(
    area: &Area<'_>,
    title: &str,
    steps: f64,
    highest: f64,
    curves: &[(&str, Points, RGBColor)],
) -> crate::Result<()> {
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(14)
        .x_label_area_size(40)
        .y_label_area_size(46)
        .build_cartesian_2d(0.0..steps, 0.0..highest)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("step")
        .x_label_formatter(&|step| format!("{step:.0}"))
        .label_style(("sans-serif", 14))
        .draw()?;
    for (name, points, color) in curves {
        let style = color.stroke_width(2);
        chart
            .draw_series(
                LineSeries::new(points.iter().copied(), style).point_size(if points.len() < 30 {
                    3
                } else {
                    0
                }),
            )?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], style));
    }
    if curves.len() > 1 {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .label_font(("sans-serif", 14))
            .background_style(WHITE)
            .border_style(BLACK.mix(0.3))
            .draw()?;
    }
    Ok(())
}

/// `(step, mean of the last WINDOW steps)`; over fewer at the start.
fn smoothed(values: &[f64]) -> Points {
    let mean = |step: usize| {
        let window = &values[step.saturating_sub(WINDOW)..step];
        window.iter().sum::<f64>() / window.len() as f64
    };
    (1..=values.len()).map(|step| (step as f64, mean(step))).collect()
}
