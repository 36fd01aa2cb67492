//! Matrices on the device, and the ops of `elementwise.cu` on them.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;

use fused_dora::cudarc::driver::{
    CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, LaunchConfig,
    PushKernelArg,
};
use fused_dora::cudarc::nvrtc::Ptx;
use fused_dora::{Dtype, Element};

use super::Outcome;

/// The PTX of `elementwise.cu` for each dtype, as the build script made it.
const PTX: &[(&str, &str)] = &include!(concat!(env!("OUT_DIR"), "/elementwise.rs"));

// As in elementwise.cu.
const THREADS: usize = 128;
const ELEMENTS: usize = 8;
const TILE: usize = 64;
const STRIP: usize = 256;
const WARPS: usize = 4;

/// Rows of a column sum that one CTA takes at least.
const LEAST_CHUNK: usize = 64;
/// CTAs that a column sum is cut into, about.
const COLUMN_CTAS: usize = 512;

/// A dense row-major matrix in the memory of one [`Ops`].
#[derive(Debug)]
pub struct Matrix<E> {
    pub pointer: u64,
    pub rows: usize,
    pub cols: usize,
    element: PhantomData<E>,
}

impl<E> Clone for Matrix<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Matrix<E> {}

impl<E> Matrix<E> {
    /// The matrix at an address of the memory of an [`Ops`].
    pub fn at(pointer: u64, rows: usize, cols: usize) -> Self {
        Self { pointer, rows, cols, element: PhantomData }
    }

    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    fn len(&self) -> i64 {
        (self.rows * self.cols) as i64
    }
}

/// A stream, the kernels of one dtype, and all memory that they work on, which lives as long.
pub struct Ops<E> {
    pub stream: Arc<CudaStream>,
    functions: HashMap<&'static str, CudaFunction>,
    memory: Vec<CudaSlice<u8>>,
    /// Of column sums: one per chunk and column, and one counter per strip, zero between launches.
    partials: Matrix<f32>,
    counters: Matrix<u32>,
    element: PhantomData<E>,
}

/// The kernels of `elementwise.cu` for a dtype.
///
/// # Errors
/// The benches were built without NVRTC, or the driver's.
pub fn module(stream: &CudaStream, dtype: Dtype) -> Outcome<Arc<CudaModule>> {
    let name = dtype.to_string();
    let (_, ptx) = PTX.iter().find(|(known, _)| *known == name).ok_or(
        "the benches were built without NVRTC: run `cargo xtask nvrtc`, and build them again",
    )?;
    Ok(stream.context().load_module(Ptx::from_src(*ptx))?)
}

/// Launches a kernel of this dtype, of so many CTAs.
macro_rules! launch {
    ($ops:expr, $name:expr, $grid:expr, $($argument:expr),+) => {{
        let grid: [usize; 2] = $grid;
        let config = LaunchConfig {
            grid_dim: (grid[0] as u32, grid[1] as u32, 1),
            block_dim: (THREADS as u32, 1, 1),
            shared_mem_bytes: 0,
        };
        let function = $ops.functions.get($name).ok_or_else(|| format!("no kernel {}", $name))?;
        // SAFETY: the arguments are those that elementwise.cu declares; every address is of a
        // matrix of this `Ops`, whose shape the caller has checked, and the stream orders the uses.
        unsafe { $ops.stream.launch_builder(function)$(.arg(&$argument))+.launch(config) }?;
        Ok(())
    }};
}

/// Checks that matrices have the shapes that an op needs.
fn same(shapes: &[[usize; 2]]) -> Outcome {
    match shapes.windows(2).find(|pair| pair[0] != pair[1]) {
        None => Ok(()),
        Some(pair) => {
            Err(format!("matrices of {:?} and {:?} do not match", pair[0], pair[1]).into())
        }
    }
}

