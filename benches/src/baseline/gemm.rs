//! Matrix products: cuBLASLt's, or the crate's own.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use fused_dora::cudarc::driver::CudaStream;
use fused_dora::{
    Backward, Base, DoraSpec, Element, ElementType, Forward, Gradients, Kernels, Layer, Norm,
    NormGrad, Read, Scaling, Workspace, Write,
};

use super::Outcome;
#[cfg(feature = "cublaslt")]
use super::cublaslt::CublasLt;
use super::ops::{Matrix, Ops};

/// Which factor of a product is transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// a `[m, k]` · (b `[n, k]`)ᵀ
    Nt,
    /// a `[m, k]` · b `[k, n]`
    Nn,
    /// (a `[k, m]`)ᵀ · b `[k, n]`
    Tn,
}

impl Layout {
    /// m, n and k, if the shapes of a and b fit together.
    pub fn extents(self, a: [usize; 2], b: [usize; 2]) -> Outcome<[usize; 3]> {
        let ([m, ak], [bk, n]) = match self {
            Self::Nt => (a, [b[1], b[0]]),
            Self::Nn => (a, b),
            Self::Tn => ([a[1], a[0]], b),
        };
        if ak == bk { Ok([m, n, ak]) } else { Err(format!("{self:?} of {a:?} and {b:?}").into()) }
    }
}

/// α·a·b + c. c is optional.
#[derive(Clone, Copy)]
pub struct Product<E> {
    pub layout: Layout,
    pub alpha: f32,
    pub a: Matrix<E>,
    pub b: Matrix<E>,
    pub add: Option<Matrix<E>>,
}

/// Where a product goes: gradients of the adapter are f32.
#[derive(Clone, Copy)]
pub enum Output<E> {
    Element(Matrix<E>),
    F32(Matrix<f32>),
}

impl<E> Output<E> {
    fn shape(&self) -> [usize; 2] {
        match self {
            Self::Element(matrix) => matrix.shape(),
            Self::F32(matrix) => matrix.shape(),
        }
    }
}

/// What multiplies matrices.
pub enum Gemm {
    /// The crate's own kernels.
    Own(OwnGemm),
    /// NVIDIA's library.
    #[cfg(feature = "cublaslt")]
    CublasLt(CublasLt),
}

impl Gemm {
    /// The crate's own.
    pub fn own(kernels: &Arc<Kernels>) -> Self {
        let (plans, scratch) = (HashMap::new(), HashMap::new());
        Self::Own(OwnGemm { kernels: kernels.clone(), plans, scratch })
    }

    /// cuBLASLt, where the benches were built with it; its f32 products are of f32.
    ///
    /// # Errors
    /// The library is not there, or they were not.
    pub fn cublaslt(stream: &Arc<CudaStream>) -> Outcome<Self> {
        Self::library(stream, false)
    }

    /// The same with f32 products of factors that are rounded to TF32.
    ///
    /// # Errors
    /// As of [`Self::cublaslt`].
    pub fn cublaslt_tf32(stream: &Arc<CudaStream>) -> Outcome<Self> {
        Self::library(stream, true)
    }

    fn library(stream: &Arc<CudaStream>, tf32: bool) -> Outcome<Self> {
        #[cfg(feature = "cublaslt")]
        return Ok(Self::CublasLt(CublasLt::new(stream, tf32)?));
        #[cfg(not(feature = "cublaslt"))]
        {
            let _ = (stream, tf32);
            Err("built without cuBLASLt: pass --features cublaslt".into())
        }
    }

    /// What it is, in words.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Own(_) => "own GEMM",
            #[cfg(feature = "cublaslt")]
            Self::CublasLt(library) => library.name(),
        }
    }

    /// Computes a product.
    pub fn run<E: Element>(
        &mut self,
        ops: &mut Ops<E>,
        product: Product<E>,
        out: Output<E>,
    ) -> Outcome {
        let [m, n, _] = product.layout.extents(product.a.shape(), product.b.shape())?;
        let added = product.add.map_or([m, n], |add| add.shape());
        if [m, n] != out.shape() || [m, n] != added {
            return Err(format!("a product of [{m}, {n}] into {:?}", out.shape()).into());
        }
        match self {
            Self::Own(own) => own.run(ops, product, out),
            #[cfg(feature = "cublaslt")]
            Self::CublasLt(library) => library.run(product, out),
        }
    }
}

