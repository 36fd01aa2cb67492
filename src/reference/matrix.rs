//! The few dense float64 matrix operations that the reference is written in.

/// Columns of the left factor taken per pass of [`Matrix::times`], so that the rows of the right
/// factor that they meet stay in the cache.
const PASS: usize = 64;

/// A dense row-major matrix.
#[derive(Clone)]
pub(super) struct Matrix {
    rows: usize,
    cols: usize,
    data: Vec<f64>,
}

impl Matrix {
    /// Takes `rows · cols` values; the callers have checked the count.
    pub(super) fn new(rows: usize, cols: usize, data: Vec<f64>) -> Self {
        debug_assert_eq!(data.len(), rows * cols);
        Self { rows, cols, data }
    }

    pub(super) fn into_data(self) -> Vec<f64> {
        self.data
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.data[row * self.cols..][..self.cols]
    }

    pub(super) fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self { data: self.data.iter().map(|&v| f(v)).collect(), ..*self }
    }

    pub(super) fn abs(&self) -> Self {
        self.map(f64::abs)
    }

    pub(super) fn scaled(&self, factor: f64) -> Self {
        self.map(|v| factor * v)
    }

    /// The element-wise combination of two matrices of one shape.
    pub(super) fn zip(&self, other: &Self, f: impl Fn(f64, f64) -> f64) -> Self {
        let data = self.data.iter().zip(&other.data).map(|(&a, &b)| f(a, b)).collect();
        Self { data, ..*self }
    }

    pub(super) fn plus(&self, other: &Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    /// Element `(i, j)` times `factors[j]`.
    pub(super) fn scale_columns(&self, factors: &[f64]) -> Self {
        self.with_columns(factors, |v, factor| v * factor)
    }

    /// Element `(i, j)` times `factors[i]`.
    pub(super) fn scale_rows(&self, factors: &[f64]) -> Self {
        let rows = self.data.chunks(self.cols.max(1)).zip(factors);
        let data = rows.flat_map(|(row, factor)| row.iter().map(move |v| v * factor)).collect();
        Self { data, ..*self }
    }

    /// Element `(i, j)` combined with `values[j]`.
    pub(super) fn with_columns(&self, values: &[f64], f: impl Fn(f64, f64) -> f64) -> Self {
        let mut data = self.data.clone();
        for row in data.chunks_mut(self.cols.max(1)) {
            row.iter_mut().zip(values).for_each(|(v, &value)| *v = f(*v, value));
        }
        Self { data, ..*self }
    }

    pub(super) fn column_sums(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.cols];
        for row in 0..self.rows {
            sums.iter_mut().zip(self.row(row)).for_each(|(sum, v)| *sum += v);
        }
        sums
    }

    pub(super) fn transposed(&self) -> Self {
        let mut data = Vec::with_capacity(self.data.len());
        for col in 0..self.cols {
            data.extend((0..self.rows).map(|row| self.data[row * self.cols + col]));
        }
        Self { rows: self.cols, cols: self.rows, data }
    }

    /// The product `self [m,k] · other [k,n]`, each element summed in the order of `k`.
    pub(super) fn times(&self, other: &Self) -> Self {
        debug_assert_eq!(self.cols, other.rows);
        let mut product = Self::new(self.rows, other.cols, vec![0.0; self.rows * other.cols]);
        for start in (0..self.cols).step_by(PASS) {
            let end = self.cols.min(start + PASS);
            for i in 0..self.rows {
                let sums = &mut product.data[i * other.cols..][..other.cols];
                for k in start..end {
                    let factor = self.data[i * self.cols + k];
                    sums.iter_mut().zip(other.row(k)).for_each(|(sum, v)| *sum += factor * v);
                }
            }
        }
        product
    }
}
