//! The forward and the backward of one layer in each [`Form`], op by op.
//!
//! The ops are those that an eager framework launches, in its order, with the norm detached (the
//! DoRA paper, §4.3); dropout and bias are absent. x, W and their gradients, what lies between ops
//! and the A and B that products take are in the layer's dtype; A, B, m and their gradients in f32.

use std::sync::Arc;

use fused_dora::cudarc::driver::{CudaSlice, CudaStream};
use fused_dora::{DoraSpec, Element, Norm};

use super::gemm::{Gemm, Layout, Output, Product};
use super::ops::{Matrix, Ops};
use super::{Form, Outcome};

/// A layer's tensors. x and dY may be several; each run takes the next.
pub struct Inputs<'a, E> {
    /// T.
    pub tokens: usize,
    /// x `[T, I]` and dY `[T, O]`.
    pub batches: Vec<[&'a CudaSlice<E>; 2]>,
    /// W `[O, I]`.
    pub weight: &'a CudaSlice<E>,
    /// W' `[O, I]`.
    pub merged: &'a CudaSlice<E>,
    /// A `[r, I]`.
    pub lora_a: &'a CudaSlice<f32>,
    /// B `[O, r]`.
    pub lora_b: &'a CudaSlice<f32>,
    /// m `[I]` or `[O]`; not read for plain LoRA.
    pub magnitude: &'a CudaSlice<f32>,
}

/// A layer's tensors and all that its forms keep between ops.
pub struct Unfused<E> {
    ops: Ops<E>,
    gemms: Vec<Gemm>,
    /// The one that products are taken from.
    gemm: usize,
    spec: DoraSpec,
    batches: Vec<[Matrix<E>; 2]>,
    w: Matrix<E>,
    merged: Matrix<E>,
    masters: [Matrix<f32>; 2],
    a: Matrix<E>,
    b: Matrix<E>,
    m: Matrix<f32>,
    /// x·Wᵀ and x·Aᵀ·Bᵀ, kept for the backward, and y.
    base: Matrix<E>,
    low_rank: Matrix<E>,
    y: Matrix<E>,
    /// x·Aᵀ and its gradient.
    h: Matrix<E>,
    grad_h: Matrix<E>,
    /// dX, and its two parts.
    grad_x: [Matrix<E>; 3],
    /// Of x's, y's and W's shapes, between ops.
    of_y: [Matrix<E>; 4],
    of_w: [Matrix<E>; 3],
    /// The identity, times Aᵀ, and times Bᵀ.
    eye: Matrix<E>,
    eye_a: Matrix<E>,
    eye_ab: Matrix<E>,
    /// V = W + s·B·A and W' = V∘g.
    v: Matrix<E>,
    formed: Matrix<E>,
    /// c, g, g − 1, and gradients of g.
    norm: Matrix<f32>,
    gain: Matrix<f32>,
    gain_less_1: Matrix<f32>,
    grad_gain: [Matrix<f32>; 3],
    grad_a: Matrix<f32>,
    grad_b: Matrix<f32>,
    grad_m: Matrix<f32>,
}