/// The crate's main kernels as plain products: a layer of rank 0 without a norm computes a·bᵀ in
/// its forward and a·b in its backward. They neither scale nor add nor transpose the first factor:
/// that takes launches of its own here.
pub struct OwnGemm {
    kernels: Arc<Kernels>,
    plans: HashMap<(Layout, [usize; 3]), (Layer, Workspace)>,
    scratch: HashMap<(&'static str, [usize; 2]), u64>,
}

impl OwnGemm {
    fn run<E: Element>(
        &mut self,
        ops: &mut Ops<E>,
        product: Product<E>,
        out: Output<E>,
    ) -> Outcome {
        let Product { layout, alpha, a, b, add } = product;
        let [m, n, k] = layout.extents(a.shape(), b.shape())?;
        // Of the first factor's transpose and the second's, the one that is cheaper.
        if layout == Layout::Tn
            && m > n
            && add.is_none()
            && let Output::F32(out) = out
        {
            let transposed = self.temporary(ops, "factor", [n, k])?;
            ops.product_transpose(b, transposed)?;
            let result = self.temporary(ops, "result", [n, m])?;
            self.multiply(ops, Layout::Nn, transposed, a, result)?;
            return ops.product_unpack_transposed(result, alpha, out);
        }
        let (layout, a) = match layout {
            Layout::Tn => {
                let transposed = self.temporary(ops, "factor", [m, k])?;
                ops.product_transpose(a, transposed)?;
                (Layout::Nn, transposed)
            }
            _ => (layout, a),
        };
        match (out, add) {
            (Output::Element(out), None) if alpha == 1.0 => self.multiply(ops, layout, a, b, out),
            (out, add) => {
                let result = self.temporary(ops, "result", [m, n])?;
                self.multiply(ops, layout, a, b, result)?;
                match (out, add) {
                    (Output::Element(out), None) => ops.product_scale(result, alpha, out),
                    (Output::Element(out), Some(add)) => {
                        ops.product_scaled_add(add, result, alpha, out)
                    }
                    (Output::F32(out), None) => ops.product_unpack(result, alpha, out),
                    (Output::F32(_), Some(_)) => Err("no form adds to an f32 product".into()),
                }
            }
        }
    }

    /// Memory between the launches of one product.
    fn temporary<E: Element>(
        &mut self,
        ops: &mut Ops<E>,
        what: &'static str,
        [rows, cols]: [usize; 2],
    ) -> Outcome<Matrix<E>> {
        let key = (what, [rows, cols]);
        if let Some(&pointer) = self.scratch.get(&key) {
            return Ok(Matrix::at(pointer, rows, cols));
        }
        let matrix = ops.alloc(rows, cols)?;
        self.scratch.insert(key, matrix.pointer);
        Ok(matrix)
    }

    /// The layer that a product is, and scratch memory for it.
    fn plan<E: Element>(
        &mut self,
        ops: &Ops<E>,
        layout: Layout,
        [m, n, k]: [usize; 3],
    ) -> Outcome<&mut (Layer, Workspace)> {
        match self.plans.entry((layout, [m, n, k])) {
            Entry::Occupied(plan) => Ok(plan.into_mut()),
            Entry::Vacant(place) => {
                let (inputs, outputs) = if layout == Layout::Nt { (k, n) } else { (n, k) };
                let (scaling, detached) = (Scaling::Value(1.0), NormGrad::Detached);
                let spec =
                    DoraSpec::new(inputs, outputs, 0, scaling, Norm::None, detached, E::DTYPE)?;
                let workspace = Workspace::new(&self.kernels, &ops.stream, &[spec], m)?;
                Ok(place.insert((Layer::new(&ops.stream, &spec)?, workspace)))
            }
        }
    }

    /// out = a·bᵀ or a·b, in one launch.
    fn multiply<E: Element>(
        &mut self,
        ops: &Ops<E>,
        layout: Layout,
        a: Matrix<E>,
        b: Matrix<E>,
        out: Matrix<E>,
    ) -> Outcome {
        let (kernels, stream) = (self.kernels.clone(), &ops.stream);
        let (layer, workspace) = self.plan(ops, layout, layout.extents(a.shape(), b.shape())?)?;
        let element = E::DTYPE.into();
        // SAFETY: the matrices are of `ops`, which keeps them, and their shapes are the spec's; one
        // stream runs everything. Of a layer of rank 0, H, dA and dB have no elements.
        let read = |address| unsafe { Read::from_address(address, element) };
        // SAFETY: likewise.
        let write = |address, element| unsafe { Write::from_address(address, element) };
        let none = || write(0, ElementType::F32);
        match layout {
            Layout::Nt => {
                let io = Forward {
                    tokens: a.rows,
                    base: Base::new(read(b.pointer)),
                    x: read(a.pointer),
                    y: write(out.pointer, element),
                    h: write(0, element),
                    z: None,
                    dropout: None,
                    counter: None,
                    seed: 0,
                };
                layer.forward(&kernels, stream, workspace, io)?;
            }
            Layout::Nn => {
                let io = Backward {
                    tokens: a.rows,
                    gradients: Gradients::Overwrite,
                    base: Base::new(read(b.pointer)),
                    // Not read: neither A nor m wants a gradient.
                    x: read(out.pointer),
                    output: None,
                    z: None,
                    dropout: None,
                    counter: None,
                    grad_output: read(a.pointer),
                    h: read(0),
                    grad_input: Some(write(out.pointer, element)),
                    grad_lora_a: none(),
                    grad_lora_b: none(),
                    grad_magnitude: None,
                    grad_bias: None,
                };
                layer.backward(&kernels, stream, workspace, io)?;
            }
            Layout::Tn => return Err("the first factor is transposed beforehand".into()),
        }
        Ok(())
    }
}
