//! The layer as an op of candle's autograd.

use std::sync::{Arc, OnceLock};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, Error, Layout, Result, Shape, Tensor};
use fused_dora::cudarc::driver::CudaSlice;
use fused_dora::{
    Backward, Dropout, DropoutForm, Forward, Gradients, Norm, NormGrad, NormGradient,
};

use crate::error::OrCandle;
use crate::layer::Adapted;
use crate::tensor::{Element, Lent, downloaded, into_tensor, uninitialised};

/// One forward, and its backward: of x `[…, I]` and the adapter's buffer, y `[…, O]`.
///
/// The adapter's values are those that were prepared: its tensor is there for autograd alone.
#[derive(Debug)]
pub(crate) struct Op<E> {
    adapted: Arc<Adapted<E>>,
    seed: u64,
    dropout: Option<Dropout>,
    saved: OnceLock<Saved<E>>,
}

/// What the forward keeps for its backward.
#[derive(Debug)]
struct Saved<E> {
    h: CudaSlice<E>,
    z: Option<CudaSlice<E>>,
}

/// Rows of a batch, and the shape of its y.
struct Batch {
    tokens: usize,
    output: Shape,
}

impl<E: Element> Op<E> {
    pub(crate) fn new(adapted: Arc<Adapted<E>>, seed: u64, dropout: Option<Dropout>) -> Self {
        Self { adapted, seed, dropout, saved: OnceLock::new() }
    }

    fn batch(&self, input: &Shape) -> Result<Batch> {
        let spec = &self.adapted.layer.spec;
        let mut dims = input.dims().to_vec();
        match dims.last_mut() {
            Some(last) if *last == spec.in_features() => *last = spec.out_features(),
            _ => {
                let mut expected = input.dims()[..input.rank().saturating_sub(1)].to_vec();
                expected.push(spec.in_features());
                return Err(Error::UnexpectedShape {
                    msg: "x must have the layer's input features as its last dimension".to_owned(),
                    expected: expected.into(),
                    got: input.clone(),
                }
                .bt());
            }
        }
        let tokens = input.elem_count() / spec.in_features();
        Ok(Batch { tokens, output: dims.into() })
    }

    /// Whether the forward keeps z, and the backward takes it in place of y.
    fn keeps_z(&self) -> bool {
        let peft = self.dropout.is_some_and(|dropout| dropout.form() == DropoutForm::Peft);
        peft && self.adapted.layer.spec.norm() == Norm::Output
    }

    /// y, with room for one element at least.
    fn forward(&self, x: &Lent<'_, E>, tokens: usize) -> Result<CudaSlice<E>> {
        let Adapted { layer, prepared, .. } = &*self.adapted;
        let (runtime, spec) = (&layer.runtime, &layer.spec);
        let stream = runtime.stream();
        let (h_len, y_len) = (tokens * spec.padded_rank(), tokens * spec.out_features());
        let mut y = uninitialised::<E>(stream, y_len)?;
        let mut h = uninitialised::<E>(stream, h_len)?;
        let mut z = self.keeps_z().then(|| uninitialised::<E>(stream, y_len)).transpose()?;
        let weight = layer.weight.lend(stream)?;
        let frozen = layer.bias.as_ref().map(|bias| bias.lend(stream)).transpose()?;
        let frozen = frozen.as_ref().map(Lent::view).transpose()?;
        let io = Forward {
            tokens,
            x: x.view()?.into(),
            weight: weight.view()?,
            bias: prepared.bias().or(frozen),
            seed: self.seed,
            dropout: self.dropout,
            z: z.as_mut().map(|z| z.slice_mut(..y_len)),
            y: y.slice_mut(..y_len).into(),
            h: h.slice_mut(..h_len),
        };
        runtime.with_workspace(spec, tokens, |workspace| {
            runtime.kernels().forward(stream, spec, prepared, workspace, io)
        })?;
        // An op is run once.
        let _ = self.saved.set(Saved { h, z });
        Ok(y)
    }

