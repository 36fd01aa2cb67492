//! Matrices whose rows may lie further apart than they are long.

use cudarc::driver::{CudaView, CudaViewMut, DeviceSlice};

use crate::error::{Error, Result};
use crate::spec::MAX_DIMENSION;

/// A row-major matrix in a buffer: by default with its rows one behind the other, or with their
/// starts `stride` elements apart, as in a slice of the columns of a wider matrix.
///
/// What lies between the rows is neither read nor written. Kernels move 16 bytes at a time where
/// every row starts at a 16-byte boundary and is a multiple of 16 bytes long.
///
/// ```
/// use fused_dora::{Kernels, Rows, open_device};
///
/// # cuda_emulator::client::select(cuda_emulator::client::Choice::from_env()?)?;
/// let kernels = Kernels::load(&open_device(0)?)?;
/// let stream = kernels.context().default_stream();
/// // Queries, keys and values side by side, [tokens, 3·64]: the keys.
/// let projected = stream.alloc_zeros::<f32>(10 * 3 * 64)?;
/// let keys = Rows::strided(projected.slice(64..), 3 * 64);
/// # let _ = keys;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Rows<V> {
    pub(crate) view: V,
    stride: Option<usize>,
}

impl<V> Rows<V> {
    /// Rows that start `stride` elements apart; the first at the view's first element. The view
    /// need not reach beyond the end of the last row.
    pub const fn strided(view: V, stride: usize) -> Self {
        Self { view, stride: Some(stride) }
    }

    /// The buffer, from the first row on.
    pub const fn view(&self) -> &V {
        &self.view
    }

    /// The stride in elements for rows of `cols` elements.
    pub(crate) fn stride(&self, cols: usize) -> usize {
        self.stride.unwrap_or(cols)
    }
}

impl<V> From<V> for Rows<V> {
    /// Rows one behind the other.
    fn from(view: V) -> Self {
        Self { view, stride: None }
    }
}

/// A matrix that is read.
pub type MatrixView<'a, E> = Rows<CudaView<'a, E>>;
/// A matrix that is written.
pub type MatrixViewMut<'a, E> = Rows<CudaViewMut<'a, E>>;

impl<V> Rows<V> {
    /// Checks that the buffer holds a matrix of `rows`·`cols` elements: exactly, where its rows
    /// have no stride, and to the end of the last row at least where they have one.
    pub(crate) fn check<T>(
        &self,
        tensor: &'static str,
        rows: (&str, usize),
        cols: (&str, usize),
    ) -> Result<()>
    where
        V: DeviceSlice<T>,
    {
        let found = self.view.len();
        let Some(stride) = self.stride else {
            return crate::spec::check_len(tensor, found, rows, cols);
        };
        check_stride(tensor, stride, cols.1)?;
        let expected = match rows.1 {
            0 => 0,
            rows => (rows - 1).saturating_mul(stride).saturating_add(cols.1),
        };
        if found >= expected {
            return Ok(());
        }
        let shape = format!("[{}={}, {}={}], rows {stride} apart,", rows.0, rows.1, cols.0, cols.1);
        Err(Error::Shape { tensor, shape, expected, found })
    }
}

/// Checks a stride of rows of `cols` elements.
pub(crate) fn check_stride(tensor: &'static str, stride: usize, cols: usize) -> Result<()> {
    if (cols..=MAX_DIMENSION).contains(&stride) {
        return Ok(());
    }
    Err(Error::Stride { tensor, stride, cols, limit: MAX_DIMENSION })
}