impl<E: Element> Ops<E> {
    /// Loads the kernels for matrices of up to `features` columns and `rows` rows.
    pub fn new(stream: &Arc<CudaStream>, rows: usize, features: usize) -> Outcome<Self> {
        let module = module(stream, E::DTYPE)?;
        let of_dtype = [
            "scale",
            "product_scale",
            "add",
            "product_scaled_add",
            "multiply",
            "pack",
            "product_unpack",
            "multiply_columns",
            "multiply_rows",
            "eye",
            "product_transpose",
            "product_unpack_transposed",
            "add_transposed",
            "sum_rows",
            "norm_rows",
            "sum_columns",
            "norm_columns",
        ];
        let mut functions = HashMap::new();
        for name in of_dtype {
            functions.insert(name, module.load_function(&format!("{name}_{}", E::DTYPE))?);
        }
        for name in ["divide", "add_vectors", "shift"] {
            functions.insert(name, module.load_function(name)?);
        }
        let mut ops = Self {
            stream: stream.clone(),
            functions,
            memory: Vec::new(),
            partials: Matrix::at(0, 0, 0),
            counters: Matrix::at(0, 0, 0),
            element: PhantomData,
        };
        ops.partials = ops.alloc(rows.div_ceil(LEAST_CHUNK), features)?;
        ops.counters = ops.alloc(1, features.div_ceil(STRIP))?;
        Ok(ops)
    }

    /// A matrix of zeros, for as long as this lives.
    pub fn alloc<T>(&mut self, rows: usize, cols: usize) -> Outcome<Matrix<T>> {
        let mut memory = self.stream.alloc_zeros::<u8>((rows * cols * size_of::<T>()).max(1))?;
        let (pointer, _) = memory.device_ptr_mut(&self.stream);
        self.memory.push(memory);
        Ok(Matrix::at(pointer, rows, cols))
    }

    /// A copy of a tensor, for as long as this lives.
    pub fn copy<T>(&mut self, from: &CudaSlice<T>, rows: usize, cols: usize) -> Outcome<Matrix<T>> {
        let matrix = self.alloc(rows, cols)?;
        let bytes = rows * cols * size_of::<T>();
        if bytes > from.num_bytes() {
            return Err(format!("{} bytes are not [{rows}, {cols}]", from.num_bytes()).into());
        }
        let (from, _guard) = from.device_ptr(&self.stream);
        // SAFETY: both are as large, and the stream orders the copy before all other uses.
        unsafe {
            fused_dora::cudarc::driver::result::memcpy_dtod_async(
                matrix.pointer,
                from,
                bytes,
                self.stream.cu_stream(),
            )?;
        }
        Ok(matrix)
    }

    /// The elements, on the host.
    pub fn read<T: fused_dora::cudarc::driver::DeviceRepr + Clone + Default>(
        &self,
        matrix: &Matrix<T>,
    ) -> Outcome<Vec<T>> {
        let mut values = vec![T::default(); matrix.rows * matrix.cols];
        // SAFETY: the matrix has as many elements, any bytes of which are valid numbers.
        unsafe {
            fused_dora::cudarc::driver::result::memcpy_dtoh_async(
                &mut values,
                matrix.pointer,
                self.stream.cu_stream(),
            )?;
        }
        self.stream.synchronize()?;
        Ok(values)
    }

    fn vectors<T>(matrix: &Matrix<T>) -> Outcome<[usize; 2]> {
        let len = matrix.rows * matrix.cols;
        if !len.is_multiple_of(ELEMENTS) {
            return Err(format!("{:?} is not in whole vectors of 8", matrix.shape()).into());
        }
        Ok([len.div_ceil(ELEMENTS * THREADS), 1])
    }

    fn tiles(rows: usize, cols: usize) -> Outcome<[usize; 2]> {
        if !rows.is_multiple_of(ELEMENTS) || !cols.is_multiple_of(ELEMENTS) {
            return Err(format!("[{rows}, {cols}] is not in whole vectors of 8").into());
        }
        Ok([cols.div_ceil(TILE), rows.div_ceil(TILE)])
    }

    /// out = s·a.
    pub fn scale(&self, a: Matrix<E>, s: f32, out: Matrix<E>) -> Outcome {
        same(&[a.shape(), out.shape()])?;
        launch!(self, "scale", Self::vectors(&a)?, a.pointer, out.pointer, a.len(), s)
    }

