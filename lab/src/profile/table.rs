//! The profile as text.

use std::fmt::Write as _;

use cuda_emulator::InstructionClass;
use fused_dora::Dtype;

use super::report::{Launch, Layer, NormAxis, OnGpu, Report};
use crate::model::Resource;
use crate::work::{Kernel, compulsory_of_op};

/// The launches by layers that differ in more than the norm axis.
pub fn by_shape(launches: &[Launch]) -> Vec<(Layer, Vec<&Launch>)> {
    let mut groups: Vec<(Layer, Vec<&Launch>)> = Vec::new();
    for launch in launches {
        match groups.iter_mut().find(|(layer, _)| layer.shape() == launch.layer.shape()) {
            Some((_, group)) => group.push(launch),
            None => groups.push((launch.layer, vec![launch])),
        }
    }
    groups.iter_mut().for_each(|(_, group)| group.sort_by_key(|launch| launch.kernel));
    groups
}

/// A launch by its kernel and norm axis.
pub fn label(launch: &Launch) -> String {
    format!("{} ({})", launch.kernel.name(), launch.layer.norm.name())
}

/// Columns of text under their heads, the first to the left and the others to the right.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(heads: &[&str]) -> Self {
        Self { rows: vec![heads.iter().map(|&head| head.to_owned()).collect()] }
    }

    fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    fn write(&self, text: &mut String) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                match column {
                    0 => line += &format!("  {cell:<width$}"),
                    _ => line += &format!("  {cell:>width$}"),
                }
            }
            *text += line.trim_end();
            text.push('\n');
        }
        text.push('\n');
    }
}

/// Everything.
pub fn text(report: &Report) -> String {
    let mut text = format!("{}\n\n", report.note);
    let gpus: Vec<&str> = report.gpus.iter().map(|gpu| gpu.name.as_str()).collect();
    let _ = writeln!(
        text,
        "Launches as planned for an {}; {}; registers by NVRTC {}; GPUs: {}.\n",
        report.counted_on,
        report.dtype,
        report.nvrtc,
        gpus.join(", ")
    );
    for (layer, launches) in by_shape(&report.launches) {
        let _ = writeln!(text, "== {} ==\n", layer.shape());
        traffic(&launches, &mut text);
        ops(&launches, &mut text);
        work(&launches, &mut text);
        classes(&launches, &mut text);
        for (index, gpu) in report.gpus.iter().enumerate() {
            let on_gpu = |launch: &&Launch| launch.on_gpus.get(index).cloned();
            let rows: Vec<_> = launches.iter().map(|launch| (*launch, on_gpu(launch))).collect();
            bounds(&gpu.name, &rows, &mut text);
        }
    }
    resources(report, &mut text);
    text
}

fn megabytes(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / 1e6)
}

fn ratio(part: u64, whole: u64) -> String {
    if whole == 0 { "–".to_owned() } else { format!("{:.2}", part as f64 / whole as f64) }
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "–".to_owned() } else { format!("{:.1}", 100.0 * part as f64 / whole as f64) }
}

/// Bytes that move, against those that must.
fn traffic(launches: &[&Launch], text: &mut String) {
    *text += "Bytes in MB: those that must move, those that device memory moves (each once), and\n\
              those between multiprocessors and L2; sectors per request, (the fewest possible)\n";
    let mut table = Table::new(&[
        "launch (norm axis)",
        "compulsory",
        "DRAM",
        "ratio",
        "L2",
        "ratio",
        "read",
        "(least)",
        "write",
        "(least)",
    ]);
    for launch in launches {
        let (counts, compulsory) = (&launch.counts, launch.compulsory_bytes());
        table.row(vec![
            label(launch),
            megabytes(compulsory),
            megabytes(counts.dram_bytes()),
            ratio(counts.dram_bytes(), compulsory),
            megabytes(counts.l2_bytes()),
            ratio(counts.l2_bytes(), compulsory),
            ratio(counts.sectors_read, counts.global_loads),
            format!("({})", ratio(counts.least_sectors_read, counts.global_loads)),
            ratio(counts.sectors_written, counts.global_stores),
            format!("({})", ratio(counts.least_sectors_written, counts.global_stores)),
        ]);
    }
    table.write(text);
}

/// The same for whole ops.
fn ops(launches: &[&Launch], text: &mut String) {
    *text += "Bytes in MB of ops of several launches, which share inputs and hand results on\n";
    let mut table = Table::new(&["op (norm axis)", "compulsory", "DRAM", "ratio"]);
    for op in ["norm_gradient"] {
        for norm in [NormAxis::Output, NormAxis::Input] {
            let of_op = |launch: &&&Launch| launch.kernel.op() == op && launch.layer.norm == norm;
            let of_op: Vec<_> = launches.iter().filter(of_op).collect();
            let tensors = of_op.iter().map(|launch| launch.compulsory.as_slice());
            let compulsory = compulsory_of_op(tensors);
            let moved = of_op.iter().map(|launch| launch.counts.dram_bytes()).sum();
            table.row(vec![
                format!("{op} ({})", norm.name()),
                megabytes(compulsory),
                megabytes(moved),
                ratio(moved, compulsory),
            ]);
        }
    }
    table.write(text);
}