    /// The gradients of x, where it is wanted, and of the adapter, with room for one element at
    /// least.
    fn backward(
        &self,
        tokens: usize,
        x: &Tensor,
        y: &Tensor,
        grad_output: &Tensor,
    ) -> Result<(Option<CudaSlice<E>>, CudaSlice<f32>)> {
        let Adapted { layer, parameters, prepared } = &*self.adapted;
        let (runtime, spec, layout) = (&layer.runtime, &layer.spec, &layer.layout);
        let saved = self.saved.get();
        let Saved { h, z } = saved.ok_or_else(|| Error::msg("the layer's forward did not run"))?;
        let stream = runtime.stream();
        let x_len = tokens * spec.in_features();
        let mut grad_x = x.track_op().then(|| uninitialised::<E>(stream, x_len)).transpose()?;
        // Nothing writes the padding between the parts.
        let mut grads = stream.alloc_zeros::<f32>(layout.len().max(1)).or_candle()?;
        let parts = layout.view_mut(grads.slice_mut(..layout.len())).or_candle()?;

        let weight = layer.weight.lend(stream)?;
        let frozen = layer.bias.as_ref().map(|bias| bias.lend(stream)).transpose()?;
        let frozen = frozen.as_ref().map(Lent::view).transpose()?;
        let needs_y = spec.norm() == Norm::Output && z.is_none();
        let y = needs_y.then(|| Lent::<E>::new(stream, y)).transpose()?;
        let (x, grad_output) = (Lent::new(stream, x)?, Lent::new(stream, grad_output)?);
        let mut io = Backward {
            tokens,
            gradients: Gradients::Overwrite,
            x: x.view()?.into(),
            weight: weight.view()?,
            bias: prepared.bias().or(frozen),
            output: y.as_ref().map(Lent::view).transpose()?.map(Into::into),
            z: z.as_ref().map(|z| z.slice(..tokens * spec.out_features())),
            dropout: self.dropout,
            grad_output: grad_output.view()?.into(),
            h: h.slice(..tokens * spec.padded_rank()),
            grad_input: grad_x.as_mut().map(|grad| grad.slice_mut(..x_len).into()),
            grad_lora_a: parts.lora_a,
            grad_lora_b: parts.lora_b,
            grad_magnitude: parts.magnitude,
            grad_bias: parts.bias,
        };
        runtime.with_workspace(spec, tokens, |workspace| {
            runtime.kernels().backward(stream, spec, prepared, workspace, &mut io)
        })?;
        if spec.norm_grad() == NormGrad::Exact {
            let values = layout.view(parameters.slice(..layout.len())).or_candle()?;
            let parts = layout.view_mut(grads.slice_mut(..layout.len())).or_candle()?;
            if let Some(grad_magnitude) = &parts.magnitude {
                let io = NormGradient {
                    weight: weight.view()?,
                    lora_a: values.lora_a,
                    lora_b: values.lora_b,
                    grad_magnitude: grad_magnitude.as_view(),
                    grad_lora_a: parts.lora_a,
                    grad_lora_b: parts.lora_b,
                };
                runtime.with_workspace(spec, tokens, |workspace| {
                    runtime.kernels().norm_gradient(stream, spec, prepared, workspace, io)
                })?;
            }
        }
        Ok((grad_x, grads))
    }
}

impl<E: Element> CustomOp2 for Op<E> {
    fn name(&self) -> &'static str {
        "fused-dora"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        _adapter: &CpuStorage,
        _adapter_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Batch { tokens, output } = self.batch(x_layout.shape())?;
        let stream = self.adapted.layer.runtime.stream();
        let y = self.forward(&Lent::copied(stream, x, x_layout)?, tokens)?;
        Ok((downloaded(stream, &y, output.elem_count())?, output))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        _adapter: &CudaStorage,
        _adapter_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let Batch { tokens, output } = self.batch(x_layout.shape())?;
        let stream = self.adapted.layer.runtime.stream();
        let y = self.forward(&Lent::borrowed(stream, x, x_layout)?, tokens)?;
        Ok((CudaStorage::wrap_cuda_slice(y, x.device.clone()), output))
    }

    fn bwd(
        &self,
        x: &Tensor,
        adapter: &Tensor,
        y: &Tensor,
        grad_output: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Batch { tokens, .. } = self.batch(x.shape())?;
        let grad_output = grad_output.contiguous()?;
        let (grad_x, grads) = self.backward(tokens, x, y, &grad_output)?;
        let stream = self.adapted.layer.runtime.stream();
        let grad_x = grad_x.map(|grad| into_tensor(stream, x.device(), grad, x.shape()));
        let grads = adapter
            .track_op()
            .then(|| into_tensor(stream, adapter.device(), grads, adapter.shape()));
        Ok((grad_x.transpose()?, grads.transpose()?))
    }
}