    /// The same, as a part of a product.
    pub fn product_scale(&self, a: Matrix<E>, s: f32, out: Matrix<E>) -> Outcome {
        same(&[a.shape(), out.shape()])?;
        launch!(self, "product_scale", Self::vectors(&a)?, a.pointer, out.pointer, a.len(), s)
    }

    /// out = a + b.
    pub fn add(&self, a: Matrix<E>, b: Matrix<E>, out: Matrix<E>) -> Outcome {
        same(&[a.shape(), b.shape(), out.shape()])?;
        launch!(self, "add", Self::vectors(&a)?, a.pointer, b.pointer, out.pointer, a.len())
    }

    /// out = a + s·b.
    pub fn product_scaled_add(
        &self,
        a: Matrix<E>,
        b: Matrix<E>,
        s: f32,
        out: Matrix<E>,
    ) -> Outcome {
        same(&[a.shape(), b.shape(), out.shape()])?;
        let grid = Self::vectors(&a)?;
        launch!(self, "product_scaled_add", grid, a.pointer, b.pointer, out.pointer, a.len(), s)
    }

    /// out = a∘b.
    pub fn multiply(&self, a: Matrix<E>, b: Matrix<E>, out: Matrix<E>) -> Outcome {
        same(&[a.shape(), b.shape(), out.shape()])?;
        launch!(self, "multiply", Self::vectors(&a)?, a.pointer, b.pointer, out.pointer, a.len())
    }

    /// out = a, rounded.
    pub fn pack(&self, a: Matrix<f32>, out: Matrix<E>) -> Outcome {
        same(&[a.shape(), out.shape()])?;
        launch!(self, "pack", Self::vectors(&a)?, a.pointer, out.pointer, a.len())
    }

    /// out = s·a, in f32.
    pub fn product_unpack(&self, a: Matrix<E>, s: f32, out: Matrix<f32>) -> Outcome {
        same(&[a.shape(), out.shape()])?;
        launch!(self, "product_unpack", Self::vectors(&a)?, a.pointer, out.pointer, a.len(), s)
    }

    /// out = a times one factor for each column.
    pub fn multiply_columns(&self, a: Matrix<E>, v: Matrix<f32>, out: Matrix<E>) -> Outcome {
        same(&[a.shape(), out.shape()])?;
        same(&[[1, a.cols], v.shape()])?;
        let (grid, cols) = (Self::vectors(&a)?, a.cols as i32);
        launch!(self, "multiply_columns", grid, a.pointer, v.pointer, out.pointer, a.len(), cols)
    }

    /// out = a times one factor for each row.
    pub fn multiply_rows(&self, a: Matrix<E>, v: Matrix<f32>, out: Matrix<E>) -> Outcome {
        same(&[a.shape(), out.shape()])?;
        same(&[[1, a.rows], v.shape()])?;
        let (grid, cols) = (Self::vectors(&a)?, a.cols as i32);
        launch!(self, "multiply_rows", grid, a.pointer, v.pointer, out.pointer, a.len(), cols)
    }

    /// out = 1.
    pub fn eye(&self, out: Matrix<E>) -> Outcome {
        same(&[[out.rows, out.rows], out.shape()])?;
        launch!(self, "eye", Self::vectors(&out)?, out.pointer, out.rows as i32)
    }

    /// out = aᵀ.
    pub fn product_transpose(&self, a: Matrix<E>, out: Matrix<E>) -> Outcome {
        same(&[[a.cols, a.rows], out.shape()])?;
        let (grid, [rows, cols]) = (Self::tiles(a.rows, a.cols)?, a.shape().map(|n| n as i32));
        launch!(self, "product_transpose", grid, a.pointer, out.pointer, rows, cols)
    }

    /// out = s·aᵀ, in f32.
    pub fn product_unpack_transposed(&self, a: Matrix<E>, s: f32, out: Matrix<f32>) -> Outcome {
        same(&[[a.cols, a.rows], out.shape()])?;
        let (grid, [rows, cols]) = (Self::tiles(a.rows, a.cols)?, a.shape().map(|n| n as i32));
        launch!(self, "product_unpack_transposed", grid, a.pointer, out.pointer, rows, cols, s)
    }

