//! Plain loops in float64, a few rows at a time.

use fused_dora::peft::LayerAdapter;
use fused_dora::{Decomposition, Error, MergeReport, Norm};

use crate::engine::{Engine, Merged, NOT_FINITE, decode, encode, of_layer};
use crate::error::Failure;
use crate::output::Sink;
use crate::weight::Weight;

pub struct Cpu;

impl Engine for Cpu {
    fn name(&self) -> String {
        "CPU, in float64".to_owned()
    }

    fn merge(
        &mut self,
        weight: &Weight<'_>,
        layer: &LayerAdapter,
        target: &mut Sink<'_>,
    ) -> Result<Merged, Failure> {
        let product = Product::new(layer);
        let mut gain = match layer.norm() {
            Norm::Input => input_gains(weight, layer, &product)?,
            Norm::None | Norm::Output => Vec::new(),
        };
        let mut report =
            MergeReport { change_squared: 0.0, error_squared: 0.0, error_along_change: 0.0 };
        let (mut bytes, mut v) = (Vec::new(), Vec::new());
        rows(weight, |row, w, last_of_chunk| {
            product.of_row(row, &mut v);
            v.iter_mut().zip(w).for_each(|(v, w)| *v += w);
            if layer.norm() == Norm::Output {
                let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
                gain.push(ratio(layer.magnitude()[row], norm));
            }
            for (column, (v, w)) in v.iter().zip(w).enumerate() {
                let merged = v * factor(layer.norm(), &gain, row, column);
                let error = encode(merged, weight.dtype, &mut bytes) - merged;
                let change = merged - w;
                report.change_squared += change * change;
                report.error_squared += error * error;
                report.error_along_change += error * change;
            }
            flush(&mut bytes, last_of_chunk, target)
        })?;
        Ok(Merged { report, gain })
    }

    fn unmerge(
        &mut self,
        merged: &Weight<'_>,
        layer: &LayerAdapter,
        gain: &[f32],
        target: &mut Sink<'_>,
    ) -> Result<(), Failure> {
        let lost = gain.iter().position(|gain| *gain == 0.0 || !gain.is_finite());
        if let Some(feature) = lost {
            let axis = if layer.norm() == Norm::Input { "input" } else { "output" };
            return Err(of_layer(
                merged,
                Error::LostFeature { axis, feature, gain: gain[feature] },
            ));
        }
        let product = Product::new(layer);
        let (mut bytes, mut low_rank, mut is_finite) = (Vec::new(), Vec::new(), true);
        rows(merged, |row, w, last_of_chunk| {
            product.of_row(row, &mut low_rank);
            for (column, (w, low_rank)) in w.iter().zip(&low_rank).enumerate() {
                let v = w / factor(layer.norm(), gain, row, column);
                is_finite &= encode(v - low_rank, merged.dtype, &mut bytes).is_finite();
            }
            flush(&mut bytes, last_of_chunk, target)
        })?;
        if is_finite { Ok(()) } else { Err(of_layer(merged, NOT_FINITE)) }
    }

    fn decompose(
        &mut self,
        before: &Weight<'_>,
        after: &Weight<'_>,
        axis: Norm,
    ) -> Result<Decomposition, Failure> {
        let features = if axis == Norm::Input { before.shape[1] } else { before.shape[0] };
        let mut moments = vec![Moments::default(); features];
        let row_bytes = after.shape[1] * after.dtype.bytes();
        let (mut other, mut first_of_other, mut t) = (Vec::new(), 0..0, Vec::new());
        rows(before, |row, w, _| {
            if !first_of_other.contains(&row) {
                let count = after.chunk_rows().min(after.shape[0] - row);
                first_of_other = row..row + count;
                other.resize(count * row_bytes, 0);
                after.read(row, &mut other)?;
            }
            t.clear();
            let at = (row - first_of_other.start) * row_bytes;
            decode(&other[at..at + row_bytes], after.dtype, |value| t.push(f64::from(value)));
            for (column, (w, t)) in w.iter().zip(&t).enumerate() {
                let feature = if axis == Norm::Input { column } else { row };
                moments[feature].add(*w, t - w);
            }
            Ok(())
        })?;
        let mut sums = Decomposition { magnitude: 0.0, direction: 0.0 };
        for moment in &moments {
            let [magnitude, direction] = moment.decomposition();
            sums.magnitude += magnitude / features as f64;
            sums.direction += direction / features as f64;
        }
        Ok(sums)
    }
}

