//! The picture of `analyze`: ΔM against ΔD, a point per weight.

use fused_dora::Decomposition;
use plotters::prelude::*;

const SIZE: (u32, u32) = (800, 500);
const COLOR: RGBColor = RGBColor(31, 119, 180);

/// The picture's text.
pub fn svg(axis: &str, points: &[Decomposition]) -> Result<String, String> {
    let mut text = String::new();
    draw(&mut text, axis, points).map_err(|error| format!("--svg: cannot be drawn: {error}"))?;
    Ok(text)
}

fn draw(
    text: &mut String,
    axis: &str,
    points: &[Decomposition],
) -> Result<(), Box<dyn std::error::Error>> {
    let most = |of: fn(&Decomposition) -> f64| {
        let most = points.iter().map(of).filter(|value| value.is_finite()).fold(0.0, f64::max);
        if most > 0.0 { 1.1 * most } else { 1.0 }
    };
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("Change of the weights, by {axis}"), ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..most(|it| it.direction), 0.0..most(|it| it.magnitude))?;
    let label = |value: &f64| format!("{value:.1e}");
    chart
        .configure_mesh()
        .x_desc("ΔD, change of direction")
        .y_desc("ΔM, change of magnitude")
        .x_label_formatter(&label)
        .y_label_formatter(&label)
        .max_light_lines(4)
        .draw()?;
    chart.draw_series(
        points.iter().map(|it| Circle::new((it.direction, it.magnitude), 4, COLOR.filled())),
    )?;
    root.present()?;
    Ok(())
}
