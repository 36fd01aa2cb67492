//! Products by cuBLASLt: row-major matrices are column-major ones transposed, so that Cᵀ = bᵀ·aᵀ is
//! what the library is asked for.

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::Arc;

use fused_dora::cudarc::cublaslt::{result, sys};
use fused_dora::cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use fused_dora::cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};
use fused_dora::{Dtype, Element};

use super::Outcome;
use super::gemm::{Layout, Output, Product};

type Proposal = sys::cublasLtMatmulHeuristicResult_t;

/// Scratch memory that NVIDIA recommends for Hopper; earlier GPUs need less.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Algorithms that its heuristic is asked for, and runs of each that are timed: the fastest is taken.
const ALGORITHMS: usize = 8;
const TRIALS: usize = 5;

/// The library on one stream, and the fastest of the algorithms that its heuristic proposed.
pub struct CublasLt {
    /// Whether factors of f32 are rounded to TF32.
    tf32: bool,
    handle: sys::cublasLtHandle_t,
    stream: Arc<CudaStream>,
    workspace: CudaSlice<u8>,
    plans: HashMap<Key, Plan>,
}

/// What an algorithm is chosen by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    layout: Layout,
    extents: [usize; 3],
    dtype: Dtype,
    out: Dtype,
    adds: bool,
}

/// A product as the library describes it.
struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    /// Of b, a and C, as column-major matrices.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The addresses and factors of one product.
#[derive(Clone, Copy)]
struct Call {
    alpha: f32,
    beta: f32,
    b: u64,
    a: u64,
    add: u64,
    out: u64,
}

impl CublasLt {
    /// Opens the library.
    ///
    /// # Errors
    /// There is none, or it cannot be initialised.
    pub fn new(stream: &Arc<CudaStream>, tf32: bool) -> Outcome<Self> {
        // SAFETY: loading NVIDIA's library runs its initialisers, which have no preconditions.
        if !unsafe { sys::is_culib_present() } {
            return Err(
                "cuBLASLt was not found: install the CUDA toolkit, or leave out the feature \
                        `cublaslt`"
                    .into(),
            );
        }
        stream.context().bind_to_thread()?;
        // SAFETY: what a product reads in the workspace, it has written there.
        let workspace = unsafe { stream.alloc(WORKSPACE_BYTES) }?;
        let handle = result::create_handle()?;
        Ok(Self { tf32, handle, stream: stream.clone(), workspace, plans: HashMap::new() })
    }