impl<E: Element> Unfused<E> {
    /// Copies the tensors, and allocates what the forms that apply to the layer need.
    ///
    /// # Errors
    /// A dimension is not a multiple of 8, the layer has no adapter, NVRTC is missing, or the
    /// driver's.
    pub fn new(
        stream: &Arc<CudaStream>,
        gemms: Vec<Gemm>,
        spec: &DoraSpec,
        inputs: &Inputs<'_, E>,
    ) -> Outcome<Self> {
        let (t, i, o, r) = (inputs.tokens, spec.in_features(), spec.out_features(), spec.rank());
        if t == 0 || [i, o, r].iter().any(|&n| n == 0 || n % 8 != 0) {
            return Err(format!(
                "baselines need tokens, and multiples of 8 of all else, not {t}, {i}, {o} and {r}"
            )
            .into());
        }
        if gemms.is_empty() {
            return Err("baselines need something that multiplies matrices".into());
        }
        let features = spec.magnitude_len().max(8);
        let mut ops = Ops::new(stream, t.max(o), i.max(o))?;
        let batch = |&[x, grad]: &[&CudaSlice<E>; 2], ops: &mut Ops<E>| {
            Outcome::Ok([ops.copy(x, t, i)?, ops.copy(grad, t, o)?])
        };
        let only = |wanted: bool, n: usize| if wanted { n } else { 0 };
        let peft = only(Form::DoraPeft.applies(spec.norm()), i);
        let dora = only(spec.norm() != Norm::None, o);
        let batches = inputs.batches.iter().map(|b| batch(b, &mut ops)).collect::<Outcome<_>>()?;
        Ok(Self {
            spec: *spec,
            gemms,
            gemm: 0,
            batches,
            w: ops.copy(inputs.weight, o, i)?,
            merged: ops.copy(inputs.merged, o, i)?,
            masters: [ops.copy(inputs.lora_a, r, i)?, ops.copy(inputs.lora_b, o, r)?],
            a: ops.alloc(r, i)?,
            b: ops.alloc(o, r)?,
            m: match spec.magnitude_len() {
                0 => ops.alloc(1, features)?,
                _ => ops.copy(inputs.magnitude, 1, features)?,
            },
            base: ops.alloc(t, o)?,
            low_rank: ops.alloc(t, o)?,
            y: ops.alloc(t, o)?,
            h: ops.alloc(t, r)?,
            grad_h: ops.alloc(t, r)?,
            grad_x: [ops.alloc(t, i)?, ops.alloc(t, i)?, ops.alloc(t, i)?],
            of_y: [ops.alloc(t, o)?, ops.alloc(t, o)?, ops.alloc(t, o)?, ops.alloc(t, o)?],
            of_w: [ops.alloc(dora, i)?, ops.alloc(dora, i)?, ops.alloc(dora, i)?],
            eye: ops.alloc(peft, i)?,
            eye_a: ops.alloc(peft, r)?,
            eye_ab: ops.alloc(peft, o)?,
            v: ops.alloc(dora, i)?,
            formed: ops.alloc(dora, i)?,
            norm: ops.alloc(1, features)?,
            gain: ops.alloc(1, features)?,
            gain_less_1: ops.alloc(1, features)?,
            grad_gain: [ops.alloc(1, features)?, ops.alloc(1, features)?, ops.alloc(1, features)?],
            grad_a: ops.alloc(r, i)?,
            grad_b: ops.alloc(o, r)?,
            grad_m: ops.alloc(1, features)?,
            ops,
        })
    }

    /// From now on, this one of the `gemms` computes the products. At first it is the first one.
    pub fn multiply_by(&mut self, gemm: usize) {
        self.gemm = gemm.min(self.gemms.len() - 1);
    }

    /// After each change of the adapter: A and B in the dtype of the products.
    pub fn prepare(&mut self, form: Form) -> Outcome {
        if form.trains() {
            self.ops.pack(self.masters[0], self.a)?;
            self.ops.pack(self.masters[1], self.b)?;
        }
        Ok(())
    }

    /// y, of the batch of that number.
    pub fn forward(&mut self, form: Form, batch: usize) -> Outcome {
        let [x, _] = self.batches[batch % self.batches.len()];
        match form {
            Form::Plain => self.nt(x, self.w, self.y),
            Form::Merged => self.nt(x, self.merged, self.y),
            Form::LoraPeft => self.lora_peft(x),
            Form::LoraAddmm => self.lora_addmm(x),
            Form::DoraPeft => {
                self.peft_weight()?;
                self.dora(x)
            }
            Form::DoraDense => {
                self.dense_weight()?;
                self.dora(x)
            }
            Form::DoraFormed => self.dora_formed(x),
        }
    }

    /// dX, and the gradients of what the form trains, after its forward of the same batch.
    pub fn backward(&mut self, form: Form, batch: usize) -> Outcome {
        let [x, dy] = self.batches[batch % self.batches.len()];
        match form {
            Form::Plain => self.nn(1.0, dy, self.w, self.grad_x[0]),
            Form::Merged => self.nn(1.0, dy, self.merged, self.grad_x[0]),
            Form::LoraPeft => self.lora_peft_backward(x, dy),
            Form::LoraAddmm => self.lora_addmm_backward(x, dy),
            Form::DoraPeft | Form::DoraDense => self.dora_backward(x, dy),
            Form::DoraFormed => self.dora_formed_backward(x, dy),
        }
    }

    fn lora_peft(&mut self, x: Matrix<E>) -> Outcome {
        let [scaled, ..] = self.of_y;
        self.nt(x, self.w, self.base)?;
        self.nt(x, self.a, self.h)?;
        self.nt(self.h, self.b, self.low_rank)?;
        self.ops.scale(self.low_rank, self.spec.scaling(), scaled)?;
        self.ops.add(self.base, scaled, self.y)
    }

