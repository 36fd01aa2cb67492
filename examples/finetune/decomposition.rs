//! `decomposition.svg`: how magnitudes and directions change together, method by method, as in the
//! DoRA paper's analysis (arXiv:2402.09353, §3.2).

use std::error::Error;
use std::path::Path;

use fused_dora::Decomposition;
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::plot::COLORS;

const SIZE: (u32, u32) = (900, 760);
const TITLE_HEIGHT: u32 = 40;
const POINT_SIZE: i32 = 5;
/// Points darken from the first checkpoint to the last.
const FAINTEST: f64 = 0.25;
/// Room beyond the outermost points.
const ROOM: f64 = 1.1;

/// How far each layer had moved at each checkpoint.
pub type Checkpoints = [Vec<Decomposition>];

/// The least-squares line ΔM = slope·ΔD + intercept over all layers and checkpoints.
#[derive(Clone, Copy)]
pub struct Fit {
    /// ΔM per ΔD.
    pub slope: f64,
    /// ΔM where ΔD is 0.
    pub intercept: f64,
    /// Pearson's coefficient of correlation.
    pub correlation: f64,
}

impl Fit {
    /// `None` where there are not two different ΔD.
    pub fn new(checkpoints: &Checkpoints) -> Option<Self> {
        let points = || checkpoints.iter().flatten();
        let count = points().count() as f64;
        let mean = |of: &dyn Fn(&Decomposition) -> f64| points().map(of).sum::<f64>() / count;
        let (direction, magnitude) = (mean(&|p| p.direction), mean(&|p| p.magnitude));
        let spread = mean(&|p| (p.direction - direction).powi(2));
        let together = mean(&|p| (p.direction - direction) * (p.magnitude - magnitude));
        let of_magnitude = mean(&|p| (p.magnitude - magnitude).powi(2));
        let slope = together / spread;
        (spread > 0.0).then(|| Self {
            slope,
            intercept: magnitude - slope * direction,
            correlation: together / (spread * of_magnitude).sqrt(),
        })
    }

    /// The ends of the line within a panel.
    fn within(self, directions: f64, magnitudes: f64) -> [(f64, f64); 2] {
        let reaches = |magnitude: f64| (magnitude - self.intercept) / self.slope;
        let (one, other) = (reaches(0.0), reaches(magnitudes));
        [one.min(other).max(0.0), one.max(other).min(directions)]
            .map(|direction| (direction, self.intercept + self.slope * direction))
    }
}

/// Draws a panel per method, all of one scale; points darken with the steps.
pub fn draw(
    path: &Path,
    title: &str,
    methods: &[(&str, &Checkpoints)],
) -> Result<(), Box<dyn Error>> {
    let points = || methods.iter().flat_map(|(_, checkpoints)| checkpoints.iter().flatten());
    if points().any(|point| !(point.direction.is_finite() && point.magnitude.is_finite())) {
        return Err("the weights are not finite: lower the learning rate (--lr)".into());
    }
    let most = |of: &dyn Fn(&Decomposition) -> f64| {
        points().map(of).fold(f64::MIN_POSITIVE, f64::max) * ROOM
    };
    let extent = [most(&|point| point.direction), most(&|point| point.magnitude)];

    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (top, rest) = root.split_vertically(TITLE_HEIGHT);
    let title = format!("{title} (points darken with the steps)");
    top.titled(&title, ("sans-serif", 20))?;
    let panels = rest.split_evenly((methods.len().div_ceil(2), 2));
    for ((panel, &(name, checkpoints)), color) in panels.iter().zip(methods).zip(COLORS) {
        draw_panel(panel, name, checkpoints, color, extent)?;
    }
    root.present()?;
    Ok(())
}

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'b, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

fn draw_panel(
    panel: &Panel<'_>,
    name: &str,
    checkpoints: &Checkpoints,
    color: RGBColor,
    [directions, magnitudes]: [f64; 2],
) -> Result<(), Box<dyn Error>> {
    let fit = Fit::new(checkpoints);
    let caption = match fit {
        Some(Fit { slope, .. }) => format!("{name}: slope {slope:.2}"),
        None => name.to_owned(),
    };
    let mut chart = ChartBuilder::on(panel)
        .caption(caption, ("sans-serif", 17))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..directions, 0.0..magnitudes)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("ΔD, change of direction")
        .y_desc("ΔM, change of magnitude")
        .x_labels(6)
        .y_labels(6)
        .label_style(("sans-serif", 13))
        .axis_desc_style(("sans-serif", 14))
        .draw()?;
    if let Some(fit) = fit {
        let line = fit.within(directions, magnitudes);
        chart.draw_series(LineSeries::new(line, color.mix(0.6).stroke_width(2)))?;
    }
    let layers = checkpoints.first().map_or(0, Vec::len);
    for layer in 0..layers {
        draw_layer(&mut chart, layer, checkpoints, color)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .legend_area_size(16)
        .margin(8)
        .label_font(("sans-serif", 13))
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

/// The points of one layer, in the shape of its own.
fn draw_layer(
    chart: &mut Chart<'_, '_>,
    layer: usize,
    checkpoints: &Checkpoints,
    color: RGBColor,
) -> Result<(), Box<dyn Error>> {
    let faintness = (1.0 - FAINTEST) / checkpoints.len() as f64;
    let points = checkpoints.iter().enumerate().map(|(index, layers)| {
        let Decomposition { direction, magnitude } = layers[layer];
        ((direction, magnitude), color.mix(FAINTEST + faintness * (index + 1) as f64))
    });
    let label = format!("layer {}", layer + 1);
    match layer {
        0 => chart
            .draw_series(points.map(|(at, color)| Circle::new(at, POINT_SIZE, color.filled())))?
            .label(label)
            .legend(move |at| Circle::new(at, POINT_SIZE, color.filled())),
        1 => chart
            .draw_series(
                points.map(|(at, color)| TriangleMarker::new(at, POINT_SIZE + 1, color.filled())),
            )?
            .label(label)
            .legend(move |at| TriangleMarker::new(at, POINT_SIZE + 1, color.filled())),
        _ => chart
            .draw_series(
                points.map(|(at, color)| Cross::new(at, POINT_SIZE, color.stroke_width(2))),
            )?
            .label(label)
            .legend(move |at| Cross::new(at, POINT_SIZE, color.stroke_width(2))),
    };
    Ok(())
}
