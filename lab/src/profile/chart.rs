//! The profile as a picture: a panel for each launch, a bar for each resource.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::{GpuFigures, Launch, Layer, OnGpu};
use super::table::label;
use crate::model::Resource;

/// One for each norm axis.
const COLUMNS: usize = 2;
const PANEL: (u32, u32) = (520, 204);
const HEAD: u32 = 96;
const MARGIN: i32 = 14;

/// Within a panel: where bars begin and end, where their numbers end, and how they are stacked.
const BARS_LEFT: i32 = 118;
const BARS_RIGHT: i32 = PANEL.0 as i32 - 116;
const NUMBERS_RIGHT: i32 = PANEL.0 as i32 - 40;
const FIRST_BAR: i32 = 40;
const BAR_STEP: i32 = 24;
const BAR_HEIGHT: i32 = 15;

const DARK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(120, 120, 120);
const FLOOR: RGBColor = RGBColor(0, 0, 0);

fn color(resource: Resource) -> RGBColor {
    match resource {
        Resource::Tensor => RGBColor(31, 119, 180),
        Resource::Issue => RGBColor(148, 103, 189),
        Resource::Shared => RGBColor(44, 160, 44),
        Resource::L2 => RGBColor(255, 127, 14),
        Resource::Dram => RGBColor(214, 39, 40),
        Resource::Launch => RGBColor(127, 127, 127),
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Outcome = Result<(), Box<dyn Error>>;

fn font(size: u32, color: RGBColor, horizontal: HPos, bold: bool) -> TextStyle<'static> {
    let style = if bold { FontStyle::Bold } else { FontStyle::Normal };
    TextStyle {
        font: FontDesc::new(FontFamily::SansSerif, size.into(), style),
        color: color.to_backend_color(),
        pos: Pos::new(horizontal, VPos::Center),
    }
}

/// Draws the launches of one layer on one GPU.
pub fn draw(path: &Path, gpu: &GpuFigures, layer: &Layer, launches: &[&Launch]) -> Outcome {
    let rows = launches.len().div_ceil(COLUMNS).max(1) as u32;
    let size = (COLUMNS as u32 * PANEL.0, HEAD + rows * PANEL.1 + MARGIN as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(HEAD);
    let title =
        format!("{}: modelled bounds on {} ({})", layer.shape(), gpu.name, gpu.architecture);
    let left = |size, color, bold| font(size, color, HPos::Left, bold);
    head.draw(&Text::new(title, (MARGIN, 24), left(22, DARK, true)))?;
    let about = "For each launch (norm axis): µs that each resource is busy at least, from counts \
                 and published peak rates; not measured. Scales differ.";
    head.draw(&Text::new(about, (MARGIN, 50), left(14, DARK, false)))?;
    legend(&head)?;
    let (panels, _margin) = body.split_vertically(rows * PANEL.1);
    for (panel, launch) in panels.split_evenly((rows as usize, COLUMNS)).iter().zip(launches) {
        if let Some(on_gpu) = launch.on_gpus.iter().find(|on_gpu| on_gpu.gpu == gpu.name) {
            draw_panel(panel, launch, on_gpu)?;
        }
    }
    root.present()?;
    Ok(())
}

/// What the marks mean.
fn legend(head: &Area<'_>) -> Outcome {
    const LINE: i32 = 76;
    let text = || font(14, DARK, HPos::Left, false);
    let bar = |x: i32, filled| {
        let shape = [(x, LINE - 6), (x + 24, LINE + 6)];
        let color = color(Resource::Tensor);
        let style = if filled { color.filled() } else { color.mix(0.35).filled() };
        Rectangle::new(shape, style)
    };
    head.draw(&bar(MARGIN, true))?;
    head.draw(&Text::new("the resource that bounds the launch", (MARGIN + 32, LINE), text()))?;
    head.draw(&bar(310, false))?;
    head.draw(&Text::new("other resources", (342, LINE), text()))?;
    head.draw(&floor_mark(480, LINE - 8, LINE + 8))?;
    let floor = "bound of the compulsory bytes and the least tensor-core products alone";
    head.draw(&Text::new(floor, (490, LINE), text()))?;
    Ok(())
}

fn floor_mark(x: i32, top: i32, bottom: i32) -> PathElement<(i32, i32)> {
    PathElement::new([(x, top), (x, bottom)], FLOOR.stroke_width(2))
}

fn draw_panel(panel: &Area<'_>, launch: &Launch, on_gpu: &OnGpu) -> Outcome {
    let (bounds, occupancy) = (&on_gpu.bounds, &on_gpu.occupancy);
    panel.draw(&Text::new(label(launch), (MARGIN, 16), font(15, DARK, HPos::Left, true)))?;
    let longest = bounds.bound().max(on_gpu.floor.bound()).max(f64::MIN_POSITIVE);
    let length = f64::from(BARS_RIGHT - BARS_LEFT);
    let place = |value: f64| BARS_LEFT + (length * value / longest).round() as i32;
    for (index, resource) in Resource::ALL.into_iter().enumerate() {
        let top = FIRST_BAR + BAR_STEP * index as i32;
        let (middle, value) = (top + BAR_HEIGHT / 2, bounds.of(resource));
        let binds = resource == bounds.binding();
        let name = font(13, DARK, HPos::Right, binds);
        panel.draw(&Text::new(resource.name(), (BARS_LEFT - 8, middle), name))?;
        let shape = [(BARS_LEFT, top), (place(value).max(BARS_LEFT + 1), top + BAR_HEIGHT)];
        let color = color(resource);
        let style = if binds { color.filled() } else { color.mix(0.35).filled() };
        panel.draw(&Rectangle::new(shape, style))?;
        let number = font(13, DARK, HPos::Right, binds);
        panel.draw(&Text::new(format!("{value:.1} µs"), (NUMBERS_RIGHT, middle), number))?;
    }
    let bottom = FIRST_BAR + BAR_STEP * Resource::ALL.len() as i32 - (BAR_STEP - BAR_HEIGHT);
    panel.draw(&floor_mark(place(on_gpu.floor.bound()), FIRST_BAR - 5, bottom + 5))?;
    let plural = if occupancy.blocks() == 1 { "" } else { "s" };
    let foot = format!(
        "{} block{plural} per SM (by {}), {} registers",
        occupancy.blocks(),
        occupancy.limited_by().join(", "),
        on_gpu.registers
    );
    panel.draw(&Text::new(foot, (MARGIN, bottom + 14), font(12, FAINT, HPos::Left, false)))?;
    Ok(())
}
