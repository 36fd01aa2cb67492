//! The layers that are measured, the ops on them, and the records of what was measured.

pub mod case;
pub mod device;
pub mod layer;
pub mod op;
pub mod record;

use std::error::Error;

use half::bf16;

pub use case::{Case, cases};
pub use device::Device;
pub use op::{NF4, Op};
use record::{ALONE, Counts, FUSED, Record, Results, Time};

/// The layer that is profiled.
pub type Layer = layer::Layer<bf16>;

/// What measuring returns.
pub type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Results of a bench to come.
pub fn results(bench: &str, device: &Device) -> Outcome<Results> {
    Ok(Results {
        bench: bench.to_owned(),
        device: device.name.clone(),
        emulated: device.is_emulated(),
        products: None,
        peaks: device.peaks()?,
        left_out: Vec::new(),
        records: Vec::new(),
    })
}

/// The record of the fused op.
pub fn record(op: Op, case: &Case, time: Option<Time>, counts: Option<Counts>) -> Record {
    let [tokens, in_features, out_features, rank] = case.shape;
    Record {
        contender: FUSED.to_owned(),
        phase: ALONE.to_owned(),
        dtype: case.dtype.to_string(),
        norm: format!("{:?}", case.norm),
        tokens,
        in_features,
        out_features,
        rank,
        graph: false,
        work: op.work(case),
        time,
        clocks: None,
        counts,
    }
}

/// The counts of a record, in words.
pub fn line(record: &Record) -> String {
    let Some(counts) = record.counts else { return String::new() };
    let Counts { launches, dram_bytes, l2_bytes, .. } = counts;
    let megabytes = |bytes: u64| format!("{:.3} MB", bytes as f64 / 1e6);
    let (dram, l2) = (megabytes(dram_bytes), megabytes(l2_bytes));
    let mut line = format!("{launches:2} launches, DRAM {dram}, L2 {l2}");
    // f32 is not computed on tensor cores.
    if counts.mma > 0 {
        line += &format!(", {:.2} MFLOP in {} mma", counts.flop() as f64 / 1e6, counts.mma);
    }
    line
}
