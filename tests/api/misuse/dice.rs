//! Random arguments, right and wrong ones.

use fused_dora::{
    DoraSpec, Dropout, DropoutForm, Dtype, Norm, NormGrad, OptimizerGroup, OptimizerPart, Read,
    Result, Scaling, TensorElement, Write,
};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::{POOL, Pool};
use fused_dora_testkit::random::NORMS;

/// Numbers at which sums, products and conversions go wrong.
pub const EXTREMES: [usize; 8] =
    [0, 1, 1 << 30, (1 << 30) + 1, 1 << 31, 1 << 32, usize::MAX / 2, usize::MAX];

const FLOATS: [f64; 9] =
    [0.0, -0.0, 1.0, -1.0, 1e-46, 1e39, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];

/// Draws arguments, most of them right in half of the calls, and all of them in the others.
pub struct Dice {
    pub random: StdRng,
    pub careless: bool,
}

impl Dice {
    /// Whether one of so many draws is this one.
    pub fn one_in(&mut self, n: u32) -> bool {
        self.random.random_ratio(1, n)
    }

    /// Whether an argument is to be wrong.
    pub fn wrong(&mut self) -> bool {
        self.careless && self.one_in(8)
    }

    pub fn of<T: Copy>(&mut self, right: T, wrong: &[T]) -> T {
        if self.wrong() { *wrong.choose(&mut self.random).expect("some") } else { right }
    }

    pub fn float(&mut self, right: f64) -> f64 {
        self.of(right, &FLOATS)
    }

    pub fn up_to(&mut self, limit: usize) -> usize {
        self.random.random_range(0..=limit)
    }

    /// The length of a tensor of `right` elements, as far as a buffer reaches.
    pub fn len(&mut self, right: usize) -> usize {
        let any = self.up_to(POOL);
        self.of(right, &[0, 1, right.saturating_sub(1), right.saturating_add(1), any]).min(POOL)
    }

    pub fn product(&mut self, rows: usize, cols: usize) -> usize {
        self.len(rows.saturating_mul(cols))
    }

    /// A matrix that is contiguous, unless its type or its stride is wrong.
    pub fn read<'a, E: TensorElement, O: TensorElement>(
        &mut self,
        pool: &'a Pool<E, O>,
        rows: usize,
        cols: usize,
    ) -> Read<'a> {
        let len = self.product(rows, cols);
        let stride = self.wrong_stride(cols);
        self.cut(pool, stride, len)
    }

    /// The same, to be written.
    pub fn write<'a, E: TensorElement, O: TensorElement>(
        &mut self,
        pool: &'a mut Pool<E, O>,
        rows: usize,
        cols: usize,
    ) -> Write<'a> {
        let len = self.product(rows, cols);
        let stride = self.wrong_stride(cols);
        self.cut_mut(pool, stride, len)
    }

    /// A matrix whose rows may have a stride.
    pub fn read_rows<'a, E: TensorElement, O: TensorElement>(
        &mut self,
        pool: &'a Pool<E, O>,
        rows: usize,
        cols: usize,
    ) -> Read<'a> {
        let (stride, len) = self.stride(rows, cols);
        self.cut(pool, stride, len)
    }

    /// The same, to be written.
    pub fn write_rows<'a, E: TensorElement, O: TensorElement>(
        &mut self,
        pool: &'a mut Pool<E, O>,
        rows: usize,
        cols: usize,
    ) -> Write<'a> {
        let (stride, len) = self.stride(rows, cols);
        self.cut_mut(pool, stride, len)
    }

    fn cut<'a, E: TensorElement, O: TensorElement>(
        &mut self,
        pool: &'a Pool<E, O>,
        stride: Option<usize>,
        len: usize,
    ) -> Read<'a> {
        let read = match self.wrong() {
            true => Read::from(pool.other.slice(..len)),
            false => pool.right.slice(..len).into(),
        };
        match stride {
            Some(stride) => read.with_row_stride(stride),
            None => read,
        }
    }

    fn cut_mut<'a, E: TensorElement, O: TensorElement>(
        &mut self,
        pool: &'a mut Pool<E, O>,
        stride: Option<usize>,
        len: usize,
    ) -> Write<'a> {
        let write = match self.wrong() {
            true => Write::from(pool.other.slice_mut(..len)),
            false => pool.right.slice_mut(..len).into(),
        };
        match stride {
            Some(stride) => write.with_row_stride(stride),
            None => write,
        }
    }

    /// A stride of a matrix that must have none; its rows' length is as good as none.
    fn wrong_stride(&mut self, cols: usize) -> Option<usize> {
        let stride = self.of(cols, &EXTREMES);
        (stride != cols || self.one_in(8)).then_some(stride)
    }

    /// The stride of a matrix, and the elements that it takes up; `None` where its rows are dense.
    pub fn stride(&mut self, rows: usize, cols: usize) -> (Option<usize>, usize) {
        let gap = self.up_to(9);
        let stride = cols.saturating_add(gap);
        match self.one_in(2) {
            true => (None, self.product(rows, cols)),
            false => (Some(self.of(stride, &EXTREMES)), self.product(rows, stride)),
        }
    }

    pub fn maybe<T>(&mut self, right: bool, value: T) -> Option<T> {
        self.of(right, &[true, false]).then_some(value)
    }

    pub fn dimension(&mut self, right: usize) -> usize {
        self.of(right, &EXTREMES)
    }

    pub fn spec(&mut self, dtype: Dtype) -> Result<DoraSpec> {
        let [inputs, outputs, rank] = [24, 24, 20].map(|limit| self.up_to(limit));
        let [inputs, outputs] = [inputs, outputs].map(|features| self.dimension(features.max(1)));
        let rank = self.dimension(rank);
        let alpha = self.float(2.0) as f32;
        let scaling =
            [Scaling::Standard { alpha }, Scaling::RankStabilized { alpha }, Scaling::Value(alpha)];
        let scaling = *scaling.choose(&mut self.random).expect("some");
        let norm = *NORMS.choose(&mut self.random).expect("some");
        let exact = norm != Norm::None && self.random.random();
        let exact = self.of(exact, &[true]);
        let norm_grad = if exact { NormGrad::Exact } else { NormGrad::Detached };
        DoraSpec::new(inputs, outputs, rank, scaling, norm, norm_grad, dtype)
    }

    pub fn dropout(&mut self, norm: Norm) -> Option<Dropout> {
        let right = if norm == Norm::Input { DropoutForm::Adapter } else { DropoutForm::Peft };
        let form = self.of(right, &[DropoutForm::Adapter, DropoutForm::Peft]);
        let dropout = Dropout::new(self.float(0.5) as f32, form, self.random.random());
        dropout.ok().filter(|_| self.one_in(2))
    }

    pub fn axis(&mut self) -> Norm {
        self.of(Norm::Input, &NORMS)
    }

    pub fn parts(&mut self, len: usize) -> Vec<OptimizerPart> {
        let mut parts = Vec::new();
        let mut start = 0;
        for _ in 0..self.up_to(70) {
            start += self.up_to(9);
            let end = start + self.up_to(9);
            let end = self.dimension(end);
            let group = OptimizerGroup {
                learning_rate_factor: self.float(1.0),
                weight_decay: self.float(0.0),
            };
            if end > len && !self.careless {
                break;
            }
            parts.push(OptimizerPart { range: start..end, group });
            start = if self.wrong() { start } else { end.min(POOL) };
        }
        parts
    }
}