/// Products, conflicts and what else is counted.
fn work(launches: &[&Launch], text: &mut String) {
    *text += "Work: wavefronts beyond those without bank conflicts, and tensor-core products\n\
              against the fewest that padding allows and as a share of all instructions\n";
    let mut table = Table::new(&[
        "launch (norm axis)",
        "blocks",
        "instructions",
        "wavefronts",
        "conflicts %",
        "mma",
        "/ least",
        "mma %",
        "local",
        "atomics",
        "barriers",
    ]);
    for launch in launches {
        let counts = &launch.counts;
        let conflicts = counts.shared_wavefronts - counts.least_shared_wavefronts;
        let blocks: u64 = launch.grid.iter().map(|&extent| u64::from(extent)).product();
        table.row(vec![
            label(launch),
            blocks.to_string(),
            counts.instructions.to_string(),
            counts.shared_wavefronts.to_string(),
            percent(conflicts, counts.least_shared_wavefronts),
            counts.mma.to_string(),
            ratio(counts.mma, launch.least_mma),
            percent(counts.mma, counts.instructions),
            counts.local_requests.to_string(),
            counts.atomics.to_string(),
            counts.barriers.to_string(),
        ]);
    }
    table.write(text);
}

/// Shares of the classes that any launch has, in percent.
fn classes(launches: &[&Launch], text: &mut String) {
    *text += "PTX warp instructions by class, in percent\n";
    let count = |launch: &Launch, class: InstructionClass| {
        launch.counts.by_class.get(class.name()).copied().unwrap_or(0)
    };
    let any = |&class: &InstructionClass| launches.iter().any(|launch| count(launch, class) > 0);
    let present: Vec<_> = InstructionClass::ALL.into_iter().filter(any).collect();
    let heads: Vec<_> = present.iter().map(|class| class.name()).collect();
    let mut table = Table::new(&[&["launch (norm axis)"], &heads[..]].concat());
    for launch in launches {
        let share = |&class| percent(count(launch, class), launch.counts.instructions);
        table.row([label(launch)].into_iter().chain(present.iter().map(share)).collect());
    }
    table.write(text);
}

/// What bounds each launch on one GPU.
fn bounds(gpu: &str, rows: &[(&Launch, Option<OnGpu>)], text: &mut String) {
    let _ = writeln!(
        text,
        "{gpu}, modelled: µs that each resource is busy at least (a device may issue somewhat\n\
         fewer instructions than the PTX has), the one that bounds the launch, the bound of the\n\
         compulsory work alone, and blocks per multiprocessor with what limits them"
    );
    let mut table = Table::new(&[
        "launch (norm axis)",
        "tensor",
        "issue",
        "shared",
        "L2",
        "DRAM",
        "launch",
        "bound by",
        "bound",
        "floor",
        "blocks/SM",
        "limited by",
    ]);
    for (launch, on_gpu) in rows {
        let Some(on_gpu) = on_gpu else { continue };
        let micro = |value: f64| format!("{value:.1}");
        let mut cells = vec![label(launch)];
        cells.extend(Resource::ALL.map(|resource| micro(on_gpu.bounds.of(resource))));
        cells.extend([
            on_gpu.bounds.binding().name().to_owned(),
            micro(on_gpu.bounds.bound()),
            micro(on_gpu.floor.bound()),
            on_gpu.occupancy.blocks().to_string(),
            on_gpu.occupancy.limited_by().join(", "),
        ]);
        table.row(cells);
    }
    table.write(text);
}

/// Registers and spills of all kernels on all architectures.
fn resources(report: &Report, text: &mut String) {
    *text += "Registers per thread, and bytes of spill stores + loads where there are any\n";
    let mut architectures: Vec<&str> = Vec::new();
    for resources in &report.resources {
        if !architectures.contains(&resources.architecture.as_str()) {
            architectures.push(&resources.architecture);
        }
    }
    let mut table = Table::new(&["kernel"]);
    table.rows[0].extend(architectures.iter().map(|&name| name.to_owned()));
    let dtypes = Dtype::ALL.map(Dtype::name);
    let entry = |kernel: Kernel| dtypes.map(|dtype| format!("{}_{dtype}", kernel.name()));
    for entry in Kernel::ALL.into_iter().flat_map(entry) {
        let of_entry = || report.resources.iter().filter(|r| r.kernel == entry);
        let cell = |architecture: &&str| {
            let known = of_entry().find(|r| r.architecture == *architecture);
            known.map_or("–".to_owned(), |r| match (r.spill_store_bytes, r.spill_load_bytes) {
                (0, 0) => r.registers.to_string(),
                (stores, loads) => format!("{} ({stores} + {loads} spilled)", r.registers),
            })
        };
        let cells = architectures.iter().map(cell);
        table.row([entry.clone()].into_iter().chain(cells).collect());
    }
    table.write(text);
}