/// s·B·A, by rows.
struct Product {
    columns: usize,
    rank: usize,
    scaled_b: Vec<f64>,
    a: Vec<f64>,
}

impl Product {
    fn new(layer: &LayerAdapter) -> Self {
        let scaling = f64::from(layer.scaling());
        Self {
            columns: layer.shape()[1],
            rank: layer.rank(),
            scaled_b: layer.lora_b().iter().map(|&b| scaling * f64::from(b)).collect(),
            a: layer.lora_a().iter().copied().map(f64::from).collect(),
        }
    }

    fn of_row(&self, row: usize, target: &mut Vec<f64>) {
        target.clear();
        target.resize(self.columns, 0.0);
        let factors = &self.scaled_b[row * self.rank..][..self.rank];
        for (factor, a) in factors.iter().zip(self.a.chunks(self.columns)) {
            target.iter_mut().zip(a).for_each(|(sum, a)| *sum += factor * a);
        }
    }
}

/// Calls `visit` with each row's number and values, and whether it is the last of a chunk.
fn rows(
    weight: &Weight<'_>,
    mut visit: impl FnMut(usize, &[f64], bool) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let row_bytes = weight.shape[1] * weight.dtype.bytes();
    let mut values = Vec::with_capacity(weight.shape[1]);
    weight.chunks(|first, bytes| {
        let rows = bytes.len() / row_bytes;
        for (row, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
            values.clear();
            decode(bytes, weight.dtype, |value| values.push(f64::from(value)));
            visit(first + row, &values, row + 1 == rows)?;
        }
        Ok(())
    })
}

/// Writes a chunk when it is full.
fn flush(bytes: &mut Vec<u8>, full: bool, target: &mut Sink<'_>) -> Result<(), Failure> {
    if full {
        target.write(bytes)?;
        bytes.clear();
    }
    Ok(())
}

/// g = m/c along the columns, which takes a pass over the weight.
fn input_gains(
    weight: &Weight<'_>,
    layer: &LayerAdapter,
    product: &Product,
) -> Result<Vec<f32>, Failure> {
    let (mut squares, mut v) = (vec![0.0; weight.shape[1]], Vec::new());
    rows(weight, |row, w, _| {
        product.of_row(row, &mut v);
        for ((sum, v), w) in squares.iter_mut().zip(&v).zip(w) {
            *sum += (v + w) * (v + w);
        }
        Ok(())
    })?;
    Ok(layer.magnitude().iter().zip(&squares).map(|(&m, sum)| ratio(m, sum.sqrt())).collect())
}

/// g = m/c, 0 where c is.
fn ratio(magnitude: f32, norm: f64) -> f32 {
    if norm == 0.0 { 0.0 } else { (f64::from(magnitude) / norm) as f32 }
}

fn factor(norm: Norm, gain: &[f32], row: usize, column: usize) -> f64 {
    match norm {
        Norm::None => 1.0,
        Norm::Input => f64::from(gain[column]),
        Norm::Output => f64::from(gain[row]),
    }
}

/// Of one vector w and its change d.
#[derive(Clone, Default)]
struct Moments {
    ww: f64,
    wd: f64,
    dd: f64,
}

impl Moments {
    fn add(&mut self, w: f64, d: f64) {
        self.ww += w * w;
        self.wd += w * d;
        self.dd += d * d;
    }

    /// |‖t‖ − ‖w‖| and 1 − cos(t, w) of t = w + d, in forms that do not cancel where d is small.
    fn decomposition(&self) -> [f64; 2] {
        let Self { ww, wd, dd } = *self;
        // `f64::max` would turn NaN into 0.
        let at_least_0 = |value: f64| if value < 0.0 { 0.0 } else { value };
        let tt = at_least_0(ww + 2.0 * wd + dd);
        let (w, t) = (ww.sqrt(), tt.sqrt());
        if w == 0.0 || t == 0.0 {
            return [w.max(t), 0.0];
        }
        let longer = (2.0 * wd + dd) / (w + t);
        [longer.abs(), at_least_0((dd - longer * longer) / (2.0 * w * t))]
    }
}
