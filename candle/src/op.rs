//! The layer as an op of candle's autograd.

use std::sync::{Arc, OnceLock};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, Error, Layout, Result, Shape, Tensor};
use fused_dora::{Backward, Dropout, Forward, Gradients, NormGradient, Saved};

use crate::error::{OrCandle, check_shape};
use crate::layer::{Adapted, Frozen};
use crate::tensor::{Buffer, Lent};

/// One forward, and its backward: of x `[…, I]` and the adapter's buffer, y `[…, O]`.
///
/// The adapter's values are those that were prepared: its tensor is there for autograd alone.
#[derive(Debug)]
pub(crate) struct Op {
    adapted: Arc<Adapted>,
    seed: u64,
    dropout: Option<Dropout>,
    saved: OnceLock<Saved>,
}

impl Op {
    pub(crate) fn new(adapted: &Arc<Adapted>, seed: u64, dropout: Option<Dropout>) -> Self {
        Self { adapted: adapted.clone(), seed, dropout, saved: OnceLock::new() }
    }

    /// Rows of a batch x, and the shape of its y.
    fn batch(&self, input: &Shape) -> Result<(usize, Shape)> {
        let spec = &self.adapted.frozen.spec;
        let with_last = |features| {
            let mut dims = input.dims()[..input.rank().saturating_sub(1)].to_vec();
            dims.push(features);
            Shape::from(dims)
        };
        let msg = "x must have the layer's input features as its last dimension";
        check_shape(msg, input, with_last(spec.in_features()))?;
        Ok((input.elem_count() / spec.in_features(), with_last(spec.out_features())))
    }

    /// y.
    fn forward(&self, x: &Lent<'_>, tokens: usize) -> Result<Buffer> {
        let Self { adapted, seed, dropout, .. } = self;
        let Frozen { runtime, spec, .. } = &*adapted.frozen;
        let (stream, y_len) = (runtime.stream(), tokens * spec.out_features());
        let mut y = Buffer::uninitialised(stream, spec.dtype(), y_len)?;
        let form = dropout.map(|dropout| dropout.form());
        let mut saved = Saved::new(stream, &[*spec], tokens, form).or_candle()?;
        let (h, z) = saved.write(&adapted.layer, tokens, dropout.as_ref()).or_candle()?;
        let x = x.read()?;
        adapted.frozen.run(tokens, |kernels, stream, workspace, base| {
            let io = Forward {
                tokens,
                base,
                x,
                y: y.write(),
                h,
                z,
                dropout: *dropout,
                counter: None,
                seed: *seed,
            };
            adapted.layer.forward(kernels, stream, workspace, io)
        })?;
        // An op is run once.
        let _ = self.saved.set(saved);
        Ok(y)
    }

    /// The gradients of x, where it is wanted, and of the adapter.
    fn backward(
        &self,
        tokens: usize,
        x: &Tensor,
        y: &Tensor,
        grad_output: &Tensor,
    ) -> Result<(Option<Buffer>, Buffer)> {
        let Adapted { frozen, parameters, layer } = &*self.adapted;
        let Frozen { runtime, spec, layout, .. } = &**frozen;
        let (stream, dropout, len) = (runtime.stream(), self.dropout, layout.len());
        let saved = self.saved.get();
        let saved = saved.ok_or_else(|| Error::msg("the layer's forward did not run"))?;
        let (h, z) = saved.read(layer, tokens, dropout.as_ref()).or_candle()?;
        let new_grad_x =
            || Buffer::uninitialised(stream, spec.dtype(), tokens * spec.in_features());
        let mut grad_x = x.track_op().then(new_grad_x).transpose()?;
        // Nothing writes the padding between the parts.
        let mut grads = stream.alloc_zeros::<f32>(len.max(1)).or_candle()?;

        let takes_y = layer.takes_y(dropout.as_ref()).or_candle()?;
        let y = takes_y.then(|| Lent::new(stream, y)).transpose()?;
        let output = y.as_ref().map(Lent::read).transpose()?;
        let (x, grad_output) = (Lent::new(stream, x)?, Lent::new(stream, grad_output)?);
        let (x, grad_output) = (x.read()?, grad_output.read()?);
        let values = layout.view(parameters.slice(..len)).or_candle()?;
        frozen.run(tokens, |kernels, stream, workspace, base| {
            let weight = base.weight.clone();
            let parts = layout.view_mut(grads.slice_mut(..len))?;
            let io = Backward {
                tokens,
                gradients: Gradients::Overwrite,
                base,
                x,
                output,
                z,
                dropout,
                counter: None,
                grad_output,
                h,
                grad_input: grad_x.as_mut().map(Buffer::write),
                grad_lora_a: parts.lora_a.into(),
                grad_lora_b: parts.lora_b.into(),
                grad_magnitude: parts.magnitude.map(Into::into),
                grad_bias: parts.bias.map(Into::into),
            };
            layer.backward(kernels, stream, workspace, io)?;
            let parts = layout.view_mut(grads.slice_mut(..len))?;
            // Plain LoRA has no norm through which gradients could flow.
            let Some(grad_magnitude) = &parts.magnitude else { return Ok(()) };
            let io = NormGradient {
                weight,
                lora_a: values.lora_a.into(),
                lora_b: values.lora_b.into(),
                grad_magnitude: grad_magnitude.as_view().into(),
                grad_lora_a: parts.lora_a.into(),
                grad_lora_b: parts.lora_b.into(),
            };
            layer.finish(kernels, stream, workspace, io)
        })?;
        Ok((grad_x, Buffer::of_f32(grads, len)))
    }
}

impl CustomOp2 for Op {
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
        let (tokens, output) = self.batch(x_layout.shape())?;
        let stream = self.adapted.frozen.runtime.stream();
        let x = Lent::Copied(Buffer::upload(stream, x, x_layout)?);
        Ok((self.forward(&x, tokens)?.into_cpu(stream)?, output))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        _adapter: &CudaStorage,
        _adapter_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (tokens, output) = self.batch(x_layout.shape())?;
        let lent = Lent::borrowed(self.adapted.frozen.runtime.stream(), x, x_layout)?;
        Ok((self.forward(&lent, tokens)?.into_cuda(&x.device), output))
    }

    fn bwd(
        &self,
        x: &Tensor,
        adapter: &Tensor,
        y: &Tensor,
        grad_output: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (tokens, _) = self.batch(x.shape())?;
        let (grad_x, grads) = self.backward(tokens, x, y, &grad_output.contiguous()?)?;
        let stream = self.adapted.frozen.runtime.stream();
        let grad_x = grad_x.map(|grad| grad.into_tensor(stream, x.device(), x.shape()));
        let has_graph = adapter.track_op();
        let grads = has_graph.then(|| grads.into_tensor(stream, adapter.device(), adapter.shape()));
        Ok((grad_x.transpose()?, grads.transpose()?))
    }
}