    /// out = a + bᵀ.
    pub fn add_transposed(&self, a: Matrix<E>, b: Matrix<E>, out: Matrix<E>) -> Outcome {
        same(&[a.shape(), [b.cols, b.rows], out.shape()])?;
        let (grid, [rows, cols]) = (Self::tiles(b.rows, b.cols)?, b.shape().map(|n| n as i32));
        launch!(self, "add_transposed", grid, a.pointer, b.pointer, out.pointer, rows, cols)
    }

    /// The sum of each row.
    pub fn sum_rows(&self, a: Matrix<E>, out: Matrix<f32>) -> Outcome {
        self.reduce_rows("sum_rows", a, out)
    }

    /// The Euclidean norm of each row.
    pub fn norm_rows(&self, a: Matrix<E>, out: Matrix<f32>) -> Outcome {
        self.reduce_rows("norm_rows", a, out)
    }

    fn reduce_rows(&self, kernel: &str, a: Matrix<E>, out: Matrix<f32>) -> Outcome {
        same(&[[1, a.rows], out.shape()])?;
        Self::tiles(a.rows, a.cols)?;
        let (grid, [rows, cols]) = ([a.rows.div_ceil(WARPS), 1], a.shape().map(|n| n as i32));
        launch!(self, kernel, grid, a.pointer, out.pointer, rows, cols)
    }

    /// The sum of each column.
    pub fn sum_columns(&self, a: Matrix<E>, out: Matrix<f32>) -> Outcome {
        self.reduce_columns("sum_columns", a, out)
    }

    /// The Euclidean norm of each column.
    pub fn norm_columns(&self, a: Matrix<E>, out: Matrix<f32>) -> Outcome {
        self.reduce_columns("norm_columns", a, out)
    }

    fn reduce_columns(&self, kernel: &str, a: Matrix<E>, out: Matrix<f32>) -> Outcome {
        let (grid, chunk) = self.chunks(&a, &out)?;
        let ([rows, cols], chunk) = (a.shape().map(|n| n as i32), chunk as i32);
        let scratch = [self.partials.pointer, self.counters.pointer];
        launch!(
            self,
            kernel,
            grid,
            a.pointer,
            out.pointer,
            scratch[0],
            scratch[1],
            rows,
            cols,
            chunk
        )
    }

    /// How a sum over rows is cut: the grid, and the rows of a CTA.
    fn chunks(&self, a: &Matrix<E>, out: &Matrix<f32>) -> Outcome<([usize; 2], usize)> {
        same(&[[1, a.cols], out.shape()])?;
        Self::tiles(a.rows, a.cols)?;
        let strips = a.cols.div_ceil(STRIP);
        let chunk = a.rows.div_ceil(COLUMN_CTAS.div_ceil(strips)).max(LEAST_CHUNK);
        let chunks = a.rows.div_ceil(chunk);
        if chunks * a.cols > self.partials.rows * self.partials.cols || strips > self.counters.cols
        {
            return Err(format!("{:?} is larger than was foreseen", a.shape()).into());
        }
        Ok(([strips, chunks], chunk))
    }

    /// out = a/b, and 0 where b = 0, of vectors.
    pub fn divide(&self, a: Matrix<f32>, b: Matrix<f32>, out: Matrix<f32>) -> Outcome {
        same(&[a.shape(), b.shape(), out.shape()])?;
        launch!(self, "divide", Self::vectors(&a)?, a.pointer, b.pointer, out.pointer, a.len())
    }

    /// out = a + b, of vectors.
    pub fn add_vectors(&self, a: Matrix<f32>, b: Matrix<f32>, out: Matrix<f32>) -> Outcome {
        same(&[a.shape(), b.shape(), out.shape()])?;
        launch!(self, "add_vectors", Self::vectors(&a)?, a.pointer, b.pointer, out.pointer, a.len())
    }

    /// out = a + s, of vectors.
    pub fn shift(&self, a: Matrix<f32>, s: f32, out: Matrix<f32>) -> Outcome {
        same(&[a.shape(), out.shape()])?;
        launch!(self, "shift", Self::vectors(&a)?, a.pointer, out.pointer, a.len(), s)
    }
}