    fn lora_peft_backward(&mut self, x: Matrix<E>, dy: Matrix<E>) -> Outcome {
        let [scaled, ..] = self.of_y;
        self.ops.scale(dy, self.spec.scaling(), scaled)?;
        self.low_rank_backward(x, scaled)?;
        let [grad_x, of_base, of_low_rank] = self.grad_x;
        self.nn(1.0, dy, self.w, of_base)?;
        self.ops.add(of_base, of_low_rank, grad_x)
    }

    /// Of U = x·Aᵀ·Bᵀ: dB, dA, and its part of dX.
    fn low_rank_backward(&mut self, x: Matrix<E>, du: Matrix<E>) -> Outcome {
        self.nn(1.0, du, self.b, self.grad_h)?;
        self.tn(1.0, du, self.h, self.grad_b)?;
        self.nn(1.0, self.grad_h, self.a, self.grad_x[2])?;
        self.tn(1.0, self.grad_h, x, self.grad_a)
    }

    fn lora_addmm(&mut self, x: Matrix<E>) -> Outcome {
        self.nt(x, self.w, self.y)?;
        self.nt(x, self.a, self.h)?;
        self.add_product(self.spec.scaling(), Layout::Nt, self.h, self.b, self.y, self.y)
    }

    fn lora_addmm_backward(&mut self, x: Matrix<E>, dy: Matrix<E>) -> Outcome {
        let (s, grad_x) = (self.spec.scaling(), self.grad_x[0]);
        self.nn(s, dy, self.b, self.grad_h)?;
        self.tn(s, dy, self.h, self.grad_b)?;
        self.nn(1.0, dy, self.w, grad_x)?;
        self.add_product(1.0, Layout::Nn, self.grad_h, self.a, grad_x, grad_x)?;
        self.tn(1.0, self.grad_h, x, self.grad_a)
    }

    /// V = W + s·(1·Aᵀ·Bᵀ)ᵀ, as PEFT has it: as layers applied to an identity.
    fn peft_weight(&mut self) -> Outcome {
        self.ops.eye(self.eye)?;
        self.nt(self.eye, self.a, self.eye_a)?;
        self.nt(self.eye_a, self.b, self.eye_ab)?;
        let scaled = Matrix::at(self.of_w[0].pointer, self.eye_ab.rows, self.eye_ab.cols);
        self.ops.scale(self.eye_ab, self.spec.scaling(), scaled)?;
        self.ops.add_transposed(self.w, scaled, self.v)
    }

    /// V = W + s·B·A.
    fn dense_weight(&mut self) -> Outcome {
        self.add_product(self.spec.scaling(), Layout::Nn, self.b, self.a, self.w, self.v)
    }

    /// y = base + ((g − 1)∘base + g∘U·s) with U = x·Aᵀ·Bᵀ, of V's norms.
    fn dora(&mut self, x: Matrix<E>) -> Outcome {
        self.nt(x, self.w, self.base)?;
        self.nt(x, self.a, self.h)?;
        self.nt(self.h, self.b, self.low_rank)?;
        let [changed, gained, scaled, extra] = self.of_y;
        let ops = &self.ops;
        ops.norm_rows(self.v, self.norm)?;
        ops.divide(self.m, self.norm, self.gain)?;
        ops.shift(self.gain, -1.0, self.gain_less_1)?;
        ops.multiply_columns(self.base, self.gain_less_1, changed)?;
        ops.multiply_columns(self.low_rank, self.gain, gained)?;
        ops.scale(gained, self.spec.scaling(), scaled)?;
        ops.add(changed, scaled, extra)?;
        ops.add(self.base, extra, self.y)
    }

    /// The chain rule on [`Self::dora`], op by op.
    fn dora_backward(&mut self, x: Matrix<E>, dy: Matrix<E>) -> Outcome {
        let ([first, second, du, product], s) = (self.of_y, self.spec.scaling());
        let [of_base, of_low_rank, grad_gain] = self.grad_gain;
        let ops = &self.ops;
        // (g − 1)∘base
        ops.multiply_columns(dy, self.gain_less_1, first)?;
        ops.multiply(dy, self.base, product)?;
        ops.sum_columns(product, of_base)?;
        // (g∘U)·s
        ops.scale(dy, s, second)?;
        ops.multiply_columns(second, self.gain, du)?;
        ops.multiply(second, self.low_rank, product)?;
        ops.sum_columns(product, of_low_rank)?;
        ops.add_vectors(of_base, of_low_rank, grad_gain)?;
        ops.divide(grad_gain, self.norm, self.grad_m)?;
        let grad_base = second;
        ops.add(dy, first, grad_base)?;
        self.low_rank_backward(x, du)?;
        let [grad_x, of_base, of_low_rank] = self.grad_x;
        self.nn(1.0, grad_base, self.w, of_base)?;
        self.ops.add(of_base, of_low_rank, grad_x)
    }