    /// What it is, in words.
    pub fn name(&self) -> &'static str {
        if self.tf32 { "cuBLASLt, TF32" } else { "cuBLASLt" }
    }

    /// Computes a product whose shapes were checked.
    pub fn run<E: Element>(&mut self, product: Product<E>, out: Output<E>) -> Outcome {
        let Product { layout, alpha, a, b, add } = product;
        let (pointer, out_dtype) = match out {
            Output::Element(out) => (out.pointer, E::DTYPE),
            Output::F32(out) => (out.pointer, Dtype::F32),
        };
        let key = Key {
            layout,
            extents: layout.extents(a.shape(), b.shape())?,
            dtype: E::DTYPE,
            out: out_dtype,
            adds: add.is_some(),
        };
        let beta = if add.is_some() { 1.0 } else { 0.0 };
        let add = add.map_or(pointer, |add| add.pointer);
        let call = Call { alpha, beta, b: b.pointer, a: a.pointer, add, out: pointer };
        if !self.plans.contains_key(&key) {
            let plan = self.plan(&key, call)?;
            self.plans.insert(key, plan);
        }
        let plan = &self.plans[&key];
        Self::launch(self.handle, &self.stream, &mut self.workspace, plan, &plan.algorithm, call)
    }

    /// The fastest way to compute such a product.
    fn plan(&mut self, key: &Key, call: Call) -> Outcome<Plan> {
        let (mut plan, algorithms) = Plan::new(self.handle, key, self.tf32)?;
        let context = self.stream.context();
        let events = [(); 2].map(|()| context.new_event(Some(CU_EVENT_DEFAULT)));
        let [start, end] = events;
        let (start, end) = (start?, end?);
        // What is added may be where the result goes: trials write elsewhere.
        let [m, n, _] = key.extents;
        let mut scratch = self.stream.alloc_zeros::<u8>(m * n * key.out.bytes())?;
        let out = scratch.device_ptr_mut(&self.stream).0;
        let mut fastest = f32::INFINITY;
        for algorithm in algorithms {
            let mut trial = || -> Outcome<f32> {
                let call = Call { out, ..call };
                let (handle, stream) = (self.handle, &self.stream);
                Self::launch(handle, stream, &mut self.workspace, &plan, &algorithm, call)?;
                start.record(stream)?;
                for _ in 0..TRIALS {
                    Self::launch(handle, stream, &mut self.workspace, &plan, &algorithm, call)?;
                }
                end.record(stream)?;
                stream.synchronize()?;
                Ok(start.elapsed_ms(&end)?)
            };
            // The heuristic may propose what the library then refuses.
            if let Ok(time) = trial()
                && time < fastest
            {
                (fastest, plan.algorithm) = (time, algorithm);
            }
        }
        if fastest.is_infinite() {
            return Err(format!("cuBLASLt computes no product of {:?}", key.extents).into());
        }
        Ok(plan)
    }

    fn launch(
        handle: sys::cublasLtHandle_t,
        stream: &CudaStream,
        workspace: &mut CudaSlice<u8>,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        Call { alpha, beta, b, a, add, out }: Call,
    ) -> Outcome {
        let scalar = |value: &f32| std::ptr::from_ref(value).cast::<c_void>();
        let (workspace, _guard) = workspace.device_ptr_mut(stream);
        // SAFETY: the plan is of these shapes; every address is of a matrix that lives as long as
        // the stream's work on it, which the stream orders.
        unsafe {
            result::matmul(
                handle,
                plan.operation,
                scalar(&alpha),
                scalar(&beta),
                b as *const c_void,
                plan.layouts[0],
                a as *const c_void,
                plan.layouts[1],
                add as *const c_void,
                plan.layouts[2],
                out as *mut c_void,
                plan.layouts[2],
                algorithm,
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream.cu_stream().cast(),
            )?;
        }
        Ok(())
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: the handle was created with this, and nothing has its plans any more.
        // Nobody can receive a failure here.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Plan {
    /// The product, and the algorithms that the heuristic proposes for it, the best first.
    fn new(
        handle: sys::cublasLtHandle_t,
        key: &Key,
        tf32: bool,
    ) -> Outcome<(Self, Vec<sys::cublasLtMatmulAlgo_t>)> {
        let Key { layout, extents: [m, n, k], dtype, out, .. } = *key;
        // Columns of a row-major matrix are the rows of the library's.
        let (of_b, of_a) = match layout {
            Layout::Nt => ([k, n], [k, m]),
            Layout::Nn => ([n, k], [k, m]),
            Layout::Tn => ([n, k], [m, k]),
        };
        let matrix = |[rows, cols]: [usize; 2], dtype| {
            result::create_matrix_layout(data_type(dtype), rows as u64, cols as u64, rows as i64)
        };
        let compute = match tf32 {
            true => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            false => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let operation = result::create_matmul_desc(compute, data_type(Dtype::F32))?;
        let layouts = [matrix(of_b, dtype)?, matrix(of_a, dtype)?, matrix([n, m], out)?];
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let transposes = [
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, layout == Layout::Nt),
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, layout == Layout::Tn),
        ];
        let preference = result::create_matmul_pref()?;
        let limit =
            sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: all descriptors are live, and every attribute has the type that the library says.
        unsafe {
            for (attribute, transposed) in transposes {
                let operation_of = i32::from(transposed);
                let value = std::ptr::from_ref(&operation_of).cast();
                result::set_matmul_desc_attribute(operation, attribute, value, size_of::<i32>())?;
            }
            let value = std::ptr::from_ref(&WORKSPACE_BYTES).cast();
            result::set_matmul_pref_attribute(preference, limit, value, size_of::<usize>())?;
            let [b, a, c] = layouts;
            let mut proposed = [const { MaybeUninit::<Proposal>::uninit() }; ALGORITHMS];
            let mut count = 0;
            let status = sys::cublasLtMatmulAlgoGetHeuristic(
                handle,
                operation,
                b,
                a,
                c,
                c,
                preference,
                ALGORITHMS as i32,
                proposed.as_mut_ptr().cast(),
                &mut count,
            );
            result::destroy_matmul_pref(preference)?;
            status.result()?;
            let proposed = &proposed[..count.max(0) as usize];
            // The library has written so many.
            let proposed = proposed.iter().map(|proposal| proposal.assume_init_ref());
            let usable = proposed.filter(|proposal| proposal.state.result().is_ok());
            let algorithms = usable.map(|proposal| proposal.algo).collect::<Vec<_>>();
            let first = algorithms.first().copied().ok_or("cuBLASLt proposes no algorithm")?;
            Ok((Self { operation, layouts, algorithm: first }, algorithms))
        }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: each was created with the plan, which is their only owner.
        // Nobody can receive a failure here.
        unsafe {
            for layout in self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
            let _ = result::destroy_matmul_desc(self.operation);
        }
    }
}

fn data_type(dtype: Dtype) -> sys::cudaDataType {
    match dtype {
        Dtype::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        Dtype::F16 => sys::cudaDataType_t::CUDA_R_16F,
        Dtype::F32 => sys::cudaDataType_t::CUDA_R_32F,
    }
}