    /// W' = V∘g with V = W + s·B·A, and y = x·W'ᵀ.
    fn dora_formed(&mut self, x: Matrix<E>) -> Outcome {
        self.dense_weight()?;
        let (ops, v) = (&self.ops, self.v);
        if self.spec.norm() == Norm::Input {
            ops.norm_columns(v, self.norm)?;
            ops.divide(self.m, self.norm, self.gain)?;
            ops.multiply_columns(v, self.gain, self.formed)?;
        } else {
            ops.norm_rows(v, self.norm)?;
            ops.divide(self.m, self.norm, self.gain)?;
            ops.multiply_rows(v, self.gain, self.formed)?;
        }
        self.nt(x, self.formed, self.y)
    }

    /// dW' = dYᵀ·x and from it dV = dW'∘g, dA = s·Bᵀ·dV, dB = s·dV·Aᵀ and dm.
    fn dora_formed_backward(&mut self, x: Matrix<E>, dy: Matrix<E>) -> Outcome {
        let ([grad_formed, grad_v, product], s) = (self.of_w, self.spec.scaling());
        self.nn(1.0, dy, self.formed, self.grad_x[0])?;
        self.run(Layout::Tn, 1.0, [dy, x], None, Output::Element(grad_formed))?;
        let (ops, grad_gain) = (&self.ops, self.grad_gain[0]);
        ops.multiply(grad_formed, self.v, product)?;
        if self.spec.norm() == Norm::Input {
            ops.multiply_columns(grad_formed, self.gain, grad_v)?;
            ops.sum_columns(product, grad_gain)?;
        } else {
            ops.multiply_rows(grad_formed, self.gain, grad_v)?;
            ops.sum_rows(product, grad_gain)?;
        }
        ops.divide(grad_gain, self.norm, self.grad_m)?;
        self.tn(s, self.b, grad_v, self.grad_a)?;
        self.run(Layout::Nt, s, [grad_v, self.a], None, Output::F32(self.grad_b))
    }

    fn run(
        &mut self,
        layout: Layout,
        alpha: f32,
        [a, b]: [Matrix<E>; 2],
        add: Option<Matrix<E>>,
        out: Output<E>,
    ) -> Outcome {
        self.gemms[self.gemm].run(&mut self.ops, Product { layout, alpha, a, b, add }, out)
    }

    /// out = a·bᵀ.
    fn nt(&mut self, a: Matrix<E>, b: Matrix<E>, out: Matrix<E>) -> Outcome {
        self.run(Layout::Nt, 1.0, [a, b], None, Output::Element(out))
    }

    /// out = α·a·b.
    fn nn(&mut self, alpha: f32, a: Matrix<E>, b: Matrix<E>, out: Matrix<E>) -> Outcome {
        self.run(Layout::Nn, alpha, [a, b], None, Output::Element(out))
    }

    /// out = α·aᵀ·b, in f32.
    fn tn(&mut self, alpha: f32, a: Matrix<E>, b: Matrix<E>, out: Matrix<f32>) -> Outcome {
        self.run(Layout::Tn, alpha, [a, b], None, Output::F32(out))
    }

    /// out = c + α·a·b, with b transposed or not.
    fn add_product(
        &mut self,
        alpha: f32,
        layout: Layout,
        a: Matrix<E>,
        b: Matrix<E>,
        c: Matrix<E>,
        out: Matrix<E>,
    ) -> Outcome {
        self.run(layout, alpha, [a, b], Some(c), Output::Element(out))
    }

    /// y and dX.
    ///
    /// # Errors
    /// The driver's.
    pub fn of_tokens(&self) -> Outcome<[Vec<E>; 2]>
    where
        E: Default,
    {
        Ok([self.ops.read(&self.y)?, self.ops.read(&self.grad_x[0])?])
    }

    /// dA, dB and dm.
    ///
    /// # Errors
    /// The driver's.
    pub fn of_adapter(&self) -> Outcome<[Vec<f32>; 3]> {
        let read = |matrix| self.ops.read(matrix);
        Ok([read(&self.grad_a)?, read(&self.grad_b)?, read(&self.grad_m)?])
    }
}
